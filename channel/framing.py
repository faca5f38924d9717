"""Cutting a byte stream into frames: any chunking gives the same frames."""

from __future__ import annotations

import struct
from typing import Final

from channel.codec import check_length

Buffer = bytes | bytearray | memoryview
_LENGTH: Final = struct.Struct("<I")


class FrameReader:
    """Holds at most one incomplete frame (FRAME_BYTES_MAX) besides what was fed last."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0

    def feed(self, data: Buffer) -> None:
        """Append received bytes (copied)."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The next whole frame, or None. Raises ProtocolError for a length that no frame has."""
        available = len(self._buffer) - self._start
        if available < 4:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, self._start)
        check_length(length)
        if available < length:
            return None
        with memoryview(self._buffer) as view:
            frame = bytes(view[self._start : self._start + length])
        self._start += length
        return frame

    @property
    def incomplete_bytes(self) -> int:
        """How much of an unfinished frame has come."""
        return len(self._buffer) - self._start

    def clear(self) -> None:
        self._buffer.clear()
        self._start = 0
