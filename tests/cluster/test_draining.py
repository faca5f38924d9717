"""An agent is drained under a disk in use, restarted without a fence, and used again; a container is given up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli.program import main
from dataplane.embedded.nvme_host import NvmeHostError, NvmeStatusError
from tests.cluster.cluster import MIB, Cluster, cluster
from tests.cluster.test_disk import LENGTH, disk, pattern, read, ready_disk, run
from tests.cluster.test_survival import insist

if TYPE_CHECKING:
    from tests.cluster.conftest import Stage


async def segmap(made: Cluster, *words: str) -> int:
    """The command's exit status."""
    return await asyncio.to_thread(main, [*words, "--api", str(made.directory / "api.sock")])


def test_an_agent_is_drained_restarted_and_used_again(stage: Stage) -> None:
    async def play(made: Cluster) -> None:
        async with disk(made) as (at_a, at_b, data):
            before = await made.agent("a")
            assert await segmap(made, "agent", "drain", "a", "--wait") == 0
            drained = await made.agent("a")
            assert drained["state"] == "drained" and not drained["attachments"]
            assert {table["state"] for table in drained["tables"]} == {"absent"}
            assert await read(at_b, LENGTH) == data, "the other agent goes on"
            more = pattern(12, MIB)
            await at_b.write(1, 0, more)
            made.agents["x"].stop()  # its container host cannot be asked, and need not be
            await made.kill_target("a")

            async def replaced() -> bool:
                found = await made.agent("a")
                return bool(found["admitted"] and found["incarnation"] > before["incarnation"])

            await made.until(replaced)
            made.agents["x"].start()
            assert await segmap(made, "agent", "undrain", "a", "--wait") == 0
            assert await insist(lambda: read(at_a, MIB)) == more

            async def nothing_owed() -> bool:
                rows = (await made.call("container.list"))["containers"]
                return not any(row["not_fenced"] for row in rows)

            await made.until(nothing_owed)

    stage.run(play)


@pytest.mark.long
def test_a_fence_that_waits_is_told_and_a_dead_container_host_ends_it(
    runtime_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work() -> None:
        async with cluster(runtime_dir, containers_in_memory=False) as made:
            at_a, at_b, data = await ready_disk(made)
            await at_a.flush(1)
            made.agents["x"].stop()
            await made.kill_target("x")
            assert await segmap(made, "agent", "fence", "a", "--wait", "--timeout", "1") == 7
            assert "confirm-dead x" in capsys.readouterr().out
            assert await segmap(made, "agent", "confirm-dead", "x") == 2, "nobody is asked where there is no terminal"
            assert await segmap(made, "agent", "confirm-dead", "b", "--yes") == 5, "it is connected"
            assert await segmap(made, "agent", "confirm-dead", "x", "--yes", "--wait") == 0
            assert "believed without proof" in capsys.readouterr().out

            async def back() -> bool:
                return bool((await made.agent("a"))["admitted"])

            await made.until(back)
            audited = (await made.call("audit.list"))["entries"]
            said = [entry["detail"] for entry in audited if entry["action"] == "agent.confirm_dead"]
            assert any(detail.get("assumed") for detail in said)
            made.agents["x"].start()
            assert await insist(lambda: read(at_b, LENGTH)) == data
            assert await insist(lambda: read(at_a, LENGTH)) == data

    run(work())


def test_a_container_that_is_given_up_is_errors_and_then_itself_again(stage: Stage) -> None:
    async def play(made: Cluster) -> None:
        async with disk(made) as (at_a, _, data):
            await at_a.flush(1)
            assert await segmap(made, "container", "fail", "c0") == 0
            good = bad = 0
            for offset in range(0, LENGTH, MIB):
                try:
                    good += bytes(await at_a.read(1, offset, MIB)) == data[offset : offset + MIB]
                except (NvmeStatusError, NvmeHostError):
                    bad += 1
            assert bad and good + bad == LENGTH // MIB
            assert await segmap(made, "container", "restore", "c0") == 0
            assert await insist(lambda: read(at_a, LENGTH)) == data

    stage.run(play)
