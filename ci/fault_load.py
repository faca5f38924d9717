"""A load generator for the controller: agents that say yes to everything, and fault as fast as they are answered.

One connection is the exporter of one large container, the other a mapper without a data plane: it answers every command
with OK at once and sends write faults of ZERO segments, a given number outstanding, spread over the vdisk so that
nothing is sequential. `null_controller` answers the same faults from nothing: the generator's own ceiling.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from channel import messages as m
from channel.events import NoticeReceived, RequestReceived, SessionEnded, SessionOpened
from channel.fields import plain
from channel.handshake import Role
from channel.session import Session
from channel.values import Header
from mapping.entry import ZERO_ENTRY
from mapping.plane import REPLACE
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from transport import pki, tcp
from transport.connection import Connection
from transport.tls import TlsContext

SEGMENT_SIZE: Final = 1 << 20
CONTAINER_SEGMENTS: Final = 1 << 24
STRIDE: Final = 7_368_787
"""Odd, so it visits every segment of a vdisk of 2^n; far, so that no two faults are neighbours."""
POLL_S: Final = 0.0005
"""After a message the generator looks for the next one for so long before it sleeps."""
WRITE: Final = int(FaultKind.WRITE)
WRITE_OPERATION: Final = int(Operation.WRITE)


def context(directory: Path, name: str) -> TlsContext:
    """The TLS side of an agent."""
    files = pki.files(directory, name, "agent")
    return TlsContext.client(files.ca, files.certificate, files.key, "segmap:controller")


class Agent:
    """A session with the controller that answers every command with OK."""

    def __init__(self, name: str, roles: int) -> None:
        self.name = name
        self.roles = roles
        self.session = Session(Role.AGENT)
        self.incarnation = self.term = 0
        self.number = 0
        self.welcomed: asyncio.Future[m.Welcome] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.requests: list[str] = []

    async def connect(self, port: int, directory: Path, instance: bytes) -> None:
        """Connect and be admitted."""
        self.connection: Connection = await tcp.connect("127.0.0.1", port, tls=context(directory, self.name))
        self.connection.start(self._data, self._closed)
        self.session.send(m.Hello(1, 1, self.roles, instance, self.name, "load"), Header())
        self.flush()
        await asyncio.wait_for(asyncio.shield(self.welcomed), 20)

    def _closed(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(str(error))

    def flush(self) -> None:
        data = self.session.data_to_send()
        if data:
            self.connection.write(data)

    def _data(self, buffer: Any) -> None:
        self.session.receive_data(buffer)
        for event in self.session.events():
            self._event(event)
        self.flush()

    def _event(self, event: Any) -> None:
        if isinstance(event, NoticeReceived):
            self.noticed(event.header, event.message)
        elif isinstance(event, RequestReceived):
            self.requests.append(type(event.message).__name__)
            self.session.respond(event, self.response(event.message))
        elif isinstance(event, SessionOpened) and isinstance(event.message, m.Welcome):
            self.term, self.incarnation = event.header.term, event.header.incarnation
            self.number = event.message.agent_number
            self.welcomed.set_result(event.message)
        elif isinstance(event, SessionEnded) and not self.welcomed.done():
            self.welcomed.set_exception(ConnectionError(f"{event.status.name} {event.detail}"))

    def response(self, message: m.Message) -> m.Response:
        """OK to whatever it is; its table holds nothing."""
        if isinstance(message, m.AttachContainer):
            return m.Attached(Status.OK, "", message.segment_count, 512, False)
        if isinstance(message, m.Present):
            return m.Presented(Status.OK, "", "127.0.0.1", "4420", "TCP")
        if isinstance(message, m.GetEntries):
            return m.EntriesRead(Status.OK, "", array("Q", bytes(8 * message.count)))
        return m.Done()

    def noticed(self, header: Header, message: m.Message) -> None:
        """A notice came; an exporter gets none."""

    def export(self, name: str, segments: int) -> None:
        """Say that there is a container to be had."""
        blocks = segments * SEGMENT_SIZE // 512
        nqn = f"nqn.2026-11.io.segmap:container:{name}"
        self.session.send(
            m.Export(1, 512, blocks, bytes(range(16)), True, name, "127.0.0.1", "4420", "TCP", nqn), self.header()
        )
        self.flush()

    def header(self) -> Header:
        return Header(self.term, self.incarnation, 1)


@dataclass(slots=True)
class Run:
    """What one run at a depth has seen; latencies only at depth 1."""

    answered: int = 0
    began: float = 0.0
    ended: float = 0.0
    latencies: list[float] | None = None

    @property
    def rate(self) -> float:
        return self.answered / (self.ended - self.began)


class Faulter(Agent):
    """A mapper that faults. Each segment of `table` is written once, in the order of STRIDE."""

    def __init__(self, name: str, segments: int) -> None:
        super().__init__(name, 1)
        self.table = 0
        self.next_fault = 0
        self._mask = segments - 1
        self._run: Run | None = None
        self._wanted = 0
        self._sent_at = 0.0
        self._stamps = Header()
        self._done: Callable[[], None] = lambda: None
        self._poll_until = 0.0
        self._polling = False
        self.failures = 0
        self.grants = 0

    async def run(self, depth: int, faults: int) -> Run:
        """Keep `depth` outstanding until `faults` are answered."""
        finished = asyncio.get_running_loop().create_future()
        self._run = run = Run(latencies=[] if depth == 1 else None)
        self._stamps = self.header()
        self._wanted = faults
        self._done = lambda: None if finished.done() else finished.set_result(None)
        run.began = perf_counter()
        self._send(depth)
        self.flush()
        await finished
        self._run = None
        return run

    def _send(self, count: int) -> None:
        base, mask, table = self.next_fault, self._mask, self.table
        self.next_fault += count
        if self._run is not None and self._run.latencies is not None:
            self._sent_at = perf_counter()
        faults = [
            (n + 1, table, n * STRIDE & mask, ZERO_ENTRY, WRITE_OPERATION, WRITE, 2, 0, 8)
            for n in range(base, base + count)
        ]
        self.session.send(m.MapFault(faults), self._stamps)  # type: ignore[arg-type]

    def _data(self, buffer: Any) -> None:
        super()._data(buffer)
        self._poll_until = perf_counter() + POLL_S
        if not self._polling:
            self._poll()

    def _poll(self) -> None:
        """Keep the loop turning: it looks at its sockets at each turn, and does not sleep."""
        self._polling = perf_counter() < self._poll_until
        if self._polling:
            asyncio.get_running_loop().call_soon(self._poll)

    def noticed(self, header: Header, message: m.Message) -> None:
        run = self._run
        if not isinstance(message, m.FaultAnswer) or run is None:
            self.grants += isinstance(message, m.LeaseGrant)
            return
        count = len(message.answers)
        self.failures += count - [action for _, _, _, action, _ in plain(message.answers)].count(REPLACE)
        run.answered += count
        if run.latencies is not None:
            run.latencies.append(perf_counter() - self._sent_at)
        if run.answered < self._wanted:
            self._send(count)
        else:
            run.ended = perf_counter()
            self._done()


class _NullLink:
    """The far end of a generator that measures itself: every fault is answered from nothing."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.session = Session(Role.CONTROLLER)
        connection.start(self._data, lambda error: None)

    def _data(self, buffer: Any) -> None:
        self.session.receive_data(buffer)
        for event in self.session.events():
            if isinstance(event, RequestReceived):
                self.session.respond(event, m.Welcome(Status.OK, "", bytes(16), 1, 1, 1, 1, 1), Header(1, 1))
            elif isinstance(event, NoticeReceived) and isinstance(event.message, m.MapFault):
                answers = [(fault[0], fault[2], 1, REPLACE, 0) for fault in plain(event.message.faults)]
                entries = [fault[2] << 16 | 1 for fault in plain(event.message.faults)]
                self.session.send(m.FaultAnswer(answers, entries), Header(1, 1, 1, 1, 1))  # type: ignore[arg-type]
        self.connection.write(self.session.data_to_send())


async def null_controller(directory: Path) -> tuple[Any, int]:
    """A listener to measure the generator against; (listener, port)."""
    files = pki.files(directory, "controller", "controller")
    tls = TlsContext.server(files.ca, files.certificate, files.key, {"agent"})
    links: list[_NullLink] = []
    listener = await tcp.listen("127.0.0.1", 0, lambda connection: links.append(_NullLink(connection)), tls=tls)
    return listener, listener.port
