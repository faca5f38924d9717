"""How a session begins and ends: every transition in one table, and the choice of a version.

HELLO, its response, DP_HELLO and GOODBYE have the same layout in every version, but for what is appended. All other
frames say their version themselves; a receiver takes those that it speaks, a sender uses the chosen one. The highest
common version is chosen; where there is none, both ends say which versions there are, and whom to upgrade first.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from channel.messages import DataPlaneHello, Hello
from channel.values import Direction, MessageType

HANDSHAKE_VERSION: Final = 1
VERSION_FREE: Final = frozenset({MessageType.HELLO, MessageType.DP_HELLO, MessageType.GOODBYE})
Versions = tuple[int, int]


class _Hashed(Enum):
    """Members are hashed as what they are, one object each. Enum's own hash is written in Python, and every frame looks
    three of them up."""

    __hash__ = object.__hash__


class Role(_Hashed):
    """Which end of which link: controller-daemon (CONTROLLER, AGENT), or daemon-data plane (DAEMON, DATA_PLANE)."""

    CONTROLLER = "controller"
    AGENT = "agent"
    DAEMON = "daemon"
    DATA_PLANE = "data plane"


INCOMING: Final = {
    Role.CONTROLLER: Direction.A_TO_C,
    Role.AGENT: Direction.C_TO_A,
    Role.DAEMON: Direction.D_TO_A,
    Role.DATA_PLANE: Direction.A_TO_D,
}
OUTGOING: Final = {
    Role.CONTROLLER: Direction.C_TO_A,
    Role.AGENT: Direction.A_TO_C,
    Role.DAEMON: Direction.A_TO_D,
    Role.DATA_PLANE: Direction.D_TO_A,
}

PEER: Final = {
    Role.CONTROLLER: "agent",
    Role.AGENT: "controller",
    Role.DAEMON: "data plane",
    Role.DATA_PLANE: "agent's daemon",
}


OWN: Final = {
    Role.CONTROLLER: PEER[Role.AGENT],
    Role.AGENT: PEER[Role.CONTROLLER],
    Role.DAEMON: PEER[Role.DATA_PLANE],
    Role.DATA_PLANE: PEER[Role.DAEMON],
}


class SessionState(_Hashed):
    """Where a session is in its life."""

    GREETING = "has to send its hello"
    AWAITING_HELLO = "waits for the peer's hello"
    ADMITTING = "has to answer the hello"
    AWAITING_WELCOME = "waits for the answer to its hello"
    OPEN = "open"
    ENDED = "ended"


class Input(_Hashed):
    """What can happen to a session."""

    SEND_HELLO = "send HELLO"
    RECEIVE_HELLO = "receive HELLO"
    SEND_WELCOME = "send a good response to HELLO"
    SEND_REJECTION = "send a bad response to HELLO"
    RECEIVE_WELCOME = "receive a good response to HELLO"
    RECEIVE_REJECTION = "receive a bad response to HELLO"
    SEND_DP_HELLO = "send DP_HELLO"
    RECEIVE_DP_HELLO = "receive DP_HELLO"
    SEND = "send"
    RECEIVE = "receive"
    SEND_GOODBYE = "send GOODBYE"
    RECEIVE_GOODBYE = "receive GOODBYE"
    END_OF_STREAM = "end of the stream"
    PROTOCOL_ERROR = "protocol error"


FIRST_STATE: Final = {
    Role.CONTROLLER: SessionState.AWAITING_HELLO,
    Role.AGENT: SessionState.GREETING,
    Role.DAEMON: SessionState.AWAITING_HELLO,
    Role.DATA_PLANE: SessionState.GREETING,
}

_ENDS: Final = (Input.SEND_GOODBYE, Input.RECEIVE_GOODBYE, Input.END_OF_STREAM, Input.PROTOCOL_ERROR)
_S = SessionState

TRANSITIONS: Final[dict[tuple[Role, SessionState, Input], SessionState]] = {
    (Role.CONTROLLER, _S.AWAITING_HELLO, Input.RECEIVE_HELLO): _S.ADMITTING,
    (Role.CONTROLLER, _S.ADMITTING, Input.SEND_WELCOME): _S.OPEN,
    (Role.CONTROLLER, _S.ADMITTING, Input.SEND_REJECTION): _S.ENDED,
    (Role.CONTROLLER, _S.OPEN, Input.SEND): _S.OPEN,
    (Role.CONTROLLER, _S.OPEN, Input.RECEIVE): _S.OPEN,
    (Role.AGENT, _S.GREETING, Input.SEND_HELLO): _S.AWAITING_WELCOME,
    (Role.AGENT, _S.AWAITING_WELCOME, Input.RECEIVE_WELCOME): _S.OPEN,
    (Role.AGENT, _S.AWAITING_WELCOME, Input.RECEIVE_REJECTION): _S.ENDED,
    (Role.AGENT, _S.OPEN, Input.SEND): _S.OPEN,
    (Role.AGENT, _S.OPEN, Input.RECEIVE): _S.OPEN,
    (Role.DAEMON, _S.AWAITING_HELLO, Input.RECEIVE_DP_HELLO): _S.OPEN,
    (Role.DAEMON, _S.OPEN, Input.SEND): _S.OPEN,
    (Role.DAEMON, _S.OPEN, Input.RECEIVE): _S.OPEN,
    (Role.DATA_PLANE, _S.GREETING, Input.SEND_DP_HELLO): _S.OPEN,
    (Role.DATA_PLANE, _S.OPEN, Input.SEND): _S.OPEN,
    (Role.DATA_PLANE, _S.OPEN, Input.RECEIVE): _S.OPEN,
    **{(role, state, end): _S.ENDED for role in Role for state in _S if state is not _S.ENDED for end in _ENDS},
}
"""What is not here is refused: an input of ours by SessionStateError, one of the peer's by a protocol error."""


def common_version(ours: Versions, hello: Hello | DataPlaneHello) -> int:
    """The highest version that both speak, or 0."""
    highest = min(ours[1], hello.version_max)
    return highest if highest >= max(ours[0], hello.version_min) else 0


def too_far_apart(role: Role, ours: Versions, hello: Hello | DataPlaneHello) -> str:
    """For both logs, where no version is common: who speaks what, and whom to upgrade first."""
    peer, own = PEER[role], OWN[role]
    theirs = (hello.version_min, hello.version_max)
    older = own if theirs[0] > ours[1] else peer
    return (
        f"the {peer} ({hello.software or 'unnamed'}) speaks {_span(theirs)} of the channel, the {own} {_span(ours)}:"
        f" upgrade the {older} first, version by version"
    )


def _span(versions: Versions) -> str:
    low, high = versions
    return f"version {low}" if low == high else f"versions {low} to {high}"
