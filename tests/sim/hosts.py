"""Simulated hosts: tagged blocks written, read, flushed and reclaimed through several agents, and the check that each
block's history is that of one register (tests.histories).

A write that ended without a verdict may take effect while something of it is still queued anywhere; its block is left
alone until then.

Flushes: what an acknowledged flush covered stays, whatever happens to caches. When a container host's machine fails,
blocks written since may show older values, and the host has to learn of it: its next flush, at every path it wrote
through, fails at one of them. A data plane that dies takes with it what it knew of such a loss; no flush tells of it
then, so what they had not flushed may be lost silently. A flush that succeeds, wherever it was sent, covers all that is
still there: it does not succeed where a container that may have data of the disk is out of reach (which is looked at
when it succeeds, too, for a loss may be long in coming).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mapping.effects import Part
from mapping.entry import has_location, slot_of
from mapping.rules import Operation
from mapping.status import Status
from tests.histories.register import HistoryBroken, Register
from tests.sim.storage import BLOCKS, ZEROES, Place, SimContainer
from tests.sim.timeline import MS, Timeline

if TYPE_CHECKING:
    from mapping.engine import Engine
    from tests.sim.dataplane import DataPlane
    from tests.sim.machine import Machine
    from tests.sim.world import World

NEVER_BEGUN: Final = frozenset(
    (Status.TIMEOUT, Status.NO_SPACE, Status.BUSY, Status.UNSUPPORTED, Status.WRITE_PROTECTED, Status.NO_CONTAINER)
)
RETRY_NS: Final = 20 * MS
NOWHERE: Final = -1


class HostIO:
    """One host I/O of one part: its data, and who waits. `settled`: nothing of it is queued anywhere any more."""

    __slots__ = ("data", "done", "engine", "lossy", "part", "queued", "result", "settled", "targets")

    def __init__(
        self, part: Part, data: Any, done: Callable[[HostIO, Status, Any], None], settled: Callable[[], None]
    ) -> None:
        self.part = part
        self.data = data
        self.done: Callable[[HostIO, Status, Any], None] | None = done
        self.settled: Callable[[], None] | None = settled
        self.queued = 0
        self.result: Any = None
        self.lossy = False
        self.targets: frozenset[int] = frozenset()
        self.engine: Engine

    def end(self, status: Status, result: Any) -> None:
        """Tell the host, once."""
        done, self.done = self.done, None
        if done is not None:
            done(self, status, result)
        self.settle()

    def settle(self) -> None:
        settled = self.settled
        if settled is not None and not self.queued and self.done is None:
            self.settled = None
            settled()


class DurableRegister(Register):
    """With what flushes promise. `durable`: what must be visible after any failure; `owed`: what a flush that succeeds
    would promise although it is lost; up to `unpromised` no flush will tell of a loss."""

    __slots__ = ("durable", "owed", "unpromised")

    def __init__(self, key: tuple[int, int, int]) -> None:
        super().__init__(key)
        self.durable = 0
        self.owed = 0
        self.unpromised = 0


@dataclass(frozen=True)
class Load:
    """What the hosts of one vdisk do. `pause_ns`: between a worker's I/Os, on average."""

    workers: int
    pause_ns: int
    writes: float = 0.47
    flushes: float = 0.04
    reclaims: float = 0.04


class Disk:
    """A vdisk as hosts use it."""

    def __init__(self, number: int, segment_count: int, machines: list[Machine], load: Load) -> None:
        self.number = number
        self.segment_count = segment_count
        self.machines = machines
        self.load = load
        self.registers: dict[tuple[int, int], DurableRegister] = {}
        self.dirty: dict[DurableRegister, None] = {}
        self.written: dict[DataPlane, None] = {}
        self.flushing = False
        self.gone = False
        self.borrowed = 0
        """I/Os that were not a worker's own: so many workers do not go on when their next one has ended."""


class Hosts:
    """Workers doing I/O for ever; `acknowledged` counts what succeeded."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.timeline: Timeline = world.timeline
        self.disks: dict[int, Disk] = {}
        self.acknowledged = 0
        self.failed = 0
        self.flushes_failed = 0
        self.stopped = False

    def add(self, disk: Disk) -> None:
        """Let its workers begin."""
        self.disks[disk.number] = disk
        for _ in range(disk.load.workers):
            self._next(disk)

    def remove(self, number: int) -> None:
        """The vdisk is about to be deleted: no more I/O is begun."""
        disk = self.disks.pop(number, None)
        if disk is not None:
            disk.gone = True

    def _next(self, disk: Disk) -> None:
        if disk.borrowed:
            disk.borrowed -= 1
            return
        pause = disk.load.pause_ns
        self.timeline.later(self.timeline.between(pause // 10, 2 * pause), self._begin, disk)

    def _register(self, disk: Disk, segment: int, block: int) -> DurableRegister:
        found = disk.registers.get((segment, block))
        if found is None:
            found = disk.registers[segment, block] = DurableRegister((disk.number, segment, block))
        return found

    def _begin(self, disk: Disk) -> None:
        if self.stopped or disk.gone:
            return
        random = self.timeline.random.random
        machine = disk.machines[int(random() * len(disk.machines))]
        segment = int(random() * disk.segment_count)
        kind, load = random(), disk.load
        if kind < load.writes:
            self._write(disk, machine, segment, int(random() * BLOCKS))
        elif kind < load.writes + load.reclaims:
            self._reclaim(disk, machine, segment, Operation.UNMAP if random() < 0.3 else Operation.WRITE_ZEROES)
        elif kind < load.writes + load.reclaims + load.flushes:
            self._flush(disk)
        else:
            self._read(disk, machine, segment, int(random() * BLOCKS))

    def _submit(self, disk: Disk, machine: Machine, part: Part, data: Any, done: Any, settled: Any) -> bool:
        """False if no host can reach the disk there: nothing has happened."""
        dataplane = machine.dataplane
        table = self.world.path(machine, disk.number)
        if table is None:
            return False
        if data is not None:
            disk.written[dataplane] = None
        dataplane.submit(table, HostIO(part, data, done, settled))
        return True

    def _tell(self, what: str, key: object, status: Status, value: object) -> None:
        self.timeline.note(f"{what} {key} {status.name} {value}")

    # --- one I/O at a chosen place -----------------------------------------------------------------------------------

    def read(self, vdisk: int, segment: int, block: int, machine: Machine | None = None) -> None:
        """A block is read there, or anywhere."""
        disk = self._borrowed(vdisk)
        if disk is not None:
            self._read(disk, machine or self.timeline.random.choice(disk.machines), segment, block)

    def write(self, vdisk: int, machine: Machine, segment: int, block: int) -> None:
        """A block is written there, unless something of an earlier write may be queued yet."""
        disk = self._borrowed(vdisk)
        if disk is not None:
            self._write(disk, machine, segment, block)

    def give_back(self, vdisk: int, machine: Machine, segment: int) -> None:
        """A segment is zeroed there, unless it is being written."""
        disk = self._borrowed(vdisk)
        if disk is not None:
            self._reclaim(disk, machine, segment, Operation.WRITE_ZEROES)

    def flush(self, vdisk: int) -> None:
        """All paths are flushed, unless they are being flushed."""
        disk = self._borrowed(vdisk)
        if disk is not None:
            self._flush(disk)

    def _borrowed(self, vdisk: int) -> Disk | None:
        disk = self.disks.get(vdisk)
        if disk is None or self.stopped:
            return None
        disk.borrowed += 1
        return disk

    # --- reading -----------------------------------------------------------------------------------------------------

    def _read(self, disk: Disk, machine: Machine, segment: int, block: int) -> None:
        register = self._register(disk, segment, block)
        floor = register.floor

        def done(io: HostIO, status: Status, value: Any) -> None:
            if status is Status.OK:
                self._check(disk, register, value[0], floor)
                self.acknowledged += 1
            else:
                self.failed += 1
            self._tell("read", register.key, status, value)
            self._next(disk)

        if not self._submit(disk, machine, Part(Operation.READ, segment, block, 1), None, done, lambda: None):
            self._next(disk)

    def _check(self, disk: Disk, register: DurableRegister, value: Any, floor: int) -> None:
        if value == ZEROES:
            numbers = register.zeroings
        elif isinstance(value, tuple) and value[0] == register.key:
            numbers = [value[1]]
        else:
            raise self.timeline.violated(f"block {register.key} reads foreign data: {value!r}")
        try:
            number = register.check(numbers, floor, f" ({register.durable} flushed)")
        except HistoryBroken as broken:
            raise self.timeline.violated(str(broken)) from None
        self._raise(disk, register, number)

    def _raise(self, disk: Disk, register: DurableRegister, number: int) -> None:
        if number > register.floor:
            register.floor = number
            if number > register.durable:
                disk.dirty[register] = None

    # --- writing -----------------------------------------------------------------------------------------------------

    def _write(self, disk: Disk, machine: Machine, segment: int, block: int) -> None:
        register = self._register(disk, segment, block)
        if register.busy:
            self._next(disk)
            return
        register.busy = True
        number = register.begin()

        def done(io: HostIO, status: Status, value: Any) -> None:
            if status is Status.OK:
                self.acknowledged += 1
                self._raise(disk, register, number)
            else:
                self.failed += 1
                if status in NEVER_BEGUN:
                    register.refused(number)
            self._tell("write", (register.key, number), status, "")
            self._next(disk)

        def settled() -> None:
            register.busy = False

        part = Part(Operation.WRITE, segment, block, 1)
        if not self._submit(disk, machine, part, [(register.key, number)], done, settled):
            register.take_back()
            register.busy = False
            self._next(disk)

    def _reclaim(self, disk: Disk, machine: Machine, segment: int, operation: Operation) -> None:
        """Whole segment: given back. WRITE ZEROES begins new lives as zeroes; UNMAP promises nothing."""
        registers = [self._register(disk, segment, block) for block in range(BLOCKS)]
        if any(register.busy for register in registers):
            self._next(disk)
            return
        for register in registers:
            register.busy = True
        numbers = [register.begin_zeroes() for register in registers]

        def done(io: HostIO, status: Status, value: Any) -> None:
            if status is Status.OK:
                self.acknowledged += 1
                for register, number in zip(registers, numbers, strict=True):
                    if operation is Operation.WRITE_ZEROES:
                        register.durable = max(register.durable, number)
                        self._raise(disk, register, number)
            else:
                self.failed += 1
            self._tell(operation.name, (disk.number, segment), status, "")
            self._next(disk)

        def settled() -> None:
            for register in registers:
                register.busy = False

        part = Part(operation, segment, 0, BLOCKS)
        if not self._submit(disk, machine, part, [ZEROES] * BLOCKS, done, settled):
            settled()
            self._next(disk)

    # --- flushing ----------------------------------------------------------------------------------------------------

    def _flush(self, disk: Disk) -> None:
        """At every path written through since the last flush that succeeded."""
        paths = [dataplane for dataplane in disk.written if not dataplane.dead]
        tables = [self.world.path(dataplane.machine, disk.number) for dataplane in paths]
        if disk.flushing or not paths or None in tables:
            self._next(disk)
            return
        disk.flushing = True
        covered = [(register, max(register.floor, register.owed), self._slot(register)) for register in disk.dirty]
        disk.written = {}
        left, bad, lossy = [len(paths)], [False], [False]
        reached: set[int] = {NOWHERE}

        def done(io: HostIO, status: Status, value: Any) -> None:
            bad[0] = bad[0] or status is not Status.OK
            lossy[0] = lossy[0] or io.lossy
            reached.update(io.targets)
            left[0] -= 1
            self._tell("flush", disk.number, status, io.lossy)
            if not left[0]:
                disk.flushing = False
                if bad[0]:
                    disk.written = dict.fromkeys([*paths, *disk.written])
                else:
                    self._flushed(disk, covered, reached)
                if lossy[0]:
                    self._forgive(disk)
                self._next(disk)

        for dataplane, table in zip(paths, tables, strict=True):
            assert table is not None
            dataplane.submit(table, HostIO(Part(Operation.FLUSH, -1, 0, 0), None, done, lambda: None))

    def _flushed(self, disk: Disk, covered: Iterable[tuple[DurableRegister, int, int]], reached: set[int]) -> None:
        self.acknowledged += 1
        for register, number, slot in covered:
            if slot not in reached:
                raise self.timeline.violated(f"a flush has not reached block {register.key}: container {slot}")
            register.durable = max(register.durable, number)
            register.floor = max(register.floor, register.durable)
            if register.owed <= register.durable:
                register.owed = 0
            if register.floor <= register.durable:
                disk.dirty.pop(register, None)

    def _slot(self, register: DurableRegister) -> int:
        """The container that has the block."""
        vdisk, segment, _ = register.key
        entry = self.world.checks.committed.entry(vdisk, segment)
        return slot_of(entry) if has_location(entry) else NOWHERE

    def _forgive(self, disk: Disk) -> None:
        """The host has been told that what it had not flushed may be lost."""
        self.flushes_failed += 1
        for register in disk.registers.values():
            register.owed = 0

    # --- failures ----------------------------------------------------------------------------------------------------

    def lost(self, container: SimContainer, places: list[Place]) -> None:
        """A cache is lost: these blocks may show older values now; but a flush must not hide that."""
        for segment, block in places:
            owner = self.world.checks.committed.owner.get((container.slot, segment))
            disk = self.disks.get(owner[0]) if owner is not None else None
            if disk is not None and owner is not None:
                register = self._register(disk, owner[1], block)
                if register.floor > register.durable:
                    if register.floor > register.unpromised:
                        register.owed = max(register.owed, register.floor)
                    register.floor = register.durable
                    disk.dirty[register] = None

    def path_died(self, machine: Machine) -> None:
        """A data plane is gone, with what it knew: its hosts must write again what they had not flushed."""
        for disk in self.disks.values():
            if machine in disk.machines:
                disk.written.pop(machine.dataplane, None)
                self._forgive(disk)
                for register in disk.dirty:
                    register.unpromised = register.floor
