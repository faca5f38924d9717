"""The whole loop: a vdisk written through one agent and read through another, and each part killed under it."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from tests.cluster.cluster import MIB, cluster

SIZE = 256 * MIB
CHUNK = 4 * MIB


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


def test_written_through_one_agent_read_through_the_other(runtime_dir: Path) -> None:
    async def work() -> None:
        async with cluster(runtime_dir) as made:
            await made.disk("d", SIZE, ["a", "b"])
            at_a, at_b = await made.connect("d", "a"), await made.connect("d", "b")
            assert at_a.namespaces[1].uuid == at_b.namespaces[1].uuid
            assert await read(at_b, MIB, at=64 * MIB) == bytes(MIB), "a new disk reads as zeroes"
            data = pattern(1, 24 * MIB)
            await fill(at_a, data)
            assert hashlib.sha256(await read(at_b, len(data))).digest() == hashlib.sha256(data).digest()
            await fill(at_b, data[:MIB], at=MIB)
            assert await read(at_a, MIB, at=MIB) == data[:MIB], "a change through b is seen through a"
            shown = await made.call("vdisk.show", name="d")
            assert shown["allocated_segments"] >= 24

    run(work())
