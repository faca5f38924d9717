"""A flush is worth something only if it reaches the container: from a host, through a target, as the agent attaches it.

SPDK answers flushes of its NVMe bdevs by itself unless it is told otherwise before the first one is attached.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import uvloop

from agent.core.procedures import attach
from agent.core.work import Ask, Procedure
from channel.events import ResponseReceived
from channel.messages import AttachContainer, Attached, BindSlot, UnbindSlot
from channel.values import Header, MessageType
from dataplane.embedded.nvme_host import NvmeTcpHost
from mapping.status import Status
from spdk_rpc.exports import Export, ExportNamespace
from spdk_rpc.target import Target
from tests.contract.conftest import NQN, PLANES, READY_S, command_of
from tests.contract.front_ends import free_front_end
from tests.fabric.nvme_tcp.rig import FLUSH, Rig
from tests.fabric.nvme_tcp.rig import NQN as CONTAINER
from tests.fabric.nvme_tcp.test_shells import Served, served

PATIENCE_S = 60.0
HOST = NQN + "host"
UUID = bytes(range(16))


def bound(kind: MessageType) -> ResponseReceived:
    """What a data plane says that has opened the container."""
    return ResponseReceived(Header(), kind, Attached(Status.OK, "", 2, 512, True), b"", None)


async def carry_out(target: Target, procedure: Procedure) -> Any:
    """The procedure's response: its calls are the target's to answer, its questions a data plane's."""
    value: Any = None
    while True:
        try:
            step = procedure.send(value)
        except StopIteration as stop:
            return stop.value
        if isinstance(step, Ask):
            assert isinstance(step.message, BindSlot | UnbindSlot)
            value = bound(MessageType.BIND_SLOT)
        else:
            assert not hasattr(step, "delay_ns")
            value = await target.client.run(step)


def container(at: Served, slot: int, agent: str) -> Procedure:
    place = ("TCP", "127.0.0.1", str(at.port), CONTAINER)
    return attach(AttachContainer(slot, 1, UUID, UUID, 1, 1 << 20, 2, 0, *place, f"c{slot}"), agent, 1)


async def flushes_of(target: Target, each: Rig, bdev_name: str) -> int:
    """How many of a host's three flushes of an export of that bdev the container sees."""
    nqn = NQN + "flushed"
    where = await target.export(Export(nqn, (ExportNamespace(1, bdev_name),), frozenset({HOST})))
    host = await NvmeTcpHost.connect(where.traddr, where.trsvcid, nqn, hostnqn=HOST)
    try:
        before = [opcode for opcode, *_ in each.executed].count(FLUSH)
        for number in range(3):
            await host.write(1, 4096 * number, bytes(4096))
            await host.flush(1)
        return [opcode for opcode, *_ in each.executed].count(FLUSH) - before
    finally:
        await host.close()
        await target.withdraw(nqn)


@pytest.mark.parametrize("plane", PLANES)
def test_flushes_reach_the_container_that_the_agent_attached(plane: str, runtime_dir: Path) -> None:
    command = command_of(plane, runtime_dir / "rpc.sock", core_mask="0x2")

    async def work() -> None:
        each = Rig(fast=False, uuid=UUID)
        each.target.allow_any_host(CONTAINER, True)
        target = await Target.start(
            command,
            runtime_dir / "rpc.sock",
            log_path=runtime_dir / "log",
            ready_s=READY_S,
            front_end=free_front_end(),
        )
        try:
            async with asyncio.timeout(PATIENCE_S), served(each) as at:
                for _ in range(2):
                    response = await carry_out(target, container(at, 4, "a"))
                    assert response.status == Status.OK, response.detail
                assert await flushes_of(target, each, "container4n1") == 3
                assert (await target.bdev("container4n1")) is not None
                await carry_out(target, container(at, 4, "b"))
                assert await flushes_of(target, each, "container4n1") == 3, "as another host: attached anew"
        finally:
            assert await target.stop() == 0, (runtime_dir / "log").read_text()[-2000:]

    uvloop.run(work())
