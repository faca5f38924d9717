"""What a state does to an operation, written out once more from the patent and the design, cell by cell."""

from itertools import product

import pytest

from mapping.entry import ERROR, NO_WRITE, ZERO, ZERO_ENTRY, State, pack, state_of
from mapping.rules import Action, FaultKind, Operation, StateForbidden, decide, is_write, with_state

R, W, U, Z, C = (
    Operation.READ,
    Operation.WRITE,
    Operation.UNMAP,
    Operation.WRITE_ZEROES,
    Operation.COMPARE_AND_WRITE,
)
FORWARD = (Action.FORWARD, None)
DONE = (Action.COMPLETE, None)
FAIL = (Action.FAIL, None)
ZEROES = (Action.RETURN_ZEROES, None)
LOAD = (Action.FAULT, FaultKind.READ)
WRITE = (Action.FAULT, FaultKind.WRITE)
RECLAIM = (Action.FAULT, FaultKind.RECLAIM)
EXCLUSIVE = (Action.FAULT, FaultKind.EXCLUSIVE)

ENTRIES = {
    State.INVALID: [0, pack(1, 2) & ~1, pack(1, 2, 15) & ~1],
    State.ERROR: [pack(1, 2, ERROR | flags) for flags in (0, ZERO, NO_WRITE, ZERO | NO_WRITE)],
    State.ZERO: [ZERO_ENTRY, pack(1, 2, ZERO), pack(1, 2, ZERO | NO_WRITE)],
    State.NO_WRITE: [pack(1, 2, NO_WRITE)],
    State.NONE: [pack(1, 2)],
}

# (read, write, compare-and-write, unmap part, unmap whole, zeroes part, zeroes whole), with RECLAIM on
EXPECTED = {
    State.INVALID: (LOAD, WRITE, EXCLUSIVE, LOAD, LOAD, LOAD, LOAD),
    State.ERROR: (FAIL,) * 7,
    State.ZERO: (ZEROES, WRITE, EXCLUSIVE, DONE, DONE, DONE, DONE),
    State.NO_WRITE: (FORWARD, WRITE, EXCLUSIVE, DONE, RECLAIM, WRITE, RECLAIM),
    State.NONE: (FORWARD, FORWARD, FORWARD, FORWARD, RECLAIM, FORWARD, RECLAIM),
}
CELLS = [(R, True), (W, True), (C, False), (U, False), (U, True), (Z, False), (Z, True)]


@pytest.mark.claim(3, 5, 12)
@pytest.mark.parametrize("state", list(State))
def test_every_state_and_operation(state: State) -> None:
    for entry, ((operation, whole), expected) in product(ENTRIES[state], zip(CELLS, EXPECTED[state], strict=True)):
        assert state_of(entry) is state
        assert decide(entry, operation, whole, reclaim=True) == expected, (state, operation, whole)


@pytest.mark.parametrize("state", list(State))
def test_without_reclaim_a_whole_segment_is_like_a_part(state: State) -> None:
    for entry, operation, whole in product(ENTRIES[state], [R, W, U, Z, C], [False, True]):
        assert decide(entry, operation, whole, reclaim=False) == decide(entry, operation, False, reclaim=True)


@pytest.mark.claim(5)
def test_a_segment_is_never_written_through_no_write_zero_error_or_invalid() -> None:
    for state, operation, whole, reclaim in product(State, [W, Z, C], [False, True], [False, True]):
        if state is not State.NONE:
            for entry in ENTRIES[state]:
                assert decide(entry, operation, whole, reclaim) != FORWARD


def test_flush_ignores_entries() -> None:
    for entries in ENTRIES.values():
        for entry in entries:
            assert decide(entry, Operation.FLUSH, False, True) == FORWARD


def test_writes() -> None:
    assert [operation for operation in Operation if is_write(operation)] == [W, U, Z, C]


ACTIVATE = {
    State.INVALID: lambda entry: 0,
    State.NO_WRITE: lambda entry: entry | NO_WRITE if entry & 1 else 0,
    State.ZERO: lambda entry: (entry if entry & 1 else 0) | 5,
    State.ERROR: lambda entry: (entry if entry & 1 else 0) | 9,
}


@pytest.mark.claim(31)
@pytest.mark.parametrize("state", list(ACTIVATE))
def test_a_command_may_activate_any_state(state: State) -> None:
    for entries in ENTRIES.values():
        for entry in entries:
            assert with_state(entry, state, True) == ACTIVATE[state](entry)


def test_activating_zero_or_error_on_invalid_maps_it() -> None:
    assert state_of(with_state(0, State.ZERO, True)) is State.ZERO
    assert state_of(with_state(0, State.ERROR, True)) is State.ERROR
    assert with_state(0, State.NO_WRITE, True) == 0


def test_only_no_write_may_be_deactivated() -> None:
    assert with_state(pack(1, 2, NO_WRITE), State.NO_WRITE, False) == pack(1, 2)
    assert with_state(0, State.NO_WRITE, False) == 0
    for state in (State.INVALID, State.ZERO, State.ERROR, State.NONE):
        with pytest.raises(StateForbidden):
            with_state(pack(1, 2), state, False)
    with pytest.raises(StateForbidden):
        with_state(pack(1, 2), State.NONE, True)
