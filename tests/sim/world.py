"""The simulated world: the real controller core on a memory store, real agent cores, real planes, hosts, and failures.

Everything is driven by one seed. A controller that crashes keeps what its store has committed; of the commits under way
a prefix may have happened. It may be stopped (SIGSTOP), and its store may be full for a while: then a commit fails,
nobody knowing whether it is durable, and is tried again. Between steps the checkers of `checks` and `hosts` hold;
`audit` compares everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any
from uuid import UUID

from channel import messages as m
from channel.values import Header
from controller.config import Limits, Timing
from controller.core import effects as fx
from controller.core.machine import Controller
from controller.store.interface import Batch, StoreFull
from controller.store.memory import Failure, MemoryDisk, MemoryStore
from controller.store.records import SegmentState
from mapping.entry import NO_WRITE, has_location, segment_of, slot_of
from spdk_rpc.methods.bdev_nvme import Path
from tests.sim.checks import Checks
from tests.sim.hosts import Hosts
from tests.sim.machine import DRIFT_PPM, Machine
from tests.sim.network import END, Network, Wire
from tests.sim.storage import SEGMENT_SIZE, Pair, SimContainer, Storage
from tests.sim.timeline import MS, SECOND, Alarm, Clock, Timeline

LIMITS = Limits(
    segment_size=SEGMENT_SIZE,
    block_size=4096,
    zeroed_pool_segments=16,
    zero_batch_segments=8,
    extent_segments=8,
    read_ahead_segments=8,
    allocate_ahead_segments=4,
    requests_kept=64,
    events_kept=50,
)
FOLD_EVERY = 64
FULL_RETRY_NS = 200 * MS


class World:
    """One cluster: containers by exporter (`{"store-1": {"disk-a": (segments, contents)}}`), and mappers.

    Of the exporters those in `both` are mappers, too, with one target for both roles.
    """

    def __init__(
        self, seed: int, exporters: dict[str, dict[str, tuple[int, str]]], mappers: int, both: tuple[str, ...] = ()
    ) -> None:
        self.timeline = Timeline(seed)
        self.network = Network(self.timeline)
        self.storage = Storage(self.timeline)
        self.chaos = False
        self.moment: Callable[[str, Machine | None], None] = lambda what, machine: None
        self.disk = MemoryDisk(cluster=UUID(int=seed + 1))
        self.core: Controller | None = None
        self.store: MemoryStore | None = None
        self.commits: deque[Batch] = deque()
        self.store_is_full = False
        self.stopped: deque[fx.Event] | None = None
        self.reign = 0
        self.commits_done = 0
        self.controller_starts = 0
        self.results: dict[int, Any] = {}
        self.machines: dict[str, Machine] = {}
        self.mappers: dict[str, Machine] = {}
        self.exporters: dict[str, Machine] = {}
        self.checks = Checks(self)
        self.hosts = Hosts(self)
        self.partitioned: set[str] = set()
        self._full_told = False
        self._known_durable = 0
        self._sessions = 0
        self._tokens = 0
        self._containers: dict[int, SimContainer] = {}
        self._clock = Clock(self.timeline, DRIFT_PPM)
        self._alarm = Alarm(self.timeline, self._clock, lambda: self.step(fx.TimePassed()))
        self._numbers: dict[str, int] = {}
        self.start_controller()
        for name, containers in exporters.items():
            made = [SimContainer(self.timeline, disk, *what) for disk, what in containers.items()]
            self.machines[name] = self.exporters[name] = Machine(self, name, name in both, made)
        for name in both:
            self.mappers[name] = self.exporters[name]
        for index in range(mappers):
            name = f"map-{index + 1}"
            self.machines[name] = self.mappers[name] = Machine(self, name, True, [])

    # --- the controller ----------------------------------------------------------------------------------------------

    def start_controller(self) -> None:
        if self.core is not None:
            return
        self.store = MemoryStore.open(self.disk)
        self.store.new_term()
        state = self.store.load()
        self.reign += 1
        self.controller_starts += 1
        self._clock = Clock(self.timeline, DRIFT_PPM)
        self._alarm = Alarm(self.timeline, self._clock, lambda: self.step(fx.TimePassed()))
        random = self.timeline.random
        self.core = Controller(state, Timing(), LIMITS, lambda: UUID(int=random.getrandbits(128)), self._clock())
        self.timeline.note(f"controller starts, term {state.term}")
        self.compare_with_store()
        self.step(fx.TimePassed())

    def crash_controller(self) -> None:
        """SIGKILL: of the commits under way a prefix has happened."""
        if self.core is None or self.store is None:
            return
        self.timeline.note("controller is killed")
        for _ in range(self.timeline.between(0, len(self.commits))):
            self.commit_one(tell=False)
        self.commits.clear()
        self.core = self.stopped = None
        self._full_told = False
        self.store.close()
        self.store = None
        self.disk.crash()
        for wire in list(self.network.wires.values()):
            wire.controller_dies()
        self.network.wires.clear()

    def stop_controller(self) -> None:
        """SIGSTOP: what comes waits in its sockets; what its store has under way becomes durable all the same."""
        if self.core is not None and self.stopped is None:
            self.timeline.note("controller is stopped")
            self.stopped = deque()

    def continue_controller(self) -> None:
        """SIGCONT."""
        if self.stopped is not None:
            self.timeline.note("controller goes on")
            waiting, self.stopped = self.stopped, None
            for event in waiting:
                self.step(event)
            self.step(fx.TimePassed())

    def step(self, event: fx.Event) -> None:
        core = self.core
        if core is None:
            return
        if self.stopped is not None:
            if not isinstance(event, fx.TimePassed):
                self.stopped.append(event)
            return
        for effect in core.step(event, self._clock()):
            self._execute(effect)
        if self.core is not None:
            self._alarm.set(core.next_deadline())

    def _execute(self, effect: fx.Effect) -> None:
        if isinstance(effect, fx.Send | fx.Welcome):
            wire = self.network.wires.get(effect.session)
            if wire is not None:
                attempt = effect.attempt if isinstance(effect, fx.Send) else 0
                message = effect.message
                if isinstance(effect, fx.Send):
                    message = self.network.as_sent(message, effect.header)
                else:
                    self._numbers[wire.peer] = message.agent_number or self._numbers.get(wire.peer, 0)
                wire.down.send((effect.header, message, attempt))
        elif isinstance(effect, fx.Persist):
            self.commits.append(effect.batch)
            small = effect.batch.puts or effect.batch.deletes or effect.batch.jobs or effect.batch.jobs_removed
            self.moment("decision" if small else "commit", None)
            self.timeline.later(self.timeline.between(MS // 20, 2 * MS), self._commit_next, self.reign)
        elif isinstance(effect, fx.Close):
            self.timeline.note(f"controller closes session {effect.session}: {effect.status.name} {effect.detail}")
            wire = self.network.wires.pop(effect.session, None)
            if wire is not None:
                wire.controller_closes((Header(), m.Goodbye(effect.status, m.short(effect.detail)), 0))
            self.timeline.later(MS, self.step, fx.SessionEnded(effect.session))
        elif isinstance(effect, fx.Reply):
            self.results[effect.token] = effect.result
        elif isinstance(effect, fx.RefuseOperation):
            self.results[effect.token] = effect
        elif isinstance(effect, fx.Log):
            self.timeline.note(f"log {effect.text}")
        elif isinstance(effect, fx.Depose):
            raise self.timeline.violated(f"deposed: {effect.reason}")

    def _commit_next(self, reign: int) -> None:
        if not self.commits or self.core is None or reign != self.reign:
            return
        if self.store_is_full:
            self._fail_commit(reign)
            return
        if self._full_told:
            self._full_told = False
            self.step(fx.StoreSpaceChanged(""))
        self.commit_one(tell=True)

    def _fail_commit(self, reign: int) -> None:
        """No space: before anything happened, or after everything did. The same batch is tried again."""
        assert self.store is not None
        batch = self.commits[0]
        self.disk.inject(Failure("commit", StoreFull("simulated"), applied=self.timeline.chance(0.3)))
        before = self.disk.sequence
        try:
            self.store.commit([batch], self.store.term)
        except StoreFull as full:
            if self.disk.sequence != before:
                self._durable(batch)
            if not self._full_told:
                self._full_told = True
                self.step(fx.StoreSpaceChanged(str(full)))
        self.timeline.later(FULL_RETRY_NS, self._commit_next, reign)

    def commit_one(self, tell: bool) -> None:
        """The oldest batch is durable."""
        assert self.store is not None
        batch = self.commits.popleft()
        self.store.commit([batch], self.store.term)
        self._durable(batch)
        self.commits_done += 1
        if self.commits_done % FOLD_EVERY == 0:
            while self.store.fold():
                pass
        if tell:
            self.step(fx.BatchCommitted(batch.id))

    def _durable(self, batch: Batch) -> None:
        """Told to the checks, once."""
        if batch.id > self._known_durable:
            self._known_durable = batch.id
            self.checks.batch(batch)

    # --- the network -------------------------------------------------------------------------------------------------

    def connect(self, machine: Machine, received: Callable[[Wire, Any], None]) -> Wire | None:
        """A new session of an agent; None if the controller is not there."""
        if self.core is None or machine.name in self.partitioned:
            return None
        self._sessions += 1
        wire = Wire(self.network, self._sessions, machine.name, received, self._from_agent)
        self.timeline.note(f"{machine.name} connects, session {wire.number}")
        self.step(fx.SessionOpened(wire.number, machine.name))
        return wire

    def _from_agent(self, wire: Wire, item: Any) -> None:
        if wire.number not in self.network.wires:
            return
        if item is END:
            del self.network.wires[wire.number]
            self.step(fx.SessionEnded(wire.number))
            return
        header, message, attempt = item
        if attempt:
            self.step(fx.ResponseReceived(wire.number, attempt, message))
        else:
            self.step(fx.MessageReceived(wire.number, header, message))

    def connect_container(self, path: Path) -> Pair | None:
        """A data plane connects to a container, if it is let in."""
        exporter = self.exporters.get(path.traddr)
        if exporter is None or not exporter.alive or exporter.target.dead or exporter.dataplane.is_stopped:
            return None
        if self.storage.frozen_until_ns > self.timeline.now_ns:
            return None
        subsystem = exporter.target.subsystems.get(path.subnqn)
        if subsystem is None or path.hostnqn not in subsystem.hosts or not subsystem.listeners:
            return None
        bdev = exporter.target.bdevs.get(next(iter(subsystem.namespaces.values()), ""))
        if bdev is None:
            return None
        pair = Pair(bdev, path.hostnqn)
        subsystem.pairs.append(pair)
        return pair

    def lets_in(self, slot: int, hostnqn: str) -> bool:
        """True if a queue pair of this host at the container lives."""
        container = self.container(slot)
        return any(
            pair.alive and pair.hostnqn == hostnqn and pair.container is container
            for exporter in self.exporters.values()
            for subsystem in exporter.target.subsystems.values()
            for pair in subsystem.pairs
        )

    # --- names -------------------------------------------------------------------------------------------------------

    def table_id(self, vdisk: int, machine: Machine) -> int:
        return vdisk << 32 | self._numbers.get(machine.name, 0)

    def path(self, machine: Machine, vdisk: int) -> int | None:
        """The table through which hosts reach a vdisk there, None if they do not."""
        table = vdisk << 32 | self._numbers.get(machine.name, 0)
        target = machine.target
        name = target.tables.get(table)
        if name is None or target.dead:
            return None
        for subsystem in target.subsystems.values():
            if name in subsystem.namespaces.values() and subsystem.listeners:
                return table
        return None

    def container(self, slot: int) -> SimContainer:
        found = self._containers.get(slot)
        if found is None:
            every = [one for machine in self.exporters.values() for one in machine.containers.values()]
            found = self._containers[slot] = next(one for one in every if one.slot == slot)
        return found

    # --- operators ---------------------------------------------------------------------------------------------------

    def ask(self, operation: str, request_id: str = "", **args: Any) -> int:
        """Ask now; the result comes in `results`."""
        self._tokens += 1
        self.step(fx.OperationRequested(self._tokens, operation, args, request_id))
        return self._tokens

    def call(self, operation: str, timeout_ns: int = 60 * SECOND, **args: Any) -> Any:
        """Ask, and run until it is answered; a refusal comes back as the RefuseOperation effect."""
        token = self.ask(operation, "", **args)
        if not self.timeline.run_until(self.timeline.now_ns + timeout_ns, lambda: token in self.results):
            raise self.timeline.violated(f"{operation} was never answered")
        return self.results.pop(token)

    def run(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> bool:
        return self.timeline.run_until(self.timeline.now_ns + int(seconds * SECOND), enough)

    # --- audits ------------------------------------------------------------------------------------------------------

    def unsettled(self) -> list[str]:
        """What is still under way."""
        core = self.core
        if core is None:
            return ["the controller is down"]
        if self.stopped is not None:
            return ["the controller is stopped"]
        found = [f"{name} has I/O" for name, machine in self.mappers.items() if machine.dataplane.ios]
        for agent in core.cluster.agents.values():
            if not agent.admitted:
                found.append(f"{agent.name} is not admitted")
            if agent.queue or agent.sent:
                found.append(f"{agent.name} has commands")
        for vdisk in core.cluster.vdisks.values():
            found += [f"{vdisk.name} segment {segment} is changing" for segment in vdisk.changing]
        return found + ["commits" for _ in self.commits]

    def quiet(self) -> bool:
        return not self.unsettled()

    def compare_with_store(self) -> None:
        """What the store would load is what was committed, entry by entry and segment by segment."""
        assert self.store is not None
        committed, stored = self.checks.committed, self.store.load().image
        for vdisk in committed.tables.keys() | stored.tables.keys():
            mine, theirs = committed.tables.get(vdisk, {}), stored.tables.get(vdisk, {})
            for chunk in mine.keys() | theirs.keys():
                start = chunk << 12
                if committed.entries(vdisk, start, 4096) != stored.entries(vdisk, start, 4096):
                    raise self.timeline.violated(f"the store's table of vdisk {vdisk} is not what was committed")
        self._same_states(committed.segments, stored.segments, "the store")

    def _same_states(self, mine: dict[int, bytearray], theirs: dict[int, bytearray], whose: str) -> None:
        for slot in mine.keys() | theirs.keys():
            ours, others = bytes(mine.get(slot, b"")).rstrip(b"\0"), bytes(theirs.get(slot, b"")).rstrip(b"\0")
            if ours != others:
                raise self.timeline.violated(f"{whose} has other segment states of slot {slot} than were committed")

    def audit(self) -> bool:
        """The whole truth, compared, if no commit is under way; every segment accounted for."""
        core = self.core
        if core is None or self.commits or self.stopped is not None:
            return False
        image, committed = core.cluster.image, self.checks.committed
        owned: dict[tuple[int, int], tuple[int, int]] = {}
        for vdisk in core.cluster.vdisks.values():
            mine = image.entries(vdisk.number, 0, vdisk.segment_count)
            if committed.entries(vdisk.number, 0, vdisk.segment_count) != mine:
                raise self.timeline.violated(f"the table of {vdisk.name} is not what was committed")
            for segment, entry in enumerate(mine):
                if has_location(entry):
                    owned[slot_of(entry), segment_of(entry)] = (vdisk.number, segment)
        if owned != committed.owner:
            raise self.timeline.violated("locations and owners differ")
        self._same_states(committed.segments, image.segments, "the controller")
        self._audit_states(owned)
        return True

    def _audit_states(self, owned: dict[tuple[int, int], tuple[int, int]]) -> None:
        """MAPPED means mapped; ZEROING and QUARANTINED means in a job; the rest is free, or the label."""
        assert self.core is not None
        cluster = self.core.cluster
        jobs = {
            (job.payload["slot"], segment)  # type: ignore[index,call-overload]
            for job in cluster.zeroing.jobs.values()
            for start, count in job.payload["runs"]  # type: ignore[index,call-overload]
            for segment in range(start, start + count)
        }
        for slot, states in cluster.image.segments.items():
            for segment, state in enumerate(states):
                where = (slot, segment)
                if (state == SegmentState.MAPPED) != (where in owned):
                    raise self.timeline.violated(f"segment {where} is {SegmentState(state).name}: leaked")
                if (state in (SegmentState.ZEROING, SegmentState.QUARANTINED)) != (where in jobs):
                    raise self.timeline.violated(f"segment {where} is {SegmentState(state).name}, its job is not there")

    def audit_tables(self) -> None:
        """At rest: what a data plane with a lease holds is the truth, or that it does not know."""
        for machine in self.mappers.values():
            plane = machine.dataplane.plane
            for table, engine in plane.tables.items() if plane.lease.covers(machine.clock()) else ():
                for segment in range(engine.table.segment_count if engine.present else 0):
                    entry, truth = engine.table.entries[segment], self.checks.committed.entry(table >> 32, segment)
                    if entry and entry | NO_WRITE != truth | NO_WRITE:
                        where = f"segment {segment} of vdisk {table >> 32}"
                        raise self.timeline.violated(f"{machine.name} holds {entry:#x} of {where}, which is {truth:#x}")

    def audit_space(self) -> None:
        """At rest: what may be allocated is exactly what is free."""
        assert self.core is not None
        cluster = self.core.cluster
        for slot, space in cluster.allocator.spaces.items():
            states = cluster.image.segments[slot]
            container = cluster.containers[slot]
            reserved = sum(extent.end - extent.next for extent in cluster.allocator._extents if extent.slot == slot)
            zeroed = states.count(SegmentState.ZEROED)
            free = states.count(SegmentState.FREE) + container.segment_count - len(states)
            if space.zeroed.total + reserved != zeroed or space.free.total != free:
                have = f"{space.zeroed.total}+{reserved} zeroed, {space.free.total} free"
                raise self.timeline.violated(f"slot {slot} has {zeroed} zeroed, {free} free; allocator: {have}")
