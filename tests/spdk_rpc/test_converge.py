"""Convergence: unknown outcomes are read back, refusals are raised unless somebody else did it, and it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from spdk_rpc import converge as steps_of
from spdk_rpc.call import Call, read_true
from spdk_rpc.converge import LOOKS_MAX, ROUNDS_MAX, TargetStuck
from spdk_rpc.errors import RpcConnectError, RpcError, RpcTimeout
from spdk_rpc.steps import Pause, Steps
from tests.spdk_rpc.pretend_target import carry_out


class Counted:
    """A target with a number that calls raise by one, and a script of how the calls end."""

    def __init__(self, *endings: Exception | None) -> None:
        self.value = 0
        self.calls = 0
        self.endings = list(endings)
        self.looks: list[Exception | None] = []
        self.effect_when_unknown = True
        self.while_refused: Callable[[], None] = lambda: None

    def perform(self, call: Call[Any]) -> Any:
        self.calls += 1
        ending = self.endings.pop(0) if self.endings else None
        if ending is None or (isinstance(ending, RpcTimeout) and self.effect_when_unknown):
            self.value += 1
        if isinstance(ending, RpcError):
            self.while_refused()
        if ending is not None:
            raise ending
        return call.parse(True)


def raise_to(wanted: int) -> Callable[[int], Sequence[Call[Any]]]:
    return lambda value: [Call("raise", {"to": number}, read_true) for number in range(value + 1, wanted + 1)]


def converge(target: Counted, plan: Callable[[int], Sequence[Call[Any]]]) -> int:
    def read() -> Steps[int]:
        if target.looks:
            ending = target.looks.pop(0)
            if ending is not None:
                raise ending
        return target.value
        yield Pause(0)

    return carry_out(steps_of.converge(read, plan), target.perform)


REFUSAL = RpcError("raise", -17, "File exists")


def test_nothing_to_do_calls_nothing() -> None:
    target = Counted()
    assert converge(target, raise_to(0)) == 0
    assert target.calls == 0


def test_all_steps_and_read_back() -> None:
    target = Counted()
    assert converge(target, raise_to(3)) == 3
    assert target.calls == 3


@pytest.mark.parametrize("effect", [True, False])
def test_unknown_outcome_is_read_back(effect: bool) -> None:
    """Whether the call had its effect or not, the end is the same, and nothing is done twice."""
    target = Counted(None, RpcTimeout("raise", "no answer in time"))
    target.effect_when_unknown = effect
    assert converge(target, raise_to(3)) == 3
    assert target.calls == (3 if effect else 4)


def test_refusal_is_raised_after_one_more_look() -> None:
    target = Counted(REFUSAL, REFUSAL)
    with pytest.raises(RpcError, match="File exists"):
        converge(target, raise_to(1))
    assert target.calls == 1


def test_refusal_in_the_middle_is_raised() -> None:
    target = Counted(None, REFUSAL)
    with pytest.raises(RpcError):
        converge(target, raise_to(3))
    assert target.calls == 2


def test_refused_because_somebody_else_did_it() -> None:
    target = Counted(REFUSAL)
    target.while_refused = lambda: setattr(target, "value", 1)
    assert converge(target, raise_to(1)) == 1


def test_no_connection_is_raised_at_once() -> None:
    target = Counted(RpcConnectError("gone"))
    with pytest.raises(RpcConnectError):
        converge(target, raise_to(2))
    assert target.calls == 1


def test_what_never_becomes_true_ends() -> None:
    target = Counted()
    with pytest.raises(TargetStuck, match=f"still to do after {ROUNDS_MAX} rounds: raise"):
        converge(target, lambda value: [Call("raise", {}, read_true)])
    assert target.calls == ROUNDS_MAX


LOST = RpcTimeout("raise", "no answer in time")


def test_refused_after_an_unknown_outcome_is_tried_again() -> None:
    """The call that timed out may be under way yet: it is what the next one met."""
    target = Counted(LOST, REFUSAL)
    target.effect_when_unknown = False
    assert converge(target, raise_to(1)) == 1
    assert target.calls == 3


def test_unknown_to_the_end_is_raised() -> None:
    target = Counted(*[LOST] * 100)
    target.effect_when_unknown = False
    with pytest.raises(RpcTimeout):
        converge(target, raise_to(1))
    assert target.calls == ROUNDS_MAX


def test_a_look_that_fails_is_repeated_after_a_call_but_not_for_ever() -> None:
    target = Counted()
    target.looks = [None, *[LOST] * (LOOKS_MAX - 1)]
    assert converge(target, raise_to(1)) == 1
    target = Counted()
    target.looks = [None, *[LOST] * LOOKS_MAX]
    with pytest.raises(RpcTimeout):
        converge(target, raise_to(1))


def test_a_first_look_that_fails_changes_nothing() -> None:
    target = Counted()
    target.looks = [LOST]
    with pytest.raises(RpcTimeout):
        converge(target, raise_to(1))
    assert target.calls == 0
