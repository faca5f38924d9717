"""Long random histories: the C core does what the reference engine does, effect by effect, entry by entry."""

from __future__ import annotations

import random
import subprocess
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapping.status import Status
from tests.native.building import COMPILER, CORE, HERE, NO_COMPILER, SANITIZERS, compile_c, sanitizers_work
from tests.native.history import ALL_MOVES, MOVES, Story
from tests.native.rig import Kind, Pair, records


class Drawn:
    """Choices that Hypothesis makes, and can shrink."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def pick(self, options: Sequence[Any]) -> Any:
        return options[self.number(0, len(options) - 1)]

    def number(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))


class Seeded:
    """Choices of a seeded generator."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, options: Sequence[Any]) -> Any:
        return self._random.choice(options)

    def number(self, low: int, high: int) -> int:
        return self._random.randint(low, high)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_short_histories_that_shrink(make_pair: Callable[..., Pair], data: st.DataObject) -> None:
    story, choose = Story(make_pair()), Drawn(data)
    for move in data.draw(st.lists(st.sampled_from(ALL_MOVES), max_size=40)):
        move(story, choose)
        story.pair.look()


def tell(story: Story, seed: int, steps: int) -> None:
    choose = Seeded(seed)
    for step in range(steps):
        choose.pick(ALL_MOVES)(story, choose)
        if step % 8 == 0:
            story.pair.look()
    story.pair.look()


@pytest.mark.parametrize("seed", range(12))
def test_long_histories(make_pair: Callable[..., Pair], seed: int) -> None:
    tell(Story(make_pair(5 if seed % 3 == 0 else 16384)), seed, 4000)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 160))
def test_more_long_histories(make_pair: Callable[..., Pair], seed: int) -> None:
    tell(Story(make_pair(5 if seed % 3 == 0 else 16384)), seed, 4000)


def test_the_histories_see_everything(make_pair: Callable[..., Pair]) -> None:
    """Every effect and many statuses: histories in which nothing happens would prove nothing."""
    story = Story(make_pair())
    tell(story, 4711, 12_000)
    kinds = Counter(record[0] for record in story.pair.native.log)
    assert all(kinds[kind] > 10 for kind in Kind if kind is not Kind.DECISION), kinds
    barriers = Counter(record[2] for record in story.pair.native.log if record[0] == Kind.BARRIER)
    assert barriers[Status.OK] > 10 and barriers[Status.BARRIER_TIMEOUT] > 2
    statuses = {record[2] for record in story.pair.native.log if record[0] == Kind.COMPLETE}
    results = {record[1] for record in story.pair.native.log if record[0] == Kind.RESULT}
    assert len(statuses) >= 7
    assert len(results) >= 12
    assert len(MOVES) == 22


@pytest.fixture(scope="session")
def replay(build_directory: Path) -> Path:
    """The program that replays a history under ASan and UBSan."""
    if COMPILER is None:
        pytest.skip(NO_COMPILER)
    why = sanitizers_work(build_directory)
    if why:
        pytest.skip(why)
    program = build_directory / "replay"
    compile_c(COMPILER, program, [HERE / "replay.c", HERE / "rig.c", *CORE], "-O1", *SANITIZERS)
    return program


@pytest.mark.parametrize("seed", range(1000, 1004))
def test_histories_under_sanitizers(make_pair: Callable[..., Pair], replay: Path, seed: int) -> None:
    """The same history does the same, and breaks no rule of C; what it leaves behind counts as a leak."""
    story = Story(make_pair(16 if seed % 2 else 16384))
    tell(story, seed, 1500)
    done = subprocess.run(
        [str(replay)], input=story.pair.native.history.tobytes(), capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    log = array("Q")
    log.frombytes(done.stdout)
    assert records(log) == story.pair.native.log
