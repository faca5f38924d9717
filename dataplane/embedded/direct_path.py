"""The shortest way to a virtual disk's data: mapped segments of a container in memory, without a call in between.

One container at a time is *aimed* at: the one that the last I/O went to. An I/O goes straight to its memory if the
lease holds, the entry has no state bit and names that container, and the range lies in one segment; all else takes
the disk's general way, which aims anew. Whoever changes what an aim relies on (a container's bdev, a flush, which has
to see later writes) disarms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from mmap import mmap

from dataplane.embedded.bdev import Bdev, Buffer, DirectCount
from mapping.engine import Engine
from mapping.entry import MAPPED, SEGMENT_SHIFT, SLOT_SHIFT

_NOTHING = -1


class DirectPath:
    """For one disk with segments of a power of two, at least 64 KiB. `read` and `write` are the general way."""

    __slots__ = (
        "_count",
        "_engine",
        "_lift",
        "_mask",
        "_memory",
        "_now",
        "_read",
        "_read_low",
        "_shift",
        "_size",
        "_table",
        "_top",
        "_write",
        "_write_low",
    )

    def __init__(
        self,
        engine: Engine,
        read: Callable[[int, int], Buffer | None],
        write: Callable[[int, Buffer], bool],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._engine = engine
        self._table = engine.table
        self._now = clock
        self._read = read
        self._write = write
        self._size = engine.geometry.segment_size
        self._mask = self._size - 1
        self._shift = self._size.bit_length() - 1
        self._lift = self._shift - SEGMENT_SHIFT
        self._count: DirectCount
        self._memory: mmap
        self._top = 0
        self.disarm()

    @staticmethod
    def suits(segment_size: int) -> bool:
        """True if segments of this size can be reached so."""
        return not segment_size & (segment_size - 1) and segment_size >= 1 << SEGMENT_SHIFT

    def aim(self, slot: int, bdev: Bdev, segment_count: int, count: DirectCount, writable: bool) -> None:
        """The next I/O will probably go to this container, too. `writable`: its unflushed writes are on record."""
        assert bdev.direct is not None
        self._memory = bdev.direct
        self._count = count
        self._top = segment_count << SEGMENT_SHIFT
        self._read_low = MAPPED | slot << SLOT_SHIFT
        self._write_low = self._read_low if writable else _NOTHING

    def disarm(self) -> None:
        """Aim at nothing."""
        self._read_low = self._write_low = _NOTHING

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """As Bdev.read_now."""
        inside = offset & self._mask
        if inside + length <= self._size and self._now() < self._engine.open_until_ns:
            place = self._table.entries[offset >> self._shift] ^ self._read_low
            if not place & 0xFFFF and 0 < place < self._top:
                count = self._count
                count.reads += 1
                count.bytes_read += length
                start = (place << self._lift) + inside
                return self._memory[start : start + length]
        return self._read(offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        """As Bdev.write_now."""
        inside = offset & self._mask
        length = len(data)
        if inside + length <= self._size and self._now() < self._engine.open_until_ns:
            place = self._table.entries[offset >> self._shift] ^ self._write_low
            if not place & 0xFFFF and 0 < place < self._top:
                count = self._count
                count.writes += 1
                count.bytes_written += length
                start = (place << self._lift) + inside
                self._memory[start : start + length] = data
                return True
        return self._write(offset, data)
