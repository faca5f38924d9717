"""Bringing agents up while container hosts are away, and with containers that do not suit (design: 8, 11)."""

from __future__ import annotations

from channel import messages as m
from channel.values import AttachFlags
from controller.core import effects as fx
from mapping.entry import has_location, slot_of
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from tests.controller.rig import SEGMENT_SIZE, Rig, RigAgent


def add_second(rig: Rig) -> RigAgent:
    """A second container host `store2` with container `c2`, slot 1."""
    exporter = rig.agent("store2", 2)
    rig.announce(exporter, {"disk2": 64})
    assert rig.ask("container.add", name="c2", agent="store2", export="disk2", contents="zeroed")["state"] == "ready"
    return exporter


def fill(agent: RigAgent) -> int:
    """Write until something is in the second container; that segment."""
    for segment in range(0, 256, 3):
        agent.fault(segment)
        if slot_of(agent.last_answer()[1][0]) == 1:
            return segment
    raise AssertionError("the second container is not used")


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


def test_a_container_with_data_that_a_fresh_data_plane_cannot_attach_is_absent_until_it_can() -> None:
    """What the earlier one left in its cache must not be taken for durable (design: 6, 12)."""
    rig = Rig()
    (agent,) = rig.disk_at("a", segments=64)
    second = add_second(rig)
    fill(agent)
    second.drop()
    fresh = rig.agent("b")
    fresh.say(m.LeaseRenew(1))
    rig.ask("vdisk.present", name="v", agents=["b"], any_host=True)
    created = fresh.ordered(m.CreateTable)[-1]
    assert (created.slots, created.absent) == ([0], [1])
    (alarm,) = [one for one in rig.ask("cluster.status")["alarms"] if one["kind"] == "flush"]
    assert alarm["text"] == "flushes of vdisk v at agent b fail until it has attached c2"
    second.hello()
    listed = fresh.ordered(m.TableSlots)[-1]
    assert (listed.slots, listed.absent) == ([0, 1], [])
    assert not [one for one in rig.ask("cluster.status")["alarms"] if one["kind"] == "flush"]


def test_so_it_is_for_the_next_controller_which_looks_into_the_table() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a", segments=64)
    fill_second = add_second(rig)
    fill(agent)
    fill_second.drop()
    rig.restart()
    rig.agents["store"].hello()
    agent.instance = b"another one".ljust(16)
    rig.ask("vdisk.create", name="w", size_bytes=SEGMENT_SIZE)
    fresh = rig.agent("b")
    fresh.say(m.LeaseRenew(1))
    for name in ("v", "w"):
        rig.ask("vdisk.present", name=name, agents=["b"], any_host=True)
    rig.advance(2.1)
    created = {order.name: (order.slots, order.absent) for order in fresh.ordered(m.CreateTable)}
    assert created == {"v": ([0], [1]), "w": ([0], [])}, "w has nothing there"


def test_a_container_that_is_new_to_a_disk_is_used_once_its_other_agents_heed_it() -> None:
    """Else a flush at one of them succeeds that does not reach what was written at this one."""
    rig = Rig()
    second = None
    first, other = rig.disk_at("a", "b", segments=3)
    other.refusing[m.AttachContainer] = Status.IO_ERROR
    second = add_second(rig)
    assert first.ordered(m.TableSlots)[-1].slots == [0, 1]
    assert not other.ordered(m.TableSlots), "there is nothing of v in it"
    other.auto = False
    for segment in range(0, 30, 3):
        count = len(first.answers)
        first.fault(segment)
        if len(first.answers) == count:
            break
    else:
        raise AssertionError("it was put into the second container at once")
    listed = other.respond(which=m.TableSlots)
    assert (listed.slots, listed.absent) == ([0], [1])
    assert slot_of(first.last_answer()[1][0]) == 1 and len(first.answers) == count + 1
    other.refusing.clear()
    other.auto = True
    second.hello()
    rig.advance(10)
    listed = other.ordered(m.TableSlots)[-1]
    assert (listed.slots, listed.absent) == ([0, 1], [])


def test_a_disk_whose_other_agent_is_gone_for_good_goes_on() -> None:
    rig = Rig()
    first, other = rig.disk_at("a", "b", segments=3)
    other.refusing[m.AttachContainer] = Status.IO_ERROR
    add_second(rig)
    other.auto = False
    count = -1
    for segment in range(0, 30, 3):
        if len(first.answers) == count:
            break
        count = len(first.answers)
        first.fault(segment)
    waiting = len(first.answers)
    rig.ask("vdisk.withdraw", name="v", agents=["b"])
    for which in (m.Withdraw, m.DeleteTable):
        other.respond(which=which)
    assert len(first.answers) == waiting + 1 and slot_of(first.last_answer()[1][0]) == 1


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
    rig.ask("container.add", name="c", agent="store", export="disk", contents="zeroed")
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


def move(rig: Rig, port: str, nqn: str = "nqn.2026-11.io.segmap:container:disk", restarted: bool = False) -> None:
    """The exporter exports its container at another port, perhaps as another process."""
    exporter = rig.agents["store"]
    if restarted:
        exporter.drop()
        exporter.instance = port.encode().ljust(16, b"!")
        exporter.hello()
        rig.advance(20)
    exporter.say(m.Export(1, 512, 1024 * SEGMENT_SIZE // 512, bytes(16), True, "disk", "127.0.0.1", port, "TCP", nqn))


def test_a_container_that_moves_is_attached_at_its_new_address_under_its_slot() -> None:
    rig = Rig()
    first, second = rig.disk_at("a", "b")
    first.fault(3)
    parked = len(first.answers)
    move(rig, "4421")
    for agent in (first, second):
        order = agent.ordered(m.AttachContainer)[-1]
        assert (order.slot, order.trsvcid, order.flags, order.container) == (
            0, "4421", 0, first.ordered(m.AttachContainer)[0].container
        )  # fmt: skip
        assert all(slots.slots == [0] for slots in agent.ordered(m.TableSlots)), "tables go on listing it"
    assert any("has moved from 127.0.0.1:4420 to 127.0.0.1:4421" in log.text for log in rig.logs)
    assert rig.ask("container.show", name="c")["trsvcid"] == "4421"
    first.fault(200)
    assert len(first.answers) == parked + 1 and has_location(first.last_answer()[1][0])
    count = len(first.ordered(m.AttachContainer))
    move(rig, "4421")
    assert len(first.ordered(m.AttachContainer)) == count, "it is there already"


def test_the_move_is_recorded_before_it_is_ordered() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.hold_commits = True
    move(rig, "4421")
    assert [order.trsvcid for order in agent.ordered(m.AttachContainer)] == ["4420"]
    rig.commit()
    assert [order.trsvcid for order in agent.ordered(m.AttachContainer)] == ["4420", "4421"]
    rig.hold_commits = False
    rig.restart()
    assert rig.ask("container.show", name="c")["trsvcid"] == "4421"


def test_what_was_sent_to_the_old_address_is_over_if_its_process_is() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    move(rig, "4421", restarted=True)
    order = agent.ordered(m.AttachContainer)[-1]
    assert (order.trsvcid, order.flags) == ("4421", AttachFlags.ENDED)
    move(rig, "4422")
    order = agent.ordered(m.AttachContainer)[-1]
    assert (order.trsvcid, order.flags) == ("4422", 0), "the same process, so nobody knows"


def test_an_attach_without_an_answer_may_have_been_carried_out() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.auto = False
    move(rig, "4421", restarted=True)
    assert agent.asked[-1][2].flags == AttachFlags.ENDED
    move(rig, "4422")
    agent.hello([(agent.table(), 9)])
    assert agent.asked[0][2].trsvcid == "4422"
    assert agent.asked[0][2].flags == 0, "it may have been attached at 4421, where the process is the same"


def test_one_that_moves_while_it_is_being_attached_is_attached_again() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.auto = False
    move(rig, "4421")
    move(rig, "4422")
    assert [asked[2].trsvcid for asked in agent.asked] == ["4421"]
    agent.respond()
    assert [asked[2].trsvcid for asked in agent.asked] == ["4422"]


def test_something_else_at_the_new_address_is_refused_loudly_and_asked_again() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.refusing[m.AttachContainer] = Status.LABEL_MISMATCH
    move(rig, "4421")
    (alarm,) = rig.ask("cluster.status")["alarms"]
    assert alarm["severity"] == "alarm" and "cannot attach container c: LABEL_MISMATCH" in alarm["text"]
    assert all(slots.slots == [0] for slots in agent.ordered(m.TableSlots)), "its entries are its own still"
    del agent.refusing[m.AttachContainer]
    rig.advance(5)
    assert not rig.ask("cluster.status")["alarms"]


def test_an_export_under_another_name_is_not_the_container() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    move(rig, "4421", nqn="nqn.2026-11.io.segmap:container:other")
    assert [order.trsvcid for order in agent.ordered(m.AttachContainer)] == ["4420"]
    assert "export it as it was" in rig.ask("cluster.status")["alarms"][0]["text"]
    move(rig, "4420")
    assert not rig.ask("cluster.status")["alarms"]


def test_nothing_new_is_put_into_a_container_that_was_lost_by_moving() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    add_second(rig)
    agent.fault(3)
    assert agent.last_answer()[1][0] >> 4 & 4095 == 0
    agent.refusing[m.AttachContainer] = Status.LABEL_MISMATCH
    move(rig, "4421")
    for segment in (7, 11, 15):
        agent.fault(segment)
        assert agent.last_answer()[1][0] >> 4 & 4095 == 1, "in the other one"
    del agent.refusing[m.AttachContainer]
    rig.advance(5)
    assert agent.ordered(m.AttachContainer)[-1].slot == 0 and not rig.ask("cluster.status")["alarms"]
