"""A cluster of real processes with a disk, perhaps large and well filled, and load on it: for the failover benchmark.

The disk's first segments lie in one sparse container file. They are mapped by real faults of an agent without a data
plane (ci.fault_load), which then goes. The load is 4 KiB reads and writes of a patient host.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agent.config import ContainerConfig
from channel.messages import LeaseRenew
from ci.fault_load import Agent, Faulter
from controller.config import ControllerConfig
from dataplane.embedded.patient_host import PatientHost
from tests.cluster.cluster import Cluster
from transport import pki

MIB: Final = 1 << 20
CONTAINER_BYTES: Final = 2 << 40
BLOCK: Final = 4096
DEPTH_FILL: Final = 128
FILLER: Final = "filler"
LEASE_S: Final = 10.0
RENEW_S: Final = 3.0


@asynccontextmanager
async def filled_cluster(
    directory: Path, segments: int, mapped: int, lifetime: str = "daemon"
) -> AsyncIterator[Cluster]:
    """Container host x, mapping agent a, and vdisk d at a; its first `mapped` segments (a power of two) are mapped."""
    container = ContainerConfig("c0", "aio", directory / "c0.img", CONTAINER_BYTES)
    made = Cluster(directory, {"x": (container,)}, ("a",), lifetime, lease_duration_s=LEASE_S, renew_interval_s=RENEW_S)
    async with made:
        await made.call("container.add", name="c0", agent="x", export="c0", contents="zeroed")
        await made.until(lambda: _ready(made))
        await made.call("vdisk.create", name="d", size_bytes=segments * MIB)
        if mapped:
            await _fill(made, mapped)
        await made.call("vdisk.present", name="d", agents=["a"], any_host=True)
        yield made


async def _ready(made: Cluster) -> bool:
    (container,) = (await made.call("container.list"))["containers"]
    return bool(container["state"] == "ready")


async def connected_filler(made: Cluster, segments: int) -> Faulter:
    """An agent without a data plane that faults for the first segments of a vdisk."""
    directory = made.directory / "pki"
    if not pki.files(directory, FILLER, "agent").certificate.exists():
        pki.issue(directory, FILLER, "agent")
    filler = Faulter(FILLER, segments)
    assert isinstance(made.controller.config, ControllerConfig)
    await filler.connect(made.controller.config.listen_port, directory, b"f" * 16)
    return filler


async def keep_lease(agent: Agent) -> None:
    """Renews the lease until it is cancelled."""
    while True:
        agent.session.send(LeaseRenew(time.monotonic_ns()), agent.header())
        agent.flush()
        await asyncio.sleep(RENEW_S)


async def _fill(made: Cluster, mapped: int) -> None:
    filler = await connected_filler(made, mapped)
    leased = asyncio.create_task(keep_lease(filler))
    try:
        await made.call("vdisk.present", name="d", agents=[FILLER], any_host=True)
        filler.table = (await made.call("vdisk.show", name="d"))["number"] << 32 | filler.number
        await filler.run(DEPTH_FILL, mapped)
        assert not filler.failures
        await made.call("vdisk.withdraw", name="d", agents=[FILLER])
        await made.until(lambda: _withdrawn(made))
    finally:
        leased.cancel()
        filler.connection.abort()


async def _withdrawn(made: Cluster) -> bool:
    return not (await made.call("vdisk.show", name="d"))["presentations"]


async def settled(made: Cluster) -> bool:
    """The real agents are connected, and d is presented."""
    agents = {agent["name"]: agent for agent in (await made.call("agent.list"))["agents"]}
    presentations = (await made.call("vdisk.show", name="d"))["presentations"]
    connected = all(agents[name]["admitted"] for name in ("x", "a"))
    return connected and all(one["state"] == "presented" for one in presentations)


@dataclass(slots=True)
class Load:
    """I/O of `depth` tasks at random places among the first segments. `ended`: (when it began, how long it took)."""

    host: PatientHost
    depth: int
    segments: int
    seed: int = 1
    ended: list[tuple[float, float]] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work(random.Random(self.seed * 1000 + n))) for n in range(self.depth)]

    async def _work(self, chance: random.Random) -> None:
        data = bytes(BLOCK)
        while True:
            offset = chance.randrange(self.segments) * MIB + chance.randrange(MIB // BLOCK) * BLOCK
            began = time.time()
            if chance.random() < 0.5:
                await self.host.read(1, offset, BLOCK)
            else:
                await self.host.write(1, offset, data)
            self.ended.append((began, time.time() - began))

    async def stop(self) -> None:
        """Raises what an I/O raised: no error may reach a host."""
        failed = [task for task in self._tasks if task.done()]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in failed:
            task.result()

    def first_after(self, moment: float) -> float | None:
        """When the first I/O ended after the moment, as far as one has."""
        return min((began + took for began, took in self.ended if began + took > moment), default=None)

    def longest(self, begin: float, end: float) -> float:
        """Seconds of the longest I/O that was under way in a stretch of time."""
        return max((took for began, took in self.ended if began < end and began + took > begin), default=0.0)


async def loaded_host(made: Cluster, **options: Any) -> PatientHost:
    """A patient host at a."""
    host = await made.connect("d", "a", PatientHost, **options)
    assert isinstance(host, PatientHost)
    return host
