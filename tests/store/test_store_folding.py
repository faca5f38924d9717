"""Folding at random points, with crashes, equals never folding; counts follow and nothing leaks."""

from __future__ import annotations

import tempfile
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.store.image import MapImage
from controller.store.interface import Batch, Store
from controller.store.memory import MemoryDisk, MemoryStore
from controller.store.records import RecordBuilder, iterate
from controller.store.tree import FANOUT, Forest, TreeKind, audit_counts
from mapping.entry import ERROR_ENTRY, INVALID_ENTRY, NO_WRITE, ZERO_ENTRY, pack
from tests.store.places import CLUSTER, MemoryPlace, SqlitePlace, contents, fold_all

VDISKS = st.integers(1, 3)
STARTS = st.one_of(
    st.integers(0, 9000), st.sampled_from([0, 4095, 4096, 8192, 1 << 21, (1 << 21) - 10, (1 << 30) - 1, 1 << 33])
)
SEGMENTS = st.one_of(st.integers(0, 200), st.integers(32700, 32800), st.integers(0, 70000))
SLOTS = st.sampled_from([0, 1, 4095])
COUNTS = st.one_of(st.integers(1, 50), st.sampled_from([4096, 8192, 5000, 12288]))
ENTRIES = st.one_of(
    st.sampled_from([ZERO_ENTRY, ERROR_ENTRY, INVALID_ENTRY]),
    st.builds(pack, SLOTS, SEGMENTS, st.sampled_from([0, NO_WRITE])),
)
LONG_COUNTS = st.one_of(COUNTS, st.sampled_from([1 << 21, (1 << 21) + 4096 * 3]))

OPERATIONS = st.one_of(
    st.tuples(st.just("set_entry"), VDISKS, STARTS, ENTRIES),
    st.tuples(st.just("set_entry"), VDISKS, STARTS, ENTRIES),
    st.tuples(st.just("entry_run"), VDISKS, STARTS, LONG_COUNTS, ENTRIES),
    st.tuples(st.just("entry_array"), VDISKS, STARTS, st.lists(ENTRIES, min_size=1, max_size=20)),
    st.tuples(st.just("consecutive"), VDISKS, STARTS, COUNTS, SLOTS, SEGMENTS),
    st.tuples(st.just("segment_run"), SLOTS, SEGMENTS, st.one_of(COUNTS, st.just(1 << 15)), st.integers(0, 6)),
    st.tuples(st.just("reference_run"), SLOTS, SEGMENTS, st.integers(1, 20), st.integers(0, 3)),
    st.tuples(st.just("share_table"), VDISKS, VDISKS).filter(lambda share: share[1] != share[2]),
    st.tuples(st.just("drop_table"), VDISKS),
    st.tuples(st.just("drop_container"), SLOTS),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.lists(OPERATIONS, min_size=1, max_size=6)),
        st.tuples(st.just("commit"), st.lists(OPERATIONS, min_size=1, max_size=6)),
        st.tuples(st.just("fold"), st.integers(1, 12), st.sampled_from([1, 3, 200, 4096])),
        st.tuples(st.just("crash")),
    ),
    max_size=12,
)


def records_of(operations: list[tuple[Any, ...]]) -> bytes:
    builder = RecordBuilder()
    for name, *arguments in operations:
        if name == "consecutive":
            vdisk, start, count, slot, segment = arguments
            builder.entry_array(vdisk, start, array("Q", [pack(slot, segment + i) for i in range(count)]))
        else:
            getattr(builder, name)(*arguments)
    return builder.take()


def run(place: MemoryPlace | SqlitePlace, steps: list[tuple[Any, ...]]) -> tuple[Store, MapImage]:
    """Do the steps to a store, and the commits to an image that knows nothing of folding."""
    never_folded = MapImage()
    store: Store = place.open()
    term = store.new_term()
    for number, (step, *arguments) in enumerate(steps):
        if step == "commit":
            records = records_of(arguments[0])
            store.commit([Batch(number, records)], term)
            never_folded.apply(records)
        elif step == "fold":
            for _ in range(arguments[0]):
                store.fold(arguments[1])
        else:
            place.crash()
            store.close()
            store = place.open()
            term = store.new_term()
    return store, never_folded


@settings(max_examples=120, deadline=None)
@given(steps=STEPS)
def test_folding_at_random_points_equals_never_folding(steps: list[tuple[Any, ...]]) -> None:
    place = MemoryPlace()
    store, never_folded = run(place, steps)
    assert contents(store.load().image) == contents(never_folded)
    forest = place.disk.forest()
    assert audit_counts(forest) == {}
    fold_all(store)
    assert contents(store.load().image) == contents(never_folded)
    assert store.backlog() == 0 and not place.disk.now.rows and not place.disk.now.queue
    forest = place.disk.forest()
    assert audit_counts(forest) == {}
    assert set(place.disk.now.nodes) == reachable(forest)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_the_same_on_sqlite(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = SqlitePlace(Path(directory))
        try:
            store, never_folded = run(place, steps)
            assert contents(store.load().image) == contents(never_folded)
            fold_all(store)
            assert contents(store.load().image) == contents(never_folded)
        finally:
            place.end()


def reachable(forest: Forest) -> set[int]:
    seen: set[int] = set()
    visit = [tree.root for tree in forest.trees.values() if tree.root]
    while visit:
        node_id = visit.pop()
        if node_id not in seen:
            seen.add(node_id)
            visit += forest.node(node_id).children()
    return seen


@given(operations=st.lists(OPERATIONS, max_size=20))
@settings(max_examples=50, deadline=None)
def test_records_decode_to_what_was_built(operations: list[tuple[Any, ...]]) -> None:
    records = records_of(operations)
    rebuilt = RecordBuilder()
    for record in iterate(records):
        if record.kind.name == "ENTRY_ARRAY":
            rebuilt.entry_array(record.object, record.index, record.entries)
        elif record.kind.name == "ENTRY_RUN":
            rebuilt.entry_run(record.object, record.index, record.value, record.entries[0])
        else:
            rebuilt._pack(record.kind, record.object, record.index, record.value)
    assert rebuilt.take() == records


@pytest.mark.parametrize("entry", [ZERO_ENTRY, ERROR_ENTRY])
def test_a_leaf_that_a_run_has_replaced_is_not_written_to(entry: int) -> None:
    """Within one round: a chunk in use, a run over all of it, and the chunk in use again."""
    steps = [("set_entry", 1, 5, pack(1, 1)), ("entry_run", 1, 0, 8192, entry), ("set_entry", 1, 6, pack(1, 2))]
    place = MemoryPlace()
    store, never_folded = run(place, [("commit", steps)])
    fold_all(store)
    assert contents(store.load().image) == contents(never_folded)


class TestCosts:
    """Sharing and filling cost nodes per level, not per entry."""

    def folded(self, builder: RecordBuilder, disk: MemoryDisk | None = None, number: int = 1) -> MemoryDisk:
        disk = disk or MemoryDisk(CLUSTER)
        store = MemoryStore.open(disk)
        store.commit([Batch(number, builder.take())], store.new_term())
        fold_all(store)
        store.close()
        return disk

    def test_a_petabyte_costs_nothing_until_used(self) -> None:
        builder = RecordBuilder()
        builder.entry_run(1, 0, 1 << 30, ZERO_ENTRY)
        assert self.folded(builder).now.nodes == {}
        builder.set_entry(1, (1 << 30) - 1, pack(1, 1))
        assert len(self.folded(builder).now.nodes) == 3 + 1

    def test_a_petabyte_of_errors_is_a_node_per_level(self) -> None:
        builder = RecordBuilder()
        builder.entry_run(1, 0, 1 << 30, ERROR_ENTRY)
        disk = self.folded(builder)
        assert len(disk.now.nodes) == 3
        builder.set_entry(1, 5_000_000, ZERO_ENTRY)
        disk = self.folded(builder, disk, 2)
        assert len(disk.now.nodes) == 3 + 3 - 1
        assert audit_counts(disk.forest()) == {}
        builder.drop_table(1)
        assert self.folded(builder, disk, 3).now.nodes == {}

    def test_a_snapshot_shares_every_node_and_a_write_copies_one_path(self) -> None:
        builder = RecordBuilder()
        builder.entry_array(1, 0, array("Q", range(1, 1 + (20 << 28), 1 << 16)))
        disk = self.folded(builder)
        before = {node.id for node in disk.now.nodes.values() if node.kind == TreeKind.ENTRIES}
        assert len(before) == 20 + 1
        builder.share_table(1, 2)
        disk = self.folded(builder, disk, 2)
        assert {node.id for node in disk.now.nodes.values() if node.kind == TreeKind.ENTRIES} == before
        builder.set_entry(2, 7, ZERO_ENTRY)
        builder.set_entry(2, 8, ZERO_ENTRY)
        disk = self.folded(builder, disk, 3)
        after = {node.id for node in disk.now.nodes.values() if node.kind == TreeKind.ENTRIES}
        assert before < after and len(after - before) == 2
        builder.drop_table(1)
        disk = self.folded(builder, disk, 4)
        assert len([node for node in disk.now.nodes.values() if node.kind == TreeKind.ENTRIES]) == len(before)

    def test_sharing_touches_no_node(self) -> None:
        class NoNodes:
            def read_node(self, node_id: int) -> Any:
                raise AssertionError("sharing must not read")

            def read_references(self, node_id: int) -> int:
                raise AssertionError("sharing must not count")

        builder = RecordBuilder()
        builder.set_entry(1, 0, pack(1, 1))
        disk = self.folded(builder)
        forest = Forest(NoNodes(), disk.now.clock, disk.now.next_node)
        forest.trees = dict(disk.now.trees)
        forest.share_table(1, 2)
        assert forest.trees[TreeKind.ENTRIES, 2].root == forest.trees[TreeKind.ENTRIES, 1].root
        assert FANOUT == 512
