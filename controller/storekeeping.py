"""What operators and the core want of the store's file: backups while it is in use, and a reading of what it says.

Both are a copy made in slices by the store's own thread, between commits, so that faults go on being answered; reading
then looks at the copy in another thread. One backup at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from controller.api.errors import ApiError
from controller.store.audit import ERROR, WARNING, Finding
from controller.store.backup import Backup, BackupExists
from controller.store.interface import AuditEntry, Batch, StoreError, StoreFull, StoreState
from controller.store.verify import verify
from controller.store.writer import GroupCommitter

_log: Final = logging.getLogger("segmap.controller")
AUDIT_BATCH: Final = 1 << 39
"""Set in the ids of our own batches: the core counts its own from 1."""
TURN_S: Final = 0.0005
ANSWER_WITHIN_S: Final = 20.0
"""A backup that takes longer is answered as running; ask again."""


class StoreKeeper:
    """Beside the committer that owns the store. `path` is the store's file."""

    def __init__(self, committer: GroupCommitter, path: Path) -> None:
        self._committer = committer
        self._path = path
        self._stopping = False
        self._audited = 0
        self._task: asyncio.Task[None] | None = None
        self._backup: Backup | None = None
        self._outcome: StoreError | None = None

    # --- backups -----------------------------------------------------------------------------------------------------

    async def backup(self, target: str) -> dict[str, Any]:
        """Back up into a new file; while that runs, asking for the same file again waits for it. Raises ApiError."""
        path = Path(target)
        if not path.is_absolute():
            raise ApiError("bad_argument", f"path: {target} is not absolute", "the controller writes it, not you")
        if self._task is not None and not self._task.done():
            assert self._backup is not None
            if self._backup.path != path:
                raise ApiError("busy", f"a backup into {self._backup.path} is being made", "try again later")
        elif not self._repeated(path):
            self._backup, self._outcome = Backup(path), None
            self._task = asyncio.get_running_loop().create_task(self._run(self._backup))
        assert self._task is not None
        await asyncio.wait({self._task}, timeout=ANSWER_WITHIN_S)
        if self._outcome is not None:
            raise _refusal(self._outcome)
        row = self.newest()
        assert row is not None
        return row

    def _repeated(self, path: Path) -> bool:
        """True if it is asked for again what has just been made."""
        known = self._backup
        return known is not None and known.path == path and self._outcome is None and path.exists()

    async def _run(self, backup: Backup) -> None:
        try:
            await self._copy(backup)
            await asyncio.to_thread(backup.publish)
            _log.info("controller: backup %s of sequence %d", backup.path, backup.sequence)
        except StoreError as error:
            self._outcome = error
            backup.discard()
            _log.error("controller: no backup %s: %s", backup.path, error)

    async def _copy(self, backup: Backup) -> None:
        """All slices; whatever happens, the store's thread lets go of the copy."""
        try:
            while await self._committer.call(backup.step):
                if self._stopping:
                    raise StoreError("the controller stops")
        finally:
            try:
                await self._committer.call(lambda store: backup.end())
            except StoreError:
                with contextlib.suppress(Exception):
                    backup.end()  # the store is closed, and with it the copying

    def newest(self) -> dict[str, Any] | None:
        """The backup that runs, or was made last."""
        backup, task = self._backup, self._task
        if backup is None or task is None:
            return None
        state = "running" if not task.done() else "failed" if self._outcome is not None else "done"
        return {
            "path": str(backup.path),
            "state": state,
            "pages_done": backup.pages_done,
            "pages": backup.pages,
            "size_bytes": backup.path.stat().st_size if state == "done" and backup.path.exists() else None,
            "sequence": backup.sequence if state == "done" else None,
            "detail": str(self._outcome or ""),
        }

    # --- the audit log -----------------------------------------------------------------------------------------------

    async def audit(self, term: int, actor: str, action: str, detail: dict[str, Any]) -> None:
        """Record who did what, at the present wall-clock time."""
        self._audited += 1
        entry = AuditEntry(time.time_ns(), actor, action, detail)
        try:
            await self._committer.commit(Batch(term << 40 | AUDIT_BATCH | self._audited, audit=(entry,)))
        except StoreError as error:
            _log.error("controller: %s %s by %s is not in the audit log: %s", action, detail, actor, error)

    async def audited(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Entries with a number above `after`. Raises ApiError."""
        try:
            entries = await self._committer.call(lambda store: store.audit(after, limit))
        except StoreError as error:
            raise _refusal(error) from error
        return [
            {
                "number": number,
                "time": datetime.fromtimestamp(entry.at_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
                "actor": entry.actor,
                "action": entry.action,
                "detail": entry.detail,
            }
            for number, entry in entries
        ]

    # --- reading -----------------------------------------------------------------------------------------------------

    async def read(self) -> tuple[StoreState | None, tuple[Finding, ...]]:
        """What the store says, read back and checked: its state, and what is wrong with it."""
        backup = Backup(self._path.with_name(f"{self._path.name}.check"))
        try:
            await self._copy(backup)
            with _short_turns():
                verified = await asyncio.to_thread(lambda: verify(backup.copied, image=False))
            return verified.state, tuple(verified.findings.found)
        except StoreFull as error:
            return None, (Finding(WARNING, "store", f"the store was not read back: {error}"),)
        except StoreError as error:
            return None, (Finding(ERROR, "store", f"the store could not be read back: {error}"),)
        finally:
            await asyncio.to_thread(backup.discard)  # a large file takes its time to go

    def size_bytes(self) -> int:
        """The store's file and its write-ahead log."""
        files = (self._path, self._path.with_name(self._path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    async def stop(self) -> None:
        """A backup that runs is given up."""
        self._stopping = True
        if self._task is not None:
            await asyncio.wait({self._task})


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """While another thread computes: the loop and the store's thread, which answer faults, get their turns sooner."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)


def _refusal(error: StoreError) -> ApiError:
    text = Exception.__str__(error)
    if isinstance(error, BackupExists):
        return ApiError("exists", text, error.advice)
    if isinstance(error, StoreFull):
        return ApiError("no_space", text, error.advice)
    return ApiError("unavailable", text, error.advice)
