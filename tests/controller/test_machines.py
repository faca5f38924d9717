"""Who may take an agent's place, and when: the same machine at once, another boot after the lease, another machine
when all that it could reach is denied (design: 7, 8)."""

from __future__ import annotations

from channel import messages as m
from mapping.entry import has_location
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from tests.controller.rig import Rig, RigAgent


def double(rig: Rig, agent: RigAgent, machine: bytes = b"another machine.") -> RigAgent:
    """Somebody else with the agent's name and certificate."""
    other = RigAgent(rig, agent.name, agent.roles, b"another instance")
    other.machine = machine
    return other


def test_a_new_instance_on_the_same_machine_is_admitted_at_once() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.instance = b"another instance"
    agent.hello()
    assert agent.welcome.status is Status.OK


def test_also_by_a_restarted_controller() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.restart()
    rig.agents["store"].hello()
    agent.instance = b"another instance"
    agent.hello()
    assert agent.welcome.status is Status.OK


def test_the_one_that_is_connected_stays() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    session = agent.session
    other = double(rig, agent)
    other.hello()
    assert other.welcome.status is Status.BUSY and other.closed is not None
    assert agent.session == session and agent.closed is None
    assert [alarm["kind"] for alarm in rig.ask("cluster.status")["alarms"]] == ["double"]
    rig.advance(40)
    agent.say(m.LeaseRenew(2))
    other.hello()
    rig.advance(40)
    assert rig.ask("cluster.status")["alarms"], "it has tried again"
    rig.advance(21)
    assert not rig.ask("cluster.status")["alarms"]


def test_another_machine_waits_for_the_lease_since_zeroes_may_be_read_until_then() -> None:
    rig = Rig()
    one, two = rig.disk_at("a", "b")
    one.fault(1, FaultKind.READ, 0, operation=Operation.READ)
    one.say(m.LeaseRenew(1))
    one.drop()
    other = double(rig, one)
    other.hello()
    assert other.welcome is None
    assert "lease" in rig.ask("agent.show", agent="a")["fence"]["waiting_for"][0]
    two.fault(1)
    rig.advance(10)
    assert other.welcome is None and not two.answers
    rig.advance(1)
    assert other.welcome.status is Status.OK
    assert has_location(two.last_answer()[1][0])


def test_a_machine_that_says_nothing_proves_nothing() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.drop()
    other = double(rig, agent, bytes(16))
    other.hello()
    assert other.welcome is None
    rig.advance(11)
    assert other.welcome.status is Status.OK
    other.drop()
    third = double(rig, agent, bytes(16))
    third.instance = b"the third one..."
    third.hello()
    assert third.welcome is None, "twice nothing is not the same machine"


def own_container_host() -> tuple[Rig, RigAgent]:
    """An agent that is mapper and exporter in one process, and is lost."""
    rig = Rig()
    both = rig.agent("a", 3)
    rig.announce(both, {"disk": 64})
    both.say(m.LeaseRenew(1))
    rig.ask("container.add", name="c", agent="a", export="disk", contents="zeroed")
    assert rig.core.cluster.allows
    both.drop()
    return rig, both


def test_one_that_is_its_own_container_host_comes_back_after_a_boot() -> None:
    rig, both = own_container_host()
    booted = double(rig, both, both.machine[:8] + b"reboot 2")
    booted.hello()
    rig.advance(10)
    assert booted.welcome is None, "machines may be copied with their names: not before the lease is over"
    rig.advance(1)
    assert booted.welcome.status is Status.OK
    assert not [allow for allow in rig.core.cluster.allows.values() if allow.incarnation == both.incarnation]


def test_on_another_machine_its_old_self_is_over_only_when_somebody_says_so() -> None:
    rig, both = own_container_host()
    elsewhere = double(rig, both)
    elsewhere.hello()
    rig.advance(3600)
    assert elsewhere.welcome is None, "no time ends I/O that nobody can deny"
    (waits,) = rig.ask("agent.show", agent="a")["fence"]["waiting_for"]
    assert "confirm-dead a" in waits
    (alarm,) = rig.ask("cluster.status")["alarms"]
    assert alarm["kind"] == "fence" and "confirm-dead a" in alarm["text"]
    said = rig.ask("agent.confirm_dead", agent="a", confirm="a")
    assert said["done"] and said["assumed"] and elsewhere.welcome.status is Status.OK
    assert not rig.ask("cluster.status")["alarms"]


def test_an_exporter_has_no_lease_to_wait_for() -> None:
    rig = Rig()
    store = rig.exporter()
    store.drop()
    other = double(rig, store)
    other.hello()
    assert other.welcome.status is Status.OK
