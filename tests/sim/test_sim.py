"""The simulation: seeded histories of a cluster under failures hold every invariant, go on afterwards, and repeat.

It has taught that a fenced data plane goes on answering reads of ZERO until its lease ends, and that a zeroing which a
host has given up must not be carried out after its next write; both are kept as tests of the core.
"""

from __future__ import annotations

import pytest

from tests.sim import scenario

SECONDS = 45


@pytest.mark.parametrize("seed", [6, 9, 101, 102])
def test_a_history_with_failures(seed: int) -> None:
    world = scenario.run(seed, SECONDS)
    assert world.hosts.acknowledged > 1000
    assert world.checks.count > 1000


def test_the_same_seed_gives_the_same_trace() -> None:
    assert scenario.trouble(3, 15).timeline.digest() == scenario.trouble(3, 15).timeline.digest()
