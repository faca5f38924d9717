"""Small files that are replaced whole or not at all, and are on the disk then: keys, certificates, lists of tokens."""

from __future__ import annotations

import os
from pathlib import Path


def write_new(path: Path, data: bytes, mode: int) -> None:
    """A file that is not there yet, with this mode. Raises FileExistsError, or another OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def replace_whole(path: Path, data: bytes, mode: int) -> None:
    """The file has these bytes and this mode; who reads it meanwhile sees the old ones. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    write_new(fresh, data, mode)
    fresh.replace(path)
