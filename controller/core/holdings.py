"""What one agent's table may hold, segment by segment, as far as the controller knows (design: writable last).

NOTHING: the entry is INVALID there. CURRENT: INVALID, or the truth (perhaps with NO-WRITE). UNKNOWN: perhaps an older
truth. It may only be lowered by an answered blocking command, a new epoch or a confirmed fence; a restarted controller
presumes UNKNOWN of everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

NOTHING: Final = 0
CURRENT: Final = 1
UNKNOWN: Final = 2
NAMES: Final = ("no", "current", "unknown")

_SHIFT: Final = 12
_CHUNK: Final = 1 << _SHIFT
_MASK: Final = _CHUNK - 1


class Holdings:
    """A byte per segment, in chunks; a missing chunk is all `default`."""

    __slots__ = ("chunks", "default")

    def __init__(self, default: int = NOTHING) -> None:
        self.default = default
        self.chunks: dict[int, bytearray] = {}

    def reset(self, default: int) -> None:
        """The same for every segment."""
        self.default = default
        self.chunks = {}

    def get(self, segment: int) -> int:
        chunk = self.chunks.get(segment >> _SHIFT)
        return self.default if chunk is None else chunk[segment & _MASK]

    def set(self, segment: int, value: int) -> None:
        self._chunk(segment >> _SHIFT)[segment & _MASK] = value

    def set_all(self, segments: Iterable[int], value: int) -> None:
        """The same for many."""
        chunks = self.chunks
        for segment in segments:
            chunk = chunks.get(segment >> _SHIFT) or self._chunk(segment >> _SHIFT)
            chunk[segment & _MASK] = value

    def _chunk(self, number: int) -> bytearray:
        chunk = self.chunks.get(number)
        if chunk is None:
            chunk = self.chunks[number] = bytearray([self.default]) * _CHUNK
        return chunk

    def fill(self, start: int, count: int, value: int) -> None:
        """The same for a range."""
        for number, first, stop in _pieces(start, count):
            self._chunk(number)[first:stop] = bytes([value]) * (stop - first)

    def raise_to_current(self, start: int, count: int) -> None:
        """The truth was sent for a range: NOTHING becomes CURRENT, UNKNOWN stays."""
        for number, first, stop in _pieces(start, count):
            chunk = self._chunk(number)
            chunk[first:stop] = chunk[first:stop].replace(b"\0", b"\1")

    def positions(self, value: int, start: int, count: int) -> list[int]:
        """Every segment of the range with this value."""
        found: list[int] = []
        for number, first, stop in _pieces(start, count):
            chunk, base = self.chunks.get(number), number * _CHUNK
            if chunk is None:
                if self.default == value:
                    found.extend(range(base + first, base + stop))
                continue
            at = chunk.find(value, first, stop)
            while at >= 0:
                found.append(base + at)
                at = chunk.find(value, at + 1, stop)
        return found

    def known_held(self) -> int:
        """How many segments it may hold, or -1 if that is unknown."""
        if self.default != NOTHING:
            return -1
        return sum(_CHUNK - chunk.count(NOTHING) for chunk in self.chunks.values())


def _pieces(start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """(chunk number, first, stop) of a range."""
    end = start + count
    while start < end:
        first = start & _MASK
        stop = min(_CHUNK, first + end - start)
        yield start >> _SHIFT, first, stop
        start += stop - first
