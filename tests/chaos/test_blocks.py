"""What a read of tagged blocks may give, and what it may not."""

from __future__ import annotations

import pytest

from tests.chaos.blocks import BLOCK, SECTOR, Block, seen, tagged
from tests.histories.register import HistoryBroken


def written(count: int) -> Block:
    block = Block(3, 77)
    for _ in range(count):
        block.begin()
    return block


def test_what_was_written_is_seen_and_cannot_go_back() -> None:
    block = written(2)
    assert seen(block, bytes(BLOCK), 0) == 0
    assert seen(block, tagged(3, 77, 2, 1), 0) == 2
    with pytest.raises(HistoryBroken, match="reads write"):
        seen(block, tagged(3, 77, 1, 1), block.floor)
    with pytest.raises(HistoryBroken):
        seen(block, bytes(BLOCK), block.floor)


def test_a_read_beside_a_write_may_be_torn_between_sectors_and_raises_the_floor_to_the_oldest() -> None:
    block = written(2)
    torn = tagged(3, 77, 2, 1)[: 3 * SECTOR] + tagged(3, 77, 1, 1)[3 * SECTOR :]
    assert seen(block, torn, 0) == 1 and block.floor == 1
    block.floor = 2
    with pytest.raises(HistoryBroken):
        seen(block, torn, 2)


def test_foreign_data() -> None:
    for disk, number in ((4, 77), (3, 78)):
        with pytest.raises(HistoryBroken, match="foreign data"):
            seen(written(1), tagged(disk, number, 1, 1), 0)


@pytest.mark.parametrize("at", [0, 40, SECTOR - 1, BLOCK - 1])
def test_a_single_wrong_byte(at: int) -> None:
    data = bytearray(tagged(3, 77, 1, 1))
    data[at] ^= 1
    with pytest.raises(HistoryBroken, match=r"nobody wrote|foreign|reads write"):
        seen(written(1), bytes(data), 0)
