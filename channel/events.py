"""What a session tells its owner. Past tense: it has happened; `SessionEnded` is the last event, exactly once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from channel.errors import ProtocolError
from channel.messages import DataPlaneHello, Message, Response, Welcome
from channel.values import Header, MessageType
from mapping.status import Status


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """To be answered with `Session.respond`, or relayed. `frame`: the whole frame as received."""

    header: Header
    type: MessageType
    message: Message
    frame: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NoticeReceived:
    """A message that has no response."""

    header: Header
    type: MessageType
    message: Message
    frame: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """The response to a request of ours; `context` is what was given to `Session.send`."""

    header: Header
    type: MessageType
    message: Response
    frame: bytes = field(repr=False)
    context: Any


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """The peer's half of the handshake: the agent got its Welcome (status OK), the daemon the DataPlaneHello."""

    header: Header
    message: Welcome | DataPlaneHello
    version: int


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """Nothing is received or sent any more. `error` if one end broke the protocol and we noticed."""

    status: Status
    detail: str
    by_peer: bool
    error: ProtocolError | None = None


@dataclass(frozen=True, slots=True)
class OutputPaused:
    """More than the high water mark is queued: make less."""

    output_bytes: int


@dataclass(frozen=True, slots=True)
class OutputResumed:
    """Less than the low water mark is queued again."""

    output_bytes: int


Event = (
    RequestReceived | NoticeReceived | ResponseReceived | SessionOpened | SessionEnded | OutputPaused | OutputResumed
)
