"""The core's own clock work: actions due at a time, cancelled by forgetting them. No clock is read here."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class Timer:
    """One action, due once; `cancel` makes it do nothing."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[int], None]) -> None:
        self.action: Callable[[int], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Timers:
    """A heap of timers; equal times fire in the order they were set."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._order = count()

    def at(self, when_ns: int, action: Callable[[int], None]) -> Timer:
        """Call `action(now_ns)` at `when_ns` or soon after."""
        timer = Timer(action)
        heappush(self._heap, (when_ns, next(self._order), timer))
        return timer

    def next_deadline(self) -> int | None:
        """When the earliest live timer is due."""
        while self._heap and self._heap[0][2].action is None:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def fire(self, now_ns: int) -> None:
        """Run everything that is due."""
        while self._heap and self._heap[0][0] <= now_ns:
            timer = heappop(self._heap)[2]
            action, timer.action = timer.action, None
            if action is not None:
                action(now_ns)
