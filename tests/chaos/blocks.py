"""What hosts write: blocks that say whose they are and which write they come from; and the history of each block.

The I/O is in blocks of BLOCK bytes, the atomic unit of a disk is one sector of SECTOR bytes. So a read beside a write
may give some sectors of either; each sector must fit the block's history by itself, and the oldest of them is what has
surely been seen.

A write whose outcome is unknown stays possible until something newer is there. On the path on which it was sent it
cannot come after what is sent there later: agents drop what waits when a host's connection is lost, and let the host
in again only when the rest has ended. On another path it could. So the block is written again only when the attempt
has been acknowledged on its own path, or when nothing has held it up for a while (`Register.unsettled`).
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from tests.histories.register import HistoryBroken, Register

BLOCK: Final = 4096
SECTOR: Final = 512
HISTORY_KEPT: Final = 40
_TAG: Final = struct.Struct("<8sIIIIQ")
_MAGIC: Final = b"segchaos"


@dataclass
class Attempt:
    """A write that was sent on a path and ended without a verdict at `lost_s`."""

    path: Any
    lost_s: float


class Block(Register):
    """A register with what is told of it when something is wrong."""

    __slots__ = ("disk", "history", "number", "unsettled")

    def __init__(self, disk: int, number: int) -> None:
        super().__init__((disk, number))
        self.disk = disk
        self.number = number
        self.history: deque[str] = deque(maxlen=HISTORY_KEPT)
        self.unsettled: list[Attempt] = []

    def note(self, now_s: float, text: str) -> None:
        """For the history."""
        self.history.append(f"{now_s:9.4f} {text}")


def tagged(disk: int, block: int, number: int, host: int) -> bytes:
    """A block's bytes for one write."""
    return _TAG.pack(_MAGIC, disk, block, host, 0, number) * (BLOCK // _TAG.size)


def seen(block: Block, data: bytes, floor: int) -> int:
    """Check what a read gave, and take it into the history; the number. Raises HistoryBroken."""
    found = min(
        block.check(_numbers(block, data[at : at + SECTOR]), floor)
        for at in ((0,) if _alike(data) else range(0, BLOCK, SECTOR))
    )
    block.floor = max(block.floor, found)
    return found


def _alike(data: bytes) -> bool:
    return data[:SECTOR] * (BLOCK // SECTOR) == data


def _numbers(block: Block, sector: bytes) -> list[int]:
    """Which writes a sector's bytes can be from."""
    if not any(sector):
        return block.zeroings
    head = sector[: _TAG.size]
    magic, of_disk, of_block, _host, _, number = _TAG.unpack(head)
    if magic != _MAGIC or head * (SECTOR // _TAG.size) != sector:
        raise HistoryBroken(f"block {block.key} reads what nobody wrote: {sector[:64].hex()}")
    if (of_disk, of_block) != (block.disk, block.number):
        raise HistoryBroken(f"block {block.key} reads write {number} of {(of_disk, of_block)}: foreign data")
    return [number]
