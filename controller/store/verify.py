"""Verifying a store that nobody has open: a backup, or the store of a stopped controller. Nothing in it is changed.

SQLite's own structure check; the checksum of every log row, tree node and value; the reference counts of the tree; and
the image that all of it means, audited (audit.py). What is found wrong is told as findings, as many as there are; only
what cannot be read as a store at all is an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

import apsw

from controller.store.audit import ERROR, Findings, ImageAudit, Recorded
from controller.store.batches import EncodedAudit, EncodedJob, decode_audit, decode_job, unseal
from controller.store.folding import FoldForest
from controller.store.interface import (
    StoreCorrupt,
    StoreError,
    StoreFailed,
    StoreLocked,
    StoreState,
    StoreVersion,
    frozen,
)
from controller.store.medium import SqliteMedium
from controller.store.nodes import NodeDamaged, StoredNode, decode_node
from controller.store.records import RecordError
from controller.store.replay import Replay
from controller.store.schema import APPLICATION_ID, STEPS
from controller.store.tree import audit_counts, read_image

PROBLEMS_MAX: Final = 100
"""Lines asked of SQLite's structure check."""


class StoreMissing(StoreError):
    """There is no such file."""

    advice = "give the path of a store or of a backup"


@dataclass(slots=True)
class Verified:
    """What a store says of itself, and what is wrong with it. `state` is None if it could not be read whole."""

    path: Path
    findings: Findings
    state: StoreState | None = None
    folded: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """True if nothing is wrong."""
        return not self.findings.found

    def row(self) -> dict[str, Any]:
        """For programs."""
        state = self.state
        return {
            "path": str(self.path),
            "good": self.good,
            "cluster": str(state.cluster) if state else None,
            "term": state.term if state else None,
            "generation": state.generation if state else None,
            "sequence": state.sequence if state else None,
            "frozen": frozen(state) if state else None,
            "counts": self.counts,
            "findings": [finding.row() for finding in self.findings.found],
            "findings_dropped": self.findings.dropped,
        }


@contextlib.contextmanager
def reading(path: Path) -> Iterator[apsw.Connection]:
    """A connection that changes nothing. With a write-ahead log beside it, the file is locked while it is read.

    Raises StoreMissing, StoreLocked, StoreCorrupt, StoreVersion, StoreFailed.
    """
    if not path.is_file():
        raise StoreMissing(f"{path}: no such store")
    try:
        connection = _connect(path)
        try:
            connection.execute("PRAGMA query_only = ON; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON")
            _check_owner(connection, path)
            yield connection
        finally:
            connection.close(True)
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreLocked(f"{path} is open in another process") from error
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise StoreCorrupt(f"{path}: {error}") from error
    except apsw.Error as error:
        raise StoreFailed(f"{path} could not be read: {error}") from error


def _connect(path: Path) -> apsw.Connection:
    if path.with_name(path.name + "-wal").exists():
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
        connection = apsw.Connection(str(path.absolute()), flags=flags)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        return connection
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    return apsw.Connection(f"file:{quote(str(path.absolute()))}?immutable=1", flags=flags)


def _check_owner(connection: apsw.Connection, path: Path) -> None:
    if int(connection.pragma("application_id")) != APPLICATION_ID:
        raise StoreCorrupt(f"{path} is not a segmap store")
    version = int(connection.pragma("user_version"))
    if version > len(STEPS):
        raise StoreVersion(f"{path} has version {version}, this release knows up to {len(STEPS)}")


def verify(path: Path, *, image: bool = True) -> Verified:
    """Look at everything; without `image`, not at what the tables mean together. Raises what `reading` raises."""
    verified = Verified(path, Findings())
    with reading(path) as connection:
        looked = _Look(connection, verified)
        if looked.structure():
            looked.everything()
    if verified.state is not None and image:
        state = verified.state
        audit = ImageAudit(Recorded(state.image, state.objects, state.jobs))
        for _ in audit.run():
            pass
        for finding in audit.findings.found:
            verified.findings.add(finding.severity, finding.kind, finding.text)
        verified.findings.dropped += audit.findings.dropped
        verified.counts["segments"] = audit.segments
    return verified


class _Look:
    """One verification; every part adds its findings, and says whether what it read may be used."""

    def __init__(self, connection: apsw.Connection, verified: Verified) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._verified = verified

    def _wrong(self, kind: str, text: str) -> None:
        self._verified.findings.add(ERROR, kind, text)

    def structure(self) -> bool:
        """SQLite's own check: pages, cells, indexes."""
        found = [row[0] for row in self._execute(f"PRAGMA integrity_check({PROBLEMS_MAX})")]
        if found != ["ok"]:
            for text in found:
                self._wrong("structure", str(text))
        return found == ["ok"]

    def everything(self) -> None:
        """Values, log, nodes; then, if all could be read, counts and the state as a whole."""
        state = self._meta()
        if state is None:
            return
        good = self._values(state)
        good = self._log(state) and good
        if self._nodes() and good:
            self._whole(state)

    def _meta(self) -> StoreState | None:
        rows: dict[Any, Any] = dict(iter(self._execute("SELECT key, value FROM meta")))
        missing = [
            key for key in ("term", "generation", "folded", "clock", "next_node") if type(rows.get(key)) is not int
        ]
        cluster = rows.get("cluster")
        if missing or not isinstance(cluster, bytes) or len(cluster) != 16:
            self._wrong(
                "meta", f"{', '.join([*missing, *(() if isinstance(cluster, bytes) else ('cluster',))])}: missing"
            )
            return None
        newest = self._execute("SELECT max(sequence) FROM log").get
        self._verified.folded = rows["folded"]
        return StoreState(UUID(bytes=cluster), rows["term"], rows["generation"], max(newest or 0, rows["folded"]))

    def _values(self, state: StoreState) -> bool:
        """Objects, jobs and audit entries."""
        before = len(self._verified.findings.found)
        count = 0
        for kind, key, value in self._execute("SELECT kind, key, value FROM objects"):
            count += 1
            with self._catching("object"):
                state.objects.setdefault(kind, {})[key] = unseal(value, f"object {kind} {key}")
        for row in self._execute("SELECT id, kind, state, progress, total, payload FROM jobs ORDER BY id"):
            count += 1
            with self._catching("job"):
                job = decode_job(EncodedJob(*row))
                state.jobs[job.id] = job
        for number, *columns in self._execute("SELECT id, at_ns, actor, action, detail FROM audit"):
            count += 1
            with self._catching("audit"):
                decode_audit(number, EncodedAudit(*columns))
        self._verified.counts["values"] = count
        return len(self._verified.findings.found) == before

    @contextlib.contextmanager
    def _catching(self, kind: str) -> Iterator[None]:
        try:
            yield
        except (StoreCorrupt, NodeDamaged, RecordError, ValueError) as error:
            self._wrong(kind, str(error))

    def _log(self, state: StoreState) -> bool:
        """Every row that is not folded, in order, with its checksum."""
        medium, at, rows = SqliteMedium(self._connection), self._verified.folded, 0
        with self._catching("log"):
            while (row := medium.next_row(at)) is not None:
                at = row.sequence
                rows += 1
        self._verified.counts["log_rows"] = rows
        return at == state.sequence

    def _nodes(self) -> bool:
        before = len(self._verified.findings.found)
        count = 0
        for row in self._execute("SELECT * FROM nodes"):
            count += 1
            with self._catching("node"):
                decode_node(StoredNode(*row))
        self._verified.counts["nodes"] = count
        return len(self._verified.findings.found) == before

    def _whole(self, state: StoreState) -> None:
        """The counts of the trees, then the image: trees and what the log adds."""
        medium = SqliteMedium(self._connection)
        forest = FoldForest(medium)
        with self._catching("tree"):
            forest.trees, forest.queue = medium.read_trees(), medium.read_queue()
            for node, (count, should) in audit_counts(forest).items():
                self._wrong("count", f"tree node {node} has the reference count {count}, should have {should}")
            state.image = read_image(forest)
            replay = Replay(state.image)
            for incarnation, ids in self._execute("SELECT incarnation, ids FROM requests ORDER BY last_sequence"):
                replay.add_requests(int.from_bytes(incarnation, "big"), ids)
            at = self._verified.folded
            while (row := medium.next_row(at)) is not None:
                replay.apply(row.records)
                at = row.sequence
            state.requests = replay.newest_requests()
            self._verified.state = state
