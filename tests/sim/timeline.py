"""The simulated world's time: one heap of things to do, one random source, one trace. Same seed, same trace."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any, Final

MS: Final = 1_000_000
SECOND: Final = 1000 * MS
TAIL_LINES: Final = 80
_BATCH_LINES: Final = 512


class Violation(AssertionError):
    """An invariant does not hold; the text names it, the seed, the time and the last steps."""


class Timeline:
    """`at` and `later` schedule; `run_until` runs. Equal times run in the order they were scheduled."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now_ns = 1_000 * SECOND
        self.steps = 0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.after_step: Callable[[], None] = lambda: None
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._digest = hashlib.sha256()
        self._lines: list[str] = []

    def at(self, when_ns: int, action: Callable[..., None], *args: Any) -> None:
        """Call `action(*args)` at a time, or now if that has passed."""
        self._order += 1
        heappush(self._heap, (when_ns if when_ns > self.now_ns else self.now_ns, self._order, action, args))

    def later(self, delay_ns: int, action: Callable[..., None], *args: Any) -> None:
        self.at(self.now_ns + delay_ns, action, *args)

    def run_until(self, when_ns: int, enough: Callable[[], bool] = lambda: False) -> bool:
        """Run to a time, or until `enough`; True if that was met."""
        heap = self._heap
        while heap and heap[0][0] <= when_ns:
            self.now_ns, _, action, args = heappop(heap)
            self.steps += 1
            action(*args)
            self.after_step()
            if enough():
                return True
        self.now_ns = max(self.now_ns, when_ns)
        return enough()

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def between(self, least_ns: int, most_ns: int) -> int:
        """A random whole number, both ends possible."""
        return least_ns + int(self.random.random() * (most_ns - least_ns + 1))

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        line = f"{self.now_ns} {text}"
        self.tail.append(line)
        self._lines.append(line)
        if len(self._lines) >= _BATCH_LINES:
            self._settle()

    def _settle(self) -> None:
        self._digest.update("\n".join(self._lines).encode())
        self._lines.clear()

    def digest(self) -> str:
        """What the whole trace was, and how many steps made it."""
        self._settle()
        digest = self._digest.copy()
        digest.update(f"{self.now_ns} {self.steps}".encode())
        return digest.hexdigest()

    def violated(self, text: str) -> Violation:
        last = "\n  ".join(self.tail)
        return Violation(f"seed {self.seed} at {self.now_ns / SECOND:.6f} s: {text}\n  {last}")


class Clock:
    """CLOCK_MONOTONIC of one machine: an offset of its own, and a rate within the drift bound (parts per million)."""

    def __init__(self, timeline: Timeline, drift_ppm: int) -> None:
        self._timeline = timeline
        self.offset_ns = timeline.random.randrange(10**6) * SECOND
        self.ppm = timeline.between(-drift_ppm, drift_ppm)

    def __call__(self) -> int:
        now_ns = self._timeline.now_ns
        return self.offset_ns + now_ns + now_ns * self.ppm // 1_000_000

    def world_time(self, machine_ns: int) -> int:
        """The earliest world time at which this clock shows `machine_ns` or more."""
        return -(-(machine_ns - self.offset_ns) * 1_000_000 // (1_000_000 + self.ppm)) + 1


class Alarm:
    """One machine's timer: `set(deadline)` on its clock; calls `ring` then or a little later, never earlier."""

    def __init__(self, timeline: Timeline, clock: Clock, ring: Callable[[], None]) -> None:
        self._timeline = timeline
        self._clock = clock
        self._ring = ring
        self._armed: int | None = None

    def set(self, deadline_ns: int | None) -> None:
        if deadline_ns is None:
            return
        when = max(self._clock.world_time(deadline_ns), self._timeline.now_ns + MS // 10)
        if self._armed is None or when < self._armed:
            self._armed = when
            self._timeline.at(when, self._rings, when)

    def _rings(self, when: int) -> None:
        if when == self._armed:
            self._armed = None
            self._ring()
