"""The data plane's socket: channel messages in, the plane's decisions out [0031]-[0036].

One peer, the daemon; the newest connection wins. What a message does is decided by mapping.plane; this module decodes,
executes the effects, and answers, at once or when a barrier or a container I/O has ended. An answer whose session has
ended goes nowhere. Faults go up in batches, to an admitted session only; while the peer does not read they wait, and
they all go up again when a new session is admitted.
"""

from __future__ import annotations

import asyncio
import platform
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, cast

from channel.events import NoticeReceived, OutputPaused, OutputResumed, RequestReceived, SessionEnded
from channel.handshake import Role
from channel.messages import (
    Admit,
    BindSlot,
    CopySegments,
    DataPlaneHello,
    Done,
    EntriesRead,
    Epoch,
    FaultAnswer,
    GetEntries,
    GetState,
    LeaseGrant,
    MapFault,
    ParkedRead,
    Refused,
    Response,
    SetEntries,
    SetState,
    StateRead,
    TableSlots,
    TablesRead,
    UnbindSlot,
    ZeroSegments,
    response_to,
    short,
)
from channel.plane_records import answers_of, record_of, stamp_of
from channel.session import LimitReached, Session, SessionStateError
from channel.values import (
    FAULTS_MAX,
    PARKED_MAX,
    TABLES_MAX,
    VERSION,
    VERSION_MIN,
    Header,
    MessageType,
    ParkedRecord,
    TableSequence,
)
from dataplane.embedded.container_binding import ContainerBinder
from dataplane.embedded.plane_host import PlaneHost
from dataplane.embedded.segment_jobs import SegmentJobs
from mapping.effects import Fault, Part
from mapping.engine import Engine, Limits
from mapping.plane import Outcome, Stamp, numbered
from mapping.status import Status
from transport.connection import Connection, ConnectionLost, WriteQueueFull

SOFTWARE: Final = f"segmap embedded target, Python {platform.python_version()}"
NO_SEGMENT: Final = (1 << 64) - 1
_BEFORE_ADMIT: Final = frozenset({MessageType.ADMIT, MessageType.TABLE_STATUS, MessageType.GET_PARKED})
_DIGITS: Final = bytes(48 + (value & 1) for value in range(256))


class Peer:
    """One connection of the daemon."""

    def __init__(self, server: PlaneServer, connection: Connection) -> None:
        self.session = Session(Role.DATA_PLANE)
        self.admitted = False
        self.unsent: deque[Fault] = deque()
        self.paused = False
        self._server = server
        self._connection = connection
        self._flushing = False

    def start(self) -> None:
        """Say hello and read."""
        self._connection.start(self._data, self._closed, self._writable)
        self.notice(self._server.hello(), self._server.header())

    def _data(self, data: Any) -> None:
        self.session.receive_data(data)
        self._events()

    def _events(self) -> None:
        for event in self.session.events():
            if isinstance(event, RequestReceived):
                self._server.request(self, event)
            elif isinstance(event, NoticeReceived):
                self._server.notice(self, event)
            elif isinstance(event, OutputPaused):
                self.paused = True
                self._connection.pause()
            elif isinstance(event, OutputResumed):
                self.paused = False
                self._connection.resume()
                self.send_unsent()
            elif isinstance(event, SessionEnded):
                self._ended()
                return
        self.flush_soon()

    def _ended(self) -> None:
        self.flush()
        self._connection.close()
        self._server.peer_gone(self)

    def _closed(self, error: Exception | None) -> None:
        if not self.session.ended:
            self.session.receive_eof()
        self._server.peer_gone(self)

    def _writable(self, writable: bool) -> None:
        if writable:
            self.flush()
            self._events()

    def flush_soon(self) -> None:
        """Write what the session has at the end of this loop turn."""
        if not self._flushing:
            self._flushing = True
            self._server.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what the session has, unless the peer does not read."""
        self._flushing = False
        if not self._connection.writable and not self.session.ended:
            return
        data = self.session.data_to_send()
        if not data:
            return
        try:
            self._connection.write(data)
        except (ConnectionLost, WriteQueueFull):
            self._connection.abort()

    def notice(self, message: Any, header: Header) -> None:
        """Send something that has no answer; a peer that takes nothing is cut off."""
        try:
            self.session.send(message, header)
        except LimitReached:
            self.goodbye(Status.LIMIT, "the peer does not read")
        except SessionStateError:
            return
        self.flush_soon()

    def goodbye(self, status: Status, detail: str) -> None:
        """End the session from this side."""
        if not self.session.ended:
            self.session.goodbye(status, detail)
            self._events()

    def respond(self, event: RequestReceived, response: Response, header: Header | None = None) -> None:
        """Answer, if the session still is."""
        if self.session.ended:
            return
        try:
            self.session.respond(event, response, header)
        except LimitReached:
            self.goodbye(Status.LIMIT, "the peer does not read")
        self.flush_soon()

    def send_unsent(self) -> None:
        """Send faults, as many as the peer takes."""
        while self.unsent and self.admitted and not self.paused and not self.session.ended:
            batch = [self.unsent.popleft() for _ in range(min(FAULTS_MAX, len(self.unsent)))]
            records = [record_of(fault) for fault in batch if fault.parts]
            if records:
                self.notice(MapFault(records), self._server.header())
                self._paused_now()

    def _paused_now(self) -> None:
        if self.session.output_paused:
            self.paused = True


class PlaneServer:
    """Serves one plane to one daemon. `accept` is what a listener calls for each connection."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, host: PlaneHost, binder: ContainerBinder, jobs: SegmentJobs
    ) -> None:
        self.loop = loop
        self._host = host
        self._plane = host.plane
        self._binder = binder
        self._jobs = jobs
        self._peer: Peer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        host.link = self
        answered = self._answered
        self._requests: dict[MessageType, Callable[[RequestReceived], Response | Awaitable[Response] | None]] = {
            MessageType.ADMIT: self._admit,
            MessageType.TABLE_STATUS: self._table_status,
            MessageType.GET_ENTRIES: self._get_entries,
            MessageType.GET_STATE: self._get_state,
            MessageType.GET_PARKED: self._get_parked,
            MessageType.SET_ENTRIES: answered(self._set_entries),
            MessageType.SET_STATE: answered(self._set_state),
            MessageType.TABLE_SLOTS: answered(self._table_slots),
            MessageType.SUSPEND: answered(self._suspend),
            MessageType.RESUME: answered(self._resume),
            MessageType.BIND_SLOT: lambda event: self._binder.bind(cast(BindSlot, event.message)),
            MessageType.UNBIND_SLOT: self._unbind_slot,
            MessageType.COPY_SEGMENTS: self._copy,
            MessageType.ZERO_SEGMENTS: self._zero,
        }

    # --- the peer ----------------------------------------------------------------------------------------------------

    def accept(self, connection: Connection) -> None:
        """A new connection: it replaces the one there is."""
        previous, self._peer = self._peer, None
        if previous is not None:
            previous.goodbye(Status.CANCELLED, "a newer connection has come")
        self._peer = Peer(self, connection)
        self._peer.start()

    def peer_gone(self, peer: Peer) -> None:
        """The connection or its session has ended."""
        if self._peer is peer:
            self._peer = None

    @property
    def connected(self) -> bool:
        """True while an admitted session is there."""
        return self._peer is not None and self._peer.admitted

    def hello(self) -> DataPlaneHello:
        """The first message."""
        return DataPlaneHello(VERSION_MIN, VERSION, self._plane.instance, SOFTWARE, self._tables())

    def header(self, table: int = 0) -> Header:
        """The plane's own stamps."""
        plane = self._plane
        return Header(plane.term, plane.incarnation, plane.epoch, table)

    def _response_header(self, event: RequestReceived) -> Header | None:
        """None: the request's own. TABLE_STATUS that has begun a session: the epoch bears the session's number."""
        if event.type is MessageType.ADMIT:
            return self.header()
        if event.type is MessageType.TABLE_STATUS and event.header.sequence:
            return self.header()._replace(epoch=numbered(self._plane.epoch, self._plane.session))
        return None

    def _tables(self) -> list[TableSequence]:
        tables = self._plane.tables
        return [TableSequence(table, tables[table].sequence) for table in list(tables)[:TABLES_MAX]]

    def send_faults(self, faults: list[Fault]) -> None:
        """Faults of one loop turn."""
        peer = self._peer
        if peer is not None and peer.admitted:
            peer.unsent.extend(faults)
            peer.send_unsent()

    def send_epoch(self, epoch: int) -> None:
        """The lease has expired."""
        if self._peer is not None:
            self._peer.notice(Epoch(Status.LEASE_EXPIRED), self.header())

    def close(self) -> None:
        """End the session and what it waits for."""
        if self._peer is not None:
            self._peer.goodbye(Status.CANCELLED, "the target ends")
        for task in self._tasks:
            task.cancel()

    # --- messages ----------------------------------------------------------------------------------------------------

    def request(self, peer: Peer, event: RequestReceived) -> None:
        """One request; the answer may come later."""
        handler = self._requests.get(event.type)
        if handler is None:
            peer.respond(event, response_to(event.type, Status.UNSUPPORTED, "not for a data plane"))
            return
        if not peer.admitted and event.type not in _BEFORE_ADMIT:
            peer.respond(event, response_to(event.type, Status.NOT_ADMITTED, "ADMIT comes first"))
            return
        result = handler(event)
        if isinstance(result, Response):
            self._reply(peer, event, result)
        elif result is not None:
            task = self.loop.create_task(self._later(peer, event, result))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._host.deadlines_changed()

    def _reply(self, peer: Peer, event: RequestReceived, response: Response) -> None:
        admitted = event.type is MessageType.ADMIT and response.status is Status.OK
        peer.respond(event, response, self._response_header(event))
        if admitted and not peer.session.ended:
            peer.admitted = True
            peer.unsent = deque(self._plane.outstanding_faults())
            peer.send_unsent()

    async def _later(self, peer: Peer, event: RequestReceived, result: Awaitable[Response]) -> None:
        peer.respond(event, await result)

    def _answered(
        self, handler: Callable[[RequestReceived, Stamp, Any], Outcome]
    ) -> Callable[[RequestReceived], Response | None]:
        """A command whose answer waits for its barrier, if it asks for one."""

        def handle(event: RequestReceived) -> Response | None:
            peer = self._peer

            def reached(status: Status) -> None:
                if peer is not None:
                    peer.respond(event, Done(status))

            barrier = reached if event.header.blocking else None
            status, effects = handler(event, stamp_of(event.header), barrier)
            self._host.run(effects)
            return None if barrier is not None and status is Status.OK else Done(status)

        return handle

    def notice(self, peer: Peer, event: NoticeReceived) -> None:
        """A message without an answer; a refusal is told."""
        if event.type is MessageType.LEASE_GRANT:
            status = self._grant(event.header, cast(LeaseGrant, event.message))
        elif event.type is MessageType.FAULT_ANSWER:
            status = self._fault_answer(event.header, cast(FaultAnswer, event.message))
        else:
            status = Status.UNSUPPORTED
        if status is not Status.OK:
            peer.notice(Refused(status, int(event.type), short(status.name)), event.header)
        self._host.deadlines_changed()

    def _admit(self, event: RequestReceived) -> Response:
        message = cast(Admit, event.message)
        limits = Limits(park_ns=message.park_limit_ns, io_ns=message.io_deadline_ns)
        header = event.header
        now_ns, session = self._host.clock(), header.sequence
        status, effects = self._plane.admit(
            header.term, header.incarnation, message.cluster, limits, message.lease_duration_ns, now_ns, session
        )
        self._host.run(effects)
        return Done(status)

    def _table_status(self, event: RequestReceived) -> Response:
        """With a sequence it begins a session with a controller."""
        if event.header.sequence and self._plane.begin_session() is not Status.OK:
            return TablesRead(Status.LIMIT, "no session number is left")
        return TablesRead(Status.OK, "", self._tables())

    def _grant(self, header: Header, message: LeaseGrant) -> Status:
        outcome = self._plane.grant_lease(stamp_of(header), message.sent_ns, message.duration_ns, self._host.clock())
        self._host.run(outcome[1])
        return outcome[0]

    def _fault_answer(self, header: Header, message: FaultAnswer) -> Status:
        outcome = self._plane.answer_faults(stamp_of(header), header.table, answers_of(message), self._host.clock())
        self._host.run(outcome[1])
        return outcome[0]

    def _set_entries(self, event: RequestReceived, stamp: Stamp, barrier: Any) -> Outcome:
        message, clock = cast(SetEntries, event.message), self._host.clock
        return self._plane.set_entries(
            stamp, event.header.table, message.start, message.count, message.entries, clock(), barrier
        )

    def _set_state(self, event: RequestReceived, stamp: Stamp, barrier: Any) -> Outcome:
        message, clock = cast(SetState, event.message), self._host.clock
        return self._plane.set_state(
            stamp, event.header.table, message.start, message.count, message.state, message.active, clock(), barrier
        )

    def _table_slots(self, event: RequestReceived, stamp: Stamp, barrier: Any) -> Outcome:
        engine = self._plane.tables.get(event.header.table)
        message = cast(TableSlots, event.message)
        slots = list(message.slots)
        if engine is not None and not self._fits(engine, slots):
            return Status.FORBIDDEN, []
        outcome = self._plane.table_slots(stamp, event.header.table, slots, self._host.clock(), message.absent)
        if outcome[0] is Status.OK:
            self._host.slots_changed[event.header.table]()
        return outcome

    def _fits(self, engine: Engine, slots: Iterable[int]) -> bool:
        """Whether the table's segments and blocks can lie in these containers."""
        geometry = engine.geometry
        for slot in slots:
            container = self._host.containers.get(slot)
            if container is None:
                continue
            if container.label.segment_size != geometry.segment_size:
                return False
            if container.bdev is not None and geometry.block_size % container.bdev.block_size:
                return False
        return True

    def _unbind_slot(self, event: RequestReceived) -> Response:
        return Done(*self._binder.unbind(cast(UnbindSlot, event.message).slot))

    def _suspend(self, event: RequestReceived, stamp: Stamp, barrier: Any) -> Outcome:
        return self._plane.suspend(stamp, event.header.table, self._host.clock(), barrier)

    def _resume(self, event: RequestReceived, stamp: Stamp, barrier: Any) -> Outcome:
        status, effects = self._plane.resume(stamp, event.header.table, self._host.clock())
        engine = self._plane.tables.get(event.header.table)
        if status is Status.OK and barrier is not None and engine is not None:
            effects += engine.barrier(barrier, self._host.clock())
        return status, effects

    def _engine(self, header: Header, start: int, count: int) -> tuple[Status, Engine | None]:
        """The table that a read of entries means, if the stamp and the range are good."""
        self._host.run(self._plane.tick(self._host.clock()))
        status = self._plane.check(stamp_of(header), self._host.clock())
        engine = self._plane.tables.get(header.table)
        if status is not Status.OK:
            return status, None
        if engine is None or not engine.present:
            return Status.NO_TABLE, None
        if not engine.table.in_range(start, count):
            return Status.OUT_OF_RANGE, None
        return Status.OK, engine

    def _get_entries(self, event: RequestReceived) -> Response:
        message = cast(GetEntries, event.message)
        status, engine = self._engine(event.header, message.start, message.count)
        if engine is None:
            return EntriesRead(status)
        return EntriesRead(Status.OK, "", engine.table.get(message.start, message.count))

    def _get_state(self, event: RequestReceived) -> Response:
        message = cast(GetState, event.message)
        status, engine = self._engine(event.header, message.start, message.count)
        if engine is None:
            return StateRead(status)
        return StateRead(Status.OK, "", _bits(engine.get_state(message.start, message.count, message.state)))

    def _get_parked(self, event: RequestReceived) -> Response:
        table, now_ns = event.header.table, self._host.clock()
        engines = [engine for number, engine in self._plane.tables.items() if table in (0, number)]
        if table and not engines:
            return ParkedRead(Status.NO_TABLE)
        records = [record for engine in engines for record in _parked(engine, now_ns)]
        records.sort(key=lambda record: -record.since_ns_ago)
        return ParkedRead(Status.OK, "", records[:PARKED_MAX])

    async def _copy(self, event: RequestReceived) -> Response:
        return Done(*await self._jobs.copy(stamp_of(event.header), list(cast(CopySegments, event.message).copies)))

    async def _zero(self, event: RequestReceived) -> Response:
        return Done(*await self._jobs.zero(stamp_of(event.header), list(cast(ZeroSegments, event.message).runs)))


def _bits(flags: bytes) -> bytes:
    """One bit per byte of `flags`, lowest bit first."""
    return int(flags.translate(_DIGITS)[::-1], 2).to_bytes((len(flags) + 7) // 8, "little")


def _parked(engine: Engine, now_ns: int) -> list[ParkedRecord]:
    """What is parked at one table, by segment, operation and fault; without a fault it waits for lease or resume."""
    groups: dict[tuple[int, int, int, int], list[Part]] = {}
    for part in engine.parked():
        fault = part.fault
        kind, state = (int(fault.kind), int(fault.state)) if fault is not None else (0, 0)
        segment = part.segment if part.segment >= 0 else NO_SEGMENT
        groups.setdefault((segment, int(part.operation), kind, state), []).append(part)
    return [
        ParkedRecord(
            engine.table_id,
            segment,
            max(0, now_ns - min(part.parked_ns for part in parts)),
            len(parts),
            operation,
            kind,
            state,
        )
        for (segment, operation, kind, state), parts in groups.items()
    ]
