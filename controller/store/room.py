"""Room in the write-ahead log, made ahead of need, so that a commit's flush does not have to make a file longer.

A flush that changes a file's size waits for the file system's own journal, which takes longer than the flush itself.
So zeros are appended behind what the log holds, a step at a time, and commits overwrite them. SQLite reads a log up to
the first frame that is none of its own; zeros never are, and what it has written is never touched. No room is no error:
then the log grows with the commits.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

_LOG: Final = logging.getLogger("segmap.store")
STEP_BYTES: Final = 1 << 20
SPARE_BYTES: Final = 128 << 10
"""What the next commits may need before room is made again; a larger one makes its own."""
_FRAME_BYTES: Final = 4096 + 24


class LogRoom:
    """The file that holds the log of one store; `ensure` before a commit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._zeros = bytes(STEP_BYTES)

    def ensure(self, pages: int) -> None:
        """The log holds so many pages, and more are coming."""
        needed = pages * _FRAME_BYTES + SPARE_BYTES
        if needed > self._size:
            try:
                self._extend(needed)
            except OSError as error:
                _LOG.warning("no room ahead in the store's log: %s", error.strerror)
                self._size = needed + STEP_BYTES

    def _extend(self, needed: int) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._size = os.fstat(descriptor).st_size
            while self._size < needed:
                self._size += os.pwrite(descriptor, self._zeros, self._size)
        finally:
            os.close(descriptor)
