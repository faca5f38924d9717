"""What the checker of block histories takes, and what it does not."""

from __future__ import annotations

import pytest

from tests.histories.register import HistoryBroken, Register


def written(count: int) -> Register:
    register = Register("b")
    for _ in range(count):
        register.begin()
    return register


def test_a_read_beside_writes_may_see_any_of_them() -> None:
    register = written(3)
    assert [register.check([number], 0) for number in (0, 1, 2, 3)] == [0, 1, 2, 3]


def test_what_was_acknowledged_or_read_before_is_not_undone() -> None:
    register = written(3)
    register.floor = 2
    assert register.check([3], register.floor) == 3
    with pytest.raises(HistoryBroken, match="reads write"):
        register.check([1], register.floor)


def test_what_was_not_written_yet_is_not_seen() -> None:
    with pytest.raises(HistoryBroken):
        written(3).check([4], 0)


def test_what_was_refused_is_never_seen() -> None:
    register = written(2)
    register.refused(2)
    assert register.check([1], 0) == 1
    with pytest.raises(HistoryBroken, match=r"refused were \[2\]"):
        register.check([2], 0)


def test_zeroes_are_the_beginning_or_any_zeroing_since() -> None:
    register = written(1)
    assert register.check(register.zeroings, 0) == 0
    register.floor = 1
    with pytest.raises(HistoryBroken):
        register.check(register.zeroings, register.floor)
    zeroed = register.begin_zeroes()
    assert register.check(register.zeroings, register.floor) == zeroed
    register.take_back()
    with pytest.raises(HistoryBroken):
        register.check(register.zeroings, register.floor)


def test_a_read_that_began_before_a_write_was_acknowledged_may_see_what_was_before() -> None:
    register = written(1)
    floor = register.floor
    register.floor = 1
    with pytest.raises(HistoryBroken):
        register.check([0], register.floor)
    register.floor = 0
    assert register.check([0], floor) == 0
