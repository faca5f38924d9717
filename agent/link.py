"""One session on one connection: bytes to events, and what is to be sent to bytes, no more than the peer takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from channel.events import Event, SessionEnded
from channel.session import Session, SessionStateError
from mapping.status import Status
from transport.connection import Connection, ConnectionLost, WriteQueueFull

WRITE_BYTES: Final = 1 << 20


class Link:
    """`received(event)` is called for each event in order, and `taken()` when a read has been dealt with.

    After the session's end, or `end`, nothing is called any more.
    """

    def __init__(
        self,
        connection: Connection,
        session: Session,
        received: Callable[[Event], None],
        taken: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.session = session
        self._received = received
        self._taken = taken
        self._over = False

    def start(self) -> None:
        """Begin to read."""
        self.connection.start(self._on_data, self._on_closed, self._on_writable)

    def flush(self) -> None:
        """Write what the session wants to send, unless the peer is slow: then it waits in the session."""
        try:
            while self.connection.writable and (data := self.session.data_to_send(WRITE_BYTES)):
                self.connection.write(data)
        except (ConnectionLost, WriteQueueFull):
            self.connection.abort()

    def pump(self) -> None:
        """Hand on the session's events."""
        for event in self.session.events():
            if self._over:
                return
            if isinstance(event, SessionEnded):
                self._finish()
            self._received(event)

    def end(self, status: Status, reason: str) -> None:
        """Say goodbye and close. What is still queued of the session is dropped."""
        if self._over:
            return
        self._over = True
        if not self.session.ended:
            try:
                self.session.data_to_send()
                self.session.goodbye(status, reason)
            except SessionStateError:
                pass
        self.flush()
        self.connection.close()

    def _finish(self) -> None:
        """The session has ended by itself: its last words, and the end of the connection."""
        self._over = True
        self.flush()
        self.connection.close()

    def _on_data(self, data: bytes | bytearray | memoryview) -> None:
        if self._over:
            return
        self.session.receive_data(data)
        self.pump()
        self._taken()

    def _on_closed(self, error: Exception | None) -> None:
        if self._over:
            return
        self.session.receive_eof()
        self.pump()
        self._taken()

    def _on_writable(self, writable: bool) -> None:
        if writable and not self._over:
            self.flush()
            self.pump()
