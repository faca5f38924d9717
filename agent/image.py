"""The file of a container in a file."""

from __future__ import annotations

import os
from typing import Final

FILE_MODE: Final = 0o600


def create_sparse(path: str, size_bytes: int) -> None:
    """Whole or not at all: a file that is there is left as it is. Raises OSError."""
    if os.path.exists(path):
        return
    started = f"{path}.new"
    descriptor = os.open(started, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    try:
        os.ftruncate(descriptor, size_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(started, path)
