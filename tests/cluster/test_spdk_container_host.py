"""The same cluster with a real SPDK target as its container host: attach, use, fence, restart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.config import SpdkOptions
from spdk_rpc.client import RpcClient
from tests.cluster.cluster import MIB, Cluster, cluster
from tests.cluster.test_disk import SIZE, fill, pattern, read, run
from tests.cluster.test_survival import insist
from tests.contract.conftest import binary_of

pytestmark = pytest.mark.spdk
LENGTH = 8 * MIB


def spdk() -> dict[str, Any]:
    binary_of("spdk")
    return {"target": "spdk", "spdk": SpdkOptions(core_locks=False), "target_lifetime": "daemon"}


@contextmanager
def container_host(made: Cluster) -> Iterator[RpcClient]:
    with RpcClient(made.directory / "x" / "x-rpc.sock") as client:
        yield client


def hosts_of(client: RpcClient, subnqn: str) -> set[str]:
    (seen,) = client.call("nvmf_get_subsystems", {"nqn": subnqn})
    return {host["nqn"] for host in seen["hosts"]}


def test_a_disk_on_spdk_containers_and_the_fence_of_a_killed_agent(runtime_dir: Path) -> None:
    async def work() -> None:
        async with cluster(runtime_dir, False, exporter_settings=spdk()) as made:
            await made.disk("d", SIZE, ["a", "b"])
            at_a, at_b = await made.connect("d", "a"), await made.connect("d", "b")
            data = pattern(21, LENGTH)
            await fill(at_a, data)
            assert await read(at_b, LENGTH) == data
            before = (await made.agent("a"))["incarnation"]
            subnqn = (await made.call("container.show", name="c0"))["subnqn"]
            nqn = "nqn.2026-11.io.segmap:agent:a:{}".format
            with container_host(made) as client:
                assert nqn(before) in hosts_of(client, subnqn)
                await made.kill_target("a")
                assert await insist(lambda: read(at_a, LENGTH)) == data
                after = (await made.agent("a"))["incarnation"]
                assert after > before and nqn(before) not in hosts_of(client, subnqn)
                pairs = client.call("nvmf_subsystem_get_qpairs", {"nqn": subnqn})
                assert {pair["hostnqn"] for pair in pairs} >= {nqn(after)}
                assert nqn(before) not in {pair["hostnqn"] for pair in pairs}

    run(work())


def test_a_killed_spdk_container_host_comes_back(runtime_dir: Path) -> None:
    async def work() -> None:
        async with cluster(runtime_dir, False, exporter_settings=spdk()) as made:
            await made.disk("d", SIZE, ["a", "b"])
            at_a, at_b = await made.connect("d", "a"), await made.connect("d", "b")
            data = pattern(22, LENGTH)
            await fill(at_a, data)
            await at_a.flush(1)
            await made.kill_target("x")
            assert await insist(lambda: read(at_b, LENGTH)) == data
            assert await insist(lambda: read(at_a, LENGTH)) == data

    run(work())
