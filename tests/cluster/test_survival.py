"""Each part is killed, stopped or cut off under a disk in use; nothing is lost, and nothing stale is ever served."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.config import AgentConfig
from dataplane.embedded.nvme_host import NvmeHostError, NvmeStatusError
from tests.cluster.cluster import LEASE_S, MIB, Cluster, cluster, pause
from tests.cluster.test_disk import LENGTH, disk, fill, pattern, read, ready_disk, run

if TYPE_CHECKING:
    from tests.cluster.conftest import Stage

FAR = 128 * MIB  # beyond what is allocated ahead
PATIENCE_S = 25.0


async def insist(io: Any, patience_s: float = PATIENCE_S) -> Any:
    """Do I/O again until it succeeds: what a multipath host does while a path is gone."""
    async with asyncio.timeout(patience_s):
        while True:
            try:
                return await io()
            except (NvmeStatusError, NvmeHostError):
                await pause(0.05)


def test_a_killed_data_plane_refills_its_table(stage: Stage) -> None:
    async def play(made: Cluster) -> None:
        async with disk(made) as (at_a, at_b, data):
            before = await made.agent("a")
            await made.kill_target("a")
            assert await read(at_b, LENGTH) == data, "the other agent goes on"
            assert await insist(lambda: read(at_a, LENGTH)) == data
            after = await made.agent("a")
            assert after["incarnation"] > before["incarnation"] and after["instance"] != before["instance"]
            more = pattern(8, 2 * MIB)
            await insist(lambda: fill(at_a, more, at=LENGTH))
            assert await read(at_b, 2 * MIB, at=LENGTH) == more

    stage.run(play)


def test_a_killed_daemon_is_replaced_and_its_data_plane_goes_on(stage: Stage) -> None:
    async def play(made: Cluster) -> None:
        async with disk(made) as (at_a, at_b, data):
            before = await made.agent("a")
            made.agents["a"].kill()
            assert await read(at_a, LENGTH) == data, "the table is the data plane's"
            made.agents["a"].start()
            more = pattern(9, MIB)
            await insist(lambda: at_a.write(1, LENGTH, more))
            await made.until(made.all_admitted)
            after = await made.agent("a")
            assert (after["instance"], after["incarnation"]) == (before["instance"], before["incarnation"])
            assert await read(at_b, MIB, at=LENGTH) == more

    stage.run(play)


def test_a_stopped_daemon_cannot_keep_io_flowing(stage: Stage) -> None:
    async def play(made: Cluster) -> None:
        async with disk(made) as (at_a, at_b, data):
            made.agents["a"].signal(signal.SIGSTOP)
            await pause(LEASE_S + 1)
            late = asyncio.ensure_future(at_a.read(1, 0, 4096))
            done, _ = await asyncio.wait({late}, timeout=0.5)
            assert not done or late.exception() is not None, "no read may succeed without a lease"
            more = pattern(10, MIB)
            await insist(lambda: at_b.write(1, 0, more))
            assert await read(at_b, MIB) == more, "the other agent is not held up for longer than the lease"
            made.agents["a"].signal(signal.SIGCONT)
            await insist(lambda: read(at_a, MIB))
            assert await read(at_a, MIB) == more, "nothing from before the epoch is served"
            assert await read(at_a, LENGTH - MIB, at=MIB) == data[MIB:]
            if not late.done():
                late.cancel()
            await asyncio.gather(late, return_exceptions=True)

    stage.run(play)


def test_a_killed_controller_is_not_missed_where_tables_are_loaded(runtime_dir: Path) -> None:
    async def work() -> None:
        async with cluster(runtime_dir, lease_duration_s=6.0, renew_interval_s=0.5) as made:
            at_a, at_b, data = await ready_disk(made)
            assert await read(at_b, LENGTH) == data
            made.controller.kill()
            for _ in range(3):
                assert await read(at_a, LENGTH) == data and await read(at_b, LENGTH) == data
                await at_a.write(1, 0, data[:MIB])
            new = asyncio.ensure_future(at_a.write(1, FAR, data[:MIB]))
            done, _ = await asyncio.wait({new}, timeout=0.3)
            assert not done, "a new segment needs the controller"
            made.controller.start()
            await asyncio.wait_for(new, PATIENCE_S)
            assert await insist(lambda: read(at_b, MIB, at=FAR)) == data[:MIB]
            assert await read(at_a, LENGTH) == data

    run(work())


def test_a_controller_that_is_away_longer_than_the_lease(stage: Stage) -> None:
    async def play(made: Cluster) -> None:
        async with disk(made) as (at_a, at_b, data):
            before = [(await made.agent(name))["epoch"] for name in ("a", "b")]
            made.controller.kill()
            await pause(LEASE_S + 0.5)
            late = asyncio.ensure_future(at_b.read(1, 0, 4096))
            done, _ = await asyncio.wait({late}, timeout=0.3)
            assert not done or late.exception() is not None
            made.controller.start()
            assert await insist(lambda: read(at_a, LENGTH)) == data
            assert await insist(lambda: read(at_b, LENGTH)) == data
            await asyncio.gather(late, return_exceptions=True)
            after = [(await made.agent(name))["epoch"] for name in ("a", "b")]
            assert after == [epoch + 1 for epoch in before]

    stage.run(play)


def test_a_killed_container_host_comes_back_and_lets_only_the_present_in(stage: Stage) -> None:
    async def play(made: Cluster) -> None:
        async with disk(made) as (at_a, at_b, data):
            await at_a.flush(1)
            await made.kill_target("x")
            assert await insist(lambda: read(at_b, LENGTH)) == data
            assert await insist(lambda: read(at_a, LENGTH)) == data
            await insist(lambda: at_a.write(1, LENGTH, data[:MIB]))
            assert await insist(lambda: read(at_b, MIB, at=LENGTH)) == data[:MIB]

    stage.run(play)


def test_everything_killed_at_once_comes_back(runtime_dir: Path) -> None:
    async def work() -> None:
        async with cluster(runtime_dir, containers_in_memory=False) as made:
            at_a, at_b, data = await ready_disk(made)
            await at_a.flush(1)
            targets = [made.target_pid(name) for name in made.agents]
            for daemon in (made.controller, *made.agents.values()):
                daemon.kill()
            for pid in targets:
                os.kill(pid, signal.SIGKILL)
            for daemon in (made.controller, *made.agents.values()):
                daemon.start()
            assert await insist(lambda: read(at_a, LENGTH)) == data
            assert await insist(lambda: read(at_b, LENGTH)) == data
            more = pattern(11, 4 * MIB)
            await insist(lambda: fill(at_b, more, at=LENGTH))
            assert await insist(lambda: read(at_a, 4 * MIB, at=LENGTH)) == more

    run(work())


def test_a_bound_target_dies_with_a_killed_daemon(runtime_dir: Path) -> None:
    async def work() -> None:
        async with cluster(runtime_dir, lifetime="daemon") as made:
            at_a, at_b, data = await ready_disk(made)
            config = made.agents["a"].config
            assert isinstance(config, AgentConfig)
            pid = made.target_pid("a")
            made.agents["a"].kill()
            await made.until(lambda: not Path(f"/proc/{pid}/root").exists())
            with pytest.raises((NvmeStatusError, NvmeHostError)):
                await at_a.read(1, 0, 4096)
            assert await read(at_b, LENGTH) == data
            made.agents["a"].start()
            assert await insist(lambda: read(at_a, LENGTH)) == data

    run(work())
