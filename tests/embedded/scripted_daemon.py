"""A daemon for one plane, in one process: a scripted peer of the data plane's socket, and a small plane to talk to.

`Rig` has a malloc and a null bdev, a plane on a clock of the test's own, and a connected, admitted daemon.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from channel.events import NoticeReceived, ResponseReceived, SessionEnded, SessionOpened
from channel.handshake import Role
from channel.messages import (
    Admit,
    BindSlot,
    FaultAnswer,
    LeaseGrant,
    MapFault,
    Message,
    Response,
    SetEntries,
    TableSlots,
)
from channel.session import Session
from channel.values import AnswerRecord, AttachFlags, FaultRecord, Header
from dataplane.embedded.bdev import Bdev, BdevIo, BdevLayer, Buffer
from dataplane.embedded.bdev_malloc import MallocBdev
from dataplane.embedded.bdev_segmap import SegmapBdev
from dataplane.embedded.container_binding import ContainerBinder
from dataplane.embedded.plane_host import PlaneHost
from dataplane.embedded.plane_server import PlaneServer
from dataplane.embedded.segment_jobs import SegmentJobs
from mapping.engine import Geometry
from mapping.entry import pack
from mapping.rules import Operation
from mapping.status import Status
from transport.connection import Connection, OnClosed, OnData, OnWritable
from transport.connection import Peer as PeerName

SECOND = 1_000_000_000
SEGMENT = 64 << 10
CLUSTER = b"C" * 16
TERM, INCARNATION = 3, 7
TABLE = (5 << 32) | 2


def on_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on a loop of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        async def limited() -> None:
            await asyncio.wait_for(test(*arguments, **named), 20)

        asyncio.run(limited())

    return run


class LoopEnd(Connection):
    """One end of a connection inside a loop; `held` keeps what is written from the other end."""

    def __init__(self) -> None:
        self.peer = PeerName("loop")
        self.other: LoopEnd = self
        self.held = False
        self._queue: list[bytes] = []
        self._on_data: OnData | None = None
        self._on_closed: OnClosed | None = None
        self._on_writable: OnWritable | None = None
        self._closed = False
        self._paused = False

    def start(self, on_data: OnData, on_closed: OnClosed, on_writable: OnWritable | None = None) -> None:
        self._on_data, self._on_closed, self._on_writable = on_data, on_closed, on_writable

    def write(self, buffers: Sequence[Buffer]) -> None:
        self._queue.append(b"".join(buffers))
        asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        if self.held or self.other._paused:
            return
        queue, self._queue = self._queue, []
        for data in queue:
            if self.other._on_data is not None and not self.other._closed:
                self.other._on_data(data)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        asyncio.get_running_loop().call_soon(self.other._deliver)

    def close(self) -> None:
        for end in (self, self.other):
            if not end._closed:
                asyncio.get_running_loop().call_soon(end._end)

    abort = close

    def _end(self) -> None:
        if not self._closed:
            self._deliver()
            self._closed = True
            if self._on_closed is not None:
                self._on_closed(None)

    def block(self, blocked: bool) -> None:
        """As if the peer did not read (True), or read again."""
        self.held = blocked
        if self._on_writable is not None:
            self._on_writable(not blocked)
        if not blocked:
            self._deliver()

    @property
    def write_bytes(self) -> int:
        return sum(map(len, self._queue))

    @property
    def write_room(self) -> int:
        return 1 << 30

    @property
    def writable(self) -> bool:
        return not self._closed and not self.held


def loop_pair() -> tuple[LoopEnd, LoopEnd]:
    """Two connected ends."""
    a, b = LoopEnd(), LoopEnd()
    a.other, b.other = b, a
    return a, b


class Daemon:
    """The other end of the data plane's socket; requests are awaited, notices are collected."""

    def __init__(self, connection: Connection) -> None:
        self.session = Session(Role.DAEMON)
        self.connection = connection
        self.notices: list[Any] = []
        self.headers: list[Header] = []
        self.hello: SessionOpened | None = None
        self.ended: SessionEnded | None = None
        self.changed = asyncio.Event()
        self.sequence = 0
        self.epoch = 1
        connection.start(self._data, self._closed)

    def _data(self, data: Any) -> None:
        self.session.receive_data(data)
        self._events()

    def _closed(self, error: Exception | None) -> None:
        if not self.session.ended:
            self.session.receive_eof()
            self._events()

    def _events(self) -> None:
        for event in self.session.events():
            if isinstance(event, ResponseReceived):
                event.context.set_result((event.message, event.header))
            elif isinstance(event, NoticeReceived):
                self.notices.append(event.message)
                self.headers.append(event.header)
            elif isinstance(event, SessionOpened):
                self.hello = event
            elif isinstance(event, SessionEnded):
                self.ended = event
                for _, context in self.session.outstanding():
                    context.cancel()
        self.changed.set()
        self.flush()

    def flush(self) -> None:
        data = self.session.data_to_send()
        if data:
            self.connection.write(data)

    def header(self, sequence: int = 0, table: int = TABLE, blocking: bool = False) -> Header:
        return Header(TERM, INCARNATION, self.epoch, table, sequence, 0, blocking)

    def begin(self, message: Message, header: Header | None = None) -> asyncio.Future[tuple[Any, Header]]:
        """Send a request; its answer comes later."""
        answer: asyncio.Future[tuple[Any, Header]] = asyncio.get_running_loop().create_future()
        self.session.send(message, header or self.header(), answer)
        self.flush()
        return answer

    async def ask(self, message: Message, header: Header | None = None) -> Any:
        """A request's response."""
        return (await self.begin(message, header))[0]

    def tell(self, message: Message, header: Header | None = None) -> None:
        self.session.send(message, header or self.header())
        self.flush()

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until something that this daemon sees is so."""
        while not (found := condition()):
            self.changed.clear()
            await self.changed.wait()
        return found

    def faults(self) -> list[FaultRecord]:
        return [fault for notice in self.notices if isinstance(notice, MapFault) for fault in notice.faults]

    async def fault(self, count: int = 1) -> list[FaultRecord]:
        """Wait until `count` faults have come in all."""
        await self.until(lambda: len(self.faults()) >= count)
        return self.faults()

    def next(self, blocking: bool = False, table: int = TABLE) -> Header:
        """The stamps of the next change in the table."""
        self.sequence += 1
        return self.header(self.sequence, table, blocking)

    def answer(self, fault: FaultRecord, action: int, entries: Sequence[int] = (), status: int = 0) -> None:
        """Answer one fault; replacement entries begin at its segment."""
        record = AnswerRecord(fault.fault_id, fault.segment, len(entries), action, status)
        self.tell(FaultAnswer([record], list(entries)), self.next())

    async def set(self, start: int, entries: Sequence[int], count: int = 0, blocking: bool = False) -> Response:
        response: Response = await self.ask(
            SetEntries(start, count or len(entries), list(entries)), self.next(blocking)
        )
        return response

    async def admit(self) -> Response:
        await self.until(lambda: self.hello)
        response, header = await self.begin(
            Admit(CLUSTER, 10 * SECOND, 20 * SECOND, 5 * SECOND), Header(TERM, INCARNATION)
        )
        self.epoch = header.epoch
        assert isinstance(response, Response)
        return response

    def grant(self, sent_ns: int, duration_ns: int = 10 * SECOND) -> None:
        self.tell(LeaseGrant(sent_ns, duration_ns), self.header(table=0))


class SlowBdev(MallocBdev):
    """A malloc bdev whose I/O ends when the test says so."""

    def __init__(self, name: str, block_count: int) -> None:
        super().__init__(name, 512, block_count)
        self.waiting: list[BdevIo] = []

    def read_now(self, offset: int, length: int) -> Buffer | None:
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        return False

    def _start(self, io: BdevIo) -> None:
        self.waiting.append(io)

    async def close(self) -> None:
        while self.waiting:
            await asyncio.sleep(0)
        await super().close()

    def finish(self, count: int = 1, status: Status = Status.OK) -> None:
        """End the oldest I/Os."""
        for io in self.waiting[:count]:
            self.waiting.remove(io)
            if status is Status.OK:
                super()._start(io)
            else:
                io.end(status)


class Rig:
    """Use `async with Rig() as rig`. Slot 0 is the malloc container `c0`, slot 1 the slow one `c1`."""

    def __init__(self) -> None:
        self.now = 1000 * SECOND
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Rig:
        loop = asyncio.get_running_loop()
        self.layer = BdevLayer()
        self.host = PlaneHost(loop, lambda: self.now, b"I" * 16)
        self.binder = ContainerBinder(self.layer, self.host)
        self.server = PlaneServer(loop, self.host, self.binder, SegmentJobs(self.host))
        self.fast = MallocBdev("c0", 512, 64 * SEGMENT // 512)
        self.slow = SlowBdev("c1", 16 * SEGMENT // 512)
        self.layer.register(self.fast)
        self.layer.register(self.slow)
        self.daemon = self.connect()
        await self.daemon.admit()
        return self

    def connect(self) -> Daemon:
        mine, theirs = loop_pair()
        daemon = Daemon(mine)
        self.server.accept(theirs)
        self.ends = (mine, theirs)
        return daemon

    async def __aexit__(self, *failure: object) -> None:
        self.slow.finish(len(self.slow.waiting))
        for bdev in list(self.layer.bdevs.values()):
            if isinstance(bdev, SegmapBdev):
                await self.layer.unregister(bdev)
        self.server.close()
        self.host.close()
        for bdev in list(self.layer.bdevs.values()):
            await self.layer.unregister(bdev)

    def bind_request(self, slot: int, bdev: str, flags: int = AttachFlags.INITIALIZE, **changes: Any) -> BindSlot:
        values = {
            "slot": slot,
            "flags": flags,
            "container": bytes([slot + 1]) * 16,
            "cluster": CLUSTER,
            "generation": 1,
            "segment_size": SEGMENT,
            "segment_count": 0,
            "bdev_name": bdev,
        }
        return BindSlot(**(values | changes))

    async def bind(self, slot: int = 0, bdev: str = "c0", **changes: Any) -> Any:
        task = asyncio.ensure_future(self.daemon.ask(self.bind_request(slot, bdev, **changes)))
        while not task.done():
            await asyncio.sleep(0)
            self.slow.finish(len(self.slow.waiting))
        return task.result()

    def disk(self, segments: int = 16, table: int = TABLE, slots: Sequence[int] = (0,), **changes: Any) -> SegmapBdev:
        geometry = Geometry(segments, SEGMENT, 512, **changes)
        disk = SegmapBdev(self.host, f"disk{next(self._numbers)}", table, geometry, list(slots))
        self.layer.register(disk)
        return disk

    async def ready(self, slots: Sequence[int] = (0,), **changes: Any) -> SegmapBdev:
        """A disk on bound containers, under a lease."""
        for slot in slots:
            response = await self.bind(slot, f"c{slot}")
            assert response.status is Status.OK, response
        disk = self.disk(slots=slots, **changes)
        self.grant()
        await settle()
        return disk

    def grant(self) -> None:
        self.daemon.grant(self.now)

    def pass_time(self, seconds: float) -> None:
        """Turn the clock, and let the plane see it."""
        self.now += int(seconds * SECOND)
        self.host.tick()

    async def replace_slots(self, slots: Sequence[int], absent: Sequence[int] = ()) -> Any:
        return await self.daemon.ask(TableSlots(list(slots), list(absent)))


class Io:
    """A host I/O begun on a bdev, and how it ended."""

    def __init__(self, bdev: Bdev, operation: Operation, offset: int, length: int, **named: Any) -> None:
        self.bdev = bdev
        self.ended = False
        self.io = BdevIo(operation, offset, length, self._done, **named)
        bdev.submit(self.io)

    def _done(self, io: BdevIo) -> None:
        self.ended = True

    @property
    def status(self) -> Status | None:
        return self.io.status if self.ended else None

    @property
    def data(self) -> bytes:
        assert self.ended
        assert self.io.data is not None
        return bytes(self.io.data)


def read(bdev: Bdev, offset: int, length: int = 4096, **named: Any) -> Io:
    return Io(bdev, Operation.READ, offset, length, **named)


def write(bdev: Bdev, offset: int, data: bytes, **named: Any) -> Io:
    return Io(bdev, Operation.WRITE, offset, len(data), data=data, **named)


def flush(bdev: Bdev, **named: Any) -> Io:
    return Io(bdev, Operation.FLUSH, 0, 0, **named)


def at(segment: int, slot: int = 0, flags: int = 0) -> int:
    """The entry of a container segment."""
    return pack(slot, segment, flags)


async def settle() -> None:
    """Let everything that can happen now happen."""
    for _ in range(12):
        await asyncio.sleep(0)
