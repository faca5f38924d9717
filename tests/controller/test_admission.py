"""Sessions, incarnations, fences, leases and epochs (design: 3, 7, 8, 9; [0026] [0027])."""

from __future__ import annotations

import pytest

from channel import messages as m
from channel.values import EventKind, Header
from controller.config import AGENTS_MAX, Limits
from controller.core import effects as fx
from controller.core.agents import Agent, Standing, host_nqn
from controller.core.holdings import NOTHING
from mapping.entry import INVALID_ENTRY
from mapping.plane import SESSIONS_MAX, numbered
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from tests.controller.rig import Rig, RigAgent

READ = {"kind": FaultKind.READ, "entry": INVALID_ENTRY, "operation": Operation.READ}


def agent_of(rig: Rig, agent: RigAgent) -> Agent:
    return rig.core.cluster.agents_by_name[agent.name]


# --- HELLO -----------------------------------------------------------------------------------------------------------


def test_admission_is_a_transaction() -> None:
    rig = Rig()
    rig.hold_commits = True
    agent = rig.agent("a")
    assert agent.welcome is None
    rig.commit()
    assert (agent.welcome.status, agent.incarnation) == (Status.OK, 1)
    assert rig.store.load().objects["agent"]["1"]["incarnation"] == 1  # type: ignore[index,call-overload]


def test_two_hellos_of_one_instance_while_it_is_being_admitted_are_one_incarnation() -> None:
    rig = Rig()
    rig.hold_commits = True
    agent = rig.agent("a")
    agent.hello()
    rig.commit()
    rig.commit()
    assert agent.welcome.status is Status.OK
    assert (agent.incarnation, rig.core.cluster.incarnation_max) == (1, 1)


def test_the_same_instance_comes_back_as_the_same_incarnation() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    incarnation = agent.incarnation
    agent.drop()
    agent.hello([(agent.table(), 4)])
    assert (agent.welcome.status, agent.incarnation) == (Status.OK, incarnation)
    agent.fault(5)
    assert agent.answers[-1][0].sequence == 5, "its own word on the sequence counts"


def test_the_newest_session_wins() -> None:
    rig = Rig()
    agent = rig.agent("a")
    first = agent.session
    agent.hello()
    assert agent.welcome.status is Status.OK
    assert agent_of(rig, agent).session == agent.session != first
    assert first not in rig.ends


@pytest.mark.parametrize(("name", "roles", "status"), [("b", 1, Status.UNAUTHORIZED), ("a", 0, Status.BAD_MESSAGE)])
def test_who_is_turned_away(name: str, roles: int, status: Status) -> None:
    rig = Rig()
    agent = RigAgent(rig, "a", roles, bytes(16))
    rig.sessions += 1
    agent.session, rig.ends[1] = 1, agent
    rig.step(fx.SessionOpened(1, "a"))
    rig.step(fx.MessageReceived(1, Header(), m.Hello(1, 1, roles, bytes(16), name, "rig", [])))
    assert agent.welcome.status is status
    assert agent.closed is not None


def test_the_limit_of_agents() -> None:
    rig = Rig()
    for number in range(AGENTS_MAX):
        assert rig.agent(f"a{number}").welcome.status is Status.OK
    late = rig.agent("late")
    assert late.welcome.status is Status.LIMIT
    assert late.closed is not None


def test_an_agent_that_speaks_of_a_higher_term_is_turned_away_and_nothing_else() -> None:
    rig = Rig()
    one, two = rig.disk_at("a", "b")
    one.drop()
    one.hello(term=2**64 - 1)
    assert one.welcome.status is Status.STALE_TERM
    assert one.closed is not None
    two.say(m.LeaseRenew(2), term=2**64 - 1)
    assert two.closed is not None and two.closed.status is Status.STALE_TERM
    assert not rig.deposed
    alarms = rig.ask("cluster.status")["alarms"]
    assert [alarm["kind"] for alarm in alarms] == ["term", "term"]
    one.hello()
    two.hello()
    assert one.welcome.status is two.welcome.status is Status.OK
    assert not rig.ask("cluster.status")["alarms"]


def test_an_election_deposes_us() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.step(fx.LeadershipLost("another reigns"))
    assert rig.deposed == "another reigns"
    agent.hello()
    assert agent.welcome is None
    other = rig.agent("b")
    assert other.welcome is None, "nobody is admitted any more"
    assert rig.ask("cluster.status").code == "deposed"


# --- fencing ---------------------------------------------------------------------------------------------------------


def test_a_new_instance_is_admitted_after_the_old_incarnation_is_denied() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    store = rig.agents["store"]
    store.auto = False
    old = agent.incarnation
    agent.instance = b"another instance"
    agent.hello()
    assert agent.welcome is None
    assert agent_of(rig, agent).standing is Standing.FENCING
    deny = store.respond(which=m.DenyHost)
    assert deny.hostnqn == host_nqn("a", old)
    assert agent.welcome.status is Status.OK
    assert agent.incarnation > old


@pytest.mark.parametrize("status", [Status.NOT_FENCED, Status.TIMEOUT, Status.NOT_FOUND])
def test_what_is_not_confirmed_is_not_fenced_and_is_tried_again(status: Status) -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    store = rig.agents["store"]
    store.auto = False
    agent.instance = b"another instance"
    agent.hello()
    for _ in range(3):
        store.respond(m.Done(status, "still there"), m.DenyHost)
        assert agent.welcome is None
        shown = rig.ask("agent.show", agent="a")
        assert status.name in shown["fence"]["waiting_for"][0]
        rig.advance(2.1)
    store.respond(which=m.DenyHost)
    assert agent.welcome.status is Status.OK


def test_an_exporter_that_is_away_cannot_confirm() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    store = rig.agents["store"]
    store.drop()
    agent.instance = b"another instance"
    agent.hello()
    rig.advance(60)
    assert agent.welcome is None
    assert "not connected" in rig.ask("agent.show", agent="a")["fence"]["waiting_for"][0]
    store.hello()
    assert agent.welcome.status is Status.OK
    assert store.ordered(m.DenyHost)


def test_a_fenced_instance_is_never_admitted_again() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.ask("agent.fence", agent="a")
    assert agent.closed is not None
    rig.advance(30)
    assert agent_of(rig, agent).standing is Standing.FENCED
    agent.hello()
    assert agent.welcome.status is Status.STALE_INCARNATION
    rig.restart()
    agent.hello()
    assert agent.welcome.status is Status.STALE_INCARNATION


def test_a_fence_waits_for_the_lease_since_zero_is_read_without_a_container() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    result = rig.ask("agent.fence", agent="a")
    assert result is None
    assert not rig.core.cluster.fencing.allows_of(agent_of(rig, agent))
    assert "lease" in rig.ask("agent.show", agent="a")["fence"]["waiting_for"][0]
    rig.advance(11)
    assert agent_of(rig, agent).standing is Standing.FENCED


def test_fencing_goes_on_after_a_restart() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    store = rig.agents["store"]
    store.drop()
    rig.ask("agent.fence", agent="a")
    rig.restart()
    assert agent_of(rig, agent).standing is Standing.FENCING
    store.hello()
    rig.advance(12)
    assert agent_of(rig, agent).standing is Standing.FENCED
    assert store.ordered(m.DenyHost)


def test_the_allow_is_recorded_before_it_is_sent() -> None:
    rig = Rig()
    store = rig.exporter()
    rig.agent("a")
    rig.ask("container.add", name="c", agent="store", export="disk", contents="zeroed")
    two = rig.agent("b")
    rig.ask("vdisk.create", name="v", size_bytes=1 << 24)
    before = len(store.ordered(m.AllowHost))
    rig.hold_commits = True
    rig.ask("vdisk.present", name="v", agents=["b"])
    rig.commit()
    assert len(store.ordered(m.AllowHost)) == before
    rig.commit()
    assert store.ordered(m.AllowHost)[-1].hostnqn == host_nqn("b", two.incarnation)
    assert any(two.name in str(record) for record in rig.store.load().objects["allow"].values())


def test_an_exporters_return_lets_the_current_hosts_in_again() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    store = rig.agents["store"]
    store.drop()
    store.instance = b"store, restarted"
    store.hello()
    assert store.ordered(m.AllowHost)[-1].hostnqn == host_nqn("a", agent.incarnation)
    count = len(store.ordered(m.AllowHost))
    store.say(m.AgentEvent(EventKind.TARGET_RESTARTED))
    assert len(store.ordered(m.AllowHost)) == count + 1


# --- who does not answer ---------------------------------------------------------------------------------------------


def share_a_zero(rig: Rig) -> tuple[RigAgent, RigAgent]:
    one, two = rig.disk_at("a", "b")
    two.fault(5, **READ)  # type: ignore[arg-type]
    return one, two


def test_an_unreachable_agent_is_waited_for() -> None:
    rig = Rig()
    one, two = share_a_zero(rig)
    two.drop()
    one.fault(5)
    assert not one.answers
    two.hello([(two.table(), 1)])
    assert two.ordered(m.SetEntries)
    assert one.answers


def test_or_fenced_once_its_lease_has_surely_expired() -> None:
    rig = Rig()
    one, two = share_a_zero(rig)
    two.drop()
    one.fault(5)
    rig.advance(9)
    assert agent_of(rig, two).standing is Standing.ALIVE
    rig.advance(3)
    assert agent_of(rig, two).standing is Standing.FENCED
    assert one.answers
    assert rig.agents["store"].ordered(m.DenyHost)


def test_a_barrier_that_times_out_fences() -> None:
    rig = Rig()
    one, two = share_a_zero(rig)
    two.auto = False
    one.fault(5)
    two.respond(m.Done(Status.BARRIER_TIMEOUT, "I/O does not end"), m.SetEntries)
    assert agent_of(rig, two).standing is Standing.FENCING
    assert not one.answers
    rig.advance(12)
    assert one.answers


def test_barriers_are_asked_for_again_in_a_new_epoch() -> None:
    rig = Rig()
    one, two = share_a_zero(rig)
    two.auto = False
    one.fault(5)
    first = two.asked[-1]
    two.epoch = 2
    two.say(m.Epoch())
    second = two.asked[-1]
    assert second[0] != first[0]
    assert (second[1].epoch, second[1].sequence) == (2, 1)
    two.asked = [first]
    two.respond(m.Done(Status.STALE_EPOCH, ""))
    assert not one.answers
    two.asked = [second]
    two.respond()
    assert one.answers


def test_a_new_epoch_forgets_what_was_held() -> None:
    rig = Rig()
    one, two = share_a_zero(rig)
    two.epoch = 2
    two.say(m.Epoch())
    assert rig.vdisk.tables[two.number].holdings.get(5) == NOTHING
    one.fault(5)
    assert one.answers
    assert not two.ordered(m.SetEntries)


@pytest.mark.parametrize("status", [Status.SEQUENCE_GAP, Status.SEQUENCE_OLD, Status.NOT_ADMITTED])
def test_a_disagreement_on_the_sequence_is_settled_by_a_new_session(status: Status) -> None:
    rig = Rig()
    one, two = share_a_zero(rig)
    two.auto = False
    one.fault(5)
    two.respond(m.Done(status, ""), m.SetEntries)
    assert two.closed is not None
    assert not one.answers
    two.auto = True
    two.hello([(two.table(), 7)])
    assert one.answers


def test_every_stamp_bears_the_number_of_the_session_that_hello_named() -> None:
    rig = Rig()
    one, two = share_a_zero(rig)
    two.auto = False
    for agent, session in ((one, 4), (two, 5)):
        agent.hello([(agent.table(), 7)], sequence=session)
        assert rig.core.cluster.agents_by_name[agent.name].plane_session == session
    one.say(m.LeaseRenew(rig.now_ns))
    one.fault(5)
    (_, asked, message), *_ = [item for item in two.asked if isinstance(item[2], m.SetEntries)]
    assert (asked.epoch, asked.sequence) == (numbered(1, 5), 8), message
    two.respond(which=m.SetEntries)
    assert one.answers[-1][0].epoch == numbered(1, 4)


def test_a_refusal_of_an_earlier_session_is_no_news() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.drop()
    agent.hello([(agent.table(), 7)], sequence=4)
    agent.say(m.Refused(Status.STALE_TERM, 41, "old"), epoch=numbered(1, 3))
    agent.say(m.Refused(Status.STALE_TERM, 41, "old"))
    assert agent.closed is None
    agent.say(m.Refused(Status.SEQUENCE_GAP, 41, "gap"), epoch=numbered(1, 4))
    assert agent.closed is not None


def test_a_number_that_no_session_has() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.hello([], sequence=SESSIONS_MAX + 1)
    assert agent.welcome.status is Status.BAD_MESSAGE and agent.closed is not None


def test_a_refused_answer_ends_the_session() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.say(m.Refused(Status.SEQUENCE_GAP, 41, "gap"))
    assert agent.closed is not None


def test_a_table_that_is_missing_is_deleted_for_sure_and_made_again() -> None:
    rig = Rig()
    one, two = share_a_zero(rig)
    two.auto = False
    one.fault(5)
    two.respond(m.Done(Status.NO_TABLE, ""), m.SetEntries)
    assert not one.answers, "I/O of the table may still be in flight"
    two.respond(which=m.DeleteTable)
    assert one.answers
    assert two.ordered(m.CreateTable)[1:]


# --- leases ----------------------------------------------------------------------------------------------------------


def test_a_renewal_is_echoed() -> None:
    rig = Rig()
    agent = rig.agent("a")
    agent.say(m.LeaseRenew(12345))
    assert (agent.grants[-1].sent_ns, agent.grants[-1].duration_ns) == (12345, rig.timing.lease_ns)
    count = len(agent.grants)
    agent.say(m.LeaseRenew(12346), incarnation=agent.incarnation + 1)
    agent.say(m.LeaseRenew(12347), term=rig.core.term - 1)
    assert len(agent.grants) == count


def test_a_command_that_is_never_answered_ends_the_session() -> None:
    rig = Rig()
    agent = rig.agent("a")
    agent.auto = False
    rig.ask("io.parked")
    rig.advance(59)
    agent.say(m.LeaseRenew(1))
    assert agent.closed is None
    rig.advance(2)
    agent.say(m.LeaseRenew(2))
    assert agent.closed is not None and agent.closed.status is Status.TIMEOUT


def test_commands_in_flight_are_bounded() -> None:
    rig = Rig(limits=Limits(commands_in_flight=3))
    agent = rig.agent("a")
    agent.auto = False
    for _ in range(4):
        rig.ask("io.parked")
    assert len(agent.asked) == 3
    agent.respond()
    assert len(agent.asked) == 3


# --- zeroing ---------------------------------------------------------------------------------------------------------


def zeroing() -> tuple[Rig, RigAgent]:
    rig = Rig(limits=Limits(zeroed_pool_segments=16, zero_batch_segments=8))
    rig.exporter(exports={"disk": 64})
    agent = rig.agent("a")
    agent.say(m.LeaseRenew(1))
    rig.ask("container.add", name="c", agent="store", export="disk", contents="unknown")
    return rig, agent


def counts(rig: Rig) -> dict[str, int]:
    found: dict[str, int] = rig.ask("container.show", name="c")["segments"]
    return found


def test_a_pool_is_zeroed_ahead_and_no_more() -> None:
    rig, agent = zeroing()
    assert [sum(run.count for run in command.runs) for command in agent.ordered(m.ZeroSegments)] == [8, 8]
    assert (counts(rig)["zeroed"], counts(rig)["free"], counts(rig)["label"]) == (16, 47, 1)


def test_what_a_lost_agent_was_zeroing_is_quarantined_until_it_is_fenced() -> None:
    rig, agent = zeroing()
    rig.core.cluster.limits = Limits(zeroed_pool_segments=32, zero_batch_segments=8)
    agent.auto = False
    rig.core.cluster.zeroing.taken()
    rig.advance(0)
    assert counts(rig)["zeroing"] == 8
    agent.drop()
    assert counts(rig)["quarantined"] == 8
    rig.restart()
    assert counts(rig)["quarantined"] == 8
    rig.agents["store"].hello()
    agent.instance = b"another instance"
    agent.hello()
    assert counts(rig)["quarantined"] == 0


def test_zeroing_that_was_refused_is_free_again_and_tried_later() -> None:
    rig, agent = zeroing()
    rig.core.cluster.limits = Limits(zeroed_pool_segments=24, zero_batch_segments=8)
    agent.refusing[m.ZeroSegments] = Status.BUSY
    rig.core.cluster.zeroing.taken()
    rig.advance(0)
    assert (counts(rig)["zeroing"], counts(rig)["free"]) == (0, 47)
    del agent.refusing[m.ZeroSegments]
    rig.advance(3)
    assert counts(rig)["zeroed"] == 24


def test_a_folded_store_gives_back_as_many_segments_as_the_container_has() -> None:
    rig, _ = zeroing()
    while rig.store.fold():
        pass
    rig.ask("vdisk.create", name="v", size_bytes=1 << 20)  # a commit: what was folded before it survives
    rig.restart()
    space = rig.core.cluster.allocator.spaces[0]
    assert (space.zeroed.total, space.free.total) == (16, 47)


def test_an_exporter_is_never_fenced_since_it_could_not_come_back() -> None:
    rig = Rig()
    rig.exporter(exports={"disk": 64})
    assert rig.ask("agent.fence", agent="store").code == "bad_argument"
    assert rig.core.cluster.agents_by_name["store"].standing is Standing.ALIVE
