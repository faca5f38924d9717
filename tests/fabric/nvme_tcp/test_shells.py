"""Server and host on real sockets (loopback), on asyncio's loop and on uvloop's."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from dataplane.embedded.nvme_host import (
    NvmeHostError,
    NvmeStatusError,
    NvmeTcpHost,
    QueueProtocol,
    ReconnectPolicy,
    discover,
)
from dataplane.embedded.nvmf_server import NvmfServer
from fabric.nvme_tcp.command import Command
from fabric.nvme_tcp.host_command import HostCommand
from fabric.nvme_tcp.limits import TransportLimits
from fabric.nvme_tcp.spec import Opcode, Status
from fabric.nvme_tcp.subsystem import Listener
from fabric.nvme_tcp.target_connection import TargetConnection
from tests.fabric.nvme_tcp.rig import (
    BLOCK,
    BLOCKS,
    HOST,
    NQN,
    Rig,
    connect_capsule,
    ic_req,
    property_set,
    read,
    sqe,
)
from tests.fabric.nvme_tcp.test_fuzz import good_pdus, spoil

PATIENCE_S = 20.0
QUICK = ReconnectPolicy(delay=0.01, delay_max=0.05)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def runner(test: Awaitable[None]) -> None:
        async def timed() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await test

        with asyncio.Runner(loop_factory=factory) as each:
            each.run(timed())

    return runner


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until something holds; the runner's timeout is the limit."""
    while not condition():
        await asyncio.sleep(0.001)


class RigBackend:
    """The rig's memory behind the server."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.lost: list[Command] = []
        self.aborted: list[Command] = []

    def execute(self, connection: TargetConnection, commands: list[Command]) -> None:
        self.rig.execute(commands)

    def abort(self, command: Command) -> None:
        self.aborted.append(command)
        self.rig.parked.remove(command)
        command.connection.complete(command, Status.ABORTED_BY_REQUEST)

    def connection_lost(self, connection: TargetConnection, commands: list[Command]) -> None:
        self.lost += commands


class Served:
    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.backend = RigBackend(rig)
        self.server = NvmfServer(rig.target, self.backend)
        self.port = 0
        self.admin: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None  # of raw_host

    async def connect(self, **options: object) -> NvmeTcpHost:
        return await NvmeTcpHost.connect("127.0.0.1", self.port, NQN, HOST, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def served(rig: Rig | None = None) -> AsyncIterator[Served]:
    """A server with the rig's subsystem; nothing of it is left afterwards."""
    with_rig = Served(rig or Rig(TransportLimits(max_io_size=65536, output_size=300_000)))
    listener = await with_rig.server.listen(Listener("127.0.0.1", "0"))
    with_rig.port = int(listener.trsvcid)
    with_rig.rig.target.add_listener(NQN, listener)
    try:
        yield with_rig
    finally:
        await with_rig.server.close()
        for command in with_rig.rig.parked:
            if not command.done:
                command.connection.complete(command, Status.ABORTED_BY_REQUEST)
        assert with_rig.rig.target.connections == {}


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("fast", [True, False])
def test_reading_and_writing(run: Callable[[Awaitable[None]], None], fast: bool, digests: bool) -> None:
    async def test() -> None:
        async with served(Rig(fast=fast)) as at:
            host = await at.connect(header_digest=digests, data_digest=digests, io_queues=3, queue_depth=4)
            data = os.urandom(BLOCKS * BLOCK)
            await host.write(1, 0, data)
            assert bytes(at.rig.memory) == data
            assert await host.read(1, 0, len(data)) == data
            into = bytearray(5 * BLOCK)
            assert await host.read(1, 7 * BLOCK, 5 * BLOCK, into) == into == data[7 * BLOCK : 12 * BLOCK]
            await host.write(1, BLOCK, b"y" * BLOCK, fua=True)
            await host.flush(1)
            await host.write_zeroes(1, 0, 16 * BLOCK)
            await host.deallocate(1, [(32 * BLOCK, 8 * BLOCK)])
            assert at.rig.memory[: 16 * BLOCK] == bytes(16 * BLOCK)
            assert at.rig.memory[32 * BLOCK : 40 * BLOCK] == bytes(8 * BLOCK)
            with pytest.raises(NvmeStatusError, match="LBA_OUT_OF_RANGE"):
                await host.read(1, BLOCKS * BLOCK, BLOCK)
            with pytest.raises(NvmeStatusError, match="INVALID_NAMESPACE"):
                await host.read(2, 0, BLOCK)
            with pytest.raises(ValueError, match="whole blocks"):
                await host.read(1, 1, BLOCK)
            await host.close()
            with pytest.raises(NvmeStatusError, match="HOST_PATH_ERROR"):
                await host.read(1, 0, BLOCK)

    run(test())


def test_what_cannot_be_reached(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with served() as at:
            with pytest.raises(NvmeHostError) as caught:
                await NvmeTcpHost.connect("127.0.0.1", at.port, NQN, "nqn.2026-11.io.segmap:stranger")
            assert caught.value.status & 0x7FF == Status.CONNECT_INVALID_HOST
            with pytest.raises(NvmeHostError):
                await NvmeTcpHost.connect("127.0.0.1", at.port, "nqn.2026-11.io.segmap:nobody", HOST)
            entries = await discover("127.0.0.1", at.port, HOST)
            assert {entry.subnqn for entry in entries} > {NQN}
        with pytest.raises(NvmeHostError):
            await at.connect()

    run(test())


def test_resize_and_removal_are_noticed(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with served() as at:
            changed = asyncio.Event()
            host = await at.connect(on_namespaces=changed.set)
            at.rig.target.resize_namespace(NQN, 1, 100)
            await changed.wait()
            assert host.namespaces[1].block_count == 100
            changed.clear()
            at.rig.target.remove_namespace(NQN, 1)
            await changed.wait()
            assert host.namespaces == {}
            await host.close()

    run(test())


def test_denied_host_is_fenced_once_its_last_command_has_ended(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with served(Rig(fast=False, park=True)) as at:
            lost, restored = asyncio.Event(), asyncio.Event()
            host = await at.connect(
                reconnect=QUICK, on_lost=lambda _reason: lost.set(), on_restored=restored.set, io_queues=1
            )
            writing = asyncio.ensure_future(host.write(1, 0, b"z" * BLOCK))
            await until(lambda: at.rig.parked)
            target = at.rig.target
            target.deny_host(NQN, HOST)
            await lost.wait()
            with pytest.raises(NvmeStatusError, match="HOST_PATH_ERROR"):
                await writing
            await until(lambda: at.backend.lost)
            (pair,) = target.queue_pairs(NQN, HOST)
            assert pair.outstanding() == at.rig.parked
            at.rig.finish(at.rig.parked[0], Status.ABORTED_BY_REQUEST)
            assert target.queue_pairs(NQN, HOST) == []
            await until(lambda: host.lost_reason and "CONNECT_INVALID_HOST" in host.lost_reason)
            assert not host.connected
            target.allow_host(NQN, HOST)
            await restored.wait()
            at.rig.park = False
            await host.write(1, 0, b"w" * BLOCK)
            assert at.rig.memory[:BLOCK] == b"w" * BLOCK
            await host.close()

    run(test())


def test_commands_beyond_the_depth_wait_their_turn(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with served(Rig(fast=False)) as at:
            host = await at.connect(io_queues=2, queue_depth=2)
            ended: list[HostCommand] = []
            for slba in range(100):
                host.submit(HostCommand(Opcode.WRITE, 1, slba, 1, bytes([slba]) * BLOCK, done=ended.append))
            await until(lambda: len(ended) == 100)
            assert all(command.status == 0 for command in ended)
            assert at.rig.memory[: 100 * BLOCK : BLOCK] == bytes(range(100))
            await host.close()

    run(test())


async def raw_host(at: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connected I/O queue of a raw host, beside its admin queue (which is closed with the server)."""
    loop = asyncio.get_running_loop()
    admin_reader, admin_writer = await asyncio.open_connection("127.0.0.1", at.port)
    admin_writer.write(ic_req() + connect_capsule(0))
    await admin_reader.readexactly(128 + 24)
    admin_writer.write(property_set(0x14, 1 | 6 << 16 | 4 << 20))
    await admin_reader.readexactly(24)
    (controller,) = at.rig.target.subsystems[NQN].controllers.values()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.setblocking(False)
    await loop.sock_connect(sock, ("127.0.0.1", at.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=16384)
    writer.write(ic_req() + connect_capsule(1, controller.cntlid, entries=128, no_flow_control=True))
    await reader.readexactly(128 + 24)
    at.admin = (admin_reader, admin_writer)
    return reader, writer


async def end(at: Served, *writers: asyncio.StreamWriter) -> None:
    assert at.admin is not None
    for writer in (*writers, at.admin[1]):
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


def test_a_host_that_does_not_take_its_answers_stops_only_itself(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with served() as at:
            reader, writer = await raw_host(at)
            for at_once in range(4):
                writer.write(b"".join(read(cid, 0, 128) for cid in range(at_once * 32, at_once * 32 + 32)))
            other = await at.connect()
            for _ in range(20):
                assert len(await other.read(1, 0, 4096)) == 4096
            total = 128 * (24 + 128 * BLOCK)
            while total:
                total -= len(await reader.read(min(65536, total)))
            await other.close()
            await end(at, writer)

    run(test())


def test_a_vanished_host_and_one_that_talks_nonsense(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with served(Rig(fast=False, park=True)) as at:
            _, writer = await raw_host(at)
            writer.write(read(1, 0, 1) + read(2, 1, 1))
            await until(lambda: len(at.rig.parked) == 2)
            writer.transport.abort()
            await until(lambda: at.backend.lost)
            assert at.backend.lost == at.rig.parked
            for command in at.rig.parked:
                at.rig.finish(command)
            reader, nonsense = await asyncio.open_connection("127.0.0.1", at.port)
            nonsense.write(b"GET / HTTP/1.1\r\n\r\n")
            answer = await reader.read()
            assert (answer[0], answer[8]) == (3, 1)
            nonsense.close()
            await asyncio.gather(nonsense.wait_closed(), return_exceptions=True)
            await end(at, writer)

    run(test())


def test_abort_reaches_the_backend(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with served(Rig(fast=False, park=True)) as at:
            reader, writer = await raw_host(at)
            writer.write(read(7, 0, 1))
            await until(lambda: at.rig.parked)
            assert at.admin is not None
            admin_reader, admin_writer = at.admin
            entry = sqe(8, 3, 0, 1 | 7 << 16, sgl=(0, 0, 0x5A))
            admin_writer.write(b"\4\0\x48\0\x48\0\0\0" + entry)
            answer = await admin_reader.readexactly(24)
            assert answer[8:12] == bytes(4)
            assert (await reader.readexactly(24))[20] == 7
            assert [command.cid for command in at.backend.aborted] == [7]
            await end(at, writer)

    run(test())


def test_one_socket_for_one_address(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with served() as at:
            listener = Listener("127.0.0.1", str(at.port))
            with pytest.raises(ValueError, match="in use"):
                await at.server.listen(listener)
            host = await at.connect(reconnect=None)
            await at.server.unlisten(listener)
            await until(lambda: not host.connected)
            with pytest.raises(ValueError, match="not in use"):
                await at.server.unlisten(listener)
            await host.close()

    run(test())


@pytest.mark.parametrize("seed", [1, 2])
def test_fuzzed_connections(run: Callable[[Awaitable[None]], None], seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)

    async def one(at: Served) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
        writer.write(spoil(chance, ic_req()) if chance.random() < 0.3 else ic_req())
        for data in chance.choices(good_pdus(chance, chance.randrange(5, 10), [0, 1]), k=3):
            writer.write(spoil(chance, data))
        if chance.random() < 0.5:
            writer.transport.abort()
        else:
            writer.write_eof()
            await asyncio.gather(reader.read(), return_exceptions=True)
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    async def test() -> None:
        async with served() as at:
            host = await at.connect()
            for _ in range(60):
                await one(at)
            assert len(await host.read(1, 0, 4096)) == 4096
            await until(lambda: len(at.rig.target.connections) == 3)
            await host.close()

    run(test())


class Sender:
    """As much of a queue and its session as a connection needs to send something."""

    qid = 1

    def __init__(self, data: bytes) -> None:
        self.data = [data]

    def start(self) -> None:
        """The host speaks first; `data_to_send` has it."""

    def data_to_send(self) -> list[bytes]:
        data, self.data = self.data, []
        return data

    def opened(self, qid: int, protocol: QueueProtocol) -> None:
        self.protocol = protocol

    def lost(self, reason: str) -> None:
        """It has ended."""


@pytest.mark.parametrize("length", [4 << 20, 4096])
def test_what_a_lost_controller_has_not_got_does_not_come_later(
    run: Callable[[Awaitable[None]], None], length: int
) -> None:
    """The host has given its commands up, and may have done them again on another path by then."""

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sender = Sender(bytes(length))
            make = lambda: QueueProtocol(sender, sender)  # type: ignore[arg-type]  # noqa: E731
            await asyncio.get_running_loop().create_connection(make, *server.getsockname())
            deaf, _ = server.accept()
            deaf.settimeout(PATIENCE_S)
            with deaf:
                got = 0
                if length == 4096:
                    got = len(await asyncio.to_thread(deaf.recv, length, socket.MSG_WAITALL))
                sender.protocol.end()
                await asyncio.sleep(0)
                try:
                    while data := await asyncio.to_thread(deaf.recv, 1 << 20):
                        got += len(data)
                except ConnectionResetError:
                    assert got < length
                else:
                    assert got == length == 4096, "nothing was on its way: a proper end"

    run(test())
