"""JSON-RPC over a Unix socket: one RpcPeer per connection, calls run as tasks, responses go out as they end.

As SPDK: CONNECTIONS_MAX peers, a parse error or an overlong request closes without a word, a batch answers as one.
Ours: a peer with CALLS_MAX unanswered calls, or that does not read its responses, is not read from; a response larger
than RESPONSE_BYTES_MAX is refused.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from pathlib import Path
from typing import Any, Final

from dataplane.embedded.json_rpc import (
    INTERNAL_ERROR,
    Batch,
    Call,
    RpcError,
    batch_bytes,
    error_bytes,
    read_document,
    result_bytes,
)
from dataplane.embedded.json_stream import JsonInvalid, JsonStream
from dataplane.embedded.rpc_table import MethodTable
from dataplane.embedded.target import Target, closed
from transport import unix
from transport.connection import Connection, ConnectionLost, Limits, Listener, WriteQueueFull

CONNECTIONS_MAX: Final = 64
CALLS_MAX: Final = 1024
RESPONSE_BYTES_MAX: Final = 32 << 20
LIMITS: Final = Limits(
    write_high_bytes=1 << 20,
    write_low_bytes=256 << 10,
    write_max_bytes=4 * RESPONSE_BYTES_MAX,
    connections_max=CONNECTIONS_MAX,
)
_log = logging.getLogger(__name__)


class RpcSocketBusy(OSError):
    """Another target serves this path."""


class RpcServer:
    """Serves a method table on a path; `PATH.lock` is locked while it does, as SPDK does."""

    def __init__(self, target: Target, table: MethodTable) -> None:
        self._target = target
        self._table = table
        self._peers: set[RpcPeer] = set()
        self._listener: Listener | None = None
        self._lock = -1
        self._path = Path()

    async def listen(self, path: Path) -> None:
        """Raises RpcSocketBusy, or OSError."""
        self._path = path
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = -1
            raise RpcSocketBusy(f"another target serves {path}") from None
        self._listener = await unix.listen(path, self._accept, limits=LIMITS)

    def _accept(self, connection: Connection) -> None:
        peer = RpcPeer(self._target, self._table, connection, self._peers.discard)
        self._peers.add(peer)
        peer.start()

    async def close(self) -> None:
        """End every connection, once what it waits to read is written."""
        if self._listener is not None:
            self._listener.close()
            for peer in list(self._peers):
                peer.end()
            await closed(self._listener)
            self._listener = None
        if self._lock >= 0:
            for leftover in (self._path, Path(f"{self._path}.lock")):
                leftover.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1


class RpcPeer:
    """One connection."""

    def __init__(self, target: Target, table: MethodTable, connection: Connection, gone: Any) -> None:
        self._target = target
        self._table = table
        self._connection = connection
        self._gone = gone
        self._stream = JsonStream()
        self._calls = 0
        self._held = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True

    def start(self) -> None:
        """Read."""
        self._connection.start(self._data, self._closed, self._writable)

    def _data(self, data: Any) -> None:
        self._stream.receive_data(bytes(data))
        self._read_on()

    def _read_on(self) -> None:
        """Take documents until there is none, or too much is unanswered."""
        try:
            while self._open and not self._full() and self._stream.next_document():
                self._document(self._stream.document)
        except JsonInvalid as error:
            _log.debug("json-rpc: %s", error)
            self.close()
        held = self._open and self._full()
        if held != self._held:
            self._held = held
            (self._connection.pause if held else self._connection.resume)()

    def _full(self) -> bool:
        return self._calls >= CALLS_MAX or not self._connection.writable

    def _document(self, document: Any) -> None:
        request = read_document(document)
        if isinstance(request, Batch):
            self._calls += len(request.calls)
            for call in request.calls:
                self._begin(call, request)
        else:
            self._calls += 1
            self._begin(request, None)

    def _begin(self, call: Call, batch: Batch | None) -> None:
        task = asyncio.get_running_loop().create_task(self._run(call, batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, call: Call, batch: Batch | None) -> None:
        response = await self._response(call)
        self._calls -= 1
        if batch is None:
            self._write(response + b"\n" if response else b"")
        else:
            batch.left -= 1
            if response:
                batch.responses.append(response)
            if not batch.left:
                for data in batch_bytes(batch):
                    self._write(data)
        if self._held:
            self._read_on()

    async def _response(self, call: Call) -> bytes:
        try:
            result = await self._table.call(self._target, call)
        except RpcError as error:
            return error_bytes(call, error.code, error.message)
        except Exception:
            _log.exception("json-rpc: %s failed", call.method)
            return error_bytes(call, INTERNAL_ERROR, "Internal error")
        response = result_bytes(call, result)
        if len(response) > RESPONSE_BYTES_MAX:
            return error_bytes(call, INTERNAL_ERROR, "the response is too large")
        return response

    def _write(self, data: bytes) -> None:
        if not data or not self._open:
            return
        try:
            self._connection.write([data])
        except (ConnectionLost, WriteQueueFull):
            self._connection.abort()

    def _writable(self, writable: bool) -> None:
        self._read_on()

    def _closed(self, error: Exception | None) -> None:
        self._open = False
        self._gone(self)

    def end(self) -> None:
        """The target ends: do not wait for a peer that has all its responses to close, too."""
        if self._connection.write_bytes:
            self.close()
        else:
            self._open = False
            self._connection.abort()

    def close(self) -> None:
        """Take nothing more; what has been written still goes out."""
        if self._open:
            self._open = False
            self._connection.close()
