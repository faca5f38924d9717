"""The image: all tables and container states, flat, in memory.

This is what `load()` hands out and what the controller may keep as its truth. It is the reference meaning of the map
records: the store's trees must never differ from an image to which the same records were applied.

A table is a dict of chunks of 4096 entries; a missing chunk is all ZERO, so an unused thin disk costs nothing. Chunks
may be shared between tables after `share_table`: change them through the methods only.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final, TypeAlias

from controller.store.records import CONTAINER_SEGMENTS_MAX, SegmentState, apply
from mapping.entry import ERROR, MAPPED, ZERO, ZERO_ENTRY, has_location, segment_of, slot_of

CHUNK_SHIFT: Final = 12
CHUNK_ENTRIES: Final = 1 << CHUNK_SHIFT
_MASK: Final = CHUNK_ENTRIES - 1
_ALL_ZERO: Final = array("Q", [ZERO_ENTRY]) * CHUNK_ENTRIES
_STEP: Final = 1 << 16
"""Between the entries of two neighbouring segments of a container."""
_ONES: Final = int.from_bytes(array("Q", [1]) * CHUNK_ENTRIES, "little")
_RAMP: Final = int.from_bytes(array("Q", range(0, CHUNK_ENTRIES * _STEP, _STEP)), "little")
_STATE_BITS: Final = MAPPED | ZERO | ERROR
_MAPPED_STATE: Final = int(SegmentState.MAPPED)

Chunks: TypeAlias = "dict[int, array[int]]"


def consecutive(entries: array[int]) -> bool:
    """True if the entries are one run of neighbouring locations in a container, with the same states.

    Whole chunks are compared as one long number each: ten times as fast as building the run.
    """
    first, count = entries[0], len(entries)
    if not has_location(first) or entries[-1] != first + (count - 1) * _STEP:
        return False
    whole = count - count % CHUNK_ENTRIES
    for start in range(0, whole, CHUNK_ENTRIES):
        part = int.from_bytes(entries[start : start + CHUNK_ENTRIES].tobytes(), "little")
        if part != (first + start * _STEP) * _ONES + _RAMP:
            return False
    rest = entries[whole:] if whole else entries
    return rest == array("Q", range(first + whole * _STEP, first + count * _STEP, _STEP))


class MapImage:
    """`tables[vdisk][chunk number]` are 4096 entries, `segments[slot]` one SegmentState per byte (FREE beyond its
    end), `references[slot][segment]` the counts that are not 0. Read them freely; change through methods."""

    def __init__(self) -> None:
        self.tables: dict[int, Chunks] = {}
        self.segments: dict[int, bytearray] = {}
        self.references: dict[int, dict[int, int]] = {}
        self._owned: dict[int, Chunks] = {}

    def apply(self, records: bytes) -> None:
        """Apply packed records. Raises RecordError where they are malformed."""
        apply(records, self)

    def entry(self, vdisk: int, segment: int) -> int:
        """One entry."""
        chunk = self.tables.get(vdisk, {}).get(segment >> CHUNK_SHIFT)
        return ZERO_ENTRY if chunk is None else chunk[segment & _MASK]

    def entries(self, vdisk: int, start: int, count: int) -> array[int]:
        """A copy of `count` entries."""
        chunks = self.tables.get(vdisk, {})
        result = array("Q")
        while count:
            offset = start & _MASK
            length = min(count, CHUNK_ENTRIES - offset)
            result += chunks.get(start >> CHUNK_SHIFT, _ALL_ZERO)[offset : offset + length]
            start += length
            count -= length
        return result

    def state(self, slot: int, segment: int) -> int:
        """The SegmentState of one container segment."""
        states = self.segments.get(slot, b"")
        return states[segment] if segment < len(states) else SegmentState.FREE

    def adopt_chunk(self, vdisk: int, number: int, chunk: array[int], owned: bool = True) -> None:
        """Install a chunk of 4096 entries; `owned`: no other table has the same array."""
        self.tables.setdefault(vdisk, {})[number] = chunk
        if owned:
            self._owned.setdefault(vdisk, {})[number] = chunk

    def writable_chunk(self, vdisk: int, number: int) -> array[int]:
        """The chunk, for changing it: made if missing, copied first if shared."""
        owned = self._owned.setdefault(vdisk, {})
        chunk = owned.get(number)
        if chunk is None:
            chunks = self.tables.setdefault(vdisk, {})
            chunk = chunks[number] = owned[number] = chunks.get(number, _ALL_ZERO)[:]
        return chunk

    def set_entry(self, vdisk: int, segment: int, entry: int) -> None:
        """One entry; its location becomes MAPPED."""
        try:
            self._owned[vdisk][segment >> CHUNK_SHIFT][segment & _MASK] = entry
            if entry & _STATE_BITS == MAPPED:
                self.segments[entry >> 4 & 0xFFF][entry >> 16] = _MAPPED_STATE
        except (KeyError, IndexError):
            self.writable_chunk(vdisk, segment >> CHUNK_SHIFT)[segment & _MASK] = entry
            if entry & _STATE_BITS == MAPPED:
                self._mark_mapped(entry)

    def set_entries(self, vdisk: int, segments: Sequence[int], entries: Sequence[int]) -> None:
        """The same for many, anywhere in one table. Raises ValueError if the lengths differ."""
        owned, states = self._owned.setdefault(vdisk, {}), self.segments
        for segment, entry in zip(segments, entries, strict=True):
            chunk = owned.get(segment >> CHUNK_SHIFT) or self.writable_chunk(vdisk, segment >> CHUNK_SHIFT)
            chunk[segment & _MASK] = entry
            if entry & _STATE_BITS == MAPPED:
                try:
                    states[entry >> 4 & 0xFFF][entry >> 16] = _MAPPED_STATE
                except (KeyError, IndexError):
                    self._mark_mapped(entry)

    def _mark_mapped(self, entry: int) -> None:
        try:
            self.segments[entry >> 4 & 0xFFF][entry >> 16] = _MAPPED_STATE
        except (KeyError, IndexError):
            self.fill_segments(slot_of(entry), segment_of(entry), 1, _MAPPED_STATE)

    def fill_entries(self, vdisk: int, start: int, count: int, entry: int) -> None:
        """The same entry `count` times. Whole chunks of ZERO are dropped, other whole chunks share one array."""
        if has_location(entry):
            self._mark_mapped(entry)
        end = start + count
        if entry == ZERO_ENTRY:
            self._drop_chunks(vdisk, -(-start // CHUNK_ENTRIES), end // CHUNK_ENTRIES)
        filled = array("Q", [entry]) * CHUNK_ENTRIES
        while start < end:
            number, offset = start >> CHUNK_SHIFT, start & _MASK
            length = min(end - start, CHUNK_ENTRIES - offset)
            if length < CHUNK_ENTRIES:
                if entry != ZERO_ENTRY or number in self.tables.get(vdisk, {}):
                    self.writable_chunk(vdisk, number)[offset : offset + length] = filled[:length]
            elif entry != ZERO_ENTRY:
                self._owned.get(vdisk, {}).pop(number, None)
                self.adopt_chunk(vdisk, number, filled, owned=False)
            else:
                length = (end - start) // CHUNK_ENTRIES * CHUNK_ENTRIES
            start += length

    def _drop_chunks(self, vdisk: int, first: int, stop: int) -> None:
        chunks = self.tables.get(vdisk, {})
        numbers = range(first, stop) if stop - first < len(chunks) else [n for n in chunks if first <= n < stop]
        for number in numbers:
            chunks.pop(number, None)
            self._owned.get(vdisk, {}).pop(number, None)

    def put_entries(self, vdisk: int, start: int, entries: array[int]) -> None:
        """Consecutive entries; their locations become MAPPED."""
        self._put_chunks(vdisk, start, entries)
        if consecutive(entries):
            self.fill_segments(slot_of(entries[0]), segment_of(entries[0]), len(entries), _MAPPED_STATE)
            return
        for entry in entries:
            if entry & _STATE_BITS == MAPPED:
                self._mark_mapped(entry)

    def _put_chunks(self, vdisk: int, start: int, entries: array[int]) -> None:
        done, count = 0, len(entries)
        while done < count:
            number, offset = (start + done) >> CHUNK_SHIFT, (start + done) & _MASK
            length = min(count - done, CHUNK_ENTRIES - offset)
            part = entries[done : done + length]
            if length == CHUNK_ENTRIES:
                self.adopt_chunk(vdisk, number, part)
            else:
                self.writable_chunk(vdisk, number)[offset : offset + length] = part
            done += length

    def fill_segments(self, slot: int, start: int, count: int, state: int) -> None:
        """`count` segments of a container get `state`."""
        end = start + count
        if end > CONTAINER_SEGMENTS_MAX:
            raise ValueError(f"segment {end - 1} of slot {slot} is beyond {CONTAINER_SEGMENTS_MAX}")
        states = self.segments.setdefault(slot, bytearray())
        if len(states) < end:
            states.extend(bytes(end - len(states)))
        states[start:end] = bytes([state]) * count

    def fill_references(self, slot: int, start: int, count: int, references: int) -> None:
        """`count` segments of a container get an absolute reference count."""
        counts = self.references.setdefault(slot, {})
        if references:
            counts.update(dict.fromkeys(range(start, start + count), references))
        else:
            for segment in [s for s in counts if start <= s < start + count]:
                del counts[segment]

    def share_table(self, source: int, destination: int) -> None:
        """`destination` shares every chunk of `source`, copy on write."""
        self.drop_table(destination)
        if source in self.tables:
            self.tables[destination] = dict(self.tables[source])
            self._owned[source] = {}

    def drop_table(self, vdisk: int) -> None:
        """Every entry is ZERO again."""
        self.tables.pop(vdisk, None)
        self._owned.pop(vdisk, None)

    def drop_container(self, slot: int) -> None:
        """No state and no count of the slot is left."""
        self.segments.pop(slot, None)
        self.references.pop(slot, None)

    def request(self, incarnation: int, request_id: int) -> None:
        """Requests are not part of the image."""

    def forget_incarnation(self, incarnation: int) -> None:
        """Requests are not part of the image."""
