"""What only the file can do wrong: damage, versions, no space, and errors whose outcome is unknown."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path
from uuid import UUID

import apsw
import pytest

from controller.store.interface import (
    Batch,
    StoreClosed,
    StoreCorrupt,
    StoreFailed,
    StoreFull,
    StoreVersion,
)
from controller.store.records import RecordBuilder
from controller.store.schema import APPLICATION_ID, STEPS, migrate
from controller.store.sqlite import SqliteStore
from mapping.entry import pack
from tests.store.places import CLUSTER, QUICK, SqlitePlace, contents, fold_all


def many_faults(number: int, count: int = 500) -> Batch:
    builder = RecordBuilder()
    for part in range(count):
        builder.set_entry(1, (number * count + part) * 613 % (1 << 20), pack(2, number * count + part))
    return Batch(number, builder.take(), puts=(("number", str(number), number),))


def raw(path: Path) -> apsw.Connection:
    return apsw.Connection(str(path))


def closed_store(path: Path) -> None:
    store = SqliteStore.open(path, cluster=CLUSTER, vfs=QUICK)
    term = store.new_term()
    for number in range(10):
        store.commit([many_faults(number)], term)
    fold_all(store)
    store.commit([many_faults(10)], term)
    store.close()


class TestFile:
    def test_it_is_private_and_ours(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        closed_store(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        connection = raw(path)
        assert connection.pragma("application_id") & 0xFFFFFFFF == APPLICATION_ID
        assert connection.pragma("user_version") == len(STEPS)
        connection.close()

    def test_another_cluster_is_refused(self, tmp_path: Path) -> None:
        closed_store(tmp_path / "store.db")
        with pytest.raises(StoreCorrupt, match="belongs to cluster"):
            SqliteStore.open(tmp_path / "store.db", cluster=UUID(int=8))
        store = SqliteStore.open(tmp_path / "store.db")
        assert store.cluster == CLUSTER
        store.close()

    def test_no_directory_is_a_typed_error(self, tmp_path: Path) -> None:
        with pytest.raises(StoreFailed, match="cannot create"):
            SqliteStore.open(tmp_path / "nowhere" / "store.db")

    def test_a_directory_is_a_typed_error(self, tmp_path: Path) -> None:
        with pytest.raises(StoreFailed):
            SqliteStore.open(tmp_path)

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        closed_store(tmp_path / "store.db")
        (tmp_path / "link.db").symlink_to(tmp_path / "store.db")
        with pytest.raises(StoreFailed):
            SqliteStore.open(tmp_path / "link.db")


class TestVersions:
    def version_0(self, path: Path) -> None:
        """A store as it was before maps were kept: who it is, its term, and objects."""
        connection = raw(path)
        connection.execute(
            "CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;"
            "CREATE TABLE objects (kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,"
            " PRIMARY KEY (kind, key)) WITHOUT ROWID;"
        )
        connection.execute("INSERT INTO meta VALUES ('cluster', ?), ('term', 6)", (CLUSTER.bytes,))
        value = b'{"size":7}'
        sealed = (0x1BCA5FA5).to_bytes(4, "little") + value
        connection.execute("INSERT INTO objects VALUES ('vdisk', 'a', ?)", (sealed,))
        connection.pragma("application_id", APPLICATION_ID)
        connection.close()

    def test_version_0_is_migrated(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        self.version_0(path)
        store = SqliteStore.open(path, cluster=CLUSTER)
        state = store.load()
        assert (state.cluster, state.term, state.generation) == (CLUSTER, 6, 1)
        assert state.objects == {"vdisk": {"a": {"size": 7}}}
        assert store.new_term() == 7
        store.commit([many_faults(1)], 7)
        fold_all(store)
        expected = contents(store.load().image)
        store.close()
        again = SqliteStore.open(path)
        assert contents(again.load().image) == expected
        again.close()

    def test_a_newer_version_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        closed_store(path)
        connection = raw(path)
        connection.pragma("user_version", len(STEPS) + 1)
        connection.close()
        before = path.read_bytes()
        with pytest.raises(StoreVersion, match="this release knows up to"):
            SqliteStore.open(path)
        assert path.read_bytes() == before

    def test_another_programs_database_is_refused(self, tmp_path: Path) -> None:
        connection = raw(tmp_path / "other.db")
        connection.execute("CREATE TABLE t (x)")
        connection.close()
        with pytest.raises(StoreCorrupt, match="another program"):
            SqliteStore.open(tmp_path / "other.db")

    def test_steps_run_in_order_and_all_or_none(self, tmp_path: Path) -> None:
        connection = raw(tmp_path / "x.db")
        ran: list[int] = []

        def create(db: apsw.Connection) -> None:
            ran.append(0)
            db.execute("CREATE TABLE t (x)")

        def fill(db: apsw.Connection) -> None:
            ran.append(1)
            db.execute("INSERT INTO t VALUES (5)")

        def fail(db: apsw.Connection) -> None:
            db.execute("INSERT INTO t VALUES (6)")
            raise RuntimeError("no")

        with pytest.raises(RuntimeError):
            migrate(connection, [create, fill, fail])
        assert connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
        assert migrate(connection, [create]) == 0
        assert migrate(connection, [create, fill]) == 1
        assert migrate(connection, [create, fill]) == 2
        assert connection.execute("SELECT x FROM t").get == 5
        assert ran == [0, 1, 0, 1]
        connection.close()


class TestDamage:
    def test_any_damaged_page_is_noticed(self, tmp_path: Path) -> None:
        """A sector of the file overwritten: it was in a free page and all is as before, or it is StoreCorrupt."""
        path = tmp_path / "store.db"
        closed_store(path)
        good = path.read_bytes()
        store = SqliteStore.open(path, vfs=QUICK)
        expected = contents(store.load().image)
        store.close()
        rng = random.Random(5)
        noticed = 0
        for _ in range(60):
            at = rng.randrange(len(good) // 512) * 512
            path.write_bytes(good[:at] + rng.randbytes(512) + good[at + 512 :])
            try:
                damaged = SqliteStore.open(path, vfs=QUICK)
            except StoreCorrupt:
                noticed += 1
                continue
            try:
                assert contents(damaged.load().image) == expected
            except StoreCorrupt:
                noticed += 1
            finally:
                damaged.close()
        assert noticed > 15

    @pytest.mark.parametrize("length", [0.5, 0.01])
    def test_a_cut_file_is_noticed(self, tmp_path: Path, length: float) -> None:
        path = tmp_path / "store.db"
        closed_store(path)
        os.truncate(path, int(path.stat().st_size * length) // 100 * 100)
        with pytest.raises(StoreCorrupt):
            SqliteStore.open(path, vfs=QUICK).load()

    def test_no_database_at_all_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        path.write_bytes(b"this is no store" * 1000)
        with pytest.raises(StoreCorrupt):
            SqliteStore.open(path, vfs=QUICK)

    @pytest.mark.parametrize(
        "damage",
        [
            "UPDATE log SET records = zeroblob(24)",
            "UPDATE log SET sequence = sequence + 1",
            'UPDATE nodes SET "check" = 0',
            "DELETE FROM nodes",
            "UPDATE objects SET value = zeroblob(9)",
            "DELETE FROM meta WHERE key = 'term'",
        ],
    )
    def test_rows_that_do_not_fit_are_noticed(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "store.db"
        closed_store(path)
        connection = raw(path)
        connection.execute(damage)
        connection.close()
        with pytest.raises(StoreCorrupt) as raised:
            SqliteStore.open(path, vfs=QUICK).load()
        assert "restore the newest backup" in str(raised.value)


class TestSpace:
    def fill(self, store: SqliteStore, term: int) -> int:
        """Commit until the store is full; how many commits succeeded."""
        for number in range(10_000):
            try:
                store.commit([many_faults(number)], term)
            except StoreFull:
                return number
        raise AssertionError("the store was never full")

    def test_full_means_nothing_changed_and_nothing_lost(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        store = SqliteStore.open(path, cluster=CLUSTER, page_count_max=200, vfs=QUICK)
        term = store.new_term()
        count = self.fill(store, term)
        before = store.load()
        assert set(before.objects["number"]) == {str(number) for number in range(count)}
        assert store.sequence == count
        with pytest.raises(StoreFull, match="free space"):
            store.commit([many_faults(count)], term)
        with pytest.raises(StoreFull):
            fold_all(store)
        assert contents(store.load().image) == contents(before.image)
        store.close()
        larger = SqliteStore.open(path, page_count_max=20_000, vfs=QUICK)
        assert contents(larger.load().image) == contents(before.image)
        assert larger.commit([many_faults(count)], larger.new_term()).sequence == count + 1
        fold_all(larger)
        assert set(larger.load().objects["number"]) == {str(number) for number in range(count + 1)}
        larger.close()

    def test_folding_goes_on_where_it_was_when_there_is_space_again(self, tmp_path: Path) -> None:
        store = SqliteStore.open(tmp_path / "store.db", cluster=CLUSTER, page_count_max=200, vfs=QUICK)
        self.fill(store, store.new_term())
        before = contents(store.load().image)
        for _ in range(3):
            with pytest.raises(StoreFull):
                fold_all(store, 200)
            assert contents(store.load().image) == before
        store._connection.pragma("max_page_count", 20_000)
        fold_all(store, 200)
        assert store.backlog() == 0
        assert contents(store.load().image) == before
        store.close()


class FailingSync(apsw.VFS):
    """The default VFS, whose flushes fail when told to."""

    def __init__(self, name: str) -> None:
        self.failing = False
        super().__init__(name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        vfs = self

        class File(apsw.VFSFile):
            def xSync(self, flags: int) -> None:
                if vfs.failing:
                    raise apsw.IOError("flush failed")
                super().xSync(flags)

        return File("", name, flags)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_flush_breaks_the_store_until_it_is_reopened(sqlite_place: SqlitePlace) -> None:
    vfs = FailingSync("segmap-failing")
    try:
        store = SqliteStore.open(sqlite_place.path, cluster=CLUSTER, vfs="segmap-failing")
        term = store.new_term()
        store.commit([many_faults(1)], term)
        vfs.failing = True
        with pytest.raises(StoreFailed, match="reopen"):
            store.commit([many_faults(2)], term)
        vfs.failing = False
        for _ in range(2):
            with pytest.raises(StoreClosed):
                store.commit([many_faults(2)], term)
        with pytest.raises(StoreClosed):
            store.load()
        store.close()
        log = sqlite_place.path.with_name("store.db-wal")
        assert log.stat().st_size > 0, "a broken store must not copy its log back"
        again = sqlite_place.open()
        assert log.stat().st_size == 0, "a reopened store must write what its log holds afresh"
        numbers = set(again.load().objects["number"])
        assert {"1"} <= numbers <= {"1", "2"}
        again.commit([many_faults(2)], again.new_term())
        assert set(again.load().objects["number"]) == {"1", "2"}
        assert again.sequence == 2
    finally:
        vfs.unregister()


def test_the_write_ahead_log_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.store.medium.CHECKPOINT_PAGES", 100)
    path = tmp_path / "store.db"
    store = SqliteStore.open(path, vfs=QUICK)
    term = store.new_term()
    for number in range(20):
        store.commit([many_faults(number, 1500)], term)
        fold_all(store)
    wal = path.with_name("store.db-wal").stat().st_size
    store.close()
    assert wal < 2 << 20
