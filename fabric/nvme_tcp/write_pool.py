"""Buffers for host data requested by R2T: reused, because fresh pages of a large one cost more than filling it."""

from __future__ import annotations

from typing import Final

POOL_BYTES_MAX: Final = 64 << 20
SMALLEST: Final = 4096


class WritePool:
    """Spare buffers by size (powers of two from 4 KiB). What is taken and never given back is simply collected."""

    def __init__(self, bytes_max: int = POOL_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.spare_bytes = 0
        self._spare: dict[int, list[bytearray]] = {}

    def take(self, length: int) -> bytearray:
        """A buffer of at least `length` bytes, with any contents."""
        size = max(SMALLEST, 1 << (length - 1).bit_length())
        spare = self._spare.get(size)
        if spare:
            self.spare_bytes -= size
            return spare.pop()
        return bytearray(size)

    def give(self, buffer: bytearray) -> None:
        """Nobody uses this buffer any more."""
        size = len(buffer)
        if self.spare_bytes + size <= self.bytes_max:
            self.spare_bytes += size
            self._spare.setdefault(size, []).append(buffer)
