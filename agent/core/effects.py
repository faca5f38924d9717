"""What the agent's core is told (events, past tense) and what it asks for (effects, imperative, executed in order)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from channel.events import NoticeReceived, RequestReceived, ResponseReceived
from channel.messages import Message, Response, Welcome
from channel.values import Header
from mapping.status import Status
from spdk_rpc.call import Call

Received = RequestReceived | NoticeReceived | ResponseReceived

# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The daemon begins its life."""


@dataclass(frozen=True, slots=True)
class TargetStarted:
    """The target answers JSON-RPC. `identity`: 16 bytes that no other target process will ever have."""

    identity: bytes
    adopted: bool


@dataclass(frozen=True, slots=True)
class TargetExited:
    """The target's process is gone for certain, or could not be started."""

    reason: str


@dataclass(frozen=True, slots=True)
class TargetSilent:
    """The target's process lives, but has not answered JSON-RPC several times in a row."""

    reason: str


@dataclass(frozen=True, slots=True)
class DataPlaneUp:
    """The data plane's socket is connected, and its DP_HELLO has come."""

    instance: bytes
    header: Header


@dataclass(frozen=True, slots=True)
class DataPlaneDown:
    """The data plane's socket could not be connected, or its session has ended."""

    reason: str
    status: Status = Status.CANCELLED


@dataclass(frozen=True, slots=True)
class SessionUp:
    """Connected to a controller; nothing has been said yet."""


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The controller answered HELLO with OK."""

    welcome: Welcome
    header: Header


@dataclass(frozen=True, slots=True)
class SessionDown:
    """The controller could not be reached, refused HELLO (`status`), or the session has ended."""

    reason: str
    status: Status = Status.CANCELLED


@dataclass(frozen=True, slots=True)
class FromController:
    """A message of the open session."""

    received: Received


@dataclass(frozen=True, slots=True)
class FromDataPlane:
    received: Received


@dataclass(frozen=True, slots=True)
class NotRelayed:
    """A request could not be passed on to the data plane: a limit of its session is reached."""

    received: RequestReceived
    reason: str


@dataclass(frozen=True, slots=True)
class CallDone:
    """What was asked for with this token has ended; `failure` None means that `value` is its value.

    Failures: an RpcFailure of a call to the target, Unanswered by the data plane, an OSError of a file.
    """

    token: int
    value: object = None
    failure: Exception | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Started
    | TargetStarted
    | TargetExited
    | TargetSilent
    | DataPlaneUp
    | DataPlaneDown
    | SessionUp
    | Welcomed
    | SessionDown
    | FromController
    | FromDataPlane
    | CallDone
    | NotRelayed
    | Tick
)

# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendController:
    """A message of ours to the controller."""

    message: Message
    header: Header


@dataclass(frozen=True, slots=True)
class RespondController:
    """Answer a request of the controller's session that is open now."""

    request: RequestReceived
    response: Response


@dataclass(frozen=True, slots=True)
class RelayController:
    """What came from the data plane goes on as it is."""

    received: Received


@dataclass(frozen=True, slots=True)
class SendDataPlane:
    """A request of ours to the data plane; its response comes back with `token` as its context."""

    message: Message
    header: Header
    token: int


@dataclass(frozen=True, slots=True)
class RelayDataPlane:
    """What came from the controller goes on as it is."""

    received: Received


@dataclass(frozen=True, slots=True)
class CallTarget:
    """CallDone(token) follows."""

    token: int
    call: Call[Any]


@dataclass(frozen=True, slots=True)
class CreateFile:
    """Sparse, unless it is there. CallDone(token) follows."""

    token: int
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StartTarget:
    """Adopt the running target, or start one. TargetStarted or TargetExited follows."""


@dataclass(frozen=True, slots=True)
class StopTarget:
    """End the target's process; TargetExited follows."""

    reason: str


@dataclass(frozen=True, slots=True)
class ConnectDataPlane:
    """After the delay. DataPlaneUp or DataPlaneDown follows."""

    delay_ns: int


@dataclass(frozen=True, slots=True)
class CloseDataPlane:
    """DataPlaneDown does not follow."""

    reason: str


@dataclass(frozen=True, slots=True)
class ConnectController:
    """After the delay, jittered; the next one of the addresses each time. SessionUp or SessionDown follows."""

    delay_ns: int


@dataclass(frozen=True, slots=True)
class CloseController:
    """SessionDown does not follow. What is still to be sent of the session is dropped."""

    reason: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """Somebody should look at this."""

    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """For the log."""

    text: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The target is up and everything that is to be exported is."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The daemon cannot do its work; it ends with an error."""

    reason: str


Effect = (
    SendController
    | RespondController
    | RelayController
    | SendDataPlane
    | RelayDataPlane
    | CallTarget
    | CreateFile
    | StartTarget
    | StopTarget
    | ConnectDataPlane
    | CloseDataPlane
    | ConnectController
    | CloseController
    | Alarm
    | Note
    | Ready
    | GiveUp
)
