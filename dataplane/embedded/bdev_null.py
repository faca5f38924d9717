"""A bdev that keeps nothing: writes are forgotten, reads give zeroes. For measuring everything else."""

from __future__ import annotations

import errno
import uuid
from typing import Any, ClassVar, Final

from dataplane.embedded.bdev import Bdev, BdevError, BdevIo, Buffer
from mapping.rules import Operation
from mapping.status import Status

_ZEROES: Final = memoryview(bytes(1 << 20))
PREFERENCES: Final = (
    "preferred_write_granularity",
    "preferred_write_alignment",
    "optimal_write_size",
    "preferred_unmap_granularity",
    "preferred_unmap_alignment",
)


class NullBdev(Bdev):
    """`preferences`: the five numbers that SPDK reports and does not use."""

    product_name: ClassVar[str] = "Null disk"
    operations: ClassVar[frozenset[Operation]] = frozenset({Operation.READ, Operation.WRITE, Operation.WRITE_ZEROES})
    extra_io_types: ClassVar[frozenset[str]] = frozenset({"reset", "abort"})

    def __init__(
        self,
        name: str,
        block_size: int,
        block_count: int,
        identity: uuid.UUID | None = None,
        physical_block_size: int = 0,
        preferences: dict[str, int] | None = None,
    ) -> None:
        if not block_count or not block_size or block_size % 512 or physical_block_size % 512:
            raise BdevError(errno.EINVAL)
        super().__init__(name, block_size, block_count, identity)
        self.physical_block_size = physical_block_size or block_size
        self.preferences = dict.fromkeys(PREFERENCES, 0) | (preferences or {})

    def read_now(self, offset: int, length: int) -> Buffer | None:
        stat = self.stat
        stat.reads += 1
        stat.bytes_read += length
        return zeroes(length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        stat = self.stat
        stat.writes += 1
        stat.bytes_written += len(data)
        return True

    def _start(self, io: BdevIo) -> None:
        if io.operation is Operation.READ:
            io.data = zeroes(io.length)
        io.end(Status.OK)

    def config(self) -> dict[str, Any]:
        return {
            "method": "bdev_null_create",
            "params": {
                "name": self.name,
                "num_blocks": self.block_count,
                "block_size": self.block_size,
                "physical_block_size": self.physical_block_size,
                "md_size": 0,
                "dif_type": 0,
                "dif_is_head_of_md": False,
                "dif_pi_format": 0,
                "uuid": str(self.uuid),
                **self.preferences,
            },
        }


def zeroes(length: int) -> Buffer:
    """Read-only zeroes; the usual lengths share one piece of memory."""
    return _ZEROES[:length] if length <= len(_ZEROES) else bytes(length)
