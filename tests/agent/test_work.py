"""The order of procedures: by object, bounded, dropped and woken as they should be."""

from __future__ import annotations

import pytest

from agent.core.effects import CallTarget, CreateFile, Note
from agent.core.work import OWN_JOBS_MAX, EnsureFile, Procedure, Work
from channel.values import Header
from spdk_rpc.errors import RpcTimeout
from spdk_rpc.methods.bdev import get_bdevs
from spdk_rpc.steps import Pause


def work(jobs_max: int = 8) -> Work:
    return Work(Header, jobs_max)


def steps(*names: str) -> Procedure:
    for name in names:
        yield get_bdevs(name)
    return names


def test_procedures_without_steps_of_one_object_end_without_recursion() -> None:
    queue = work(jobs_max=5000)
    (first,) = queue.submit("x", 1, steps("a"), lambda _: [], 0)
    assert isinstance(first, CallTarget)
    for number in range(4999):
        assert queue.submit("x", 1, steps(), lambda _, number=number: [Note(str(number))], 0) == []
    assert len(queue.resolve(first.token, None, None, 0)) == 4999
    assert len(queue) == 0


def test_our_own_work_fits_beyond_the_limit_of_commands() -> None:
    queue = work(jobs_max=2)
    for number in range(2):
        queue.submit(number, 1, steps("a"), lambda _: [], 0)
    assert queue.full()
    for number in range(OWN_JOBS_MAX):
        queue.submit(("own", number), 0, steps("a"), lambda _: [], 0)
    with pytest.raises(AssertionError):
        queue.submit("one more", 0, steps("a"), lambda _: [], 0)


def test_a_pause_ends_in_time() -> None:
    queue = work()

    def sleeper() -> Procedure:
        yield Pause(100)
        return "up"

    assert queue.submit("x", 1, sleeper(), lambda value: [Note(value)], 1000) == []
    assert queue.next_deadline() == 1100
    assert queue.tick(1099) == []
    assert queue.tick(1100) == [Note("up")]
    assert queue.next_deadline() is None


def test_a_failure_is_thrown_where_the_procedure_waits() -> None:
    queue = work()

    def careful() -> Procedure:
        try:
            yield get_bdevs("a")
        except RpcTimeout as failure:
            return failure.reason

    (call,) = queue.submit("x", 1, careful(), lambda value: [Note(value)], 0)
    assert isinstance(call, CallTarget)
    assert queue.resolve(call.token, None, RpcTimeout("x", "lost"), 0) == [Note("lost")]
    assert queue.resolve(call.token, None, None, 0) == [], "once"


def test_the_work_of_other_sessions_goes_on() -> None:
    queue = work()
    queue.submit("x", 1, steps("a"), lambda _: [], 0)
    (own,) = queue.submit("y", 0, steps("a"), lambda _: [Note("own")], 0)
    queue.submit("x", 2, steps("b"), lambda _: [], 0)
    queue.end_session(1)
    assert len(queue) == 3
    assert isinstance(own, CallTarget)
    assert queue.resolve(own.token, None, None, 0) == [Note("own")]


def test_a_file_is_a_step_like_any_other() -> None:
    queue = work()

    def builder() -> Procedure:
        try:
            yield EnsureFile("/images/x", 512)
        except OSError as failure:
            return failure.strerror

    (made,) = queue.submit("x", 1, builder(), lambda value: [Note(value)], 0)
    assert isinstance(made, CreateFile) and (made.path, made.size_bytes) == ("/images/x", 512)
    assert queue.resolve(made.token, None, OSError(28, "No space"), 0) == [Note("No space")]
