"""The simulation: seeded histories of a cluster under failures hold every invariant, come to rest, and repeat.

It has taught that a fenced data plane goes on answering reads of ZERO until its lease ends, that a zeroing which a host
has given up must not be carried out after its next write, and that a folded store gives back more segments than a
container has; all are kept as tests of the core. Broken variants show that the simulation can fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim import scenario
from tests.sim.__main__ import catch
from tests.sim.invariants import INVARIANTS
from tests.sim.mutants import MUTANTS
from tests.sim.scenario import AIMED, DENSE, SPARSE, WORKLOADS
from tests.sim.seeds import ONCE_FAILED

ROOT = Path(__file__).parents[2]
QUICK_MUTANTS = ("reply-before-commit", "no-barrier", "reuse-unzeroed", "admit-without-fence", "unmap-wins")


@pytest.mark.parametrize("seed", [101, 102])
def test_a_dense_history_with_failures(seed: int) -> None:
    done = scenario.run(seed, 40, DENSE)
    assert done.world.hosts.acknowledged > 2000
    assert done.world.checks.count > 5000


def test_a_long_sparse_history_with_failures() -> None:
    done = scenario.run(7, 1800, SPARSE)
    assert done.world.hosts.acknowledged > 1000
    assert done.audits > 5


def test_failures_aimed_at_hosts_that_are_at_work() -> None:
    done = scenario.run(2, 90, AIMED)
    assert done.failures is not None
    assert len(done.failures.counts) >= 4
    assert done.world.hosts.acknowledged > 3000


@pytest.mark.parametrize(("seed", "seconds", "workload"), ONCE_FAILED)
def test_what_failed_once(seed: int, seconds: float, workload: str) -> None:
    scenario.run(seed, seconds, WORKLOADS[workload])


def test_the_same_seed_gives_the_same_trace() -> None:
    first, second = (scenario.trouble(3, 15).timeline for _ in range(2))
    assert first.digest() == second.digest()
    assert first.digest() != scenario.trouble(4, 15).timeline.digest()


def test_the_same_seed_gives_the_same_trace_in_every_process() -> None:
    """Nothing hangs on the order in which a set of words happens to be."""
    command = [sys.executable, "-m", "tests.sim", "run", "--seed", "9", "--hours", "0.004", "--workload", "storm"]
    runs = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE)
        for seed in ("1", "2")
    ]
    first, second = (run.communicate()[0].decode().splitlines() for run in runs)
    assert first[-1].startswith("  trace ")
    assert first[1:] == second[1:]


def test_every_invariant_has_a_mutant_and_every_mutant_an_invariant() -> None:
    assert [row.number for row in INVARIANTS] == list(range(13))
    named = [name for row in INVARIANTS for name in row.mutants]
    assert sorted(named) == sorted(mutant.name for mutant in MUTANTS)
    assert [row.number for row in INVARIANTS if not row.mutants] == [11], "what cannot be seen from here is said there"


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.name in QUICK_MUTANTS], ids=lambda m: m.name)
def test_a_broken_variant_is_caught(mutant: object) -> None:
    tried, seed, words = catch(mutant, seeds=3)  # type: ignore[arg-type]
    assert seed >= 0, f"{tried} seeds: {words}"


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_every_broken_variant_is_caught(mutant: object) -> None:
    tried, seed, words = catch(mutant)  # type: ignore[arg-type]
    assert seed >= 0, f"{tried} seeds: {words}"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(200, 230))
def test_many_dense_histories(seed: int) -> None:
    scenario.run(seed, 120, DENSE)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(400, 420))
def test_many_aimed_histories(seed: int) -> None:
    scenario.run(seed, 120, AIMED)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(300, 306))
def test_many_simulated_hours(seed: int) -> None:
    scenario.run(seed, 4 * 3600, SPARSE)
