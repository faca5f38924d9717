"""A link between session and connection: what a slow peer, an ended session and a broken connection do to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agent.link import Link
from channel.events import Event, NoticeReceived, OutputPaused, OutputResumed, SessionEnded, SessionOpened
from channel.handshake import Role
from channel.messages import DataPlaneHello, Epoch, LeaseGrant, TableStatus
from channel.session import Limits, Session
from mapping.status import Status
from transport.connection import Connection, ConnectionLost


class Loopback(Connection):
    """A connection whose other end is the test."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.takes = True
        self.broken = self.closed = self.aborted = False
        self.on_data: Callable[[Any], None]
        self.on_closed: Callable[[Exception | None], None]
        self.on_writable: Callable[[bool], None]

    def start(self, on_data: Any, on_closed: Any, on_writable: Any = None) -> None:
        self.on_data, self.on_closed, self.on_writable = on_data, on_closed, on_writable

    def write(self, buffers: Sequence[Any]) -> None:
        if self.broken:
            raise ConnectionLost("gone")
        self.written += [bytes(buffer) for buffer in buffers]

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    @property
    def write_bytes(self) -> int:
        return 0

    @property
    def write_room(self) -> int:
        return 1 << 20 if self.takes else 0

    @property
    def writable(self) -> bool:
        return self.takes


class Ends:
    """A daemon's link, and the data plane's session at the other end."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.connection = Loopback()
        self.events: list[Event] = []
        self.turns = 0
        self.link = Link(self.connection, Session(Role.DAEMON, limits), self.events.append, self._taken)
        self.plane = Session(Role.DATA_PLANE)
        self.link.start()
        self.plane.send(DataPlaneHello(1, 1, bytes(16), "test"))
        self.say()

    def _taken(self) -> None:
        self.turns += 1

    def say(self) -> None:
        """What the data plane's session has to send arrives."""
        for data in self.plane.data_to_send():
            self.connection.on_data(data)

    def hear(self) -> list[Event]:
        for data in self.connection.written:
            self.plane.receive_data(data)
        self.connection.written.clear()
        return list(self.plane.events())


def test_events_arrive_and_each_read_is_a_turn() -> None:
    ends = Ends()
    assert isinstance(ends.events[0], SessionOpened) and ends.turns == 1
    ends.plane.send(Epoch())
    ends.say()
    assert isinstance(ends.events[1], NoticeReceived) and ends.turns == 2


def test_what_is_sent_is_written_once_a_turn() -> None:
    ends = Ends()
    ends.link.session.send(TableStatus())
    assert not ends.connection.written
    ends.link.flush()
    ends.link.flush()
    assert len(ends.hear()) == 1


def test_a_slow_peer_is_waited_for_in_the_session() -> None:
    ends = Ends(Limits(output_high_bytes=1000, output_low_bytes=100))
    ends.connection.takes = False
    for _ in range(40):
        ends.link.session.send(LeaseGrant(1, 2))
    ends.link.flush()
    ends.link.pump()
    assert not ends.connection.written and isinstance(ends.events[-1], OutputPaused)
    ends.connection.takes = True
    ends.connection.on_writable(True)
    assert isinstance(ends.events[-1], OutputResumed)
    assert len(ends.hear()) == 40


def test_the_end_of_the_connection_is_the_end_of_the_session_once() -> None:
    ends = Ends()
    ends.connection.on_closed(None)
    ends.connection.on_closed(None)
    ended = [event for event in ends.events if isinstance(event, SessionEnded)]
    assert len(ended) == 1 and ends.connection.closed


def test_a_goodbye_closes_the_connection() -> None:
    ends = Ends()
    ends.plane.goodbye(Status.INTERNAL, "enough")
    ends.say()
    assert isinstance(ends.events[-1], SessionEnded) and ends.events[-1].detail == "enough"
    assert ends.connection.closed


def test_bad_bytes_end_it_with_a_goodbye() -> None:
    ends = Ends()
    ends.connection.on_data(b"\xff" * 64)
    assert isinstance(ends.events[-1], SessionEnded) and ends.events[-1].error is not None
    (last,) = ends.hear()
    assert isinstance(last, SessionEnded) and last.by_peer


def test_our_end_drops_what_is_queued_and_says_goodbye() -> None:
    ends = Ends()
    ends.link.session.send(TableStatus())
    ends.link.end(Status.CANCELLED, "the target is gone")
    ends.link.end(Status.CANCELLED, "again")
    assert ends.connection.closed
    (last,) = ends.hear()
    assert isinstance(last, SessionEnded) and last.detail == "the target is gone"
    before = len(ends.events)
    ends.connection.on_data(b"late")
    ends.connection.on_closed(None)
    assert len(ends.events) == before, "nothing is told after our end"


def test_a_broken_connection_is_aborted() -> None:
    ends = Ends()
    ends.connection.broken = True
    ends.link.session.send(TableStatus())
    ends.link.flush()
    assert ends.connection.aborted


def test_a_long_reason_is_cut() -> None:
    ends = Ends()
    ends.link.end(Status.STALE_TERM, "x" * 2000)
    (last,) = ends.hear()
    assert isinstance(last, SessionEnded) and (last.status, last.detail) == (Status.STALE_TERM, "x" * 1024)
