"""Every fault kind, truth and entry seen; allocation, read-ahead, sharing, shortage ([0031]-[0033])."""

from __future__ import annotations

from itertools import pairwise

import pytest

from channel import messages as m
from controller.config import Limits
from controller.core.holdings import CURRENT, NOTHING, UNKNOWN
from mapping.entry import ERROR_ENTRY, INVALID_ENTRY, NO_WRITE, ZERO_ENTRY, has_location, pack
from mapping.plane import FAIL_REQUEST, REPLACE
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from tests.controller.rig import Rig, RigAgent

FOREIGN = pack(0, 900)


def rig_with(*names: str, **options: object) -> tuple[Rig, list[RigAgent]]:
    rig = Rig()
    return rig, rig.disk_at(*names, **options)  # type: ignore[arg-type]


def mapped(rig: Rig, agent: RigAgent, segment: int) -> int:
    """Write a segment; its location."""
    agent.fault(segment)
    entry: int = rig.vdisk.entry(segment)
    assert has_location(entry)
    return entry


def set_truth(rig: Rig, segment: int, entry: int) -> None:
    rig.core.cluster.image.set_entry(1, segment, entry)


TRUTHS = {"zero": ZERO_ENTRY, "error": ERROR_ENTRY, "mapped": pack(0, 700), "protected": pack(0, 700, NO_WRITE)}
SEEN = {"invalid": INVALID_ENTRY, "the truth": None, "truth with no-write": "protected", "another": FOREIGN}


def expected(kind: FaultKind, truth: str, seen: str) -> str:
    """What has to become of a fault at the only agent: allocate, reclaim, protected or the truth."""
    same = seen == "the truth" or (seen == "truth with no-write" and truth in ("mapped", "protected"))
    writes = kind in (FaultKind.WRITE, FaultKind.EXCLUSIVE)
    if writes and truth == "zero" and seen == "the truth":
        return "allocate"
    if writes and truth == "protected" and same:
        return "write-protected"
    if kind is FaultKind.RECLAIM and truth in ("mapped", "protected") and same:
        return "reclaim"
    return "truth"


@pytest.mark.parametrize("kind", [FaultKind.READ, FaultKind.WRITE, FaultKind.RECLAIM, FaultKind.EXCLUSIVE])
@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("seen", SEEN)
def test_every_kind_truth_and_entry_seen(kind: FaultKind, truth: str, seen: str) -> None:
    rig, (agent,) = rig_with("a")
    entry = TRUTHS[truth]
    set_truth(rig, 5, entry)
    shown = SEEN[seen]
    as_seen = entry if shown is None else entry | NO_WRITE if isinstance(shown, str) else shown
    agent.auto = False
    fault_id = agent.fault(5, kind, as_seen, operation=Operation.WRITE)
    outcome = expected(kind, truth, seen)
    if outcome == "reclaim":
        assert [type(item) for item in agent.commands[-1:]] == [m.SetEntries]
        assert not agent.answers
        assert rig.vdisk.entry(5) == entry
        return
    (answered, start, count, action, status), entries = agent.last_answer()
    assert (answered, start) == (fault_id, 5)
    if outcome == "write-protected":
        assert (action, status, entries) == (FAIL_REQUEST, Status.WRITE_PROTECTED, [])
    elif outcome == "allocate":
        assert action == REPLACE and entries == [rig.vdisk.entry(5)] and has_location(entries[0])
    else:
        assert action == REPLACE and entries[0] == rig.vdisk.entry(5) == entry
        assert count > 1, "the truth comes with read-ahead"


def test_a_fault_beyond_the_end_and_of_an_unknown_table() -> None:
    _, (agent,) = rig_with("a")
    agent.fault(256)
    assert agent.last_answer()[0][3:] == (FAIL_REQUEST, Status.OUT_OF_RANGE)
    agent.fault(1, vdisk=9)
    assert len(agent.answers) == 1


@pytest.mark.parametrize("stamps", [{"term": 0}, {"incarnation": 77}, {"epoch": 0}])
def test_faults_of_old_terms_incarnations_and_epochs_are_ignored(stamps: dict[str, int]) -> None:
    rig, (agent,) = rig_with("a")
    agent.fault(5, **stamps)  # type: ignore[arg-type]
    assert not agent.answers
    assert rig.vdisk.entry(5) == ZERO_ENTRY


def test_nothing_is_answered_before_the_commit() -> None:
    rig, (agent,) = rig_with("a")
    rig.hold_commits = True
    agent.fault(5)
    assert not agent.answers
    assert rig.vdisk.entry(5) == ZERO_ENTRY, "the truth is what is committed"
    rig.commit()
    assert agent.last_answer()[1] == [rig.vdisk.entry(5)]


def test_the_same_fault_twice_allocates_once() -> None:
    rig, (agent,) = rig_with("a")
    rig.hold_commits = True
    agent.fault(5)
    agent.fault_id -= 1
    agent.fault(5)
    rig.commit()
    assert rig.vdisk.allocated() == 1
    answers = [tuple(answer[:2]) for _, message in agent.answers for answer in message.answers]
    assert answers == [(1, 5), (1, 5)]


def test_an_array_of_faults_is_one_commit_and_one_answer() -> None:
    rig, (agent,) = rig_with("a")
    rig.hold_commits = True
    faults = [(n + 1, agent.table(), n * 3, ZERO_ENTRY, 1, int(FaultKind.WRITE), 2, 0, 8) for n in range(50)]
    agent.say(m.MapFault(faults))  # type: ignore[arg-type]
    assert len(rig.held) == 1
    rig.commit()
    assert len(agent.answers) == 1
    header, message = agent.answers[0]
    assert header.sequence == 1
    assert len(message.answers) == 50
    assert len(set(message.entries)) == 50


def test_requests_are_recorded_with_their_entries() -> None:
    rig, (agent,) = rig_with("a")
    fault_id = agent.fault(5)
    assert fault_id in rig.store.load().requests[agent.incarnation]


def test_a_sequential_writer_gets_the_next_segments_at_once() -> None:
    rig, (agent,) = rig_with("a")
    for segment in range(3):
        agent.fault(segment)
    (_, start, count, _, _), entries = agent.last_answer()
    assert (start, count) == (2, 3)
    assert entries == [rig.vdisk.entry(segment) for segment in range(2, 5)]
    assert all(after - before == 1 << 16 for before, after in pairwise(entries))
    assert rig.store.load().image.entries(1, 0, 7) == rig.vdisk.entries(0, 7)


def test_read_ahead_stops_at_a_change() -> None:
    rig, (agent,) = rig_with("a")
    rig.hold_commits = True
    agent.fault(8)
    agent.fault(5, FaultKind.READ, INVALID_ENTRY, operation=Operation.READ)
    assert agent.last_answer()[0][1:3] == (5, 3)
    agent.fault(8, FaultKind.READ, INVALID_ENTRY, operation=Operation.READ)
    assert len(agent.answers) == 1, "the fault waits for the change"
    rig.commit()
    assert agent.last_answer()[1][0] == rig.vdisk.entry(8)


# --- sharing ---------------------------------------------------------------------------------------------------------


def test_zero_becomes_writable_only_after_the_others_have_given_it_up() -> None:
    rig, (one, two) = rig_with("a", "b")
    two.fault(5, FaultKind.READ, INVALID_ENTRY, operation=Operation.READ)
    two.auto = False
    one.fault(5)
    assert not one.answers
    assert has_location(rig.vdisk.entry(5)), "committed, and yet not visible"
    command = two.respond(which=m.SetEntries)
    assert (command.start, command.count, list(command.entries)) == (5, 1, [INVALID_ENTRY])
    assert one.last_answer()[1] == [rig.vdisk.entry(5)]


def test_the_barrier_is_blocking_and_in_the_tables_sequence() -> None:
    _, (one, two) = rig_with("a", "b")
    two.fault(5, FaultKind.READ, INVALID_ENTRY, operation=Operation.READ)
    two.auto = False
    one.fault(5)
    header = two.asked[-1][1]
    assert header.blocking
    assert (header.table, header.sequence) == (two.table(), 2)


def test_others_may_read_what_one_may_write() -> None:
    rig, (one, two) = rig_with("a", "b")
    entry = mapped(rig, one, 5)
    two.fault(5, FaultKind.READ, INVALID_ENTRY, operation=Operation.READ)
    assert two.last_answer()[1][0] == entry | NO_WRITE, "the first may still be at ZERO"
    one.auto = False
    two.fault(5, FaultKind.WRITE, entry | NO_WRITE)
    assert len(two.answers) == 1
    one.respond(which=m.SetEntries)
    assert two.last_answer()[1][0] == entry
    holdings = [rig.vdisk.tables[agent.number].holdings.get(5) for agent in (one, two)]
    assert holdings == [NOTHING, CURRENT]


def test_a_restarted_controller_presumes_the_worst() -> None:
    rig, (one, two) = rig_with("a", "b")
    entry = mapped(rig, one, 5)
    rig.restart()
    assert [table.holdings.get(5) for table in rig.vdisk.tables.values()] == [UNKNOWN, UNKNOWN]
    one.hello([(one.table(), 1)])
    one.fault(5, FaultKind.WRITE, INVALID_ENTRY)
    assert not one.answers[1:], "the other agent has not come back"
    two.hello([(two.table(), 0)])
    assert one.last_answer()[1][0] == entry


def test_exclusive_is_refused_at_several_agents() -> None:
    _, (one, _) = rig_with("a", "b")
    one.fault(5, FaultKind.EXCLUSIVE, operation=Operation.COMPARE_AND_WRITE)
    assert one.last_answer()[0][3:] == (FAIL_REQUEST, Status.UNSUPPORTED)


def test_reclaim_invalidates_all_and_the_faulting_agent_last() -> None:
    rig, (one, two) = rig_with("a", "b")
    entry = mapped(rig, one, 5)
    one.auto = two.auto = False
    zeroes = Operation.WRITE_ZEROES
    one.fault(5, FaultKind.RECLAIM, entry, operation=zeroes, length=2048)
    assert not one.asked
    two.respond(which=m.SetEntries)
    assert rig.vdisk.entry(5) == entry
    one.fault(5, FaultKind.READ, INVALID_ENTRY, operation=zeroes, length=2048)
    one.respond(which=m.SetEntries)
    assert rig.vdisk.entry(5) == ZERO_ENTRY
    assert one.last_answer()[1][0] == ZERO_ENTRY
    assert rig.core.cluster.image.state(0, entry >> 16) == 0, "free, and to be zeroed before it is used again"
    assert rig.store.load().image.entry(1, 5) == ZERO_ENTRY


def test_a_reclaim_that_nobody_wants_any_more_is_not_carried_out() -> None:
    rig, (one,) = rig_with("a")
    entry = mapped(rig, one, 5)
    one.fault(5, FaultKind.RECLAIM, entry, operation=Operation.WRITE_ZEROES, length=2048)
    assert rig.vdisk.changing
    rig.advance(1)
    assert rig.vdisk.entry(5) == entry
    assert not rig.vdisk.changing


def test_a_second_reclaim_given_up_as_well_does_not_stand_for_the_first() -> None:
    """Both waited while the agent's daemon hung; its hosts gave up both, and have written since."""
    rig, (one,) = rig_with("a")
    entry = mapped(rig, one, 5)
    one.auto = False
    for _ in range(2):
        one.fault(5, FaultKind.RECLAIM, entry, operation=Operation.WRITE_ZEROES, length=2048)
    one.respond(which=m.SetEntries)
    rig.advance(1)
    assert rig.vdisk.entry(5) == entry
    assert not rig.vdisk.changing


def test_a_reclaim_that_waited_for_another_change_has_to_come_afresh() -> None:
    rig, (one, two) = rig_with("a", "b")
    entry = mapped(rig, one, 5)
    one.auto = two.auto = False
    one.fault(5, FaultKind.RECLAIM, entry, operation=Operation.UNMAP, length=2048)
    waited = two.fault(5, FaultKind.RECLAIM, entry, operation=Operation.UNMAP, length=2048)
    two.respond(which=m.SetEntries)
    one.respond(which=m.SetEntries)
    rig.advance(1)
    assert rig.vdisk.entry(5) == entry
    assert two.last_answer()[0][0] == waited
    assert two.last_answer()[1][0] == entry
    assert not rig.vdisk.changing


# --- shortage --------------------------------------------------------------------------------------------------------


def test_a_full_container_makes_writes_wait_and_is_said_loudly() -> None:
    rig, (one,) = rig_with("a", segments=4)
    for segment in (10, 20, 30):
        one.fault(segment)
    assert len(one.answers) == 3
    one.fault(40)
    assert len(one.answers) == 3
    assert any(log.severity == "alarm" and "full" in log.text for log in rig.logs)
    rig.announce(rig.agents["store"], {"disk": 4, "more": 64})
    assert rig.ask("container.add", name="d", agent="store", export="more", contents="zeroed")["state"] == "ready"
    assert one.last_answer()[1] == [rig.vdisk.entry(40)]
    assert not rig.core.cluster.log.alarms


def test_past_the_deadline_the_host_gets_no_space() -> None:
    rig, (one,) = rig_with("a", segments=2)
    one.fault(10)
    fault_id = one.fault(20)
    rig.advance(19)
    assert len(one.answers) == 1
    rig.advance(2)
    assert one.last_answer()[0] == (fault_id, 20, 0, FAIL_REQUEST, Status.NO_SPACE)
    assert rig.vdisk.entry(20) == ZERO_ENTRY


def test_freed_segments_end_the_shortage_once_they_are_zeroed() -> None:
    rig, (one,) = rig_with("a", segments=2)
    rig.core.cluster.limits = Limits(zeroed_pool_segments=4)
    entry = mapped(rig, one, 10)
    one.fault(20)
    zeroes = Operation.WRITE_ZEROES
    one.auto = False
    one.fault(10, FaultKind.RECLAIM, entry, operation=zeroes, length=2048)
    one.fault(10, FaultKind.READ, INVALID_ENTRY, operation=zeroes, length=2048)
    one.respond(which=m.SetEntries)
    command = one.respond(which=m.ZeroSegments)
    assert [tuple(run) for run in command.runs] == [(entry & ~0xF | 1, 1)]
    assert one.last_answer()[1] == [rig.vdisk.entry(20)]


def test_too_many_waiting_faults_end_the_session() -> None:
    rig, (one,) = rig_with("a")
    rig.hold_commits = True
    limit = 3
    rig.core.cluster.limits = Limits(faults_waiting_per_agent=limit)
    one.fault(5)
    for _ in range(limit):
        one.fault(5)
    assert one.closed is None
    one.fault(5)
    assert one.closed is not None and one.closed.status is Status.LIMIT


def test_no_table_is_answered_by_a_new_one() -> None:
    """Deleting, at the data plane: what it parked ends with the table, and the vdisk gets another."""
    rig = Rig()
    (agent,) = rig.disk_at("a")
    created, presented = len(agent.ordered(m.CreateTable)), len(agent.ordered(m.Present))
    agent.fault(3, FaultKind.NO_TABLE, 0)
    agent.fault(4, FaultKind.NO_TABLE, 0)
    assert len(agent.ordered(m.DeleteTable)) == 2, "one each: the first was over when the second came"
    assert len(agent.ordered(m.CreateTable)) == created + 2 and len(agent.ordered(m.Present)) == presented + 2
    agent.fault(3)
    assert has_location(agent.last_answer()[1][0])
    assert rig.ask("cluster.status")["faults"]["parked"] == 0


def test_no_table_of_a_vdisk_that_is_being_withdrawn_ends_with_it() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.auto = False
    rig.ask("vdisk.withdraw", name="v", agents=["a"])
    agent.respond(which=m.Withdraw)
    agent.fault(3, FaultKind.NO_TABLE, 0)
    agent.respond(which=m.DeleteTable)
    assert not agent.asked and rig.ask("cluster.status")["faults"]["parked"] == 0


def test_faults_of_a_table_that_nobody_knows_end_with_it() -> None:
    """Missing, at the controller."""
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.auto = False
    agent.fault(1, vdisk=77)
    agent.fault(2, vdisk=77)
    assert [type(asked[2]) for asked in agent.asked] == [m.DeleteTable], "once is enough"
    assert agent.asked[0][1].table == agent.table(77)
    assert any(f"has table {agent.table(77):#x}" in log.text for log in rig.logs)
    agent.respond()
    agent.fault(3, vdisk=77)
    assert len(agent.asked) == 1
