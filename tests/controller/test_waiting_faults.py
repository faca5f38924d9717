"""Faults that had to wait: for space, for a table to stay, for others (design: 4, 6)."""

from __future__ import annotations

from typing import Any

from channel import messages as m
from channel.codec import encode
from channel.values import FaultRecord
from controller.core import effects as fx
from controller.core.cluster import ANSWERS_MAX
from mapping.entry import INVALID_ENTRY, ZERO_ENTRY, has_location
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from tests.controller.rig import Rig, RigAgent


def writes(agent: RigAgent, start: int, count: int) -> m.MapFault:
    """A MAP_FAULT of one write to each of these ZERO segments."""
    return m.MapFault(
        [FaultRecord(10**6 + at, agent.table(), at, ZERO_ENTRY, 1, 1, 2, 0, 8) for at in range(start, start + count)]
    )


def answers_on_the_wire(rig: Rig) -> list[int]:
    """How many answers each FAULT_ANSWER has from now on; each is encoded as the shell would."""
    counts: list[int] = []
    send = rig._send

    def observed(effect: fx.Send) -> None:
        message: Any = effect.message
        if isinstance(message, m.FaultAnswer):
            encode(message, effect.header)
            counts.append(len(message.answers))
        send(effect)

    rig._send = observed  # type: ignore[method-assign]
    return counts


def test_answers_after_a_shortage_fit_their_messages() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a", segments=17, size=3 * ANSWERS_MAX + 1)
    for start in range(0, 3 * ANSWERS_MAX, ANSWERS_MAX):
        agent.say(writes(agent, start, ANSWERS_MAX))
    agent.say(writes(agent, 3 * ANSWERS_MAX, 1))
    rig.announce(rig.agents["store"], {"disk": 17, "big": 20_000})
    counts = answers_on_the_wire(rig)
    assert rig.ask("container.add", name="big", agent="store", export="big", contents="zeroed")["state"] == "ready"
    assert sum(counts) == 3 * ANSWERS_MAX + 1 - 16
    assert max(counts) <= ANSWERS_MAX
    assert all(has_location(entry) for entry in rig.vdisk.entries(0, 3 * ANSWERS_MAX + 1))


def test_answers_to_a_given_up_shortage_fit_their_messages() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a", segments=2, size=2 * ANSWERS_MAX)
    agent.say(writes(agent, 0, ANSWERS_MAX))
    agent.say(writes(agent, ANSWERS_MAX, ANSWERS_MAX))
    counts = answers_on_the_wire(rig)
    rig.advance(21)
    assert sum(counts) == 2 * ANSWERS_MAX - 1
    assert agent.last_answer()[0][4] == Status.NO_SPACE


def test_the_deadline_of_a_shortage_is_that_of_the_first_wait() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a", segments=2, size=64)
    agent.fault(0)
    late = agent.fault(1)
    rig.advance(15)
    agent.fault(2)
    rig.core.cluster.faults.space_found(rig.now_ns)
    rig.advance(4.9)
    assert len(agent.answers) == 1
    rig.advance(0.2)
    assert agent.last_answer()[0][0] == late
    assert rig.core.cluster.faults.waiting_for_space() == 1


def test_what_came_while_a_withdrawal_was_refused_is_answered() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.auto = False
    rig.ask("vdisk.withdraw", name="v")
    fault = agent.fault(5)
    assert not agent.answers
    agent.respond(m.Done(Status.BUSY, "not now"), m.Withdraw)
    assert agent.last_answer()[0][0] == fault
    assert rig.core.cluster.agents_by_name["a"].faults_waiting == 0


def test_what_came_while_a_table_was_deleted_is_forgotten_with_it() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.auto = False
    rig.ask("vdisk.withdraw", name="v")
    agent.fault(5)
    agent.respond(which=m.Withdraw)
    agent.fault(6)
    agent.respond(which=m.DeleteTable)
    assert not agent.answers
    assert rig.core.cluster.agents_by_name["a"].faults_waiting == 0


def test_no_answer_goes_to_a_table_that_has_taken_the_place_of_the_one_that_asked() -> None:
    rig = Rig()
    one, two = rig.disk_at("a", "b")
    two.fault(5, FaultKind.READ, INVALID_ENTRY, operation=Operation.READ)
    two.auto = False
    one.fault(5)
    rig.ask("vdisk.withdraw", name="v", agents=["a"])
    rig.ask("vdisk.present", name="v", agents=["a"], any_host=True)
    assert len(one.ordered(m.CreateTable)) == 2
    two.respond(which=m.SetEntries)
    assert not one.answers
    assert 5 not in rig.vdisk.changing
    one.fault(100)
    assert one.answers[-1][0].sequence == 1


def test_while_the_store_is_full_only_what_needs_no_commit_is_answered() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.fault(3)
    mapped = rig.vdisk.entry(3)
    rig.step(fx.StoreSpaceChanged("no space"))
    rig.hold_commits = True
    count = len(agent.answers)
    write = agent.fault(5)
    reclaim = agent.fault(3, FaultKind.RECLAIM, mapped, operation=Operation.UNMAP, length=2048)
    assert not rig.held
    read = agent.fault(3, FaultKind.READ, INVALID_ENTRY, operation=Operation.READ)
    agent.say(m.LeaseRenew(2))
    assert agent.grants[-1].sent_ns == 2
    assert len(agent.answers) == count + 1 and agent.last_answer()[0][0] == read
    refused = rig.ask("vdisk.create", name="w", size_bytes=1 << 20)
    assert isinstance(refused, fx.RefuseOperation) and refused.code == "unavailable"
    assert {alarm["kind"] for alarm in rig.ask("cluster.status")["alarms"]} == {"full", "space"}
    rig.hold_commits = False
    rig.step(fx.StoreSpaceChanged(""))
    assert has_location(rig.vdisk.entry(5))
    assert agent.last_answer()[0][0] == write
    assert (reclaim, mapped) in [(one.answers[0][0], one.entries[0]) for _, one in agent.answers], "the truth"
    agent.fault(3, FaultKind.RECLAIM, mapped, operation=Operation.UNMAP, length=2048)
    assert agent.ordered(m.SetEntries)
    assert not rig.ask("cluster.status")["alarms"]


def test_a_store_that_stays_full_is_no_space_for_the_host() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.fault(3)
    mapped = rig.vdisk.entry(3)
    rig.step(fx.StoreSpaceChanged("no space"))
    agent.fault(5)
    agent.fault(3, FaultKind.RECLAIM, mapped, operation=Operation.UNMAP, length=2048)
    rig.advance(20.1)
    assert [answer[4] for answer in agent.answers[-1][1].answers] == [Status.NO_SPACE, Status.NO_SPACE]


def test_the_alarm_of_a_shortage_says_what_is_so_and_ends_with_it() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a", segments=2, size=64)

    def alarms() -> list[str]:
        return [alarm["text"] for alarm in rig.ask("cluster.status")["alarms"]]

    agent.fault(0)
    agent.fault(1)
    assert alarms() == ["writes to vdisk v wait: its containers are full; add a container"]
    rig.advance(21)
    assert alarms() == ["writes to vdisk v have failed, and will: they found no space in time"]
    rig.announce(rig.agents["store"], {"disk": 2, "more": 64})
    assert rig.ask("container.add", name="m", agent="store", export="more", contents="zeroed")["state"] == "ready"
    assert alarms() == [], "nobody waits, but somebody could write"
