"""TLS over memory: both know each other or nothing goes; wrong authority, expired, wrong role, plaintext, cut, junk."""

from __future__ import annotations

import random
import ssl
from pathlib import Path
from typing import Any

import pytest

from tests.transport.conftest import Authority
from transport.connection import Connection, ConnectionLost, Limits, WriteQueueFull
from transport.memory import Timeline, Wire
from transport.tls import TlsConnection, TlsContext, TlsError, TlsLayer


class End:
    """One end of a TLS connection over a wire, and what happened to it."""

    def __init__(self, lower: Connection, context: TlsContext, timeline: Timeline) -> None:
        self.connection: Connection | None = None
        self.failure: Exception | None = None
        self.data = bytearray()
        self.closed: list[Exception | None] = []
        self._tls = TlsConnection(lower, context, self._ready, self._failed, timeline.call_soon)

    def begin(self) -> None:
        self._tls.begin()

    def _ready(self, connection: Connection) -> None:
        assert self.connection is None and self.failure is None
        self.connection = connection
        connection.start(self._on_data, self.closed.append)

    def _failed(self, error: Exception) -> None:
        assert self.connection is None and self.failure is None
        self.failure = error

    def _on_data(self, data: Any) -> None:
        self.data += data

    @property
    def open(self) -> Connection:
        assert self.connection is not None, self.failure
        return self.connection


def ends(server: TlsContext, client: TlsContext, **keywords: Any) -> tuple[Timeline, Wire, End, End]:
    """(timeline, wire, client end, server end), not yet run."""
    timeline = Timeline()
    wire = Wire(timeline, **keywords)
    made = End(wire.a, client, timeline), End(wire.b, server, timeline)
    made[1].begin()
    made[0].begin()
    return timeline, wire, *made


def established(authority: Authority, **keywords: Any) -> tuple[Timeline, Wire, End, End]:
    timeline, wire, client, server = ends(authority.server(), authority.client(), **keywords)
    timeline.run_idle()
    assert client.open.peer.identity == "segmap:controller" and server.open.peer.identity == "segmap:agent:a"
    return timeline, wire, client, server


def test_both_know_each_other_and_bytes_arrive(authority: Authority) -> None:
    timeline, _, client, server = established(authority)
    client.open.write([b"hello ", bytearray(b"there"), memoryview(b"!")])
    server.open.write([bytes(300_000)])
    timeline.run_idle()
    assert server.data == b"hello there!" and client.data == bytes(300_000)
    client.open.close()
    timeline.run_idle()
    assert client.closed == [None] and server.closed == [None]
    with pytest.raises(ConnectionLost):
        client.open.write([b"x"])


def test_byte_by_byte(authority: Authority) -> None:
    timeline, _, client, server = established(authority, chunk=lambda length: 1)
    client.open.write([b"abc"])
    server.open.write([b"defg"])
    server.open.close()
    timeline.run_idle()
    assert server.data in (b"", b"abc") and client.data == b"defg" and client.closed == [None]


@pytest.mark.parametrize("seed", range(5))
def test_random_chunks_both_ways(authority: Authority, seed: int) -> None:
    chance = random.Random(seed)
    timeline, _, client, server = established(
        authority, chunk=lambda length: chance.randrange(1, length + 1), delay_ns=lambda length: chance.randrange(50)
    )
    sent = {id(end): bytearray() for end in (client, server)}
    for _ in range(40):
        end = chance.choice((client, server))
        buffers = [chance.randbytes(chance.randrange(3000)) for _ in range(chance.randrange(4))]
        end.open.write(buffers)
        sent[id(end)] += b"".join(buffers)
        timeline.run_until(timeline.now_ns + chance.randrange(60))
    timeline.run_idle()
    assert server.data == sent[id(client)] and client.data == sent[id(server)]


def refusal(authority: Authority, server: TlsContext, client: TlsContext) -> tuple[Exception | None, Exception | None]:
    """(why the client, why the server) has no connection in the end."""
    timeline, _, client_end, server_end = ends(server, client)
    timeline.run_idle()
    assert not client_end.data and not server_end.data
    reasons = [end.failure or (end.closed[0] if end.closed else None) for end in (client_end, server_end)]
    return reasons[0], reasons[1]


def test_a_stranger_is_refused_by_both(authority: Authority) -> None:
    client, server = refusal(authority, authority.server(), authority.client(authority.stranger))
    assert isinstance(client, TlsError) and "certificate refused" in str(client)
    trusting = TlsContext.client(authority.agent.ca, authority.stranger.certificate, authority.stranger.key)
    client, server = refusal(authority, authority.server(), trusting)
    assert isinstance(server, TlsError) and "certificate refused" in str(server)
    assert isinstance(client, TlsError) and "unknown ca" in str(client)


@pytest.mark.parametrize(("files", "word"), [("expired", "expired"), ("early", "not yet valid")])
def test_times_are_checked(authority: Authority, files: str, word: str) -> None:
    client, server = refusal(authority, authority.server(), authority.client(getattr(authority, files)))
    assert isinstance(server, TlsError) and word in str(server)
    assert client is not None


def test_an_agent_is_no_controller(authority: Authority) -> None:
    client, server = refusal(authority, authority.server(authority.agent), authority.client())
    assert isinstance(client, TlsError) and "certificate refused" in str(client)
    client, server = refusal(authority, authority.server(), authority.client(expect="segmap:agent:b"))
    assert isinstance(client, TlsError) and "expected segmap:agent:b" in str(client)
    assert server is not None
    client, server = refusal(authority, authority.server(roles=("controller",)), authority.client())
    assert isinstance(server, TlsError) and "its role is agent" in str(server)
    assert client is not None


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + bytes(600), bytes(2000)])
def test_a_plaintext_client_is_refused(authority: Authority, junk: bytes) -> None:
    timeline = Timeline()
    wire = Wire(timeline)
    server = End(wire.b, authority.server(), timeline)
    server.begin()
    closed: list[Exception | None] = []
    wire.a.start(lambda data: None, closed.append)
    wire.a.write([junk])
    timeline.run_idle()
    assert isinstance(server.failure, TlsError) and len(closed) == 1


def test_no_client_certificate_is_refused(authority: Authority) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(authority.agent.ca)
    anonymous = TlsContext(context, server=False, accept=lambda identity: "")
    client, server = refusal(authority, authority.server(), anonymous)
    assert isinstance(server, TlsError) and "peer did not return a certificate" in str(server)
    assert isinstance(client, TlsError)


def test_older_tls_is_refused(authority: Authority) -> None:
    context = authority.client()
    context.context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.context.maximum_version = ssl.TLSVersion.TLSv1_2
    client, server = refusal(authority, authority.server(), context)
    assert isinstance(server, TlsError) and "unsupported protocol" in str(server) and client is not None


def test_an_end_without_close_notify_is_a_truncation(authority: Authority) -> None:
    timeline, wire, client, server = established(authority)
    client.open.write([b"all of it"])
    timeline.run_idle()
    wire.a.close()
    timeline.run_idle()
    assert server.data == b"all of it"
    (error,) = server.closed
    assert isinstance(error, ConnectionLost) and "cut" in str(error)


@pytest.mark.parametrize("kept", range(0, 3000, 150))
def test_a_cut_anywhere_ends_both(authority: Authority, kept: int) -> None:
    timeline, wire, client, server = ends(authority.server(), authority.client())
    wire.cut_after(kept, a_to_b=True)
    timeline.run_idle()
    for end in (client, server):
        if end.connection is not None and not end.closed:
            end.open.write([bytes(4000)])
    timeline.run_idle()
    for end in (client, server):
        assert len(end.closed) == (end.connection is not None) and (end.failure is None) == (end.connection is not None)
        assert isinstance(end.failure or end.closed[0], ConnectionLost)


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_ends_the_connection(authority: Authority, seed: int) -> None:
    chance = random.Random(seed)
    client, server = TlsLayer(authority.client()), TlsLayer(authority.server())
    shake(client, server)
    client.send_plaintext([b"something"])
    data = bytearray(client.data_to_send())
    data[chance.randrange(5, len(data))] ^= 1 << chance.randrange(8)
    server.receive_ciphertext(data)
    with pytest.raises(TlsError):
        server.read()


def shake(client: TlsLayer, server: TlsLayer) -> None:
    """The handshake of two cores."""
    for _ in range(5):
        client.handshake()
        server.receive_ciphertext(client.data_to_send())
        server.handshake()
        client.receive_ciphertext(server.data_to_send())
    assert client.established and server.established


def test_the_core_alone(authority: Authority) -> None:
    client, server = TlsLayer(authority.client()), TlsLayer(authority.server())
    assert not server.handshake() and not client.handshake()
    shake(client, server)
    assert client.handshake() and client.identity == "segmap:controller" and server.identity == "segmap:agent:a"
    assert server.read() == b""
    client.send_plaintext([b"a", b"", b"b"])
    one_record = client.data_to_send()
    assert len(one_record) == 2 + 22
    server.receive_ciphertext(one_record)
    assert server.read() == b"ab" and server.read() == b"" and not server.ended
    client.send_plaintext([])
    assert client.data_to_send() == b""
    client.send_end()
    server.receive_ciphertext(client.data_to_send())
    assert server.read() == b"" and server.ended


def test_pause_holds_plaintext_and_the_peer(authority: Authority) -> None:
    timeline, _, client, server = established(authority)
    server.open.pause()
    client.open.write([b"first"])
    timeline.run_idle()
    assert not server.data and client.open.write_bytes > 0
    server.open.resume()
    timeline.run_idle()
    assert server.data == b"first"


def test_a_pause_within_delivery_holds_the_rest(authority: Authority) -> None:
    timeline, wire, client, _ = ends(authority.server(), authority.client())
    got: list[bytes] = []
    kept: list[Connection] = []
    timeline = Timeline()
    wire = Wire(timeline)
    client = End(wire.a, authority.client(), timeline)

    def ready(connection: Connection) -> None:
        def on_data(data: Any) -> None:
            got.append(bytes(data))
            connection.pause()

        kept.append(connection)
        connection.start(on_data, lambda error: None)

    server = TlsConnection(wire.b, authority.server(), ready, lambda error: None, timeline.call_soon)
    server.begin()
    client.begin()
    timeline.run_idle()
    for piece in (b"one", b"two", b"three"):
        client.open.write([piece])
    timeline.run_idle()
    assert got == [b"one"]
    for count in (2, 3):
        kept[0].resume()
        timeline.run_idle()
        assert len(got) == count


def test_a_pause_right_after_start_holds(authority: Authority) -> None:
    timeline = Timeline()
    wire = Wire(timeline)
    client = End(wire.a, authority.client(), timeline)
    got: list[bytes] = []

    def ready(connection: Connection) -> None:
        connection.start(lambda data: got.append(bytes(data)), lambda error: None)
        connection.pause()

    TlsConnection(wire.b, authority.server(), ready, lambda error: None, timeline.call_soon).begin()
    client.begin()
    timeline.run_idle()
    client.open.write([b"x"])
    timeline.run_idle()
    assert not got


def test_an_end_before_start_is_told(authority: Authority) -> None:
    timeline = Timeline()
    wire = Wire(timeline)
    client = End(wire.a, authority.client(), timeline)
    kept: list[Connection] = []
    TlsConnection(wire.b, authority.server(), kept.append, lambda error: None, timeline.call_soon).begin()
    client.begin()
    timeline.run_idle()
    wire.cut()
    timeline.run_idle()
    closed: list[Exception | None] = []
    kept[0].start(lambda data: None, closed.append)
    timeline.run_idle()
    assert len(closed) == 1 and isinstance(closed[0], ConnectionLost)


def test_a_full_queue_takes_nothing_and_breaks_nothing(authority: Authority) -> None:
    limits = Limits(write_high_bytes=1000, write_low_bytes=100, write_max_bytes=50_000)
    timeline, _, client, server = established(authority, limits=limits)
    server.open.pause()
    client.open.write([bytes(40_000)])
    assert not client.open.writable
    with pytest.raises(WriteQueueFull):
        client.open.write([bytes(10_000)])
    client.open.write([bytes(5_000)])
    server.open.resume()
    timeline.run_idle()
    assert len(server.data) == 45_000 and client.open.writable and not client.closed


def test_abort_is_seen_as_a_loss(authority: Authority) -> None:
    timeline, _, client, server = established(authority)
    client.open.abort()
    timeline.run_idle()
    assert client.closed == [None] and isinstance(server.closed[0], ConnectionLost)


def test_unusable_files(authority: Authority, tmp_path: Path) -> None:
    files = authority.agent
    with pytest.raises(TlsError, match="segmap pki"):
        TlsContext.client(tmp_path / "none.pem", files.certificate, files.key)
    with pytest.raises(TlsError):
        TlsContext.client(files.ca, authority.controller.certificate, files.key)
    loose = tmp_path / "loose.key"
    loose.write_bytes(files.key.read_bytes())
    loose.chmod(0o640)
    with pytest.raises(TlsError, match="chmod 600"):
        TlsContext.client(files.ca, files.certificate, loose)


def test_a_certificate_needs_exactly_one_name(authority: Authority) -> None:
    """An authority's own certificate has no identity: it cannot be used as an agent's."""
    directory = authority.directory
    bare = TlsContext.client(directory / "ca.pem", directory / "ca.pem", directory / "ca.key")
    client, server = refusal(authority, authority.server(), bare)
    assert isinstance(server, TlsError) and client is not None
