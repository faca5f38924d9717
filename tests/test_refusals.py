"""Every row of the table of refusals, driven through the cores: data plane, daemon, controller."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import pytest

from agent.core import effects as ae
from channel import messages as m
from channel.refusals import REFUSALS, Effect, Refusal, Who
from channel.values import FaultRecord, Header
from channel.values import MessageType as T
from controller.config import AGENTS_MAX
from controller.core import effects as fx
from mapping.engine import Geometry, Limits
from mapping.entry import ZERO_ENTRY, State, pack
from mapping.plane import REPLACE, SESSIONS_MAX, Answer, Plane, Stamp, numbered
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from tests.agent.driver import Driver, config, of
from tests.agent.driver import notice as from_controller
from tests.controller.rig import Rig, RigAgent

LEASE = 10_000_000_000
CLUSTER = b"c" * 16
TABLE = 7
RIGHT = Stamp(5, 3, 1)
BY_KEY = {row.key: row for row in REFUSALS}
Outcome = tuple[Status | None, Effect]


# --- the data plane --------------------------------------------------------------------------------------------------


def plane_with(*, admitted: bool = True, table: bool = True, leased: bool = True) -> Plane:
    plane = Plane(b"i" * 16)
    if admitted:
        assert plane.admit(5, 3, CLUSTER, Limits(), LEASE, 0)[0] is Status.OK
    plane.bind_slot(0, b"k" * 16)
    plane.bind_slot(1, b"l" * 16)
    if table:
        assert plane.create_table(TABLE, Geometry(64), [0]) is Status.OK
    if leased and admitted:
        assert plane.grant_lease(RIGHT, 0, LEASE, 0)[0] is Status.OK
    return plane


def tell(
    plane: Plane,
    kind: T,
    stamp: Stamp = RIGHT,
    entry: int = pack(0, 1),
    slots: tuple[int, ...] = (0,),
    sent_ns: int = 1,
    now_ns: int = 2,
) -> Status:
    """The message, as the data plane's core gets it; sequenced ones with the next sequence unless the stamp has one."""
    if not stamp.sequence and kind in (T.SET_ENTRIES, T.SET_STATE, T.FAULT_ANSWER):
        table = plane.tables.get(TABLE)
        stamp = stamp._replace(sequence=(table.sequence if table is not None else 0) + 1)
    calls: dict[T, Callable[[], Any]] = {
        T.LEASE_GRANT: lambda: plane.grant_lease(stamp, sent_ns, LEASE, now_ns),
        T.SET_ENTRIES: lambda: plane.set_entries(stamp, TABLE, 0, 1, array("Q", [entry]), now_ns),
        T.SET_STATE: lambda: plane.set_state(stamp, TABLE, 0, 1, State.ZERO, True, now_ns),
        T.FAULT_ANSWER: lambda: plane.answer_faults(stamp, TABLE, [Answer(1, REPLACE, 0, 0, 1, [entry])], now_ns),
        T.TABLE_SLOTS: lambda: plane.table_slots(stamp, TABLE, slots, now_ns),
        T.SUSPEND: lambda: plane.suspend(stamp, TABLE, now_ns),
        T.RESUME: lambda: plane.resume(stamp, TABLE, now_ns),
        T.ZERO_SEGMENTS: lambda: plane.begin_job(stamp, object(), [entry], now_ns),
        T.COPY_SEGMENTS: lambda: plane.begin_job(stamp, object(), [entry, entry], now_ns),
    }
    status: Status = calls[kind]()[0]
    return status


def filled() -> Plane:
    plane = plane_with()
    assert tell(plane, T.SET_ENTRIES) is Status.OK
    return plane


def admit(**changed: Any) -> Status:
    wanted = {"term": 5, "incarnation": 3, "cluster": CLUSTER, **changed}
    plane = plane_with()
    return plane.admit(wanted["term"], wanted["incarnation"], wanted["cluster"], Limits(), LEASE, 1)[0]


def in_second_session() -> Plane:
    plane = plane_with()
    for session in (1, 2):
        plane.begin_session()
        assert plane.admit(5, 3, CLUSTER, Limits(), LEASE, 1, session)[0] is Status.OK
    return plane


PLANE: dict[str, Callable[[T], Status]] = {
    "plane-admit-term": lambda kind: admit(term=4),
    "plane-admit-incarnation": lambda kind: admit(incarnation=4),
    "plane-admit-cluster": lambda kind: admit(cluster=b"d" * 16),
    "plane-admit-session": lambda kind: in_second_session().admit(5, 3, CLUSTER, Limits(), LEASE, 1, 1)[0],
    "plane-new": lambda kind: tell(plane_with(admitted=False), kind),
    "plane-term-old": lambda kind: tell(plane_with(), kind, RIGHT._replace(term=4)),
    "plane-term-new": lambda kind: tell(plane_with(), kind, RIGHT._replace(term=6)),
    "plane-incarnation": lambda kind: tell(plane_with(), kind, RIGHT._replace(incarnation=2)),
    "plane-epoch": lambda kind: tell(plane_with(), kind, RIGHT._replace(epoch=2)),
    "plane-session": lambda kind: tell(in_second_session(), kind, RIGHT._replace(epoch=numbered(1, 1))),
    "plane-sequence-old": lambda kind: tell(filled(), kind, RIGHT._replace(sequence=1)),
    "plane-sequence-gap": lambda kind: tell(filled(), kind, RIGHT._replace(sequence=3)),
    "plane-no-table": lambda kind: tell(plane_with(table=False), kind),
    "plane-container": lambda kind: tell(plane_with(), kind, entry=pack(1, 1)),
    "plane-slots": lambda kind: tell(plane_with(), kind, entry=pack(9, 1), slots=(9,)),
    "plane-slots-used": lambda kind: tell(filled(), kind, slots=()),
    "plane-grant-late": lambda kind: tell(plane_with(), kind, sent_ns=1 - LEASE),
    "plane-grant-early": lambda kind: tell(plane_with(), kind, sent_ns=3),
    "plane-job-lease": lambda kind: tell(plane_with(leased=False), kind),
}


# --- the agent's daemon ----------------------------------------------------------------------------------------------

COMMANDS: dict[T, m.Message] = {
    T.SET_ENTRIES: m.SetEntries(0, 1, array("Q", [0])),
    T.SET_STATE: m.SetState(0, 1, State.ZERO, True),
    T.CREATE_TABLE: m.CreateTable(bytes(16), bytes(16), 8, 1 << 20, 512, 0, "v", []),
    T.ATTACH_CONTAINER: m.AttachContainer(
        0, 1, bytes(16), CLUSTER, 1, 1 << 20, 8, 0, "TCP", "127.0.0.1", "1", "nqn.2026-11.io.segmap:c", "c"
    ),
    T.ALLOW_HOST: m.AllowHost("nqn.2026-11.io.segmap:c", "nqn.2026-11.io.segmap:agent:a:1"),
    T.DENY_HOST: m.DenyHost("nqn.2026-11.io.segmap:c", "nqn.2026-11.io.segmap:agent:a:1"),
}


def ordered(driver: Driver, kind: T) -> Outcome:
    made = driver.command(COMMANDS[kind], TABLE)
    (response,) = driver.responses(made)
    ended = of(ae.CloseController, made)
    return Status(response.status), Effect.ENDS if ended else Effect.GOES_ON


def overloaded(kind: T) -> Outcome:
    driver = Driver().open()
    driver.hold_calls, driver.core.work.jobs_max = True, 0
    return ordered(driver, kind)


def fenced(kind: T) -> Outcome:
    driver = Driver()
    driver.start()
    driver.plane_up()
    driver.step(ae.SessionUp())
    made = driver.step(ae.SessionDown("fenced", Status.STALE_INCARNATION))
    assert of(ae.StopTarget, made) and not of(ae.ConnectController, made)
    return Status.STALE_INCARNATION, Effect.RESTARTS


AGENT: dict[str, Callable[[T], Outcome]] = {
    "agent-exporter-only": lambda kind: ordered(Driver(config("exporter")).open(), kind),
    "agent-mapper-only": lambda kind: ordered(Driver().open(), kind),
    "agent-too-many": overloaded,
    "agent-fenced": fenced,
}


# --- the controller --------------------------------------------------------------------------------------------------


def greet(agent: RigAgent, **header: int) -> Outcome:
    """HELLO, and what becomes of it."""
    agent.hello(**header)
    return welcomed(agent)


def welcomed(agent: RigAgent) -> Outcome:
    if agent.welcome is None:
        return None, Effect.IGNORED if agent.rig.deposed else Effect.WAITS
    status = Status(agent.welcome.status)
    assert (agent.closed is not None) == (status is not Status.OK)
    return status, Effect.TURNED_AWAY if agent.closed else Effect.GOES_ON


def another_name(kind: T) -> Outcome:
    rig = Rig()
    agent = RigAgent(rig, "a", 1, bytes(16))
    agent.session = rig.sessions = 1
    rig.ends[1] = agent
    rig.step(fx.SessionOpened(1, "a"))
    rig.step(fx.MessageReceived(1, Header(), m.Hello(1, 1, 1, bytes(16), "b", "rig", [])))
    return welcomed(agent)


def double(kind: T) -> Outcome:
    rig = Rig()
    rig.agent("a")
    other = RigAgent(rig, "a", 1, b"another instance")
    other.machine = b"another machine."
    return greet(other)


def one_too_many(kind: T) -> Outcome:
    rig = Rig()
    for number in range(AGENTS_MAX):
        rig.agent(f"a{number}")
    return welcomed(rig.agent("late"))


def again_after_a_fence(kind: T) -> Outcome:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.ask("agent.fence", agent="a", wait_s=0)
    first = greet(agent)
    rig.advance(30)
    assert first == greet(agent)
    return first


def unknown_incarnation(kind: T) -> Outcome:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.drop()
    agent.instance = b"another instance"
    return greet(agent, incarnation=agent.incarnation + 5)


def other_incarnation(kind: T) -> Outcome:
    rig = Rig()
    for name in ("a", "b"):
        rig.agent(name)
    return greet(rig.agents["b"], incarnation=rig.agents["a"].incarnation)


def not_fenced_yet(kind: T) -> Outcome:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.agents["store"].drop()
    agent.instance = b"another instance"
    return greet(agent)


def term_of_others(kind: T) -> Outcome:
    rig = Rig()
    agent = rig.agent("a")
    agent.drop()
    outcome = greet(agent, term=rig.core.term + 1)
    assert rig.ask("cluster.status")["alarms"]
    return outcome


def notices(agent: RigAgent) -> dict[T, m.Message]:
    record = FaultRecord(1, agent.table() if agent.incarnation else 0, 0, ZERO_ENTRY, 1, 1, 0, 0, 8)
    return {
        T.LEASE_RENEW: m.LeaseRenew(1),
        T.MAP_FAULT: m.MapFault([record]),
        T.EPOCH: m.Epoch(),
        T.REFUSED: m.Refused(Status.SEQUENCE_GAP, int(T.FAULT_ANSWER), ""),
    }


def told(rig: Rig, agent: RigAgent, message: m.Message, **header: int) -> Outcome:
    """What the controller does about a notice: nothing at all, or GOODBYE."""
    before = (len(agent.grants), len(agent.answers))
    known = rig.core.cluster.agents_by_name[agent.name]
    epoch = known.epoch
    agent.say(message, **header)
    if agent.closed is not None:
        return Status(agent.closed.status), Effect.ENDS
    assert (len(agent.grants), len(agent.answers)) == before and known.epoch == epoch
    return None, Effect.IGNORED


def notice(kind: T, rise: bool = False, **change: int) -> Outcome:
    """A notice whose stamps differ by `change` from the right ones."""
    rig = Rig()
    (agent,) = rig.disk_at("a")
    if rise:
        rig.restart()
        rig.agents["store"].hello()
        agent.hello([(agent.table(), 1)])
        agent.epoch += 1
        agent.say(m.Epoch())
    right = {"term": rig.core.term, "incarnation": agent.incarnation, "epoch": agent.epoch}
    stamps = {key: right[key] + by for key, by in change.items()}
    return told(rig, agent, notices(agent)[kind], **stamps)


def before_welcome(kind: T) -> Outcome:
    rig = Rig()
    rig.hold_commits = True
    agent = rig.agent("a")
    assert agent.welcome is None
    return told(rig, agent, notices(agent)[kind])


def deposed(kind: T) -> Outcome:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.step(fx.LeadershipLost("another reigns"))
    return greet(agent) if kind is T.HELLO else told(rig, agent, notices(agent)[kind])


def fault_of_no_table(kind: T) -> Outcome:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    return told(rig, agent, m.MapFault([FaultRecord(1, 99 << 32 | agent.number, 0, ZERO_ENTRY, 1, 1, 0, 0, 8)]))


def overdue(kind: T) -> Outcome:
    rig = Rig()
    agent = rig.agent("a")
    agent.auto = False
    rig.ask("io.parked")
    rig.advance(61)
    return told(rig, agent, m.LeaseRenew(1))


def answered(kind: T, status: Status, *, given_up: bool = False) -> Outcome:
    """A command is answered with this status."""
    rig = Rig()
    one, two = rig.disk_at("a", "b")
    two.auto = False
    if kind is T.SET_ENTRIES:
        two.fault(5, FaultKind.READ, 0, operation=Operation.READ)
        one.fault(5)
    else:
        rig.exporter("other", {"more": 1024})
        rig.ask("container.add", name="d", agent="other", export="more", contents="zeroed")
        while not any(isinstance(message, m.TableSlots) for _, _, message in two.asked):
            two.respond()
    attempt = next(attempt for attempt, _, message in two.asked if isinstance(message, m.SetEntries | m.TableSlots))
    session = two.session
    if given_up:
        two.epoch += 1
        two.say(m.Epoch())
    count = len(two.commands)
    rig.step(fx.ResponseReceived(session, attempt, m.Done(status, "")))
    if two.closed is not None:
        return Status(two.closed.status), Effect.ENDS
    assert len(two.commands) == count and not one.answers
    return None, Effect.IGNORED


CONTROLLER: dict[str, Callable[[T], Outcome]] = {
    "hello-name": another_name,
    "hello-roles": lambda kind: welcomed(Rig().agent("a", roles=0)),
    "hello-session": lambda kind: greet(RigAgent(Rig(), "a", 1, bytes(16)), sequence=SESSIONS_MAX + 1),
    "hello-term": term_of_others,
    "hello-double": double,
    "hello-limit": one_too_many,
    "hello-fenced": again_after_a_fence,
    "hello-other-incarnation": other_incarnation,
    "hello-unknown-incarnation": unknown_incarnation,
    "hello-waits": not_fenced_yet,
    "notice-term-new": lambda kind: notice(kind, term=1),
    "notice-term-old": lambda kind: notice(kind, rise=True, term=-1),
    "notice-incarnation": lambda kind: notice(kind, incarnation=-1),
    "notice-epoch-old": lambda kind: notice(kind, rise=True, epoch=-1),
    "notice-not-admitted": before_welcome,
    "notice-deposed": deposed,
    "fault-table": fault_of_no_table,
    "renew-overdue": overdue,
    "answer-out-of-step": lambda kind: answered(kind, Status.SEQUENCE_GAP),
    "answer-old-epoch": lambda kind: answered(kind, Status.STALE_EPOCH),
    "answer-of-nothing": lambda kind: answered(kind, Status.OK, given_up=True),
    "refused-answer": lambda kind: notice(kind),
}


# --- the tests -------------------------------------------------------------------------------------------------------


def outcome_of(row: Refusal, kind: T) -> Outcome:
    if row.who is Who.DATA_PLANE:
        return PLANE[row.key](kind), Effect.GOES_ON
    return (AGENT if row.who is Who.AGENT else CONTROLLER)[row.key](kind)


CASES = [(row, kind) for row in REFUSALS for kind in row.messages]


@pytest.mark.parametrize(("row", "kind"), CASES, ids=[f"{row.key}-{kind.name}" for row, kind in CASES])
def test_every_row_is_so(row: Refusal, kind: T) -> None:
    assert outcome_of(row, kind) == (row.status, row.effect)


def test_every_row_is_driven_and_nothing_else() -> None:
    assert {*PLANE, *AGENT, *CONTROLLER} == BY_KEY.keys()
    assert len(BY_KEY) == len(REFUSALS)


STAMPED = sorted(
    {kind for row in REFUSALS if row.who is Who.DATA_PLANE for kind in row.messages if kind is not T.ADMIT}
)


@pytest.mark.parametrize("kind", STAMPED, ids=[kind.name for kind in STAMPED])
def test_with_the_right_stamps_the_data_plane_refuses_nothing(kind: T) -> None:
    assert tell(plane_with(), kind) is Status.OK
    assert admit() is Status.OK


def test_with_the_right_stamps_the_others_refuse_nothing_either() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.say(m.LeaseRenew(7))
    agent.fault(1)
    assert agent.grants[-1].sent_ns == 7 and agent.answers and agent.closed is None
    driver = Driver().open()
    made = driver.step(ae.FromController(from_controller(m.LeaseGrant(1, LEASE))))
    assert of(ae.RelayDataPlane, made) and not of(ae.CloseController, made)
