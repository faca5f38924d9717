"""A container host restarts at another address under I/O: agents follow, nobody loses anything, and slots stay."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.config import AgentConfig, ContainerConfig
from agent.main import stop_target
from tests.cluster.cluster import MIB, Cluster, cluster
from tests.cluster.test_disk import LENGTH, pattern, read, ready_disk, run

FAR = 64 * MIB


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def restart_elsewhere(made: Cluster, **changes: Any) -> str:
    """The container host ends, and another process of it answers at a new port: the port."""
    daemon = made.agents["x"]
    assert isinstance(daemon.config, AgentConfig)
    await asyncio.to_thread(daemon.stop)
    await asyncio.to_thread(stop_target, daemon.config)
    port = free_port()
    daemon.config = replace(daemon.config, listen_port=port, **changes)
    daemon.start()
    return str(port)


async def places(made: Cluster) -> dict[str, tuple[int, str, list[str]]]:
    containers = (await made.call("container.list"))["containers"]
    return {one["name"]: (one["slot"], one["trsvcid"], sorted(one["attached_at"])) for one in containers}


class Writer:
    """Writes the same bytes round and round through one agent, and counts; any error is remembered."""

    def __init__(self, host: Any, data: bytes) -> None:
        self.rounds = 0
        self._stopped = False
        self._task = asyncio.ensure_future(self._work(host, data))

    async def _work(self, host: Any, data: bytes) -> None:
        while not self._stopped:
            for at in range(0, len(data), MIB):
                await host.write(1, at, data[at : at + MIB])
            self.rounds += 1

    async def end(self) -> None:
        """Raises what went wrong."""
        self._stopped = True
        await asyncio.wait_for(self._task, 30)


def test_a_container_host_that_restarts_at_another_port_under_io(runtime_dir: Path) -> None:
    async def work() -> None:
        async with cluster(runtime_dir, containers_in_memory=False) as made:
            at_a, at_b, data = await ready_disk(made)
            before = await places(made)
            incarnations = [(await made.agent(name))["incarnation"] for name in ("a", "b")]
            writer = Writer(at_a, data)
            await made.until(lambda: writer.rounds)
            port = await restart_elsewhere(made)
            new = asyncio.ensure_future(at_b.write(1, FAR, data[:MIB]))

            async def moved() -> bool:
                return all(place[1:] == (port, ["a", "b"]) for place in (await places(made)).values())

            await made.until(moved)
            rounds = writer.rounds
            await made.until(lambda: writer.rounds > rounds + 1)
            await writer.end()
            await asyncio.wait_for(new, 30)
            assert {name: slot for name, (slot, *_) in (await places(made)).items()} == {
                name: slot for name, (slot, *_) in before.items()
            }
            assert await read(at_b, LENGTH) == data and await read(at_a, MIB, at=FAR) == data[:MIB]
            assert [(await made.agent(name))["incarnation"] for name in ("a", "b")] == incarnations, "nobody was fenced"

    run(work())


def test_something_else_at_the_new_address_is_not_the_container(runtime_dir: Path) -> None:
    async def work() -> None:
        async with cluster(runtime_dir, containers_in_memory=False) as made:
            _, at_b, data = await ready_disk(made)
            assert await read(at_b, LENGTH) == data
            daemon = made.agents["x"]
            assert isinstance(daemon.config, AgentConfig)
            real = daemon.config.containers
            swapped = tuple(
                ContainerConfig(one.name, "aio", other.path, other.size_bytes)
                for one, other in zip(real, reversed(real), strict=True)
            )
            await restart_elsewhere(made, containers=swapped)

            async def alarms() -> list[str]:
                return [one["text"] for one in (await made.call("cluster.status"))["alarms"]]

            async def refused() -> bool:
                texts = await alarms()  # the smaller one in place of the larger, and the other way round
                assert all("cannot attach container" in text for text in texts)
                return [sum(why in text for text in texts) for why in ("LABEL_MISMATCH", "OUT_OF_RANGE")] == [2, 2]

            await made.until(refused)
            port = await restart_elsewhere(made, containers=real)

            async def moved() -> bool:
                return all(place[1:] == (port, ["a", "b"]) for place in (await places(made)).values())

            await made.until(moved)
            assert not await alarms()
            assert await read(at_b, LENGTH) == data, "nothing was read or written elsewhere"
            await at_b.write(1, 0, pattern(9, MIB))

    run(work())
