"""`check` and `reconcile`: what they find, what they do not mistake for a fault, and when the freeze ends."""

from __future__ import annotations

from typing import Any

import pytest

from channel import messages as m
from channel.values import AttachFlags
from controller.core import effects as fx
from controller.store.audit import Finding
from controller.store.interface import Batch, frozen
from controller.store.records import SegmentState
from mapping.entry import ERROR_ENTRY, INVALID_ENTRY, NO_WRITE, ZERO_ENTRY
from mapping.rules import FaultKind
from mapping.status import Status
from tests.controller.rig import Rig, RigAgent


def checked(rig: Rig, **args: Any) -> Any:
    """A check to its end."""
    run = rig.ask("cluster.reconcile", **args)["run"] if args else rig.ask("cluster.check")["run"]
    for _ in range(400):
        row = rig.ask("cluster.check", run=run)
        if row["state"] == "done":
            return row
        rig.advance(0.1)
    raise AssertionError(row)


def texts(row: Any, severity: str = "error") -> list[str]:
    return [finding["text"] for finding in row["findings"] if finding["severity"] == severity]


def settled(*mappers: str, written: int = 3) -> tuple[Rig, list[RigAgent]]:
    """A disk on a container, whose first segments `a` has written and holds; the rest is INVALID at all."""
    rig = Rig()
    agents = rig.disk_at(*mappers or ("a",))
    for agent in agents:
        agent.otherwise = INVALID_ENTRY
    for segment in range(written):
        agents[0].fault(segment)
        _, entries = agents[0].last_answer()
        agents[0].holds[segment] = entries[0]
    return rig, agents


def restored(rig: Rig) -> Rig:
    """The controller starts again on a store that is frozen, as a restored one is."""
    rig.store.commit([Batch(1, puts=(("store", "frozen", {"reason": "it was restored"}),))], rig.store.term)
    rig.disk.generation = 2
    rig.restart()
    rig.store.close()
    rig.disk.owner = None
    rig.open()
    return rig


def reconnect(rig: Rig) -> None:
    """Everybody comes back as it was."""
    for agent in rig.agents.values():
        tables = [] if agent.roles == 2 else [(agent.table(), 9)]
        agent.hello(tables)
        if agent.roles == 1:
            agent.say(m.LeaseRenew(1))
    rig.announce(rig.agents["store"], {"disk": 1024})


# --- nothing wrong ---------------------------------------------------------------------------------------------------


def test_nothing_wrong_is_found_where_nothing_is() -> None:
    rig, _ = settled("a", "b")
    row = checked(rig)
    assert (row["findings"], row["good"], row["frozen"]) == ([], True, "")
    assert row["counts"]["container_segments"] == 1024
    assert row["counts"]["agent_entries"] == 512
    assert row["counts"]["labels"] == 1
    assert rig.ask("cluster.check", run=row["run"]) == row
    assert rig.ask("cluster.check", run=99).code == "not_found"
    assert rig.core.cluster.journal.follow is None


def test_one_check_at_a_time_and_the_last_ones_are_kept() -> None:
    rig, _ = settled()
    run = rig.ask("cluster.check")["run"]
    assert rig.ask("cluster.check")["run"] == run
    assert rig.ask("cluster.reconcile").code == "busy"
    rig.advance(5)
    for _ in range(8):
        checked(rig)
    assert rig.ask("cluster.check", run=run).code == "not_found"


def test_faults_go_on_during_a_check_and_are_no_findings() -> None:
    rig, (agent,) = settled(written=1)
    agent.otherwise = INVALID_ENTRY
    run = rig.ask("cluster.check")["run"]
    for segment in range(100, 160):
        agent.fault(segment)
        _, entries = agent.last_answer()
        agent.holds.update({segment + index: entry for index, entry in enumerate(entries)})
        rig.advance(0.002)
        if segment % 7 == 0:
            rig.hold_commits = not rig.hold_commits
            rig.commit()
    rig.hold_commits = False
    rig.commit()
    rig.advance(5)
    row = rig.ask("cluster.check", run=run)
    assert (row["state"], row["findings"]) == ("done", [])


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (900 << 16 | 1, "segment 1 is slot 0 segment 900 at the agent"),
        (ERROR_ENTRY, "segment 1 is error"),
        (ZERO_ENTRY, ""),
    ],
)
def test_an_agent_that_holds_something_else(entry: int, expected: str) -> None:
    """ZERO may be older than the truth at the agent that faulted: its answer may be lost."""
    rig, (agent,) = settled()
    agent.holds[1] = entry
    found = texts(checked(rig))
    assert [expected in text for text in found] == ([True] if expected else [])


def test_an_agent_that_holds_what_it_is_not_known_to_hold() -> None:
    rig, (_, other) = settled("a", "b")
    other.holds[200] = ZERO_ENTRY
    assert ["not known to hold it" in text for text in texts(checked(rig))] == [True]


def test_no_write_may_be_more_than_the_truth_but_not_less() -> None:
    rig, (agent,) = settled()
    agent.holds[1] |= NO_WRITE
    assert checked(rig)["findings"] == []
    truth = agent.holds[1]
    rig.core.cluster.image.set_entry(1, 1, truth)
    agent.holds[1] = truth & ~NO_WRITE
    assert any("segment 1 is" in text and "at the agent" in text for text in texts(checked(rig)))


def test_an_entry_that_is_on_its_way_is_read_again() -> None:
    rig, (agent,) = settled()
    right, agent.holds[1] = agent.holds[1], 900 << 16 | 1
    run = rig.ask("cluster.check")["run"]
    rig.advance(0.15)
    agent.holds[1] = right
    rig.advance(3)
    assert rig.ask("cluster.check", run=run)["findings"] == []


def test_an_agent_that_is_away_or_refuses_is_told_and_is_no_error() -> None:
    rig, (agent, other) = settled("a", "b")
    agent.drop()
    other.refusing[m.GetEntries] = Status.NO_TABLE
    row = checked(rig)
    assert row["good"]
    assert ["agent a is not connected" in row["findings"][0]["text"], "NO_TABLE" in row["findings"][1]["text"]] == [
        True,
        True,
    ]


def test_memory_that_differs_from_the_store() -> None:
    rig, _ = settled()
    cluster = rig.core.cluster
    cluster.image.fill_segments(0, 700, 2, SegmentState.QUARANTINED)
    cluster.vdisks[1].name = "other"
    cluster.image.set_entry(1, 77, ERROR_ENTRY)
    found = texts(checked(rig))
    assert any("vdisk 1 segment 77 is error" in text for text in found)
    assert any("slot 0 segment 701 is QUARANTINED in memory, ZEROED in the store" in text for text in found)
    assert any(text.startswith("vdisk 1 is {'name': 'other'") for text in found)
    assert any("segment 700 is QUARANTINED, but listed to be given out" in text for text in found)


def test_a_leak_a_double_and_an_allocator_that_would_give_twice() -> None:
    rig, _ = settled()
    cluster = rig.core.cluster
    first = cluster.vdisks[1].entry(0)
    for image in (cluster.image,):
        image.set_entry(1, 50, first)
        image.fill_segments(0, 800, 1, SegmentState.MAPPED)
    cluster.allocator.spaces[0].zeroed.give(900, 2)
    found = texts(checked(rig))
    assert any("is mapped 2 times (vdisk v segment 0, vdisk v segment 50)" in text for text in found)
    assert any("segment 800 is mapped 0 times (leaked)" in text for text in found)
    assert any("segments 900..901 are given out twice" in text for text in found)


def test_what_the_shell_finds_in_the_store_is_told() -> None:
    rig, _ = settled()
    rig.damage = (Finding("error", "node", "a node is damaged"),)
    row = checked(rig)
    assert texts(row) == ["a node is damaged"]
    assert not row["good"]


# --- the freeze ------------------------------------------------------------------------------------------------------


def test_a_frozen_store_allocates_nothing_and_says_what_to_do() -> None:
    rig, (agent,) = settled()
    restored(rig)
    reconnect(rig)
    agent.answers.clear()
    agent.fault(100)
    rig.advance(60)
    assert [message for _, message in agent.answers] == []
    alarms = [alarm["text"] for alarm in rig.ask("cluster.status")["alarms"]]
    assert any("writes to vdisk v wait" in text and "segmap check --reconcile" in text for text in alarms)
    assert rig.ask("cluster.status")["faults"]["waiting_for_space"] == 1
    agent.fault(1, FaultKind.READ, INVALID_ENTRY)
    assert agent.last_answer()[1][0] == agent.holds[1]
    assert "nothing is allocated" in texts(checked(rig), "warning")[0]
    row = checked(rig, discard=False)
    assert (row["good"], row["lifted"], row["frozen"]) == (True, True, "")
    answer, entries = agent.last_answer()
    assert answer[1] == 100
    assert entries[0] not in (ZERO_ENTRY, INVALID_ENTRY)
    assert frozen(rig.store.load()) == ""
    assert rig.ask("cluster.status")["alarms"] == []


def test_a_frozen_store_zeroes_nothing() -> None:
    rig = Rig()
    rig.disk_at("a", contents="unknown")
    restored(rig)
    rig.core.cluster.limits = rig.limits = type(rig.limits)(zeroed_pool_segments=64)
    reconnect(rig)
    rig.advance(5)
    agent = rig.agents["a"]
    agent.otherwise = INVALID_ENTRY
    before = len(agent.ordered(m.ZeroSegments))
    assert checked(rig, discard=False)["lifted"]
    assert len(agent.ordered(m.ZeroSegments)) > before == 0


def test_labels_are_renewed_before_the_freeze_ends() -> None:
    rig, (agent,) = settled()
    restored(rig)
    reconnect(rig)
    assert rig.core.cluster.containers[0].generation == 1
    agent.refusing[m.AttachContainer] = Status.IO_ERROR
    row = checked(rig, discard=False)
    assert not row["lifted"]
    assert any("could not be renewed: IO_ERROR" in text for text in texts(row, "warning"))
    agent.refusing.clear()
    row = checked(rig, discard=False)
    assert row["lifted"]
    renewed = agent.ordered(m.AttachContainer)[-1]
    assert (renewed.flags, renewed.generation) == (AttachFlags.RENEW, 2)
    assert rig.core.cluster.containers[0].generation == 2
    assert rig.store.load().objects["container"]["0"]["generation"] == 2  # type: ignore[index, call-overload]


def test_what_agents_hold_besides_keeps_the_freeze_until_it_is_discarded() -> None:
    rig, (agent,) = settled()
    restored(rig)
    reconnect(rig)
    agent.holds[150] = 900 << 16 | 1
    row = checked(rig, discard=False)
    assert not row["lifted"]
    assert ["--discard" in text for text in texts(row)] == [True]

    def forget(message: Any) -> Any:
        if isinstance(message, m.SetEntries):
            for segment in range(message.start, message.start + message.count):
                agent.holds.pop(segment, None)
        return RigAgent.reply(agent, message)

    agent.reply = forget  # type: ignore[method-assign]
    row = checked(rig, discard=True)
    assert (row["lifted"], row["counts"]["discarded_entries"]) == (True, 1)
    assert 150 not in agent.holds
    assert checked(rig)["findings"] == []


def test_an_agent_that_is_away_keeps_the_freeze_until_it_is_fenced() -> None:
    rig, (_, other) = settled("a", "b")
    restored(rig)
    reconnect(rig)
    other.drop()
    assert not checked(rig, discard=True)["lifted"]
    rig.ask("agent.fence", agent="b")
    rig.advance(15)
    assert rig.ask("agent.show", agent="b")["state"] == "fenced"
    assert checked(rig, discard=True)["lifted"]


def test_an_incarnation_that_a_lost_store_admitted_is_fenced_everywhere() -> None:
    rig, (agent,) = settled()
    restored(rig)
    store = rig.agents["store"]
    store.hello()
    rig.announce(store, {"disk": 1024})
    store.commands.clear()
    agent.instance, agent.incarnation = b"later".ljust(16), 70_000
    agent.hello([(agent.table(), 9)])
    assert agent.closed is not None
    assert agent.closed.status is Status.STALE_INCARNATION
    denied = [message.hostnqn for message in store.ordered(m.DenyHost)]
    assert denied == ["nqn.2026-11.io.segmap:agent:a:70000"]
    agent.instance, agent.incarnation = b"latest".ljust(16), 0
    agent.hello()
    assert agent.welcome.status is Status.OK
    assert agent.incarnation == 70_001


def test_counters_that_a_restore_has_raised_are_obeyed() -> None:
    rig, _ = settled()
    puts = (("counter", "incarnation", 65_541), ("counter", "vdisk", 65_537))
    rig.store.commit([Batch(1, puts=puts)], rig.store.term)
    rig.restart()
    reconnect(rig)
    assert rig.agent("new").incarnation == 65_542
    assert rig.ask("vdisk.create", name="w", size_bytes=1 << 20)["number"] == 65_538


def test_a_deposed_controller_ends_its_check() -> None:
    rig, _ = settled()
    run = rig.ask("cluster.check")["run"]
    rig.step(fx.LeadershipLost("another"))
    rig.advance(1)
    check = rig.core.cluster.checking.find(run)
    assert check is not None
    assert (check.over, check.incomplete) == (True, True)
