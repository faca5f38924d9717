"""The schedule is a function of its seed, keeps to its bounds, and plans only what can be done."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.schedule import AT_ONCE_MAX, CALM_S, STORM_S, Kind, Sight, plan

SIGHT = Sight(("controller", "a", "a.target"), ("a", "x"), (("a", "x"),), ("store",), ("x0",), ("a",), True, 2.0)


@pytest.mark.parametrize("seed", range(20))
def test_bounds(seed: int) -> None:
    faults = plan(seed, 120, SIGHT)
    assert faults == plan(seed, 120, SIGHT) != plan(seed + 1, 120, SIGHT)
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    for fault in faults:
        assert 0 < fault.at_s < fault.end_s <= 120
        together = [one for one in faults if one.at_s <= fault.at_s < one.end_s]
        assert len(together) <= AT_ONCE_MAX
        assert len({(one.victim, one.other) for one in together}) == len(together)
    begins, ends = [fault.at_s for fault in faults[1:]], [fault.end_s for fault in faults[:-1]]
    calm = [at for index, at in enumerate(begins) if at - max(ends[: index + 1]) >= CALM_S - 0.01]
    assert len(calm) >= 120 // (STORM_S[1] + 3 * 3 * SIGHT.lease_s + CALM_S) - 1


def test_only_what_can_be_done() -> None:
    kinds = {fault.kind for seed in range(20) for fault in plan(seed, 120, SIGHT)}
    assert kinds == set(Kind)
    little = replace(SIGHT, disks=(), links=(), containers=(), mappers=())
    kinds = {fault.kind for seed in range(20) for fault in plan(seed, 120, little)}
    assert kinds == {Kind.KILL, Kind.MACHINE, Kind.PAUSE, Kind.STOP}
    frozen = replace(SIGHT, freezes=False)
    assert Kind.FREEZE not in {fault.kind for seed in range(20) for fault in plan(seed, 120, frozen)}
