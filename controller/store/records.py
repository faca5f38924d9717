"""Map records: the packed changes of tables and containers that a log row holds (24 bytes each, little-endian).

    kind u16 | reserved u16 (0) | object u32 | index u64 | value u64

Two kinds are longer: ENTRY_RUN is followed by one SET_ENTRY-shaped record that carries the entry, ENTRY_ARRAY by its
entries as u64s, padded with zeros to a whole number of records. Values are absolute, so that applying a stretch of
records again, in order and to its end, changes nothing: recovery depends on this. An entry with a location makes the
container segment MAPPED; nothing here ever frees a location by itself (design.md, invariant 5).

`apply` is the one decoder of what the log means; a `MapTarget` is what it is applied to: the image in memory, the
trees of the store, or a reader that only wants to look.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, Protocol

RECORD: Final = Struct("<HHIQQ")
RECORD_BYTES: Final = RECORD.size
ENTRIES_PER_RECORD: Final = RECORD_BYTES // 8

ARRAY_ENTRIES_MAX: Final = 65536
"""Entries of one ENTRY_ARRAY; the builder splits longer ones."""
CONTAINER_SEGMENTS_MAX: Final = 1 << 32
"""Segments of one container (4 PiB of 1 MiB segments)."""
REFERENCES_MAX: Final = (1 << 24) - 1
SLOTS: Final = 4096
U64_MAX: Final = (1 << 64) - 1
_OBJECT_MAX: Final = (1 << 32) - 1

if sys.byteorder != "little":
    raise ImportError("segmap's records are little-endian in memory; this machine is not")


class RecordKind(IntEnum):
    """What a record changes; object, index, value in the comment."""

    SET_ENTRY = 1  # vdisk, segment, entry
    ENTRY_RUN = 2  # vdisk, start, count; then a record with the entry
    SEGMENT_RUN = 3  # slot, start, count << 8 | state
    REQUEST = 4  # 0, incarnation, request id
    ENTRY_ARRAY = 5  # vdisk, start, count; then the entries
    SHARE_TABLE = 6  # source vdisk, destination vdisk, 0
    DROP_TABLE = 7  # vdisk, 0, 0
    REFERENCE_RUN = 8  # slot, start, count << 24 | references
    FORGET_INCARNATION = 9  # 0, incarnation, 0
    DROP_CONTAINER = 11  # slot, 0, 0


class SegmentState(IntEnum):
    """What the store knows about one segment of a container."""

    FREE = 0
    ZEROED = 1
    MAPPED = 2
    ZEROING = 3
    QUARANTINED = 4
    LABEL = 5
    COPYING = 6


_SET_ENTRY: Final = int(RecordKind.SET_ENTRY)
_ENTRY_RUN: Final = int(RecordKind.ENTRY_RUN)
_SEGMENT_RUN: Final = int(RecordKind.SEGMENT_RUN)
_REQUEST: Final = int(RecordKind.REQUEST)
_ENTRY_ARRAY: Final = int(RecordKind.ENTRY_ARRAY)
_LONG_KINDS: Final = {_ENTRY_RUN, _ENTRY_ARRAY}
_ARRAY_FIRST: Final = bytes([_ENTRY_ARRAY])
_PLAIN_KINDS: Final = bytes([_SET_ENTRY, _REQUEST])
_ALWAYS_ZERO: Final = (1, 2, 3, 22, 23)
"""Bytes of a plain record: the rest of its kind, reserved, and what would be beyond the last segment."""


class RecordError(ValueError):
    """Malformed records; `offset` in bytes is where."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(f"map record at byte {offset}: {what}")
        self.offset = offset


class MapTarget(Protocol):
    """What records are applied to."""

    def set_entry(self, vdisk: int, segment: int, entry: int) -> None: ...
    def fill_entries(self, vdisk: int, start: int, count: int, entry: int) -> None: ...
    def put_entries(self, vdisk: int, start: int, entries: array[int]) -> None: ...
    def fill_segments(self, slot: int, start: int, count: int, state: int) -> None: ...
    def fill_references(self, slot: int, start: int, count: int, references: int) -> None: ...
    def share_table(self, source: int, destination: int) -> None: ...
    def drop_table(self, vdisk: int) -> None: ...
    def drop_container(self, slot: int) -> None: ...
    def request(self, incarnation: int, request_id: int) -> None: ...
    def forget_incarnation(self, incarnation: int) -> None: ...


def array_rows(count: int) -> int:
    """Records that `count` entries of an ENTRY_ARRAY take after its head."""
    return -(-count // ENTRIES_PER_RECORD)


def apply(records: bytes, target: MapTarget, offset: int = 0, limit: int = 1 << 62) -> int:
    """Apply records from byte `offset`, about `limit` of them; returns the offset to go on at (len(records): done).

    Raises RecordError on malformed records; those before it have been applied.
    """
    view = memoryview(records)
    stop = min(len(records), offset + limit * RECORD_BYTES)
    set_entry = target.set_entry
    request = target.request
    while offset < stop:
        whole = offset + (stop - offset) // RECORD_BYTES * RECORD_BYTES
        if whole == offset:
            raise RecordError(offset, "ends in the middle of a record")
        for kind, reserved, owner, index, value in RECORD.iter_unpack(view[offset:whole]):
            if reserved:
                raise RecordError(offset, "its reserved field is not zero")
            offset += RECORD_BYTES
            if kind == _SET_ENTRY:
                set_entry(owner, index, value)
            elif kind == _REQUEST:
                request(index, value)
            elif kind in _LONG_KINDS:
                offset = _apply_long(view, target, offset, kind, owner, index, value)
                break
            else:
                _apply_rare(target, offset, kind, owner, index, value)
    return offset


def _apply_long(view: memoryview, target: MapTarget, offset: int, kind: int, vdisk: int, start: int, count: int) -> int:
    """The two kinds with a tail, which begins at `offset`; returns where the next record begins."""
    if not 0 < count <= U64_MAX - start:
        raise RecordError(offset - RECORD_BYTES, f"a run of {count} from {start}")
    if kind == _ENTRY_RUN:
        if offset + RECORD_BYTES > len(view):
            raise RecordError(offset, "an entry run without its entry")
        tail_kind, _, tail_vdisk, tail_start, entry = RECORD.unpack_from(view, offset)
        if (tail_kind, tail_vdisk, tail_start) != (_SET_ENTRY, vdisk, start):
            raise RecordError(offset, "is not the entry of the run before it")
        target.fill_entries(vdisk, start, count, entry)
        return offset + RECORD_BYTES
    end = offset + array_rows(count) * RECORD_BYTES
    if count > ARRAY_ENTRIES_MAX or end > len(view):
        raise RecordError(offset - RECORD_BYTES, f"an array of {count} entries is over its limit or cut off")
    entries = array("Q")
    entries.frombytes(view[offset : offset + count * 8])
    target.put_entries(vdisk, start, entries)
    return end


def _apply_rare(target: MapTarget, offset: int, kind: int, owner: int, index: int, value: int) -> None:
    match kind:
        case RecordKind.SEGMENT_RUN:
            target.fill_segments(owner, index, value >> 8, value & 0xFF)
        case RecordKind.REFERENCE_RUN:
            target.fill_references(owner, index, value >> 24, value & REFERENCES_MAX)
        case RecordKind.SHARE_TABLE:
            target.share_table(owner, index)
        case RecordKind.DROP_TABLE:
            target.drop_table(owner)
        case RecordKind.FORGET_INCARNATION:
            target.forget_incarnation(index)
        case RecordKind.DROP_CONTAINER:
            target.drop_container(owner)
        case _:
            raise RecordError(offset - RECORD_BYTES, f"unknown kind {kind}")


def all_plain(records: bytes) -> bool:
    """True if these whole records are SET_ENTRY and REQUEST only, with nothing to object to. A quick look at faults."""
    if records[:1] == _ARRAY_FIRST:
        return False
    if records[0::RECORD_BYTES].translate(None, _PLAIN_KINDS):
        return False
    return not b"".join([records[column::RECORD_BYTES] for column in _ALWAYS_ZERO]).strip(b"\0")


def validate(records: bytes) -> None:
    """Refuse what could not be applied later: raises RecordError."""
    if len(records) % RECORD_BYTES:
        raise RecordError(len(records) // RECORD_BYTES * RECORD_BYTES, "ends in the middle of a record")
    if not all_plain(records):
        apply(records, _Checker())


class _Checker:
    """A target that changes nothing and checks every bound that the record format itself cannot express."""

    def _location(self, entry: int) -> None:
        if entry >> 16 >= CONTAINER_SEGMENTS_MAX:
            raise RecordError(0, f"entry {entry:#x} names a container segment beyond {CONTAINER_SEGMENTS_MAX}")

    def _run(self, slot: int, start: int, count: int) -> None:
        if slot >= SLOTS or not 0 < count <= CONTAINER_SEGMENTS_MAX - start:
            raise RecordError(0, f"a run of {count} segments from {start} in slot {slot}")

    def set_entry(self, vdisk: int, segment: int, entry: int) -> None:
        self._location(entry)

    def fill_entries(self, vdisk: int, start: int, count: int, entry: int) -> None:
        self._location(entry)

    def put_entries(self, vdisk: int, start: int, entries: array[int]) -> None:
        packed = entries.tobytes()
        if any(packed[6::8]) or any(packed[7::8]):
            raise RecordError(0, f"an entry from {start} on names a container segment beyond {CONTAINER_SEGMENTS_MAX}")

    def fill_segments(self, slot: int, start: int, count: int, state: int) -> None:
        self._run(slot, start, count)
        if state > max(SegmentState):
            raise RecordError(0, f"{state} is no segment state")

    def fill_references(self, slot: int, start: int, count: int, references: int) -> None:
        self._run(slot, start, count)

    def share_table(self, source: int, destination: int) -> None:
        if source == destination or destination > _OBJECT_MAX:
            raise RecordError(0, f"table {source} cannot be shared as {destination}")

    def drop_table(self, vdisk: int) -> None:
        pass

    def drop_container(self, slot: int) -> None:
        if slot >= SLOTS:
            raise RecordError(0, f"slot {slot} does not exist")

    def request(self, incarnation: int, request_id: int) -> None:
        pass

    def forget_incarnation(self, incarnation: int) -> None:
        pass


class RecordBuilder:
    """Packs records; `take()` hands them over. Raises struct.error or OverflowError on numbers that do not fit."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def _pack(self, kind: int, owner: int, index: int, value: int) -> None:
        self._data += RECORD.pack(kind, 0, owner, index, value)

    def set_entry(self, vdisk: int, segment: int, entry: int) -> None:
        """One entry."""
        self._data += RECORD.pack(_SET_ENTRY, 0, vdisk, segment, entry)

    def entry_run(self, vdisk: int, start: int, count: int, entry: int) -> None:
        """`count` times the same entry."""
        self._pack(_ENTRY_RUN, vdisk, start, count)
        self._pack(_SET_ENTRY, vdisk, start, entry)

    def entry_array(self, vdisk: int, start: int, entries: Sequence[int]) -> None:
        """Consecutive entries, split into arrays of at most ARRAY_ENTRIES_MAX."""
        packed = entries if isinstance(entries, array) and entries.typecode == "Q" else array("Q", entries)
        for first in range(0, len(packed), ARRAY_ENTRIES_MAX):
            part = packed[first : first + ARRAY_ENTRIES_MAX]
            self._pack(_ENTRY_ARRAY, vdisk, start + first, len(part))
            self._data += part.tobytes()
            self._data += bytes(-len(part) % ENTRIES_PER_RECORD * 8)

    def segment_run(self, slot: int, start: int, count: int, state: int) -> None:
        """`count` segments of a container get `state`."""
        self._pack(_SEGMENT_RUN, slot, start, count << 8 | state)

    def reference_run(self, slot: int, start: int, count: int, references: int) -> None:
        """`count` segments of a container are referenced `references` times (absolute)."""
        if not 0 <= references <= REFERENCES_MAX:
            raise OverflowError(f"{references} references do not fit in 24 bits")
        self._pack(RecordKind.REFERENCE_RUN, slot, start, count << 24 | references)

    def request(self, incarnation: int, request_id: int) -> None:
        """A request of an incarnation has been executed."""
        self._data += RECORD.pack(_REQUEST, 0, 0, incarnation, request_id)

    def share_table(self, source: int, destination: int) -> None:
        """`destination` becomes what `source` is here; what it was before is dropped."""
        self._pack(RecordKind.SHARE_TABLE, source, destination, 0)

    def drop_table(self, vdisk: int) -> None:
        """Every entry is ZERO again."""
        self._pack(RecordKind.DROP_TABLE, vdisk, 0, 0)

    def forget_incarnation(self, incarnation: int) -> None:
        """The incarnation is gone for good, and its request ids with it."""
        self._pack(RecordKind.FORGET_INCARNATION, 0, incarnation, 0)

    def drop_container(self, slot: int) -> None:
        """All states and counts of the slot's segments are dropped: the slot may be used again."""
        self._pack(RecordKind.DROP_CONTAINER, slot, 0, 0)

    def faults(
        self,
        vdisk: int,
        segments: Sequence[int],
        entries: Sequence[int],
        incarnation: int,
        request_ids: Sequence[int],
    ) -> None:
        """For each answered fault its new entry and its request. Raises ValueError if the lengths differ."""
        count = len(segments)
        words = array("Q", bytes(2 * RECORD_BYTES * count))  # filled column by column: far faster than word by word
        words[0::6] = array("Q", [_SET_ENTRY | vdisk << 32]) * count
        words[1::6] = array("Q", segments)
        words[2::6] = array("Q", entries)
        words[3::6] = array("Q", [_REQUEST]) * count
        words[4::6] = array("Q", [incarnation]) * count
        words[5::6] = array("Q", request_ids)
        self._data += words.tobytes()

    def take(self) -> bytes:
        """The records so far; the builder starts afresh."""
        data = bytes(self._data)
        self._data = bytearray()
        return data


@dataclass(frozen=True, slots=True)
class Record:
    """A decoded record, for tools and tests; `entries` of an ENTRY_ARRAY, or the one of an ENTRY_RUN."""

    kind: RecordKind
    object: int
    index: int
    value: int
    entries: tuple[int, ...] = ()


def iterate(records: bytes) -> Iterator[Record]:
    """Decode one by one. Raises RecordError where they are malformed."""
    offset = 0
    while offset < len(records):
        if offset + RECORD_BYTES > len(records):
            raise RecordError(offset, "ends in the middle of a record")
        kind, _, owner, index, value = RECORD.unpack_from(records, offset)
        end = apply(records, _Checker(), offset, 1)
        entries: tuple[int, ...] = ()
        if kind == _ENTRY_RUN:
            entries = (RECORD.unpack_from(records, offset + RECORD_BYTES)[4],)
        elif kind == _ENTRY_ARRAY:
            entries = tuple(array("Q", records[offset + RECORD_BYTES : offset + RECORD_BYTES + value * 8]))
        yield Record(RecordKind(kind), owner, index, value, entries)
        offset = end
