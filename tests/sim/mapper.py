"""A simulated agent: a thin relay between the controller and a reference data plane, on a clock of its own.

The data plane is the real one (mapping.plane and mapping.engine). The relay keeps nothing: it forwards, answers
commands when the data plane has, renews the lease, and says HELLO again after each loss of its session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from channel import messages as m
from channel.values import FaultRecord, Header, TableSequence
from controller.core.agents import host_nqn
from mapping import effects as fx
from mapping.effects import Part
from mapping.engine import Geometry, Limits
from mapping.entry import segment_of, slot_of
from mapping.plane import Answer, Plane, Stamp
from mapping.rules import Operation
from mapping.status import Status
from tests.sim.storage import BLOCKS, ZEROES, SimContainer, Storage
from tests.sim.timeline import MS, SECOND

if TYPE_CHECKING:
    from tests.sim.world import World

RENEW_NS = 3 * SECOND


class HostIO:
    """One host I/O: a part, its data, and who waits."""

    __slots__ = ("block", "count", "data", "done", "part", "queued", "settled", "vdisk")

    def __init__(
        self,
        vdisk: int,
        part: Part,
        data: list[Any] | None,
        done: Callable[[Status, object], None],
        settled: Callable[[], None],
    ) -> None:
        self.vdisk = vdisk
        self.part = part
        self.data = data
        self.done: Callable[[Status, object], None] | None = done
        self.settled: Callable[[], None] | None = settled
        self.queued = False

    def end(self, status: Status, value: object) -> None:
        """Tell the host, once; the I/O is settled when nothing of it is queued either."""
        done, self.done = self.done, None
        if done is not None:
            done(status, value)
        self.settle()

    def settle(self) -> None:
        settled = self.settled
        if settled is not None and not self.queued and self.done is None:
            self.settled = None
            settled()


class SimMapper:
    """Agent `name` with roles mapper. `clock` is CLOCK_MONOTONIC of its machine: its own offset, and drift."""

    roles = 1

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.timeline = world.timeline
        self.storage: Storage = world.storage
        self.offset_ns = self.timeline.random.randrange(10**6) * SECOND
        self.rate = 1 + (self.timeline.random.random() - 0.5) * 0.008
        self.session = 0
        self.admitted = False
        self.term = 0
        self.silent = False
        self.ios: dict[int, HostIO] = {}
        self.paths: set[int] = set()
        self.life = 0
        self._begin_life()
        self._tick()

    # --- life --------------------------------------------------------------------------------------------------------

    def _begin_life(self) -> None:
        self.life += 1
        instance = self.timeline.random.getrandbits(128).to_bytes(16, "little")
        self.plane = Plane(instance, limits=Limits())
        self.slot_nqns: dict[int, tuple[str, str]] = {}
        self.barriers: dict[int, tuple[int, Any, int]] = {}
        self.deleting: dict[int, list[Callable[[], None]]] = {}
        self._tokens = 0
        self._last_renew_ns = -(10**18)

    def clock(self) -> int:
        return self.offset_ns + int(self.timeline.now_ns * self.rate)

    def crash(self) -> None:
        """SIGKILL of the data plane: its host I/O ends without a verdict; what it queued may still land."""
        self.timeline.note(f"{self.name} data plane is killed")
        ios, self.ios = self.ios, {}
        self.paths.clear()
        self.lose_session()
        self._begin_life()
        for io in ios.values():
            io.end(Status.CANCELLED, None)

    def lose_session(self) -> None:
        """The connection breaks, both ends notice."""
        if self.session:
            self.world.cut(self.session)
        self.session, self.admitted = 0, False

    def session_lost(self, session: int) -> None:
        if session == self.session:
            self.session, self.admitted = 0, False

    def _tick(self) -> None:
        """The daemon's and the data plane's timers, every so often."""
        now = self.clock()
        if not self.silent:
            if not self.session and self.timeline.random.random() < 0.5:
                self._connect()
            if self.admitted and now - self._last_renew_ns >= RENEW_NS:
                self._last_renew_ns = now
                self._to_controller(m.LeaseRenew(now))
        self._run(self.plane.tick(now))
        self._check_deleting()
        self.timeline.later(100 * MS + self.timeline.random.randrange(100 * MS), self._tick)

    def _connect(self) -> None:
        self.session = self.world.connect(self)
        if not self.session:
            return
        tables = [
            TableSequence(table, engine.sequence) for table, engine in self.plane.tables.items() if engine.present
        ]
        hello = m.Hello(1, 1, self.roles, self.plane.instance, self.name, "simulated", tables)
        self._to_controller(hello, Header(self.plane.term, self.plane.incarnation, self.plane.epoch))

    def _to_controller(self, message: Any, header: Header | None = None) -> None:
        plane = self.plane
        self.world.to_controller(self.session, header or Header(self.term, plane.incarnation, plane.epoch), message, 0)

    # --- from the controller -----------------------------------------------------------------------------------------

    def received(self, session: int, header: Header, message: Any, attempt: int) -> None:
        """A message of the present session."""
        if session != self.session or self.silent:
            return
        if isinstance(message, m.Welcome):
            self._welcomed(header, message)
            return
        handler = getattr(self, "_on_" + type(message).__name__.lower())
        response = handler(header, message, attempt)
        if response is not None:
            self._respond(attempt, response)

    def _respond(self, attempt: int, response: Any) -> None:
        self.world.to_controller(self.session, Header(), response, attempt)

    def _welcomed(self, header: Header, message: m.Welcome) -> None:
        if message.status is not Status.OK:
            self.lose_session()
            if message.status is Status.STALE_INCARNATION:
                self.crash()
            return
        limits = Limits(park_ns=message.park_limit_ns, io_ns=message.io_deadline_ns)
        status, effects = self.plane.admit(
            header.term, header.incarnation, message.cluster, limits, message.lease_duration_ns, self.clock()
        )
        if status is not Status.OK:
            self.lose_session()
            if status is Status.STALE_INCARNATION:
                self.crash()
            return
        self.term = header.term
        self.admitted = True
        self._run(effects)
        self._to_controller(m.LeaseRenew(self.clock()))
        self._last_renew_ns = self.clock()
        faults = self.plane.outstanding_faults()
        if faults:
            self._to_controller(m.MapFault([record(fault) for fault in faults]))

    def _stamp(self, header: Header) -> Stamp:
        return Stamp(header.term, header.incarnation, header.epoch, header.sequence)

    def _on_leasegrant(self, header: Header, message: m.LeaseGrant, attempt: int) -> None:
        _, effects = self.plane.grant_lease(self._stamp(header), message.sent_ns, message.duration_ns, self.clock())
        self._run(effects)

    def _on_faultanswer(self, header: Header, message: m.FaultAnswer, attempt: int) -> None:
        answers, taken = [], 0
        for fault_id, start, count, action, status in message.answers:
            answers.append(Answer(fault_id, action, status, start, count, message.entries[taken : taken + count]))
            taken += count
        status, effects = self.plane.answer_faults(self._stamp(header), header.table, answers, self.clock())
        self.world.checks.applied(self, header.table, status, [(a.start, a.count) for a in answers])
        self._run(effects)
        if status is not Status.OK:
            self._to_controller(m.Refused(status, 41, "fault answer"))

    def _on_setentries(self, header: Header, message: m.SetEntries, attempt: int) -> Any:
        self._tokens += 1
        token = self._tokens if header.blocking else None
        status, effects = self.plane.set_entries(
            self._stamp(header), header.table, message.start, message.count, message.entries, self.clock(), token
        )
        self.world.checks.applied(self, header.table, status, [(message.start, message.count)])
        if status is Status.OK and token is not None:
            self.barriers[token] = (self.session, attempt, self.life)
        self._run(effects)
        return None if status is Status.OK and token is not None else m.Done(status, "")

    def _on_tableslots(self, header: Header, message: m.TableSlots, attempt: int) -> Any:
        status, effects = self.plane.table_slots(self._stamp(header), header.table, message.slots, self.clock())
        self._run(effects)
        return m.Done(status, "")

    def _on_getentries(self, header: Header, message: m.GetEntries, attempt: int) -> Any:
        engine = self.plane.tables.get(header.table)
        if engine is None:
            return m.EntriesRead(Status.NO_TABLE, "")
        return m.EntriesRead(Status.OK, "", engine.table.get(message.start, message.count))

    def _on_createtable(self, header: Header, message: m.CreateTable, attempt: int) -> Any:
        geometry = Geometry(
            message.segment_count,
            message.segment_size,
            message.block_size,
            bool(message.table_flags & 2),
            bool(message.table_flags & 1),
        )
        return m.Done(self.plane.create_table(header.table, geometry, message.slots), "")

    def _on_deletetable(self, header: Header, message: m.DeleteTable, attempt: int) -> Any:
        status, effects = self.plane.remove_table(header.table, self.clock())
        self._run(effects)
        if status is not Status.OK:
            return m.Done(status, "")
        session = self.session

        def gone() -> None:
            if session == self.session:
                self._respond(attempt, m.Done())

        self.deleting.setdefault(header.table, []).append(gone)
        self._check_deleting()
        return None

    def _check_deleting(self) -> None:
        for table in [t for t in self.deleting if not self.plane.tables[t].generations.begun]:
            self._run(self.plane.drop_table(table))
            for gone in self.deleting.pop(table):
                gone()

    def _on_attachcontainer(self, header: Header, message: m.AttachContainer, attempt: int) -> Any:
        nqn = host_nqn(self.name, self.plane.incarnation)
        session, life = self.session, self.life

        def land(container: SimContainer) -> Any:
            found = container.label
            mine = (message.cluster, message.container, message.segment_size, message.segment_count)
            if found is None and message.flags & 1:
                container.label = found = mine
            if found is None:
                return Status.LABEL_MISMATCH
            return Status.OK if found == mine else Status.FOREIGN_DATA

        def ended(status: Status | None) -> None:
            if life != self.life or session != self.session:
                return
            if status is Status.OK:
                self.plane.bind_slot(message.slot, message.container)
                self.slot_nqns[message.slot] = (message.subnqn, nqn)
            result = Status.IO_ERROR if status is None else status
            self._respond(attempt, m.Attached(result, "", message.segment_count, 4096, True))

        self.storage.submit(message.subnqn, nqn, land, ended)

    def _on_present(self, header: Header, message: m.Present, attempt: int) -> Any:
        self.paths.add(header.table)
        return m.Presented(Status.OK, "", "127.0.0.1", "4420", "TCP")

    def _on_withdraw(self, header: Header, message: m.Withdraw, attempt: int) -> Any:
        number = self.world.vdisk_number(message.subnqn)
        self.paths = {table for table in self.paths if table >> 32 != number}
        return m.Done()

    def _on_zerosegments(self, header: Header, message: m.ZeroSegments, attempt: int) -> Any:
        plane, token = self.plane, object()
        status, effects = plane.begin_job(self._stamp(header), token, [run.start for run in message.runs], self.clock())
        self._run(effects)
        if status is not Status.OK:
            return m.Done(status, "")
        session, left, bad = self.session, [len(message.runs)], [False]

        def ended(result: Any) -> None:
            left[0] -= 1
            bad[0] = bad[0] or result is None
            if not left[0]:
                final = plane.end_job(token, Status.IO_ERROR if bad[0] else Status.OK, self.clock())
                if session == self.session:
                    self._respond(attempt, m.Done(final, ""))

        for run in message.runs:
            self._zero_run(run.start, run.count, ended)
        return None

    def _zero_run(self, start: int, count: int, ended: Callable[[Any], None]) -> None:
        subnqn, nqn = self.slot_nqns[slot_of(start)]
        first = segment_of(start)

        def land(container: SimContainer) -> Any:
            for segment in range(first, first + count):
                self.world.checks.zeroing(slot_of(start), segment)
                container.segments[segment] = [ZEROES] * BLOCKS
            return True

        self.storage.submit(subnqn, nqn, land, ended)

    # --- the data plane ----------------------------------------------------------------------------------------------

    def submit(
        self,
        vdisk: int,
        operation: Operation,
        segment: int,
        block: int,
        count: int,
        data: list[Any] | None,
        done: Callable[[Status, object], None],
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        """A host's I/O arrives at this path; CANCELLED at once where there is none."""
        table = self.world.table_id(vdisk, self)
        engine = self.plane.tables.get(table)
        part = Part(operation, segment, block, count)
        io = HostIO(vdisk, part, data, done, settled)
        part.io = io
        if table not in self.paths or engine is None or not engine.present:
            io.end(Status.CANCELLED, None)
            return
        self.ios[id(io)] = io
        now = self.clock()
        self._run(self.plane.tick(now))
        self._run(engine.submit(part, now))

    def _engine(self, io: HostIO) -> Any:
        return self.plane.tables[self.world.table_id(io.vdisk, self)]

    def _run(self, effects: list[Any]) -> None:
        """Execute what the data plane wants done, in order."""
        faults = []
        for effect in effects:
            if isinstance(effect, fx.Forward):
                self._forward(effect.part)
            elif isinstance(effect, fx.ReturnZeroes):
                self._finish(effect.part.io, Status.OK, ZEROES)
            elif isinstance(effect, fx.Complete):
                self._finish(effect.part.io, effect.status, effect.part.io.data if effect.part.io else None)
            elif isinstance(effect, fx.SendFault):
                faults.append(record(effect.fault))
            elif isinstance(effect, fx.BarrierReached):
                self._say_faults(faults)
                session, attempt, life = self.barriers.pop(effect.token)
                if session == self.session and life == self.life:
                    self._respond(attempt, m.Done(effect.status, ""))
            elif isinstance(effect, fx.EpochBegan) and self.admitted:
                self.timeline.note(f"{self.name} epoch {effect.epoch}")
                self._to_controller(m.Epoch(), Header(self.term, self.plane.incarnation, effect.epoch))
        self._say_faults(faults)

    def _say_faults(self, faults: list[FaultRecord]) -> None:
        if faults and self.admitted:
            self._to_controller(m.MapFault(list(faults)))
        faults.clear()

    def _finish(self, io: HostIO, status: Status, value: Any) -> None:
        self.ios.pop(id(io), None)
        if isinstance(value, list) and io.part.operation is Operation.READ:
            value = value[0]
        io.end(status, value)

    def _forward(self, part: Part) -> None:
        """The part has begun: queue its container I/O."""
        io: HostIO = part.io
        io.queued = True
        life = self.life
        subnqn, nqn = self.slot_nqns[part.slot]
        slot, physical = part.slot, part.physical
        self.world.checks.begun(self, io.vdisk, part)

        def land(container: SimContainer) -> Any:
            self.world.checks.landed(io.vdisk, part.segment, slot, physical, part.operation)
            blocks = container.blocks(physical)
            first, stop = part.offset_blocks, part.offset_blocks + part.length_blocks
            if part.operation is Operation.READ:
                return blocks[first:stop]
            blocks[first:stop] = io.data or []
            return True

        def ended(result: Any) -> None:
            io.queued = False
            self.world.checks.ended(self, io.vdisk, part)
            if life != self.life:
                io.settle()
                return
            if part.operation is Operation.READ and result is not None:
                io.data = result
            status = Status.OK if result is not None else Status.IO_ERROR
            now = self.clock()
            self._run(self.plane.tick(now))
            self._run(self._engine(io).complete(part, status, now))
            self._check_deleting()
            io.settle()

        self.storage.submit(subnqn, nqn, land, ended)


def record(fault: fx.Fault) -> FaultRecord:
    """A fault as it is sent."""
    return FaultRecord(
        fault.fault_id,
        fault.table,
        fault.segment,
        fault.entry,
        int(fault.operation),
        int(fault.kind),
        int(fault.state),
        fault.offset_blocks,
        fault.length_blocks,
    )
