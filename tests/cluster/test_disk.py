"""The whole loop: a vdisk written through one agent and read through another, and each part killed under it."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvloop

from dataplane.embedded.nvme_host import NvmeTcpHost
from tests.cluster.cluster import MIB, Cluster

if TYPE_CHECKING:
    from tests.cluster.conftest import Stage

SIZE = 256 * MIB
CHUNK = 4 * MIB
LENGTH = 12 * MIB


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def pattern(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


async def fill(host: Any, data: bytes, at: int = 0) -> None:
    for offset in range(0, len(data), CHUNK):
        await host.write(1, at + offset, data[offset : offset + CHUNK])


async def read(host: Any, length: int, at: int = 0) -> bytes:
    return b"".join(
        [bytes(await host.read(1, at + offset, min(CHUNK, length - offset))) for offset in range(0, length, CHUNK)]
    )


async def ready_disk(made: Cluster, length: int = LENGTH) -> tuple[NvmeTcpHost, NvmeTcpHost, bytes]:
    """A disk at both agents with `length` bytes written through a; hosts at a and b, and the bytes."""
    await made.disk("d", SIZE, ["a", "b"])
    at_a, at_b = await made.connect("d", "a"), await made.connect("d", "b")
    data = pattern(7, length)
    await fill(at_a, data)
    return at_a, at_b, data


@asynccontextmanager
async def disk(made: Cluster) -> AsyncIterator[tuple[NvmeTcpHost, NvmeTcpHost, bytes]]:
    """`ready_disk`, deleted at the end with everything allocated for it."""
    at_a, at_b, data = await ready_disk(made)
    yield at_a, at_b, data
    await at_a.close()
    await at_b.close()
    await made.call("vdisk.delete", name="d", force=True)
    containers = (await made.call("container.list"))["containers"]
    assert not any(container["segments"]["mapped"] for container in containers), "everything is free again"


def test_written_through_one_agent_read_through_the_other(stage: Stage) -> None:
    async def play(made: Cluster) -> None:
        async with disk(made) as (at_a, at_b, data):
            assert at_a.namespaces[1].uuid == at_b.namespaces[1].uuid
            assert await read(at_b, MIB, at=64 * MIB) == bytes(MIB), "a new disk reads as zeroes"
            assert hashlib.sha256(await read(at_b, len(data))).digest() == hashlib.sha256(data).digest()
            await fill(at_b, data[:MIB], at=MIB)
            assert await read(at_a, MIB, at=MIB) == data[:MIB], "a change through b is seen through a"
            shown = await made.call("vdisk.show", name="d")
            assert shown["allocated_segments"] >= LENGTH // MIB

    stage.run(play)
