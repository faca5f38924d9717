"""The controller's end of sessions, by hand: a real TLS listener that welcomes agents and keeps what they say."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from channel.events import Event, RequestReceived, ResponseReceived, SessionEnded
from channel.handshake import Role
from channel.messages import Hello, LeaseGrant, LeaseRenew, Message, Response, Welcome
from channel.session import Session
from channel.values import Header
from mapping.status import Status
from transport import pki, tcp
from transport.connection import Connection
from transport.tls import TlsContext

SECOND = 1_000_000_000
CLUSTER = b"c" * 16
PATIENCE_S = 20.0


class AgentSession:
    """One agent's session. Grants leases by itself; `said` is everything else."""

    def __init__(self, owner: ScriptedController, connection: Connection) -> None:
        self.owner = owner
        self.connection = connection
        self.session = Session(Role.CONTROLLER)
        self.said: asyncio.Queue[Event] = asyncio.Queue()
        self.hello: Hello | None = None
        self.header = Header()
        connection.start(self._on_data, self._on_closed)

    def _on_data(self, data: Any) -> None:
        self.session.receive_data(data)
        self._take()

    def _on_closed(self, _: Exception | None) -> None:
        self.session.receive_eof()
        self._take()

    def _take(self) -> None:
        for event in self.session.events():
            if isinstance(event, RequestReceived) and isinstance(event.message, Hello):
                self.hello = event.message
                self.header = Header(1, self.owner.incarnation_of(event.message.instance), event.header.epoch)
                self.session.respond(event, self.owner.welcome(event.message), self.header)
                self.owner.arrived.put_nowait(self)
            elif isinstance(getattr(event, "message", None), LeaseRenew):
                if self.owner.grants:
                    grant = LeaseGrant(event.message.sent_ns, 10 * SECOND)  # type: ignore[union-attr]
                    self.session.send(grant, event.header._replace(request_id=0))  # type: ignore[union-attr]
            else:
                self.said.put_nowait(event)
        self.flush()

    def flush(self) -> None:
        data = self.session.data_to_send()
        if data and not self.session.ended:
            self.connection.write(data)
        elif data:
            self.connection.write(data)
            self.connection.close()

    async def hear(self, kind: type) -> Any:
        """The next event whose message is of that class, or the next SessionEnded."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                event = await self.said.get()
                if isinstance(event, kind) or isinstance(getattr(event, "message", None), kind):
                    return event
                assert not isinstance(event, SessionEnded), event

    async def order(self, message: Message, table: int = 0) -> Response:
        """A command, and its response."""
        self.session.send(message, self.header._replace(table=table))
        self.flush()
        return (await self.hear(ResponseReceived)).message  # type: ignore[no-any-return]


class ScriptedController:
    """`refusal`: what HELLO is answered instead of a welcome."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.arrived: asyncio.Queue[AgentSession] = asyncio.Queue()
        self.grants = True
        self.refusal = Status.OK
        self.port = 0
        self._listener: tcp.Listener | None = None
        self._incarnations: dict[bytes, int] = {}
        pki.init(directory)
        self.files = pki.issue(directory, "controller", "controller")

    async def start(self) -> None:
        context = TlsContext.server(self.files.ca, self.files.certificate, self.files.key, {"agent"})
        self._listener = await tcp.listen("127.0.0.1", self.port, self._accept, tls=context)
        self.port = self._listener.port

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        self._listener.close_all()
        await self._listener.wait_closed()

    def _accept(self, connection: Connection) -> None:
        AgentSession(self, connection)

    def incarnation_of(self, instance: bytes) -> int:
        return self._incarnations.setdefault(instance, len(self._incarnations) + 1)

    def welcome(self, _: Hello) -> Welcome:
        if self.refusal:
            return Welcome(self.refusal, "because")
        return Welcome(Status.OK, "", CLUSTER, 1, 10 * SECOND, SECOND, 30 * SECOND, 20 * SECOND)

    async def session(self) -> AgentSession:
        """The next agent that says HELLO."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.arrived.get()
