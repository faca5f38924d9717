"""What happens to the controller (events, past tense) and what it wants done (effects, imperative, executed in order).

A `session` is the shell's number of one channel connection, never used twice. An `attempt` is the core's number of one
sending of a command: its response comes back with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from channel.values import Header
from controller.store.audit import Finding
from controller.store.interface import Batch, StoreState
from mapping.status import Status

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A connection whose peer has proved to be `peer` (an agent's name)."""

    session: int
    peer: str


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A message that is no response to a command: HELLO, a notice, a fault."""

    session: int
    header: Header
    message: Any


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """The answer to a command sent as `attempt`."""

    session: int
    attempt: int
    message: Any


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The connection is gone, whoever ended it."""

    session: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BatchCommitted:
    """The batch of `Persist(token)` is durable."""

    token: int


@dataclass(frozen=True, slots=True)
class OperationRequested:
    """An operator asks; `token` is the shell's."""

    token: int
    operation: str
    args: Mapping[str, Any]
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class LeadershipLost:
    """Another controller reigns, or may: nothing is granted or answered any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class StoreWasRead:
    """The answer to ReadStore: what the store says, if it could be read whole, and what is wrong with it."""

    token: int
    state: StoreState | None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class ConditionChanged:
    """The shell has noticed something that is wrong (`severity` warning or alarm), or, with info, no longer is."""

    kind: str
    subject: str
    severity: str
    text: str


@dataclass(frozen=True, slots=True)
class StoreSpaceChanged:
    """The store is full, says `full`, and commits wait; or, empty, they go on."""

    full: str


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing but the time."""


Event = (
    SessionOpened
    | MessageReceived
    | ResponseReceived
    | SessionEnded
    | BatchCommitted
    | OperationRequested
    | LeadershipLost
    | StoreWasRead
    | ConditionChanged
    | StoreSpaceChanged
    | TimePassed
)


@dataclass(frozen=True, slots=True)
class Persist:
    """Commit, then step(BatchCommitted(token))."""

    batch: Batch
    token: int


@dataclass(frozen=True, slots=True)
class Send:
    """Put a message on a session. `attempt` is not 0 if a response is wanted."""

    session: int
    message: Any
    header: Header
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer the session's HELLO."""

    session: int
    message: Any
    header: Header


@dataclass(frozen=True, slots=True)
class Close:
    """Say GOODBYE and end the session."""

    session: int
    status: Status
    detail: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of an operation."""

    token: int
    result: Result


@dataclass(frozen=True, slots=True)
class RefuseOperation:
    """An operation did not work: why, and what to do about it."""

    token: int
    code: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Log:
    """Tell the operator's log."""

    severity: str
    text: str


@dataclass(frozen=True, slots=True)
class ReadStore:
    """Read the store back, with everything that is committed by now, then step(StoreWasRead(token))."""

    token: int


@dataclass(frozen=True, slots=True)
class Depose:
    """Stop: a higher term reigns."""

    reason: str


Effect = Persist | Send | Welcome | Close | Reply | RefuseOperation | Log | ReadStore | Depose
