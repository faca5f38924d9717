"""Memory as a bdev. It is reserved, not used, until it is written; unmapping gives it back and reads as zeroes."""

from __future__ import annotations

import errno
import mmap
import uuid
from typing import Any, ClassVar, Final

from dataplane.embedded.bdev import Bdev, BdevError, BdevIo, Buffer
from mapping.rules import Operation
from mapping.status import Status

_PAGE: Final = mmap.PAGESIZE
_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)


class MallocBdev(Bdev):
    """`block_count` blocks of zeroes at first. The cache counts as volatile, as it does in SPDK."""

    product_name: ClassVar[str] = "Malloc disk"
    operations: ClassVar[frozenset[Operation]] = frozenset(
        {Operation.READ, Operation.WRITE, Operation.UNMAP, Operation.WRITE_ZEROES, Operation.FLUSH}
    )
    extra_io_types: ClassVar[frozenset[str]] = frozenset({"reset", "abort"})
    volatile_cache = True
    numa_id = -1

    def __init__(
        self,
        name: str,
        block_size: int,
        block_count: int,
        identity: uuid.UUID | None = None,
        physical_block_size: int = 0,
        optimal_io_boundary: int = 0,
    ) -> None:
        if not block_count or block_size % 512 or physical_block_size % 512:
            raise BdevError(errno.EINVAL)
        super().__init__(name, block_size, block_count, identity)
        self.physical_block_size = physical_block_size or block_size
        self.optimal_io_boundary = optimal_io_boundary
        try:
            self._memory = self.direct = mmap.mmap(-1, self.size, flags=_FLAGS)
        except (OSError, OverflowError, ValueError):
            raise BdevError(errno.ENOMEM) from None

    def read_now(self, offset: int, length: int) -> Buffer | None:
        stat = self.stat
        stat.reads += 1
        stat.bytes_read += length
        return self._memory[offset : offset + length]

    def write_now(self, offset: int, data: Buffer) -> bool:
        length = len(data)
        stat = self.stat
        stat.writes += 1
        stat.bytes_written += length
        self._memory[offset : offset + length] = data
        return True

    def _start(self, io: BdevIo) -> None:
        if io.operation is Operation.READ:
            io.data = self._memory[io.offset : io.offset + io.length]
        elif io.operation is Operation.WRITE:
            assert io.data is not None
            self._memory[io.offset : io.offset + io.length] = io.data
        elif io.operation is not Operation.FLUSH:
            self._clear(io.offset, io.length)
        io.end(Status.OK)

    def _clear(self, offset: int, length: int) -> None:
        """Zeroes: whole pages are given back, the rest is written."""
        end = offset + length
        first = -(-offset // _PAGE) * _PAGE
        last = end // _PAGE * _PAGE
        if first >= last:
            self._memory[offset:end] = bytes(length)
            return
        self._memory[offset:first] = bytes(first - offset)
        self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._memory[last:end] = bytes(end - last)

    async def close(self) -> None:
        self._memory.close()

    def config(self) -> dict[str, Any]:
        return {
            "method": "bdev_malloc_create",
            "params": {
                "name": self.name,
                "num_blocks": self.block_count,
                "block_size": self.block_size,
                "physical_block_size": self.physical_block_size,
                "uuid": str(self.uuid),
                "optimal_io_boundary": self.optimal_io_boundary,
                "md_size": 0,
                "dif_type": 0,
                "dif_is_head_of_md": False,
                "dif_pi_format": 0,
                "numa_id": -1,
            },
        }
