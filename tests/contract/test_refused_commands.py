"""What a target would do by itself, hosts are not offered: a disk at several agents has no common reservation, compare
or copy (design: refused until they work across agents)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from dataplane.embedded.nvme_host import NvmeTcpHost
from tests.contract.front_ends import free_front_end

ONCS_COMPARE, ONCS_RESERVATIONS, ONCS_COPY = 1 << 0, 1 << 5, 1 << 8  # NVMe base specification 2.1, figure 312
HOST = "nqn.2014-08.org.nvmexpress:uuid:5e9a0e0c-0000-4000-8000-0000000c0de1"


@pytest.mark.usefixtures("tcp")
def test_reservations_compare_and_copy_are_not_offered(rpc: Callable[..., Any], nqn: str, malloc: str) -> None:
    where = free_front_end().address
    rpc("nvmf_subsystem_add_ns", nqn=nqn, namespace={"bdev_name": malloc})
    rpc("nvmf_subsystem_allow_any_host", nqn=nqn, allow_any_host=True)
    rpc("nvmf_subsystem_add_listener", nqn=nqn, listen_address=where.params())

    async def offered() -> int:
        host = await NvmeTcpHost.connect(where.traddr, int(where.trsvcid), nqn, HOST, io_queues=1, queue_depth=4)
        try:
            return host.controller.identity.oncs
        finally:
            await host.close()

    assert not asyncio.run(offered()) & (ONCS_COMPARE | ONCS_RESERVATIONS | ONCS_COPY)
