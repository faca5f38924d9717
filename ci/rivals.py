"""Other storage targets, RAM-backed, with their own generators, one core each: the measure for our embedded target."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ci.bench import Skip

TARGET_CORE = 0
LOAD_CORE = 1
SIZE = 256 << 20
SECONDS = 3
IQN = "iqn.2026-11.io.segmap:bench"


def need(program: str) -> str:
    """The program's path. Raises Skip."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise Skip(f"{program} is not installed")
    return path


def pinned(core: int, *command: str) -> list[str]:
    """The command, on one core."""
    return ["taskset", "-c", str(core), *command]


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server for the length of the block, stopped and reaped at its end."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def output_of(command: list[str]) -> str:
    """What it prints. Raises Skip if it fails, with its last line."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
        raise Skip(f"{command[0]} failed: {lines[-1]}")
    return done.stdout + done.stderr


def nbdkit_iops() -> float:
    """nbdkit's memory plugin, fio's nbd engine: 4 KiB random reads at depth 32."""
    fio, nbdkit = need("fio"), need("nbdkit")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "nbd.sock"
        command = pinned(TARGET_CORE, nbdkit, "-f", "-U", str(path), "memory", str(SIZE))
        with running(command, Path(place) / "log"):
            wait_for(path)
            text = output_of(
                pinned(
                    LOAD_CORE, fio, "--name=bench", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={path}",
                    "--rw=randread", "--bs=4k", "--iodepth=32", f"--size={SIZE}", "--time_based",
                    f"--runtime={SECONDS}", "--output-format=terse", "--terse-version=3",
                )
            )  # fmt: skip
    for line in text.splitlines():
        if line.startswith("3;"):
            return float(line.split(";")[7])
    raise Skip("fio's nbd engine printed no result")


def tgt_iops() -> float:
    """tgt on a file in memory, iscsi-perf: 4 KiB random reads at depth 32."""
    tgtd, admin, load = need("tgtd"), need("tgtadm"), need("iscsi-perf")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        disk = Path(place) / "disk"
        with disk.open("wb") as file:
            file.truncate(SIZE)
        port, control = 20000 + os.getpid() % 10000, str(os.getpid() % 30000)
        command = pinned(TARGET_CORE, tgtd, "-f", "-C", control, "--iscsi", f"portal=127.0.0.1:{port}")
        with running(command, Path(place) / "log"):
            wait_for(Path(f"/run/tgtd/socket.{control}"))
            tell = [admin, "-C", control, "--lld", "iscsi", "--op"]
            until_works([*tell, "new", "--mode", "target", "--tid", "1", "-T", IQN])
            output_of([*tell, "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", str(disk)])
            output_of([*tell, "bind", "--mode", "target", "--tid", "1", "-I", "ALL"])
            url = f"iscsi://127.0.0.1:{port}/{IQN}/1"
            text = output_of(pinned(LOAD_CORE, load, "-m", "32", "-b", "8", "-r", "-t", str(SECONDS), url))
            subprocess.run(
                [admin, "-C", control, "--op", "delete", "--mode", "system", "--force"],
                stderr=subprocess.DEVNULL,
                check=False,
            )
    found = re.findall(r"^iops average (\d+)", text.replace("\r", "\n"), re.MULTILINE)
    if not found:
        raise Skip("iscsi-perf printed no result")
    return float(found[-1])


def wait_for(path: Path, seconds: float = 5.0) -> None:
    """Until a server's socket is there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists():
            return
        time.sleep(0.05)
    raise Skip(f"{path.name} did not appear")


def until_works(command: list[str], seconds: float = 5.0) -> None:
    """Run it until it succeeds: its server may not listen yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            output_of(command)
        except Skip:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
