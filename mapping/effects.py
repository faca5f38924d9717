"""What the engine asks its owner to do. Effects are executed in the order given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mapping.rules import FaultKind, Operation
from mapping.status import Status


class Part:
    """The part of an I/O that lies in one segment; the unit that is forwarded, parked and counted.

    The owner fills in the first group and keeps `io` and `owner` for itself (`owner`: the host connection, for
    `Engine.reset`). A FLUSH has segment -1 and no range. The engine fills in the second group: `entry` and from it
    `slot` and `physical` (container segment) are valid in a Forward.
    """

    __slots__ = (
        "begun_epoch",
        "channel",
        "entry",
        "fault",
        "generation",
        "io",
        "length_blocks",
        "offset_blocks",
        "operation",
        "owner",
        "parked_ns",
        "segment",
    )

    def __init__(
        self,
        operation: Operation,
        segment: int,
        offset_blocks: int,
        length_blocks: int,
        *,
        io: Any = None,
        owner: Any = None,
        channel: int = 0,
    ) -> None:
        self.operation = operation
        self.segment = segment
        self.offset_blocks = offset_blocks
        self.length_blocks = length_blocks
        self.io = io
        self.owner = owner
        self.channel = channel
        self.entry = 0
        self.generation = -1
        self.begun_epoch = 0
        self.parked_ns = -1
        self.fault: Fault | None = None

    @property
    def slot(self) -> int:
        """The container slot to go to."""
        return self.entry >> 4 & 4095

    @property
    def physical(self) -> int:
        """The container's segment to go to."""
        return self.entry >> 16

    def __repr__(self) -> str:
        return f"Part({self.operation.name} {self.segment}+{self.offset_blocks}/{self.length_blocks})"


class Fault:
    """An outstanding fault [0032] and the parts that wait for its answer."""

    __slots__ = (
        "entry",
        "fault_id",
        "kind",
        "length_blocks",
        "offset_blocks",
        "operation",
        "parts",
        "segment",
        "since_ns",
        "state",
        "table",
    )

    def __init__(self, fault_id: int, table: int, part: Part, entry: int, kind: FaultKind, state: int, now_ns: int):
        self.fault_id = fault_id
        self.table = table
        self.segment = part.segment
        self.entry = entry
        self.operation = part.operation
        self.kind = kind
        self.state = state
        self.offset_blocks = part.offset_blocks
        self.length_blocks = part.length_blocks
        self.since_ns = now_ns
        self.parts: list[Part] = []

    def __repr__(self) -> str:
        return f"Fault({self.fault_id} {self.kind.name} table {self.table:#x} segment {self.segment})"


@dataclass(frozen=True, slots=True)
class Forward:
    """Do the part on its container; it has begun. Report with `Engine.complete`, exactly once."""

    part: Part


@dataclass(frozen=True, slots=True)
class ReturnZeroes:
    """End a read successfully with zeroes, without container I/O."""

    part: Part


@dataclass(frozen=True, slots=True)
class Complete:
    """End the part towards the host with `status`; OK of a read means that its data is valid."""

    part: Part
    status: Status


@dataclass(frozen=True, slots=True)
class SendFault:
    """Send a MAP_FAULT to the controller."""

    fault: Fault


@dataclass(frozen=True, slots=True)
class BarrierReached:
    """Every I/O begun before `barrier(token)` has ended (OK), or did not within its deadline (BARRIER_TIMEOUT)."""

    token: Any
    status: Status


@dataclass(frozen=True, slots=True)
class EpochBegan:
    """The lease expired: all tables are wiped, and `epoch` has begun. Tell the controller."""

    epoch: int


Effect = Forward | ReturnZeroes | Complete | SendFault | BarrierReached | EpochBegan
