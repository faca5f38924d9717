"""The mapping table: a u64 per segment in anonymous memory [0016].

Memory is reserved, not used, until an entry is written: a petabyte's table is free while it is empty. A wipe gives
the memory back and makes every entry INVALID at once.
"""

from __future__ import annotations

import mmap
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from mapping.entry import State, state_of

SEGMENTS_MAX: Final = 1 << 36
ENTRY_BYTES: Final = 8
_CHUNK: Final = 4096
_NORESERVE: Final = 0x4000 if sys.platform == "linux" else 0  # mmap.MAP_NORESERVE has no name before Python 3.13

if sys.byteorder != "little":
    raise ImportError("segmap tables are little-endian in memory; this machine is not")


class Table:
    """`segment_count` entries, all INVALID at first. `entries` is the live u64 view, for reading in hot loops."""

    def __init__(self, segment_count: int) -> None:
        self.segment_count = 0
        self._touched = bytearray()
        self._map(segment_count)

    def _map(self, segment_count: int) -> None:
        if not 0 < segment_count <= SEGMENTS_MAX:
            raise ValueError(f"a table has 1..{SEGMENTS_MAX} segments, not {segment_count}")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        self._memory = mmap.mmap(-1, segment_count * ENTRY_BYTES, flags=flags)
        self._bytes = memoryview(self._memory)
        self.entries = self._bytes.cast("Q")
        self.segment_count = segment_count

    def _touch(self, start: int, count: int) -> None:
        last = (start + count - 1) // _CHUNK
        if last >= len(self._touched):
            self._touched.extend(bytes(last + 1 - len(self._touched)))
        first = start // _CHUNK
        self._touched[first : last + 1] = b"\1" * (last + 1 - first)

    def in_range(self, start: int, count: int) -> bool:
        """True if `count` >= 1 entries from `start` exist."""
        return start >= 0 and 0 < count <= self.segment_count - start

    def get(self, start: int, count: int) -> array[int]:
        """A copy of `count` entries."""
        return array("Q", self.entries[start : start + count].tobytes())

    def set(self, start: int, entries: Sequence[int]) -> None:
        """Replace `len(entries)` contiguous entries."""
        count = len(entries)
        if count == 1:
            self._touch(start, 1)
            self.entries[start] = entries[0]
            return
        values = entries if isinstance(entries, array | memoryview) else array("Q", entries)
        self._touch(start, count)
        self.entries[start : start + count] = memoryview(values)

    def fill(self, start: int, count: int, entry: int) -> None:
        """Give `count` entries the same value; filling with 0 touches only memory in use."""
        if entry == 0:
            for first, length in self._used(start, count):
                self.entries[first : first + length] = memoryview(array("Q", bytes(length * ENTRY_BYTES)))
            return
        self._touch(start, count)
        block = memoryview(array("Q", [entry]) * min(count, 65536))
        for first in range(start, start + count, 65536):
            length = min(65536, start + count - first)
            self.entries[first : first + length] = block[:length]

    def _used(self, start: int, count: int) -> Iterator[tuple[int, int]]:
        """(start, count) of the parts of a range that lie in memory in use."""
        chunk = self._touched.find(1, start // _CHUNK)
        while chunk >= 0 and chunk * _CHUNK < start + count:
            first = max(start, chunk * _CHUNK)
            last = min(start + count, (chunk + 1) * _CHUNK)
            yield first, last - first
            chunk = self._touched.find(1, chunk + 1)

    def used_entries(self) -> Iterator[int]:
        """Every entry in memory in use, in order; all others are INVALID."""
        for start, count in self._used(0, self.segment_count):
            yield from self.entries[start : start + count]

    def wipe(self) -> None:
        """Forget every entry: all INVALID, memory given back."""
        if self._touched:
            self._memory.madvise(mmap.MADV_DONTNEED)
            self._touched = bytearray()

    def resize(self, segment_count: int) -> None:
        """Change the size; entries that stay are kept, new ones are INVALID."""
        kept = [
            (start, self.get(start, count)) for start, count in self._used(0, min(segment_count, self.segment_count))
        ]
        self.close()
        self._touched = bytearray()
        self._map(segment_count)
        for start, entries in kept:
            self.set(start, entries)

    def counts(self) -> dict[State, int]:
        """How many entries are in each state; costs time only for memory in use."""
        counts = dict.fromkeys(State, 0)
        seen = 0
        for start, count in self._used(0, self.segment_count):
            seen += count
            low = self._bytes[start * ENTRY_BYTES : (start + count) * ENTRY_BYTES : ENTRY_BYTES].tobytes()
            for value, number in Counter(low).items():
                counts[state_of(value)] += number
        counts[State.INVALID] += self.segment_count - seen
        return counts

    def close(self) -> None:
        """Give the memory back. The table must not be used afterwards."""
        self.entries.release()
        self._bytes.release()
        self._memory.close()
