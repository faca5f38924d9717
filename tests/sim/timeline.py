"""The simulated world's time: one heap of things to do, one random source, one trace. Same seed, same trace."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

MS = 1_000_000
SECOND = 1000 * MS


class Violation(AssertionError):
    """An invariant does not hold; the text names it, the seed and the time."""


class Timeline:
    """`at` and `later` schedule; `run_until` runs. Equal times run in the order they were scheduled."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now_ns = 1_000 * SECOND
        self.events = 0
        self.tail: list[str] = []
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._digest = hashlib.sha256()

    def at(self, when_ns: int, action: Callable[[], None]) -> None:
        self._order += 1
        heappush(self._heap, (max(when_ns, self.now_ns), self._order, action))

    def later(self, delay_ns: int, action: Callable[[], None]) -> None:
        self.at(self.now_ns + delay_ns, action)

    def run_until(self, when_ns: int, enough: Callable[[], bool] = lambda: False) -> bool:
        """Run to a time, or until `enough`; True if that was met."""
        while self._heap and self._heap[0][0] <= when_ns:
            self.now_ns, _, action = heappop(self._heap)
            self.events += 1
            action()
            if enough():
                return True
        self.now_ns = max(self.now_ns, when_ns)
        return enough()

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        line = f"{self.now_ns} {text}"
        self._digest.update(line.encode())
        self.tail.append(line)
        if len(self.tail) > 400:
            del self.tail[:200]

    def digest(self) -> str:
        """What the whole trace was."""
        return self._digest.hexdigest()

    def violated(self, text: str) -> Violation:
        last = "\n  ".join(self.tail[-60:])
        return Violation(f"seed {self.seed} at {self.now_ns / SECOND:.6f} s: {text}\n  {last}")


class Pipe:
    """One direction of a connection: messages arrive in order, each after its own delay; nothing after `cut`."""

    def __init__(self, timeline: Timeline, deliver: Callable[[object], None], delay: Callable[[], int]) -> None:
        self._timeline = timeline
        self._deliver = deliver
        self._delay = delay
        self._free_ns = 0
        self.is_cut = False

    def send(self, item: object) -> None:
        if self.is_cut:
            return
        self._free_ns = max(self._free_ns, self._timeline.now_ns + self._delay())
        self._timeline.at(self._free_ns, lambda: None if self.is_cut else self._deliver(item))

    def cut(self) -> None:
        self.is_cut = True
