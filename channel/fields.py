"""Kinds of message fields: how each is laid out, checked and converted. `Annotated` types carry them in the table.

A scalar (or a UUID) lies in the fixed part of a body. A variable field lies behind the fixed part, padded with zeros to
8 bytes; in the fixed part it has a u32: the number of its bytes (text, blob) or elements (arrays). Received bytes are
checked completely: counts against named limits and the frame's end, padding, UTF-8, ranges.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache, partial
from itertools import chain
from typing import Any, Final, Generic, TypeVar, get_type_hints, overload

from channel.errors import FieldError, ProtocolError

if sys.byteorder != "little":
    raise ImportError("segmap needs a little-endian machine: entries are sent as they lie in memory")

PADDING: Final = tuple(bytes(count) for count in range(8))
C_TYPES: Final = {"B": "uint8_t", "H": "uint16_t", "I": "uint32_t", "Q": "uint64_t", "16s": "uint8_t"}
_BATCH_RECORDS: Final = 256


def padded(length: int) -> int:
    """`length` rounded up to 8."""
    return length + 7 & ~7


# --- scalars ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scalar:
    """A fixed-width field. Valid are: the values of `enum`, up to `maximum`, the bits of `mask`, whichever is given."""

    code: str
    enum: type[IntEnum] | type[bool] | None = None
    maximum: int | None = None
    mask: int | None = None

    @property
    def size(self) -> int:
        return struct.calcsize("<" + self.code)

    @property
    def alignment(self) -> int:
        return min(self.size, 8)

    def values(self) -> dict[int, Any] | None:
        """Valid wire values → what they become, or None if every value is valid and stays as it is."""
        if self.enum is bool:
            return {0: False, 1: True}
        if self.enum is not None:
            return {int(member): member for member in self.enum}
        return None

    def rule(self) -> str:
        """For people: which values are valid; empty if all are."""
        if self.enum is not None:
            return "0 or 1" if self.enum is bool else self.enum.__name__
        if self.mask is not None:
            return f"bits {self.mask:#x}"
        return f"at most {self.maximum}" if self.maximum is not None else ""


UUID_KIND: Final = Scalar("16s")


@dataclass(frozen=True)
class Since:
    """Beside the kind: the version that has appended the field, which needs a default. Without it: the message's."""

    version: int


# --- variable fields -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """UTF-8 without NUL, at most `limit` bytes."""

    limit: int
    c_type: str = field(default="char", init=False)
    element_size: int = field(default=1, init=False)

    def pack(self, value: str, where: str) -> tuple[Sequence[bytes], int]:
        try:
            data = value.encode()
        except (UnicodeEncodeError, AttributeError) as error:
            raise FieldError(f"{where}: no text: {error}") from error
        _check_count(len(data), self.limit, "bytes", where)
        if 0 in data:
            raise FieldError(f"{where}: a NUL in the text")
        return (data, PADDING[-len(data) & 7]), len(data)

    def unpack(self, frame: bytes, offset: int, count: int, where: str) -> tuple[str, int]:
        data, end = _cut(frame, offset, count, count, self.limit, where)
        if 0 in data:
            raise ProtocolError(where, "a NUL in the text")
        try:
            return data.decode(), end
        except UnicodeDecodeError as error:
            raise ProtocolError(where, f"not UTF-8 at byte {error.start}") from error


@dataclass(frozen=True)
class Blob:
    """Uninterpreted bytes, at most `limit`."""

    limit: int
    c_type: str = field(default="uint8_t", init=False)
    element_size: int = field(default=1, init=False)

    def pack(self, value: bytes, where: str) -> tuple[Sequence[bytes], int]:
        _check_count(len(value), self.limit, "bytes", where)
        return (value, PADDING[-len(value) & 7]), len(value)

    def unpack(self, frame: bytes, offset: int, count: int, where: str) -> tuple[bytes, int]:
        return _cut(frame, offset, count, count, self.limit, where)


@dataclass(frozen=True)
class Words:
    """An array of u64, at most `limit` long. Received: a memoryview of format Q over the frame; `()` when empty."""

    limit: int
    c_type: str = field(default="uint64_t", init=False)
    element_size: int = field(default=8, init=False)

    def pack(self, value: Sequence[int], where: str) -> tuple[Sequence[Any], int]:
        _check_count(len(value), self.limit, "elements", where)
        if isinstance(value, memoryview) and value.format == "Q" and value.c_contiguous:
            return (value,), len(value)
        if isinstance(value, array) and value.typecode == "Q":
            return (value,), len(value)
        try:
            return (array("Q", value),), len(value)
        except (OverflowError, TypeError, ValueError) as error:
            raise FieldError(f"{where}: an element is no u64: {error}") from error

    def unpack(self, frame: bytes, offset: int, count: int, where: str) -> tuple[Sequence[int], int]:
        end = _end(frame, offset, count, count * 8, self.limit, where)
        if not count:
            return (), end
        return memoryview(frame)[offset:end].cast("Q"), end


RecordT = TypeVar("RecordT", bound=tuple[Any, ...])


class Records(Sequence[RecordT]):
    """Received records: an immutable sequence over their bytes, unpacked when looked at. Fields are plain ints."""

    __slots__ = ("kind", "raw")

    def __init__(self, kind: RecordArray[RecordT], raw: bytes) -> None:
        self.kind = kind
        self.raw = raw

    def __len__(self) -> int:
        return len(self.raw) // self.kind.element_size

    def __iter__(self) -> Iterator[RecordT]:
        return map(self.kind.make, self.kind.layout.iter_unpack(self.raw))

    @overload
    def __getitem__(self, index: int) -> RecordT: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RecordT]: ...
    def __getitem__(self, index: int | slice) -> RecordT | Sequence[RecordT]:
        if isinstance(index, slice):
            return list(self)[index]
        size = self.kind.element_size
        position = range(len(self))[index] * size
        record: RecordT = self.kind.make(self.kind.layout.unpack_from(self.raw, position))
        return record

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Records):
            return self.kind == other.kind and self.raw == other.raw
        if isinstance(other, Sequence):
            return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{list(self)!r}"


@dataclass(frozen=True)
class RecordField:
    """One field of a record: its place, and its kind."""

    name: str
    offset: int
    kind: Scalar


@dataclass(frozen=True, eq=False)
class RecordArray(Generic[RecordT]):
    """An array of fixed records, at most `limit` long. `record`: a NamedTuple class whose fields are Scalars."""

    record: type[RecordT]
    limit: int
    c_name: str
    fields: tuple[RecordField, ...] = field(init=False)
    layout: struct.Struct = field(init=False)
    columns: tuple[tuple[int, bytes, str], ...] = field(init=False)
    """Of bytes that not all values are good for: (offset in the record, good values, what is wrong with others)."""
    make: Callable[[tuple[int, ...]], RecordT] = field(init=False)

    def __post_init__(self) -> None:
        hints = get_type_hints(self.record, include_extras=True)
        fields, form, pads, size = lay_out([(name, kind_of(hint)) for name, hint in hints.items()])
        object.__setattr__(self, "fields", tuple(RecordField(name, offset, kind) for name, offset, kind in fields))
        object.__setattr__(self, "layout", struct.Struct("<" + form))
        object.__setattr__(self, "columns", tuple(_columns(self.fields, pads)))
        object.__setattr__(self, "make", partial(tuple.__new__, self.record))
        assert self.layout.size == size and not size % 8, f"{self.record.__name__} is not padded to 8 bytes"

    @property
    def c_type(self) -> str:
        return f"struct {self.c_name}"

    @property
    def element_size(self) -> int:
        return self.layout.size

    def pack(self, value: Sequence[RecordT], where: str) -> tuple[Sequence[bytes], int]:
        _check_count(len(value), self.limit, "records", where)
        if isinstance(value, Records) and value.kind is self:
            return (value.raw,), len(value)
        try:
            if len(value) <= _BATCH_RECORDS:
                raw = self._packed(value)
            else:
                raw = b"".join(map(self._packed, _batches(value)))
        except (struct.error, TypeError) as error:
            raise FieldError(f"{where}: {error}") from error
        problem = self._problem(raw)
        if problem:
            raise FieldError(f"{where}{problem}")
        return (raw,), len(value)

    def _packed(self, batch: Sequence[RecordT]) -> bytes:
        return _batch(self.layout.format, len(batch)).pack(*chain.from_iterable(batch))

    def unpack(self, frame: bytes, offset: int, count: int, where: str) -> tuple[Records[RecordT], int]:
        end = _end(frame, offset, count, count * self.layout.size, self.limit, where)
        raw = frame[offset:end]
        problem = self._problem(raw)
        if problem:
            raise ProtocolError(where, problem.lstrip(".: "))
        return Records(self, raw), end

    def _problem(self, raw: bytes) -> str:
        """What is wrong in packed records: columns of bytes are looked at, not records."""
        size = self.layout.size
        for offset, good, problem in self.columns:
            if raw[offset::size].translate(None, good):
                return problem
        return ""


def _columns(fields: Sequence[RecordField], pads: Sequence[int]) -> Iterator[tuple[int, bytes, str]]:
    for offset in pads:
        yield offset, b"\0", ": padding is not zero"
    for item in fields:
        maximum = item.kind.maximum
        if maximum is not None:
            assert item.kind.size == 1, f"{item.name}: only single bytes have a maximum in records"
            yield item.offset, bytes(range(maximum + 1)), f".{item.name}: larger than {maximum}"


def plain(records: Sequence[tuple[int, ...]]) -> Iterable[tuple[int, ...]]:
    """The records as plain tuples: the fastest way through many of them."""
    return records.kind.layout.iter_unpack(records.raw) if isinstance(records, Records) else records


@lru_cache(maxsize=_BATCH_RECORDS)
def _batch(form: str, count: int) -> struct.Struct:
    return struct.Struct("<" + form[1:] * count)


def _batches(value: Sequence[RecordT]) -> Iterator[Sequence[RecordT]]:
    for start in range(0, len(value), _BATCH_RECORDS):
        yield value[start : start + _BATCH_RECORDS]


def _check_count(count: int, limit: int, unit: str, where: str) -> None:
    if count > limit:
        raise FieldError(f"{where}: {count} {unit}, at most {limit}")


def _end(frame: bytes, offset: int, count: int, length: int, limit: int, where: str) -> int:
    if count > limit:
        raise ProtocolError(where, f"count {count} is over the limit {limit}")
    end = offset + length
    if padded(end) > len(frame):
        raise ProtocolError(where, f"ends at byte {padded(end)}, behind the frame's end at {len(frame)}")
    return end


def _cut(frame: bytes, offset: int, count: int, length: int, limit: int, where: str) -> tuple[bytes, int]:
    end = _end(frame, offset, count, length, limit, where)
    behind = padded(end)
    if any(frame[end:behind]):
        raise ProtocolError(where, "padding is not zero")
    return frame[offset:end], behind


# --- layout ----------------------------------------------------------------------------------------------------------

Variable = Text | Blob | Words | RecordArray[Any]
Kind = Scalar | Variable


def kind_of(hint: Any) -> Any:
    """The kind in an `Annotated` type."""
    for item in getattr(hint, "__metadata__", ()):
        if isinstance(item, Scalar | Text | Blob | Words | RecordArray):
            return item
    raise TypeError(f"{hint} says no wire kind")


def since_of(hint: Any) -> int:
    """The version that has appended the field, 0 if the message always had it."""
    return next((item.version for item in getattr(hint, "__metadata__", ()) if isinstance(item, Since)), 0)


def lay_out(kinds: Sequence[tuple[str, Scalar]]) -> tuple[list[tuple[str, int, Scalar]], str, tuple[int, ...], int]:
    """Natural alignment, then padding to 8: (name, offset, kind) of each, struct format, padding bytes, size."""
    placed, form, pads, offset = [], "", list[int](), 0
    for name, kind in kinds:
        gap = -offset % kind.alignment
        pads += range(offset, offset + gap)
        form += f"{gap}x" * bool(gap) + kind.code
        placed.append((name, offset + gap, kind))
        offset += gap + kind.size
    gap = -offset % 8
    pads += range(offset, offset + gap)
    return placed, form + f"{gap}x" * bool(gap), tuple(pads), offset + gap
