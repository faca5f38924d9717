"""Per-channel generations: how a blocking command knows that older I/O has ended without stopping newer I/O [0036].

Each channel counts its begun parts in one of two generations. A barrier turns every channel to the other one and is
reached when the old generation has drained. Barriers that arrive meanwhile wait and share the next turn.
"""

from __future__ import annotations

from typing import Any

from mapping.effects import BarrierReached
from mapping.status import Status


class Generations:
    """`channels`: how many I/O channels count by themselves. Tokens are the caller's."""

    def __init__(self, channels: int = 1) -> None:
        self.counts = [[0, 0] for _ in range(channels)]
        self.current = 0
        self._draining: list[tuple[Any, int]] = []
        self._waiting: list[tuple[Any, int]] = []
        self._turned = False

    def begin(self, channel: int) -> int:
        """Count one part in the channel's current generation, and return it."""
        generation = self.current
        self.counts[channel][generation] += 1
        return generation

    def end(self, channel: int, generation: int) -> list[BarrierReached]:
        """Uncount it; the barriers that this completes."""
        counts = self.counts[channel]
        assert counts[generation] > 0, "a part ended twice"
        counts[generation] -= 1
        if counts[generation] or not self._turned or generation == self.current:
            return []
        return self._settle()

    def barrier(self, token: Any, deadline_ns: int) -> list[BarrierReached]:
        """Wait for everything begun so far, until `deadline_ns`."""
        self._waiting.append((token, deadline_ns))
        return [] if self._turned else self._settle()

    def _settle(self) -> list[BarrierReached]:
        reached: list[BarrierReached] = []
        while True:
            if self._turned:
                old = 1 - self.current
                if any(counts[old] for counts in self.counts):
                    return reached
                reached += [BarrierReached(token, Status.OK) for token, _ in self._draining]
                self._draining, self._turned = [], False
            if not self._waiting:
                return reached
            self._draining, self._waiting = self._waiting, []
            self._turned = True
            self.current = 1 - self.current

    def tick(self, now_ns: int) -> list[BarrierReached]:
        """Barriers whose deadline has passed; what they waited for is still counted."""
        late = [token for queue in (self._draining, self._waiting) for token, deadline in queue if deadline <= now_ns]
        if late:
            self._draining = [item for item in self._draining if item[1] > now_ns]
            self._waiting = [item for item in self._waiting if item[1] > now_ns]
        return [BarrierReached(token, Status.BARRIER_TIMEOUT) for token in late]

    def next_deadline(self) -> int | None:
        """The earliest deadline of a barrier, if one waits."""
        return min((deadline for _, deadline in self._draining + self._waiting), default=None)

    @property
    def begun(self) -> int:
        """How many parts have begun and not ended."""
        return sum(sum(counts) for counts in self.counts)
