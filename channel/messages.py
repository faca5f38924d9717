"""THE table of the channel: every message, its fields, who may send it, and how it is answered.

The field annotations are the wire layout (`channel.fields`), TABLE says the rest; codec, session, C header and wire
reference are made from them. Order of fields is order on the wire. Every response begins with a status and a detail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from channel.fields import Blob, Scalar, Text, plain
from channel.values import (
    DETAIL_BYTES_MAX,
    ENTRIES_MAX,
    HOSTS_BYTES_MAX,
    STATE_BITS_BYTES_MAX,
    U8,
    U16,
    U32,
    U64,
    AnswerRecords,
    Bool32,
    Detail,
    Direction,
    Entries,
    EventKind,
    FaultRecords,
    Flags2,
    Flags4,
    MessageType,
    Name,
    Nqn,
    ParkedRecords,
    SegmentCopies,
    SegmentRuns,
    SlotNumber,
    Slots,
    StateCode,
    StatusCode,
    TableSequences,
    Uuid,
)
from mapping.plane import FAIL_REQUEST, REPLACE
from mapping.status import Status

# --- responses -------------------------------------------------------------------------------------------------------


class Message:
    """A message; `problem` names a broken rule that spans several fields, checked by sender and receiver."""

    __slots__ = ()

    def problem(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Response(Message):
    """What every response begins with."""

    status: StatusCode = Status.OK
    detail: Detail = ""


@dataclass(frozen=True, slots=True)
class Done(Response):
    """The request has been executed, or not: `status`."""


@dataclass(frozen=True, slots=True)
class Welcome(Response):
    """The agent is admitted. Header: the term, the incarnation that the data plane now has, and as sequence the number
    of the session, as HELLO named it, if the controller's stamps bear it."""

    cluster: Uuid = bytes(16)
    agent_number: U32 = 0
    lease_duration_ns: U64 = 0
    renew_interval_ns: U64 = 0
    park_limit_ns: U64 = 0
    io_deadline_ns: U64 = 0


@dataclass(frozen=True, slots=True)
class EntriesRead(Response):
    """The entries asked for, in order."""

    entries: Entries = ()


@dataclass(frozen=True, slots=True)
class StateRead(Response):
    """One bit per segment, lowest bit of the first byte first: the state is active."""

    bits: Annotated[bytes, Blob(STATE_BITS_BYTES_MAX)] = b""


@dataclass(frozen=True, slots=True)
class ParkedRead(Response):
    """Parked I/O; the oldest, if there is more than fits."""

    parked: ParkedRecords = ()


@dataclass(frozen=True, slots=True)
class Attached(Response):
    """The container is who it should be: its size, and whether it has a volatile write cache."""

    segment_count: U64 = 0
    block_size: U32 = 0
    volatile_cache: Bool32 = False


@dataclass(frozen=True, slots=True)
class Presented(Response):
    """Where the vdisk is exported."""

    traddr: Name = ""
    trsvcid: Name = ""
    trtype: Name = ""


@dataclass(frozen=True, slots=True)
class TablesRead(Response):
    """All tables of the data plane."""

    tables: TableSequences = ()


# --- agent and controller: standing ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """First message of an agent. Header: term, incarnation and epoch as the data plane has them, 0 if none; as sequence
    the number that it has given this session (0: it gives none).

    `machine`: 8 bytes for the machine, 8 for the boot that it runs in. A new instance in the same boot proves that the
    one before it is gone, in another boot of the machine, too, once its lease is over; zeroes prove nothing. The
    response may come late: the incarnation before this one has to be fenced first.
    """

    version_min: U8
    version_max: U8
    roles: Annotated[int, Scalar("H", mask=3)]
    instance: Uuid
    name: Name
    software: Name
    tables: TableSequences = ()
    machine: Uuid = bytes(16)


@dataclass(frozen=True, slots=True)
class LeaseRenew(Message):
    """Ask for a lease. `sent_ns`: CLOCK_MONOTONIC of the agent host."""

    sent_ns: U64


@dataclass(frozen=True, slots=True)
class LeaseGrant(Message):
    """The lease ends at `sent_ns` (echoed) + `duration_ns` on the agent host's clock [0027]."""

    sent_ns: U64
    duration_ns: U64


@dataclass(frozen=True, slots=True)
class Epoch(Message):
    """A new epoch, in the header, has begun: tables are wiped, sequences 0."""

    reason: StatusCode = Status.LEASE_EXPIRED


@dataclass(frozen=True, slots=True)
class Goodbye(Message):
    """The last message of a session: why it ends."""

    status: StatusCode
    detail: Detail = ""


@dataclass(frozen=True, slots=True)
class AgentEvent(Message):
    """Something has happened at the agent host."""

    kind: Annotated[EventKind, Scalar("I", enum=EventKind)]
    slot: SlotNumber = 0
    detail: Detail = ""


# --- commands: tables ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateTable(Message):
    """A new table, id in the header, every entry INVALID [0034]; `slots`, `absent`: as in TABLE_SLOTS."""

    vdisk: Uuid
    nguid: Uuid
    segment_count: U64
    segment_size: U64
    block_size: U32
    table_flags: Flags2
    name: Name
    slots: Slots = ()
    absent: Slots = ()


@dataclass(frozen=True, slots=True)
class DeleteTable(Message):
    """Forget the table; its I/O faults with NO_TABLE or ends."""


@dataclass(frozen=True, slots=True)
class GetEntries(Message):
    """Read `count` entries from segment `start`."""

    start: U64
    count: Annotated[int, Scalar("Q", maximum=ENTRIES_MAX)]


@dataclass(frozen=True, slots=True)
class SetEntries(Message):
    """Replace `count` entries from segment `start`: by as many, or all by one."""

    start: U64
    count: U64
    entries: Entries

    def problem(self) -> str:
        if self.count and len(self.entries) in (1, self.count):
            return ""
        return f"entries: {len(self.entries)} for {self.count} segments; as many, or one"


@dataclass(frozen=True, slots=True)
class GetState(Message):
    """Read one state of `count` entries as bits."""

    start: U64
    count: Annotated[int, Scalar("Q", maximum=STATE_BITS_BYTES_MAX * 8)]
    state: StateCode


@dataclass(frozen=True, slots=True)
class SetState(Message):
    """Activate or deactivate one state of `count` entries [0034]."""

    start: U64
    count: U64
    state: StateCode
    active: Bool32


@dataclass(frozen=True, slots=True)
class TableSlots(Message):
    """Replace the table's container list, which is also its flush set. `absent`: containers that may hold data of the
    virtual disk and are not attached at this agent; while there is one, flushes fail with NO_CONTAINER."""

    slots: Slots
    absent: Slots = ()


@dataclass(frozen=True, slots=True)
class Suspend(Message):
    """New I/O of the table parks."""


@dataclass(frozen=True, slots=True)
class Resume(Message):
    """End of SUSPEND."""


@dataclass(frozen=True, slots=True)
class GetParked(Message):
    """What is parked, in all tables (header.table 0) or in one."""


# --- commands: containers and presentations --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttachContainer(Message):
    """Attach a container as `slot` and verify its label, or write it."""

    slot: SlotNumber
    nsid: U32
    container: Uuid
    cluster: Uuid
    generation: U64
    segment_size: U64
    segment_count: U64
    flags: Flags4
    trtype: Name
    traddr: Name
    trsvcid: Name
    subnqn: Nqn
    name: Name


@dataclass(frozen=True, slots=True)
class DetachContainer(Message):
    """Detach; refused while a table lists the slot."""

    slot: SlotNumber


@dataclass(frozen=True, slots=True)
class BindSlot(Message):
    """Open the bdev, verify its label or write it (and flush), and bind it as `slot`."""

    slot: SlotNumber
    flags: Flags4
    container: Uuid
    cluster: Uuid
    generation: U64
    segment_size: U64
    segment_count: U64
    bdev_name: Name


@dataclass(frozen=True, slots=True)
class UnbindSlot(Message):
    """Close the slot's bdev."""

    slot: SlotNumber


@dataclass(frozen=True, slots=True)
class Present(Message):
    """Show the vdisk to `hosts` (NQNs, one a line), with controller ids of this agent's own range."""

    vdisk: Uuid
    nsid: U32
    cntlid_min: U16
    cntlid_max: U16
    flags: Flags2
    subnqn: Nqn
    serial: Name
    hosts: Annotated[str, Text(HOSTS_BYTES_MAX)]
    name: Name


@dataclass(frozen=True, slots=True)
class Withdraw(Message):
    """End a presentation."""

    subnqn: Nqn


@dataclass(frozen=True, slots=True)
class CopySegments(Message):
    """Copy segments; answered when the destinations are flushed."""

    copies: SegmentCopies


@dataclass(frozen=True, slots=True)
class ZeroSegments(Message):
    """Write zeroes; answered when they are flushed."""

    runs: SegmentRuns


# --- container hosts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Export(Message):
    """One export of a container host; `last` ends the list. A list without exports is one message with no name."""

    nsid: U32
    block_size: U32
    block_count: U64
    uuid: Uuid
    last: Bool32
    name: Name
    traddr: Name
    trsvcid: Name
    trtype: Name
    subnqn: Nqn


@dataclass(frozen=True, slots=True)
class AllowHost(Message):
    """Let this host NQN connect to the export."""

    subnqn: Nqn
    hostnqn: Nqn


@dataclass(frozen=True, slots=True)
class DenyHost(Message):
    """No longer; OK only once no queue pair of the host NQN is left, else NOT_FENCED."""

    subnqn: Nqn
    hostnqn: Nqn


# --- faults ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MapFault(Message):
    """Faults [0032]; each is answered by an answer record, sooner or later."""

    faults: FaultRecords

    def problem(self) -> str:
        return "" if self.faults else "faults: none"


@dataclass(frozen=True, slots=True)
class FaultAnswer(Message):
    """Answers [0033], in the table and at the sequence of the header; `entries` is what they take, in order."""

    answers: AnswerRecords
    entries: Entries = ()

    def problem(self) -> str:
        taken = 0
        for _, _, count, action, status in plain(self.answers):
            if (count > 0) != (action == REPLACE):
                return f"answers: count {count} with action {action}; only REPLACE takes entries, and at least one"
            if action == FAIL_REQUEST and not status:
                return "answers: a failed request needs a status"
            taken += count
        if not self.answers:
            return "answers: none"
        return "" if taken == len(self.entries) else f"entries: {len(self.entries)}, the answers take {taken}"


# --- daemon and data plane -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DataPlaneHello(Message):
    """First message of a data plane. Header: its term, incarnation and epoch."""

    version_min: U8
    version_max: U8
    instance: Uuid
    software: Name
    tables: TableSequences = ()


@dataclass(frozen=True, slots=True)
class Admit(Message):
    """A controller has admitted this data plane as the header's incarnation; it sends all outstanding faults again.

    Header, sequence: the session's number if the controller's stamps bear it, else 0.
    """

    cluster: Uuid
    lease_duration_ns: U64
    park_limit_ns: U64
    io_deadline_ns: U64


@dataclass(frozen=True, slots=True)
class TableStatus(Message):
    """Ask for all tables and their sequences. Header, sequence: 1 if a session with a controller begins.

    Then whatever bears the number of an earlier session is refused, and the response's epoch bears that of the new one.
    """


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """A message that has no response was refused; header: the refused one's stamps."""

    status: StatusCode
    refused_type: U16
    detail: Detail = ""


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One type of message. `response` None: a notice. `blocking`: the BLOCKING flag is allowed [0036]. `since`: the
    version that has brought it."""

    kind: MessageType
    message: type[Message]
    directions: Direction
    response: type[Response] | None = None
    blocking: bool = False
    since: int = 1


_COMMAND: Final = Direction.C_TO_A
_RELAYED: Final = Direction.C_TO_A | Direction.A_TO_D
_REPORT: Final = Direction.A_TO_C
_REPORT_RELAYED: Final = Direction.D_TO_A | Direction.A_TO_C
_LOCAL: Final = Direction.A_TO_D
_ANY: Final = Direction.C_TO_A | Direction.A_TO_C | Direction.A_TO_D | Direction.D_TO_A
_T = MessageType

TABLE: Final = (
    Row(_T.HELLO, Hello, _REPORT, Welcome),
    Row(_T.LEASE_RENEW, LeaseRenew, _REPORT),
    Row(_T.LEASE_GRANT, LeaseGrant, _RELAYED),
    Row(_T.EPOCH, Epoch, _REPORT_RELAYED),
    Row(_T.GOODBYE, Goodbye, _ANY),
    Row(_T.EVENT, AgentEvent, _REPORT),
    Row(_T.CREATE_TABLE, CreateTable, _COMMAND, Done),
    Row(_T.DELETE_TABLE, DeleteTable, _COMMAND, Done),
    Row(_T.GET_ENTRIES, GetEntries, _RELAYED, EntriesRead),
    Row(_T.SET_ENTRIES, SetEntries, _RELAYED, Done, blocking=True),
    Row(_T.GET_STATE, GetState, _RELAYED, StateRead),
    Row(_T.SET_STATE, SetState, _RELAYED, Done, blocking=True),
    Row(_T.TABLE_SLOTS, TableSlots, _RELAYED, Done),
    Row(_T.SUSPEND, Suspend, _RELAYED, Done, blocking=True),
    Row(_T.RESUME, Resume, _RELAYED, Done, blocking=True),
    Row(_T.GET_PARKED, GetParked, _RELAYED, ParkedRead),
    Row(_T.ATTACH_CONTAINER, AttachContainer, _COMMAND, Attached),
    Row(_T.DETACH_CONTAINER, DetachContainer, _COMMAND, Done),
    Row(_T.BIND_SLOT, BindSlot, _LOCAL, Attached),
    Row(_T.UNBIND_SLOT, UnbindSlot, _LOCAL, Done),
    Row(_T.PRESENT, Present, _COMMAND, Presented),
    Row(_T.WITHDRAW, Withdraw, _COMMAND, Done),
    Row(_T.COPY_SEGMENTS, CopySegments, _RELAYED, Done),
    Row(_T.ZERO_SEGMENTS, ZeroSegments, _RELAYED, Done),
    Row(_T.EXPORTS, Export, _REPORT),
    Row(_T.ALLOW_HOST, AllowHost, _COMMAND, Done),
    Row(_T.DENY_HOST, DenyHost, _COMMAND, Done),
    Row(_T.MAP_FAULT, MapFault, _REPORT_RELAYED),
    Row(_T.FAULT_ANSWER, FaultAnswer, _RELAYED),
    Row(_T.DP_HELLO, DataPlaneHello, Direction.D_TO_A),
    Row(_T.ADMIT, Admit, _LOCAL, Done),
    Row(_T.TABLE_STATUS, TableStatus, _LOCAL, TablesRead),
    Row(_T.REFUSED, Refused, _ANY),
)
ROWS: Final = {row.kind: row for row in TABLE}
ROW_OF: Final = {row.message: row for row in TABLE}


def response_to(kind: MessageType, status: Status, detail: str = "") -> Response:
    """A failure (or an empty success) for any request type."""
    response = ROWS[kind].response
    if response is None:
        raise ValueError(f"{kind.name} has no response")
    return response(status, short(detail))


def short(text: str, limit: int = DETAIL_BYTES_MAX) -> str:
    """`text` without NULs, cut to `limit` bytes of UTF-8, never inside a character."""
    data = text.replace("\0", "").encode(errors="replace")
    return data[:limit].decode(errors="ignore")
