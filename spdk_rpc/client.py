"""Safe calls over the JSON-RPC client of the ``spdk`` package.

That client's ways of failing are cured here; each is a test of its own:

* an answer that comes after its call had timed out is taken for the answer to the next call: here a connection whose
  call timed out is closed, and ids are compared;
* its timeout counts processor time, so a silent target is waited for without end: here deadlines are of the wall;
* a UTF-8 character cut by a read loses data: here bytes are decoded only when a JSON text is whole;
* an error's code is lost in a text: here it is kept, with the method;
* each connection adds one more handler to a logger, and says so in the log: here they are taken off again, silently.

A call is made with a request that fits SPDK's limits, or not at all. Nothing is ever sent twice, except when the first
try surely did not reach the target (the old connection had been closed by its end).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from spdk.rpc.client import JSONRPCClient

from spdk_rpc.call import Call
from spdk_rpc.errors import (
    RpcClosed,
    RpcConnectError,
    RpcError,
    RpcExpired,
    RpcOutcomeUnknown,
    RpcProtocolError,
    RpcQueueFull,
    RpcRequestTooLarge,
    RpcTimeout,
)
from spdk_rpc.framing import FramingError, JsonFramer

T = TypeVar("T")

REQUEST_BYTES_MAX = 256 << 10  # lib/jsonrpc: SPDK_JSONRPC_RECV_BUF_SIZE since 26.05
REQUEST_VALUES_MAX = 8192  # lib/jsonrpc: SPDK_JSONRPC_MAX_VALUES since 26.05
TIMEOUT_S = 30.0
QUEUE_MAX = 64
SOCKET_PATH_BYTES_MAX = 107  # unix(7): sun_path
READ_BYTES = 64 << 10

_log = logging.getLogger(__name__)


def count_values(value: Any) -> int:
    """How many values SPDK's parser makes of ``value``: names, brackets and scalars each count."""
    if isinstance(value, Mapping):
        return 2 + sum(1 + count_values(item) for item in value.values())
    if isinstance(value, list | tuple):
        return 2 + sum(map(count_values, value))
    return 1


class _Connection(JSONRPCClient):  # type: ignore[misc]  # the package has no types
    """One connection; used for one call at a time, closed by the first call that does not end in an answer."""

    sock: socket.socket | None
    _logger: logging.Logger
    _request_id: int

    def __init__(self, path: str, clock: Callable[[], float], deadline: float) -> None:
        self._clock = clock
        self._deadline = deadline
        self._framer = JsonFramer()
        name = f"JSONRPCClient({path})"
        before = list(logging.getLogger(name).handlers)
        try:
            super().__init__(path)
        finally:
            for handler in set(logging.getLogger(name).handlers) - set(before):
                logging.getLogger(name).removeHandler(handler)

    def set_log_level(self, lvl: int | str) -> None:
        """The base class tells the level to the log, with the level that it had before: that is noise."""
        self._logger.setLevel(lvl)

    def _connect(self, addr: str, port: object) -> None:
        if len(os.fsencode(addr)) > SOCKET_PATH_BYTES_MAX:
            raise RpcConnectError(f"{addr}: a Unix socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(max(self._deadline - self._clock(), 0.001))
            self.sock.connect(addr)
        except OSError as error:
            self.close()
            raise RpcConnectError(explain_connect_error(addr, error)) from error

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def interrupt(self) -> None:
        """Ends a call that another thread waits in."""
        if self.sock is not None:
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def exchange(self, request_id: int, method: str, request: bytes, deadline: float) -> dict[str, Any]:
        """Sends one request and waits for its answer."""
        self._deadline = deadline
        try:
            self._send(method, request)
            return self._receive(request_id, method)
        except BaseException:
            self.close()
            raise

    def _socket(self) -> socket.socket:
        assert self.sock is not None
        return self.sock

    def _send(self, method: str, request: bytes) -> None:
        sock, sent = self._socket(), 0
        try:
            while sent < len(request):
                sock.settimeout(self._remaining())
                sent += sock.send(request[sent:])
        except TimeoutError as error:
            raise RpcExpired(f"{method}: the target did not take the request in time; nothing was executed") from error
        except OSError as error:
            # The last byte is the bracket that closes the request: without it, it is no request.
            raise RpcConnectError(f"{method}: not sent: the target closed the connection ({error})") from error

    def _remaining(self) -> float:
        remaining = self._deadline - self._clock()
        if remaining <= 0:
            raise TimeoutError
        return remaining

    def _receive(self, request_id: int, method: str) -> dict[str, Any]:
        sock = self._socket()
        while True:
            try:
                sock.settimeout(self._remaining())
                data = sock.recv(READ_BYTES)
            except TimeoutError as error:
                raise RpcTimeout(method, "no answer in time") from error
            except OSError as error:
                raise RpcOutcomeUnknown(method, f"the connection was lost ({error})") from error
            if not data:
                raise RpcOutcomeUnknown(method, "the target closed the connection before it answered")
            try:
                texts = self._framer.feed(data)
                if texts:
                    return self._answer(request_id, method, texts)
            except (FramingError, ValueError, RecursionError) as error:
                raise RpcProtocolError(method, f"the answer is not JSON-RPC: {error}") from error

    def _answer(self, request_id: int, method: str, texts: list[bytes]) -> dict[str, Any]:
        if len(texts) > 1 or not self._framer.is_empty:
            raise ValueError("more than one answer to one request")
        answer = json.loads(texts[0].decode("utf-8"))
        if not isinstance(answer, dict) or ("result" in answer) == ("error" in answer):
            raise ValueError("neither a result nor an error")
        # A request that cannot be read is refused with a null id; one call is outstanding, so it is this one.
        if answer.get("id") != request_id and not (answer.get("id") is None and "error" in answer):
            raise ValueError(f"answers request {answer.get('id')!r}, not {request_id}")
        return answer


def explain_connect_error(path: str, error: OSError) -> str:
    """What is wrong, and what to do about it."""
    if isinstance(error, FileNotFoundError):
        hint = "no such socket: is the target running, and with this RPC socket?"
    elif isinstance(error, ConnectionRefusedError):
        hint = "nobody listens there any more: the target has ended; start it again"
    elif isinstance(error, PermissionError):
        hint = "no permission: run as the user who started the target"
    elif isinstance(error, TimeoutError | BlockingIOError):
        hint = "the target accepts no connections at the moment"
    else:
        hint = str(error)
    return f"cannot reach the target at {path}: {hint}"


class RpcClient:
    """Synchronous calls to one target; connects when needed. Calls from several threads are made one by one."""

    def __init__(
        self,
        socket_path: str | os.PathLike[str],
        timeout_s: float = TIMEOUT_S,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if timeout_s <= 0:
            raise ValueError(f"timeout_s is {timeout_s}: must be positive")
        self.socket_path = os.fspath(socket_path)
        self.timeout_s = timeout_s
        self._clock = clock
        self._connection: _Connection | None = None
        self._closed = False
        self._request_id = 0
        self._lock = threading.Lock()

    def call(self, method: str, params: Mapping[str, Any] | None = None, timeout_s: float | None = None) -> Any:
        """The method's result, as JSON. Raises a :class:`spdk_rpc.errors.RpcFailure`."""
        deadline = self._clock() + (self.timeout_s if timeout_s is None else timeout_s)
        with self._lock:
            return self._call(method, params, deadline)

    def run(self, call: Call[T], timeout_s: float | None = None) -> T:
        """A typed call of :mod:`spdk_rpc.methods`."""
        return call.parse(self.call(call.method, call.params, timeout_s))

    def close(self) -> None:
        """Ends the connection; a call under way in another thread ends with its outcome unknown. Final."""
        self._closed = True
        connection = self._connection
        if connection is not None:
            connection.interrupt()
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, params: Mapping[str, Any] | None, deadline: float) -> Any:
        self._request_id += 1
        request = encode_request(self._request_id, method, params)
        reused = self._connection is not None
        try:
            answer = self._exchange(method, request, deadline)
        except RpcConnectError:
            if not reused:
                raise
            _log.debug("%s: the target had closed the idle connection; once more on a new one", method)
            answer = self._exchange(method, request, deadline)
        if "error" in answer:
            raise read_error(method, answer["error"])
        return answer["result"]

    def _exchange(self, method: str, request: bytes, deadline: float) -> dict[str, Any]:
        if self._closed:
            raise RpcClosed(f"{method}: this client has been closed")
        if self._clock() >= deadline:
            raise RpcExpired(f"{method}: its time ran out before it was sent; nothing was executed")
        if self._connection is None:
            self._connection = _Connection(self.socket_path, self._clock, deadline)
        try:
            return self._connection.exchange(self._request_id, method, request, deadline)
        finally:
            if self._connection.sock is None:
                self._connection = None

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def encode_request(request_id: int, method: str, params: Mapping[str, Any] | None) -> bytes:
    """One JSON-RPC 2.0 request. Without parameters it has no ``params`` member: some methods refuse an empty one."""
    request: dict[str, Any] = {"jsonrpc": "2.0", "id": request_id, "method": method}
    if params:
        request["params"] = dict(params)
    data = json.dumps(request, separators=(",", ":")).encode()
    values = count_values(request)
    if len(data) > REQUEST_BYTES_MAX or values > REQUEST_VALUES_MAX:
        raise RpcRequestTooLarge(
            f"{method}: {len(data)} bytes with {values} values; a target reads at most {REQUEST_BYTES_MAX} bytes"
            f" with {REQUEST_VALUES_MAX} values"
        )
    return data


def read_error(method: str, error: Any) -> RpcError | RpcProtocolError:
    """The exception for an answer's ``error`` member."""
    if isinstance(error, dict) and isinstance(error.get("code"), int):
        return RpcError(method, error["code"], str(error.get("message", "")))
    return RpcProtocolError(method, f"an error without a code: {error!r}")


class AsyncRpcClient:
    """The same calls off the event loop: one worker thread, one connection, one call at a time, a bounded queue.

    A call's time includes its wait in the queue. A cancelled call that had not begun is never made; one that had is
    carried through in the thread, so the connection stays usable, and its answer is dropped.
    """

    def __init__(
        self, socket_path: str | os.PathLike[str], timeout_s: float = TIMEOUT_S, queue_max: int = QUEUE_MAX
    ) -> None:
        self._client = RpcClient(socket_path, timeout_s)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spdk-rpc")
        self._queue_max = queue_max
        self._queued = 0
        self._lock = threading.Lock()

    @property
    def socket_path(self) -> str:
        return self._client.socket_path

    async def call(self, method: str, params: Mapping[str, Any] | None = None, timeout_s: float | None = None) -> Any:
        """As :meth:`RpcClient.call`; also raises RpcQueueFull."""
        deadline = time.monotonic() + (self._client.timeout_s if timeout_s is None else timeout_s)
        return await asyncio.wrap_future(self._submit(method, params, deadline))

    async def run(self, call: Call[T], timeout_s: float | None = None) -> T:
        """A typed call of :mod:`spdk_rpc.methods`."""
        return call.parse(await self.call(call.method, call.params, timeout_s))

    async def close(self) -> None:
        """Ends the connection and the thread; calls that had not begun are cancelled."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._client.close)
        await asyncio.to_thread(self._worker.shutdown)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _submit(self, method: str, params: Mapping[str, Any] | None, deadline: float) -> Future[Any]:
        with self._lock:
            if self._queued >= self._queue_max:
                raise RpcQueueFull(f"{method}: {self._queued} calls wait already; nothing was executed")
            self._queued += 1
        try:
            future = self._worker.submit(self._work, method, params, deadline)
        except RuntimeError as error:
            self._done(None)
            raise RpcClosed(f"{method}: this client has been closed") from error
        future.add_done_callback(self._done)
        return future

    def _work(self, method: str, params: Mapping[str, Any] | None, deadline: float) -> Any:
        return self._client.call(method, params, deadline - time.monotonic())

    def _done(self, future: Future[Any] | None) -> None:
        with self._lock:
            self._queued -= 1
