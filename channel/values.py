"""What messages are made of: named limits, enums, the header, typed fields and records.

Everything here is on the wire. Record fields are plain ints when received: compare them with `==`, not with `is`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Annotated, Final, NamedTuple

from channel.fields import UUID_KIND, RecordArray, Scalar, Text, Words
from mapping.entry import SLOT_MAX, State
from mapping.plane import FAIL_REQUEST, FAIL_SEGMENT, REPLACE
from mapping.rules import FaultKind, Operation
from mapping.status import Status

VERSION: Final = 1
VERSION_MIN: Final = max(1, VERSION - 1)
"""Neighbours work together: what speaks N also speaks N - 1 (`channel`)."""
FRAME_BYTES_MAX: Final = 1 << 20
ENTRIES_MAX: Final = 65536
SLOTS_MAX: Final = 4096
FAULTS_MAX: Final = 4096
ANSWERS_MAX: Final = 4096
TABLES_MAX: Final = 32768
PARKED_MAX: Final = 8192
COPIES_MAX: Final = 4096
RUNS_MAX: Final = 4096
STATE_BITS_BYTES_MAX: Final = 65536
NAME_BYTES_MAX: Final = 255
NQN_BYTES_MAX: Final = 223
DETAIL_BYTES_MAX: Final = 1024
HOSTS_BYTES_MAX: Final = 65536


class MessageType(IntEnum):
    """What a frame is; a response has its request's type."""

    __hash__ = int.__hash__  # Enum's own is written in Python, and every frame asks for several

    HELLO = 1
    LEASE_RENEW = 2
    LEASE_GRANT = 3
    EPOCH = 4
    GOODBYE = 5
    EVENT = 6
    CREATE_TABLE = 10
    DELETE_TABLE = 11
    GET_ENTRIES = 12
    SET_ENTRIES = 13
    GET_STATE = 14
    SET_STATE = 15
    TABLE_SLOTS = 16
    SUSPEND = 17
    RESUME = 18
    GET_PARKED = 19
    ATTACH_CONTAINER = 20
    DETACH_CONTAINER = 21
    BIND_SLOT = 22
    UNBIND_SLOT = 23
    PRESENT = 24
    WITHDRAW = 25
    COPY_SEGMENTS = 26
    ZERO_SEGMENTS = 27
    EXPORTS = 30
    ALLOW_HOST = 31
    DENY_HOST = 32
    MAP_FAULT = 40
    FAULT_ANSWER = 41
    DP_HELLO = 50
    ADMIT = 51
    TABLE_STATUS = 52
    REFUSED = 60


class Direction(IntFlag):
    """Who may send: controller (C), agent daemon (A), data plane (D), on the two links C-A and A-D."""

    C_TO_A = 1
    A_TO_C = 2
    A_TO_D = 4
    D_TO_A = 8


class EventKind(IntEnum):
    """What an EVENT tells."""

    CONTAINER_LOST = 1
    CONTAINER_BACK = 3
    TARGET_RESTARTED = 4


class AnswerAction(IntEnum):
    """What becomes of a fault [0033]: replacement entries, these requests fail, or the segment gets ERROR."""

    REPLACE = REPLACE
    FAIL_REQUEST = FAIL_REQUEST
    FAIL_SEGMENT = FAIL_SEGMENT


class Roles(IntFlag):
    """What an agent does (HELLO.roles)."""

    MAPPER = 1
    EXPORTER = 2


class TableFlags(IntFlag):
    """Attributes of a table (CREATE_TABLE.table_flags)."""

    READ_ONLY = 1
    RECLAIM = 2


class AttachFlags(IntFlag):
    """What to do with the label (ATTACH_CONTAINER.flags, BIND_SLOT.flags): write it; also over foreign data; or verify
    it and, if it is of an older store generation, write it anew. ENDED: the container has moved, and the process that
    exported it before is over: nothing that was sent there is being done any more."""

    INITIALIZE = 1
    FORCE = 2
    RENEW = 4
    ENDED = 8


class PresentFlags(IntFlag):
    """How a vdisk is shown (PRESENT.flags)."""

    READ_ONLY = 1
    ALLOW_ANY_HOST = 2


class Header(NamedTuple):
    """What a frame's header says besides length, type and flags. The session fills in `request_id`."""

    term: int = 0
    incarnation: int = 0
    epoch: int = 0
    table: int = 0
    sequence: int = 0
    request_id: int = 0
    blocking: bool = False


U8 = Annotated[int, Scalar("B")]
U16 = Annotated[int, Scalar("H")]
U32 = Annotated[int, Scalar("I")]
U64 = Annotated[int, Scalar("Q")]
Bool32 = Annotated[bool, Scalar("I", enum=bool)]
Uuid = Annotated[bytes, UUID_KIND]
StatusCode = Annotated[Status, Scalar("I", enum=Status)]
StateCode = Annotated[State, Scalar("I", enum=State)]
SlotNumber = Annotated[int, Scalar("I", maximum=SLOT_MAX)]
Flags2 = Annotated[int, Scalar("I", mask=3)]
Flags4 = Annotated[int, Scalar("I", mask=15)]
Name = Annotated[str, Text(NAME_BYTES_MAX)]
Nqn = Annotated[str, Text(NQN_BYTES_MAX)]
Detail = Annotated[str, Text(DETAIL_BYTES_MAX)]
Entries = Annotated[Sequence[int], Words(ENTRIES_MAX)]
Slots = Annotated[Sequence[int], Words(SLOTS_MAX)]

# --- records ---------------------------------------------------------------------------------------------------------

_OPERATION: Final = Scalar("B", maximum=max(Operation))
_KIND: Final = Scalar("B", maximum=max(FaultKind))
_STATE: Final = Scalar("B", maximum=max(State))


class FaultRecord(NamedTuple):
    """One map fault [0032]: `entry` as seen, `state` that stopped the operation, the range in the segment (blocks)."""

    fault_id: U64
    table: U64
    segment: U64
    entry: U64
    operation: Annotated[int, _OPERATION]
    kind: Annotated[int, _KIND]
    state: Annotated[int, _STATE]
    offset_blocks: U32
    length_blocks: U32


class AnswerRecord(NamedTuple):
    """One fault's answer [0033]: REPLACE takes the next `count` entries, for the segments from `start`."""

    fault_id: U64
    start: U64
    count: U32  # type: ignore[assignment]
    action: Annotated[int, Scalar("B", maximum=max(AnswerAction))]
    status: Annotated[int, Scalar("B", maximum=max(Status))]


class TableSequence(NamedTuple):
    """A table that a data plane has, and the last sequence it consumed there."""

    table: U64
    sequence: U64


class ParkedRecord(NamedTuple):
    """Parked I/O of one segment: how many, which kind of fault they wait for, since when."""

    table: U64
    segment: U64
    since_ns_ago: U64
    count: U32  # type: ignore[assignment]
    operation: Annotated[int, _OPERATION]
    kind: Annotated[int, _KIND]
    state: Annotated[int, _STATE]


class SegmentCopy(NamedTuple):
    """Copy one segment; both locations are entries."""

    source: U64
    destination: U64


class SegmentRun(NamedTuple):
    """`count` physical segments from the location in the entry `start`."""

    start: U64
    count: U64  # type: ignore[assignment]


FaultRecords = Annotated[Sequence[FaultRecord], RecordArray(FaultRecord, FAULTS_MAX, "segmap_wire_fault")]
AnswerRecords = Annotated[Sequence[AnswerRecord], RecordArray(AnswerRecord, ANSWERS_MAX, "segmap_wire_answer")]
TableSequences = Annotated[
    Sequence[TableSequence], RecordArray(TableSequence, TABLES_MAX, "segmap_wire_table_sequence")
]
ParkedRecords = Annotated[Sequence[ParkedRecord], RecordArray(ParkedRecord, PARKED_MAX, "segmap_wire_parked")]
SegmentCopies = Annotated[Sequence[SegmentCopy], RecordArray(SegmentCopy, COPIES_MAX, "segmap_wire_segment_copy")]
SegmentRuns = Annotated[Sequence[SegmentRun], RecordArray(SegmentRun, RUNS_MAX, "segmap_wire_segment_run")]
