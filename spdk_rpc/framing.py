"""Cuts a byte stream into JSON texts, without looking at any byte twice and without decoding before a text is whole.

SPDK sends its answers one after the other with nothing but white space between them; a text ends where its brackets
close (RFC 8259). Bytes are decoded only then, so a UTF-8 character that arrives in two pieces stays whole. What is not
the beginning of an object or array, or is longer than the limit, is a :class:`FramingError`: there is no way to find
the next text after it.
"""

from __future__ import annotations

import re

RESPONSE_BYTES_MAX = 64 << 20  # SPDK itself sends at most 32 MiB

_WHITE_SPACE = b" \t\r\n"
_STRUCTURE = re.compile(rb'["{}\[\]]')
_STRING_END = re.compile(rb'["\\]')


class FramingError(ValueError):
    """The stream cannot be cut into JSON texts any more."""


class JsonFramer:
    """Bytes in, whole JSON texts (``bytes``) out."""

    def __init__(self, bytes_max: int = RESPONSE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_string = False

    @property
    def is_empty(self) -> bool:
        """Nothing but white space is waiting."""
        return not self._buffer

    def feed(self, data: bytes) -> list[bytes]:
        """The texts that ``data`` completes."""
        self._buffer += data
        texts = []
        while (text := self._next_text()) is not None:
            texts.append(text)
        return texts

    def _next_text(self) -> bytes | None:
        if not self._scanned:
            self._skip_white_space()
        end = self._scan()
        if (end or len(self._buffer)) > self._bytes_max:
            raise FramingError(f"a JSON text of more than {self._bytes_max} bytes")
        if end is None:
            return None
        text = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._scanned = 0
        return text

    def _skip_white_space(self) -> None:
        kept = self._buffer.lstrip(_WHITE_SPACE)
        if len(kept) != len(self._buffer):
            self._buffer = kept
        if kept and not kept.startswith((b"{", b"[")):
            raise FramingError(f"{bytes(kept[:16])!r} does not begin a JSON object or array")

    def _scan(self) -> int | None:
        """Goes on where the last scan stopped; the length of the text once its brackets have closed."""
        buffer, position = self._buffer, self._scanned
        while True:
            found = (_STRING_END if self._in_string else _STRUCTURE).search(buffer, position)
            if found is None:
                self._scanned = len(buffer)
                return None
            byte, position = buffer[found.start()], found.end()
            if byte == 0x5C:  # a backslash takes the next byte with it
                if position == len(buffer):
                    self._scanned = found.start()
                    return None
                position += 1
            elif byte == 0x22:
                self._in_string = not self._in_string
            else:
                self._depth += 1 if byte in b"{[" else -1
                if self._depth == 0:
                    return position
