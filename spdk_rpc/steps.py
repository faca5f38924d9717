"""Operations on a target, step by step and without I/O.

An operation is a generator: it yields a step (a call, or a pause) and gets the step's value, or the failure with which
it ended, thrown in. So one description serves who runs it in an event loop (:meth:`spdk_rpc.target.Target.run`) and who
runs it inside a pure machine, and tests run it against a target in memory. Operations on one object (a container, a
disk, an export) must not overlap: whoever runs them keeps them in order.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from spdk_rpc.call import Call

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pause:
    """A step: wait."""

    delay_ns: int


Step = Call[Any] | Pause
Steps = Generator[Step, Any, T]


def make(call: Call[T]) -> Steps[T]:
    """One call, as an operation."""
    value: T = yield call
    return value
