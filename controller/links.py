"""One agent's connection at the controller: bytes to events of its session, and back. A thin shell."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from channel.events import RequestReceived
from channel.handshake import Role
from channel.messages import Message, Response, short
from channel.session import LimitReached, PeerTooOld, Session, SessionStateError
from channel.values import Header
from mapping.status import Status
from transport.connection import Connection, ConnectionLost, WriteQueueFull

_log: Final = logging.getLogger("segmap.controller")
IDENTITY_PREFIX: Final = "segmap:agent:"


class Link:
    """`arrived(link)` is called when its session has events; `number` is never used twice."""

    def __init__(self, number: int, connection: Connection, arrived: Callable[[Link], None]) -> None:
        self.number = number
        self.connection = connection
        self.session = Session(Role.CONTROLLER)
        self.hello: RequestReceived | None = None
        self.told_end = False
        self._arrived = arrived

    @property
    def peer(self) -> str:
        """The agent's name, as its certificate says."""
        return self.connection.peer.identity.removeprefix(IDENTITY_PREFIX)

    def start(self) -> None:
        self.connection.start(self._data, self._closed)

    def _data(self, buffer: Any) -> None:
        self.session.receive_data(buffer)
        self._arrived(self)

    def _closed(self, error: Exception | None) -> None:
        self.session.receive_eof()
        self._arrived(self)

    def send(self, message: Message, header: Header, attempt: int) -> None:
        """Queue a message. A peer that does not read ends its session."""
        if self.session.ended:
            return
        try:
            self.session.send(message, header, attempt)
        except PeerTooOld as error:
            _log.warning("controller: not sent to agent %s: %s", self.peer, error)
        except (LimitReached, SessionStateError) as error:
            self.close(Status.LIMIT, str(error))

    def welcome(self, message: Response, header: Header) -> None:
        """Answer the HELLO."""
        if self.hello is not None and not self.session.ended:
            self.session.respond(self.hello, message, header)
        self.hello = None

    def close(self, status: Status, detail: str) -> None:
        """GOODBYE; the connection follows once that is written."""
        if not self.session.ended:
            self.session.goodbye(status, short(detail))

    def flush(self) -> None:
        """Write what is queued; close if the session has ended."""
        data = self.session.data_to_send()
        try:
            if data:
                self.connection.write(data)
        except (ConnectionLost, WriteQueueFull):
            self.connection.abort()
            return
        if self.session.ended:
            self.connection.close()
