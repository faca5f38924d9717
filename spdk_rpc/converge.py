"""From what a target has to what it should have: read, plan, call, and read again until the plan is empty (pure).

A plan is a pure function of what was read. So an operation can be repeated at any time, and a call whose outcome is
unknown needs no guess: the next round reads what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from spdk_rpc.call import Call
from spdk_rpc.errors import RpcError, RpcFailure, RpcOutcomeUnknown
from spdk_rpc.methods import bdev, nvmf
from spdk_rpc.methods.bdev import Bdev
from spdk_rpc.methods.nvmf import Subsystem
from spdk_rpc.steps import Steps, make

T = TypeVar("T")

ROUNDS_MAX = 4
LOOKS_MAX = 4
ENODEV = -19


class TargetError(Exception):
    """A target cannot be had, or not be brought where it should be."""


class TargetStuck(TargetError):
    """Calls succeed, but what is read back never becomes what was wanted."""


class TargetConflict(TargetError):
    """The target has something else under this name; what to do is for the one who made it."""


def converge(read: Callable[[], Steps[T]], plan: Callable[[T], Sequence[Call[Any]]]) -> Steps[T]:
    """What was read when nothing was left to do.

    A refusal (RpcError) is raised when reading back shows that the very calls which were refused are still to be made,
    and no earlier outcome is unknown: a call that timed out may be under way yet, and be what the next one met. After
    ROUNDS_MAX rounds the last failure is raised, or TargetStuck if every call succeeded.
    """
    state = yield from read()
    last: RpcFailure | None = None
    left: list[tuple[str, dict[str, Any]]] = []
    uncertain = False
    for _ in range(ROUNDS_MAX):
        calls = plan(state)
        if not calls:
            return state
        if isinstance(last, RpcError) and left == _comparable(calls) and not uncertain:
            raise last
        last, left = None, []
        try:
            for call in calls:
                yield call
        except RpcError as error:
            # What is left of the plan when nothing else changes: the refused call and those behind it.
            last, left = error, _comparable(calls)[calls.index(call) :]
        except RpcOutcomeUnknown as error:
            last, uncertain = error, True
        state = yield from _look_again(read)
    calls = plan(state)
    if not calls:
        return state
    names = ", ".join(call.method for call in calls)
    raise last or TargetStuck(f"still to do after {ROUNDS_MAX} rounds: {names}")


def _comparable(calls: Sequence[Call[Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(call.method, call.params) for call in calls]


def _look_again(read: Callable[[], Steps[T]]) -> Steps[T]:
    for _ in range(LOOKS_MAX - 1):
        try:
            return (yield from read())
        except RpcOutcomeUnknown:
            continue
    return (yield from read())


def read_bdev(name: str) -> Steps[Bdev | None]:
    """The bdev of that name, or None."""
    try:
        return (yield from make(bdev.get_bdevs(name)))[0]
    except RpcError as error:
        if error.code == ENODEV:
            return None
        raise


def read_subsystem(nqn: str) -> Steps[Subsystem | None]:
    """The subsystem of that name, or None.

    Found in the list of all: to be asked for an unknown one by its name, a target answers with the same code as to
    parameters that it does not understand, and a subsystem must not be taken for gone because of that.
    """
    return find_subsystem(nqn, (yield from make(nvmf.get_subsystems())))


def find_subsystem(nqn: str, subsystems: Sequence[Subsystem]) -> Subsystem | None:
    return next((found for found in subsystems if found.nqn == nqn), None)
