"""The entry: one u64 that says where a segment lives and what may be done with it (patent [0020]-[0030]).

    bit 0      mapped     0 = INVALID (everything else is ignored)
    bit 1      NO-WRITE
    bit 2      ZERO       location ignored
    bit 3      ERROR      location ignored, kept for diagnosis
    bits 4-15  container slot
    bits 16-63 physical segment number

`0` is INVALID, so zero-filled memory is a correct table [0026]. An entry is a plain `int` everywhere: tables hold
thousands of millions of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

MAPPED: Final = 1
NO_WRITE: Final = 2
ZERO: Final = 4
ERROR: Final = 8
FLAGS: Final = 15

SLOT_SHIFT: Final = 4
SLOT_MAX: Final = 4095
SEGMENT_SHIFT: Final = 16
SEGMENT_MAX: Final = (1 << 48) - 1
ENTRY_MAX: Final = (1 << 64) - 1

INVALID_ENTRY: Final = 0
ZERO_ENTRY: Final = MAPPED | ZERO
ERROR_ENTRY: Final = MAPPED | ERROR


class State(IntEnum):
    """The highest active state of an entry. NONE: a plain location, reads and writes go through."""

    INVALID = 0
    NO_WRITE = 1
    ZERO = 2
    ERROR = 3
    NONE = 4


_STATE_OF_FLAGS: Final = tuple(
    State.INVALID
    if not flags & MAPPED
    else State.ERROR
    if flags & ERROR
    else State.ZERO
    if flags & ZERO
    else State.NO_WRITE
    if flags & NO_WRITE
    else State.NONE
    for flags in range(16)
)


def pack(slot: int, segment: int, flags: int = 0) -> int:
    """The entry of physical `segment` in container `slot`, mapped, with the state bits `flags`.

    Raises ValueError outside 0..4095 slots, 48-bit segments, and flags that are no state bits.
    """
    if not 0 <= slot <= SLOT_MAX:
        raise ValueError(f"container slot {slot} is not in 0..{SLOT_MAX}")
    if not 0 <= segment <= SEGMENT_MAX:
        raise ValueError(f"physical segment {segment} does not fit in 48 bits")
    if flags & ~FLAGS:
        raise ValueError(f"{flags:#x} has bits that are no entry states")
    return segment << SEGMENT_SHIFT | slot << SLOT_SHIFT | flags | MAPPED


def slot_of(entry: int) -> int:
    """The container slot, meaningful only when `has_location(entry)`."""
    return entry >> SLOT_SHIFT & SLOT_MAX


def segment_of(entry: int) -> int:
    """The physical segment number, meaningful only when `has_location(entry)`."""
    return entry >> SEGMENT_SHIFT


def state_of(entry: int) -> State:
    """The highest active state: INVALID, then ERROR, then ZERO, then NO-WRITE."""
    return _STATE_OF_FLAGS[entry & FLAGS]


def has_location(entry: int) -> bool:
    """True if I/O may reach the location: mapped, and neither ZERO nor ERROR."""
    return entry & (MAPPED | ZERO | ERROR) == MAPPED


def normalised(entry: int) -> int:
    """The same entry without bits that its state makes meaningless (an INVALID entry is 0)."""
    return entry if entry & MAPPED else INVALID_ENTRY


def low_words(entries: Sequence[int]) -> set[int]:
    """The distinct low 16 bits (states and slot) of many entries, without a step per entry in Python."""
    if len(entries) < 8:
        return {entry & 0xFFFF for entry in entries}
    packed = memoryview(entries) if isinstance(entries, array | memoryview) else memoryview(array("Q", entries))
    return set(packed.cast("B").cast("H")[::4].tolist())


def describe(entry: int) -> str:
    """For people: `slot 3 segment 17 no-write`, `zero`, `invalid`, `error (slot 3 segment 17)`."""
    state = state_of(entry)
    where = f"slot {slot_of(entry)} segment {segment_of(entry)}"
    return {
        State.INVALID: "invalid",
        State.ERROR: f"error ({where})",
        State.ZERO: "zero",
        State.NO_WRITE: f"{where} no-write",
        State.NONE: where,
    }[state]
