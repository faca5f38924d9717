"""The store on SQLite: one file, write-ahead log, every commit flushed.

A group commit is one row in the log table plus the small objects that changed; folding (see folding.py) turns rows
into trees later. Reading back means: the trees as of the cursor, then the rows after it, in order. The file is locked
exclusively for as long as it is open, so a second controller cannot open it.

An error whose outcome is unknown (a failed flush above all) breaks the store: every later call is refused until it has
been reopened and read back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self
from uuid import UUID, uuid4

import apsw

from controller.store.batches import (
    EncodedAudit,
    EncodedJob,
    Group,
    KnownBatches,
    SmallChanges,
    decode_audit,
    decode_job,
    prepare,
    row_check,
    unseal,
)
from controller.store.folding import Folder, FoldForest
from controller.store.interface import (
    AuditEntry,
    Batch,
    Committed,
    StaleTerm,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFailed,
    StoreFull,
    StoreLocked,
    StoreState,
)
from controller.store.medium import SqliteMedium
from controller.store.nodes import NodeDamaged
from controller.store.records import RECORD_BYTES, RecordError
from controller.store.replay import Replay
from controller.store.room import LogRoom
from controller.store.schema import migrate
from controller.store.tree import read_image

_LOG: Final = logging.getLogger("segmap.store")
LOCK_WAIT_MS: Final = 1000
"""How long to wait for a controller that is just ending."""
QUICK_CHECK_BYTES_MAX: Final = 256 << 20
"""Larger files skip SQLite's structure check at open; checksums of what is read remain."""
_CACHE_KIB: Final = 65536
_WAL_LIMIT_BYTES: Final = 64 << 20

_PRAGMAS: Final = f"""
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA synchronous = FULL;
PRAGMA wal_autocheckpoint = 0;
PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES};
PRAGMA cache_size = -{_CACHE_KIB};
PRAGMA cell_size_check = ON;
PRAGMA trusted_schema = OFF;
PRAGMA temp_store = MEMORY;
"""


class SqliteStore:
    """A `Store` in one file. Use `SqliteStore.open`."""

    def __init__(self, connection: apsw.Connection, cluster: UUID | None) -> None:
        self._connection: apsw.Connection | None = connection
        self._broken: StoreError | None = None
        self._room: LogRoom | None = None
        self._known = KnownBatches()
        with self._guard():
            self._medium = SqliteMedium(connection)
            self.cluster = self._own_cluster(connection, cluster)
            self.term = int(self._meta("term"))
            self.generation = int(self._meta("generation"))
            connection.execute("DELETE FROM nodes WHERE id >= ?", (self._meta("next_node"),))
            self._folder = Folder(self._medium, self._forest(), int(self._meta("folded")))
            newest = connection.execute("SELECT max(sequence) FROM log").get
            self.sequence = max(newest or 0, self._folder.folded)
            self._read_batches(connection)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        cluster: UUID | None = None,
        page_count_max: int | None = None,
        lock_wait_ms: int = LOCK_WAIT_MS,
        vfs: str | None = None,
    ) -> Self:
        """Open, or create with mode 0600. `cluster` names a new store (random if None) and checks an old one; `vfs` is
        a registered SQLite VFS to use instead of the default one.

        Raises StoreLocked, StoreCorrupt, StoreVersion, StoreFull (`page_count_max` bounds the file), StoreFailed.
        """
        connection = _connect(Path(path), page_count_max, lock_wait_ms, vfs)
        try:
            store = cls(connection, cluster)
            if vfs is None:
                store._room = LogRoom(Path(connection.filename_wal))
            return store
        except BaseException:
            connection.close(True)
            raise

    # -- opening -------------------------------------------------------------------------------------------------

    def _own_cluster(self, connection: apsw.Connection, cluster: UUID | None) -> UUID:
        row = connection.execute("SELECT value FROM meta WHERE key = 'cluster'").fetchone()
        if row is None:
            chosen = cluster or uuid4()
            connection.execute("INSERT INTO meta VALUES ('cluster', ?)", (chosen.bytes,))
            return chosen
        stored = UUID(bytes=row[0])
        if cluster is not None and stored != cluster:
            raise StoreCorrupt(f"the store belongs to cluster {stored}, not to {cluster}")
        return stored

    def _meta(self, key: str) -> int:
        row = self._open_connection().execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None or not isinstance(row[0], int):
            raise StoreCorrupt(f"the store's {key} is missing")
        return row[0]

    def _forest(self) -> FoldForest:
        forest = FoldForest(self._medium, int(self._meta("clock")), int(self._meta("next_node")))
        forest.trees = self._medium.read_trees()
        forest.queue = self._medium.read_queue()
        forest.next_change = forest.queue[-1].id + 1 if forest.queue else 1
        return forest

    def _read_batches(self, connection: apsw.Connection) -> None:
        from_bytes = int.from_bytes
        for (pairs,) in connection.execute("SELECT pairs FROM batches ORDER BY last_sequence"):
            for at in range(0, len(pairs), 16):
                self._known.add(from_bytes(pairs[at : at + 8], "little"), from_bytes(pairs[at + 8 : at + 16], "little"))
        query = "SELECT sequence, batches FROM log WHERE sequence > ? ORDER BY sequence"
        for sequence, ids in connection.execute(query, (self._folder.folded,)):
            for at in range(0, len(ids), 8):
                self._known.add(from_bytes(ids[at : at + 8], "little"), sequence)

    # -- errors --------------------------------------------------------------------------------------------------

    def _open_connection(self) -> apsw.Connection:
        if self._broken is not None:
            raise StoreClosed(f"the store gave up after: {self._broken}") from self._broken
        if self._connection is None:
            raise StoreClosed("the store is closed")
        return self._connection

    @contextmanager
    def _guard(self) -> Iterator[apsw.Connection]:
        """Translate errors; those that leave the outcome unknown break the store."""
        connection = self._open_connection()
        try:
            yield connection
        except apsw.FullError as error:
            _undo(connection)
            raise StoreFull(f"no space in the store: {error}") from error
        except (NodeDamaged, RecordError) as error:
            self._broken = StoreCorrupt(str(error))
            raise self._broken from error
        except StoreCorrupt as error:
            self._broken = error
            raise
        except apsw.Error as error:
            self._broken = _translate(error)
            raise self._broken from error

    # -- the interface -------------------------------------------------------------------------------------------

    def new_term(self) -> int:
        """Begin a reign: the stored term + 1, durable on return."""
        with self._guard() as connection:
            connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'term'")
            self.term = self._meta("term")
        return self.term

    def commit(self, batches: Sequence[Batch], term: int) -> Committed:
        """Apply a group in order, as one durable transaction.

        Raises StaleTerm, BatchRefused, StoreFull with nothing changed; StoreFailed with the outcome unknown.
        """
        self._open_connection()
        if term != self.term:
            raise StaleTerm(self.term, term)
        fresh = self._known.fresh(batches)
        if fresh:
            group = prepare(fresh)
            if self._room is not None:
                self._room.ensure(self._medium.wal_pages)
            with self._guard() as connection:
                _write_group(connection, self.sequence + 1, group)
            self.sequence += 1
            self._medium.backlog += len(group.records) // RECORD_BYTES
            for batch_id in group.ids:
                self._known.add(batch_id, self.sequence)
        sequences = self._known.sequences(batches, self.sequence)
        return Committed(max(sequences, default=self.sequence), sequences)

    def fold(self, limit: int = 4096) -> bool:
        """One slice of background work. Raises StoreFull with everything as before."""
        with self._guard():
            return self._folder.step(limit)

    def backlog(self) -> int:
        """Records that are not folded yet."""
        return self._medium.backlog

    def load(self) -> StoreState:
        """The whole state as of the newest commit. Raises StoreCorrupt if what was read is not what was written."""
        with self._guard() as connection:
            state = StoreState(self.cluster, self.term, self.generation, self.sequence)
            for kind, key, value in connection.execute("SELECT kind, key, value FROM objects"):
                state.objects.setdefault(kind, {})[key] = unseal(value, f"object {kind} {key}")
            for row in connection.execute("SELECT id, kind, state, progress, total, payload FROM jobs ORDER BY id"):
                job = decode_job(EncodedJob(*row))
                state.jobs[job.id] = job
            state.image = read_image(self._forest())
            replay = Replay(state.image)
            for incarnation, ids in connection.execute("SELECT incarnation, ids FROM requests ORDER BY last_sequence"):
                replay.add_requests(int.from_bytes(incarnation, "big"), ids)
            self._replay_rows(replay)
            state.requests = replay.newest_requests()
        return state

    def _replay_rows(self, replay: Replay) -> None:
        at = self._folder.folded
        while (row := self._medium.next_row(at)) is not None:
            replay.apply(row.records)
            at = row.sequence
        if at != self.sequence:
            raise StoreCorrupt(f"the log ends at {at}, {self.sequence} were committed")

    def audit(self, after: int = 0, limit: int = 1000) -> list[tuple[int, AuditEntry]]:
        """Audit entries with a number above `after`, oldest first, with their numbers."""
        query = "SELECT id, at_ns, actor, action, detail FROM audit WHERE id > ? ORDER BY id LIMIT ?"
        with self._guard() as connection:
            rows = connection.execute(query, (after, limit))
            return [(number, decode_audit(number, EncodedAudit(*row))) for number, *row in rows]

    def backup_into(self, destination: apsw.Connection) -> apsw.Backup:
        """A copy of the whole store into an empty database, to be stepped by this thread, also between commits."""
        with self._guard() as connection:
            return destination.backup("main", connection, "main")

    def close(self) -> None:
        """Idempotent; never raises for what could not be copied back: the log has it. A broken store copies nothing."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.set_wal_hook(None)
            if self._broken is not None:
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.close(True)


def _undo(connection: apsw.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _translate(error: apsw.Error) -> StoreError:
    if isinstance(error, apsw.CorruptError | apsw.NotADBError | apsw.FormatError | apsw.SchemaChangeError):
        return StoreCorrupt(f"the store's file is damaged: {error}")
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return StoreLocked(f"another process has the store open: {error}")
    return StoreFailed(f"the store could not be read or written: {error}")


def _connect(path: Path, page_count_max: int | None, lock_wait_ms: int, vfs: str | None) -> apsw.Connection:
    """An open, checked and migrated connection. Raises StoreError."""
    _create(path)
    connection: apsw.Connection | None = None
    try:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
        connection = apsw.Connection(str(path.absolute()), flags=flags, vfs=vfs)
        connection.set_busy_timeout(lock_wait_ms)
        connection.execute(_PRAGMAS)
        if connection.pragma("journal_mode", "wal") != "wal":
            raise StoreFailed(f"the file system of {path} does not support a write-ahead log")
        if page_count_max is not None:
            connection.pragma("max_page_count", page_count_max)
        connection.execute("BEGIN IMMEDIATE; COMMIT")
        _check(connection, path)
        _settle_log(connection)
        migrate(connection)
        return connection
    except BaseException as error:
        if connection is not None:
            connection.close(True)
        if isinstance(error, apsw.FullError):
            raise StoreFull(f"no space for a store in {path}: {error}") from error
        if isinstance(error, apsw.Error):
            raise _translate(error) from error
        raise


def _settle_log(connection: apsw.Connection) -> None:
    """Copy what the write-ahead log holds into the file, and flush that.

    After a failed flush the log may read well from memory and yet not be on the disk; a second flush would not write
    it. Copied into the file it is written, and flushed, afresh.
    """
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.FullError as error:
        _LOG.error("the store's write-ahead log cannot be copied back: %s", error)


def _create(path: Path) -> None:
    """Make the file private before SQLite sees it. An existing file is not touched: closing it would drop its lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise StoreFailed(f"cannot create the store {path}: {error.strerror}") from error
    os.close(descriptor)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _check(connection: apsw.Connection, path: Path) -> None:
    if path.stat().st_size > QUICK_CHECK_BYTES_MAX:
        return
    problem = connection.execute("PRAGMA quick_check(1)").get
    if problem != "ok":
        raise StoreCorrupt(f"the store's file is damaged: {problem}")


def _write_group(connection: apsw.Connection, sequence: int, group: Group) -> None:
    """One transaction; a group that has no small changes is one statement."""
    row = (sequence, group.batches, group.records, row_check(sequence, group.batches, group.records))
    if not group.changes:
        connection.execute("INSERT INTO log VALUES (?, ?, ?, ?)", row)
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("INSERT INTO log VALUES (?, ?, ?, ?)", row)
        for changes in group.changes:
            _write_changes(connection, changes)
        connection.execute("COMMIT")
    except BaseException:
        _undo(connection)
        raise


def _write_changes(connection: apsw.Connection, changes: SmallChanges) -> None:
    many = connection.executemany
    many("DELETE FROM objects WHERE kind = ? AND key = ?", changes.deletes)
    many("INSERT OR REPLACE INTO objects VALUES (?, ?, ?)", changes.puts)
    many("DELETE FROM jobs WHERE id = ?", [(job_id,) for job_id in changes.jobs_removed])
    jobs = [(job.id, job.kind, job.state, job.progress, job.total, job.payload) for job in changes.jobs]
    many("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?)", jobs)
    audit = [(entry.at_ns, entry.actor, entry.action, entry.detail) for entry in changes.audit]
    many("INSERT INTO audit (at_ns, actor, action, detail) VALUES (?, ?, ?, ?)", audit)
