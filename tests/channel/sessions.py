"""Sessions in every state, reached by legal steps, and what goes between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from channel.events import (
    Event,
    RequestReceived,
    SessionEnded,
    SessionOpened,
)
from channel.handshake import Role, SessionState
from channel.messages import (
    DataPlaneHello,
    Hello,
    Welcome,
)
from channel.session import Session
from channel.values import Header, TableSequence
from mapping.status import Status

INSTANCE = bytes(range(16))
HELLO = Hello(1, 1, 3, INSTANCE, "a", "segmap", [TableSequence(0x100000002, 7)], bytes(range(16, 32)))
DP_HELLO = DataPlaneHello(1, 1, INSTANCE, "segmap")
WELCOME = Welcome(cluster=b"c" * 16, agent_number=2, lease_duration_ns=10, renew_interval_ns=3)
STAMPS = Header(term=1, incarnation=2, epoch=3, table=4, sequence=5)


def carry(sender: Session, receiver: Session) -> list[Event]:
    """Everything that one has queued goes to the other; the events there."""
    for data in sender.data_to_send():
        receiver.receive_data(data)
    return list(receiver.events())


def opened_pair(**keywords: Any) -> tuple[Session, Session]:
    """(controller, agent), open."""
    controller, agent = Session(Role.CONTROLLER, **keywords), Session(Role.AGENT, **keywords)
    agent.send(HELLO)
    (hello,) = carry(agent, controller)
    assert isinstance(hello, RequestReceived)
    controller.respond(hello, WELCOME, Header(1, 2))
    (opened,) = carry(controller, agent)
    assert isinstance(opened, SessionOpened)
    return controller, agent


def opened_plane(**keywords: Any) -> tuple[Session, Session]:
    """(daemon, data plane), open."""
    daemon, plane = Session(Role.DAEMON, **keywords), Session(Role.DATA_PLANE, **keywords)
    plane.send(DP_HELLO)
    (opened,) = carry(plane, daemon)
    assert isinstance(opened, SessionOpened)
    return daemon, plane


def ending(session: Session) -> SessionEnded:
    """The last event, which is the end."""
    *_, last = session.events()
    assert isinstance(last, SessionEnded) and session.ended
    return last


def in_state(role: Role, state: SessionState) -> Session | None:
    """A session brought there by legal steps, or None where the role has no such state."""
    first = Session(role)
    if first.state is state:
        return first
    made: dict[tuple[Role, SessionState], Callable[[], Session]] = {
        (Role.CONTROLLER, SessionState.ADMITTING): lambda: controller_admitting()[0],
        (Role.CONTROLLER, SessionState.OPEN): lambda: opened_pair()[0],
        (Role.AGENT, SessionState.AWAITING_WELCOME): agent_waiting,
        (Role.AGENT, SessionState.OPEN): lambda: opened_pair()[1],
        (Role.DAEMON, SessionState.OPEN): lambda: opened_plane()[0],
        (Role.DATA_PLANE, SessionState.OPEN): lambda: opened_plane()[1],
    }
    if state is SessionState.ENDED:
        first.goodbye(Status.OK)
        first.data_to_send()
        list(first.events())
        return first
    make = made.get((role, state))
    return make() if make else None


def controller_admitting() -> tuple[Session, RequestReceived]:
    controller, agent = Session(Role.CONTROLLER), Session(Role.AGENT)
    agent.send(HELLO)
    (hello,) = carry(agent, controller)
    assert isinstance(hello, RequestReceived)
    return controller, hello


def agent_waiting() -> Session:
    agent = Session(Role.AGENT)
    agent.send(HELLO)
    agent.data_to_send()
    return agent
