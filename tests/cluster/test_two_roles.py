"""Agents that are container host and mapping agent at once, in one target: each maps its own container and another."""

from __future__ import annotations

from pathlib import Path

from agent.config import ContainerConfig
from tests.cluster.cluster import MIB, Cluster
from tests.cluster.test_disk import SIZE, fill, pattern, read, run
from tests.cluster.test_survival import insist

LENGTH = 16 * MIB


def test_a_target_that_is_both_is_killed_and_comes_back(runtime_dir: Path) -> None:
    async def work() -> None:
        containers = {
            name: (ContainerConfig(f"c-{name}", "aio", runtime_dir / f"{name}.img", 64 * MIB),) for name in ("a", "b")
        }
        async with Cluster(runtime_dir, containers, ("a", "b")) as made:
            await made.disk("d", SIZE, ["a", "b"])
            at_a, at_b = await made.connect("d", "a"), await made.connect("d", "b")
            data = pattern(31, LENGTH)
            await fill(at_a, data)
            assert await read(at_b, LENGTH) == data
            await at_a.flush(1)
            await made.kill_target("a")
            assert await insist(lambda: read(at_a, LENGTH)) == data
            assert await insist(lambda: read(at_b, LENGTH)) == data
            more = pattern(32, LENGTH)
            await insist(lambda: fill(at_b, more, at=LENGTH))
            assert await insist(lambda: read(at_a, LENGTH, at=LENGTH)) == more

    run(work())
