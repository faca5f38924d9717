"""Places where a store can live, the same for both kinds: open it, crash it, make its commits fail."""

from __future__ import annotations

import shutil
from array import array
from pathlib import Path
from typing import Protocol
from uuid import UUID

import apsw

from controller.store.image import MapImage
from controller.store.interface import Store
from controller.store.memory import MemoryDisk, MemoryStore
from controller.store.sqlite import SqliteStore
from mapping.entry import ZERO_ENTRY

CLUSTER = UUID(int=7)
QUICK = "segmap-quick"


class QuickVFS(apsw.VFS):
    """The default VFS without waiting for the disk: for tests in which no power fails."""

    def __init__(self) -> None:
        super().__init__(QUICK, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return QuickFile("", name, flags)


class QuickFile(apsw.VFSFile):
    def xSync(self, flags: int) -> None:
        pass


_QUICK = QuickVFS()


class Place(Protocol):
    """One store's home through several lives."""

    def open(self) -> Store: ...
    def crash(self) -> None:
        """The current life ends without closing; the next `open` finds what it left."""


class MemoryPlace:
    def __init__(self) -> None:
        self.disk = MemoryDisk(CLUSTER)

    def open(self) -> MemoryStore:
        return MemoryStore.open(self.disk)

    def crash(self) -> None:
        self.disk.crash()

    def end(self) -> None:
        pass


class SqlitePlace:
    """A crash is a copy of the files as they are; the crashed life goes on with the old ones, unseen."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.life = 0
        self.stores: list[SqliteStore] = []
        self.directory = top / "0"
        self.directory.mkdir()

    @property
    def path(self) -> Path:
        return self.directory / "store.db"

    def open(self) -> SqliteStore:
        store = SqliteStore.open(self.path, cluster=CLUSTER, lock_wait_ms=0, vfs=QUICK)
        self.stores.append(store)
        return store

    def crash(self) -> None:
        self.life += 1
        copy = self.top / str(self.life)
        shutil.copytree(self.directory, copy)
        self.directory = copy

    def end(self) -> None:
        for store in self.stores:
            store.close()


_ALL_ZERO = (array("Q", [ZERO_ENTRY]) * 4096).tobytes()


def contents(image: MapImage) -> tuple[object, ...]:
    """What an image says, however it says it: missing chunks and trailing FREE segments do not count."""
    texts: dict[int, bytes] = {}

    def text(chunk: array[int]) -> bytes:
        return texts.setdefault(id(chunk), chunk.tobytes())

    tables = {
        vdisk: {number: text(chunk) for number, chunk in chunks.items() if text(chunk) != _ALL_ZERO}
        for vdisk, chunks in image.tables.items()
    }
    return (
        {vdisk: chunks for vdisk, chunks in tables.items() if chunks},
        {slot: bytes(states).rstrip(b"\0") for slot, states in image.segments.items() if any(states)},
        {slot: counts for slot, counts in image.references.items() if counts},
    )


def fold_all(store: Store, limit: int = 4096) -> None:
    """Fold until nothing is left to do."""
    for _ in range(100_000):
        if not store.fold(limit):
            return
    raise AssertionError("folding does not end")
