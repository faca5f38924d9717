"""The frozen handshake, every (role, state, input), who may send what, versions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from channel.codec import encode, encode_response
from channel.events import (
    NoticeReceived,
    RequestReceived,
    SessionEnded,
    SessionOpened,
)
from channel.handshake import INCOMING, OUTGOING, TRANSITIONS, Input, Role, SessionState
from channel.messages import (
    TABLE,
    DataPlaneHello,
    Epoch,
    Goodbye,
    Hello,
    LeaseGrant,
    LeaseRenew,
    TableStatus,
    Welcome,
)
from channel.session import Session, SessionStateError
from channel.values import Header, MessageType
from mapping.status import Status
from tests.channel.sessions import (
    DP_HELLO,
    HELLO,
    INSTANCE,
    STAMPS,
    WELCOME,
    agent_waiting,
    carry,
    controller_admitting,
    ending,
    in_state,
    opened_pair,
    opened_plane,
)
from tests.channel.strategies import smallest

# --- the handshake ---------------------------------------------------------------------------------------------------

HELLO_BYTES = (
    "90000000" "0100" "01" "00" "0100000000000000"  # length 144, HELLO, version 1, no flags; request id 1
    "0700000000000000" "0600000000000000" "0500000000000000"  # term 7, incarnation 6, epoch 5
    "0000000000000000" "0000000000000000"  # no table, no sequence
    "01" "01" "0300"  # versions 1 to 1, roles mapper and exporter
    "00000000"  # to 8
    "000102030405060708090a0b0c0d0e0f"  # instance
    "01000000" "06000000" "01000000" "00000000"  # name 1 byte, software 6 bytes, 1 table; to 8
    "101112131415161718191a1b1c1d1e1f"  # machine
    "6100000000000000" "7365676d61700000"  # "a", "segmap"
    "0200000001000000" "0700000000000000"  # table 1 << 32 | 2 at sequence 7
)  # fmt: skip
WELCOME_BYTES = (
    "78000000" "0100" "01" "01" "0100000000000000"  # length 120, HELLO, version 1, RESPONSE
    "0100000000000000" "0200000000000000" "0000000000000000"  # term 1, incarnation 2
    "0000000000000000" "0000000000000000"
    "00000000" "00000000"  # OK, detail of 0 bytes
    "63636363636363636363636363636363"  # cluster
    "02000000" "00000000"  # agent number 2
    "0a00000000000000" "0300000000000000" "0000000000000000" "0000000000000000"
)  # fmt: skip
DP_HELLO_BYTES = (
    "60000000" "3200" "01" "00" "0000000000000000"  # length 96, DP_HELLO
    "0000000000000000" "0000000000000000" "0100000000000000"  # epoch 1
    "0000000000000000" "0000000000000000"
    "01" "01" "000000000000"
    "000102030405060708090a0b0c0d0e0f"
    "06000000" "00000000"
    "7365676d61700000"
)  # fmt: skip
GOODBYE_BYTES = (
    "48000000" "0500" "01" "00" "0000000000000000"
    "0000000000000000" "0000000000000000" "0000000000000000" "0000000000000000" "0000000000000000"
    "0d000000" "03000000"  # OUT_OF_RANGE, 3 bytes
    "6279650000000000"
)  # fmt: skip


@pytest.mark.claim(6, 7)
def test_handshake_bytes_are_frozen() -> None:
    agent = Session(Role.AGENT)
    agent.send(HELLO, Header(7, 6, 5))
    assert b"".join(agent.data_to_send()).hex() == HELLO_BYTES
    controller = Session(Role.CONTROLLER)
    controller.receive_data(bytes.fromhex(HELLO_BYTES))
    hello = controller.next_event()
    assert isinstance(hello, RequestReceived) and hello.header == Header(7, 6, 5, request_id=1)
    assert hello.message == HELLO
    controller.respond(hello, WELCOME, Header(1, 2))
    assert b"".join(controller.data_to_send()).hex() == WELCOME_BYTES
    agent.receive_data(bytes.fromhex(WELCOME_BYTES))
    assert agent.next_event() == SessionOpened(Header(1, 2, request_id=1), WELCOME, 1)
    assert agent.next_event() is None


def test_data_plane_handshake_and_goodbye_bytes_are_frozen() -> None:
    plane = Session(Role.DATA_PLANE)
    plane.send(DP_HELLO, Header(epoch=1))
    assert b"".join(plane.data_to_send()).hex() == DP_HELLO_BYTES
    plane.goodbye(Status.OUT_OF_RANGE, "bye")
    assert b"".join(plane.data_to_send()).hex() == GOODBYE_BYTES


# --- every role, state and input -------------------------------------------------------------------------------------


SENDS: dict[Input, Any] = {
    Input.SEND_HELLO: HELLO,
    Input.SEND_DP_HELLO: DP_HELLO,
    Input.SEND_GOODBYE: Goodbye(Status.OK),
}
RECEIVES: dict[Input, bytes] = {
    Input.RECEIVE_HELLO: encode(HELLO, Header(request_id=1)),
    Input.RECEIVE_WELCOME: encode_response(MessageType.HELLO, WELCOME, Header(request_id=1)),
    Input.RECEIVE_REJECTION: encode_response(MessageType.HELLO, Welcome(Status.FORBIDDEN), Header(request_id=1)),
    Input.RECEIVE_DP_HELLO: encode(DP_HELLO),
    Input.RECEIVE_GOODBYE: encode(Goodbye(Status.BUSY, "later")),
    Input.PROTOCOL_ERROR: bytes(8),
}
PLAIN_SENDS: dict[Role, Any] = {
    Role.CONTROLLER: LeaseGrant(1, 2),
    Role.AGENT: LeaseRenew(1),
    Role.DAEMON: LeaseGrant(1, 2),
    Role.DATA_PLANE: Epoch(),
}
PLAIN_RECEIVES: dict[Role, bytes] = {
    Role.CONTROLLER: encode(LeaseRenew(1)),
    Role.AGENT: encode(LeaseGrant(1, 2)),
    Role.DAEMON: encode(Epoch()),
    Role.DATA_PLANE: encode(LeaseGrant(1, 2)),
}


def do(session: Session, way: Input) -> None:
    """Let the input happen to the session; what we send raises if it is refused."""
    if way in (Input.SEND_WELCOME, Input.SEND_REJECTION):
        request = session.next_event() or RequestReceived(Header(request_id=1), MessageType.HELLO, HELLO, b"")
        assert isinstance(request, RequestReceived)
        session.respond(request, WELCOME if way is Input.SEND_WELCOME else Welcome(Status.FORBIDDEN, "no"))
    elif way is Input.SEND:
        session.send(PLAIN_SENDS[session.role])
    elif way is Input.RECEIVE:
        session.receive_data(PLAIN_RECEIVES[session.role])
    elif way is Input.END_OF_STREAM:
        session.receive_eof()
    elif way in SENDS:
        session.send(SENDS[way])
    else:
        session.receive_data(RECEIVES[way])


def reachable() -> Iterator[tuple[Role, SessionState]]:
    """Every state that a role has."""
    return ((role, state) for role, state in product(Role, SessionState) if in_state(role, state) is not None)


@pytest.mark.parametrize(("role", "state"), list(reachable()), ids=lambda value: value.name)
@pytest.mark.parametrize("way", Input, ids=lambda way: way.name)
def test_every_state_and_input(role: Role, state: SessionState, way: Input) -> None:
    if state is SessionState.ADMITTING:
        controller, hello = controller_admitting()
        controller._events.append(hello)
        session: Session | None = controller
    else:
        session = in_state(role, state)
    assert session is not None
    expected = TRANSITIONS.get((role, state, way))
    sending = way.name.startswith("SEND")
    if state is SessionState.ENDED and not sending:
        do(session, way)
        assert session.ended and session.next_event() is None and not session.data_to_send()
        return
    if expected is None and sending:
        with pytest.raises(SessionStateError):
            do(session, way)
        assert session.state is state and not session.data_to_send()
        return
    do(session, way)
    if expected is None:
        ended = ending(session)
        assert ended.error is not None and not ended.by_peer
        assert b"".join(session.data_to_send())[4] == MessageType.GOODBYE
    else:
        assert session.state is expected
        if expected is SessionState.ENDED:
            assert ending(session)


def test_the_table_names_only_reachable_states() -> None:
    states = set(reachable())
    for (role, state, way), target in TRANSITIONS.items():
        if (role, target) not in states or (role, state) not in states:
            assert way in (Input.SEND_GOODBYE, Input.RECEIVE_GOODBYE, Input.END_OF_STREAM, Input.PROTOCOL_ERROR)


@pytest.mark.parametrize("role", Role, ids=lambda role: role.name)
def test_who_may_send_what(role: Role) -> None:
    """In an open session each message goes only where the table lets it."""
    for row in TABLE:
        if row.kind in (MessageType.HELLO, MessageType.DP_HELLO, MessageType.GOODBYE):
            continue
        session = in_state(role, SessionState.OPEN)
        assert session is not None
        if row.directions & OUTGOING[role]:
            session.send(smallest(row))
        else:
            with pytest.raises(SessionStateError, match=row.kind.name):
                session.send(smallest(row))
        session = in_state(role, SessionState.OPEN)
        assert session is not None
        session.receive_data(encode(smallest(row), Header(request_id=1 if row.response else 0)))
        event = session.next_event()
        if row.directions & INCOMING[role]:
            assert isinstance(event, RequestReceived if row.response else NoticeReceived)
            assert event.type is row.kind
        else:
            assert isinstance(event, SessionEnded) and event.status is Status.BAD_MESSAGE


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [((1, 1), (1, 1), 1), ((1, 3), (2, 5), 3), ((1, 3), (1, 2), 2), ((2, 4), (1, 1), 0), ((1, 1), (2, 4), 0)],
)
def test_versions(ours: tuple[int, int], theirs: tuple[int, int], chosen: int) -> None:
    controller, agent = Session(Role.CONTROLLER, versions=ours), Session(Role.AGENT, versions=theirs)
    agent.send(Hello(*theirs, 1, INSTANCE, "a", ""))
    events = carry(agent, controller)
    if not chosen:
        assert isinstance(events[0], SessionEnded) and events[0].status is Status.BAD_VERSION
        (ended,) = carry(controller, agent)
        assert isinstance(ended, SessionEnded) and ended.status is Status.BAD_VERSION and ended.by_peer
        return
    controller.respond(events[0], WELCOME)  # type: ignore[arg-type]
    (opened,) = carry(controller, agent)
    assert isinstance(opened, SessionOpened) and opened.version == chosen == controller.version == agent.version
    agent.send(LeaseRenew(1))
    (data,) = agent.data_to_send()
    assert data[6] == chosen
    controller.receive_data(data)
    assert isinstance(controller.next_event(), NoticeReceived)


def test_versions_of_the_data_plane() -> None:
    daemon, plane = Session(Role.DAEMON, versions=(1, 3)), Session(Role.DATA_PLANE, versions=(1, 2))
    plane.send(DataPlaneHello(1, 2, INSTANCE, ""))
    (opened,) = carry(plane, daemon)
    assert isinstance(opened, SessionOpened) and daemon.version == 2 and plane.version == 1
    daemon.send(TableStatus())
    carry(daemon, plane)
    assert plane.version == 2
    stranger = Session(Role.DATA_PLANE, versions=(4, 4))
    stranger.send(DataPlaneHello(4, 4, INSTANCE, ""))
    daemon = Session(Role.DAEMON, versions=(1, 3))
    (ended,) = carry(stranger, daemon)
    assert isinstance(ended, SessionEnded) and ended.status is Status.BAD_VERSION
    (told,) = carry(daemon, stranger)
    assert isinstance(told, SessionEnded) and told.status is Status.BAD_VERSION and told.by_peer


def test_relaying_between_sessions_of_different_versions() -> None:
    daemon, plane = opened_plane()
    plane.send(Epoch(), STAMPS)
    (epoch,) = carry(plane, daemon)
    agent, controller = Session(Role.AGENT, versions=(1, 2)), Session(Role.CONTROLLER, versions=(1, 2))
    agent.send(Hello(1, 2, 1, INSTANCE, "a", ""))
    (hello,) = carry(agent, controller)
    controller.respond(hello, WELCOME)  # type: ignore[arg-type]
    carry(controller, agent)
    agent.relay(epoch)  # type: ignore[arg-type]
    (data,) = agent.data_to_send()
    assert data[6] == 2 and data[7:] == epoch.frame[7:]  # type: ignore[union-attr]


def test_bad_versions_end_the_session() -> None:
    controller, agent = opened_pair()
    controller.receive_data(encode(LeaseRenew(1), version=2))
    assert ending(controller).status is Status.BAD_VERSION
    waiting = agent_waiting()
    waiting.receive_data(encode_response(MessageType.HELLO, WELCOME, Header(request_id=1), version=2))
    assert ending(waiting).status is Status.BAD_VERSION
    for versions in ((0, 1), (2, 1)):
        controller = Session(Role.CONTROLLER)
        controller.receive_data(encode(Hello(*versions, 1, INSTANCE, "a", ""), Header(request_id=1)))
        assert ending(controller).status is Status.BAD_MESSAGE
    assert not agent.ended
