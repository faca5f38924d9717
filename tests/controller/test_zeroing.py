"""Zeroing whose end nobody knows: what is kept back, and how it is got back (design: 8, 10)."""

from __future__ import annotations

import pytest

from channel import messages as m
from controller.config import Limits
from mapping.status import Status
from tests.controller.rig import Rig, RigAgent


def zeroing(batch: int = 8, segments: int = 64) -> tuple[Rig, RigAgent]:
    """A container whose pool is to be filled by an agent that has not answered yet."""
    rig = Rig(limits=Limits(zeroed_pool_segments=0, zero_batch_segments=batch))
    rig.exporter(exports={"disk": segments})
    agent = rig.agent("a")
    agent.say(m.LeaseRenew(1))
    rig.ask("container.add", name="c", agent="store", export="disk", contents="unknown")
    agent.auto = False
    want(rig, 16)
    return rig, agent


def want(rig: Rig, pool: int) -> None:
    rig.core.cluster.limits = Limits(zeroed_pool_segments=pool, zero_batch_segments=8)
    rig.core.cluster.zeroing.taken()
    rig.advance(0)


def counts(rig: Rig) -> dict[str, int]:
    found: dict[str, int] = rig.ask("container.show", name="c")["segments"]
    return found


def back(rig: Rig, agent: RigAgent) -> None:
    """The same data plane is back, with a lease."""
    agent.hello()
    while any(type(asked[2]) is m.AttachContainer for asked in agent.asked):
        agent.respond(which=m.AttachContainer)
    agent.say(m.LeaseRenew(2))


def test_an_interrupted_batch_is_ordered_again_when_the_same_data_plane_is_back() -> None:
    rig, agent = zeroing()
    (first,) = agent.ordered(m.ZeroSegments)
    agent.drop()
    assert counts(rig)["quarantined"] == 8
    back(rig, agent)
    rig.advance(2.1)
    second = agent.respond(which=m.ZeroSegments)
    assert second.runs == first.runs
    assert (counts(rig)["quarantined"], counts(rig)["zeroed"]) == (0, 8)


def test_sessions_that_break_again_and_again_do_not_eat_the_container() -> None:
    rig, agent = zeroing()
    for _ in range(10):
        agent.drop()
        back(rig, agent)
        rig.advance(3)
    assert counts(rig)["quarantined"] == 8
    agent.respond(which=m.ZeroSegments)
    assert counts(rig)["zeroed"] == 8


def test_an_interrupted_batch_survives_the_controller() -> None:
    rig, agent = zeroing()
    first = agent.ordered(m.ZeroSegments)[-1]
    rig.restart()
    assert counts(rig)["quarantined"] == 8
    rig.agents["store"].hello()
    back(rig, agent)
    agent.respond(which=m.AttachContainer)
    assert agent.respond(which=m.ZeroSegments).runs == first.runs
    assert counts(rig)["zeroed"] == 8
    assert not rig.store.load().jobs


@pytest.mark.parametrize("status", [Status.BUSY, Status.NO_CONTAINER, Status.STALE_EPOCH, Status.LEASE_EXPIRED])
def test_a_repetition_that_is_refused_proves_nothing(status: Status) -> None:
    rig, agent = zeroing()
    agent.drop()
    back(rig, agent)
    rig.advance(2.1)
    agent.respond(m.Done(status, ""), m.ZeroSegments)
    assert counts(rig)["quarantined"] == 8
    rig.advance(2.1)
    agent.respond(which=m.ZeroSegments)
    assert (counts(rig)["quarantined"], counts(rig)["zeroed"]) == (0, 8)


def test_what_failed_is_kept_back_and_while_it_fails_little_is_risked() -> None:
    rig, agent = zeroing()
    agent.respond(m.Done(Status.IO_ERROR, "broken"), m.ZeroSegments)
    assert counts(rig)["quarantined"] == 8
    for _ in range(300):
        rig.advance(2)
        if any(type(asked[2]) is m.ZeroSegments for asked in agent.asked):
            agent.respond(m.Done(Status.IO_ERROR, "broken"), m.ZeroSegments)
    assert 8 < counts(rig)["quarantined"] < 20, "ten minutes"
    while not any(type(asked[2]) is m.ZeroSegments for asked in agent.asked):
        rig.advance(60)
    agent.respond(which=m.ZeroSegments)
    assert counts(rig)["zeroing"] == 8, "it works again"


def test_the_end_of_a_failed_batch_is_not_that_of_the_one_under_way() -> None:
    rig, agent = zeroing()
    other = rig.agent("b")
    other.auto = False
    agent.respond(m.Done(Status.IO_ERROR, "broken"), m.ZeroSegments)
    agent.drop()
    other.say(m.LeaseRenew(1))
    rig.advance(4.1)
    other.respond(which=m.AttachContainer)
    assert len(other.ordered(m.ZeroSegments)) == 1
    rig.ask("agent.fence", agent="a")
    rig.advance(12)
    assert (counts(rig)["quarantined"], counts(rig)["zeroing"]) == (0, 1)
    want(rig, 32)
    assert len(other.ordered(m.ZeroSegments)) == 1, "one batch per container at a time"


def test_a_batch_whose_end_is_on_its_way_to_the_store_is_no_finding() -> None:
    """However long the commit takes: the job is forgotten already, the segments are ZEROING until it is durable."""
    rig, agent = zeroing()
    run = rig.ask("cluster.check")["run"]
    rig.advance(1e-6)
    rig.hold_commits = True
    agent.respond(which=m.ZeroSegments)
    rig.advance(0.5)
    rig.hold_commits = False
    rig.commit()
    agent.auto = True
    rig.advance(3)
    row = rig.ask("cluster.check", run=run)
    assert (row["state"], [one for one in row["findings"] if one["severity"] == "error"]) == ("done", [])
