"""What every store does, whatever it is made of."""

from __future__ import annotations

import dataclasses

import pytest

from controller.store import interface
from controller.store.image import MapImage
from controller.store.interface import (
    AuditEntry,
    Batch,
    BatchRefused,
    Job,
    StaleTerm,
    Store,
    StoreClosed,
    StoreLocked,
)
from controller.store.records import RECORD, RecordBuilder, SegmentState
from mapping.entry import ERROR_ENTRY, ZERO_ENTRY, pack
from tests.store.places import CLUSTER, Place, contents, fold_all


def fault(number: int, vdisk: int = 1, slot: int = 3) -> Batch:
    """Batch `number` maps segment `number` to the same segment of a container, for request `number`."""
    builder = RecordBuilder()
    builder.set_entry(vdisk, number, pack(slot, number))
    builder.request(5, number)
    return Batch(number, builder.take(), puts=(("fault", str(number), {"n": number}),))


def assert_has(store: Store, numbers: set[int]) -> None:
    """The store holds exactly these faults, in every one of its parts."""
    state = store.load()
    image = MapImage()
    for number in sorted(numbers):
        image.set_entry(1, number, pack(3, number))
    assert contents(state.image) == contents(image)
    assert set(state.requests.get(5, {})) == numbers
    assert state.objects.get("fault", {}) == {str(number): {"n": number} for number in numbers}


def test_a_new_store_is_empty(place: Place) -> None:
    store = place.open()
    state = store.load()
    assert (state.cluster, state.term, state.generation, state.sequence) == (CLUSTER, 0, 1, 0)
    assert state.objects == {} and state.requests == {} and state.jobs == {}
    assert contents(state.image) == ({}, {}, {})
    assert store.backlog() == 0 and not store.fold() and store.audit() == []


def test_terms_only_rise(place: Place) -> None:
    store = place.open()
    assert [store.new_term(), store.new_term()] == [1, 2]
    place.crash()
    again = place.open()
    assert again.term == 2 and again.new_term() == 3


@pytest.mark.parametrize("term", [0, 1, 3])
def test_only_the_newest_term_commits(place: Place, term: int) -> None:
    store = place.open()
    store.new_term()
    store.new_term()
    with pytest.raises(StaleTerm) as raised:
        store.commit([fault(1)], term)
    assert (raised.value.stored, raised.value.given) == (2, term)
    assert_has(store, set())


def test_the_same_batch_twice_changes_nothing_and_answers_the_same(place: Place) -> None:
    store = place.open()
    term = store.new_term()
    first = store.commit([fault(1), fault(2)], term)
    assert first.sequences == (first.sequence, first.sequence)
    second = store.commit([fault(3)], term)
    store.commit([dataclasses.replace(fault(4), deletes=(("fault", "1"),), puts=())], term)
    assert store.commit([fault(1), fault(2)], term) == first
    mixed = store.commit([fault(2), fault(5), fault(5), fault(3)], term)
    assert mixed.sequences == (first.sequence, mixed.sequence, mixed.sequence, second.sequence)
    assert mixed.sequence == store.sequence
    assert set(store.load().objects["fault"]) == {"2", "3", "5"}


@pytest.mark.parametrize("folded", [False, True])
def test_batch_ids_survive_a_crash(place: Place, folded: bool) -> None:
    store = place.open()
    first = store.commit([fault(1)], store.new_term())
    if folded:
        fold_all(store)
        store.commit([fault(2)], store.term)
    place.crash()
    again = place.open()
    assert again.commit([fault(1)], again.new_term()) == first
    assert_has(again, {1, 2} if folded else {1})


def test_old_batch_ids_are_forgotten(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.store.batches.BATCH_IDS_KEPT", 4)
    store = place.open()
    term = store.new_term()
    store.commit([fault(number) for number in range(6)], term)
    assert store.commit([fault(2)], term).sequence == 1
    assert store.commit([fault(1)], term).sequence == 2


def test_deletes_come_before_puts_and_batches_in_order(place: Place) -> None:
    store = place.open()
    term = store.new_term()
    store.commit(
        [
            Batch(1, puts=(("a", "x", 1), ("a", "y", [1, {"z": None}]))),
            Batch(2, deletes=(("a", "x"), ("a", "never there")), puts=(("a", "x", 2),)),
            Batch(3, deletes=(("a", "y"),)),
        ],
        term,
    )
    assert store.load().objects == {"a": {"x": 2}}


def test_jobs_and_audit_are_kept(place: Place) -> None:
    store = place.open()
    term = store.new_term()
    job = Job(9, "copy", "running", 3, 10, {"from": [1, 2]})
    entries = tuple(AuditEntry(number, "admin", "create", {"number": number}) for number in range(4))
    store.commit([Batch(1, jobs=(job, dataclasses.replace(job, id=8)), audit=entries)], term)
    done = dataclasses.replace(job, state="done", progress=10)
    store.commit([Batch(2, jobs=(done,), jobs_removed=(8, 77))], term)
    place.crash()
    again = place.open()
    assert again.load().jobs == {9: done}
    assert again.audit() == list(enumerate(entries, 1))
    assert again.audit(after=1, limit=2) == [(2, entries[1]), (3, entries[2])]


def test_the_audit_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.store.medium.AUDIT_KEPT", 3)
    monkeypatch.setattr("controller.store.memory.AUDIT_KEPT", 3)
    store = place.open()
    entries = tuple(AuditEntry(number, "admin", "x", None) for number in range(10))
    store.commit([Batch(1, audit=entries)], store.new_term())
    fold_all(store)
    assert [number for number, _ in store.audit()] == [8, 9, 10]


def test_requests_in_a_batch_are_the_same_as_request_records(place: Place) -> None:
    store = place.open()
    store.commit([Batch(1, fault(1).records, requests=((5, 2), (6, 1)))], store.new_term())
    assert store.load().requests == {5: {1: None, 2: None}, 6: {1: None}}


@pytest.mark.parametrize("folds", [0, 1, 1000])
def test_requests_are_bounded_and_go_with_their_incarnation(
    place: Place, monkeypatch: pytest.MonkeyPatch, folds: int
) -> None:
    for module in ("medium", "memory", "replay"):
        monkeypatch.setattr(f"controller.store.{module}.REQUESTS_KEPT", 4)
    store = place.open()
    term = store.new_term()
    for number in range(1, 8):
        store.commit([Batch(number, requests=((5, number), (6, number)))], term)
        for _ in range(folds):
            if not store.fold():
                break
    assert list(store.load().requests[5]) == [4, 5, 6, 7]
    builder = RecordBuilder()
    builder.forget_incarnation(5)
    builder.request(7, 1)
    store.commit([Batch(8, builder.take())], term)
    fold_all(store)
    place.crash()
    requests = place.open().load().requests
    assert list(requests.get(6, {})) == [4, 5, 6, 7]
    assert 5 not in requests or folds == 0


def test_a_refused_batch_changes_nothing_of_its_group(place: Place) -> None:
    store = place.open()
    term = store.new_term()
    refused = [
        Batch(2, b"\x01" * 23),
        Batch(2, RECORD.pack(99, 0, 1, 1, 1)),
        Batch(2, RECORD.pack(1, 1, 1, 1, 1)),
        Batch(2, RECORD.pack(2, 0, 1, 1, 5)),
        Batch(2, RECORD.pack(3, 0, 4096, 0, 1 << 8)),
        Batch(2, RECORD.pack(3, 0, 1, 0, 1 << 8 | 7)),
        Batch(2, RECORD.pack(5, 0, 1, 0, 65537) + bytes(24 * 21846)),
        Batch(2, RECORD.pack(1, 0, 1, 1, pack(1, 1 << 40))),
        Batch(2, puts=(("", "x", 1),)),
        Batch(2, puts=(("k" * 256, "x", 1),)),
        Batch(2, puts=(("k", "x", float("nan")),)),
        Batch(2, puts=(("k", "x", "y" * interface.VALUE_BYTES_MAX),)),
        Batch(2, jobs=(Job(-1, "k", "s", 0, 0, None),)),
        Batch(2, requests=((1 << 64, 1),)),
        Batch(1 << 64),
        Batch(2, bytes(interface.BATCH_BYTES_MAX + 24)),
    ]
    for batch in refused:
        with pytest.raises(BatchRefused):
            store.commit([fault(1), batch], term)
    assert store.sequence == 0
    assert_has(store, set())
    store.commit([fault(1)], term)
    assert_has(store, {1})


def test_values_at_their_limits_are_taken(place: Place) -> None:
    store = place.open()
    text = "y" * (interface.VALUE_BYTES_MAX - 2)
    records = RECORD.pack(1, 0, 1, 2, ZERO_ENTRY) * (interface.BATCH_BYTES_MAX // RECORD.size)
    store.commit([Batch((1 << 64) - 1, records, puts=(("k" * 255, "x", text),))], store.new_term())
    assert store.load().objects == {"k" * 255: {"x": text}}


def test_one_store_at_a_time(place: Place) -> None:
    store = place.open()
    with pytest.raises(StoreLocked):
        place.open()
    store.close()
    store.close()
    again = place.open()
    assert again.new_term() == 1
    with pytest.raises(StoreClosed):
        store.commit([fault(1)], 1)
    with pytest.raises(StoreClosed):
        store.load()


@pytest.mark.parametrize("limit", [1, 50, 4096])
def test_folding_changes_nothing_that_can_be_read(place: Place, limit: int) -> None:
    store = place.open()
    term = store.new_term()
    numbers = set(range(40))
    for number in numbers:
        store.commit([fault(number)], term)
    assert store.backlog() == 80
    while store.fold(limit):
        assert_has(store, numbers)
    assert store.backlog() == 0
    assert_has(store, numbers)


@pytest.mark.parametrize("limit", [1, 7, 4096])
def test_a_crash_at_any_point_of_folding_loses_nothing(place: Place, limit: int) -> None:
    store = place.open()
    term = store.new_term()
    numbers: set[int] = set()
    for number in range(12):
        store.commit([fault(number * 5000)], term)
        numbers.add(number * 5000)
        for _ in range(number):
            store.fold(limit)
        place.crash()
        store.close()
        store = place.open()
        assert_has(store, numbers)
        term = store.new_term()
    fold_all(store)
    assert_has(store, numbers)


def test_share_is_a_snapshot_and_a_clone(place: Place) -> None:
    store = place.open()
    term = store.new_term()
    builder = RecordBuilder()
    builder.entry_array(1, 4000, [pack(1, number) for number in range(200)])
    builder.share_table(1, 2)
    builder.set_entry(1, 4000, pack(9, 9))
    builder.set_entry(2, 4001, ZERO_ENTRY)
    builder.entry_run(2, 4100, 50, ERROR_ENTRY)
    store.commit([Batch(1, builder.take())], term)
    for _ in range(2):
        image = store.load().image
        assert image.entry(1, 4000) == pack(9, 9) and image.entry(2, 4000) == pack(1, 0)
        assert image.entry(1, 4001) == pack(1, 1) and image.entry(2, 4001) == ZERO_ENTRY
        assert image.entry(1, 4100) == pack(1, 100) and image.entry(2, 4149) == ERROR_ENTRY
        assert image.entry(2, 4150) == pack(1, 150)
        assert image.state(1, 199) == SegmentState.MAPPED and image.state(9, 9) == SegmentState.MAPPED
        fold_all(store)
    builder.drop_table(1)
    store.commit([Batch(2, builder.take())], term)
    fold_all(store)
    image = store.load().image
    assert 1 not in image.tables and image.entry(2, 4000) == pack(1, 0)


def test_what_load_gives_belongs_to_the_caller(place: Place) -> None:
    store = place.open()
    store.commit([fault(1)], store.new_term())
    fold_all(store)
    state = store.load()
    state.image.set_entry(1, 1, ERROR_ENTRY)
    state.objects["fault"]["1"] = None
    state.requests.clear()
    assert_has(store, {1})
