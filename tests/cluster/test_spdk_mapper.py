"""A mapping agent whose data plane is SPDK with our module, beside one whose data plane is the embedded target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.config import SpdkOptions
from spdk_rpc.client import RpcClient
from tests.cluster.cluster import MIB, cluster
from tests.cluster.test_disk import SIZE, fill, pattern, read, run
from tests.cluster.test_survival import insist
from tests.contract.conftest import binary_of

pytestmark = pytest.mark.spdk
LENGTH = 8 * MIB


def segmap_tgt() -> dict[str, Any]:
    binary_of("segmap_tgt")
    return {"target": "spdk", "spdk": SpdkOptions(core_locks=False), "target_lifetime": "daemon"}


def test_a_disk_on_both_kinds_of_data_plane_survives_the_death_of_one(runtime_dir: Path) -> None:
    settings = {"a": segmap_tgt()}

    async def work() -> None:
        async with cluster(runtime_dir, False, mapper_settings=settings) as made:
            await made.disk("d", SIZE, ["a", "b"])
            at_a, at_b = await made.connect("d", "a"), await made.connect("d", "b")
            data = pattern(23, LENGTH)
            await fill(at_a, data)
            await at_a.flush(1)
            assert await read(at_b, LENGTH) == data
            with RpcClient(made.directory / "a" / "a-rpc.sock") as client:
                options = [
                    call["params"]["enable_flush"]
                    for call in client.call("framework_get_config", {"name": "bdev"})
                    if call["method"] == "bdev_nvme_set_options"
                ]
            assert options == [True], "what hosts flush at this agent reaches the containers"
            before = (await made.agent("a"))["incarnation"]
            await made.kill_target("a")
            assert await insist(lambda: read(at_a, LENGTH)) == data
            assert (await made.agent("a"))["incarnation"] > before

    run(work())
