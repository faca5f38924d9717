"""NVMe/TCP host on asyncio: one controller with several I/O queues, reconnecting; what to do is decided in fabric.

Two ways of doing I/O: `submit` with a callback per command, for whom speed matters, and awaitable `read`, `write` and
so on, in bytes, of any length. While the controller is lost, commands end with HOST_PATH_ERROR, and whether those
that were under way have been executed is unknown; `on_lost` and `on_restored` tell.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import sys
import termios
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from fabric.nvme_tcp import host_command, spec
from fabric.nvme_tcp.capsule import Sqe, pack_ranges
from fabric.nvme_tcp.host_command import HostCommand
from fabric.nvme_tcp.host_controller import (
    HostController,
    HostNamespace,
    HostParameters,
    Lost,
    NamespacesChanged,
    OpenConnection,
    Ready,
)
from fabric.nvme_tcp.identify import DiscoveryEntry
from fabric.nvme_tcp.initiator import InitiatorQueue, QueueFullError
from fabric.nvme_tcp.spec import DSM_DEALLOCATE, Opcode, Status
from transport import tcp

if TYPE_CHECKING:
    from typing_extensions import Buffer

BACKLOG_MAX: Final = 65536
TICK_S: Final = 0.05
JOIN_BYTES_MAX: Final = 64 * 1024
IOV_MAX: Final = 1024
WRITE_ZEROES_BLOCKS_MAX: Final = 65536
_SECOND_NS: Final = 1_000_000_000
_DISCARD: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: a close resets the connection, and drops what is queued."""


class NvmeHostError(Exception):
    """The controller cannot be reached or used; `status`: of its refusal, or 0."""

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class NvmeStatusError(Exception):
    """A command ended with this status."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(f"{what}: {spec.status_text(status)}")
        self.status = status


@dataclass(frozen=True, slots=True)
class ReconnectPolicy:
    """Seconds: the first delay, doubled each time up to the longest; after how many in all to give up (None: never)."""

    delay: float = 0.1
    delay_max: float = 5.0
    give_up_after: float | None = None


class QueueProtocol(asyncio.BufferedProtocol):
    """The TCP connection of one queue."""

    def __init__(self, session: _Session, queue: InitiatorQueue) -> None:
        self._session = session
        self._queue = queue
        self._transport: asyncio.Transport | None = None
        self._fd = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only
        sock = transport.get_extra_info("socket")
        tcp.configure(sock)
        self._fd = sock.fileno()
        self._session.opened(self._queue.qid, self)
        self._queue.start()
        self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._queue.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        queue = self._queue
        queue.buffer_updated(nbytes, time.monotonic_ns())
        self._session.after(queue)

    def flush(self) -> None:
        """Send what the queue has to send."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        buffers = self._queue.data_to_send()
        if not buffers:
            return
        if transport.get_write_buffer_size():
            transport.writelines(cast("list[bytes]", buffers))
            return
        total = sum(map(len, cast("list[bytes]", buffers)))
        if total <= JOIN_BYTES_MAX:
            buffers = [b"".join(buffers)]
        try:
            sent = os.writev(self._fd, buffers[:IOV_MAX])
        except BlockingIOError:
            sent = 0
        except OSError:
            transport.abort()
            return
        if sent < total:
            transport.writelines(cast("list[bytes]", _rest(buffers, sent)))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._session.lost(f"connection of queue {self._queue.qid} lost" + (f": {exc}" if exc else ""))

    def end(self) -> None:
        """The controller is lost, and with it every command. What the target's side has not acknowledged must not get
        there any more: its commands have ended here, and may be done again elsewhere before it would arrive."""
        transport = self._transport
        if transport is None:
            return
        if transport.get_write_buffer_size() or _unacknowledged(self._fd):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)
            transport.abort()
        else:
            self.flush()
            self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _unacknowledged(descriptor: int) -> int:
    """Bytes that the kernel has not sent, or of which it does not know that they arrived (tcp(7), SIOCOUTQ)."""
    answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def _rest(buffers: list[Buffer], sent: int) -> list[Buffer]:
    """Everything after the first `sent` bytes; commands' data stays as it is until they are done."""
    rest: list[Buffer] = []
    for buffer in buffers:
        size = memoryview(buffer).nbytes
        if sent >= size:
            sent -= size
        else:
            rest.append(memoryview(buffer)[sent:] if sent else buffer)
            sent = 0
    return rest


class _Session:
    """One life of the controller, from connecting to its loss."""

    def __init__(self, host: NvmeTcpHost) -> None:
        self.host = host
        self.loop = asyncio.get_running_loop()
        self.controller = HostController(host.parameters)
        self.ready: asyncio.Future[None] = self.loop.create_future()
        self.queues: list[InitiatorQueue] = []
        self._protocols: dict[int, QueueProtocol] = {}
        self._dials: set[asyncio.Task[None]] = set()
        self._dirty: set[InitiatorQueue] = set()
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self.over = False

    def start(self) -> None:
        self.controller.start(time.monotonic_ns())
        self._effects()
        self._timer = self.loop.call_later(TICK_S, self._tick)

    async def _dial(self, qid: int) -> None:
        queue = self.controller.queue(qid)
        try:
            async with asyncio.timeout(self.host.connect_timeout):
                await self.loop.create_connection(
                    lambda: QueueProtocol(self, queue), self.host.traddr, int(self.host.trsvcid)
                )
        except (OSError, TimeoutError) as error:
            self.lost(f"{self.host.traddr}:{self.host.trsvcid}: {error or 'no answer in time'}")

    def opened(self, qid: int, protocol: QueueProtocol) -> None:
        """A queue's TCP connection is there."""
        if self.over:
            protocol.close()
        else:
            self._protocols[qid] = protocol

    def _tick(self) -> None:
        now_ns = time.monotonic_ns()
        deadline_ns = self.controller.next_deadline()
        if deadline_ns is not None and deadline_ns <= now_ns:
            self.controller.tick(now_ns)
            self._effects()
            self._flush()
        if not self.over:
            self._timer = self.loop.call_later(TICK_S, self._tick)

    def after(self, queue: InitiatorQueue) -> None:
        """A queue has received something."""
        controller = self.controller
        if queue.failed is not None or queue.qid == 0 or not controller.ready:
            controller.received(time.monotonic_ns())
            self._effects()
        self.host.drain_backlog()
        if queue.has_output:
            self._flush_queue(queue)
        if not controller.ready or controller.admin.has_output:
            self._flush()

    def dirty(self, queue: InitiatorQueue) -> None:
        """Commands have been submitted: send them soon, together."""
        self._dirty.add(queue)
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush_dirty)

    def _flush_dirty(self) -> None:
        self._flushing = False
        queues, self._dirty = self._dirty, set()
        for queue in queues:
            self._flush_queue(queue)

    def _flush_queue(self, queue: InitiatorQueue) -> None:
        protocol = self._protocols.get(queue.qid)
        if protocol is not None:
            protocol.flush()

    def _flush(self) -> None:
        for protocol in list(self._protocols.values()):
            protocol.flush()

    def lost(self, reason: str) -> None:
        """A connection has ended."""
        if not self.over:
            self.controller.lost(reason)
            self._effects()

    def _effects(self) -> None:
        for effect in self.controller.take_effects():
            if isinstance(effect, OpenConnection):
                task = self.loop.create_task(self._dial(effect.qid))
                self._dials.add(task)
                task.add_done_callback(self._dials.discard)
            elif isinstance(effect, Ready):
                self.queues = list(self.controller.queues)
                if not self.ready.done():
                    self.ready.set_result(None)
            elif isinstance(effect, NamespacesChanged):
                self.host.namespaces_changed(self)
            else:
                self._over(effect)

    def _over(self, effect: Lost) -> None:
        self.over = True
        self.queues = []
        if self._timer is not None:
            self._timer.cancel()
        for task in self._dials:
            if task is not asyncio.current_task():
                task.cancel()
        for protocol in self._protocols.values():
            protocol.end()
        if not self.ready.done():
            self.ready.set_exception(NvmeHostError(effect.reason, effect.status))
            self.ready.exception()  # whoever waits gets it; nobody has to
        else:
            self.host.session_lost(self, effect.reason)


class NvmeTcpHost:
    """A controller of a remote subsystem. Make it with `connect`, end it with `close`."""

    def __init__(
        self,
        traddr: str,
        trsvcid: str | int,
        parameters: HostParameters,
        *,
        connect_timeout: float = 10.0,
        reconnect: ReconnectPolicy | None = None,
        on_lost: Callable[[str], None] | None = None,
        on_restored: Callable[[], None] | None = None,
        on_namespaces: Callable[[], None] | None = None,
    ) -> None:
        self.traddr = traddr
        self.trsvcid = str(trsvcid)
        self.parameters = parameters
        self.connect_timeout = connect_timeout
        self.namespaces: dict[int, HostNamespace] = {}
        self.lost_reason: str | None = None
        self._reconnect = reconnect
        self._on_lost = on_lost
        self._on_restored = on_restored
        self._on_namespaces = on_namespaces
        self._session: _Session | None = None
        self._backlog: deque[HostCommand] = deque()
        self._restoring: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def connect(
        cls,
        traddr: str,
        trsvcid: str | int,
        subnqn: str,
        hostnqn: str | None = None,
        *,
        hostid: bytes | None = None,
        io_queues: int = 2,
        queue_depth: int = 128,
        header_digest: bool = False,
        data_digest: bool = False,
        keep_alive_ms: int = 10_000,
        connect_timeout: float = 10.0,
        io_timeout: float = 30.0,
        reconnect: ReconnectPolicy | None = ReconnectPolicy(),  # frozen
        on_lost: Callable[[str], None] | None = None,
        on_restored: Callable[[], None] | None = None,
        on_namespaces: Callable[[], None] | None = None,
    ) -> NvmeTcpHost:
        """Connect, or raise NvmeHostError. Times in seconds, except `keep_alive_ms`. The first try is not repeated."""
        hostnqn = hostnqn or f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid4()}"
        parameters = HostParameters(
            subnqn,
            hostnqn,
            hostid or uuid.uuid5(uuid.NAMESPACE_URL, hostnqn).bytes,
            io_queues,
            queue_depth,
            header_digest,
            data_digest,
            keep_alive_ms,
            int(connect_timeout * _SECOND_NS),
            int(io_timeout * _SECOND_NS),
        )
        host = cls(
            traddr,
            trsvcid,
            parameters,
            connect_timeout=connect_timeout,
            reconnect=reconnect,
            on_lost=on_lost,
            on_restored=on_restored,
            on_namespaces=on_namespaces,
        )
        await host._open()
        return host

    async def _open(self) -> None:
        session = _Session(self)
        session.start()
        try:
            async with asyncio.timeout(3 * self.connect_timeout):
                await session.ready
        except BaseException as error:
            session.lost("given up")
            if isinstance(error, TimeoutError):
                raise NvmeHostError(f"{self.traddr}:{self.trsvcid}: no controller in time") from None
            raise
        if session.over:
            raise NvmeHostError(f"{self.traddr}:{self.trsvcid}: the controller was lost as soon as it was ready")
        self._session = session
        self.namespaces = dict(session.controller.namespaces)

    @property
    def connected(self) -> bool:
        return self._session is not None and not self._session.over

    @property
    def controller(self) -> HostController:
        """The present (or last) controller: identity, id, discovery log."""
        assert self._session is not None
        return self._session.controller

    @property
    def max_transfer_bytes(self) -> int:
        """Of one command."""
        return self.controller.identity.transfer_bytes

    @property
    def volatile_cache(self) -> bool:
        return self.controller.identity.volatile_cache

    @property
    def serial(self) -> str:
        return self.controller.identity.serial

    @property
    def model(self) -> str:
        return self.controller.identity.model

    # Loss and return

    def session_lost(self, session: _Session, reason: str) -> None:
        """For the session: it is over."""
        if session is not self._session or self._closed:
            return
        self.lost_reason = reason
        self._fail_backlog()
        if self._on_lost is not None:
            self._on_lost(reason)
        if self._reconnect is not None:
            self._restoring = asyncio.get_running_loop().create_task(self._restore(self._reconnect))

    async def _restore(self, policy: ReconnectPolicy) -> None:
        loop = asyncio.get_running_loop()
        began, delay = loop.time(), policy.delay
        while not self._closed:
            await asyncio.sleep(delay)
            try:
                await self._open()
            except (NvmeHostError, OSError) as error:
                self.lost_reason = str(error)
            else:
                self.lost_reason = None
                if self._on_restored is not None:
                    self._on_restored()
                return
            if policy.give_up_after is not None and loop.time() - began >= policy.give_up_after:
                return
            delay = min(delay * 2, policy.delay_max)

    def namespaces_changed(self, session: _Session) -> None:
        """For the session: the host's view is renewed."""
        if session is self._session:
            self.namespaces = dict(session.controller.namespaces)
            if self._on_namespaces is not None:
                self._on_namespaces()

    async def close(self) -> None:
        """End the connections; commands under way end with HOST_PATH_ERROR."""
        self._closed = True
        if self._restoring is not None:
            self._restoring.cancel()
            await asyncio.gather(self._restoring, return_exceptions=True)
        if self._session is not None:
            self._session.lost("closed")
        self._fail_backlog()
        await asyncio.sleep(0)

    # Commands

    def submit(self, command: HostCommand) -> None:
        """Begin a command; its `done` is called once, maybe before this returns (when there is no connection).

        Raises QueueFullError if BACKLOG_MAX commands wait already, ValueError if its data is longer than MDTS allows.
        """
        session = self._session
        if session is None or not session.queues:
            _path_error(command)
            return
        if command.data is not None and command.data.nbytes > self.max_transfer_bytes:
            raise ValueError(f"{command.data.nbytes} bytes in one command, at most {self.max_transfer_bytes}")
        queue = max(session.queues, key=_room)
        if not queue.room or self._backlog:
            if len(self._backlog) >= BACKLOG_MAX:
                raise QueueFullError(f"{BACKLOG_MAX} commands wait")
            self._backlog.append(command)
            return
        queue.submit(command, time.monotonic_ns())
        session.dirty(queue)

    def drain_backlog(self) -> None:
        """For the session: commands have been completed."""
        session = self._session
        while self._backlog and session is not None and session.queues:
            queue = max(session.queues, key=_room)
            if not queue.room:
                return
            queue.submit(self._backlog.popleft(), time.monotonic_ns())
            session.dirty(queue)

    def _fail_backlog(self) -> None:
        waiting, self._backlog = self._backlog, deque()
        for command in waiting:
            _path_error(command)

    async def read(self, nsid: int, offset: int, length: int, into: Buffer | None = None) -> memoryview:
        """`length` bytes at `offset`, both whole blocks, in `into` if it is given. Raises NvmeStatusError."""
        data = memoryview(bytearray(length) if into is None else into).cast("B")
        if data.nbytes != length:
            raise ValueError(f"a buffer of {data.nbytes} bytes for {length}")
        await self._transfer(Opcode.READ, nsid, offset, data, False)
        return data

    async def write(self, nsid: int, offset: int, data: Buffer, fua: bool = False) -> None:
        """Write whole blocks. Raises NvmeStatusError."""
        await self._transfer(Opcode.WRITE, nsid, offset, memoryview(data).cast("B"), fua)

    async def _transfer(self, opcode: Opcode, nsid: int, offset: int, data: memoryview, fua: bool) -> None:
        shift = self._shift(nsid, offset, data.nbytes)
        step = self.max_transfer_bytes
        commands = []
        for at in range(0, data.nbytes, step):
            part = data[at : at + step]
            commands.append(HostCommand(opcode, nsid, (offset + at) >> shift, part.nbytes >> shift, part, fua=fua))
        await self._all(opcode.name.lower(), commands)

    async def flush(self, nsid: int) -> None:
        """What was written before is durable afterwards. Raises NvmeStatusError."""
        await self._all("flush", [host_command.flush(nsid, _nothing)])

    async def write_zeroes(self, nsid: int, offset: int, length: int, deallocate: bool = False) -> None:
        """Zeroes in whole blocks. Raises NvmeStatusError."""
        shift = self._shift(nsid, offset, length)
        start, end = offset >> shift, (offset + length) >> shift
        step = WRITE_ZEROES_BLOCKS_MAX
        commands = [
            host_command.write_zeroes(nsid, at, min(step, end - at), _nothing, deallocate=deallocate)
            for at in range(start, end, step)
        ]
        await self._all("write zeroes", commands)

    async def deallocate(self, nsid: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Unmap ranges of (offset, length) in bytes, whole blocks. Raises NvmeStatusError."""
        blocks = []
        for offset, length in ranges:
            shift = self._shift(nsid, offset, length)
            blocks.append((offset >> shift, length >> shift))
        commands = []
        for at in range(0, len(blocks), spec.DATASET_RANGES_MAX):
            some = blocks[at : at + spec.DATASET_RANGES_MAX]
            sqe = Sqe(Opcode.DATASET_MANAGEMENT, nsid, len(some) - 1, DSM_DEALLOCATE)
            commands.append(HostCommand(sqe.opcode, nsid, data=pack_ranges(some), sqe=sqe))
        await self._all("deallocate", commands)

    def _shift(self, nsid: int, offset: int, length: int) -> int:
        namespace = self.namespaces.get(nsid)
        if namespace is None:
            raise NvmeStatusError(f"namespace {nsid}", Status.INVALID_NAMESPACE | spec.DNR)
        if (offset | length) % namespace.block_size or offset < 0 or length < 0:
            raise ValueError(f"{length} bytes at {offset}: not whole blocks of {namespace.block_size}")
        return namespace.block_size.bit_length() - 1

    async def _all(self, what: str, commands: list[HostCommand]) -> None:
        """Run commands at the same time; when all have ended, raise for the first that failed."""
        if not commands:
            return
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        left = len(commands)

        def done(_command: HostCommand) -> None:
            nonlocal left
            left -= 1
            if not left and not ended.done():
                ended.set_result(None)

        for command in commands:
            command.done = done
            self.submit(command)
        await asyncio.shield(ended)
        for command in commands:
            if command.status:
                raise NvmeStatusError(what, command.status)


def _room(queue: InitiatorQueue) -> int:
    return queue.room


def _nothing(_command: HostCommand) -> None:
    """Replaced before submission."""


def _path_error(command: HostCommand) -> None:
    command.status = Status.HOST_PATH_ERROR
    if command.done is not None:
        command.done(command)


async def discover(traddr: str, trsvcid: str | int, hostnqn: str | None = None, **options: Any) -> list[DiscoveryEntry]:
    """What the discovery service there offers this host. Raises NvmeHostError."""
    host = await NvmeTcpHost.connect(
        traddr, trsvcid, spec.DISCOVERY_NQN, hostnqn, reconnect=None, keep_alive_ms=0, **options
    )
    try:
        return list(host.controller.discovery)
    finally:
        await host.close()
