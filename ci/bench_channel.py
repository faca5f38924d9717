"""Benchmarks of the channel: codec, sessions, TLS as a core, and all of it over a loopback socket; without a store."""

from __future__ import annotations

import asyncio
import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import uvloop

from channel.codec import decode, encode
from channel.events import NoticeReceived, RequestReceived, ResponseReceived
from channel.handshake import Role
from channel.messages import Done, FaultAnswer, Hello, MapFault, SetEntries, Suspend, Welcome
from channel.session import Session
from channel.values import ENTRIES_MAX, AnswerRecord, FaultRecord, Header
from transport import pki, tcp
from transport.connection import Connection
from transport.tls import TlsContext, TlsLayer

TITLE = "channel and transport, both ends in one process"
GOALS = {
    "faults_64_both_ways_us": ("<=", 40),
    "faults_per_s_codec": (">=", 100_000),
    "entries_per_s_tls": (">=", 5_000_000),
    "faults_answered_per_s_sessions_tls": (">=", 60_000),
}
RUNS = 5
BATCH = 64
STAMPS = Header(1, 2, 3, 4, 5)
FAULTS = MapFault([FaultRecord(number, 4, number, 0, 1, 1, 0, 0, 8) for number in range(BATCH)])
ANSWERS = FaultAnswer([AnswerRecord(number, number, 1, 0, 0) for number in range(BATCH)], array("Q", range(BATCH)))
LOAD = SetEntries(0, ENTRIES_MAX, array("Q", range(ENTRIES_MAX)))


def _seconds(work: Callable[[], Any], count: int) -> float:
    """Median time of one call."""
    times = []
    for _ in range(RUNS):
        began = perf_counter()
        for _ in range(count):
            work()
        times.append((perf_counter() - began) / count)
    return median(times)


def _contexts(directory: Path) -> tuple[TlsContext, TlsContext]:
    pki.init(directory)
    controller, agent = pki.issue(directory, "", "controller"), pki.issue(directory, "a", "agent")
    return (
        TlsContext.server(controller.ca, controller.certificate, controller.key),
        TlsContext.client(agent.ca, agent.certificate, agent.key),
    )


def _layers(server_context: TlsContext, client_context: TlsContext) -> tuple[TlsLayer, TlsLayer]:
    client, server = TlsLayer(client_context), TlsLayer(server_context)
    while not (client.established and server.established):
        client.handshake()
        server.receive_ciphertext(client.data_to_send())
        server.handshake()
        client.receive_ciphertext(server.data_to_send())
    return client, server


def _sessions() -> tuple[Session, Session]:
    controller, agent = Session(Role.CONTROLLER), Session(Role.AGENT)
    agent.send(Hello(1, 1, 1, bytes(16), "a", ""))
    controller.receive_data(b"".join(agent.data_to_send()))
    hello = controller.next_event()
    assert isinstance(hello, RequestReceived)
    controller.respond(hello, Welcome(), Header(1, 2))
    agent.receive_data(b"".join(controller.data_to_send()))
    agent.next_event()
    return controller, agent


def _carry(sender: TlsLayer, receiver: TlsLayer, source: Session, target: Session) -> None:
    sender.send_plaintext(source.data_to_send())
    receiver.receive_ciphertext(sender.data_to_send())
    while data := receiver.read():
        target.receive_data(data)


def _codec() -> dict[str, float]:
    frame, one = encode(FAULTS, STAMPS), MapFault(FAULTS.faults[:1])
    both = _seconds(lambda: decode(encode(FAULTS, STAMPS)), 2000)

    def walk() -> None:
        message = decode(frame).message
        assert isinstance(message, MapFault)
        for _ in message.faults:
            pass

    looked_at = _seconds(walk, 2000)
    return {
        "faults_64_both_ways_us": both * 1e6,
        "faults_64_decode_and_look_us": looked_at * 1e6,
        "fault_1_both_ways_us": _seconds(lambda: decode(encode(one, STAMPS)), 2000) * 1e6,
        "faults_per_s_codec": BATCH / both,
    }


def _over_tls(server_context: TlsContext, client_context: TlsContext) -> dict[str, float]:
    client, server = _layers(server_context, client_context)
    controller, agent = _sessions()

    def faults_and_answers() -> None:
        agent.send(FAULTS, STAMPS)
        _carry(client, server, agent, controller)
        fault = controller.next_event()
        assert isinstance(fault, NoticeReceived) and isinstance(fault.message, MapFault)
        controller.send(ANSWERS, STAMPS)
        _carry(server, client, controller, agent)
        assert isinstance(agent.next_event(), NoticeReceived)

    def load() -> None:
        controller.send(LOAD, STAMPS)
        _carry(server, client, controller, agent)
        request = agent.next_event()
        assert isinstance(request, RequestReceived)
        agent.respond(request, Done())
        _carry(client, server, agent, controller)
        assert isinstance(controller.next_event(), ResponseReceived)

    return {
        "faults_answered_per_s_sessions_tls": BATCH / _seconds(faults_and_answers, 500),
        "entries_per_s_tls": ENTRIES_MAX / _seconds(load, 20),
    }


class _Pump:
    """A session on a connection."""

    def __init__(self, connection: Connection, session: Session, received: Callable[[Any], None]) -> None:
        self.connection = connection
        self.session = session
        self._received = received
        connection.start(self._on_data, lambda error: None)

    def _on_data(self, data: Any) -> None:
        self.session.receive_data(data)
        for event in self.session.events():
            self._received(event)
        self.flush()

    def flush(self) -> None:
        if data := self.session.data_to_send():
            self.connection.write(data)


async def _over_sockets(server_context: TlsContext, client_context: TlsContext, rounds: int) -> float:
    """Seconds of one small command and its response, TLS over TCP on loopback."""
    controller, agent = _sessions()
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    accepted: asyncio.Future[_Pump] = loop.create_future()
    left = rounds

    def at_agent(event: Any) -> None:
        if isinstance(event, RequestReceived):
            agent.respond(event, Done())

    def at_controller(event: Any) -> None:
        nonlocal left
        left -= 1
        if left:
            controller.send(Suspend(), STAMPS)
        elif not done.done():
            done.set_result(None)

    def accept(connection: Connection) -> None:
        accepted.set_result(_Pump(connection, controller, at_controller))

    listener = await tcp.listen("127.0.0.1", 0, accept, tls=server_context)
    end = _Pump(await tcp.connect("127.0.0.1", listener.port, tls=client_context), agent, at_agent)
    pump = await accepted
    began = perf_counter()
    controller.send(Suspend(), STAMPS)
    pump.flush()
    await done
    took = (perf_counter() - began) / rounds
    end.connection.close()
    listener.close()
    await listener.wait_closed()
    return took


def run() -> dict[str, float]:
    """The medians."""
    with tempfile.TemporaryDirectory() as name:
        contexts = _contexts(Path(name))
        trips = [uvloop.run(_over_sockets(*contexts, 2000)) for _ in range(RUNS)]
        return {**_codec(), **_over_tls(*contexts), "command_round_trip_tls_tcp_us": median(trips) * 1e6}
