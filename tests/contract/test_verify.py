"""Whole histories of verified I/O at SPDK's speed: bdevperf writes, reads back and compares, while segments move.

The daemon does what a controller does: it moves segments (no write, barrier, copy, the new location, barrier, and the
old one is zeroed at once, so that whoever still uses it is found out), forgets entries, and suspends the disk.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from channel.messages import Admit, BindSlot, CopySegments, Resume, SetEntries, Suspend, TableSlots, ZeroSegments
from channel.values import AttachFlags, Header, SegmentCopy, SegmentRun
from mapping.entry import NO_WRITE, pack
from mapping.status import Status
from spdk_rpc.client import RpcClient
from spdk_rpc.errors import RpcError
from spdk_rpc.find import find_spdk
from tests.contract.conftest import binary_of
from tests.embedded.scripted_daemon import CLUSTER, INCARNATION, SECOND, TERM, Daemon
from transport import unix

pytestmark = pytest.mark.spdk

TABLE = 3 << 32 | 1
SLOT = 2
ENTRIES_MAX = 65536
READY_S = 30
PERFORM_S = 60


@dataclass(frozen=True)
class Shape:
    """Bytes of a segment; segments of the disk, and of its container."""

    segment: int
    segments: int
    container_segments: int


SMALL = Shape(64 << 10, 16, 64)
AHEAD = Shape(4 << 10, 70_000, 75_000)  # a table whose entries are fetched ahead


@contextmanager
def bdevperf(directory: Path, core_mask: str, *options: str) -> Iterator[RpcClient]:
    """SPDK's bdevperf with the module, waiting for its work; afterwards it has ended well."""
    module = binary_of("segmap_tgt").with_name("libsegmap_bdev.so")
    program = find_spdk().binary("bdevperf")
    if not module.exists():
        pytest.skip(f"there is no {module}: run make native")
    socket = directory / "rpc.sock"
    memory = ["--no-huge", "-s", "1024", "--no-pci"]
    command = [
        program,
        "-z",
        "--wait-for-rpc",
        "-r",
        socket,
        "-m",
        core_mask,
        "--disable-cpumask-locks",
        *memory,
        *options,
    ]
    environment = os.environ | {"LD_PRELOAD": str(module), "SEGMAP_DATAPLANE_SOCKET": str(directory / "plane.sock")}
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            until = time.monotonic() + READY_S
            while not socket.exists():
                assert process.poll() is None, (directory / "log").read_text()[-2000:]
                assert time.monotonic() < until, "bdevperf does not listen"
            with RpcClient(socket, timeout_s=PERFORM_S) as client:
                client.call("bdev_set_options", {"bdev_auto_examine": False})
                client.call("framework_start_init")
                client.call("framework_wait_init")
                yield client
        finally:
            process.terminate()
    assert process.returncode == 0, (directory / "log").read_text()[-2000:]


class Mover:
    """A daemon that keeps the truth about one disk's segments, and changes it all the time."""

    def __init__(self, daemon: Daemon, shape: Shape, seed: int) -> None:
        self.daemon = daemon
        self.shape = shape
        self.chance = random.Random(seed)
        self.places = list(range(1, 1 + shape.segments))
        self.free = list(range(1 + shape.segments, shape.container_segments))
        self.moves = self.forgotten = self.pauses = 0
        self.ended: asyncio.Future[Any]

    async def ask(self, message: Any, header: Header | None = None) -> None:
        answer = await self.daemon.ask(message, header or self.daemon.header(table=TABLE))
        assert answer.status is Status.OK, (message, answer)

    async def set(self, segment: int, entry: int, blocking: bool = False) -> None:
        await self.ask(SetEntries(segment, 1, [entry]), self.daemon.next(blocking, TABLE))

    async def begin(self, bdev: str) -> None:
        daemon = self.daemon
        await daemon.until(lambda: daemon.hello)
        admit = Admit(CLUSTER, 60 * SECOND, 30 * SECOND, 30 * SECOND)
        daemon.epoch = (await daemon.begin(admit, Header(TERM, INCARNATION)))[1].epoch
        daemon.grant(time.monotonic_ns(), 60 * SECOND)
        size, count = self.shape.segment, self.shape.container_segments
        bind = BindSlot(SLOT, AttachFlags.INITIALIZE, b"v" * 16, CLUSTER, 1, size, count, bdev)
        await self.ask(bind, daemon.header(table=0))
        await self.ask(TableSlots([SLOT]))
        entries = [pack(SLOT, place) for place in self.places]
        for start in range(0, len(entries), ENTRIES_MAX):
            chunk = entries[start : start + ENTRIES_MAX]
            await self.ask(SetEntries(start, len(chunk), chunk), daemon.next(table=TABLE))

    async def move(self) -> None:
        segment = self.chance.randrange(self.shape.segments)
        old, new = self.places[segment], self.free.pop(self.chance.randrange(len(self.free)))
        await self.set(segment, pack(SLOT, old, NO_WRITE), blocking=True)
        await self.ask(CopySegments([SegmentCopy(pack(SLOT, old), pack(SLOT, new))]), self.daemon.header(table=0))
        self.places[segment] = new
        await self.set(segment, pack(SLOT, new), blocking=True)
        await self.ask(ZeroSegments([SegmentRun(pack(SLOT, old), 1)]), self.daemon.header(table=0))
        self.free.append(old)
        self.moves += 1

    async def forget(self) -> None:
        segment = self.chance.randrange(self.shape.segments)
        faults = len(self.daemon.faults())
        await self.set(segment, 0, blocking=self.chance.random() < 0.5)
        if self.shape.segments < 100 and self.chance.random() < 0.5:
            fault = asyncio.ensure_future(self.daemon.until(lambda: len(self.daemon.faults()) > faults))
            await asyncio.wait({fault, self.ended}, return_when=asyncio.FIRST_COMPLETED)
            fault.cancel()
        await self.set(segment, pack(SLOT, self.places[segment]))
        self.forgotten += 1

    async def pause(self) -> None:
        await self.ask(Suspend(), self.daemon.header(table=TABLE, blocking=True))
        await self.ask(Resume())
        self.pauses += 1

    async def until(self, ended: asyncio.Future[Any]) -> None:
        self.ended = ended
        for turn in itertools.count():
            if ended.done():
                return
            await (self.move, self.move, self.forget, self.pause)[turn % 4]()


async def verified(client: RpcClient, plane: Path, shape: Shape, seed: int) -> Mover:
    """One run of bdevperf under changes."""
    blocks = shape.container_segments * shape.segment // 512
    client.call("bdev_malloc_create", {"name": "box", "block_size": 512, "num_blocks": blocks})
    geometry = {"segment_count": shape.segments, "segment_size": shape.segment, "reclaim": False}
    client.call("bdev_segmap_create", {"name": "v", "table": TABLE, **geometry})
    mover = Mover(Daemon(await unix.connect(plane)), shape, seed)
    await mover.begin("box")
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Any] = loop.run_in_executor(None, client.call, "perform_tests", {})
    await mover.until(ended)
    try:
        result = ended.result()
    finally:
        mover.daemon.connection.close()
        await mover.daemon.until(lambda: mover.daemon.ended)
    for job in result["results"]:
        assert job["io_failed"] == job["io_timeout"] == 0, job
        assert job["runtime"] > 0, job
    client.call("bdev_segmap_delete", {"name": "v"})
    return mover


def run(directory: Path, shape: Shape, seed: int, seconds: int, core_mask: str) -> None:
    print(f"seed {seed}")
    options = ["-T", "v", "-q", "64", "-o", "4096", "-w", "verify", "-t", str(seconds)]
    if core_mask != "0x1":
        options.append("-C")  # a job on every core, each with blocks of its own
    with bdevperf(directory, core_mask, *options) as client:
        try:
            mover = asyncio.run(verified(client, directory / "plane.sock", shape, seed))
        except RpcError as error:
            pytest.fail(f"{error}\n{(directory / 'log').read_text()[-2000:]}")
    print(f"{mover.moves} moves, {mover.forgotten} forgotten, {mover.pauses} pauses")
    assert min(mover.moves, mover.forgotten, mover.pauses) > 0


def test_what_was_written_is_read_while_segments_move(runtime_dir: Path) -> None:
    run(runtime_dir, SMALL, 1, 2, "0x1")


@pytest.mark.long
@pytest.mark.parametrize("core_mask", ["0x1", "0x3"])
@pytest.mark.parametrize("shape", [SMALL, AHEAD], ids=["small", "ahead"])
@pytest.mark.parametrize("seed", [10, 11])
def test_long_histories(runtime_dir: Path, seed: int, shape: Shape, core_mask: str) -> None:
    run(runtime_dir, shape, seed, 15, core_mask)
