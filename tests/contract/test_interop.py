"""One target is SPDK, the other is ours: what a mixed cluster does to a container, in both directions."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from spdk_rpc.containers import MallocContainer, NvmeTcpContainer
from spdk_rpc.errors import RpcError
from spdk_rpc.exports import Export, ExportNamespace
from spdk_rpc.methods import nvmf
from spdk_rpc.target import Target
from tests.contract.conftest import NQN, READY_S, command_of
from tests.contract.front_ends import free_front_end

pytestmark = pytest.mark.spdk
HOST = "nqn.2026-11.io.segmap:agent:a:1"
CONTAINER = MallocContainer("shared", 512, 8192, "12345678-2222-3333-4444-555555555555")


@dataclass
class Mixed:
    exporter: Target
    mapper: Target


@pytest.fixture(params=[("embedded", "spdk"), ("spdk", "embedded")], ids=["embedded-exports", "spdk-exports"])
def directory(request: pytest.FixtureRequest) -> Iterator[tuple[Path, tuple[str, str]]]:
    path = Path("/tmp") / f"segmap-{uuid.uuid4().hex[:12]}"
    path.mkdir(mode=0o700)
    yield path, request.param
    shutil.rmtree(path, ignore_errors=True)


async def start(plane: str, rpc_socket: Path, core_mask: str) -> Target:
    command = command_of(plane, rpc_socket, core_mask=core_mask)
    log, front_end = rpc_socket.with_suffix(".log"), free_front_end()
    return await Target.start(command, rpc_socket, log_path=log, ready_s=READY_S, front_end=front_end)


async def share_and_fence(mixed: Mixed) -> None:
    """Attach, see the same disk, lose it to the fence, come back as the next incarnation."""
    nqn = NQN + "mixed"
    (there,) = await mixed.exporter.attach(CONTAINER)
    where = await mixed.exporter.export(Export(nqn, (ExportNamespace(1, CONTAINER.name),), frozenset({HOST})))
    container = NvmeTcpContainer("container7", where.traddr, where.trsvcid, nqn, HOST, hdgst=True, ddgst=True)
    (here,) = await mixed.mapper.attach(container)
    assert (here.name, here.uuid, here.size_bytes) == ("container7n1", there.uuid, there.size_bytes)
    assert {"read", "write", "flush"} <= here.supported
    pairs = await mixed.exporter.client.run(nvmf.subsystem_get_qpairs(nqn))
    assert {pair.hostnqn for pair in pairs} == {HOST}
    assert await mixed.exporter.deny_host(nqn, HOST) is True
    assert await mixed.exporter.client.run(nvmf.subsystem_get_qpairs(nqn)) == ()
    await mixed.mapper.detach(container)
    with pytest.raises(RpcError):
        await mixed.mapper.attach(container)
    following = HOST.replace(":1", ":2")
    await mixed.exporter.allow_host(nqn, following)
    back = NvmeTcpContainer("container7", where.traddr, where.trsvcid, nqn, following)
    assert [bdev.name for bdev in await mixed.mapper.attach(back)] == ["container7n1"]
    await mixed.mapper.detach(back)
    await mixed.exporter.withdraw(nqn)


def test_container_is_shared_and_fenced(directory: tuple[Path, tuple[str, str]]) -> None:
    path, (exporter_plane, mapper_plane) = directory

    async def run() -> None:
        exporter = await start(exporter_plane, path / "exporter.sock", "0x1")
        try:
            mapper = await start(mapper_plane, path / "mapper.sock", "0x2")
            try:
                await share_and_fence(Mixed(exporter, mapper))
            finally:
                assert await mapper.stop() == 0
        finally:
            assert await exporter.stop() == 0

    asyncio.run(run())
