"""What goes wrong, when, and for how long: a pure function of the seed, so that a run can be had again.

A fault names what it needs of the sandbox (`Needs`); one that the sandbox cannot do is never planned. At most
AT_ONCE_MAX faults hold at the same time, no two of the same victim, and now and then nothing is wrong for CALM_S, so
that everything gets the chance to come back.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from typing import Final

AT_ONCE_MAX: Final = 3
CALM_S: Final = 4.0
STORM_S: Final = (6.0, 18.0)
GAP_S: Final = (0.2, 2.5)


class Kind(Enum):
    """What is done; all but KILL end by being undone."""

    KILL = "kill"
    """SIGKILL; a daemon is started again at the end, a data plane by its daemon."""
    MACHINE = "machine"
    """Daemon and data plane are killed at once; the daemon is started again at the end."""
    PAUSE = "pause"
    """SIGSTOP for less than a lease."""
    STOP = "stop"
    """SIGSTOP for more than a lease."""
    CUT = "cut"
    """Nothing goes between two machines."""
    ONE_WAY = "one-way cut"
    """Nothing goes from one machine to the other; the other way all is well."""
    ISOLATE = "isolate"
    """Nothing goes between a machine and any other, the hosts included."""
    FREEZE = "freeze"
    """A file system answers no write and no flush, and then does all of them: a slow disk."""
    FILL = "fill"
    """A file system is full."""
    SLOW = "slow"
    """Every I/O of a container takes a while longer (bdev_delay under it)."""
    ERRORS = "errors"
    """Some I/O of a container fails (bdev_error under it)."""
    FENCE = "fence"
    """An operator fences a mapping agent; it comes back by itself."""
    DRAIN = "drain"
    """An operator drains a mapping agent, and undrains it at the end."""


@dataclass(frozen=True)
class Sight:
    """What can go wrong here. `processes`: "a" is agent a's daemon, "a.target" its data plane."""

    processes: tuple[str, ...]
    machines: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    disks: tuple[str, ...]
    containers: tuple[str, ...]
    mappers: tuple[str, ...]
    freezes: bool
    lease_s: float


@dataclass(frozen=True)
class Fault:
    """`at_s` and `end_s`: seconds from the begin of the load. `size`: microseconds of SLOW, count of ERRORS."""

    number: int
    kind: Kind
    victim: str
    other: str
    at_s: float
    end_s: float
    size: int = 0

    def __str__(self) -> str:
        between = {Kind.CUT: " | ", Kind.ONE_WAY: " -/> ", Kind.FENCE: " by the ", Kind.DRAIN: " by the "}
        arrow = between.get(self.kind, "")
        size = f" {self.size}" if self.size else ""
        return f"{self.kind.value} {self.victim}{arrow}{self.other}{size} for {self.end_s - self.at_s:.2f} s"


def plan(seed: int, seconds: float, sight: Sight) -> list[Fault]:
    """Every fault of a run, in the order in which they begin; all have ended at `seconds`."""
    return _Planner(seed, seconds, sight).plan()


class _Planner:
    def __init__(self, seed: int, seconds: float, sight: Sight) -> None:
        self._chance = random.Random(seed)
        self._seconds = seconds
        self._sight = sight
        self._faults: list[Fault] = []
        self._held: dict[str, float] = {}
        self._kinds: list[tuple[Kind, float]] = []
        self._pace = 1.0

    def _possible(self) -> list[tuple[Kind, float]]:
        sight = self._sight
        return [
            *([(Kind.KILL, 6.0), (Kind.PAUSE, 3.0), (Kind.STOP, 2.0)] if sight.processes else []),
            *([(Kind.MACHINE, 2.0)] if sight.machines else []),
            *([(Kind.CUT, 3.0), (Kind.ONE_WAY, 3.0), (Kind.ISOLATE, 2.0)] if sight.links else []),
            *([(Kind.FILL, 1.0)] if sight.disks else []),
            *([(Kind.FREEZE, 1.0)] if sight.disks and sight.freezes else []),
            *([(Kind.SLOW, 1.5), (Kind.ERRORS, 1.0)] if sight.containers else []),
            *([(Kind.FENCE, 0.7), (Kind.DRAIN, 0.7)] if sight.mappers else []),
        ]

    def plan(self) -> list[Fault]:
        chance, now = self._chance, self._chance.uniform(0.5, 1.5)
        storm_end = self._storm(now)
        while now < self._seconds:
            if now > storm_end:
                now = max([now, *self._held.values()]) + CALM_S
                storm_end = self._storm(now)
                continue
            held = [end for end in self._held.values() if end > now]
            if len(held) >= AT_ONCE_MAX:
                now = min(held) + 0.01
                continue
            self._add(now)
            now += chance.uniform(*GAP_S) * self._pace
        return self._faults

    def _storm(self, now: float) -> float:
        """Each storm has a character of its own: how fast it blows, and what of; its end."""
        chance = self._chance
        self._pace = chance.choice((0.25, 1.0, 1.0))
        self._kinds = [(kind, weight * chance.choice((0.05, 1.0, 1.0, 4.0))) for kind, weight in self._possible()]
        return now + chance.uniform(*STORM_S)

    def _add(self, now: float) -> None:
        chance = self._chance
        kinds, weights = zip(*self._kinds, strict=True)
        kind: Kind = chance.choices(kinds, weights)[0]
        victim, other = self._victim(kind)
        key = f"{victim} {other}".strip()
        if self._held.get(key, 0) > now:
            return
        end = min(now + self._length(kind), self._seconds)
        if end - now < 0.05:
            return
        size = {Kind.SLOW: chance.randrange(10_000, 400_000), Kind.ERRORS: chance.randrange(1, 40)}.get(kind, 0)
        self._held[key] = end
        self._faults.append(Fault(len(self._faults), kind, victim, other, round(now, 3), round(end, 3), size))

    def _victim(self, kind: Kind) -> tuple[str, str]:
        chance, sight = self._chance, self._sight
        if kind in (Kind.KILL, Kind.PAUSE, Kind.STOP):
            return chance.choice(sight.processes), ""
        if kind in (Kind.MACHINE, Kind.ISOLATE):
            return chance.choice(sight.machines), ""
        if kind in (Kind.FENCE, Kind.DRAIN):
            return chance.choice(sight.mappers), "operator"
        if kind in (Kind.CUT, Kind.ONE_WAY):
            one, other = chance.choice(sight.links)
            return (one, other) if chance.random() < 0.5 or kind is Kind.CUT else (other, one)
        return chance.choice(sight.disks if kind in (Kind.FILL, Kind.FREEZE) else sight.containers), ""

    def _length(self, kind: Kind) -> float:
        chance, lease = self._chance, self._sight.lease_s
        if kind in (Kind.KILL, Kind.MACHINE):
            return chance.uniform(0.06, 1.5) if chance.random() < 0.8 else chance.uniform(lease, 2.5 * lease)
        if kind is Kind.PAUSE:
            return chance.uniform(0.1, 0.8 * lease)
        if kind is Kind.STOP:
            return chance.uniform(1.1 * lease, 3 * lease)
        return chance.uniform(0.3, 3 * lease)
