"""One thing goes wrong at a time, aimed at histories that failures at random seldom make, in a cluster that is at work.

Under many failures at once the cluster waits most of the time: there is always somebody who does not answer. Here all
is well until the aim's moment comes; hosts then do what makes it hurt; it is put right, and the next aim is drawn.

`give_up`: a reclaim waits for somebody's answer, its hosts give it up and write that segment anew. `read_late`: a read
is held up on its way while its segment is given back elsewhere. `die_reading`: the data plane dies over it, its queue
pair lives on, and another starts in its place. `fence_silent`: an operator fences an agent that hears of nothing, while
others write what it holds. `grant_late`: the first grant of an epoch comes after its own end. `grant_old`: a grant is
taken in long after its renewal, and no other follows. `meet`: several write a segment at once that all of them know to
be zeroes; nothing fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from mapping.entry import ZERO
from mapping.rules import Operation
from tests.sim.machine import Machine
from tests.sim.storage import BLOCKS
from tests.sim.timeline import MS, SECOND
from tests.sim.world import World

RECLAIMS: Final = (Operation.UNMAP, Operation.WRITE_ZEROES)
UNMET_NS: Final = 8 * SECOND
"""After this an aim whose moment has not come is given up."""


class Aimed:
    """`pause_ns`: of peace between two of them, on average. `stop` ends it, as with `failures.Failures`."""

    def __init__(self, world: World, pause_ns: int) -> None:
        self.world = world
        self.timeline = world.timeline
        self.pause_ns = pause_ns
        self.counts: Counter[str] = Counter()
        self.stopped = False
        self._aim = ""
        self._drawn = 0
        self._armed: dict[str, Callable[[Machine], int]] = {}
        self._aims: list[tuple[Callable[[], None], int]] = [
            (self.give_up, 5),
            (self.read_late, 3),
            (self.die_reading, 4),
            (self.fence_silent, 2),
            (self.grant_late, 2),
            (self.grant_old, 2),
            (self.meet, 3),
        ]
        world.moment = self._moment
        self._draw()

    def stop(self) -> None:
        """No more of it."""
        self.stopped = True
        self.world.moment = lambda what, machine: None

    # --- one after the other -----------------------------------------------------------------------------------------

    def _draw(self) -> None:
        if self.stopped:
            return
        aims, weights = zip(*self._aims, strict=True)
        (aim,) = self.timeline.random.choices(aims, weights)
        self._aim = aim.__name__
        self._drawn += 1
        self._armed = {}
        self.timeline.note(f"aims at: {self._aim}")
        self.timeline.later(UNMET_NS, self._unmet, self._drawn)
        aim()

    def _unmet(self, drawn: int) -> None:
        if drawn == self._drawn:
            self._draw()

    def _aim_at(self, moment: str, hit: Callable[[Machine], int]) -> None:
        """`hit(machine)` when the moment comes: how long it lasts, 0 if this was not yet the right one."""
        self._armed[moment] = hit

    def _hit(self, lasting_ns: int) -> None:
        """It happens now: after it, and some peace, comes the next."""
        self.counts[self._aim] += 1
        self.timeline.note(f"failure: {self._aim}")
        self._armed = {}
        self._drawn += 1
        pause_ns = self.timeline.between(self.pause_ns // 4, 2 * self.pause_ns)
        self.timeline.later(lasting_ns + pause_ns, self._draw)

    def _moment(self, what: str, machine: Machine | None) -> None:
        hit = self._armed.get(what)
        if hit is None or machine is None or not machine.alive or machine.target.dead:
            return
        lasting_ns = hit(machine)
        if lasting_ns:
            self._hit(lasting_ns)

    def _mapper(self) -> Machine:
        return self.timeline.random.choice(list(self.world.mappers.values()))

    def _later(self, least_ns: int, most_ns: int, action: Callable[..., None], *args: object) -> None:
        self.timeline.later(self.timeline.between(least_ns, most_ns), action, *args)

    # --- a reclaim that is given up ----------------------------------------------------------------------------------

    def give_up(self) -> None:
        self._aim_at("barrier", self._given_up)

    def _given_up(self, machine: Machine) -> int:
        """This one's answer is held up, for which a reclaim at another waits."""
        waiting = [
            (other, io.engine.table_id >> 32, io.part.segment)
            for other in self.world.mappers.values()
            for io in other.dataplane.ios
            if other is not machine and io.part.operation in RECLAIMS
        ]
        if not waiting:
            return 0
        machine.daemon.hang()
        lasting_ns = self.timeline.between(SECOND // 2, 2 * SECOND)
        self.timeline.later(lasting_ns, machine.daemon.go_on)
        for other, vdisk, segment in waiting:
            self._later(0, 50 * MS, other.dataplane.lose_hosts)
            for block in range(BLOCKS):
                self._later(60 * MS, 400 * MS, self.world.hosts.write, vdisk, other, segment, block)
                self._later(lasting_ns + 200 * MS, lasting_ns + SECOND, self.world.hosts.read, vdisk, segment, block)
        return lasting_ns + SECOND

    # --- a read that is late -----------------------------------------------------------------------------------------

    def read_late(self) -> None:
        self._aim_at("begin", self._read_is_late)

    def die_reading(self) -> None:
        self._aim_at("begin", self._dies_reading)

    def _read_begun(self, machine: Machine) -> tuple[int, int] | None:
        """(vdisk, segment) of the read that has just begun, if others can reach that disk."""
        flight = next(reversed(self.world.checks.flying))
        disk = self.world.hosts.disks.get(flight.vdisk)
        if flight.operation is not Operation.READ or disk is None or len(disk.machines) < 2:
            return None
        return flight.vdisk, flight.segment

    def _read_is_late(self, machine: Machine) -> int:
        begun = self._read_begun(machine)
        if begun is None:
            return 0
        lasting_ns = self.timeline.between(SECOND, 4 * SECOND)
        self._hold(machine, lasting_ns)
        self._given_back(machine, begun, 0, lasting_ns // 2)
        return lasting_ns

    def _dies_reading(self, machine: Machine) -> int:
        begun = self._read_begun(machine)
        if begun is None or machine.containers:
            return 0
        lasting_ns = self.timeline.between(12 * SECOND, 20 * SECOND)
        self._hold(machine, lasting_ns - SECOND)
        self.timeline.later(0, self._die, machine, lasting_ns)
        self._given_back(machine, begun, SECOND, 6 * SECOND)
        return lasting_ns

    def _hold(self, machine: Machine, lasting_ns: int) -> None:
        """What is on its way to containers stays on it."""
        for controller in machine.target.controllers.values():
            controller.pair.stuck_until_ns = self.timeline.now_ns + lasting_ns

    def _die(self, machine: Machine, lasting_ns: int) -> None:
        """Containers find out late."""
        for controller in machine.target.controllers.values():
            self.world.storage.end(controller.pair, lasting_ns, lasting_ns)
        machine.kill_target("SIGKILL")
        self._hold(machine, lasting_ns - SECOND)

    def _given_back(self, machine: Machine, begun: tuple[int, int], least_ns: int, most_ns: int) -> None:
        """Hosts elsewhere give back that segment."""
        vdisk, segment = begun
        others = [other for other in self.world.hosts.disks[vdisk].machines if other is not machine]
        for other in others * 2:
            self._later(least_ns, most_ns, self.world.hosts.give_back, vdisk, other, segment)

    # --- writes that meet --------------------------------------------------------------------------------------------

    def meet(self) -> None:
        """Everybody reads the segment, and a little later writes a block of it."""
        hosts, committed = self.world.hosts, self.world.checks.committed
        zero = [
            (vdisk, segment)
            for vdisk, disk in hosts.disks.items()
            for segment in range(disk.segment_count)
            if len(disk.machines) > 1 and committed.entry(vdisk, segment) & ZERO
        ]
        if not zero:
            return
        vdisk, segment = self.timeline.random.choice(zero)
        for block, machine in enumerate(hosts.disks[vdisk].machines):
            self.timeline.later(0, hosts.read, vdisk, segment, block % BLOCKS, machine)
            self._later(40 * MS, 41 * MS, hosts.write, vdisk, machine, segment, block % BLOCKS)
        self._hit(SECOND // 2)

    # --- leases ------------------------------------------------------------------------------------------------------

    def fence_silent(self) -> None:
        machine = self._mapper()
        if machine.dataplane.dead or self.world.core is None:
            return
        lasting_ns = self.timeline.between(8 * SECOND, 14 * SECOND)
        machine.daemon.hang()
        self.timeline.later(lasting_ns, machine.daemon.go_on)
        self.world.ask("agent.fence", agent=machine.name)
        self._hit(lasting_ns)

    def grant_late(self) -> None:
        """Its daemon hangs until the lease has ended; then the grant that begins anew has to wait."""
        machine = self._mapper()
        lease = machine.dataplane.plane.lease
        if not lease.valid or machine.dataplane.dead:
            return
        left_ns = machine.clock.world_time(lease.deadline_ns) - self.timeline.now_ns
        machine.daemon.hang()
        self.timeline.later(max(0, left_ns) + SECOND, machine.daemon.go_on)
        self._drawn += 1
        self.timeline.later(max(0, left_ns) + UNMET_NS, self._unmet, self._drawn)
        self._aim_at("first grant", self._grant_is_late)

    def _grant_is_late(self, machine: Machine) -> int:
        """What it holds was forgotten, so a flush that waits is what would begin at once."""
        lasting_ns = self.timeline.between(10_300 * MS, 14 * SECOND)
        for vdisk in list(self.world.hosts.disks):
            self.world.hosts.flush(vdisk)
        machine.stop_target(lasting_ns)
        return lasting_ns

    def grant_old(self) -> None:
        self._aim_at("grant", self._grant_is_old)

    def _grant_is_old(self, machine: Machine) -> int:
        """It waits in the socket for a while, and is the last for long."""
        waits_ns = self.timeline.between(3 * SECOND, 8 * SECOND)
        machine.stop_target(waits_ns)
        machine.daemon.hang()
        self.timeline.later(16 * SECOND, machine.daemon.go_on)
        return 16 * SECOND
