"""The memory store's own promises: injected failures, and crashes that lose what was not flushed."""

from __future__ import annotations

import pytest

from controller.store.interface import Batch, StoreClosed, StoreFailed, StoreFull
from controller.store.memory import Failure, MemoryStore
from controller.store.records import RecordBuilder
from mapping.entry import pack
from tests.store.places import MemoryPlace, contents, fold_all


def batch(number: int) -> Batch:
    builder = RecordBuilder()
    builder.set_entry(1, number, pack(1, number))
    return Batch(number, builder.take(), puts=(("n", str(number), None),))


def test_a_failure_before_the_effect_changes_nothing() -> None:
    place = MemoryPlace()
    store = place.open()
    term = store.new_term()
    place.disk.inject(Failure("commit", StoreFull("full"), after=1))
    store.commit([batch(1)], term)
    with pytest.raises(StoreFull):
        store.commit([batch(2)], term)
    assert set(store.load().objects["n"]) == {"1"}
    assert store.commit([batch(2)], term).sequence == 2


def test_a_failure_after_the_effect_looks_the_same_but_is_not() -> None:
    place = MemoryPlace()
    store = place.open()
    term = store.new_term()
    place.disk.inject(Failure("commit", StoreFailed("flush"), applied=True))
    with pytest.raises(StoreFailed):
        store.commit([batch(1)], term)
    place.crash()
    again = place.open()
    assert set(again.load().objects["n"]) == {"1"}
    assert again.commit([batch(1)], again.new_term()).sequence == 1


@pytest.mark.parametrize("operation", ["open", "new_term", "load", "fold"])
def test_every_operation_can_fail_once(operation: str) -> None:
    place = MemoryPlace()
    place.disk.inject(Failure(operation, StoreFailed("no")))
    with pytest.raises(StoreFailed):
        use(place)
    place.crash()
    use(place)


def use(place: MemoryPlace) -> None:
    store = place.open()
    store.commit([batch(1)], store.new_term())
    store.load()
    store.fold()


def test_a_crash_loses_folding_since_the_newest_commit_and_nothing_else() -> None:
    place = MemoryPlace()
    store = place.open()
    term = store.new_term()
    store.commit([batch(1)], term)
    fold_all(store)
    store.commit([batch(2)], term)
    assert place.disk.now.folded == 1
    fold_all(store)
    assert place.disk.now.folded == 2 and not place.disk.now.rows
    expected = contents(store.load().image)
    place.crash()
    assert place.disk.now.folded == 1 and [row.sequence for row in place.disk.now.rows] == [2]
    with pytest.raises(StoreClosed):
        store.commit([batch(3)], term)
    assert contents(place.open().load().image) == expected


def test_a_dead_store_does_not_close_its_successor() -> None:
    place = MemoryPlace()
    dead = place.open()
    place.crash()
    living = place.open()
    dead.close()
    assert living.new_term() == 1
    assert isinstance(living, MemoryStore)
