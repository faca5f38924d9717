"""The entry's bits, states and precedence: every flag combination."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapping.entry import (
    ERROR,
    MAPPED,
    NO_WRITE,
    SEGMENT_MAX,
    SLOT_MAX,
    ZERO,
    ZERO_ENTRY,
    State,
    describe,
    has_location,
    low_words,
    normalised,
    pack,
    segment_of,
    slot_of,
    state_of,
)


@pytest.mark.claim(8, 9, 10, 12)
@given(st.integers(0, SLOT_MAX), st.integers(0, SEGMENT_MAX), st.sampled_from([0, NO_WRITE, ZERO, ERROR, ERROR | ZERO]))
def test_pack_round_trips(slot: int, segment: int, flags: int) -> None:
    entry = pack(slot, segment, flags)
    assert (slot_of(entry), segment_of(entry), entry & 15) == (slot, segment, flags | MAPPED)
    assert entry < 1 << 64


@pytest.mark.claim(8, 9, 10, 17, 19, 21)
def test_layout_is_the_one_on_the_wire() -> None:
    assert pack(3, 17, NO_WRITE) == 0x0000_0000_0011_0033
    assert pack(SLOT_MAX, SEGMENT_MAX, 15) == (1 << 64) - 1
    assert ZERO_ENTRY == 5


@pytest.mark.parametrize(
    ("slot", "segment", "flags"),
    [(-1, 0, 0), (SLOT_MAX + 1, 0, 0), (0, -1, 0), (0, SEGMENT_MAX + 1, 0), (0, 0, 16)],
)
def test_pack_refuses_what_does_not_fit(slot: int, segment: int, flags: int) -> None:
    with pytest.raises(ValueError, match=r"slot|segment|bits"):
        pack(slot, segment, flags)


@pytest.mark.claim(2, 4, 18, 20, 22, 23)
@pytest.mark.parametrize("flags", range(16))
def test_precedence_is_invalid_error_zero_no_write(flags: int) -> None:
    order = [(not flags & MAPPED, State.INVALID), (flags & ERROR, State.ERROR), (flags & ZERO, State.ZERO)]
    order += [(flags & NO_WRITE, State.NO_WRITE), (True, State.NONE)]
    expected = next(state for active, state in order if active)
    entry = pack(9, 99) & ~15 | flags
    assert state_of(entry) is expected
    assert has_location(entry) == (expected in (State.NONE, State.NO_WRITE))
    assert normalised(entry) == (entry if flags & MAPPED else 0)


@pytest.mark.claim(13)
def test_zero_filled_memory_is_invalid() -> None:
    assert state_of(0) is State.INVALID


def test_describe_names_state_and_place() -> None:
    assert describe(pack(3, 17, NO_WRITE)) == "slot 3 segment 17 no-write"
    assert describe(0) == "invalid"
    assert describe(ZERO_ENTRY) == "zero"
    assert describe(pack(3, 17, ERROR)) == "error (slot 3 segment 17)"
    assert describe(pack(3, 17)) == "slot 3 segment 17"


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=40))
def test_low_words_are_the_distinct_low_bits(entries: list[int]) -> None:
    expected = {entry & 0xFFFF for entry in entries}
    assert low_words(entries) == expected
    assert low_words(array("Q", entries)) == expected
    assert low_words(memoryview(array("Q", entries))) == expected
