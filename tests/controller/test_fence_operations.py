"""Fence, drain, confirm-dead: what operators are told, what waits for what, what outlasts a restart (design: 7, 8)."""

from __future__ import annotations

from typing import Any

import pytest

from channel import messages as m
from controller.config import Limits
from controller.core import effects as fx
from controller.core.agents import Standing, host_nqn
from mapping.entry import INVALID_ENTRY, ZERO_ENTRY, has_location
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from tests.controller.rig import Rig, RigAgent


def standing(rig: Rig, name: str) -> Standing:
    return rig.core.cluster.agents_by_name[name].standing


def refusal(result: Any) -> str:
    assert isinstance(result, fx.RefuseOperation), result
    return result.code


def fence_of(rig: Rig, name: str) -> dict[str, Any]:
    found: dict[str, Any] = rig.ask("agent.show", agent=name)["fence"]
    return found


def texts(rig: Rig) -> list[str]:
    return [event["text"] for event in rig.ask("events.list")["events"]]


def denied(agent: RigAgent) -> list[str]:
    return [message.hostnqn for message in agent.ordered(m.DenyHost)]


def two_hosts() -> tuple[Rig, RigAgent, RigAgent, RigAgent]:
    """Containers at two hosts, one mapper that has both attached, and another mapper."""
    rig = Rig()
    one, two = rig.disk_at("a", "b")
    other = rig.exporter("other", {"more": 1024})
    assert rig.ask("container.add", name="d", agent="other", export="more", contents="zeroed")["state"] == "ready"
    return rig, one, two, other


# --- fence -----------------------------------------------------------------------------------------------------------


def test_a_fence_tells_of_every_container_host_and_of_the_lease() -> None:
    rig, one, _, other = two_hosts()
    other.drop()
    assert {row["state"] for row in fence_of(rig, "a")["containers"]} == {"let in"}
    begun = rig.ask("agent.fence", agent="a", wait_s=0)
    assert (begun["done"], begun["state"], begun["why"]) == (False, "fencing", "an operator ordered it")
    begun = rig.ask("agent.fence", agent="a", wait_s=0)
    rows = {row["exporter"]: row for row in begun["containers"]}
    assert (rows["store"]["container"], rows["store"]["state"]) == ("c", "denied")
    assert (rows["other"]["container"], rows["other"]["state"]) == ("d", "unreachable")
    assert begun["lease_over_in_s"] > 10
    (waits,) = begun["waiting_for"]
    assert "other" in waits and "confirm-dead other" in waits
    assert rig.ask("container.show", name="d")["not_fenced"] == [f"a:{one.incarnation}"]
    assert rig.ask("container.show", name="c")["not_fenced"] == []
    (listed,) = rig.ask("cluster.status")["fences"]
    assert listed["agent"] == "a" and listed["waiting_for"] == begun["waiting_for"]
    rig.advance(31)
    (alarm,) = rig.ask("cluster.status")["alarms"]
    assert alarm["kind"] == "fence" and "quarantined" in alarm["text"]
    other.hello()
    assert standing(rig, "a") is Standing.FENCED
    assert not rig.ask("cluster.status")["alarms"] and not rig.ask("cluster.status")["fences"]


def test_a_hung_container_host_is_not_a_fence() -> None:
    rig, one, two, other = two_hosts()
    other.refusing[m.DenyHost] = Status.NOT_FENCED
    one.fault(3, FaultKind.READ, INVALID_ENTRY, operation=Operation.READ)
    one.drop()
    two.fault(3)
    rig.advance(60)
    assert standing(rig, "a") is Standing.FENCING and not two.answers
    (row,) = [row for row in fence_of(rig, "a")["containers"] if row["exporter"] == "other"]
    assert row["state"] == "not fenced" and "NOT_FENCED" in row["detail"]
    rig.restart()
    for agent in (other, rig.agents["store"]):
        agent.hello()
    rig.advance(60)
    assert standing(rig, "a") is Standing.FENCING, "neither forgotten nor believed after a restart"
    del other.refusing[m.DenyHost]
    rig.advance(3)
    assert standing(rig, "a") is Standing.FENCED
    two.hello([(two.table(), 1)])
    two.fault(3)
    assert has_location(two.last_answer()[1][0])


def test_a_session_lost_during_the_deny_leaves_it_unknown_and_it_is_asked_again() -> None:
    rig, one, _, other = two_hosts()
    other.auto = False
    rig.ask("agent.fence", agent="a", wait_s=0)
    asked = len(denied(other))
    other.drop()
    rig.advance(20)
    assert standing(rig, "a") is Standing.FENCING
    other.hello()
    assert len(denied(other)) == asked + 1
    other.respond(which=m.DenyHost)
    assert standing(rig, "a") is Standing.FENCED
    assert denied(other)[-1] == host_nqn("a", one.incarnation)


# --- confirm-dead ----------------------------------------------------------------------------------------------------


def test_who_may_be_said_to_be_dead() -> None:
    rig, one, _, other = two_hosts()
    assert refusal(rig.ask("agent.confirm_dead", agent="a", confirm="b")) == "bad_argument"
    assert refusal(rig.ask("agent.confirm_dead", agent="a", confirm="a")) == "busy"
    one.drop()
    assert refusal(rig.ask("agent.confirm_dead", agent="a", confirm="a")) == "refused", "all can be asked: fence it"
    assert refusal(rig.ask("agent.confirm_dead", agent="other", confirm="other")) == "busy"
    assert refusal(rig.ask("agent.confirm_dead", agent="nobody", confirm="nobody")) == "not_found"
    assert standing(rig, "a") is Standing.ALIVE and not denied(other)


def test_a_dead_mapper_is_over_where_nobody_can_be_asked_and_denied_where_somebody_can() -> None:
    rig, one, _, other = two_hosts()
    one.drop()
    other.drop()
    rig.agents["store"].auto = False
    said = rig.ask("agent.confirm_dead", agent="a", confirm="a", wait_s=0)
    assert not said["done"] and said["confirmed_dead"]
    (assumed,) = said["assumed"]
    assert "container d" in assumed and "other was not asked" in assumed
    assert standing(rig, "a") is Standing.FENCING, "store is connected, and is asked"
    rig.agents["store"].respond(which=m.DenyHost)
    assert standing(rig, "a") is Standing.FENCED, "without waiting for a lease"
    rows = {row["exporter"]: row["state"] for row in fence_of(rig, "a")["containers"]}
    assert rows == {"store": "denied", "other": "assumed"}
    other.hello()
    assert denied(other)[-1] == host_nqn("a", one.incarnation), "and is denied when it can be"
    assert fence_of(rig, "a")["containers"][-1]["state"] == "denied"


def test_a_dead_container_host_ends_the_fences_that_wait_for_it() -> None:
    rig, one, _, other = two_hosts()
    other.drop()
    one.drop()
    rig.ask("agent.fence", agent="a", wait_s=0)
    rig.advance(20)
    assert standing(rig, "a") is Standing.FENCING
    refused = rig.ask("agent.fence", agent="other", wait_s=0)
    assert refusal(refused) == "bad_argument" and "confirm-dead other" in refused.hint
    said = rig.ask("agent.confirm_dead", agent="other", confirm="other")
    assert said["done"] and said["state"] == "confirmed dead"
    (assumed,) = said["assumed"]
    assert "agent a" in assumed and "container d" in assumed
    assert standing(rig, "a") is Standing.FENCED
    assert standing(rig, "other") is Standing.ALIVE, "an exporter is not fenced: it could never come back"
    rig.restart()
    assert fence_of(rig, "other")["confirmed_dead"]
    other.instance = b"other, repaired."
    other.hello()
    assert other.welcome.status is Status.OK and not fence_of(rig, "other")["confirmed_dead"]
    orders = [type(message) for message in other.commands if type(message) in (m.DenyHost, m.AllowHost)]
    assert host_nqn("a", one.incarnation) in denied(other)
    assert orders.index(m.DenyHost) < len(orders) - 1 - orders[::-1].index(m.AllowHost), "what is owed comes first"
    assert rig.ask("container.show", name="d")["not_fenced"] == []


def test_the_word_outlasts_a_controller_and_what_is_owed_too() -> None:
    rig, one, _, other = two_hosts()
    one.drop()
    other.drop()
    assert rig.ask("agent.confirm_dead", agent="a", confirm="a")["done"]
    one.instance = b"another instance"
    one.hello()
    assert one.welcome.status is Status.OK
    rig.restart()
    rig.agents["store"].hello()
    one.hello()
    assert not fence_of(rig, "a")["confirmed_dead"], "its new incarnation is not dead"
    other.hello()
    assert any(nqn.startswith("nqn.2026-11.io.segmap:agent:a:") for nqn in denied(other))
    assert rig.ask("container.show", name="d")["not_fenced"] == []


def test_one_that_was_said_to_be_dead_and_lives_is_told_loudly() -> None:
    rig, one, _, other = two_hosts()
    other.drop()
    one.drop()
    rig.ask("agent.fence", agent="a", wait_s=0)
    rig.ask("agent.confirm_dead", agent="other", confirm="other")
    other.hello()
    assert other.welcome.status is Status.OK
    assert any("alive, although" in text for text in texts(rig))
    assert denied(other) == [host_nqn("a", one.incarnation)]


# --- remove ----------------------------------------------------------------------------------------------------------


def test_an_agent_is_removed_when_nothing_is_left_of_it_and_its_incarnations_are_never_used_again() -> None:
    rig, one, _, other = two_hosts()

    def removed() -> str:
        result = rig.ask("agent.remove", agent="a")
        return "" if result == {"agent": "a"} else str(result.text)

    assert "connected" in removed()
    rig.ask("agent.drain", agent="a")
    one.drop()
    assert "presented" in removed()
    rig.ask("vdisk.withdraw", name="v", agents=["a"])
    assert "not fenced" in removed()
    other.drop()
    assert rig.ask("agent.fence", agent="a")["done"], "drained: nobody is waited for"
    assert "list of a container host" in removed()
    other.hello()
    last = rig.core.cluster.incarnation_max
    assert removed() == ""
    assert [agent["name"] for agent in rig.ask("agent.list")["agents"]] == ["store", "b", "other"]
    assert refusal(rig.ask("agent.show", agent="a")) == "not_found"
    other.drop()
    assert "exports container d" in rig.ask("agent.remove", agent="other").text
    rig.restart()
    assert rig.core.cluster.incarnation_max == last
    again = rig.agent("a")
    assert again.incarnation > last
    assert not rig.core.cluster.agents_by_name["a"].draining


# --- drain -----------------------------------------------------------------------------------------------------------


def test_a_drained_agent_holds_nothing_and_needs_no_fence() -> None:
    rig, one, two, other = two_hosts()
    one.fault(3, FaultKind.READ, INVALID_ENTRY, operation=Operation.READ)
    before = len(one.commands)
    result = rig.ask("agent.drain", agent="a")
    assert (result["done"], result["state"], result["waiting_for"]) == (True, "drained", [])
    order = [type(message).__name__ for message in one.commands[before:]]
    assert order == ["Withdraw", "DeleteTable", "DetachContainer", "DetachContainer"]
    assert rig.ask("agent.list")["agents"][1]["state"] == "drained"
    two.fault(3)
    assert has_location(two.last_answer()[1][0]), "nobody waits for it"
    other.drop()
    rig.agents["store"].drop()
    elsewhere = RigAgent(rig, "a", 1, b"another instance")
    elsewhere.machine = b"another machine."
    one.drop()
    elsewhere.hello()
    assert elsewhere.welcome.status is Status.OK, "neither lease nor container hosts are waited for"
    assert not elsewhere.commands, "and nothing is brought up at it"
    rig.agents["store"].hello()
    other.hello()
    assert host_nqn("a", one.incarnation) in denied(other)
    again = rig.ask("agent.undrain", agent="a")
    assert again["done"] and again["state"] == "alive"
    assert [type(message).__name__ for message in elsewhere.commands][-2:] == ["CreateTable", "Present"]


@pytest.mark.parametrize("which", [m.Withdraw, m.DeleteTable, m.DetachContainer])
def test_draining_goes_on_after_a_restart_and_after_refusals(which: type) -> None:
    rig, one, _, _ = two_hosts()
    one.refusing[which] = Status.BUSY
    result = rig.ask("agent.drain", agent="a", wait_s=0)
    assert not result["done"] and result["waiting_for"]
    assert rig.ask("agent.list")["agents"][1]["state"] == "draining"
    rig.advance(10)
    assert fence_of(rig, "a")["state"] != "drained"
    rig.restart()
    for agent in ("store", "other"):
        rig.agents[agent].hello()
    one.hello([(one.table(), 1)])
    assert fence_of(rig, "a")["state"] == "draining"
    del one.refusing[which]
    rig.advance(5)
    assert fence_of(rig, "a")["state"] == "drained"
    rig.restart()
    assert fence_of(rig, "a")["state"] == "drained"
    assert not rig.vdisk.sharing[1:], "a drained agent is not waited for"


def test_an_agent_that_is_drained_and_undrained_again_and_again_is_drained_only_when_it_is() -> None:
    rig, one, _, _ = two_hosts()
    one.auto = False
    rig.ask("agent.drain", agent="a", wait_s=0)
    one.respond(which=m.Withdraw)
    one.respond(which=m.DeleteTable)
    one.respond(which=m.DetachContainer)
    rig.ask("agent.undrain", agent="a", wait_s=0)
    rig.ask("agent.drain", agent="a", wait_s=0)
    assert fence_of(rig, "a")["state"] == "draining"
    for _ in range(20):
        if one.asked:
            one.respond()
    rig.advance(5)
    while one.asked:
        one.respond()
    attached = [type(message) for message in one.commands if type(message) in (m.AttachContainer, m.DetachContainer)]
    per_slot = {
        message.slot: message for message in one.commands if type(message) in (m.AttachContainer, m.DetachContainer)
    }
    assert fence_of(rig, "a")["state"] == "drained", attached
    assert all(isinstance(message, m.DetachContainer) for message in per_slot.values()), "the last word of each"


def test_what_is_not_durable_yet_brings_nothing_up_and_takes_nothing_away() -> None:
    rig, one, _, _ = two_hosts()
    count = len(one.commands)
    rig.hold_commits = True
    rig.ask("agent.drain", agent="a", wait_s=0)
    assert len(one.commands) == count
    rig.hold_commits = False
    rig.commit()
    assert fence_of(rig, "a")["state"] == "drained"
    count = len(one.commands)
    rig.hold_commits = True
    rig.ask("agent.undrain", agent="a", wait_s=0)
    one.machine = b"mmmmmmmmreboot 3"
    one.hello()
    assert len(one.commands) == count, "a store that says drained would be believed"
    rig.hold_commits = False
    rig.commit()
    assert [type(message) for message in one.commands[count:]][-1] is m.Present
    rig.restart()
    assert fence_of(rig, "a")["state"] == "alive"


def test_what_cannot_be_drained_and_what_not_presented_meanwhile() -> None:
    rig, one, _, _ = two_hosts()
    assert refusal(rig.ask("agent.drain", agent="store")) == "bad_argument"
    one.drop()
    waits = rig.ask("agent.drain", agent="a", wait_s=0)["waiting_for"]
    assert "agent fence a" in waits[0]
    rig.ask("vdisk.create", name="w", size_bytes=1 << 24)
    assert refusal(rig.ask("vdisk.present", name="w", agents=["a"])) == "busy"
    assert rig.ask("agent.undrain", agent="a", wait_s=0)["done"]
    assert rig.ask("vdisk.present", name="w", agents=["a"])["presentations"][0]["state"] == "pending"


def test_a_disk_is_withdrawn_from_a_drained_agent_and_deleted() -> None:
    rig, one, _, _ = two_hosts()
    rig.ask("agent.drain", agent="a")
    one.drop()
    assert [item["agent"] for item in rig.ask("vdisk.withdraw", name="v", agents=["a"])["presentations"]] == ["b"]
    assert rig.ask("vdisk.delete", name="v", force=True)["freed_segments"] == 0


def zeroing() -> tuple[Rig, RigAgent]:
    rig = Rig(limits=Limits(zeroed_pool_segments=16, zero_batch_segments=8))
    rig.exporter(exports={"disk": 64})
    agent = rig.agent("a")
    agent.auto = False
    agent.say(m.LeaseRenew(1))
    rig.ask("container.add", name="c", agent="store", export="disk", contents="unknown")
    agent.respond(which=m.AttachContainer)
    return rig, agent


def test_draining_waits_for_what_is_being_zeroed() -> None:
    rig, agent = zeroing()
    result = rig.ask("agent.drain", agent="a", wait_s=0)
    assert result["waiting_for"][0] == "8 segments that it is zeroing"
    assert not agent.ordered(m.DetachContainer)
    agent.respond(which=m.ZeroSegments)
    assert len(agent.ordered(m.ZeroSegments)) == 1, "it gets no more to do"
    agent.respond(which=m.DetachContainer)
    assert fence_of(rig, "a")["state"] == "drained"


def test_zeroing_that_failed_is_ended_by_nothing_but_a_fence() -> None:
    rig, agent = zeroing()
    agent.respond(m.Done(Status.IO_ERROR, "broken"), m.ZeroSegments)
    result = rig.ask("agent.drain", agent="a", wait_s=0)
    assert "only a fence ends it" in result["waiting_for"][0]
    shown = rig.ask("container.show", name="c")
    assert shown["segments"]["quarantined"] == shown["quarantine"][0]["segments"] == 8
    assert f"incarnation {agent.incarnation} of agent a is over" in shown["quarantine"][0]["why"]
    run = rig.ask("cluster.check")["run"]
    agent.auto = True
    rig.advance(30)
    assert fence_of(rig, "a")["state"] == "draining"
    checked = rig.ask("cluster.check", run=run)
    assert checked["state"] == "done" and checked["quarantine"] == shown["quarantine"]
    rig.ask("agent.fence", agent="a", wait_s=0)
    rig.advance(12)
    assert standing(rig, "a") is Standing.FENCED
    assert rig.ask("container.show", name="c")["segments"]["quarantined"] == 0


def test_zero_is_still_the_entry_of_what_nobody_wrote() -> None:
    rig, one, two, _ = two_hosts()
    rig.ask("agent.drain", agent="a")
    two.fault(9, FaultKind.READ, INVALID_ENTRY, operation=Operation.READ)
    assert two.last_answer()[1][0] == ZERO_ENTRY
    assert not one.answers
