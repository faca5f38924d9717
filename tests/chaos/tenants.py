"""Disks that come and go while everything fails: made, shown, written, checked and deleted, one after the other, so
that segments change hands all the time. What one tenant wrote must never be seen by the next.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from cli.client import UnreachableError
from controller.api.errors import ApiError
from dataplane.embedded.nvme_host import NvmeHostError, NvmeTcpHost
from tests.chaos.blocks import BLOCK
from tests.chaos.load import STUCK_S, Disk, Load, Path, Violation
from tests.chaos.weather import Weather
from tests.cluster.cluster import MIB, Cluster, pause

FIRST_NUMBER: Final = 1000
SPAN: Final = 6 * MIB
RETRY_S: Final = 0.1
CONNECT_S: Final = 5.0
LIFE_S: Final = (0.5, 4.0)
HOST: Final = 9


class Tenant:
    """One after the other until the load stops. `done` counts what was done."""

    def __init__(
        self, number: int, seed: int, cluster: Cluster, load: Load, weather: Weather, options: dict[str, Any]
    ) -> None:
        self._number = number
        self._chance = random.Random(f"{seed} tenant {number}")
        self._cluster = cluster
        self._load = load
        self._weather = weather
        self._options = options
        self.done: Counter[str] = Counter()

    async def run(self, agents: tuple[str, ...]) -> None:
        """Raises Violation."""
        number = FIRST_NUMBER * self._number
        while self._load.going:
            number += 1
            shown_at = self._chance.sample(agents, self._chance.choice((1, 2)))
            await self._live(number, f"tenant{number}", shown_at)

    async def _live(self, number: int, name: str, agents: list[str]) -> None:
        # An answer may have been lost: what "exists" now is ours, what is "not found" now we have deleted.
        await self._insist("vdisk.create", {"exists"}, name=name, size_bytes=1 << 30)
        await self._insist("vdisk.present", {"exists"}, name=name, agents=agents, any_host=True)
        disk = Disk(number, name, tuple(agents), SPAN // BLOCK)
        hosts = [host for agent in agents if (host := await self._connect(name, agent)) is not None]
        try:
            disk.paths[HOST] = [Path(HOST, agent, host) for agent, host in zip(agents, hosts, strict=False)]
            if len(hosts) == len(agents):
                await self._use(disk)
        finally:
            for host in hosts:
                await host.close()
        await self._insist("vdisk.delete", {"not_found"}, name=name, force=True)
        self.done["tenants"] += 1

    async def _use(self, disk: Disk) -> None:
        """Write and read for a while; what was never written reads as zeroes, whoever had it before."""
        chance, load = self._chance, self._load
        end = load.now() + chance.uniform(*LIFE_S)
        worker = load.worker(disk, HOST, chance)
        while load.going and load.now() < end:
            await worker.step()
            self.done["I/Os"] += 1
        if chance.random() < 0.5:
            await load.check_disk(disk, disk.paths[HOST][0])

    async def _connect(self, name: str, agent: str) -> NvmeTcpHost | None:
        """None if the load has stopped before it could be done."""
        nqn = f"nqn.2026-11.io.segmap:chaos:{name}"

        async def connect() -> NvmeTcpHost | None:
            if not self._load.going:
                return None
            async with asyncio.timeout(CONNECT_S):
                return await self._cluster.connect(name, agent, hostnqn=nqn, **self._options)

        host: NvmeTcpHost | None = await self._until(
            f"a connection to {name} by {agent}", connect, (NvmeHostError, TimeoutError)
        )
        return host

    async def _insist(self, operation: str, fine: set[str], **arguments: Any) -> None:
        async def call() -> bool:
            try:
                await self._cluster.call(operation, **arguments)
            except ApiError as error:
                if error.code not in fine:
                    raise
            return True

        await self._until(f"{operation} of {arguments['name']}", call, (ApiError, UnreachableError))
        self.done[operation] += 1

    async def _until(self, what: str, do: Callable[[], Any], retried: tuple[type[Exception], ...]) -> Any:
        began = self._load.now()
        while True:
            try:
                return await do()
            except retried as error:
                now = self._load.now()
                if now - max(began, self._weather.fair_from()) > STUCK_S:
                    raise Violation(f"{what} has not succeeded for {now - began:.0f} s: {error}") from None
            await pause(RETRY_S)
