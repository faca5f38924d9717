"""Hosts write and read through both agents, failing over between them, while parts are killed: no write is lost,
none lands late, and every read gives what was last written.

A host that got no answer does the same write again through the other agent, as multipath does. Had the first attempt
landed later, it would undo a newer write; the readers would see it.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from dataplane.embedded.nvme_host import NvmeHostError, NvmeStatusError, NvmeTcpHost
from tests.cluster.cluster import MIB, Cluster, cluster, pause
from tests.cluster.test_disk import SIZE, read, run
from tests.cluster.test_survival import insist

BLOCK = 4096
SPAN = 48 * MIB
WORKERS = 6
GIVE_UP_S = 60.0


class Load:
    """Workers on disjoint blocks; `truth` is what each block must read as."""

    def __init__(self, seed: int, hosts: list[NvmeTcpHost]) -> None:
        self.chance = random.Random(seed)
        self.hosts = hosts
        self.truth: dict[int, bytes] = {}
        self.going = True
        self.writes = self.reads = self.failovers = 0

    async def worker(self, number: int) -> None:
        blocks = range(number, SPAN // BLOCK, WORKERS)
        while self.going:
            block = self.chance.choice(blocks)
            if self.chance.random() < 0.5:
                await self.write(block)
            else:
                await self.check(block)

    async def write(self, block: int) -> None:
        data = self.chance.randbytes(16) * (BLOCK // 16)

        async def io(host: NvmeTcpHost) -> None:
            await host.write(1, block * BLOCK, data)

        await self.insist(io)
        self.truth[block] = data
        self.writes += 1

    async def check(self, block: int) -> None:
        async def io(host: NvmeTcpHost) -> bytes:
            return bytes(await host.read(1, block * BLOCK, BLOCK))

        found = await self.insist(io)
        expected = self.truth.get(block, bytes(BLOCK))
        assert found == expected, f"block {block}: {found[:16].hex()} instead of {expected[:16].hex()}"
        self.reads += 1

    async def check_all(self, host: NvmeTcpHost) -> None:
        """Everything, through one agent."""
        found = await insist(lambda: read(host, SPAN))
        for block, expected in self.truth.items():
            assert found[block * BLOCK : (block + 1) * BLOCK] == expected, f"block {block} at the end"

    async def insist(self, io):  # type: ignore[no-untyped-def]
        """Through any agent until one answers."""
        async with asyncio.timeout(GIVE_UP_S):
            while True:
                try:
                    return await io(self.chance.choice(self.hosts))
                except (NvmeStatusError, NvmeHostError):
                    self.failovers += 1
                    await pause(0.02)


async def trouble(made: Cluster, chance: random.Random) -> str:
    """Kill something, and start it again if nobody else does."""
    what = chance.choice(["data plane", "data plane", "daemon", "controller", "both"])
    name = chance.choice(["a", "b"])
    if what in ("data plane", "both"):
        try:
            await made.kill_target(name)
        except (OSError, ValueError):
            return "a data plane that was not there"
    if what in ("daemon", "both"):
        await asyncio.to_thread(made.agents[name].kill)
        await pause(chance.uniform(0, 0.5))
        made.agents[name].start()
    if what == "controller":
        await asyncio.to_thread(made.controller.kill)
        await pause(chance.uniform(0, 1))
        made.controller.start()
    return f"{what} {name}"


async def torture(directory: Path, seed: int, seconds: float) -> None:
    chance = random.Random(seed)
    async with cluster(directory, containers_in_memory=False) as made:
        await made.disk("d", SIZE, ["a", "b"])
        load = Load(seed, [await made.connect("d", "a"), await made.connect("d", "b")])
        done: list[str] = []

        async def troubles() -> None:
            loop = asyncio.get_running_loop()
            end = loop.time() + seconds
            while loop.time() < end:
                await pause(chance.uniform(0.3, 2.5))
                done.append(await trouble(made, chance))
            load.going = False

        async with asyncio.TaskGroup() as group:
            group.create_task(troubles())
            for number in range(WORKERS):
                group.create_task(load.worker(number))
        for host in load.hosts:
            await load.check_all(host)
        print(f"seed {seed}: {load.writes} writes, {load.reads} reads, {load.failovers} failovers; {', '.join(done)}")
        assert load.writes and load.reads and load.failovers


def test_io_survives_a_few_kills(runtime_dir: Path) -> None:
    run(torture(runtime_dir, seed=1, seconds=6))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(int(os.environ.get("SEGMAP_TORTURE_SEEDS", "6"))))
def test_io_survives_many_kills(runtime_dir: Path, seed: int) -> None:
    run(torture(runtime_dir, seed=100 + seed, seconds=25))
