"""What is killed is a pause, not an error, for hosts that connect again: no I/O fails, and no write is lost.

The disk has 64 TiB, and is used at both ends: how long a data plane takes to come back does not depend on the size.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli.copying.endpoint import FileEndpoint, NvmeAddress
from cli.copying.nvme import NvmeEndpoint
from cli.copying.pump import Pump, Range
from dataplane.embedded.patient_host import PatientHost
from tests.cluster.cluster import MIB, Cluster
from tests.cluster.test_disk import pattern

if TYPE_CHECKING:
    from tests.cluster.conftest import Stage

SIZE = 64 << 40
BLOCK = 4096
PLACES = 8 * MIB // BLOCK
TASKS = 8
COPIED = 24 * MIB


def offset(place: int) -> int:
    return place * BLOCK if place % 16 < 8 else SIZE - (place + 1) * BLOCK


class Tagged:
    """Tasks that write tagged blocks, each at places of its own, and read them back; the first error ends it."""

    def __init__(self, host: PatientHost) -> None:
        self._host = host
        self._over = False
        self._content: dict[int, bytes] = {}
        self.writes = 0
        self._tasks = [asyncio.create_task(self._work(number)) for number in range(TASKS)]

    async def _work(self, number: int) -> None:
        chance = random.Random(number)
        while not self._over:
            place = chance.randrange(PLACES // TASKS) * TASKS + number
            if place in self._content and chance.random() < 0.5:
                assert await self._host.read(1, offset(place), BLOCK) == self._content[place], f"block {place}"
                continue
            tag = hashlib.sha256(f"{number} {self.writes} {place}".encode()).digest() * (BLOCK // 32)
            await self._host.write(1, offset(place), tag)
            self._content[place] = tag
            self.writes += 1

    async def progress(self, made: Cluster, writes: int = 50) -> None:
        """Until so many more writes have ended."""
        wanted = self.writes + writes
        await made.until(lambda: self.writes >= wanted or any(task.done() for task in self._tasks))
        for task in self._tasks:
            if task.done():
                task.result()

    async def end(self) -> None:
        """Everything that was acknowledged is there."""
        self._over = True
        await asyncio.gather(*self._tasks)
        for place, tag in self._content.items():
            assert await self._host.read(1, offset(place), BLOCK) == tag, f"block {place}"


async def patient_host(made: Cluster, losses: list[str]) -> PatientHost:
    await made.disk("d", SIZE, ["a"])
    host = await made.connect("d", "a", PatientHost, on_lost=losses.append)
    assert isinstance(host, PatientHost)
    return host


async def kill(made: Cluster, victims: str) -> None:
    if "data plane" in victims:
        await made.kill_target("a")
    for name, daemon in (("daemon", made.agents["a"]), ("controller", made.controller)):
        if name in victims:
            daemon.kill()
            daemon.start()


@pytest.mark.parametrize("victims", ["data plane", "data plane, daemon", "controller", "data plane, controller"])
def test_no_error_reaches_a_host(stage: Stage, victims: str) -> None:
    async def play(made: Cluster) -> None:
        losses: list[str] = []
        host = await patient_host(made, losses)
        load = Tagged(host)
        await load.progress(made)
        await kill(made, victims)
        if "data plane" in victims:
            await made.until(lambda: losses)
        await load.progress(made)
        await made.until(made.all_admitted)
        await load.end()
        await host.close()
        await made.call("vdisk.delete", name="d", force=True)

    stage.run(play)


def test_a_copy_goes_on_after_its_data_plane_was_killed(stage: Stage, tmp_path: Path) -> None:
    async def play(made: Cluster) -> None:
        data = pattern(11, COPIED)
        (tmp_path / "image").write_bytes(data)
        losses: list[str] = []
        host = await patient_host(made, losses)
        shown = await made.call("vdisk.show", name="d")
        where = shown["presentations"][0]
        address = NvmeAddress(where["traddr"], where["trsvcid"], where["subnqn"], 1, None)
        source, endpoint = FileEndpoint(tmp_path / "image", writable=False), await NvmeEndpoint.open(address, True)
        written = 0

        def progress(count: int) -> None:
            nonlocal written
            written += count

        copying = asyncio.create_task(Pump(source, endpoint, progress).run(Range()))
        await made.until(lambda: written >= COPIED // 4)
        await made.kill_target("a")
        assert not copying.done()
        assert (await copying).sha256 == hashlib.sha256(data).hexdigest()
        assert b"".join([bytes(await host.read(1, at, MIB)) for at in range(0, COPIED, MIB)]) == data
        assert losses
        for one in (source, endpoint, host):
            await one.close()
        await made.call("vdisk.delete", name="d", force=True)

    stage.run(play)
