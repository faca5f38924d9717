"""Restoring a store: a verified backup becomes the store of a stopped controller, and allocation freezes.

What the lost store decided after the backup is unknown to the restored one, while agents and containers go on as they
are. Therefore the restored store

* has a higher generation (labels of containers that were written later are noticed), a term and counters of
  incarnations and vdisks that are higher than any the lost store can have given out;
* knows no zeroed segment: what was zeroed then may hold somebody's data now;
* knows of no agent that it was drained, or that an operator said that its machine is off;
* carries the freeze: nothing is allocated or zeroed until agents and labels have been compared (`segmap check
  --reconcile`).

The store that was there is kept beside it. A crash leaves the old store, the new one, or none under the name; never a
mixture.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apsw

from controller.store.backup import flush_directory, flush_file
from controller.store.interface import (
    FROZEN_KEY,
    FROZEN_KIND,
    AuditEntry,
    Batch,
    JsonValue,
    StoreError,
    StoreFailed,
    StoreLocked,
    StoreState,
)
from controller.store.records import RecordBuilder, SegmentState
from controller.store.sqlite import SqliteStore
from controller.store.verify import Verified, verify

TERM_STEP: Final = 1 << 16
"""More terms than a store begins between a backup and its restore."""
TERM_MAX: Final = (1 << 24) - 1
"""Batch ids carry the term in 24 bits."""
COUNTER_STEP: Final = 1 << 16
"""More incarnations, and more vdisks, than are made between a backup and its restore."""
BELIEFS: Final = frozenset(("drained", "vouched"))
"""Of an agent's record."""
BATCH_SEGMENT_RUNS: Final = 100_000
_PART_SUFFIX: Final = ".restoring"


class RestoreRefused(StoreError):
    """Nothing was changed."""


class StorePresent(RestoreRefused):
    """There is a store already."""

    advice = "use --force: the store that is there is kept under another name"


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore has made. `kept`: where the store is that was there before."""

    path: Path
    backup: Verified
    generation: int
    term: int
    kept: Path | None

    def row(self) -> dict[str, Any]:
        """For programs."""
        state = self.backup.state
        assert state is not None
        return {
            "path": str(self.path),
            "backup": str(self.backup.path),
            "cluster": str(state.cluster),
            "sequence": state.sequence,
            "generation": self.generation,
            "term": self.term,
            "kept": str(self.kept) if self.kept else None,
            "frozen": True,
        }


def restore(backup: Path, path: Path, *, force: bool, generation: int, now_ns: int) -> Restored:
    """Make `path` the store that `backup` is a backup of; `generation`: at least this one. `now_ns` is wall-clock time.

    Raises StorePresent, RestoreRefused, and StoreError for what cannot be read or written.
    """
    if path.exists() and not force:
        raise StorePresent(f"{path} is there already")
    if path.exists() and backup.exists() and path.samefile(backup):
        raise RestoreRefused(f"{path} cannot be restored from itself")
    verified = verify(backup)
    if verified.state is None or not verified.good:
        worst = verified.findings.found[0].text if verified.findings.found else "it could not be read"
        raise RestoreRefused(f"{backup} is damaged: {worst}; `segmap store verify` shows all of it")
    old = _Old(path)
    try:
        state = verified.state
        new_generation = max(state.generation, old.generation, generation - 1) + 1
        new_term = max(state.term, old.term) + TERM_STEP
        if new_term > TERM_MAX:
            raise RestoreRefused(f"term {new_term} is beyond {TERM_MAX}: this store has been restored too often")
        part = _copy(backup, path)
        try:
            _change(part, state, new_generation, new_term, now_ns, str(backup))
            kept = old.make_way(new_generation)
            part.rename(path)
            flush_directory(path.absolute().parent)
        except BaseException:
            _remove(part)
            raise
    except OSError as error:
        raise StoreFailed(f"restoring {path}: {error.strerror}") from error
    finally:
        old.close()
    return Restored(path, verified, new_generation, new_term + 1, kept)


class _Old:
    """The store that is in the way, if there is one: locked, so that no controller begins to use it meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.term = 0
        self.generation = 0
        self._connection: apsw.Connection | None = None
        if path.exists():
            try:
                self._lock()
            except (apsw.BusyError, apsw.LockedError) as error:
                self.close()
                raise StoreLocked(f"{path} is open: stop the controller first") from error
            except apsw.Error:
                self.close()  # damaged: that is why it is being replaced

    def _lock(self) -> None:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
        connection = self._connection = apsw.Connection(str(self.path.absolute()), flags=flags)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT")
        meta = {str(key): value for key, value in connection.execute("SELECT key, value FROM meta")}
        self.term, self.generation = int(meta["term"]), int(meta["generation"])
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def make_way(self, generation: int) -> Path | None:
        """Rename it. Its write-ahead log is empty if it could be read, else it is kept with it."""
        if not self.path.exists():
            self._beside("-wal").unlink(missing_ok=True)
            return None
        kept = self.path.with_name(f"{self.path.name}.before-generation-{generation}")
        number = 1
        while kept.exists():
            number += 1
            kept = self.path.with_name(f"{self.path.name}.before-generation-{generation}-{number}")
        self.path.rename(kept)
        wal = self._beside("-wal")
        if wal.exists():
            wal.rename(kept.with_name(kept.name + "-wal"))
        self._beside("-shm").unlink(missing_ok=True)
        return kept

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def close(self) -> None:
        """Let go of it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(True)


def _copy(backup: Path, path: Path) -> Path:
    """The backup's bytes, and those of its write-ahead log, under a name that no controller opens."""
    part = path.with_name(path.name + _PART_SUFFIX)
    _remove(part)
    for suffix in ("", "-wal"):
        source = backup.with_name(backup.name + suffix)
        if source.exists():
            target = part.with_name(part.name + suffix)
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as copy, source.open("rb") as original:
                shutil.copyfileobj(original, copy, 1 << 20)
    return part


def _remove(part: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        part.with_name(part.name + suffix).unlink(missing_ok=True)


def _change(part: Path, state: StoreState, generation: int, term: int, now_ns: int, backup: str) -> None:
    """Turn the copy into the restored store, and flush it."""
    SqliteStore.open(part).close()  # what its write-ahead log holds goes into the file
    connection = apsw.Connection(str(part.absolute()), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE meta SET value = ? WHERE key = 'generation'", (generation,))
        connection.execute("UPDATE meta SET value = ? WHERE key = 'term'", (term,))
        connection.execute("COMMIT")
    finally:
        connection.close(True)
    store = SqliteStore.open(part)
    try:
        store.new_term()
        batch_id = store.term << 40
        for number, records in enumerate(_unknown_contents(state)):
            store.commit([Batch(batch_id | number + 1, records)], store.term)
        store.commit([_freeze(batch_id, state, generation, now_ns, backup)], store.term)
    finally:
        store.close()
    flush_file(part)


def _unknown_contents(state: StoreState) -> list[bytes]:
    """Records by which every zeroed segment is free again: its content is unknown."""
    batches: list[bytes] = []
    builder, runs = RecordBuilder(), 0
    for slot, states in state.image.segments.items():
        start = states.find(SegmentState.ZEROED)
        while start >= 0:
            end = start
            while end < len(states) and states[end] == SegmentState.ZEROED:
                end += 1
            builder.segment_run(slot, start, end - start, SegmentState.FREE)
            runs += 1
            if runs % BATCH_SEGMENT_RUNS == 0:
                batches.append(builder.take())
            start = states.find(SegmentState.ZEROED, end)
    if len(builder):
        batches.append(builder.take())
    return batches


def _freeze(batch_id: int, state: StoreState, generation: int, now_ns: int, backup: str) -> Batch:
    counters = state.objects.get("counter", {})
    agents: list[Any] = list(state.objects.get("agent", {}).values())
    incarnation = max([_number(counters.get("incarnation")), *(agent["incarnation"] for agent in agents)])
    vdisk = max([_number(counters.get("vdisk")), *map(int, state.objects.get("vdisk", {}))])
    reason = f"the store was restored from a backup of sequence {state.sequence}"
    detail: dict[str, JsonValue] = {
        "reason": reason,
        "generation": generation,
        "sequence": state.sequence,
        "at_ns": now_ns,
    }
    return Batch(
        batch_id,
        puts=(
            (FROZEN_KIND, FROZEN_KEY, detail),
            ("counter", "incarnation", incarnation + COUNTER_STEP),
            ("counter", "vdisk", vdisk + COUNTER_STEP),
            *_without_beliefs(state),
        ),
        audit=(AuditEntry(now_ns, "segmap store restore", "store.restore", {**detail, "backup": backup}),),
    )


def _without_beliefs(state: StoreState) -> Iterator[tuple[str, str, JsonValue]]:
    """Agents of which it was believed that they hold nothing. They may have been used again since."""
    for key, record in state.objects.get("agent", {}).items():
        assert isinstance(record, dict), "an agent's record is not a record"
        if BELIEFS & record.keys():
            yield "agent", key, {name: value for name, value in record.items() if name not in BELIEFS}


def _number(value: JsonValue) -> int:
    return value if isinstance(value, int) else 0
