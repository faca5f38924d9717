"""Simulated hosts: tagged blocks written and read through several agents, and the check that each block's history is
that of one register.

Each block has one writer at a time, so its values are ordered by their number. A read may return number n if n is not
older than any write acknowledged, or any number read, before the read began, and not newer than the last write begun.
A write that ended without a verdict may take effect while something of it is still queued anywhere; its block is left
alone until then. A write that was refused before it began must never be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapping.rules import Operation
from mapping.status import Status
from tests.sim.storage import BLOCKS, ZEROES
from tests.sim.timeline import MS, Timeline

if TYPE_CHECKING:
    from tests.sim.mapper import SimMapper

NEVER_BEGUN = frozenset(
    (Status.TIMEOUT, Status.NO_SPACE, Status.BUSY, Status.UNSUPPORTED, Status.WRITE_PROTECTED, Status.NO_CONTAINER)
)


class Register:
    """One block's history. Number 0 is "zeroes", as a new vdisk reads."""

    __slots__ = ("busy", "dead", "floor", "key", "newest", "zeroings")

    def __init__(self, key: tuple[int, int, int]) -> None:
        self.key = key
        self.newest = 0
        self.floor = 0
        self.busy = False
        self.dead: set[int] = set()
        self.zeroings = [0]


class Hosts:
    """Workers doing I/O forever; `acknowledged` counts what succeeded."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.registers: dict[tuple[int, int, int], Register] = {}
        self.paths: dict[int, list[SimMapper]] = {}
        self.sizes: dict[int, int] = {}
        self.acknowledged = 0
        self.failed = 0
        self.reclaims = True
        self.stopped = False

    def add(self, vdisk: int, segment_count: int, paths: list[SimMapper], workers: int) -> None:
        """Let `workers` use a vdisk through these agents."""
        self.paths[vdisk] = paths
        self.sizes[vdisk] = segment_count
        for _ in range(workers):
            self._next(vdisk)

    def _next(self, vdisk: int) -> None:
        self.timeline.later(self.timeline.random.randrange(25 * MS), lambda: self._begin(vdisk))

    def register(self, vdisk: int, segment: int, block: int) -> Register:
        key = (vdisk, segment, block)
        return self.registers.setdefault(key, Register(key))

    def _begin(self, vdisk: int) -> None:
        if self.stopped:
            return
        random = self.timeline.random
        path = random.choice(self.paths[vdisk])
        segment = random.randrange(self.sizes[vdisk])
        kind = random.random()
        if kind < 0.45:
            self._read(vdisk, path, segment, random.randrange(BLOCKS))
        elif kind < 0.96 or not self.reclaims:
            self._write(vdisk, path, segment, random.randrange(BLOCKS))
        else:
            self._zero(vdisk, path, segment)

    def _read(self, vdisk: int, path: SimMapper, segment: int, block: int) -> None:
        register = self.register(vdisk, segment, block)
        floor = register.floor

        def done(status: Status, value: object) -> None:
            if status is Status.OK:
                self._check(register, value, floor)
                self.acknowledged += 1
            else:
                self.failed += 1
            self._next(vdisk)

        path.submit(vdisk, Operation.READ, segment, block, 1, None, done)

    def _check(self, register: Register, value: object, floor: int) -> None:
        if value == ZEROES:
            numbers = register.zeroings
        elif isinstance(value, tuple) and value[0] == register.key:
            numbers = [value[1]]
        else:
            raise self.timeline.violated(f"block {register.key} reads foreign data: {value!r}")
        fitting = [n for n in numbers if floor <= n <= register.newest and n not in register.dead]
        if not fitting:
            raise self.timeline.violated(
                f"block {register.key} reads write {numbers}; {floor} was there before,"
                f" {register.newest} is the newest, refused were {sorted(register.dead)}"
            )
        register.floor = max(register.floor, fitting[0])

    def _write(self, vdisk: int, path: SimMapper, segment: int, block: int) -> None:
        register = self.register(vdisk, segment, block)
        if register.busy:
            self._next(vdisk)
            return
        register.busy = True
        register.newest += 1
        number = register.newest

        def done(status: Status, value: object) -> None:
            self._written([register], [number], status)
            self._next(vdisk)

        def settled() -> None:
            register.busy = False

        path.submit(vdisk, Operation.WRITE, segment, block, 1, [(register.key, number)], done, settled)

    def _written(self, registers: list[Register], numbers: list[int], status: Status) -> None:
        if status is Status.OK:
            self.acknowledged += 1
            for register, number in zip(registers, numbers, strict=True):
                register.floor = max(register.floor, number)
            return
        self.failed += 1
        if status in NEVER_BEGUN:
            for register, number in zip(registers, numbers, strict=True):
                register.dead.add(number)

    def _zero(self, vdisk: int, path: SimMapper, segment: int) -> None:
        """WRITE ZEROES of a whole segment: reclaims it. Afterwards its blocks begin a new life as zeroes."""
        registers = [self.register(vdisk, segment, block) for block in range(BLOCKS)]
        if any(register.busy for register in registers):
            self._next(vdisk)
            return
        for register in registers:
            register.busy = True
            register.newest += 1
            register.zeroings.append(register.newest)
        numbers = [register.newest for register in registers]

        def done(status: Status, value: object) -> None:
            unknown = Status.CANCELLED if status is Status.TIMEOUT else status
            self._written(registers, numbers, unknown)
            self._next(vdisk)

        def settled() -> None:
            for register in registers:
                register.busy = False

        path.submit(vdisk, Operation.WRITE_ZEROES, segment, 0, BLOCKS, [ZEROES] * BLOCKS, done, settled)
