"""A simulated data plane: the real mapping.plane and engine, their messages, and their I/O on simulated containers.

What the embedded target's plane server does, without bytes: one daemon at a time, faults gathered a little, zeroing one
segment run after the other under the lease and flushed, a flush that covers every container and fails after a loss.

Its process may be stopped (SIGSTOP): then nothing of it happens, messages, container completions, host I/O and timers
wait, and of what it has begun a part has not left it yet, and reaches the containers when it goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from channel import messages as m
from channel.events import NoticeReceived, RequestReceived, ResponseReceived
from channel.messages import ROW_OF, response_to
from channel.plane_records import answers_of, record_of, stamp_of
from channel.values import Header, MessageType, TableSequence
from mapping import effects as fx
from mapping.effects import Fault, Part
from mapping.engine import Limits
from mapping.entry import segment_of, slot_of
from mapping.plane import REPLACE, Plane, numbered
from mapping.rules import Operation
from mapping.status import Status
from tests.sim.storage import BLOCK_SIZE, BLOCKS, ZEROES, SimContainer
from tests.sim.target import NvmeController
from tests.sim.timeline import MS, Alarm

if TYPE_CHECKING:
    from tests.sim.hosts import HostIO
    from tests.sim.machine import Machine

SOCKET_NS = MS // 20
ERROR_NS = 300 * MS


class PlaneLink:
    """One connection of the daemon. `received(link, event)` at the daemon; the newest link wins."""

    def __init__(self, dataplane: DataPlane, received: Callable[[PlaneLink, Any], None]) -> None:
        self.dataplane = dataplane
        self.received = received
        self.open = True
        self.admitted = False
        self._own: dict[int, tuple[Any, int]] = {}

    def send(self, event: Any, token: int = 0) -> None:
        """From the daemon; `token` of a request of its own."""
        if token:
            self._own[id(event)] = (event, token)
        self.dataplane.timeline.later(SOCKET_NS, self._arrive, event)

    def _arrive(self, event: Any) -> None:
        if self.open:
            self.dataplane.message(self, event)

    def tell(self, event: Any) -> None:
        """To the daemon."""
        if self.open:
            self.dataplane.timeline.later(SOCKET_NS, self._deliver, event)

    def _deliver(self, event: Any) -> None:
        if self.open:
            self.received(self, event)

    def respond(self, request: RequestReceived, response: m.Response, header: Header | None = None) -> None:
        context = self._own.pop(id(request), (None, request))[1]
        self.tell(ResponseReceived(header or request.header, request.type, response, b"", context))

    def close(self) -> None:
        self.open = False


class DataPlane:
    """One life of a data plane. `dead`: its process is gone, nothing of it happens any more."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.world = machine.world
        self.timeline = machine.world.timeline
        self.clock = machine.clock
        self.dead = False
        self.plane = Plane(self.timeline.random.getrandbits(128).to_bytes(16, "little"), limits=Limits())
        self.link: PlaneLink | None = None
        self.ios: dict[HostIO, None] = {}
        self.unflushed: dict[int, dict[int, int]] = {}
        self.flushing: dict[int, list[dict[int, int]]] = {}
        self.nqns: dict[int, str] = {}
        self._faults: list[Fault] = []
        self._dropping: dict[int, Callable[[], None]] = {}
        self._jobs: deque[Callable[[], None]] = deque()
        self._stopped: dict[str, list[tuple[Callable[..., None], tuple[Any, ...]]]] | None = None
        self._alarm = Alarm(self.timeline, self.clock, self._ring)

    # --- time --------------------------------------------------------------------------------------------------------

    @property
    def is_stopped(self) -> bool:
        return self._stopped is not None

    def stop(self) -> None:
        """SIGSTOP."""
        if self._stopped is None and not self.dead:
            self._stopped = {}

    def go_on(self) -> None:
        """SIGCONT: of each kind in order, of the kinds any may come first."""
        if self._stopped is None:
            return
        waiting, self._stopped = self._stopped, None
        for kind in self.timeline.random.sample(sorted(waiting), len(waiting)):
            for action, args in waiting[kind]:
                action(*args)

    def running(self, kind: str, action: Callable[..., None], *args: Any) -> None:
        """Call it now, or when the process goes on."""
        if self._stopped is not None:
            self._stopped.setdefault(kind, []).append((action, args))
        else:
            action(*args)

    def _ring(self) -> None:
        if self._stopped is not None:
            self._stopped["timer"] = [(self._ring, ())]
        elif not self.dead:
            self.run(self.plane.tick(self.clock()))
            self._alarm.set(self.plane.next_deadline())

    def run(self, effects: list[fx.Effect]) -> None:
        """Execute what the plane wants done, in order."""
        for effect in effects:
            if isinstance(effect, fx.Forward):
                self._forward(effect.part)
            elif isinstance(effect, fx.ReturnZeroes):
                self.world.checks.ended_zero(self, effect.part)
                self._finish(effect.part.io, Status.OK, [ZEROES] * effect.part.length_blocks)
            elif isinstance(effect, fx.Complete):
                self._finish(effect.part.io, effect.status, effect.part.io.result)
            elif isinstance(effect, fx.SendFault):
                if not self._faults:
                    delay_ns = self.timeline.between(0, SOCKET_NS * 2)
                    self.timeline.later(delay_ns, self.running, "faults", self._say_faults)
                self._faults.append(effect.fault)
            elif isinstance(effect, fx.BarrierReached):
                effect.token(effect.status)
            elif self.link is not None:
                self.timeline.note(f"{self.machine.name} epoch {effect.epoch}")
                self._notice(m.Epoch(Status.LEASE_EXPIRED))
        self._check_dropping()
        self._alarm.set(self.plane.next_deadline())

    def _say_faults(self) -> None:
        faults = [fault for fault in self._faults if fault.parts]
        self._faults = []
        if faults and self.link is not None and self.link.admitted:
            self._notice(m.MapFault([record_of(fault) for fault in faults]))

    def _notice(self, message: Any) -> None:
        if self.link is not None and not self.dead:
            self.link.tell(NoticeReceived(self.header(), ROW_OF[type(message)].kind, message, b""))

    def header(self) -> Header:
        plane = self.plane
        return Header(plane.term, plane.incarnation, plane.epoch)

    # --- the daemon --------------------------------------------------------------------------------------------------

    def connect(self, received: Callable[[PlaneLink, Any], None]) -> PlaneLink:
        if self.link is not None:
            self.link.close()
        self.link = PlaneLink(self, received)
        return self.link

    def message(self, link: PlaneLink, event: Any) -> None:
        """A request or notice of the daemon, or one that comes a second time (then `link` tells nobody)."""
        if event.type is MessageType.LEASE_GRANT and link.open:
            self.world.moment("grant" if self.plane.lease.valid else "first grant", self.machine)
        self.running("message", self._message, link, event)

    def _message(self, link: PlaneLink, event: Any) -> None:
        if self.dead:
            return
        if isinstance(event, RequestReceived):
            handler = getattr(self, "_on_" + event.type.name.lower(), None)
            if handler is None:
                link.respond(event, response_to(event.type, Status.UNSUPPORTED))
                return
            response = handler(link, event)
            if response is not None:
                link.respond(event, response, self._response_header(event))
        elif event.type is MessageType.LEASE_GRANT:
            self._grant(link, event)
        else:
            self._answer(link, event)

    def _response_header(self, event: RequestReceived) -> Header | None:
        if event.type is MessageType.TABLE_STATUS and event.header.sequence:
            return self.header()._replace(epoch=numbered(self.plane.epoch, self.plane.session))
        return self.header() if event.type is MessageType.ADMIT else None

    def _grant(self, link: PlaneLink, event: NoticeReceived) -> None:
        message = event.message
        assert isinstance(message, m.LeaseGrant)
        now = self.clock()
        status, effects = self.plane.grant_lease(stamp_of(event.header), message.sent_ns, message.duration_ns, now)
        if status is Status.OK:
            self.world.checks.granted(self, message.sent_ns, message.duration_ns)
        self.run(effects)
        self._refuse(link, event, status)

    def _answer(self, link: PlaneLink, event: NoticeReceived) -> None:
        message, table = event.message, event.header.table
        assert isinstance(message, m.FaultAnswer)
        status, effects = self.plane.answer_faults(stamp_of(event.header), table, answers_of(message), self.clock())
        ranges = [(start, count) for _, start, count, action, _ in message.answers if action == REPLACE]
        self.world.checks.applied(self, table, ranges)
        self.run(effects)
        self._refuse(link, event, status)

    def _refuse(self, link: PlaneLink, event: NoticeReceived, status: Status) -> None:
        if status is not Status.OK:
            refused = m.Refused(status, int(event.type), status.name)
            link.tell(NoticeReceived(event.header, MessageType.REFUSED, refused, b""))

    def _tables(self) -> list[TableSequence]:
        return [TableSequence(table, engine.sequence) for table, engine in self.plane.tables.items()]

    def _on_table_status(self, link: PlaneLink, event: RequestReceived) -> m.Response:
        if event.header.sequence:
            assert self.plane.begin_session() is Status.OK
        return m.TablesRead(Status.OK, "", self._tables())

    def _on_admit(self, link: PlaneLink, event: RequestReceived) -> m.Response:
        message, header = event.message, event.header
        assert isinstance(message, m.Admit)
        limits = Limits(park_ns=message.park_limit_ns, io_ns=message.io_deadline_ns)
        status, effects = self.plane.admit(
            header.term,
            header.incarnation,
            message.cluster,
            limits,
            message.lease_duration_ns,
            self.clock(),
            header.sequence,
        )
        self.run(effects)
        if status is Status.OK:
            link.admitted = True
            self.world.moment("admission", self.machine)
            faults = self.plane.outstanding_faults()
            if faults:
                self.timeline.later(0, self._notice, m.MapFault([record_of(fault) for fault in faults]))
        return m.Done(status)

    def _on_set_entries(self, link: PlaneLink, event: RequestReceived) -> m.Response | None:
        message, header = event.message, event.header
        assert isinstance(message, m.SetEntries)
        barrier = (lambda status: link.respond(event, m.Done(status))) if header.blocking else None
        status, effects = self.plane.set_entries(
            stamp_of(header), header.table, message.start, message.count, message.entries, self.clock(), barrier
        )
        self.world.checks.applied(self, header.table, [(message.start, message.count)])
        if barrier is not None and status is Status.OK:
            self.world.moment("barrier", self.machine)
        self.run(effects)
        return None if barrier is not None and status is Status.OK else m.Done(status)

    def _on_table_slots(self, link: PlaneLink, event: RequestReceived) -> m.Response:
        message = event.message
        assert isinstance(message, m.TableSlots)
        status, effects = self.plane.table_slots(
            stamp_of(event.header), event.header.table, message.slots, self.clock(), message.absent
        )
        self.run(effects)
        return m.Done(status)

    def _on_get_entries(self, link: PlaneLink, event: RequestReceived) -> m.Response:
        engine = self.plane.tables.get(event.header.table)
        if engine is None or not engine.present:
            return m.EntriesRead(Status.NO_TABLE)
        return m.EntriesRead(Status.OK, "", engine.table.get(event.message.start, event.message.count))  # type: ignore[union-attr]

    # --- containers --------------------------------------------------------------------------------------------------

    def controller(self, slot: int) -> NvmeController | None:
        return self.machine.target.controllers.get(f"container{slot}")

    def _submit(self, slot: int, land: Callable[[SimContainer], Any], ended: Callable[[Any], None]) -> None:
        """A container I/O; it fails a little later if the container is not connected."""
        controller = self.controller(slot)
        if controller is None or not controller.usable:
            if controller is not None:
                controller.notice()
            self.timeline.later(ERROR_NS, self.running, "completion", ended, None)
            return
        self.world.storage.submit(controller.pair, land, lambda result: self.running("completion", ended, result))

    def _on_bind_slot(self, link: PlaneLink, event: RequestReceived) -> m.Response | None:
        wanted = event.message
        assert isinstance(wanted, m.BindSlot)
        mine = (wanted.cluster, wanted.container, wanted.segment_size, wanted.segment_count)

        def land(container: SimContainer) -> Status:
            found = container.label
            if wanted.flags & 1 and found in (None, mine):
                container.label = found = mine
                container.slot = wanted.slot
            return Status.OK if found == mine else Status.LABEL_MISMATCH

        def ended(status: Status | None) -> None:
            if self.dead:
                return
            controller = self.controller(wanted.slot)
            if status is Status.OK and controller is not None:
                status = self.plane.bind_slot(wanted.slot, wanted.container)
                self.nqns[wanted.slot] = controller.path.hostnqn
            answer = m.Attached(
                Status.IO_ERROR if status is None else status, "", wanted.segment_count, BLOCK_SIZE, True
            )
            link.respond(event, answer)

        self._submit(wanted.slot, land, ended)
        return None

    def _on_unbind_slot(self, link: PlaneLink, event: RequestReceived) -> m.Response:
        return m.Done(self.plane.unbind_slot(event.message.slot))  # type: ignore[union-attr]

    def delete_table(self, table: int, dropped: Callable[[], None]) -> None:
        """bdev_segmap_delete: parked I/O is dropped; done once what has begun has ended."""
        _, effects = self.plane.remove_table(table, self.clock())
        self.run(effects)
        engine = self.plane.tables.get(table)
        if engine is None:
            dropped()
            return
        self.run(engine.reset())
        self._dropping[table] = dropped
        self._check_dropping()

    def _check_dropping(self) -> None:
        if not self._dropping:
            return
        for table in [t for t in self._dropping if not self.plane.tables[t].generations.begun]:
            dropped = self._dropping.pop(table)
            for state in (self.unflushed, self.flushing):
                state.pop(table, None)  # type: ignore[attr-defined]
            self.run(self.plane.drop_table(table))
            dropped()

    # --- zeroing -----------------------------------------------------------------------------------------------------

    def _on_zero_segments(self, link: PlaneLink, event: RequestReceived) -> m.Response | None:
        runs = list(event.message.runs)  # type: ignore[union-attr]
        self.world.moment("zeroing", self.machine)

        def begin() -> None:
            token = object()
            entries = [run.start for run in runs]
            status, effects = self.plane.begin_job(stamp_of(event.header), token, entries, self.clock())
            self.run(effects)
            if status is not Status.OK:
                self._job_over(link, event, status)
                return
            slots = sorted({slot_of(entry) for entry in entries})
            losses = [self._losses(slot) for slot in slots]
            segments = [(slot_of(start), segment_of(start) + n) for start, count in runs for n in range(count)]

            def over(status: Status) -> None:
                if losses != [self._losses(slot) for slot in slots] and status is Status.OK:
                    status = Status.IO_ERROR
                self._job_over(link, event, self.plane.end_job(token, status, self.clock()))

            self._zero_next(token, segments, slots, over)

        self._jobs.append(begin)
        if len(self._jobs) == 1:
            begin()
        return None

    def _job_over(self, link: PlaneLink, event: RequestReceived, status: Status) -> None:
        link.respond(event, m.Done(status))
        self._jobs.popleft()
        if self._jobs:
            self._jobs[0]()

    def _losses(self, slot: int) -> int:
        controller = self.controller(slot)
        return -1 if controller is None else controller.losses + (not controller.usable)

    def _zero_next(
        self, token: Any, left: list[tuple[int, int]], slots: list[int], over: Callable[[Status], None]
    ) -> None:
        """The next segment, or the flush after the last one."""
        if not self.plane.may_continue(token, self.clock()):
            over(Status.LEASE_EXPIRED)
            return
        nqn = self.nqns.get(left[0][0] if left else slots[0], "")

        def ended(result: Any) -> None:
            if self.dead:
                return
            if result is None:
                over(Status.IO_ERROR)
            elif left:
                self._zero_next(token, left[1:], slots, over)
            else:
                over(Status.OK)

        if left:
            slot, segment = left[0]

            def land(container: SimContainer) -> bool:
                self.world.checks.zeroing(slot, segment, nqn)
                container.write(segment, 0, [ZEROES] * BLOCKS)
                return True

            self._submit(slot, land, ended)
        else:
            self._submit(slots[0], self.flush_container, ended)

    def flush_container(self, container: SimContainer) -> bool:
        """FLUSH reaches the container host."""
        container.flush()
        return True

    # --- host I/O ----------------------------------------------------------------------------------------------------

    def submit(self, table: int, io: HostIO) -> None:
        """A host's I/O arrives; CANCELLED at once where there is no such disk."""
        self.running("host", self._submit_host, table, io)

    def _submit_host(self, table: int, io: HostIO) -> None:
        engine = self.plane.tables.get(table)
        if self.dead or engine is None or not engine.present:
            io.end(Status.CANCELLED, None)
            return
        self.ios[io] = None
        io.engine = engine
        io.part.io = io
        now = self.clock()
        self.run(self.plane.tick(now))
        self.run(engine.submit(io.part, now))

    def _finish(self, io: HostIO, status: Status, result: Any) -> None:
        self.ios.pop(io, None)
        io.end(status, result)

    def _complete(self, part: Part, status: Status) -> None:
        io: HostIO = part.io
        now = self.clock()
        self.run(self.plane.tick(now))
        effects = io.engine.complete(part, status, now)
        if effects and isinstance(effects[0], fx.Complete) and effects[0].status is Status.OK:
            self.world.checks.succeeded(self, part)
        self.run(effects)

    def _forward(self, part: Part) -> None:
        """The part has begun."""
        self.world.checks.began(self, part)
        if part.operation is Operation.FLUSH:
            self._flush(part)
            return
        io: HostIO = part.io
        io.queued += 1
        slot, physical, table = part.slot, part.physical, io.engine.table_id
        if part.operation is not Operation.READ:
            self.unflushed.setdefault(table, {}).setdefault(slot, self._losses(slot))
        flight = self.world.checks.takes_off(self, table >> 32, part)
        self.world.moment("begin", self.machine)

        def land(container: SimContainer) -> Any:
            self.world.checks.landed(flight, container.slot)
            first, stop = part.offset_blocks, part.offset_blocks + part.length_blocks
            if part.operation is Operation.READ:
                return container.blocks(physical)[first:stop]
            container.write(physical, first, io.data)
            return True

        def ended(result: Any) -> None:
            io.queued -= 1
            self.world.checks.touched_down(flight)
            if not self.dead:
                io.result = result
                self._complete(part, Status.OK if result is not None else Status.IO_ERROR)
            io.settle()

        self._submit(slot, land, ended)

    def _flush(self, part: Part) -> None:
        """Every container of the table, and those with unflushed writes; it fails if one may have lost some."""
        io: HostIO = part.io
        table = io.engine.table_id
        flushing = self.flushing.setdefault(table, [])
        pending: dict[int, int] = {}
        for earlier in (*flushing, self.unflushed.get(table, {})):
            for slot, losses in earlier.items():
                pending.setdefault(slot, losses)
        self.unflushed[table] = {}
        flushing.append(pending)
        targets = sorted(io.engine.slots | pending.keys())
        io.targets = frozenset(targets)
        left, outcome = [len(targets) + 1], [Status.OK]
        io.queued += 1

        def ended(result: Any) -> None:
            if result is None:
                outcome[0] = Status.IO_ERROR
            left[0] -= 1
            if left[0]:
                return
            io.queued -= 1
            if not self.dead:
                flushing.remove(pending)
                lost = {slot for slot, losses in pending.items() if self._losses(slot) != losses}
                if outcome[0] is not Status.OK:
                    kept = {slot: losses for slot, losses in pending.items() if slot not in lost}
                    self.unflushed.setdefault(table, {}).update(kept)
                io.lossy = bool(lost)
                self._complete(part, Status.IO_ERROR if lost else outcome[0])
            io.settle()

        for slot in targets:
            self._submit(slot, self.flush_container, ended)
        ended(True)

    def lose_hosts(self, table: int | None = None) -> None:
        """Host connections of a disk (all disks: None) are lost: parked I/O is dropped."""
        self.running("lost hosts", self._lose_hosts, table)

    def _lose_hosts(self, table: int | None) -> None:
        for number, engine in list(self.plane.tables.items()):
            if table in (None, number) and not self.dead:
                self.run(engine.reset())

    def die(self) -> None:
        """SIGKILL: host I/O ends without a verdict; what was queued may still land."""
        self.dead = True
        if self.link is not None:
            self.link.close()
        self.go_on()
        ios, self.ios = list(self.ios), {}
        for io in ios:
            io.end(Status.CANCELLED, None)
