"""Online backup: the store copied page by page in slices between commits, into a file that appears whole or not at all.

What is committed while it runs is in the copy, too: SQLite mirrors it. The file is private (mode 0600), flushed, and
named only then; one that is there already is not replaced.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

import apsw

from controller.store.interface import Store, StoreError, StoreFailed, StoreFull
from controller.store.sqlite import SqliteStore

PAGES_PER_SLICE: Final = 128
"""512 KiB: about a millisecond."""
PART_SUFFIX: Final = ".part"


class BackupExists(StoreError):
    """There is a file of that name; it was not touched."""

    advice = "choose another name, or move the file away"


class Backup:
    """One backup. `step` and `end` belong to the thread that owns the store, `publish` to any thread, after them.

    `copied` is the file until it is published.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pages = 0
        self.pages_done = 0
        self.sequence = 0
        self.copied = path.with_name(path.name + PART_SUFFIX)
        self._destination: apsw.Connection | None = None
        self._copying: apsw.Backup | None = None

    def step(self, store: Store) -> bool:
        """One slice. False: all is copied. Raises BackupExists, StoreFull, StoreFailed, and what the store raises."""
        try:
            if self._copying is None:
                self._begin(store)
            assert self._copying is not None
            done = self._copying.step(PAGES_PER_SLICE)
            self.pages = self._copying.page_count
            self.pages_done = self.pages - self._copying.remaining
            if done:
                self.sequence = store.sequence
                self._copying.finish()
            return not done
        except apsw.FullError as error:
            raise StoreFull(f"no space for the backup {self.path}: {error}") from error
        except apsw.Error as error:
            raise StoreFailed(f"the backup {self.path} could not be written: {error}") from error

    def _begin(self, store: Store) -> None:
        if not isinstance(store, SqliteStore):
            raise StoreFailed("this kind of store has no backup")
        if self.path.exists():
            raise BackupExists(f"{self.path} is there already")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self.copied.unlink(missing_ok=True)
            os.close(os.open(self.copied, flags, 0o600))
        except OSError as error:
            raise StoreFailed(f"cannot create {self.copied}: {error.strerror}") from error
        self._destination = apsw.Connection(str(self.copied.absolute()), flags=apsw.SQLITE_OPEN_READWRITE)
        self._destination.execute("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
        self._copying = store.backup_into(self._destination)

    def end(self) -> None:
        """Let go of both files. Idempotent."""
        copying, self._copying = self._copying, None
        if copying is not None:
            copying.close(True)
        destination, self._destination = self._destination, None
        if destination is not None:
            destination.close(True)

    def publish(self) -> None:
        """Flush the copy and name it, unless the name has been taken meanwhile. Raises BackupExists, StoreFailed."""
        try:
            flush_file(self.copied)
            os.link(self.copied, self.path)
            self.copied.unlink()
            flush_directory(self.path.parent)
        except FileExistsError as error:
            raise BackupExists(f"{self.path} is there already") from error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StoreFull(f"no space for the backup {self.path}") from error
            raise StoreFailed(f"the backup {self.path} could not be flushed: {error.strerror}") from error

    def discard(self) -> None:
        """Leave nothing behind. After `end`."""
        if self.pages or self.copied.exists():
            self.copied.unlink(missing_ok=True)


def flush_file(path: Path) -> None:
    """fsync."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_directory(path: Path) -> None:
    """fsync of a directory: names in it are durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
