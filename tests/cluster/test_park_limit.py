"""A stopped daemon: without its lease nothing begins and nothing succeeds; what waits goes on, up to the park limit."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dataplane.embedded.nvme_host import NvmeStatusError, NvmeTcpHost
from fabric.nvme_tcp.spec import DNR, Status
from tests.cluster.cluster import LEASE_S, MIB, Cluster, cluster, pause
from tests.cluster.test_disk import run

SIZE = 64 * MIB
BLOCK = 4096
EXPIRED_S = LEASE_S + 0.5
RETRYABLE = {Status.NAMESPACE_NOT_READY, Status.INTERNAL_PATH_ERROR}


def tag(number: int) -> bytes:
    return f"the write with number {number:08d}.".encode().ljust(64, b".")


@dataclass(slots=True)
class Write:
    """One write: when it was asked for, when it ended, and how (0: success)."""

    number: int
    begun_s: float
    ended_s: float
    status: int


class Writer:
    """Writes one block after the other, each with a tag of its own, until it is told to stop."""

    def __init__(self, host: NvmeTcpHost) -> None:
        self._host = host
        self.writes: list[Write] = []
        self.stopped = False

    async def work(self) -> None:
        number = 0
        while not self.stopped:
            number += 1
            begun_s, status = time.monotonic(), 0
            try:
                await self._host.write(1, number * BLOCK % SIZE, tag(number).ljust(BLOCK, b"-"))
            except NvmeStatusError as error:
                status = error.status
            self.writes.append(Write(number, begun_s, time.monotonic(), status))
            await pause(0.01)


def lands(made: Cluster, number: int) -> bool:
    """Whether the write has reached a container."""
    return any(tag(number) in (made.directory / f"c{index}.img").read_bytes() for index in range(2))


async def stop_daemon(made: Cluster, seconds: float) -> tuple[list[Write], float, float, bool]:
    """Write through agent a while its daemon is stopped for a while: the writes, from when to when it surely had no
    lease, and whether the write that waited then had reached a container."""
    await made.disk("d", SIZE, ["a"])
    writer = Writer(await made.connect("d", "a", io_timeout=120.0))
    working = asyncio.ensure_future(writer.work())
    await made.until(lambda: len(writer.writes) > 20)
    made.agents["a"].signal(signal.SIGSTOP)
    stopped_s = time.monotonic()
    await pause(EXPIRED_S)
    waiting = writer.writes[-1].number + 1
    await pause(seconds - EXPIRED_S)
    landed = await asyncio.to_thread(lands, made, waiting)
    going_on_s = time.monotonic()
    made.agents["a"].signal(signal.SIGCONT)
    count = len(writer.writes)
    await made.until(lambda: len(writer.writes) > count + 20)
    writer.stopped = True
    await working
    return writer.writes, stopped_s + EXPIRED_S, going_on_s, landed


@pytest.mark.parametrize("seconds", [LEASE_S + 2, pytest.param(30, marks=pytest.mark.long)])
def test_io_waits_for_a_stopped_daemon_and_goes_on_without_an_error(runtime_dir: Path, seconds: float) -> None:
    async def work() -> None:
        async with cluster(runtime_dir, containers_in_memory=False, park_limit_s=60.0) as made:
            writes, expired_s, going_on_s, landed = await stop_daemon(made, seconds)
            assert not landed, "no I/O is begun after expiry"
            assert not [one for one in writes if expired_s < one.ended_s < going_on_s]
            (waited,) = [one for one in writes if one.begun_s < expired_s and one.ended_s > going_on_s]
            assert waited.status == 0 and waited.ended_s - waited.begun_s > seconds - EXPIRED_S
            begun_before = [one for one in writes if one.status]
            assert len(begun_before) <= 1, "only what was under way as the lease ended"
            assert all(one.status in RETRYABLE for one in begun_before)
            assert await asyncio.to_thread(lands, made, waited.number)

    run(work())


@pytest.mark.long
def test_at_the_park_limit_hosts_are_told_to_try_again(runtime_dir: Path) -> None:
    async def work() -> None:
        settings = {"park_limit_s": 4.0, "space_deadline_s": 2.0}
        async with cluster(runtime_dir, containers_in_memory=False, **settings) as made:
            writes, expired_s, going_on_s, landed = await stop_daemon(made, 15)
            assert not landed
            ended = [one for one in writes if expired_s < one.ended_s < going_on_s]
            assert len(ended) >= 2
            for one in ended:
                assert one.status == Status.NAMESPACE_NOT_READY and not one.status & DNR
                assert 3.5 < one.ended_s - one.begun_s < 6
            later = [one.number for one in writes if one.begun_s > going_on_s]
            assert all(one.status == 0 for one in writes if one.number in later[1:])
            for one in ended:
                assert not await asyncio.to_thread(lands, made, one.number), "what was given up never lands"

    run(work())
