"""What an entry does to an operation: the table of the patent's states ([0026]-[0030]) and the state commands ([0034]).

`decide` is total: every entry, operation and table attribute has an action. NO-WRITE segments of a table without
RECLAIM never have their blocks changed either: there, unmapping completes without effect and writing zeroes faults.
"""

from enum import IntEnum
from typing import Final

from mapping.entry import ERROR, FLAGS, INVALID_ENTRY, MAPPED, NO_WRITE, ZERO, State, state_of


class Operation(IntEnum):
    """What a host asks of a range of blocks. The values are on the wire."""

    READ = 0
    WRITE = 1
    UNMAP = 2
    WRITE_ZEROES = 3
    FLUSH = 4
    COMPARE_AND_WRITE = 5


class FaultKind(IntEnum):
    """What the agent asks of the controller [0032]. The values are on the wire."""

    READ = 0
    WRITE = 1
    RECLAIM = 2
    EXCLUSIVE = 3
    NO_TABLE = 4


class Action(IntEnum):
    """What the data plane does with one segment part of an I/O."""

    FORWARD = 0
    RETURN_ZEROES = 1
    COMPLETE = 2
    FAULT = 3
    FAIL = 4


Decision = tuple[Action, FaultKind | None]

_FORWARD: Final[Decision] = (Action.FORWARD, None)
_COMPLETE: Final[Decision] = (Action.COMPLETE, None)
_FAIL: Final[Decision] = (Action.FAIL, None)
_WRITES: Final = (Operation.WRITE, Operation.WRITE_ZEROES, Operation.COMPARE_AND_WRITE)
_DISCARDS: Final = (Operation.UNMAP, Operation.WRITE_ZEROES)


def _fault(operation: Operation) -> Decision:
    kind = {
        Operation.WRITE: FaultKind.WRITE,
        Operation.COMPARE_AND_WRITE: FaultKind.EXCLUSIVE,
    }.get(operation, FaultKind.READ)
    return Action.FAULT, kind


def _decide_zero(operation: Operation) -> Decision:
    if operation is Operation.READ:
        return Action.RETURN_ZEROES, None
    return _COMPLETE if operation in _DISCARDS else _fault(operation)


def _decide_no_write(operation: Operation) -> Decision:
    if operation is Operation.READ:
        return _FORWARD
    if operation is Operation.UNMAP:
        return _COMPLETE
    return (Action.FAULT, FaultKind.WRITE) if operation is Operation.WRITE_ZEROES else _fault(operation)


def _decide(state: State, operation: Operation, reclaims: bool) -> Decision:
    if operation is Operation.FLUSH:
        return _FORWARD
    if state is State.INVALID:
        return _fault(operation)
    if state is State.ERROR:
        return _FAIL
    if state is State.ZERO:
        return _decide_zero(operation)
    if reclaims and operation in _DISCARDS:
        return Action.FAULT, FaultKind.RECLAIM
    return _decide_no_write(operation) if state is State.NO_WRITE else _FORWARD


DECISIONS: Final[tuple[Decision, ...]] = tuple(
    _decide(state_of(index & FLAGS), Operation(index >> 4 & 7), bool(index >> 7)) if index >> 4 & 7 <= 5 else _FAIL
    for index in range(256)
)
"""Index: entry flags | operation << 4 | (whole segment of a RECLAIM table) << 7."""


def decide(entry: int, operation: Operation, whole_segment: bool, reclaim: bool) -> Decision:
    """The action for one part, and the fault's kind if it is FAULT.

    `whole_segment`: the part covers its segment entirely; `reclaim`: the table's RECLAIM attribute.
    """
    return DECISIONS[entry & FLAGS | operation << 4 | (whole_segment and reclaim) << 7]


def is_write(operation: Operation) -> bool:
    """True if the operation can change what a later read returns (and a read-only table refuses it)."""
    return operation in _WRITES or operation is Operation.UNMAP


class StateForbidden(ValueError):
    """INVALID, ERROR and ZERO end only by a whole replacement entry [0034]."""


def with_state(entry: int, state: State, active: bool) -> int:
    """The entry after a state command. Raises StateForbidden for what [0034] does not allow."""
    if state is State.NONE or not (active or state is State.NO_WRITE):
        raise StateForbidden(f"{state.name} cannot be {'activated' if active else 'deactivated'} by a state command")
    if state is State.INVALID:
        return INVALID_ENTRY
    if state is State.NO_WRITE:
        if not entry & MAPPED:
            return INVALID_ENTRY
        return entry | NO_WRITE if active else entry & ~NO_WRITE
    bit = ZERO if state is State.ZERO else ERROR
    return (entry if entry & MAPPED else 0) | MAPPED | bit
