"""`segmap fault-storage`, on a target as an exporter with `faults: true` has it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cli.exit_codes import ExitCode
from dataplane.embedded.bdev import Bdev, transfer
from dataplane.embedded.bdev_delay import DelayBdev
from mapping.rules import Operation
from mapping.status import Status
from tests.embedded.embedded_target import RunningTarget


async def segmap(*words: object, expected: ExitCode = ExitCode.DONE) -> Any:
    command = [sys.executable, "-m", "cli", "fault-storage", *map(str, words), "--json"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == expected, done.stderr
    return json.loads(done.stdout) if expected is ExitCode.DONE else done.stderr


async def status(bdev: Bdev, operation: Operation = Operation.WRITE) -> Status:
    return (await transfer(bdev, operation, 0, 512, bytes(512)))[0]


async def play(directory: Path) -> None:
    async with RunningTarget(directory) as target:
        await target.call("bdev_malloc_create", name="disk", block_size=512, num_blocks=64)
        assert "no bdev EE_disk" in await segmap("fail", target.path, "disk", expected=ExitCode.NOT_FOUND)
        assert "no bdev faults-disk" in await segmap("delay", target.path, "disk", expected=ExitCode.NOT_FOUND)
        await target.call("bdev_error_create", base_name="disk")
        none = {f"{of}_{io}_latency": 0 for of in ("avg", "p99") for io in ("read", "write")}
        await target.call("bdev_delay_create", name="faults-disk", base_bdev_name="EE_disk", **none)
        bdev = target.target.layer.find("faults-disk", DelayBdev)
        assert isinstance(bdev, DelayBdev)

        await segmap("fail", target.path, "disk", "--io", "write", "--count", "2")
        assert [await status(bdev) for _ in range(3)] == [Status.IO_ERROR, Status.IO_ERROR, Status.OK]
        await segmap("delay", target.path, "disk", "--read", "200ms")
        assert bdev.latencies == {"avg_read": 200_000, "p99_read": 200_000, "avg_write": 0, "p99_write": 0}
        assert "a duration" in await segmap("delay", target.path, "disk", "--read", "x", expected=ExitCode.USAGE)

        await segmap("fail", target.path, "disk", "--error", "pending", "--count", "100")
        waiting = asyncio.ensure_future(status(bdev))
        await segmap("heal", target.path, "disk")
        assert await waiting is Status.OK
        assert await status(bdev, Operation.READ) is Status.OK
        assert set(bdev.latencies.values()) == {0}
    await segmap("heal", target.path, "disk", expected=ExitCode.UNREACHABLE)


def test_what_is_told_is_done(runtime_dir: Path) -> None:
    asyncio.run(play(runtime_dir))
