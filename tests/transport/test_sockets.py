"""TCP and Unix sockets on loopback, on both event loops: bytes, ends, limits at limit + 1, deadlines, descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import stat
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.transport.conftest import Authority
from transport import tcp, unix
from transport.connection import (
    ConnectFailed,
    Connection,
    ConnectionLost,
    Limits,
    Listener,
    WriteQueueFull,
)
from transport.stream import StreamListener
from transport.tls import TlsError, TlsLayer

Run = Callable[[Coroutine[Any, Any, None]], None]
DEADLINE_S = 10.0


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine; then no descriptor of it may be left."""

    def run_and_count(coroutine: Coroutine[Any, Any, None]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(DEADLINE_S):
                await coroutine

        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        request.param(limited())
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before

    return run_and_count


class End:
    """One end: what came, and waiting for it."""

    def __init__(self, connection: Connection, echo: bool = False) -> None:
        self.connection = connection
        self.data = bytearray()
        self.writable: list[bool] = []
        self.closed: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._wanted: list[tuple[int, asyncio.Future[None]]] = []
        self._echo = echo
        connection.start(self._on_data, self.closed.set_result, self.writable.append)

    def _on_data(self, data: Any) -> None:
        self.data += data
        if self._echo:
            self.connection.write([bytes(data)])
        for count, future in self._wanted:
            if len(self.data) >= count and not future.done():
                future.set_result(None)

    async def received(self, count: int) -> bytes:
        """Until so many bytes have come."""
        if len(self.data) < count:
            future = asyncio.get_running_loop().create_future()
            self._wanted.append((count, future))
            await future
        return bytes(self.data)


Kind = Callable[[Callable[[Connection], None], Limits], Awaitable[tuple[Listener, Callable[[], Awaitable[Connection]]]]]


@pytest.fixture(params=["tcp", "tls", "unix"])
def kind(request: pytest.FixtureRequest, authority: Authority, runtime_dir: Path) -> Kind:
    """Makes a listener, and what connects to it."""

    async def make(accept: Callable[[Connection], None], limits: Limits = tcp.DEFAULT_LIMITS) -> Any:
        if request.param == "unix":
            path = runtime_dir / "socket"
            return await unix.listen(path, accept, limits=limits), lambda: unix.connect(path, limits=limits)
        server, client = (authority.server(), authority.client()) if request.param == "tls" else (None, None)
        listener = await tcp.listen("127.0.0.1", 0, accept, tls=server, limits=limits)
        port = listener.port
        return listener, lambda: tcp.connect("127.0.0.1", port, tls=client, limits=limits)

    return make


def test_echo_and_a_proper_end(run: Run, kind: Kind) -> None:
    async def body() -> None:
        servers: list[End] = []
        listener, connect = await kind(lambda connection: servers.append(End(connection, echo=True)), Limits())
        clients = [End(await connect()) for _ in range(3)]
        for number, client in enumerate(clients):
            client.connection.write([b"number ", str(number).encode()])
        for number, client in enumerate(clients):
            assert await client.received(8) == f"number {number}".encode()
        assert listener.connections == 3
        for client in clients:
            client.connection.close()
            client.connection.close()
            with pytest.raises(ConnectionLost):
                client.connection.write([b"x"])
        assert [await client.closed for client in clients] == [None] * 3
        assert [await server.closed for server in servers] == [None] * 3
        listener.close()
        await listener.wait_closed()
        assert listener.connections == 0
        with pytest.raises(ConnectFailed):
            await connect()

    run(body())


def test_everything_written_arrives_before_the_end(run: Run, kind: Kind) -> None:
    async def body() -> None:
        accepted: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        listener, connect = await kind(lambda connection: accepted.set_result(End(connection)), Limits())
        client = End(await connect())
        data = os.urandom(1 << 16) * 48
        client.connection.write([data[:100], memoryview(data)[100 : 1 << 20], data[1 << 20 :]])
        client.connection.close()
        server = await accepted
        assert await server.closed is None and server.data == data and await client.closed is None
        listener.close()
        await listener.wait_closed()

    run(body())


def test_last_words_arrive_though_the_peer_is_talking(run: Run, kind: Kind) -> None:
    async def body() -> None:
        accepted: list[End] = []

        def accept(connection: Connection) -> None:
            accepted.append(End(connection))
            connection.pause()
            connection.write([b"goodbye"])
            connection.close()

        listener, connect = await kind(accept, Limits())
        client = End(await connect())
        with contextlib.suppress(ConnectionLost):
            client.connection.write([bytes(4 << 20)])
        assert await client.received(7) == b"goodbye"
        await client.closed
        listener.close()
        await listener.wait_closed()
        assert await accepted[0].closed is None and not accepted[0].data

    run(body())


def test_backpressure_and_the_write_limit(run: Run, kind: Kind) -> None:
    limits = Limits(write_high_bytes=1 << 20, write_low_bytes=1 << 18, write_max_bytes=16 << 20)

    async def body() -> None:
        accepted: asyncio.Future[End] = asyncio.get_running_loop().create_future()

        def accept(connection: Connection) -> None:
            accepted.set_result(End(connection))
            connection.pause()

        listener, connect = await kind(accept, limits)
        client = End(await connect())
        server = await accepted
        block, sent = bytes(1 << 20), 0
        while client.connection.write_room > len(block) + 4096:
            client.connection.write([block])
            sent += len(block)
        with pytest.raises(WriteQueueFull):
            client.connection.write([block, block])
        assert not client.connection.writable and client.writable == [False] and not server.data
        server.connection.resume()
        await server.received(sent)
        client.connection.write([b"end"])
        assert (await server.received(sent + 3)).endswith(b"end")
        assert client.writable == [False, True] and client.connection.writable
        client.connection.close()
        await server.closed
        listener.close()
        await listener.wait_closed()

    run(body())


def test_abort_and_close_all(run: Run, kind: Kind) -> None:
    async def body() -> None:
        servers: list[End] = []
        listener, connect = await kind(lambda connection: servers.append(End(connection, echo=True)), Limits())
        clients = [End(await connect()) for _ in range(2)]
        for client in clients:
            client.connection.write([b"x"])
            await client.received(1)
        clients[0].connection.abort()
        await clients[0].closed
        await servers[0].closed
        assert listener.connections == 1
        listener.close_all()
        listener.close()
        await listener.wait_closed()
        await clients[1].closed
        await servers[1].closed

    run(body())


def test_connections_max_and_one_more(run: Run, kind: Kind) -> None:
    limits = Limits(connections_max=2)

    async def body() -> None:
        servers: list[End] = []
        listener, connect = await kind(lambda connection: servers.append(End(connection, echo=True)), limits)
        clients = [End(await connect()) for _ in range(2)]
        for client in clients:
            client.connection.write([b"x"])
            await client.received(1)
        try:
            extra = End(await connect())
        except ConnectFailed:
            pass
        else:
            await extra.closed
        assert isinstance(listener, StreamListener) and listener.refused == 1 and len(servers) == 2
        clients[0].connection.close()
        await servers[0].closed
        again = End(await connect())
        again.connection.write([b"y"])
        assert await again.received(1) == b"y"
        listener.close()
        listener.close_all()
        await listener.wait_closed()
        for end in (clients[1], again):
            await end.closed

    run(body())


def test_a_slow_handshake_is_ended_and_half_open_ones_are_limited(run: Run, authority: Authority) -> None:
    limits = Limits(half_open_max=2, handshake_timeout_s=0.15)

    async def body() -> None:
        accepted: list[End] = []
        server = authority.server()
        listener = await tcp.listen("127.0.0.1", 0, lambda made: accepted.append(End(made)), tls=server, limits=limits)
        assert isinstance(listener, StreamListener)
        silent = [End(await tcp.connect("127.0.0.1", listener.port)) for _ in range(2)]
        third = End(await tcp.connect("127.0.0.1", listener.port))
        await third.closed
        assert listener.refused == 1 and listener.half_open == 2
        for end in silent:
            await end.closed
        await listener.wait_closed()
        assert listener.failed == 2 and listener.half_open == 0 and not accepted
        good = End(await tcp.connect("127.0.0.1", listener.port, tls=authority.client()))
        listener.close()
        good.connection.close()
        await good.closed
        await listener.wait_closed()

    run(body())


def test_tls_failures_are_told_on_both_sides(run: Run, authority: Authority) -> None:
    async def body() -> None:
        accepted: list[Connection] = []
        listener = await tcp.listen("127.0.0.1", 0, accepted.append, tls=authority.server())
        assert isinstance(listener, StreamListener)
        with pytest.raises(ConnectFailed, match="certificate refused"):
            await tcp.connect("127.0.0.1", listener.port, tls=authority.client(authority.stranger))
        refused = End(await tcp.connect("127.0.0.1", listener.port, tls=authority.client(authority.expired)))
        assert isinstance(await refused.closed, TlsError)
        plain = End(await tcp.connect("127.0.0.1", listener.port))
        plain.connection.write([b"hello in the clear\r\n"])
        await plain.closed
        await listener.wait_closed()
        assert listener.failed == 3 and not accepted
        listener.close()

    run(body())


@pytest.mark.parametrize("seed", [1, 2])
def test_junk_harms_nobody_else(run: Run, authority: Authority, seed: int) -> None:
    chance = random.Random(seed)

    async def body() -> None:
        servers: list[End] = []
        tls = authority.server()
        listener = await tcp.listen("127.0.0.1", 0, lambda made: servers.append(End(made, echo=True)), tls=tls)
        assert isinstance(listener, StreamListener)
        good = End(await tcp.connect("127.0.0.1", listener.port, tls=authority.client()))
        hello = first_flight(authority)
        for number in range(30):
            bad = End(await tcp.connect("127.0.0.1", listener.port))
            junk = bytearray(hello)
            junk[chance.randrange(5)] = chance.randrange(256)
            with contextlib.suppress(ConnectionLost):
                bad.connection.write([chance.choice([junk, chance.randbytes(200), hello[: chance.randrange(60)]])])
            end = bad.connection.close if number % 2 else bad.connection.abort
            end()
            await bad.closed
            good.connection.write([b"x"])
            assert len(await good.received(number + 1)) == number + 1
        good.connection.close()
        await listener.wait_closed()
        assert listener.failed == 30 and listener.half_open == 0 and len(servers) == 1
        listener.close()

    run(body())


def first_flight(authority: Authority) -> bytes:
    """What a TLS client sends first."""
    layer = TlsLayer(authority.client())
    layer.handshake()
    return layer.data_to_send()


def test_a_silent_server_does_not_hold_a_tls_client(run: Run, authority: Authority) -> None:
    async def body() -> None:
        held: list[End] = []
        listener = await tcp.listen("127.0.0.1", 0, lambda connection: held.append(End(connection)))
        limits = Limits(handshake_timeout_s=0.1)
        with pytest.raises(ConnectFailed, match="handshake took"):
            await tcp.connect("127.0.0.1", listener.port, tls=authority.client(), limits=limits)
        listener.close()
        await listener.wait_closed()

    run(body())


def test_a_cancelled_connect_leaves_nothing(run: Run, authority: Authority) -> None:
    async def body() -> None:
        arrived = asyncio.Event()
        held: list[End] = []

        def accept(connection: Connection) -> None:
            held.append(End(connection))
            arrived.set()

        listener = await tcp.listen("127.0.0.1", 0, accept)
        task = asyncio.create_task(tcp.connect("127.0.0.1", listener.port, tls=authority.client()))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        listener.close()
        await listener.wait_closed()

    run(body())


def test_connect_says_what_is_wrong(run: Run) -> None:
    async def body() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            with pytest.raises(ConnectFailed, match="does something listen there"):
                await tcp.connect("127.0.0.1", port)
            with pytest.raises(OSError):
                await tcp.listen("127.0.0.1", port, lambda connection: None)
        with full_backlog() as port, pytest.raises(ConnectFailed, match=r"no answer in 0\.05 s"):
            await tcp.connect("127.0.0.1", port, connect_timeout_s=0.05)

    run(body())


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """The port of a socket that listens but has no room: a connect to it gets no answer."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()[1]


def test_tcp_options_and_addresses(run: Run) -> None:
    async def body() -> None:
        accepted: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        listener = await tcp.listen("127.0.0.1", 0, lambda connection: accepted.set_result(End(connection)))
        client = End(await tcp.connect("127.0.0.1", listener.port))
        assert client.connection.peer.address == f"127.0.0.1:{listener.port}" and not client.connection.peer.identity
        server = await accepted
        for end in (client, server):
            transport = end.connection._transport  # type: ignore[attr-defined]
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        client.connection.close()
        await server.closed
        listener.close()
        await listener.wait_closed()

    run(body())


def test_unix_paths(run: Run, runtime_dir: Path) -> None:
    async def body() -> None:
        path = runtime_dir / "s"
        listener = await unix.listen(path, End)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and listener.port == 0
        with pytest.raises(unix.AddressInUse, match="something listens there"):
            await unix.listen(path, End)
        await listener_idle(listener)
        listener.close()
        assert not path.exists()
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(path))
        stale.close()
        with pytest.raises(ConnectFailed, match="does something listen"):
            await unix.connect(path)
        listener = await unix.listen(path, End)
        listener.close()
        path.write_text("precious")
        with pytest.raises(unix.AddressInUse, match="no socket"):
            await unix.listen(path, End)
        assert path.read_text() == "precious"
        with pytest.raises(OSError, match="at most 107 bytes"):
            await unix.listen(runtime_dir / ("x" * 108), End)
        with pytest.raises(ConnectFailed):
            await unix.connect(runtime_dir / "none")

    run(body())


async def listener_idle(listener: Listener) -> None:
    """Until probes of the path have come and gone."""
    await listener.wait_closed()


def test_a_peer_that_does_not_read_cannot_hold_a_close(run: Run) -> None:
    limits = Limits(close_timeout_s=0.1)

    async def body() -> None:
        accepted: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        listener = await tcp.listen("127.0.0.1", 0, accepted.set_result)
        client = End(await tcp.connect("127.0.0.1", listener.port, limits=limits))
        await accepted
        client.connection.write([bytes(32 << 20)])
        client.connection.close()
        await client.closed
        listener.close()
        listener.close_all()
        await listener.wait_closed()

    run(body())
