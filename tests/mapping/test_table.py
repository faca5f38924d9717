"""Tables: empty ones cost nothing, fills and wipes, counts, resizing."""

import resource
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapping.entry import ERROR, NO_WRITE, ZERO_ENTRY, State, pack
from mapping.table import SEGMENTS_MAX, Table


@pytest.mark.claim(2, 12, 18)
def test_a_new_table_is_invalid_everywhere() -> None:
    table = Table(10)
    assert list(table.get(0, 10)) == [0] * 10
    assert table.counts()[State.INVALID] == 10


@pytest.mark.claim(13, 29)
def test_a_petabyte_costs_nothing_until_used() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = Table(1 << 30)
    table.set((1 << 30) - 1, [pack(1, 2)])
    assert table.counts()[State.NONE] == 1
    table.fill(0, 1 << 30, 0)
    assert table.counts()[State.INVALID] == 1 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10 * 1024
    table.close()


def test_wipe_makes_everything_invalid_and_gives_memory_back() -> None:
    table = Table(1 << 20)
    table.fill(0, 1 << 20, pack(0, 1))
    table.wipe()
    assert table.entries[0] == table.entries[(1 << 20) - 1] == 0
    assert table.counts()[State.INVALID] == 1 << 20
    table.set(3, [ZERO_ENTRY])
    assert list(table.get(2, 3)) == [0, ZERO_ENTRY, 0]


@pytest.mark.claim(27)
def test_counts_by_highest_state() -> None:
    table = Table(100_000)
    table.fill(5000, 10_000, ZERO_ENTRY)
    table.set(0, [pack(1, 1), pack(1, 2, NO_WRITE), pack(1, 3, ERROR)])
    assert table.counts() == {
        State.INVALID: 89_997,
        State.ZERO: 10_000,
        State.NONE: 1,
        State.NO_WRITE: 1,
        State.ERROR: 1,
    }


@pytest.mark.parametrize(("start", "count", "fits"), [(0, 10, True), (9, 1, True), (10, 1, False), (0, 0, False)])
def test_ranges(start: int, count: int, fits: bool) -> None:
    assert Table(10).in_range(start, count) is fits
    assert not Table(10).in_range(-1, 5)
    assert not Table(10).in_range(5, 6)


@pytest.mark.parametrize("count", [0, -1, SEGMENTS_MAX + 1])
def test_sizes_have_a_limit(count: int) -> None:
    with pytest.raises(ValueError, match="segments"):
        Table(count)


def test_resize_keeps_what_stays() -> None:
    table = Table(10_000)
    table.set(0, [pack(0, 1)])
    table.set(9_999, [pack(0, 2)])
    table.resize(20_000)
    assert (table.entries[0], table.entries[9_999], table.entries[19_999]) == (pack(0, 1), pack(0, 2), 0)
    table.resize(5)
    assert list(table.get(0, 5)) == [pack(0, 1), 0, 0, 0, 0]
    assert list(table.used_entries()) == [pack(0, 1), 0, 0, 0, 0]


SIZE = 9000
ENTRIES = st.sampled_from([0, ZERO_ENTRY, pack(1, 7)])
CHANGES = st.lists(
    st.tuples(
        st.integers(0, SIZE - 1), st.integers(1, SIZE), st.sampled_from([0, ZERO_ENTRY, pack(1, 7)]), st.booleans()
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(CHANGES)
def test_like_a_list(changes: list[tuple[int, int, int, bool]]) -> None:
    table, model = Table(SIZE), [0] * SIZE
    for start, count, entry, by_fill in changes:
        count = min(count, SIZE - start)
        if by_fill:
            table.fill(start, count, entry)
        else:
            table.set(start, array("Q", [entry] * count))
        model[start : start + count] = [entry] * count
    assert list(table.get(0, SIZE)) == model
    assert table.counts()[State.INVALID] == model.count(0)
