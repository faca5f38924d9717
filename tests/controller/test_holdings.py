"""Holdings: what is set for many segments at once is what would be set one by one."""

from __future__ import annotations

import pytest

from controller.core.holdings import CURRENT, NOTHING, UNKNOWN, Holdings

SEGMENTS = [0, 4095, 4096, 7, 1 << 30, 7]


@pytest.mark.parametrize("default", [NOTHING, CURRENT, UNKNOWN])
@pytest.mark.parametrize("value", [NOTHING, UNKNOWN])
def test_many_are_set_as_one_by_one(default: int, value: int) -> None:
    many, single = Holdings(default), Holdings(default)
    many.set_all(SEGMENTS, value)
    for segment in SEGMENTS:
        single.set(segment, value)
    assert many.chunks == single.chunks
    assert {many.get(segment) for segment in SEGMENTS} == {value}
    assert many.get(1) == many.get(4097) == many.get(1 << 29) == default
