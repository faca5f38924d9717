"""Clocks that run too fast or too slow against ours are found; slow ways and those within the bound are not."""

from __future__ import annotations

import random

import pytest

from channel.messages import LeaseRenew
from controller.config import DRIFT, SECOND_NS
from tests.controller.rig import Rig, RigAgent
from tests.sim.machine import DRIFT_PPM

RENEW_S = 3.0


class Ticking:
    """An agent whose clock has a rate and an offset of its own, and whose messages take a while."""

    def __init__(self, rate: float) -> None:
        self.rig = Rig()
        self.agent: RigAgent = self.rig.agent("a")
        self.rate = rate
        self.start_ns = self.rig.now_ns
        self.ahead_ns = 77 * SECOND_NS
        self.chance = random.Random(4)

    def run(self, minutes: float, way_s: float = 0.05) -> None:
        for _ in range(int(minutes * 60 / RENEW_S)):
            self.rig.advance(RENEW_S)
            passed = self.rig.now_ns - self.start_ns - int(self.chance.random() * way_s * SECOND_NS)
            self.agent.say(LeaseRenew(self.ahead_ns + int(passed * self.rate)))

    def alarms(self) -> list[str]:
        return [alarm["text"] for alarm in self.rig.ask("cluster.status")["alarms"] if alarm["kind"] == "clock"]


@pytest.mark.parametrize("rate", [1.0, 1 + 1.98 * DRIFT, 1 - 1.98 * DRIFT])
def test_within_the_bound_nothing_is_said(rate: float) -> None:
    one = Ticking(rate)
    one.run(40)
    assert not one.alarms()
    assert DRIFT_PPM < DRIFT * 1e6, "the simulated clocks keep to it"


@pytest.mark.parametrize(("rate", "way"), [(1.05, "gains 5%"), (0.95, "loses (or stood still for a while) 5%")])
def test_beyond_it_there_is_an_alarm_until_it_is_right_again(rate: float, way: str) -> None:
    one = Ticking(rate)
    one.run(5)
    assert not one.alarms(), "too early to tell"
    one.run(5)
    (text,) = one.alarms()
    assert way in text
    one.agent.machine = b"another boot...."
    one.agent.hello()
    one.rate = 1.0
    one.run(10)
    assert not one.alarms()


def test_a_while_of_slow_ways_is_no_drift() -> None:
    one = Ticking(1.0)
    one.run(10)
    one.run(2, way_s=20)
    one.ahead_ns -= 30 * SECOND_NS
    one.run(1)
    one.ahead_ns += 30 * SECOND_NS
    one.run(20)
    assert not one.alarms()


def test_a_machine_that_was_suspended_shows() -> None:
    one = Ticking(1.0)
    one.run(10)
    one.ahead_ns -= 120 * SECOND_NS
    one.run(10)
    assert "stood still" in one.alarms()[0]
