"""What goes wrong, and when it is put right again: every failure is drawn from one seed, ends by itself, and may meet
any other.

Delay: `Network.delay` (up to 4 s when slow). Drop: `Wire.break_off`, `lost_down`; JSON-RPC answers (`Target.perform`).
Duplicates and what comes far too late or in another order: `Machine.past_returns`, chosen to be in sequence. Within a
connection there is order, as in TCP. One-way partition: `partition`. Crashes that keep only what is persisted:
controller (a prefix of the commits under way), daemon, data plane, exporter, whole machines, one of which has both
roles. Torn and lost unsynced writes: `SimContainer.lose_cache`; commits that nobody acknowledged and a full store:
`World.crash_controller`, `_fail_commit`. Slow containers: `slow_storage`, `freeze_storage`. SIGSTOP of daemon, data
plane, exporter and controller: `hang_daemon`, `stop_data_plane`, `stop_controller`. Clock drift within the bound:
`DRIFT_PPM` of every machine's clock and the controller's. And each of them at its worst moment: `_moment`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.sim.machine import Daemon, Machine
from tests.sim.timeline import MS, SECOND
from tests.sim.world import World

NOTICED_NS: Final = 15 * SECOND
MOMENT_SHARES: Final = {"commit": 1 / 100, "decision": 1 / 6, "barrier": 1 / 3, "zeroing": 1 / 5, "begin": 1 / 60}
MOMENTS_APART_NS: Final = 2 * SECOND


class Failures:
    """`pause_ns`: between two failures, on average. `stop` ends it; what is broken is put right in its own time."""

    def __init__(self, world: World, pause_ns: int) -> None:
        self.world = world
        self.timeline = world.timeline
        self.pause_ns = pause_ns
        self.counts: Counter[str] = Counter()
        self.stopped = False
        world.chaos = True
        world.moment = self._moment
        self._moments_ns: dict[str, int] = {}
        self._kinds: list[tuple[Callable[[], None], int]] = [
            (self.break_session, 5),
            (self.hang_daemon, 4),
            (self.expire_lease, 3),
            (self.fence_silent, 2),
            (self.partition, 4),
            (self.kill_data_plane, 3),
            (self.stop_data_plane, 3),
            (self.kill_controller, 3),
            (self.stop_controller, 2),
            (self.fill_store, 1),
            (self.past_returns, 8),
            (self.kill_daemon, 2),
            (self.break_socket, 2),
            (self.fail_mapper, 1),
            (self.fail_container_host, 2),
            (self.kill_exporter_target, 1),
            (self.freeze_storage, 1),
            (self.slow_storage, 2),
            (self.slow_network, 2),
            (self.drop_hosts, 2),
            (self.fence, 1),
        ]
        self._later()

    def stop(self) -> None:
        """No more of it."""
        self.stopped = True
        self.world.chaos = False
        self.world.moment = lambda what, machine: None

    def _later(self) -> None:
        self.timeline.later(self.timeline.between(self.pause_ns // 20, 2 * self.pause_ns), self._something)

    def _something(self) -> None:
        if self.stopped:
            return
        kinds, weights = zip(*self._kinds, strict=True)
        (kind,) = self.timeline.random.choices(kinds, weights)
        name = kind.__name__
        self.counts[name] += 1
        self.timeline.note(f"failure: {name}")
        kind()
        if self.timeline.chance(0.2):  # failures like company
            self.timeline.later(self.timeline.between(0, 300 * MS), self._something)
        else:
            self._later()

    def _moment(self, what: str, machine: Machine | None) -> None:
        """Something has just begun: now and then that is the worst moment for something else."""
        if machine is not None and what == "admission":
            for _ in range(4):
                self.timeline.later(self.timeline.between(0, 10 * MS), machine.past_returns)
            return
        if machine is not None and what == "begin" and machine.daemon.hung:
            if self.timeline.chance(0.05):
                self._outlive_lease(machine)
            return
        share = MOMENT_SHARES.get(what, 0)
        if not share or self.timeline.now_ns < self._moments_ns.get(what, 0) or not self.timeline.chance(share):
            return
        self._moments_ns[what] = self.timeline.now_ns + MOMENTS_APART_NS
        self.counts[what] += 1
        self.timeline.note(f"failure: at a {what}")
        if machine is None:
            self.timeline.later(self.timeline.between(0, MS // 4), self.kill_controller)
        elif what == "begin":
            self.timeline.later(self.timeline.between(0, MS), self._under_io, machine)
        elif what == "zeroing":
            cuts = [self._kill_data_plane, self._stop_target, lambda one: self._break(one.daemon)]
            self.timeline.later(self.timeline.between(0, 8 * MS), self.timeline.random.choice(cuts), machine)
        else:
            self._at_a_barrier(machine)

    def _under_io(self, machine: Machine) -> None:
        """The data plane goes while something is on its way to containers, and may stay on its way for long."""
        if machine.alive and not machine.target.dead:
            for controller in machine.target.controllers.values():
                if self.timeline.chance(0.5):
                    self.world.storage.abandon(controller.pair)
            self.timeline.random.choice([self._kill_data_plane, self._kill_data_plane, self._stop_target])(machine)

    def _outlive_lease(self, machine: Machine) -> None:
        """What is under way to containers arrives only when the lease has ended."""
        end_ns = machine.clock.world_time(machine.dataplane.plane.lease.deadline_ns)
        late_ns = min(end_ns, self.timeline.now_ns + 12 * SECOND) + self.timeline.between(0, SECOND)
        for controller in machine.target.controllers.values():
            controller.pair.stuck_until_ns = late_ns

    def _at_a_barrier(self, machine: Machine) -> None:
        """Its answer is held up, and hosts elsewhere give up what waits for it."""
        daemon = machine.daemon
        daemon.hang()
        self.timeline.later(self.timeline.between(SECOND // 2, 3 * SECOND), daemon.go_on)
        for other in self.world.mappers.values():
            if other is not machine and not other.dataplane.dead:
                self.timeline.later(self.timeline.between(0, 200 * MS), other.dataplane.lose_hosts)

    def _mapper(self) -> Machine:
        return self.timeline.random.choice(list(self.world.mappers.values()))

    def _exporter(self) -> Machine:
        return self.timeline.random.choice(list(self.world.exporters.values()))

    def _anybody(self) -> Machine:
        return self._exporter() if self.timeline.chance(0.25) else self._mapper()

    # --- sessions and daemons ----------------------------------------------------------------------------------------

    def break_session(self) -> None:
        wire = self._anybody().daemon.wire
        if wire is not None:
            wire.break_off()

    def hang_daemon(self) -> None:
        """SIGSTOP: shorter or longer than its lease; SIGCONT: it goes on where it was."""
        machine = self._anybody()
        daemon, lasting = machine.daemon, self.timeline.between(SECOND, 32 * SECOND)
        daemon.hang()
        self.timeline.later(lasting, daemon.go_on)
        self._echoes(machine, lasting + 5 * SECOND)
        if self.timeline.chance(0.5):
            self.timeline.later(self.timeline.between(0, lasting), self._break, daemon)
        if self.timeline.chance(0.25):
            self.timeline.later(self.timeline.between(0, 2 * SECOND), self._fence, machine.name)
        if self.timeline.chance(0.5):  # let I/O be under way when its lease ends
            self.timeline.later(self.timeline.between(6 * SECOND, 10 * SECOND), self.slow_storage)

    def expire_lease(self) -> None:
        """SIGSTOP of a daemon until its data plane's lease has just ended, or is just about to."""
        machine = self._mapper()
        lease = machine.dataplane.plane.lease
        if not lease.valid or machine.dataplane.dead:
            return
        left_ns = machine.clock.world_time(lease.deadline_ns) - self.timeline.now_ns
        daemon, lasting = machine.daemon, max(0, left_ns + self.timeline.between(-50 * MS, 150 * MS))
        daemon.hang()
        self.timeline.later(lasting, daemon.go_on)
        self._echoes(machine, lasting + SECOND)

    def fence_silent(self) -> None:
        """An operator fences an agent whose daemon hears of nothing, while its data plane goes on."""
        machine = self._mapper()
        machine.daemon.hang()
        self.timeline.later(self.timeline.between(8 * SECOND, 16 * SECOND), machine.daemon.go_on)
        self._fence(machine.name)

    def _break(self, daemon: Daemon) -> None:
        if daemon.wire is not None:
            daemon.wire.break_off()

    def partition(self) -> None:
        """The network between an agent and the controller, both ways or only one."""
        machine = self._anybody()
        wire = machine.daemon.wire
        lasting = self.timeline.between(SECOND // 2, 30 * SECOND)
        self._echoes(machine, lasting + 5 * SECOND)
        self.world.partitioned = self.world.partitioned | {machine.name}
        self.timeline.later(lasting, self._heal, machine.name)
        if wire is None:
            return
        pipes = self.timeline.random.choice([(wire.up, wire.down), (wire.up,), (wire.down,)])
        for pipe in pipes:
            pipe.held = True
            self.timeline.later(lasting, pipe.release)
        if lasting > NOTICED_NS:
            self.timeline.later(NOTICED_NS, wire.break_off)

    def _heal(self, name: str) -> None:
        self.world.partitioned = self.world.partitioned - {name}

    def kill_daemon(self) -> None:
        machine = self._anybody()
        if machine.alive:
            machine.kill_daemon()

    def break_socket(self) -> None:
        self._mapper().daemon.lose_data_plane()

    def past_returns(self) -> None:
        """Messages come a second time, or long after their session has ended."""
        machine = self._mapper()
        for _ in range(6):
            machine.past_returns()

    def _echoes(self, machine: Machine, lasting_ns: int) -> None:
        """The same, now and then in a time in which it is most likely to hurt."""
        for _ in range(8):
            self.timeline.later(self.timeline.between(0, lasting_ns), machine.past_returns)

    def slow_network(self) -> None:
        self.world.network.slow = True
        self.timeline.later(5 * SECOND, self._network_back)

    def _network_back(self) -> None:
        self.world.network.slow = False

    # --- processes and machines --------------------------------------------------------------------------------------

    def kill_data_plane(self) -> None:
        machine = self._mapper()
        if self.timeline.chance(0.5):  # let it have something under way
            self.slow_storage()
        self.timeline.later(self.timeline.between(0, 2 * SECOND), self._kill_data_plane, machine)

    def _kill_data_plane(self, machine: Machine) -> None:
        if machine.alive:
            machine.kill_target("SIGKILL")
            self._echoes(machine, 8 * SECOND)

    def stop_data_plane(self) -> None:
        """SIGSTOP of a target, a mapper's or an exporter's: shorter or longer than its lease."""
        machine = self._anybody()
        if self.timeline.chance(0.5):
            self.slow_storage()
        self.timeline.later(self.timeline.between(0, 2 * SECOND), self._stop_target, machine)

    def _stop_target(self, machine: Machine) -> None:
        if machine.alive:
            lasting = self.timeline.between(SECOND, 35 * SECOND)
            machine.stop_target(lasting)
            self._echoes(machine, lasting + SECOND)

    def fail_mapper(self) -> None:
        self._mapper().fail(self.timeline.between(SECOND, 20 * SECOND))

    def fail_container_host(self) -> None:
        """Power: caches are lost, allow-lists too."""
        self._exporter().fail(self.timeline.between(SECOND // 2, 8 * SECOND))

    def kill_exporter_target(self) -> None:
        machine = self._exporter()
        if machine.alive:
            machine.kill_target("SIGKILL")

    def kill_controller(self) -> None:
        self.world.crash_controller()
        lasting = self.timeline.between(0, SECOND if self.timeline.chance(0.6) else 12 * SECOND)
        self.timeline.later(lasting, self.world.start_controller)
        for machine in self.world.mappers.values():
            self._echoes(machine, lasting + 3 * SECOND)

    def stop_controller(self) -> None:
        """SIGSTOP, SIGCONT."""
        self.world.stop_controller()
        lasting = self.timeline.between(SECOND // 2, 3 * SECOND if self.timeline.chance(0.6) else 20 * SECOND)
        self.timeline.later(lasting, self.world.continue_controller)

    def fill_store(self) -> None:
        """The file system of the store is full for a while."""
        self.world.store_is_full = True
        self.timeline.later(self.timeline.between(SECOND // 2, 12 * SECOND), self._store_back)
        if self.timeline.chance(0.3):
            self.timeline.later(self.timeline.between(0, 3 * SECOND), self.kill_controller)

    def _store_back(self) -> None:
        self.world.store_is_full = False

    def fence(self) -> None:
        """An operator does it."""
        self._fence(self._mapper().name)

    def _fence(self, name: str) -> None:
        if self.world.core is not None:
            self.world.ask("agent.fence", agent=name)

    # --- storage and hosts -------------------------------------------------------------------------------------------

    def slow_storage(self) -> None:
        self.world.storage.slow = True
        self.timeline.later(5 * SECOND, self._storage_back)
        for failure in (self.drop_hosts, self.break_session):
            if self.timeline.chance(0.5):
                self.timeline.later(self.timeline.between(0, 5 * SECOND), failure)

    def _storage_back(self) -> None:
        self.world.storage.slow = False

    def freeze_storage(self) -> None:
        """Containers answer nothing for a while: less than the I/O deadline, or more."""
        lasting = self.timeline.between(SECOND, 26 * SECOND if self.timeline.chance(0.2) else 5 * SECOND)
        self.world.storage.frozen_until_ns = self.timeline.now_ns + lasting

    def drop_hosts(self) -> None:
        """The hosts of a mapper lose their connections: their parked I/O is dropped."""
        machine = self._mapper()
        if not machine.dataplane.dead:
            machine.dataplane.lose_hosts()
