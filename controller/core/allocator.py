"""Thin allocation: which zeroed segment of which container a write gets (design: no data of one tenant to another).

Only ZEROED segments are given out. Each container keeps its zeroed and its free (content unknown) segments as runs;
what is taken from a run is reserved in memory only, so a crash gives it back. Spread policy: the container with the
most zeroed segments, in contiguous extents, so that a sequential writer gets a sequential container.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from controller.store.records import SegmentState

_ZEROED_RUN: Final = re.compile(bytes([SegmentState.ZEROED]) + b"+")
_FREE_RUN: Final = re.compile(bytes([SegmentState.FREE]) + b"+")
Run = tuple[int, int]


class Runs:
    """Segments as (start, count) runs, taken from the end of the newest run's front; `total` of them."""

    __slots__ = ("runs", "total")

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self.runs = list(runs)
        self.runs.reverse()
        self.total = sum(count for _, count in self.runs)

    def take(self, count: int) -> Run | None:
        """At most `count` contiguous segments."""
        if not self.runs or count <= 0:
            return None
        start, length = self.runs[-1]
        if length <= count:
            self.runs.pop()
            count = length
        else:
            self.runs[-1] = (start + count, length - count)
        self.total -= count
        return start, count

    def give(self, start: int, count: int) -> None:
        """Put segments back, or add new ones; joined with the newest run if adjacent."""
        if not count:
            return
        self.total += count
        if self.runs:
            first, length = self.runs[-1]
            if first + length == start:
                self.runs[-1] = (first, length + count)
                return
            if start + count == first:
                self.runs[-1] = (start, count + length)
                return
        self.runs.append((start, count))


class Space:
    """The allocatable segments of one container."""

    __slots__ = ("free", "slot", "zeroed")

    def __init__(self, slot: int, states: bytes | bytearray) -> None:
        self.slot = slot
        self.zeroed = Runs((match.start(), match.end() - match.start()) for match in _ZEROED_RUN.finditer(states))
        self.free = Runs((match.start(), match.end() - match.start()) for match in _FREE_RUN.finditer(states))


class Extent:
    """Zeroed segments reserved for one table's next writes: `next` up to `end` of container `slot`."""

    __slots__ = ("end", "next", "slot")

    def __init__(self) -> None:
        self.slot = 0
        self.next = 0
        self.end = 0


class Allocator:
    """All containers' space. Slots come and go with `add` and `remove`."""

    def __init__(self, extent_segments: int) -> None:
        self.spaces: dict[int, Space] = {}
        self._extent_segments = extent_segments
        self._extents: set[Extent] = set()

    def add(self, space: Space) -> None:
        self.spaces[space.slot] = space

    def remove(self, slot: int) -> None:
        """Nothing of this container is given out any more; what tables have reserved there is taken back."""
        for extent in [extent for extent in self._extents if extent.slot == slot]:
            self.release(extent)
        self.spaces.pop(slot, None)

    def zeroed(self, slots: Iterable[int]) -> int:
        """Zeroed segments not reserved, over some slots."""
        return sum(self.spaces[slot].zeroed.total for slot in slots if slot in self.spaces)

    def refill(self, extent: Extent, slots: Iterable[int]) -> bool:
        """Give an empty extent new segments out of these slots; False if there is none."""
        assert extent.next == extent.end, "an extent was refilled with segments left"
        slots = tuple(slots)
        if self._refill(extent, slots):
            return True
        return self._recall(slots) and self._refill(extent, slots)

    def _refill(self, extent: Extent, slots: tuple[int, ...]) -> bool:
        best = max(
            (self.spaces[slot] for slot in slots if slot in self.spaces),
            key=lambda space: (space.zeroed.total, -space.slot),
            default=None,
        )
        if best is None or not best.zeroed.total:
            return False
        run = best.zeroed.take(max(1, min(self._extent_segments, best.zeroed.total // 8)))
        assert run is not None
        extent.slot = best.slot
        extent.next, extent.end = run[0], run[0] + run[1]
        self._extents.add(extent)
        return True

    def reserved(self) -> list[tuple[int, int, int]]:
        """(slot, start, count) of what tables have reserved and not used."""
        return [(one.slot, one.next, one.end - one.next) for one in self._extents if one.next < one.end]

    def release(self, extent: Extent) -> None:
        """Give an extent's rest back."""
        if extent.next < extent.end:
            self.spaces[extent.slot].zeroed.give(extent.next, extent.end - extent.next)
        extent.next = extent.end = 0
        self._extents.discard(extent)

    def _recall(self, slots: tuple[int, ...]) -> bool:
        """Space is short: take back what other tables have reserved in these slots."""
        reserved = [extent for extent in self._extents if extent.slot in slots and extent.next < extent.end]
        for extent in sorted(reserved, key=lambda extent: (extent.slot, extent.next)):
            self.release(extent)
        return bool(reserved)
