"""Hosts doing tagged random I/O on shared and private disks, with retries on every path, for as long as they are told.

An I/O that fails is done again, on any path of its host, until it succeeds; a write now and then is given up instead:
its outcome stays unknown. An I/O that does not get through although nothing is wrong any more is a violation.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from dataplane.embedded.nvme_host import NvmeStatusError, NvmeTcpHost
from fabric.nvme_tcp import spec
from tests.chaos.blocks import BLOCK, Attempt, Block, seen, tagged
from tests.chaos.weather import Weather
from tests.cluster.cluster import MIB, pause
from tests.histories.register import HistoryBroken

RETRY_S: Final = 0.03
GIVE_UP: Final = 0.15
SETTLE_S: Final = 0.1
STUCK_S: Final = 90.0
SMALL: Final = 16
TOLD_S: Final = 0.5
ATTEMPTS_KEPT: Final = 40
NEVER_BEGUN: Final = frozenset({spec.Status.NAMESPACE_NOT_READY})
"""It was parked or queued for too long: it has not been executed and will not be."""
UNSETTLED: Final = frozenset({spec.Status.HOST_PATH_ERROR, spec.Status.WRITE_FAULT, spec.Status.INTERNAL_PATH_ERROR})
"""Nobody knows whether something of it is still under way."""


@dataclass(eq=False)
class Path:
    """A host's way to a disk by one agent."""

    host: int
    agent: str
    connection: NvmeTcpHost

    def __str__(self) -> str:
        return f"host {self.host} by {self.agent}"


@dataclass(eq=False)
class Disk:
    """A virtual disk; `paths` by host."""

    number: int
    name: str
    agents: tuple[str, ...]
    blocks: int
    paths: dict[int, list[Path]] = field(default_factory=dict)
    known: dict[int, Block] = field(default_factory=dict)

    def block(self, number: int) -> Block:
        found = self.known.get(number)
        if found is None:
            found = self.known[number] = Block(self.number, number)
        return found


class Violation(Exception):
    """What must not be; `history`: the block's, if it is about one."""

    def __init__(self, text: str, history: list[str] | None = None) -> None:
        super().__init__(text)
        self.history = history or []


@dataclass
class Counts:
    """What has been done."""

    ios: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    given_up: int = 0
    refused: int = 0
    longest_s: float = 0.0
    longest: str = ""
    longest_attempts: list[str] = field(default_factory=list)
    blocks_checked: int = 0

    def document(self) -> dict[str, Any]:
        """For the report."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


class Load:
    """Workers of every host on every disk it has; `stop` lets each finish what it has begun."""

    def __init__(self, seed: int, disks: list[Disk], weather: Weather, workers: int, pause_s: float) -> None:
        self.disks = disks
        self.counts = Counts()
        self._seed = seed
        self._weather = weather
        self._workers = workers
        self._pause_s = pause_s
        self._going = True
        self._unsettled: dict[Block, None] = {}

    async def run(self) -> None:
        """Until `stop`. Raises Violation."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._settle())
                for disk in self.disks:
                    for host in disk.paths:
                        for number in range(self._workers):
                            chance = random.Random(f"{self._seed} {disk.name} {host} {number}")
                            group.create_task(self.worker(disk, host, chance).run())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def worker(self, disk: Disk, host: int, chance: random.Random) -> _Worker:
        """Does I/O by one host on one disk."""
        return _Worker(self, disk, host, chance)

    def stop(self) -> None:
        self._going = False

    @property
    def going(self) -> bool:
        return self._going

    @property
    def pause_s(self) -> float:
        return self._pause_s

    def now(self) -> float:
        return self._weather.now()

    def unsettled(self, block: Block, attempts: list[Attempt]) -> None:
        """Leave the block alone until none of these can come any more."""
        block.unsettled += attempts
        self._unsettled[block] = None

    async def _settle(self) -> None:
        while self._going:
            await pause(SETTLE_S)
            for block in list(self._unsettled):
                block.unsettled = [one for one in block.unsettled if not self._settled(one)]
                if not block.unsettled:
                    del self._unsettled[block]
                    block.busy = False

    def _settled(self, attempt: Attempt) -> bool:
        return self._weather.fair_since(attempt.path.agent, attempt.lost_s)

    async def insist(self, name: str, path: Callable[[], Path], io: Callable[[Path], Awaitable[None]]) -> None:
        """Do it on one path after the other until it succeeds."""
        began, attempts = self.now(), list[str]()
        while True:
            chosen, at = path(), self.now()
            try:
                await io(chosen)
                break
            except NvmeStatusError as error:
                self.failed(attempts, chosen, at, error)
            self.stuck(name, began, chosen)
            await pause(RETRY_S)
        self.took(name, began, attempts)

    def stuck(self, name: str, began: float, path: Path) -> None:
        """Raise Violation if it should have got through by now."""
        now = self.now()
        if now - max(began, self._weather.fair_from()) > STUCK_S:
            raise Violation(f"{name} has not got through for {now - began:.1f} s, on {path} at last")

    def failed(self, attempts: list[str], path: Path, began: float, error: NvmeStatusError) -> None:
        """An attempt has ended without success."""
        text = spec.status_text(error.status)
        self.counts.retries += 1
        self.counts.statuses[text] += 1
        if self.now() - began > TOLD_S:
            attempts.append(f"{began:.1f} to {self.now():.1f} s {path}: {text}")

    def took(self, name: str, began: float, attempts: list[str]) -> None:
        """It has succeeded."""
        seconds = self.now() - began
        if seconds > self.counts.longest_s:
            self.counts.longest_s, self.counts.longest = seconds, f"{name}, begun at {began:.1f} s"
            self.counts.longest_attempts = attempts[:ATTEMPTS_KEPT]

    async def check_all(self) -> None:
        """Every block that was ever used, by every path. Raises Violation."""
        for disk in self.disks:
            for paths in disk.paths.values():
                for path in paths:
                    await self.check_disk(disk, path)

    async def check_disk(self, disk: Disk, path: Path) -> None:
        """Every block, by this path. Raises Violation."""
        step = 2 * MIB // BLOCK
        for start in range(0, disk.blocks, step):
            count = min(step, disk.blocks - start)
            data = memoryview(b"")

            async def io(chosen: Path, start: int = start, count: int = count) -> None:
                nonlocal data
                data = await chosen.connection.read(1, start * BLOCK, count * BLOCK)

            await self.insist(f"the last read of {disk.name} at {start}", lambda: path, io)
            for index in range(count):
                block = disk.block(start + index)
                self.check(block, bytes(data[index * BLOCK : (index + 1) * BLOCK]), block.floor, path)

    def check(self, block: Block, data: bytes, floor: int, path: Path) -> None:
        """What a read gave. Raises Violation."""
        self.counts.blocks_checked += 1
        try:
            number = seen(block, data, floor)
        except HistoryBroken as broken:
            block.note(self.now(), f"READ by {path}: {broken}")
            raise Violation(str(broken), list(block.history)) from None
        if block.newest:
            block.note(self.now(), f"read {number} by {path}")


class _Worker:
    """One I/O after the other by one host on one disk."""

    def __init__(self, load: Load, disk: Disk, host: int, chance: random.Random) -> None:
        self._load = load
        self._disk = disk
        self._host = host
        self._chance = chance
        self._paths = disk.paths[host]

    async def run(self) -> None:
        while self._load.going:
            await self.step()

    async def step(self) -> None:
        """One I/O, after a pause."""
        chance = self._chance
        await pause(chance.uniform(0, 2 * self._load.pause_s))
        kind = chance.random()
        if kind < 0.45:
            await self._read(*self._range())
        elif kind < 0.88:
            await self._write(*self._range())
        elif kind < 0.92:
            await self._flush()
        else:
            await self._zero(chance.random() < 0.5)

    def _path(self) -> Path:
        return self._chance.choice(self._paths)

    def _range(self) -> tuple[int, int]:
        chance, most = self._chance, self._disk.blocks
        sizes = chance.choices(((1, 1), (2, 48), (49, 600)), (40, 54, 6))[0]
        count = chance.randint(*sizes)
        return chance.randrange(most - count), count

    def _count(self, kind: str, blocks: int) -> None:
        self._load.counts.ios[kind] += 1
        self._load.counts.bytes[kind] += blocks * BLOCK

    async def _read(self, start: int, count: int) -> None:
        load, blocks = self._load, [self._disk.block(start + index) for index in range(count)]

        async def io(path: Path) -> None:
            floors = [block.floor for block in blocks]
            data = bytes(await path.connection.read(1, start * BLOCK, count * BLOCK))
            for index, block in enumerate(blocks):
                load.check(block, data[index * BLOCK : (index + 1) * BLOCK], floors[index], path)

        await load.insist(f"a read of {count} at {start} of {self._disk.name}", self._path, io)
        self._count("read", count)

    async def _flush(self) -> None:
        """A flush may fail for good reason (something could be lost); that is an answer too."""
        path = self._path()
        try:
            await path.connection.flush(1)
        except NvmeStatusError as error:
            self._load.counts.statuses["flush: " + spec.status_text(error.status)] += 1
        else:
            self._count("flush", 0)

    async def _write(self, start: int, count: int) -> None:
        blocks = self._take(start, count)
        if blocks:
            numbers = [block.begin() for block in blocks]
            data = b"".join(
                tagged(self._disk.number, start + index, numbers[index], self._host) for index in range(count)
            )

            async def io(path: Path) -> None:
                await path.connection.write(1, start * BLOCK, data)

            await self._change("write", start, blocks, numbers, io, promises=True)

    async def _zero(self, unmap: bool) -> None:
        """A whole segment, or a few blocks."""
        chance, segment = self._chance, MIB // BLOCK
        start, count = self._range()
        if chance.random() < 0.6:
            start, count = start // segment * segment, segment
        blocks = self._take(start, count)
        if not blocks:
            return
        numbers = [block.begin_zeroes() for block in blocks]

        async def io(path: Path) -> None:
            if unmap:
                await path.connection.deallocate(1, [(start * BLOCK, count * BLOCK)])
            else:
                await path.connection.write_zeroes(1, start * BLOCK, count * BLOCK)

        await self._change("unmap" if unmap else "zero", start, blocks, numbers, io, promises=not unmap)

    def _take(self, start: int, count: int) -> list[Block]:
        """The blocks, if nobody else writes one of them."""
        blocks = [self._disk.block(start + index) for index in range(count)]
        if any(block.busy for block in blocks):
            return []
        for block in blocks:
            block.busy = True
        return blocks

    async def _change(
        self,
        kind: str,
        start: int,
        blocks: list[Block],
        numbers: list[int],
        io: Callable[[Path], Awaitable[None]],
        promises: bool,
    ) -> None:
        load, count = self._load, len(blocks)
        began, attempts, tries, clean, told = load.now(), list[Attempt](), 0, 0, list[str]()
        name = f"a {kind} of {count} at {start} of {self._disk.name}"
        self._note(blocks, numbers, f"{kind} of {count} at {start} begins")
        while True:
            path, tries, at = self._path(), tries + 1, load.now()
            try:
                await io(path)
            except NvmeStatusError as error:
                code = error.status & spec.STATUS_MASK
                load.failed(told, path, at, error)
                self._note(blocks, numbers, f"{kind} ends by {path}: {spec.status_text(error.status)}")
                if code in UNSETTLED:
                    attempts.append(Attempt(path, load.now()))
                clean += code in NEVER_BEGUN
            else:
                attempts = [attempt for attempt in attempts if attempt.path is not path]
                break
            if self._chance.random() < GIVE_UP:
                self._given_up(kind, start, blocks, numbers, attempts, clean == tries)
                return
            load.stuck(name, began, path)
            await pause(RETRY_S)
        load.took(name, began, told)
        self._note(blocks, numbers, f"{kind} acknowledged by {path}")
        for block, number in zip(blocks, numbers, strict=True):
            if promises:
                block.floor = max(block.floor, number)
        self._count(kind, count)
        self._let_go(blocks, attempts)

    def _given_up(
        self, kind: str, start: int, blocks: list[Block], numbers: list[int], attempts: list[Attempt], never: bool
    ) -> None:
        """No verdict, and nobody tries again. `never`: every attempt was refused before it began."""
        load = self._load
        load.counts.given_up += 1
        self._note(blocks, numbers, f"{kind} given up")
        segment, last = MIB // BLOCK, start + len(blocks) - 1
        if never and kind == "write" and len(blocks) <= SMALL and start // segment == last // segment:
            load.counts.refused += 1
            for block, number in zip(blocks, numbers, strict=True):
                block.refused(number)
        self._let_go(blocks, attempts)

    def _let_go(self, blocks: list[Block], attempts: list[Attempt]) -> None:
        for block in blocks:
            if attempts:
                self._load.unsettled(block, list(attempts))
            else:
                block.busy = False

    def _note(self, blocks: list[Block], numbers: list[int], text: str) -> None:
        now = self._load.now()
        for block, number in zip(blocks, numbers, strict=True):
            block.note(now, f"{number}: {text}")
