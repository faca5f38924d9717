"""One session: bytes in, events out; messages in, bytes out. Both ends of both links use it, and nothing else.

Invariants: a session is opened once and ended once, `SessionEnded` is its last event. A response is given only to a
request of ours that waits for it, and answers each request once. After the end nothing is parsed and nothing is sent.
At most `inflight_out_max` requests of ours and `inflight_in_max` of the peer's wait for a response.
Events are bounded by what is fed: take them all after each `receive_data`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from channel.codec import Frame, decode, encode, encode_response, with_request_id, with_version
from channel.errors import ProtocolError
from channel.events import (
    Event,
    NoticeReceived,
    OutputPaused,
    OutputResumed,
    RequestReceived,
    ResponseReceived,
    SessionEnded,
    SessionOpened,
)
from channel.framing import Buffer, FrameReader
from channel.handshake import (
    FIRST_STATE,
    HANDSHAKE_VERSION,
    INCOMING,
    OUTGOING,
    PEER,
    TRANSITIONS,
    VERSION_FREE,
    Input,
    Role,
    SessionState,
    Versions,
    common_version,
    too_far_apart,
)
from channel.messages import (
    ROW_OF,
    ROWS,
    TABLE,
    DataPlaneHello,
    Goodbye,
    Hello,
    Message,
    Response,
    Welcome,
    response_to,
    short,
)
from channel.values import VERSION, VERSION_MIN, Header, MessageType
from mapping.status import Status

VERSIONS: Final = (VERSION_MIN, VERSION)
REQUEST_ID_MAX: Final = (1 << 64) - 1
NO_STAMPS: Final = Header()


class SessionStateError(Exception):
    """We sent what this session, in its state, does not allow. After the end: everything."""


class PeerTooOld(SessionStateError):
    """The peer's version does not know this notice: nothing was sent. Ask `knows` first."""


class LimitReached(Exception):
    """A named limit of this session is reached: nothing was sent. Wait for responses, or end the session."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Requests in flight per direction; bytes queued: pause above high, resume below low, refuse above max."""

    inflight_out_max: int = 1024
    inflight_in_max: int = 1024
    output_high_bytes: int = 4 << 20
    output_low_bytes: int = 1 << 20
    output_max_bytes: int = 64 << 20


class Session:
    """One end of a session. `versions`: lowest and highest that we speak. Not reusable after its end."""

    def __init__(self, role: Role, limits: Limits | None = None, versions: Versions = VERSIONS) -> None:
        self.role = role
        self.limits = limits or Limits()
        self.versions = versions
        self.version = 0
        self.state = FIRST_STATE[role]
        self.output_bytes = 0
        self.output_paused = False
        self._sendable = frozenset(row.kind for row in TABLE if row.directions & OUTGOING[role])
        self._receivable = frozenset(row.kind for row in TABLE if row.directions & INCOMING[role])
        self._reader = FrameReader()
        self._events: deque[Event] = deque()
        self._output: deque[bytes] = deque()
        self._request_ids = 0
        self._outstanding: dict[int, tuple[MessageType, Any]] = {}
        self._unanswered: dict[int, RequestReceived] = {}

    # --- what the owner may ask --------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self.state is SessionState.ENDED

    def knows(self, kind: MessageType) -> bool:
        """True if the version that was chosen knows this type of message."""
        return ROWS[kind].since <= max(self.version, HANDSHAKE_VERSION)

    @property
    def requests_free(self) -> int:
        """How many more requests may be sent now."""
        return self.limits.inflight_out_max - len(self._outstanding)

    @property
    def unanswered(self) -> int:
        """How many requests of the peer wait for our response."""
        return len(self._unanswered)

    def awaits_response(self, request: RequestReceived) -> bool:
        """True if this very request was received by this session, which has not ended, and has no response yet."""
        return not self.ended and self._unanswered.get(request.header.request_id) is request

    def outstanding(self) -> list[tuple[int, Any]]:
        """(request id, context) of our requests without a response, oldest first; also after the end."""
        return [(request_id, context) for request_id, (_, context) in self._outstanding.items()]

    def next_event(self) -> Event | None:
        """The oldest event not taken yet."""
        return self._events.popleft() if self._events else None

    def events(self) -> Iterator[Event]:
        """All events, those included that come while they are handled."""
        while self._events:
            yield self._events.popleft()

    def data_to_send(self, bytes_max: int | None = None) -> list[bytes]:
        """Take what is queued, in order: everything, or whole frames until `bytes_max` is reached."""
        taken: list[bytes] = []
        if bytes_max is None:
            taken.extend(self._output)
            self._output.clear()
            self.output_bytes = 0
        else:
            size = 0
            while self._output and size < bytes_max:
                taken.append(self._output.popleft())
                size += len(taken[-1])
            self.output_bytes -= size
        if self.output_paused and self.output_bytes <= self.limits.output_low_bytes:
            self.output_paused = False
            if not self.ended:
                self._events.append(OutputResumed(self.output_bytes))
        return taken

    # --- out ---------------------------------------------------------------------------------------------------------

    def send(self, message: Message, header: Header = NO_STAMPS, context: Any = None) -> int:
        """Queue a request (its id is returned, its response brings `context`) or a notice (0 is returned).

        A request that the peer does not know is answered by ourselves: BAD_VERSION.
        Raises SessionStateError, LimitReached, FieldError; then nothing has changed.
        """
        row = ROW_OF.get(type(message))
        if row is None or header.request_id:
            raise SessionStateError(f"{type(message).__name__}: no request or notice, or with a request id")
        state = self._sending(row.kind, _sent(row.kind))
        version = HANDSHAKE_VERSION if row.kind in VERSION_FREE else self.version
        if not self.knows(row.kind):
            return self._too_old(row.kind, header, context)
        if row.response is None:
            frame = encode(message, header, version=version)
            if isinstance(message, Goodbye):
                self._append(frame)
            else:
                self._queue(frame)
            self._moved_by_notice(state, message)
            return 0
        request_id = self._next_request_id()
        self._queue(encode(message, header._replace(request_id=request_id), version=version))
        self.state = state
        self._await_response(request_id, row.kind, context)
        return request_id

    def respond(self, request: RequestReceived, response: Response, header: Header | None = None) -> None:
        """Answer a request of the peer's. `header` None: with the stamps of the request. Raises as `send`."""
        self._answerable(request)
        stamps = header or request.header
        stamps = stamps._replace(request_id=request.header.request_id, blocking=False)
        if request.type is not MessageType.HELLO:
            state = self._sending(None, Input.SEND)
        else:
            state = self._sending(None, Input.SEND_REJECTION if response.status else Input.SEND_WELCOME)
        self._queue(encode_response(request.type, response, stamps, version=self.version or HANDSHAKE_VERSION))
        del self._unanswered[request.header.request_id]
        self.state = state
        if self.ended:
            self._end(SessionEnded(response.status, response.detail, by_peer=False))

    def relay(self, received: RequestReceived | NoticeReceived | ResponseReceived) -> int:
        """Send on what another session received, without making it anew; the request id of a request, else 0.

        A request gets an id of this session, and its response brings `received` as its context. A response answers
        its context, which must be a request that this session received. Raises as `send`.
        """
        if isinstance(received, ResponseReceived):
            request = received.context
            if not isinstance(request, RequestReceived):
                raise SessionStateError(f"response to {received.type.name}: its request was not relayed")
            self._answerable(request)
            state = self._sending(None, Input.SEND)
            self._queue(with_request_id(self._versioned(received.frame), request.header.request_id))
            del self._unanswered[request.header.request_id]
            self.state = state
            return 0
        state = self._sending(received.type, _sent(received.type))
        if not self.knows(received.type):
            return self._too_old(received.type, received.header, received)
        if isinstance(received, NoticeReceived):
            self._queue(self._versioned(received.frame))
            return 0
        request_id = self._next_request_id()
        self._queue(with_request_id(self._versioned(received.frame), request_id))
        self._await_response(request_id, received.type, received)
        return request_id

    def goodbye(self, status: Status, detail: str = "") -> None:
        """Queue GOODBYE, and end."""
        self.send(Goodbye(status, short(detail)))

    def _too_old(self, kind: MessageType, header: Header, context: Any) -> int:
        """What the peer's version does not know is not sent."""
        peer = PEER[self.role]
        why = f"{kind.name} needs version {ROWS[kind].since} of the channel, with the {peer} it is {self.version}"
        detail = f"{why}: upgrade the {peer}"
        if ROWS[kind].response is None:
            raise PeerTooOld(detail)
        response = response_to(kind, Status.BAD_VERSION, detail)
        request_id = self._next_request_id()
        self._request_ids = request_id
        stamps = header._replace(request_id=request_id, blocking=False)
        frame = encode_response(kind, response, stamps, version=self.version)
        self._events.append(ResponseReceived(stamps, kind, response, frame, context))
        return request_id

    def _sending(self, kind: MessageType | None, way: Input) -> SessionState:
        state = TRANSITIONS.get((self.role, self.state, way))
        if state is None:
            raise SessionStateError(f"{self.role.value} cannot {way.value}: the session {_doing(self.state)}")
        if kind is not None and kind not in self._sendable:
            raise SessionStateError(f"{self.role.value} does not send {kind.name}")
        return state

    def _moved_by_notice(self, state: SessionState, message: Message) -> None:
        self.state = state
        if isinstance(message, DataPlaneHello):
            self.version = self.versions[0]
        elif isinstance(message, Goodbye):
            self._end(SessionEnded(message.status, message.detail, by_peer=False))

    def _answerable(self, request: RequestReceived) -> None:
        if self.ended:
            raise SessionStateError(f"response to {request.type.name}: the session has ended")
        if not self.awaits_response(request):
            raise SessionStateError(f"request {request.header.request_id} ({request.type.name}) does not wait here")

    def _versioned(self, frame: bytes) -> bytes:
        return with_version(frame, self.version)

    def _next_request_id(self) -> int:
        if len(self._outstanding) >= self.limits.inflight_out_max:
            raise LimitReached(f"{len(self._outstanding)} requests wait for a response (inflight_out_max)")
        request_id = self._request_ids + 1
        assert request_id <= REQUEST_ID_MAX
        return request_id

    def _await_response(self, request_id: int, kind: MessageType, context: Any) -> None:
        self._request_ids = request_id
        self._outstanding[request_id] = (kind, context)

    def _queue(self, frame: bytes) -> None:
        size = self.output_bytes + len(frame)
        if size > self.limits.output_max_bytes:
            raise LimitReached(f"{size} bytes queued (output_max_bytes {self.limits.output_max_bytes})")
        self._append(frame)

    def _append(self, frame: bytes) -> None:
        self._output.append(frame)
        self.output_bytes += len(frame)
        if self.output_bytes > self.limits.output_high_bytes and not self.output_paused:
            self.output_paused = True
            self._events.append(OutputPaused(self.output_bytes))

    # --- in ----------------------------------------------------------------------------------------------------------

    def receive_data(self, data: Buffer) -> None:
        """Received bytes, in any chunks. Never raises for their content: a bad peer ends the session."""
        if self.ended:
            return
        self._reader.feed(data)
        try:
            while not self.ended and (data_ := self._reader.next_frame()) is not None:
                self._receive(decode(data_))
        except ProtocolError as error:
            self._fail(error)

    def receive_eof(self) -> None:
        """The connection has ended, by whomever."""
        if self.ended:
            return
        cut = self._reader.incomplete_bytes
        self._move(Input.END_OF_STREAM)
        detail = f"the connection ended inside a frame, after {cut} bytes" if cut else "the connection ended"
        self._end(SessionEnded(Status.CANCELLED, detail, by_peer=True))

    def _receive(self, frame: Frame) -> None:
        if frame.type not in VERSION_FREE and not self.versions[0] <= frame.version <= self.versions[1]:
            raise ProtocolError("header.version", f"{frame.version} is not spoken here", Status.BAD_VERSION)
        if frame.response:
            self._receive_response(frame)
            return
        if frame.type not in self._receivable:
            raise ProtocolError("header.type", f"{frame.type.name} is not for the {self.role.value}")
        self._move(_received(frame.type))
        if frame.type in VERSION_FREE:
            self._receive_handshake(frame, frame.message)
        elif frame.header.request_id:
            self._receive_request(frame)
        else:
            self._adopt_version(frame.version)
            self._events.append(NoticeReceived(frame.header, frame.type, frame.message, frame.data))

    def _receive_handshake(self, frame: Frame, message: Message) -> None:
        if isinstance(message, Goodbye):
            self._end(SessionEnded(message.status, message.detail, by_peer=True))
        else:
            assert isinstance(message, Hello | DataPlaneHello)
            self._receive_hello(frame, message)

    def _receive_hello(self, frame: Frame, hello: Hello | DataPlaneHello) -> None:
        if not 0 < hello.version_min <= hello.version_max:
            raise ProtocolError("HELLO.version_min", f"versions {hello.version_min} to {hello.version_max}")
        self.version = common_version(self.versions, hello)
        detail = too_far_apart(self.role, self.versions, hello)
        if isinstance(hello, Hello):
            self._receive_request(frame)
            if not self.version:
                event = self._events.pop()
                assert isinstance(event, RequestReceived)
                self.respond(event, Welcome(Status.BAD_VERSION, detail))
        elif self.version:
            self._events.append(SessionOpened(frame.header, hello, self.version))
        else:
            self.goodbye(Status.BAD_VERSION, detail)

    def _receive_request(self, frame: Frame) -> None:
        request_id = frame.header.request_id
        if request_id in self._unanswered:
            raise ProtocolError("header.request_id", f"{request_id} is used twice")
        if len(self._unanswered) >= self.limits.inflight_in_max:
            raise ProtocolError("header", f"more than {self.limits.inflight_in_max} requests at once", Status.LIMIT)
        self._adopt_version(frame.version)
        request = RequestReceived(frame.header, frame.type, frame.message, frame.data)
        self._unanswered[request_id] = request
        self._events.append(request)

    def _receive_response(self, frame: Frame) -> None:
        kind, context = self._outstanding.get(frame.header.request_id, (None, None))
        if kind is not frame.type:
            raise ProtocolError(
                "header.request_id", f"no {frame.type.name} request {frame.header.request_id} waits for a response"
            )
        message = frame.message
        assert isinstance(message, Response)
        if isinstance(message, Welcome):
            self._receive_welcome(frame, message)
        else:
            self._move(Input.RECEIVE)
            self._events.append(ResponseReceived(frame.header, frame.type, message, frame.data, context))
        del self._outstanding[frame.header.request_id]

    def _receive_welcome(self, frame: Frame, welcome: Welcome) -> None:
        if welcome.status:
            self._move(Input.RECEIVE_REJECTION)
            self._end(SessionEnded(welcome.status, welcome.detail, by_peer=True))
            return
        if not self.versions[0] <= frame.version <= self.versions[1]:
            raise ProtocolError("header.version", f"{frame.version} was not offered", Status.BAD_VERSION)
        self._move(Input.RECEIVE_WELCOME)
        self.version = frame.version
        self._events.append(SessionOpened(frame.header, welcome, frame.version))

    def _adopt_version(self, version: int) -> None:
        """The daemon's first frame tells the data plane which version was chosen."""
        if self.role is Role.DATA_PLANE:
            self.version = version

    def _move(self, way: Input) -> None:
        state = TRANSITIONS.get((self.role, self.state, way))
        if state is None:
            raise ProtocolError("session", f"{self.role.value} cannot {way.value}: the session {_doing(self.state)}")
        self.state = state

    # --- the end -----------------------------------------------------------------------------------------------------

    def _fail(self, error: ProtocolError) -> None:
        self._move(Input.PROTOCOL_ERROR)
        detail = short(str(error))
        self._append(encode(Goodbye(error.status, detail), version=HANDSHAKE_VERSION))
        self._end(SessionEnded(error.status, detail, by_peer=False, error=error))

    def _end(self, event: SessionEnded) -> None:
        self.state = SessionState.ENDED
        self._reader.clear()
        self._events.append(event)


_SENT: Final = {
    MessageType.HELLO: Input.SEND_HELLO,
    MessageType.DP_HELLO: Input.SEND_DP_HELLO,
    MessageType.GOODBYE: Input.SEND_GOODBYE,
}
_RECEIVED: Final = {
    MessageType.HELLO: Input.RECEIVE_HELLO,
    MessageType.DP_HELLO: Input.RECEIVE_DP_HELLO,
    MessageType.GOODBYE: Input.RECEIVE_GOODBYE,
}


def _sent(kind: MessageType) -> Input:
    return _SENT.get(kind, Input.SEND)


def _received(kind: MessageType) -> Input:
    return _RECEIVED.get(kind, Input.RECEIVE)


def _doing(state: SessionState) -> str:
    return {SessionState.OPEN: "is open", SessionState.ENDED: "has ended"}.get(state, state.value)
