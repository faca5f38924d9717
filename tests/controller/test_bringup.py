"""Bringing agents up while container hosts are away, and with containers that do not suit (design: 8, 11)."""

from __future__ import annotations

from channel import messages as m
from controller.core import effects as fx
from mapping.entry import has_location
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from tests.controller.rig import SEGMENT_SIZE, Rig, RigAgent


def add_second(rig: Rig) -> RigAgent:
    """A second container host `store2` with container `c2`, slot 1."""
    exporter = rig.agent("store2", 2)
    rig.announce(exporter, {"disk2": 64})
    assert rig.ask("container.add", name="c2", agent="store2", export="disk2", contents="zeroed")["state"] == "ready"
    return exporter


def read(agent: RigAgent, segment: int) -> None:
    agent.fault(segment, FaultKind.READ, 0, operation=Operation.READ)


def test_a_container_host_that_is_down_does_not_keep_a_restarted_controller_from_answering() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.fault(3)
    add_second(rig).drop()
    rig.restart()
    agent.hello([(agent.table(), 9)])
    agent.say(m.LeaseRenew(1))
    assert {order.slot for order in agent.ordered(m.AttachContainer)[-2:]} == {0, 1}, "it may have both, so it is asked"
    assert agent.ordered(m.TableSlots)[-1].slots == [0, 1]
    count = len(agent.answers)
    read(agent, 3)
    assert len(agent.answers) == count + 1


def test_what_it_had_not_attached_is_left_out_until_its_host_is_back() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.fault(3)
    second = add_second(rig)
    second.drop()
    rig.restart()
    rig.agents["store"].hello()
    agent.auto = False
    agent.hello([(agent.table(), 9)])
    agent.say(m.LeaseRenew(1))
    attached = agent.respond(which=m.AttachContainer)
    assert attached.slot == 0
    assert type(agent.asked[0][2]) is m.AttachContainer
    read(agent, 3)
    count = len(agent.answers)
    rig.advance(2.1)
    assert agent.respond(which=m.TableSlots).slots == [0], "an attach without an answer is not waited for any longer"
    assert has_location(agent.last_answer()[1][0]) and len(agent.answers) == count + 1
    agent.respond(m.Attached(Status.IO_ERROR, "no route", 0, 0, False), m.AttachContainer)
    rig.advance(10)
    assert {type(asked[2]) for asked in agent.asked} == {m.Present}, (
        "what failed once is not asked again before its exporter lets the agent in"
    )
    second.hello()
    assert agent.respond(which=m.AttachContainer).slot == 1
    assert agent.respond(which=m.TableSlots).slots == [0, 1]


def test_a_vdisk_is_presented_at_a_fresh_agent_although_another_container_host_is_down() -> None:
    rig = Rig()
    rig.disk_at("a")
    second = add_second(rig)
    second.drop()
    fresh = rig.agent("b")
    fresh.say(m.LeaseRenew(1))
    shown = rig.ask("vdisk.present", name="v", agents=["b"], any_host=True)["presentations"]
    assert shown[1]["state"] == "presented"
    assert fresh.ordered(m.CreateTable)[-1].slots == [0]
    assert [order.slot for order in fresh.ordered(m.AttachContainer)] == [0]
    second.hello()
    assert fresh.ordered(m.TableSlots)[-1].slots == [0, 1]


def test_or_although_it_does_not_answer() -> None:
    rig = Rig()
    rig.disk_at("a")
    add_second(rig).auto = False
    fresh = rig.agent("b")
    fresh.say(m.LeaseRenew(1))
    rig.ask("vdisk.present", name="v", agents=["b"], any_host=True)
    assert not fresh.ordered(m.CreateTable), "it may be quick"
    rig.advance(2.1)
    assert fresh.ordered(m.CreateTable)[-1].slots == [0]


def test_an_allow_without_an_answer_is_no_disaster() -> None:
    rig = Rig()
    rig.disk_at("a")
    second = add_second(rig)
    second.auto = False
    fresh = rig.agent("b")
    rig.ask("vdisk.present", name="v", agents=["b"], any_host=True)
    second.respond(m.Done(Status.INTERNAL, "out of order"), m.AllowHost)
    shown = rig.ask("agent.show", agent="b")
    assert "INTERNAL out of order" in str(shown)
    assert fresh.closed is None


def test_containers_with_larger_blocks_are_not_for_every_vdisk() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    large = m.Export(
        1,
        4096,
        64 * SEGMENT_SIZE // 4096,
        bytes(16),
        True,
        "k4",
        "127.0.0.1",
        "4420",
        "TCP",
        "nqn.2026-11.io.segmap:container:k4",
    )
    rig.agents["store"].say(large)
    assert rig.ask("container.add", name="k4", agent="store", export="k4", contents="zeroed")["slot"] == 1
    assert not agent.ordered(m.TableSlots), "the data plane would refuse it, and everything after it"
    refused = rig.ask("vdisk.create", name="w", size_bytes=SEGMENT_SIZE, containers=["c", "k4"])
    assert isinstance(refused, fx.RefuseOperation) and refused.code == "bad_argument" and "k4" in refused.text
    rig.ask("vdisk.create", name="w", size_bytes=SEGMENT_SIZE, block_size=4096, containers=["k4"])
    rig.ask("vdisk.present", name="w", agents=["a"], any_host=True)
    assert agent.ordered(m.CreateTable)[-1].slots == [1]


def test_a_label_is_written_once_whoever_finishes_first() -> None:
    rig = Rig()
    rig.exporter(exports={"disk": 64})
    slow = rig.agent("a")
    slow.say(m.LeaseRenew(1))
    slow.auto = False
    rig.ask("container.add", name="c", agent="store", export="disk", contents="zeroed", force=True)
    assert slow.asked[-1][2].flags
    quick = rig.agent("b")
    quick.say(m.LeaseRenew(1))
    slow.drop()
    rig.advance(31)
    assert rig.ask("container.add", name="c", agent="store", export="disk", contents="zeroed")["state"] == "ready"
    slow.hello()
    assert slow.asked[-1][2].slot == 0
    assert not slow.asked[-1][2].flags, "a container that has lost everything must not be labelled anew"
    slow.respond(which=m.AttachContainer)
    assert rig.ask("container.show", name="c")["attached_at"] == ["a", "b"]
