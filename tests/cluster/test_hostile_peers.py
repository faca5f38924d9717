"""Every listener of a running cluster under junk: it lives, leaks nothing, and a host's verified I/O beside it goes on.

Listeners: the channel (in front of TLS, and behind it with a good certificate), NVMe/TCP of a container host and of a
mapping agent, the JSON-RPC sockets, the data plane's socket, the HTTP API. The junk is random, or begins as the real
thing and is then damaged. Bounded; the seed is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.config import AgentConfig
from channel.codec import encode
from channel.handshake import Role
from channel.messages import Hello, MapFault
from channel.session import Session
from channel.values import FaultRecord, Header
from controller.config import ControllerConfig
from dataplane.embedded.nvme_host import NvmeTcpHost
from tests.cluster.cluster import MIB, Cluster, pause
from tests.cluster.test_disk import disk, pattern
from transport import pki, tcp
from transport.connection import ConnectionLost, WriteQueueFull
from transport.tls import TlsContext

if TYPE_CHECKING:
    from tests.cluster.conftest import Stage

SEEDS = (11,)
ROUNDS_WARM = 2
ROUNDS = 6
MEMORY_GROWTH_MAX = 24 * MIB
ANSWER_MAX_S = 0.2
Throw = Callable[[random.Random], Awaitable[None]]

ICREQ = bytes([0, 0, 128, 0]) + (128).to_bytes(4, "little") + bytes(120)
RPC = b'{"jsonrpc": "2.0", "id": 1, "method": "bdev_get_bdevs", "params": {"name": "x"}}'
HTTP = b"POST /v1/vdisks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n"


def damaged(chance: random.Random, good: bytes) -> bytes:
    """Noise, or the real thing with some bytes changed, cut off, or followed by noise."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 5000))
    data = bytearray(good)
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    if kind == 1:
        return bytes(data[: chance.randrange(1, len(data) + 1)])
    return bytes(data) + (chance.randbytes(chance.randrange(5000)) if kind == 2 else bytes(data) * 20)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send, look at what comes for a moment, and vanish."""
    with contextlib.suppress(ConnectionError, TimeoutError):
        writer.write(data)
        await writer.drain()
        await asyncio.wait_for(reader.read(65536), ANSWER_MAX_S)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def at_path(path: Path, good: bytes) -> Throw:
    async def throw(chance: random.Random) -> None:
        with contextlib.suppress(ConnectionError):
            await exchange(*await asyncio.open_unix_connection(str(path)), damaged(chance, good))

    return throw


def at_port(port: int, good: bytes) -> Throw:
    async def throw(chance: random.Random) -> None:
        with contextlib.suppress(ConnectionError):
            await exchange(*await asyncio.open_connection("127.0.0.1", port), damaged(chance, good))

    return throw


def channel_bytes() -> bytes:
    """A HELLO in the name of agent a, which the certificate does not carry, and a fault behind it."""
    session = Session(Role.AGENT)
    session.send(Hello(1, 1, 1, b"i" * 16, "a", "junk", ()), Header())
    fault = MapFault([FaultRecord(1, 1 << 32, 5, 0, 1, 1, 0, 0, 8)])
    return b"".join(session.data_to_send()) + encode(fault, Header(1, 1, 1))


def behind_tls(made: Cluster, port: int) -> Throw:
    """An agent with a good certificate that speaks junk."""
    files = pki.files(made.directory / "pki", "intruder", "agent")
    good = channel_bytes()

    async def throw(chance: random.Random) -> None:
        context = TlsContext.client(files.ca, files.certificate, files.key, "segmap:controller")
        connection = await tcp.connect("127.0.0.1", port, tls=context)
        closed = asyncio.get_running_loop().create_future()
        connection.start(lambda data: None, lambda error: closed.done() or closed.set_result(None))
        with contextlib.suppress(ConnectionLost, WriteQueueFull, TimeoutError):
            connection.write([damaged(chance, good)])
            await asyncio.wait_for(closed, ANSWER_MAX_S)
        connection.abort()

    return throw


def agent_config(made: Cluster, name: str) -> AgentConfig:
    config = made.agents[name].config
    assert isinstance(config, AgentConfig)
    return config


async def listeners(made: Cluster) -> dict[str, Throw]:
    port = await made.controller_port()
    if not (made.directory / "pki" / "agent-intruder.pem").exists():
        with contextlib.suppress(pki.PkiError):
            pki.issue(made.directory / "pki", "intruder", "agent")
    exporter = next(iter(made.exporters))
    a, store = agent_config(made, "a"), agent_config(made, exporter)
    shown = await made.call("vdisk.show", name="d")
    at_a = next(one for one in shown["presentations"] if one["agent"] == "a")
    export = (await made.agent(exporter))["exports"][0]
    assert isinstance(made.controller.config, ControllerConfig)
    return {
        "channel in front of TLS": at_port(port, b"\x16\x03\x01" + bytes(200)),
        "channel behind TLS": behind_tls(made, port),
        "NVMe/TCP of agent a": at_port(int(at_a["trsvcid"]), ICREQ),
        "NVMe/TCP of the container host": at_port(int(export["trsvcid"]), ICREQ),
        "JSON-RPC of agent a's target": at_path(a.rpc_path, RPC),
        "JSON-RPC of the container host's target": at_path(store.rpc_path, RPC),
        "HTTP": at_path(made.directory / "api.sock", HTTP),
        "data plane's socket": at_path(a.dataplane_path, channel_bytes()),
    }


def pids(made: Cluster) -> dict[str, int]:
    """Every process of the cluster."""
    daemons = {"controller": made.controller, **made.agents}
    found = {name: daemon.process.pid for name, daemon in daemons.items() if daemon.process is not None}
    return found | {f"target of {name}": made.target_pid(name) for name in made.agents}


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(pid: int) -> int:
    """Anonymous resident bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


async def bystander(host: NvmeTcpHost, done: asyncio.Event) -> int:
    """Writes and reads back, the same connection all the time; how often."""
    rounds = 0
    while not done.is_set():
        data = pattern(rounds, 64 << 10)
        at = rounds % 64 * (64 << 10)
        await host.write(1, at, data)
        assert bytes(await host.read(1, at, len(data))) == data
        rounds += 1
        await pause(0.002)
    return rounds


async def storm(chance: random.Random, throw: Throw, rounds: int) -> None:
    """Eight connections at a time."""
    for _ in range(rounds):
        await asyncio.gather(*(throw(chance) for _ in range(8)))


async def settled(made: Cluster, before: dict[str, tuple[int, int]]) -> None:
    """Descriptors come back to what they were."""
    await made.until(lambda: all(descriptors(pid) <= fds + 1 for pid, (fds, _) in _by_pid(made, before)), 10.0)


def _by_pid(made: Cluster, before: dict[str, tuple[int, int]]) -> list[tuple[int, tuple[int, int]]]:
    return [(pid, before[name]) for name, pid in pids(made).items()]


def measure(made: Cluster) -> dict[str, tuple[int, int]]:
    return {name: (descriptors(pid), memory(pid)) for name, pid in pids(made).items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_junk_at_every_listener_hurts_nobody(stage: Stage, seed: int) -> None:
    print(f"seed {seed}")

    async def play(made: Cluster) -> None:
        async with disk(made) as (at_a, _, _):
            chance = random.Random(seed)
            alive, done = pids(made), asyncio.Event()
            beside: asyncio.Task[int] = asyncio.create_task(bystander(at_a, done))
            throws = await listeners(made)
            for throw in throws.values():
                await storm(chance, throw, ROUNDS_WARM)
            before = measure(made)
            for name, throw in throws.items():
                assert not beside.done(), f"the bystander failed before {name}"
                await storm(chance, throw, ROUNDS)
            done.set()
            assert await beside > 20
            assert at_a.connected
            await made.until(made.all_admitted)
            assert pids(made) == alive, "no process has ended"
            await settled(made, before)
            grown = {name: resident - before[name][1] for name, (_, resident) in measure(made).items()}
            assert max(grown.values()) < MEMORY_GROWTH_MAX, grown

    stage.run(play)
