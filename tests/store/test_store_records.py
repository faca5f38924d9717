"""Map records: what is built is what is applied, in pieces or at once, and junk is refused where it is."""

from __future__ import annotations

import struct
from array import array

import pytest

from controller.store.image import MapImage, consecutive
from controller.store.records import (
    ARRAY_ENTRIES_MAX,
    CONTAINER_SEGMENTS_MAX,
    RECORD,
    REFERENCES_MAX,
    Record,
    RecordBuilder,
    RecordError,
    RecordKind,
    SegmentState,
    apply,
    iterate,
    validate,
)
from mapping.entry import ERROR_ENTRY, NO_WRITE, ZERO_ENTRY, pack
from tests.store.places import contents


def one_of_each() -> bytes:
    builder = RecordBuilder()
    builder.set_entry(1, 4097, pack(3, 8, NO_WRITE))
    builder.entry_run(1, 4000, 200, ERROR_ENTRY)
    builder.segment_run(3, 0, 1, SegmentState.LABEL)
    builder.request(9, 10)
    builder.entry_array(2, 1, [pack(4, 1), ZERO_ENTRY, pack(4, 3), pack(4, 0)])
    builder.share_table(2, 5)
    builder.drop_table(2)
    builder.reference_run(3, 8, 2, 3)
    builder.forget_incarnation(9)
    builder.drop_container(7)
    return builder.take()


def test_the_layout_is_frozen() -> None:
    builder = RecordBuilder()
    builder.set_entry(0x01020304, 5, 0x060708)
    assert builder.take().hex() == "010000000403020105000000000000000807060000000000"
    builder.segment_run(2, 3, 4, SegmentState.ZEROING)
    assert builder.take().hex() == "030000000200000003000000000000000304000000000000"
    builder.entry_array(1, 2, [7])
    assert builder.take().hex() == "05000000010000000200000000000000010000000000000007" + "00" * 23
    assert len(builder) == 0 and builder.take() == b""
    assert [int(kind) for kind in RecordKind] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    assert [int(state) for state in SegmentState] == list(range(7))


def test_every_kind_decodes() -> None:
    records = one_of_each()
    validate(records)
    decoded = list(iterate(records))
    assert [record.kind for record in decoded] == list(RecordKind)
    assert decoded[1] == Record(RecordKind.ENTRY_RUN, 1, 4000, 200, (ERROR_ENTRY,))
    assert decoded[4].entries == (pack(4, 1), ZERO_ENTRY, pack(4, 3), pack(4, 0))


def test_every_kind_is_applied() -> None:
    image = MapImage()
    image.apply(one_of_each())
    assert image.entry(1, 4097) == ERROR_ENTRY and image.entry(1, 4200) == ZERO_ENTRY
    assert list(image.entries(5, 0, 5)) == [ZERO_ENTRY, pack(4, 1), ZERO_ENTRY, pack(4, 3), pack(4, 0)]
    assert 2 not in image.tables
    assert image.state(3, 0) == SegmentState.LABEL and image.state(3, 8) == SegmentState.MAPPED
    assert bytes(image.segments[4]) == bytes([2, 2, 0, 2])
    assert image.references == {3: {8: 3, 9: 3}}
    assert image.state(200, 5) == SegmentState.FREE


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_applying_in_pieces_is_the_same(limit: int) -> None:
    records = one_of_each()
    whole, pieces = MapImage(), MapImage()
    whole.apply(records)
    offset = 0
    while offset < len(records):
        offset = apply(records, pieces, offset, limit)
    assert offset == len(records)
    assert contents(pieces) == contents(whole)


def test_applying_twice_is_applying_once() -> None:
    builder = RecordBuilder()
    builder.entry_run(1, 0, 9000, ERROR_ENTRY)
    builder.set_entry(1, 3, pack(1, 2))
    builder.segment_run(1, 2, 1, SegmentState.QUARANTINED)
    records = builder.take()
    once, twice = MapImage(), MapImage()
    once.apply(records)
    twice.apply(records + records)
    assert contents(once) == contents(twice)


def test_every_truncation_is_refused() -> None:
    records = one_of_each()
    ends = [0]
    while ends[-1] < len(records):
        ends.append(apply(records, MapImage(), ends[-1], 1))
    assert len(ends) == len(RecordKind) + 1
    for length in range(len(records)):
        if length in ends:
            validate(records[:length])
            continue
        with pytest.raises(RecordError) as raised:
            validate(records[:length])
        assert raised.value.offset <= length
        with pytest.raises(RecordError):
            list(iterate(records[:length]))


@pytest.mark.parametrize(
    "junk",
    [
        RECORD.pack(0, 0, 1, 1, 1),
        RECORD.pack(10, 0, 1, 1, 1),
        RECORD.pack(12, 0, 1, 1, 1),
        RECORD.pack(1 << 8 | 1, 0, 1, 1, 1),
        RECORD.pack(1, 7, 1, 1, 1),
        RECORD.pack(1, 7 << 8, 1, 1, 1),
        RECORD.pack(2, 0, 1, 0, 0) + RECORD.pack(1, 0, 1, 0, 5),
        RECORD.pack(2, 0, 1, 0, 9) + RECORD.pack(1, 0, 2, 0, 5),
        RECORD.pack(2, 0, 1, (1 << 64) - 1, 9) + RECORD.pack(1, 0, 1, (1 << 64) - 1, 5),
        RECORD.pack(5, 0, 1, 0, 0),
        RECORD.pack(5, 0, 1, 0, ARRAY_ENTRIES_MAX + 1) + bytes(24 * 30000),
        RECORD.pack(3, 0, 1, 0, 0 << 8 | 1),
        RECORD.pack(3, 0, 1, CONTAINER_SEGMENTS_MAX, 1 << 8 | 1),
        RECORD.pack(3, 0, 1, CONTAINER_SEGMENTS_MAX - 1, 2 << 8 | 1),
        RECORD.pack(8, 0, 4096, 0, 1 << 24),
        RECORD.pack(6, 0, 1, 1, 0),
        RECORD.pack(6, 0, 1, 1 << 32, 0),
        RECORD.pack(11, 0, 4096, 0, 0),
        RECORD.pack(1, 0, 1, 1, pack(1, CONTAINER_SEGMENTS_MAX)),
        RECORD.pack(1, 0, 1, 1, pack(1, CONTAINER_SEGMENTS_MAX << 8)),
        RECORD.pack(5, 0, 1, 0, 3) + struct.pack("<3Q", 5, pack(1, CONTAINER_SEGMENTS_MAX), 5),
    ],
)
def test_junk_is_refused(junk: bytes) -> None:
    good = RECORD.pack(1, 0, 1, 1, 5)
    with pytest.raises(RecordError):
        validate(good + junk + good)


def test_large_request_ids_are_no_locations() -> None:
    builder = RecordBuilder()
    builder.request((1 << 64) - 1, (1 << 64) - 1)
    validate(builder.take())


def test_long_arrays_are_split() -> None:
    builder = RecordBuilder()
    entries = array("Q", range(1, 1 + (ARRAY_ENTRIES_MAX + 5) * 65536, 65536))
    builder.entry_array(1, 7, entries)
    decoded = list(iterate(builder.take()))
    assert [(record.index, record.value) for record in decoded] == [(7, ARRAY_ENTRIES_MAX), (7 + ARRAY_ENTRIES_MAX, 5)]
    builder.entry_array(1, 0, [])
    assert builder.take() == b""


def test_numbers_that_do_not_fit_are_refused() -> None:
    builder = RecordBuilder()
    with pytest.raises(struct.error):
        builder.set_entry(1 << 32, 0, 0)
    with pytest.raises(struct.error):
        builder.set_entry(1, 0, -1)
    with pytest.raises(OverflowError):
        builder.reference_run(1, 0, 1, REFERENCES_MAX + 1)
    assert len(builder) == 0


def test_faults_are_entries_and_requests() -> None:
    bulk, single = RecordBuilder(), RecordBuilder()
    bulk.faults(7, [1, 2], [pack(1, 5), pack(1, 6)], 3, [100, 101])
    for segment, entry, request in ((1, pack(1, 5), 100), (2, pack(1, 6), 101)):
        single.set_entry(7, segment, entry)
        single.request(3, request)
    assert bulk.take() == single.take()
    with pytest.raises(ValueError):
        bulk.faults(7, [1, 2], [1], 3, [100, 101])


def test_shared_chunks_are_copied_before_a_change() -> None:
    image = MapImage()
    image.set_entry(1, 0, pack(1, 1))
    image.share_table(1, 2)
    assert image.tables[1][0] is image.tables[2][0]
    image.set_entry(1, 1, pack(1, 2))
    image.put_entries(2, 2, array("Q", [ERROR_ENTRY]))
    assert list(image.entries(1, 0, 3)) == [pack(1, 1), pack(1, 2), ZERO_ENTRY]
    assert list(image.entries(2, 0, 3)) == [pack(1, 1), ZERO_ENTRY, ERROR_ENTRY]
    image.fill_entries(1, 0, 3 * 4096, ERROR_ENTRY)
    image.set_entry(1, 4096, ZERO_ENTRY)
    assert image.entry(1, 0) == image.entry(1, 8192) == ERROR_ENTRY and image.entry(1, 4096) == ZERO_ENTRY


def test_many_entries_are_set_as_one_by_one() -> None:
    segments = [5, 4097, 6, 1 << 20, 5]
    entries = [pack(3, 8), pack(3, 9, NO_WRITE), ERROR_ENTRY, pack(4, 1), pack(3, 10)]
    images = [MapImage(), MapImage()]
    for image in images:
        image.set_entry(1, 7, pack(3, 7))
        image.fill_segments(3, 0, 9, SegmentState.ZEROED)
        image.share_table(1, 2)
    images[0].set_entries(1, segments, entries)
    for segment, entry in zip(segments, entries, strict=True):
        images[1].set_entry(1, segment, entry)
    assert images[0].tables == images[1].tables and images[0].segments == images[1].segments
    assert images[0].entry(1, 5) == pack(3, 10) and images[0].entry(2, 5) == ZERO_ENTRY
    assert images[0].state(3, 8) == images[0].state(4, 1) == SegmentState.MAPPED
    with pytest.raises(ValueError):
        images[0].set_entries(1, [1, 2], [ERROR_ENTRY])


@pytest.mark.parametrize("count", [1, 2, 4095, 4096, 4097, 8192, 10_000])
def test_runs_of_neighbouring_locations_are_recognised(count: int) -> None:
    run = array("Q", [pack(5, 77 + index, NO_WRITE) for index in range(count)])
    assert consecutive(run)
    for index in {0, count // 2, count - 1}:
        if count > 1:
            changed = run[:]
            changed[index] += 1 << 16
            assert not consecutive(changed)
    assert not consecutive(array("Q", [ZERO_ENTRY]) * count)


def test_a_run_up_to_the_last_number_is_recognised() -> None:
    first = (1 << 64) - (4096 << 16) | 1
    assert consecutive(array("Q", range(first, 1 << 64, 1 << 16)))
    assert not consecutive(array("Q", [*range(first, (1 << 64) - (1 << 16), 1 << 16), 1]))
