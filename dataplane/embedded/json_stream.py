"""JSON values out of a byte stream, incrementally: what SPDK's RPC socket accepts, and nothing else.

Bytes in, documents out; a document may come in any number of pieces, and several may come in one. Each byte is looked
at once. Invariants: at most BUFFER_BYTES are held for an unfinished document, at most VALUES_MAX values (names and
brackets count, as in SPDK) and DEPTH_MAX levels are in a finished one; a byte that cannot continue a document is an
error at once (RFC 8259, without extensions), and after an error there is no way to find the next document.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

BUFFER_BYTES: Final = 256 * 1024
VALUES_MAX: Final = 8192
DEPTH_MAX: Final = 64
NUMBER_CHARACTERS_MAX: Final = 4096

_VALUE, _VALUE_OR_END, _NAME, _NAME_OR_END, _COLON, _SEPARATOR = range(6)
_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_HIGH: Final = rb"[dD][89abAB][0-9a-fA-F]{2}"
_UNICODE: Final = (
    rb"(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}|" + _HIGH + rb"\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
_ESCAPE: Final = rb'\\(?:["\\/bfnrt]|u' + _UNICODE + rb")"
_STRING_BODY: Final = re.compile(rb'(?:[^"\\\x00-\x1f]++|' + _ESCAPE + rb")*+")
_ESCAPE_BEGUN: Final = re.compile(rb"\\(?:u(?:[0-9a-fA-F]{0,3}|" + _HIGH + rb"(?:\\(?:u[0-9a-fA-F]{0,3})?)?)?)?")
_NUMBER_CHARACTERS: Final = re.compile(rb"[-+.0-9eE]*")
_NUMBER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LITERALS: Final = {0x74: b"true", 0x66: b"false", 0x6E: b"null"}


class JsonInvalid(ValueError):
    """The bytes are no JSON, or beyond a limit; the connection cannot go on."""


class JsonOverflow(JsonInvalid):
    """An unfinished document fills the buffer."""


class Number(str):
    """A JSON number that is no plain integer of at most 20 digits, as it was written."""

    __slots__ = ()


class Members(dict[str, Any]):
    """A JSON object that remembers whether a name came twice."""

    __slots__ = ("repeated",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = len(pairs) != len(self)


def _number(text: str) -> int | Number:
    if len(text) <= 20 and text.lstrip("-").isdigit() and text != "-0":
        return int(text)
    return Number(text)


_DECODER: Final = json.JSONDecoder(object_pairs_hook=Members, parse_int=_number, parse_float=_number)


class JsonStream:
    """`receive_data(bytes)`, then `next_document()` until it returns False."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.document: Any = None
        self._begin()

    def _begin(self) -> None:
        self._at = 0
        self._start = -1
        self._state = _VALUE
        self._open = bytearray()
        self._values = 0
        self._in_string = False

    @property
    def idle(self) -> bool:
        """True if no document has begun."""
        return self._start < 0

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the peer. Nothing is looked at yet."""
        self._buffer += data

    def next_document(self) -> bool:
        """True if a whole document came; it is in `document` then. Raises JsonInvalid."""
        end = self._scan()
        if end > BUFFER_BYTES or (end < 0 and len(self._buffer) >= BUFFER_BYTES):
            raise JsonOverflow(f"a request fills the {BUFFER_BYTES} byte buffer")
        if end < 0:
            return False
        if self._values > VALUES_MAX:
            raise JsonInvalid(f"{self._values} values in one document, at most {VALUES_MAX}")
        text = bytes(self._buffer[self._start : end])
        del self._buffer[:end]
        self._begin()
        try:
            self.document = _DECODER.decode(text.decode("utf-8"))
        except ValueError as error:
            raise JsonInvalid(str(error)) from None
        return True

    def _scan(self) -> int:
        """Go on where the last call stopped; the end of the document, or -1."""
        buffer = self._buffer
        while True:
            if self._in_string:
                if not self._scan_string():
                    return -1
            else:
                match = _SPACE.match(buffer, self._at)
                assert match is not None
                self._at = match.end()
                if self._at == len(buffer):
                    if self._start < 0:
                        buffer.clear()
                        self._at = 0
                    return -1
                if self._start < 0:
                    self._start = self._at
                if not self._scan_token(buffer[self._at]):
                    return -1
            if not self._open and self._state == _SEPARATOR and not self._in_string:
                return self._at

    def _scan_token(self, byte: int) -> bool:
        """One token that begins with `byte`; False if it is not all there."""
        if byte == 0x22:
            return self._begin_string()
        if byte in b"{[":
            self._push(byte)
        elif byte in b"}]":
            self._pop(byte)
        elif byte == 0x2C:
            self._expect(self._state == _SEPARATOR)
            self._state = _NAME if self._open[-1] == 0x7B else _VALUE
        elif byte == 0x3A:
            self._expect(self._state == _COLON)
            self._state = _VALUE
        else:
            return self._scan_scalar(byte)
        self._at += 1
        return True

    def _expect(self, condition: bool) -> None:
        if not condition:
            raise JsonInvalid(f"unexpected byte {self._buffer[self._at]:#04x}")

    def _push(self, byte: int) -> None:
        self._expect(self._state in (_VALUE, _VALUE_OR_END))
        if len(self._open) == DEPTH_MAX:
            raise JsonInvalid(f"more than {DEPTH_MAX} levels")
        self._open.append(byte)
        self._values += 1
        self._state = _NAME_OR_END if byte == 0x7B else _VALUE_OR_END

    def _pop(self, byte: int) -> None:
        self._expect(bool(self._open) and self._open[-1] == byte - 2)
        self._expect(self._state in (_SEPARATOR, _NAME_OR_END, _VALUE_OR_END))
        self._open.pop()
        self._values += 1
        self._state = _SEPARATOR

    def _begin_string(self) -> bool:
        self._expect(self._state not in (_COLON, _SEPARATOR))
        self._in_string = True
        self._at += 1
        return True

    def _scan_string(self) -> bool:
        buffer = self._buffer
        match = _STRING_BODY.match(buffer, self._at)
        assert match is not None
        at = self._at = match.end()
        if at == len(buffer):
            return False
        if buffer[at] != 0x22:
            self._expect(_ESCAPE_BEGUN.fullmatch(buffer, at) is not None)
            return False
        self._at = at + 1
        self._in_string = False
        self._values += 1
        self._state = _COLON if self._state in (_NAME, _NAME_OR_END) else _SEPARATOR
        return True

    def _scan_scalar(self, byte: int) -> bool:
        self._expect(self._state in (_VALUE, _VALUE_OR_END))
        literal = _LITERALS.get(byte)
        end = self._literal_end(literal) if literal else self._number_end()
        if end < 0:
            return False
        self._at = end
        self._values += 1
        self._state = _SEPARATOR
        return True

    def _literal_end(self, literal: bytes) -> int:
        found = bytes(self._buffer[self._at : self._at + len(literal)])
        self._expect(literal.startswith(found))
        return self._at + len(literal) if found == literal else -1

    def _number_end(self) -> int:
        match = _NUMBER_CHARACTERS.match(self._buffer, self._at, self._at + NUMBER_CHARACTERS_MAX)
        assert match is not None
        end = match.end()
        self._expect(end - self._at < NUMBER_CHARACTERS_MAX and end > self._at)
        if end == len(self._buffer):
            return -1
        self._expect(_NUMBER.fullmatch(self._buffer, self._at, end) is not None)
        return end
