"""Backup, verify and restore: what they keep, what they find, what they refuse."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from controller.store.audit import ERROR
from controller.store.backup import PART_SUFFIX, Backup, BackupExists
from controller.store.interface import Batch, Job, StoreCorrupt, StoreFailed, StoreLocked, StoreVersion, frozen
from controller.store.records import RecordBuilder, SegmentState
from controller.store.restore import COUNTER_STEP, TERM_MAX, TERM_STEP, RestoreRefused, StorePresent, restore
from controller.store.sqlite import SqliteStore
from controller.store.verify import StoreMissing, verify
from mapping.entry import pack
from tests.store.places import CLUSTER, QUICK, contents, fold_all

SEGMENTS = 10_000
CONTAINER: dict[str, Any] = {"name": "c", "segment_count": SEGMENTS, "ready": True}
VDISK: dict[str, Any] = {"name": "v", "segment_count": 50_000}
AGENT: dict[str, Any] = {"name": "a", "incarnation": 5}


def opened(path: Path) -> SqliteStore:
    return SqliteStore.open(path, cluster=CLUSTER, lock_wait_ms=0, vfs=QUICK)


def first_batch() -> Batch:
    builder = RecordBuilder()
    builder.segment_run(0, 0, 1, SegmentState.LABEL)
    builder.segment_run(0, 1, SEGMENTS - 1, SegmentState.ZEROED)
    builder.entry_array(1, 100, [pack(0, 1 + index, 1) for index in range(5000)])
    builder.segment_run(0, 6000, 10, SegmentState.ZEROING)
    builder.segment_run(0, 7000, 5, SegmentState.QUARANTINED)
    builder.segment_run(0, 8000, 100, SegmentState.FREE)
    job = Job(3, "zero", "running", 0, 10, {"slot": 0, "runs": [[6000, 10]], "agent": 1, "incarnation": 5})
    puts = (("container", "0", CONTAINER), ("vdisk", "1", VDISK), ("agent", "1", AGENT), ("counter", "vdisk", 1))
    return Batch(1, builder.take(), puts, jobs=(job,))


def mapped(batch: int, segment: int, physical: int) -> Batch:
    builder = RecordBuilder()
    builder.set_entry(1, segment, pack(0, physical, 1))
    return Batch(batch, builder.take())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = opened(tmp_path / "store.db")
    made.new_term()
    made.commit([first_batch()], 1)
    yield made
    made.close()


def back_up(store: SqliteStore, path: Path) -> Backup:
    backup = Backup(path)
    try:
        while backup.step(store):
            pass
    finally:
        backup.end()
    backup.publish()
    return backup


def texts(path: Path) -> list[str]:
    return [finding.text for finding in verify(path).findings.found]


def edited(path: Path, statement: str, *values: Any) -> None:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.execute(statement, values)
    connection.close()


# --- backup ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded", [False, True])
def test_a_backup_is_the_store_and_is_good(store: SqliteStore, tmp_path: Path, folded: bool) -> None:
    if folded:
        fold_all(store)
    backup = back_up(store, tmp_path / "b")
    verified = verify(tmp_path / "b")
    assert (verified.findings.found, backup.pages_done) == ([], backup.pages)
    assert verified.state is not None
    assert contents(verified.state.image) == contents(store.load().image)
    assert (verified.state.sequence, backup.sequence, verified.state.term) == (1, 1, 1)
    assert verified.state.objects["vdisk"] == {"1": VDISK}
    assert verified.counts["segments"] == SEGMENTS
    assert stat.S_IMODE(os.stat(tmp_path / "b").st_mode) == 0o600
    assert sorted(item.name for item in tmp_path.iterdir() if item.name.startswith("b")) == ["b"]


def test_what_is_committed_meanwhile_is_in_it(store: SqliteStore, tmp_path: Path) -> None:
    for batch in range(2, 40):
        builder = RecordBuilder()
        builder.entry_array(1, 100, [pack(0, 1 + index, 1) for index in range(5000)])
        store.commit([Batch(batch, builder.take())], 1)
    backup = Backup(tmp_path / "b")
    slices = 0
    while backup.step(store):
        slices += 1
        store.commit([mapped(1000 + slices, 20_000 + slices, 9000 + slices)], 1)
        store.fold(64)
    backup.end()
    backup.publish()
    assert slices >= 3
    verified = verify(tmp_path / "b")
    assert verified.findings.found == []
    assert verified.state is not None
    assert (verified.state.sequence, backup.sequence) == (store.sequence, store.sequence)
    assert contents(verified.state.image) == contents(store.load().image)


def test_a_file_that_is_there_is_kept(store: SqliteStore, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("mine")
    with pytest.raises(BackupExists):
        Backup(tmp_path / "b").step(store)
    assert (tmp_path / "b").read_text() == "mine"
    backup = Backup(tmp_path / "late")
    while backup.step(store):
        pass
    backup.end()
    (tmp_path / "late").write_text("mine")
    with pytest.raises(BackupExists):
        backup.publish()
    backup.discard()
    assert (tmp_path / "late").read_text() == "mine"
    assert not (tmp_path / ("late" + PART_SUFFIX)).exists()


def test_an_abandoned_backup_leaves_nothing_and_the_store_goes_on(store: SqliteStore, tmp_path: Path) -> None:
    backup = Backup(tmp_path / "b")
    backup.step(store)
    backup.end()
    backup.discard()
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith("b")] == []
    store.commit([mapped(2, 5, 9000)], 1)
    back_up(store, tmp_path / "b")
    with pytest.raises(StoreFailed):
        Backup(tmp_path / "none" / "b").step(store)


# --- verify ----------------------------------------------------------------------------------------------------------


def test_a_store_in_use_cannot_be_verified_and_a_crashed_one_is_not_changed(store: SqliteStore, tmp_path: Path) -> None:
    with pytest.raises(StoreLocked):
        verify(tmp_path / "store.db")
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for suffix in ("", "-wal"):
        (crashed / f"store.db{suffix}").write_bytes((tmp_path / f"store.db{suffix}").read_bytes())
    before = {item.name: item.read_bytes() for item in crashed.iterdir()}
    assert len(before["store.db-wal"]) > 0
    verified = verify(crashed / "store.db")
    assert verified.good
    assert verified.state is not None
    assert verified.state.sequence == 1
    assert {item.name: item.read_bytes() for item in crashed.iterdir()} == before


def test_what_is_no_store_is_refused(store: SqliteStore, tmp_path: Path) -> None:
    with pytest.raises(StoreMissing):
        verify(tmp_path / "none")
    (tmp_path / "text").write_text("hello" * 1000)
    with pytest.raises(StoreCorrupt):
        verify(tmp_path / "text")
    back_up(store, tmp_path / "b")
    edited(tmp_path / "b", "PRAGMA user_version = 99")
    with pytest.raises(StoreVersion):
        verify(tmp_path / "b")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE log SET records = zeroblob(length(records)) WHERE sequence = 2", "log row 2"),
        ("DELETE FROM log WHERE sequence = 2", "log row 3 after 1"),
        ("UPDATE nodes SET body = zeroblob(8) WHERE id = (SELECT min(id) FROM nodes)", "checksum of node"),
        ("UPDATE objects SET value = zeroblob(40) WHERE kind = 'vdisk'", "checksum of object vdisk 1"),
        ("UPDATE jobs SET payload = zeroblob(40)", "checksum of job 3"),
        ("DELETE FROM meta WHERE key = 'folded'", "folded"),
        ("INSERT INTO node_references SELECT min(id), 7 FROM nodes", "has the reference count 7, should have 1"),
        ("DELETE FROM jobs", "segment 6000 is ZEROING, and no job has it"),
        ("DELETE FROM objects WHERE kind = 'vdisk'", "there is no such vdisk"),
    ],
)
def test_damage_is_found(store: SqliteStore, tmp_path: Path, statement: str, expected: str) -> None:
    fold_all(store)
    store.commit([mapped(2, 7, 9000)], 1)
    store.commit([mapped(3, 8, 9001)], 1)
    back_up(store, tmp_path / "b")
    edited(tmp_path / "b", statement)
    found = texts(tmp_path / "b")
    assert any(expected in text for text in found), found
    with pytest.raises(RestoreRefused, match="damaged"):
        restore(tmp_path / "b", tmp_path / "new.db", force=False, generation=0, now_ns=1)
    assert not (tmp_path / "new.db").exists()


def test_damaged_pages_are_found(store: SqliteStore, tmp_path: Path) -> None:
    back_up(store, tmp_path / "b")
    data = bytearray((tmp_path / "b").read_bytes())
    data[4096:8192] = b"\xff" * 4096
    (tmp_path / "b").write_bytes(data)
    try:
        assert not verify(tmp_path / "b").good
    except StoreCorrupt:
        pass


def _run(start: int, count: int, state: int) -> RecordBuilder:
    builder = RecordBuilder()
    builder.segment_run(0, start, count, state)
    return builder


def _entry(segment: int, entry: int, free: int | None = None) -> RecordBuilder:
    builder = RecordBuilder()
    builder.set_entry(1, segment, entry)
    if free is not None:
        builder.segment_run(0, free, 1, SegmentState.FREE)
    return builder


def _reference(segment: int, count: int) -> RecordBuilder:
    builder = RecordBuilder()
    builder.reference_run(0, segment, 1, count)
    return builder


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        (_entry(7, pack(0, 1, 1)), "container c segment 1 is mapped 2 times (vdisk v segment 7, vdisk v segment 100)"),
        (_run(9100, 1, SegmentState.MAPPED), "segment 9100 is mapped 0 times (leaked)"),
        (_entry(7, pack(0, 9000, 1), free=9000), "segment 9000 is FREE, and mapped at vdisk v segment 7"),
        (_run(9100, 2, SegmentState.ZEROING), "segment 9101 is ZEROING, and no job has it"),
        (_run(6003, 1, SegmentState.FREE), "segment 6003 is FREE, and job 3 has it"),
        (_run(0, 1, SegmentState.FREE), "segment 0 is FREE: the label"),
        (_run(9200, 1, SegmentState.LABEL), "segment 9200 is LABEL: the label"),
        (_run(SEGMENTS, 1, SegmentState.ZEROED), f"segment {SEGMENTS} is ZEROED, and no ready container has it"),
        (_entry(7, pack(0, SEGMENTS + 1, 1)), "which no ready container has"),
        (_entry(7, pack(9, 4, 1)), "is at slot 9 segment 4, which no ready container has"),
        (_entry(50_000, pack(0, 9000, 1)), "has 50000 segments, and an entry for segment 50000"),
        (_reference(1, 3), "segment 1 is mapped 1 times (vdisk v segment 100), its reference count is 3"),
        (_reference(9100, 2), "segment 9100 is ZEROED with a reference count of 2"),
    ],
)
def test_a_wrong_image_is_found(store: SqliteStore, tmp_path: Path, builder: RecordBuilder, expected: str) -> None:
    store.commit([Batch(2, builder.take())], 1)
    back_up(store, tmp_path / "b")
    found = verify(tmp_path / "b").findings.found
    assert any(expected in finding.text for finding in found), found
    assert {finding.severity for finding in found} == {ERROR}


def test_shared_segments_with_the_right_count_are_good(store: SqliteStore, tmp_path: Path) -> None:
    builder = _entry(7, pack(0, 1, 1))
    builder.reference_run(0, 1, 1, 2)
    store.commit([Batch(2, builder.take())], 1)
    back_up(store, tmp_path / "b")
    assert texts(tmp_path / "b") == []


# --- restore ---------------------------------------------------------------------------------------------------------


def test_a_restored_store_is_frozen_newer_and_trusts_no_zeroes(store: SqliteStore, tmp_path: Path) -> None:
    back_up(store, tmp_path / "b")
    done = restore(tmp_path / "b", tmp_path / "new.db", force=False, generation=0, now_ns=77)
    assert (done.generation, done.kept) == (2, None)
    assert stat.S_IMODE(os.stat(tmp_path / "new.db").st_mode) == 0o600
    restored = opened(tmp_path / "new.db")
    state = restored.load()
    assert (state.cluster, state.generation, state.term) == (CLUSTER, 2, 1 + TERM_STEP + 1)
    assert done.term == state.term
    assert "sequence 1" in frozen(state)
    assert state.objects["counter"] == {"vdisk": 1 + COUNTER_STEP, "incarnation": 5 + COUNTER_STEP}
    states = state.image.segments[0]
    assert states.count(SegmentState.ZEROED) == 0
    assert states.count(SegmentState.FREE, 0, SEGMENTS) == SEGMENTS - 1 - 5000 - 10 - 5
    assert contents(state.image)[0] == contents(store.load().image)[0]
    assert [entry.action for _, entry in restored.audit()] == ["store.restore"]
    restored.close()
    assert verify(tmp_path / "new.db").good


def test_what_was_believed_of_agents_is_not_restored(store: SqliteStore, tmp_path: Path) -> None:
    believed = {**AGENT, "draining": True, "drained": True, "vouched": True}
    store.commit([Batch(2, puts=(("agent", "2", believed),))], 1)
    back_up(store, tmp_path / "b")
    restore(tmp_path / "b", tmp_path / "new.db", force=False, generation=0, now_ns=1)
    restored = opened(tmp_path / "new.db")
    assert restored.load().objects["agent"] == {"1": AGENT, "2": {**AGENT, "draining": True}}
    restored.close()


def test_a_store_in_the_way_is_kept_and_outlived(store: SqliteStore, tmp_path: Path) -> None:
    back_up(store, tmp_path / "b")
    for _ in range(5):
        store.new_term()
    with pytest.raises(StorePresent):
        restore(tmp_path / "b", tmp_path / "store.db", force=False, generation=0, now_ns=1)
    with pytest.raises(StoreLocked):
        restore(tmp_path / "b", tmp_path / "store.db", force=True, generation=0, now_ns=1)
    store.close()
    done = restore(tmp_path / "b", tmp_path / "store.db", force=True, generation=9, now_ns=1)
    assert (done.generation, done.term) == (9, 6 + TERM_STEP + 1)
    assert done.kept is not None
    kept = verify(done.kept)
    assert kept.good
    assert kept.state is not None
    assert (kept.state.term, frozen(kept.state)) == (6, "")
    again = restore(tmp_path / "b", tmp_path / "store.db", force=True, generation=0, now_ns=1)
    assert (again.generation, again.kept != done.kept) == (10, True)


def test_a_crashed_or_damaged_store_in_the_way_is_kept_whole(store: SqliteStore, tmp_path: Path) -> None:
    back_up(store, tmp_path / "b")
    store.commit([mapped(2, 7, 9000)], 1)
    crashed = tmp_path / "crashed.db"
    for suffix in ("", "-wal"):
        crashed.with_name(crashed.name + suffix).write_bytes((tmp_path / f"store.db{suffix}").read_bytes())
    done = restore(tmp_path / "b", crashed, force=True, generation=0, now_ns=1)
    assert done.kept is not None
    kept = verify(done.kept).state
    assert kept is not None
    assert kept.sequence == 2
    restored = verify(crashed).state
    assert restored is not None
    assert restored.image.entry(1, 7) != pack(0, 9000, 1)
    (tmp_path / "damaged.db").write_bytes(b"x" * 8192)
    done = restore(tmp_path / "b", tmp_path / "damaged.db", force=True, generation=0, now_ns=1)
    assert done.kept is not None
    assert done.kept.read_bytes() == b"x" * 8192


def test_restores_that_cannot_be(store: SqliteStore, tmp_path: Path) -> None:
    back_up(store, tmp_path / "b")
    with pytest.raises(RestoreRefused, match="from itself"):
        restore(tmp_path / "b", tmp_path / "b", force=True, generation=0, now_ns=1)
    edited(tmp_path / "b", "UPDATE meta SET value = ? WHERE key = 'term'", TERM_MAX)
    with pytest.raises(RestoreRefused, match="too often"):
        restore(tmp_path / "b", tmp_path / "new.db", force=False, generation=0, now_ns=1)
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith("new")] == []
