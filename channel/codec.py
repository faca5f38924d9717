"""Frames: a message and its header to bytes and back, made from the table of messages; strict on what is received.

Frame: 56 bytes of header (little-endian: length u32, type u16, version u8, flags u8, then u64 each: request id, term,
incarnation, epoch, table, sequence), the fixed part of the body with natural alignment, padded to 8, then the variable
fields in order, each padded to 8; then the same again for the fields that each later version has appended. Invariants:
what `encode` makes, `decode` takes, and gives back equal, and that of a neighbouring version all that it knows of it;
`decode` raises nothing but ProtocolError, whatever the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from dataclasses import fields as dataclass_fields
from enum import IntFlag
from operator import attrgetter
from typing import Any, Final, NamedTuple, get_type_hints

from channel.errors import FieldError, ProtocolError
from channel.fields import Scalar, Variable, kind_of, lay_out, since_of
from channel.messages import ROW_OF, TABLE, Message, Response
from channel.values import FRAME_BYTES_MAX, VERSION, Header, MessageType
from mapping.status import Status

HEADER: Final = struct.Struct("<IHBBQQQQQQ")
HEADER_BYTES: Final = HEADER.size
COUNT: Final = Scalar("I")
assert HEADER_BYTES == 56


NO_STAMPS: Final = Header()


class Flag(IntFlag):
    """Header flags."""

    RESPONSE = 1
    BLOCKING = 2


# Plain ints: operators of IntFlag would cost a fifth of a frame's time.
_IS_RESPONSE: Final = int(Flag.RESPONSE)
_IS_BLOCKING: Final = int(Flag.BLOCKING)
_FLAGS_MAX: Final = _IS_RESPONSE | _IS_BLOCKING


class Frame(NamedTuple):
    """A decoded frame; `data` is the frame itself."""

    type: MessageType
    response: bool
    version: int
    header: Header
    message: Message
    data: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """A field of a body: at `offset` of the fixed part lies the scalar, or the u32 count of the variable field."""

    name: str
    offset: int
    kind: Scalar | Variable


class Block:
    """What one version has brought to a message: a fixed part, then the variable fields. `before`: the struct format of
    what is packed with it (the header, or nothing)."""

    def __init__(self, message: type[Message], names: Sequence[str], before: str, version: int) -> None:
        self.version = version
        hints = get_type_hints(message, include_extras=True)
        kinds = [kind_of(hints[name]) for name in names]
        fixed = [(name, kind if isinstance(kind, Scalar) else COUNT) for name, kind in zip(names, kinds, strict=True)]
        placed, form, pads, self.fixed_bytes = lay_out(fixed)
        self.places = tuple(Place(name, offset, kind) for (name, offset, _), kind in zip(placed, kinds, strict=True))
        self.struct = struct.Struct(before + form)
        self._body = struct.Struct("<" + form)
        self.name = message.__name__
        self._fixed_at = struct.calcsize(before)
        self._pad_mask = sum(255 << 8 * offset for offset in pads)
        self._variable = tuple(
            (index, f"{self.name}.{names[index]}", kind)
            for index, kind in enumerate(kinds)
            if not isinstance(kind, Scalar)
        )
        scalars = [
            (index, f"{self.name}.{names[index]}", kind) for index, kind in enumerate(kinds) if isinstance(kind, Scalar)
        ]
        self._converted = tuple(
            (index, where, valid) for index, where, kind in scalars if (valid := kind.values()) is not None
        )
        self._bounded = tuple(item for item in scalars if item[2].maximum is not None or item[2].mask is not None)
        self._uuids = tuple((index, where) for index, where, kind in scalars if kind.code == "16s")
        self._restricted = bool(self._converted or self._bounded or self._uuids)
        self._length_min = self._fixed_at + self.fixed_bytes

    def prepare(self, values: list[Any]) -> tuple[list[Any], int]:
        """Check values, and put counts in the places of variable ones; the bytes of those, and the block's length."""
        if self._restricted:
            self._check(values)
        blobs: list[Any] = []
        length = self._length_min
        for index, where, field in self._variable:
            data, count = field.pack(values[index], where)
            values[index] = count
            blobs += data
            length += count * field.element_size + 7 & ~7
        return blobs, length

    def _check(self, values: list[Any]) -> None:
        for index, where, valid in self._converted:
            if values[index] not in valid:
                raise FieldError(f"{where}: {values[index]!r} is no valid value")
        for index, where, kind in self._bounded:
            if _out_of_bounds(values[index], kind):
                raise FieldError(f"{where}: {values[index]!r} is not {kind.rule()}")
        for index, where in self._uuids:
            if len(values[index]) != 16:
                raise FieldError(f"{where}: {len(values[index])} bytes, 16 needed")

    def unpack(self, frame: bytes, start: int) -> tuple[list[Any], int]:
        """The values in a frame whose header has been checked, and where they end."""
        offset = start + self._length_min
        if len(frame) < offset:
            raise ProtocolError(self.name, f"{len(frame)} bytes, the fixed part ends at {offset}")
        values = list(self._body.unpack_from(frame, start + self._fixed_at))
        if self._pad_mask and int.from_bytes(frame[offset - self.fixed_bytes : offset], "little") & self._pad_mask:
            raise ProtocolError(self.name, "padding is not zero")
        for index, where, valid in self._converted:
            value = valid.get(values[index])
            if value is None:
                raise ProtocolError(where, f"{values[index]} is no valid value")
            values[index] = value
        for index, where, kind in self._bounded:
            if _out_of_bounds(values[index], kind):
                raise ProtocolError(where, f"{values[index]} is not {kind.rule()}")
        for index, where, field in self._variable:
            values[index], offset = field.unpack(frame, offset, values[index], where)
        return values, offset


class Codec:
    """One message class: its layout, and both directions. `first` is what it began as, `appended` what versions since
    then have brought. Public for the generators: `places` and `fixed_bytes` of `first`."""

    def __init__(self, message: type[Message]) -> None:
        self.message = message
        names = [item.name for item in dataclass_fields(message)]  # type: ignore[arg-type]
        hints = get_type_hints(message, include_extras=True)
        since = [since_of(hints[name]) for name in names]
        assert since == sorted(since), f"{message.__name__}: fields are appended in the order of versions"
        blocks = [
            Block(message, [name for name, its in zip(names, since, strict=True) if its == version], before, version)
            for version, before in [(0, HEADER.format), *((version, "<") for version in sorted({*since} - {0}))]
        ]
        self.first, self.appended = blocks[0], tuple(blocks[1:])
        self.places, self.fixed_bytes = self.first.places, self.first.fixed_bytes
        defaults = {item.name: item.default for item in dataclass_fields(message)}  # type: ignore[arg-type]
        self._defaults = [[defaults[place.name] for place in block.places] for block in self.appended]
        assert not any(MISSING in some for some in self._defaults), f"{message.__name__}: appended without a default"
        self._get = _getter(names)
        self._has_problem = message.problem is not Message.problem

    # --- out ---------------------------------------------------------------------------------------------------------

    def encode(self, message: Message, kind: int, version: int, flags: int, header: Header) -> bytes:
        values = list(self._get(message))
        tail = self._append(values) if self.appended else b""
        blobs, length = self.first.prepare(values)
        length += len(tail)
        if self._has_problem and (problem := message.problem()):
            raise FieldError(f"{self.message.__name__}.{problem}")
        if length > FRAME_BYTES_MAX:
            raise FieldError(f"{self.message.__name__}: a frame of {length} bytes, at most {FRAME_BYTES_MAX}")
        term, incarnation, epoch, table, sequence, request_id, _ = header
        try:
            fixed = self.first.struct.pack(
                length, kind, version, flags, request_id, term, incarnation, epoch, table, sequence, *values
            )
        except struct.error as error:
            raise FieldError(f"{self.message.__name__}: {error}") from error
        return b"".join((fixed, *blobs, tail)) if blobs or tail else fixed

    def _append(self, values: list[Any]) -> bytes:
        """Take the appended fields off `values`; their bytes."""
        parts: list[Any] = []
        at = len(self.places)
        for block in self.appended:
            own = values[at : at + len(block.places)]
            at += len(own)
            blobs, _ = block.prepare(own)
            try:
                parts += [block.struct.pack(*own), *blobs]
            except struct.error as error:
                raise FieldError(f"{self.message.__name__}: {error}") from error
        del values[len(self.places) :]
        return b"".join(parts)

    # --- in ----------------------------------------------------------------------------------------------------------

    def _append_received(self, values: list[Any], frame: bytes, offset: int) -> None:
        """The appended fields; their defaults from where an older peer's frame ends."""
        for block, defaults in zip(self.appended, self._defaults, strict=True):
            more, offset = block.unpack(frame, offset) if offset < len(frame) else (defaults, offset)
            values += more

    def decode(self, frame: bytes) -> Message:
        """The message in a whole frame whose header has been checked. What a newer version has appended is ignored."""
        values, offset = self.first.unpack(frame, 0)
        if self.appended:
            self._append_received(values, frame, offset)
        message = self.message(*values)
        if self._has_problem and (problem := message.problem()):
            raise ProtocolError(f"{self.message.__name__}.{problem.split(':')[0]}", problem.split(": ", 1)[1])
        return message


def _getter(names: list[str]) -> Any:
    if not names:
        return lambda _message: ()
    if len(names) == 1:
        get = attrgetter(names[0])
        return lambda message: (get(message),)
    return attrgetter(*names)


def _out_of_bounds(value: int, kind: Scalar) -> bool:
    if kind.mask is not None:
        return bool(value & ~kind.mask)
    return kind.maximum is not None and value > kind.maximum


REQUESTS: Final = {row.kind: Codec(row.message) for row in TABLE}
RESPONSES: Final = {row.kind: Codec(row.response) for row in TABLE if row.response is not None}
_BLOCKING: Final = frozenset(row.kind for row in TABLE if row.blocking)
_TYPES: Final = {int(member): member for member in MessageType}


def encode(message: Message, header: Header = NO_STAMPS, *, version: int = VERSION) -> bytes:
    """The frame of a request or a notice. Raises FieldError for what the receiver would refuse."""
    row = ROW_OF.get(type(message))
    if row is None:
        raise FieldError(f"{type(message).__name__} is no request or notice")
    if header.blocking and not row.blocking:
        raise FieldError(f"{row.kind.name} cannot be blocking")
    if bool(header.request_id) != (row.response is not None):
        raise FieldError(f"{row.kind.name}: request id {header.request_id}")
    flags = _IS_BLOCKING if header.blocking else 0
    return REQUESTS[row.kind].encode(message, row.kind, version, flags, header)


def encode_response(
    kind: MessageType, message: Response, header: Header = NO_STAMPS, *, version: int = VERSION
) -> bytes:
    """The frame of a response to a request of type `kind`. Raises FieldError for what the receiver would refuse."""
    codec = RESPONSES.get(kind)
    if codec is None or type(message) is not codec.message:
        raise FieldError(f"{type(message).__name__} does not answer {kind.name}")
    if header.blocking or not header.request_id:
        raise FieldError(f"response to {kind.name}: blocking, or no request id")
    return codec.encode(message, kind, version, _IS_RESPONSE, header)


def decode(frame: bytes) -> Frame:
    """A whole frame, checked completely. Raises ProtocolError."""
    if len(frame) < HEADER_BYTES:
        raise ProtocolError("header", f"{len(frame)} bytes, {HEADER_BYTES} needed")
    length, code, version, flags, request_id, term, incarnation, epoch, table, sequence = HEADER.unpack_from(frame)
    if length != len(frame):
        raise ProtocolError("header.length", f"{length}, the frame has {len(frame)} bytes")
    check_length(length)
    kind = _TYPES.get(code)
    if kind is None:
        raise ProtocolError("header.type", f"{code} is unknown")
    response = bool(flags & _IS_RESPONSE)
    codec = (RESPONSES if response else REQUESTS).get(kind)
    if codec is None:
        raise ProtocolError("header.flags", f"{kind.name} has no response")
    if flags & ~_FLAGS_MAX or (flags & _IS_BLOCKING and (response or kind not in _BLOCKING)):
        raise ProtocolError("header.flags", f"{flags:#x} of {kind.name}")
    if bool(request_id) != (kind in RESPONSES):
        raise ProtocolError("header.request_id", f"{request_id} of {kind.name}")
    header = Header(term, incarnation, epoch, table, sequence, request_id, bool(flags & _IS_BLOCKING))
    return Frame(kind, response, version, header, codec.decode(frame), frame)


def check_length(length: int) -> None:
    """Raise ProtocolError unless a frame may be this long."""
    if length < HEADER_BYTES:
        raise ProtocolError("header.length", f"{length}, a header alone has {HEADER_BYTES} bytes")
    if length > FRAME_BYTES_MAX:
        raise ProtocolError("header.length", f"{length} is over the limit {FRAME_BYTES_MAX}", Status.LIMIT)
    if length % 8:
        raise ProtocolError("header.length", f"{length} is no multiple of 8")


def with_request_id(frame: bytes, request_id: int) -> bytes:
    """The same frame under another request id; for relaying."""
    return b"".join((frame[:8], request_id.to_bytes(8, "little"), frame[16:]))


def with_version(frame: bytes, version: int) -> bytes:
    """The same frame under another version; for relaying between sessions that negotiated different ones."""
    return frame if frame[6] == version else b"".join((frame[:6], bytes((version,)), frame[7:]))
