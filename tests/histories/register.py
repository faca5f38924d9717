"""One block's history as that of a register that can be written, read and zeroed: what the simulation and the process
chaos hold every read against.

A block has one writer at a time, so its values are ordered by their number; number 0 is "zeroes", as a new virtual
disk reads. A read may return number n if n is not older than any write acknowledged, or any number read, before the
read began, and not newer than the last write begun. A write that was refused before it began must never be seen. A
write whose outcome is unknown is neither acknowledged nor refused: until something newer is acknowledged or read,
both it and what was before may be seen, but never one after the other in the wrong order.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

ZEROINGS_KEPT: Final = 8


class HistoryBroken(AssertionError):
    """A read gave what no order of the writes explains; the text is the evidence."""


class Register:
    """`newest`: the last number begun; `floor`: what must be visible at least; `dead`: refused, never to be seen;
    `zeroings`: the numbers that read as zeroes."""

    __slots__ = ("busy", "dead", "floor", "key", "newest", "zeroings")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.newest = 0
        self.floor = 0
        self.busy = False
        self.dead: set[int] = set()
        self.zeroings = [0]

    def begin(self) -> int:
        """A write begins: its number."""
        self.newest += 1
        return self.newest

    def begin_zeroes(self) -> int:
        """Zeroes are about to be written, or may be (an unmap): their number."""
        self.newest += 1
        self.zeroings = [*self.zeroings[-ZEROINGS_KEPT:], self.newest]
        return self.newest

    def take_back(self) -> None:
        """The write that began last was never sent."""
        if self.zeroings[-1] == self.newest:
            self.zeroings.pop()
        self.newest -= 1

    def refused(self, number: int) -> None:
        """It ended before it began: it must not be seen."""
        self.dead.add(number)

    def check(self, numbers: Sequence[int], floor: int, more: str = "") -> int:
        """What a read may have seen: the oldest number of `numbers` (those that the data can be) that fits.

        `floor` is the register's as it was when the read began. Raises HistoryBroken."""
        least = min(floor, self.floor)  # a loss meanwhile may have lowered it
        for number in numbers:
            if least <= number <= self.newest and number not in self.dead:
                return number
        raise HistoryBroken(
            f"block {self.key} reads write {list(numbers)}; {least} was there before{more},"
            f" {self.newest} is the newest, refused were {sorted(self.dead)}"
        )
