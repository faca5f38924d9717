"""A disk that loses and tears what was not flushed: a SQLite VFS that records every write, and images of what a power
failure at any point of the record could leave."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import apsw

SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Write:
    file: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    file: str
    length: int


@dataclass(frozen=True, slots=True)
class Sync:
    file: str


@dataclass(frozen=True, slots=True)
class Delete:
    file: str


class RecordingVFS(apsw.VFS):
    """The default VFS, with `record` in the order of the calls."""

    def __init__(self, name: str) -> None:
        self.record: list[Write | Truncate | Sync | Delete] = []
        super().__init__(name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return RecordingFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self.record.append(Delete(Path(filename).name))
        super().xDelete(filename, syncdir)


class RecordingFile(apsw.VFSFile):
    def __init__(self, vfs: RecordingVFS, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("", name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._file = Path(path or "temporary").name
        self._record = vfs.record

    def xWrite(self, data: bytes, offset: int) -> None:
        self._record.append(Write(self._file, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        self._record.append(Truncate(self._file, newsize))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        self._record.append(Sync(self._file))


class Remains:
    """The files after a power failure, step by step through the record."""

    def __init__(self) -> None:
        self._flushed: dict[str, bytearray] = {}
        self._unflushed: dict[str, list[Write | Truncate]] = {}

    def step(self, done: Write | Truncate | Sync | Delete) -> None:
        """The call has returned."""
        match done:
            case Delete(file):
                self._flushed.pop(file, None)
                self._unflushed.pop(file, None)
            case Sync(file):
                image = self._flushed.setdefault(file, bytearray())
                for change in self._unflushed.pop(file, []):
                    _apply(image, change)
            case _:
                self._unflushed.setdefault(done.file, []).append(done)

    def write_to(self, directory: Path, rng: random.Random) -> None:
        """What is left if the power fails now: all that was flushed, and any sectors of the rest."""
        directory.mkdir()
        for file in self._flushed.keys() | self._unflushed.keys():
            image = self._flushed.get(file, bytearray())[:]
            for change in self._unflushed.get(file, []):
                for part in _parts(change, rng):
                    _apply(image, part)
            (directory / file).write_bytes(image)


def _parts(change: Write | Truncate, rng: random.Random) -> list[Write | Truncate]:
    """All, none, or some sectors of a write that was not flushed."""
    fate = rng.randrange(3)
    if fate == 0:
        return []
    if fate == 1 or isinstance(change, Truncate):
        return [change]
    sectors = range(0, len(change.data), SECTOR_BYTES)
    return [
        Write(change.file, change.offset + at, change.data[at : at + SECTOR_BYTES])
        for at in sectors
        if rng.random() < 0.7
    ]


def _apply(image: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        del image[change.length :]
        image.extend(bytes(change.length - len(image)))
        return
    end = change.offset + len(change.data)
    image.extend(bytes(max(0, end - len(image))))
    image[change.offset : end] = change.data
