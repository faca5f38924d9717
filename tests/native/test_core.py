"""The C core by itself: rules, limits and sizes at their edges, and what compilers say of it (nothing)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mapping.entry import ENTRY_MAX, ZERO_ENTRY, State, pack, state_of
from mapping.rules import Action, Operation, StateForbidden, decide, with_state
from mapping.status import Status
from tests.native.building import COMPILERS, CORE, NO_COMPILER, WARNINGS, compile_c
from tests.native.history import IO, LEASE, PARK, TABLES, Story
from tests.native.rig import NEVER, Command, Kind, Pair

TABLE = TABLES[0]


@pytest.mark.parametrize("reclaims", [False, True])
@pytest.mark.parametrize("operation", Operation)
def test_every_decision_is_that_of_the_rules(pair: Pair, operation: Operation, reclaims: bool) -> None:
    for flags in range(16):
        action, kind = decide(flags, operation, reclaims, True)
        ((_, found, found_kind, state),) = pair.native.run(Command.DECIDE, flags, operation, reclaims)
        assert (found, state) == (action, state_of(flags))
        assert action is not Action.FAULT or found_kind == kind


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("state", State)
def test_every_state_command_is_that_of_the_rules(pair: Pair, state: State, active: bool) -> None:
    for entry in (*range(16), *(pack(4095, (1 << 48) - 1, flags) for flags in range(16)), ENTRY_MAX & ~1):
        ((_, allowed, found),) = pair.native.run(Command.WITH_STATE, entry, state, active)
        try:
            expected = with_state(entry, state, active)
        except StateForbidden:
            assert not allowed
        else:
            assert (allowed, found) == (True, expected if expected & 1 else 0)


def test_parking_stops_at_its_limit(make_pair: Callable[..., Pair]) -> None:
    story = Story(make_pair(3))
    story.run(Command.GRANT, 1, 1, 1, 0, story.now, LEASE, story.now)
    ends = [story.pair.submit(TABLE, Operation.READ, segment, story.now)[1][-1] for segment in (0, 1, 2, 3)]
    assert [end[0] for end in ends] == [Kind.SEND_FAULT] * 3 + [Kind.COMPLETE]
    assert ends[3][2] == Status.BUSY
    story.pair.look()
    story.run(Command.RESET, TABLE, 0)
    assert story.pair.submit(TABLE, Operation.READ, 3, story.now)[1][-1][0] == Kind.SEND_FAULT


def test_deadlines_are_met_to_the_nanosecond(pair: Pair) -> None:
    story = Story(pair)
    story.pair.submit(TABLE, Operation.READ, 0, story.now)
    assert story.run(Command.TICK, story.now + PARK - 1) == []
    assert story.run(Command.TICK, story.now + PARK) == [(Kind.COMPLETE, 0, Status.TIMEOUT)]
    story.run(Command.GRANT, 1, 1, 1, 0, story.now + PARK, LEASE, story.now + PARK)
    story.pair.submit(TABLE, Operation.FLUSH, 0, story.now + PARK)
    story.run(Command.SUSPEND, 1, 1, 1, 0, TABLE, story.now + PARK, 5)
    assert story.run(Command.TICK, story.now + PARK + IO - 1) == []
    assert story.run(Command.TICK, story.now + PARK + IO) == [(Kind.BARRIER, 5, Status.BARRIER_TIMEOUT)]


def test_a_job_that_outlives_its_lease(pair: Pair) -> None:
    """Success becomes LEASE_EXPIRED; a failure stays what it is."""
    story = Story(pair)
    for token, status in ((1, Status.OK), (2, Status.IO_ERROR)):
        story.run(Command.GRANT, *story.stamp(), story.now, LEASE, story.now)
        assert story.run(Command.BEGIN_JOB, *story.stamp(), token, story.now, 1, 0) == [(Kind.RESULT, Status.OK)]
        story.now += LEASE
        story.run(Command.TICK, story.now)
        expected = Status.LEASE_EXPIRED if status is Status.OK else status
        assert story.run(Command.MAY_CONTINUE, token, story.now) == [(Kind.RESULT, False)]
        assert story.run(Command.END_JOB, token, status, story.now) == [(Kind.RESULT, expected)]


def test_faults_are_found_among_many(make_pair: Callable[..., Pair]) -> None:
    """Answers in another order than the faults, over all hash chains."""
    story = Story(make_pair(512))
    story.run(Command.GRANT, 1, 1, 1, 0, story.now, LEASE, story.now)
    big = 9 << 32 | 1
    story.run(Command.CREATE, big, 1 << 20, 1 << 20, 512, True, False, 2, 0, 1)
    segments = [number * 2047 for number in range(512)]
    faults = [story.pair.submit(big, Operation.READ, segment, story.now)[1][0][1] for segment in segments]
    for at in [*range(1, 512, 2), *range(0, 512, 2)]:
        sequence = story.plane.tables[big].sequence + 1
        log = story.run(
            Command.ANSWER, 1, 1, 1, sequence, big, story.now, 1, faults[at], 0, 0, segments[at], 1, 1, ZERO_ENTRY
        )
        assert [record[0] for record in log] == [Kind.ZEROES, Kind.RESULT]


def test_tables_of_any_size(pair: Pair) -> None:
    """The largest table takes no memory until it is used; shapes that cannot be are refused."""
    run = pair.native.run
    run(Command.ADMIT, 1, 1, 99, 1, 1, LEASE, 0, 1)
    run(Command.BIND, 0, 0)
    largest = 1 << 36
    for segments, size, block, status in [
        (largest, 1 << 20, 512, Status.OK),
        (largest + 1, 1 << 20, 512, Status.OUT_OF_RANGE),
        (0, 1 << 20, 512, Status.OUT_OF_RANGE),
        (1, 1 << 20, 1024, Status.OUT_OF_RANGE),
        (1, 2048, 512, Status.OUT_OF_RANGE),
        (1, (1 << 30) + 4096, 512, Status.OUT_OF_RANGE),
        (1, 1 << 30, 4096, Status.OK),
    ]:
        table = segments ^ size << 32 ^ block << 8
        assert run(Command.CREATE, table, segments, size, block, 1, 0, 1, 0) == [(Kind.RESULT, status)]
        if status is not Status.OK:
            continue
        stamp = (1, 1, 1, 1)
        last = run(Command.SET_ENTRIES, *stamp, table, 1, 0, segments - 1, 1, 1, pack(0, 5))
        assert last == [(Kind.RESULT, Status.OK)]
        beyond = run(Command.SET_ENTRIES, 1, 1, 1, 2, table, 1, 0, segments - 1, 2, 1, pack(0, 5))
        assert beyond == [(Kind.RESULT, Status.OUT_OF_RANGE)]
        wrapped = run(Command.SET_ENTRIES, 1, 1, 1, 3, table, 1, 0, segments - 1, NEVER, 1, pack(0, 5))
        assert wrapped == [(Kind.RESULT, Status.OUT_OF_RANGE)]


def test_a_table_that_grows_keeps_its_entries(pair: Pair) -> None:
    story = Story(pair)
    table = 9 << 32 | 1
    story.run(Command.CREATE, table, 4000, 1 << 20, 512, True, False, 2, 0, 1)
    words = [pack(1, number + 1) for number in range(4000)]
    story.run(Command.SET_ENTRIES, 1, 1, 1, 1, table, story.now, 0, 0, 4000, 4000, *words)
    for segments in (4096, 4097, 40000, 39999, 3000, 5000):
        story.run(Command.RESIZE, table, segments, story.now)
        story.pair.look()


def test_a_lease_ends_at_the_end_of_time_at_the_latest(pair: Pair) -> None:
    """A duration that no clock can hold wraps nowhere."""
    story = Story(pair)
    run = pair.native.run
    run(Command.ADMIT, 1, 1, 99, NEVER, NEVER, NEVER, 0, 1)
    assert run(Command.GRANT, 1, 1, 1, 0, 1, NEVER, story.now) == [(Kind.RESULT, Status.OK)]
    assert run(Command.LOOK_AT_PLANE)[0][6:] == (NEVER, NEVER)
    assert run(Command.SUBMIT, TABLE, 0, 0, Operation.FLUSH, NEVER, 0, 0, 1, 1, NEVER - 1)[0][0] == Kind.FORWARD


@pytest.mark.skipif(not COMPILERS, reason=NO_COMPILER)
@pytest.mark.parametrize("compiler", COMPILERS, ids=[Path(path).name for path in COMPILERS])
def test_compilers_have_nothing_to_say(compiler: str, build_directory: Path) -> None:
    for source in CORE:
        compile_c(compiler, build_directory / f"{source.stem}.o", [source], "-O2", "-c")
    assert "-Werror" in WARNINGS


def test_the_core_knows_no_spdk_and_no_lock() -> None:
    for source in CORE[0].parent.iterdir():
        text = source.read_text()
        assert "spdk" not in text.lower(), source
        assert "pthread" not in text, source
