"""`segmap up` for real: every process of configs/quickstart.yaml, driven by the commands a person would type."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.commands.vdisks import host_url
from cli.exit_codes import ExitCode
from cli.supervisor.child import process_exists

TOP = Path(__file__).resolve().parents[2]
QUICKSTART = TOP / "configs" / "quickstart.yaml"
READY_S = 60.0
END_S = 30.0


@dataclass
class Running:
    """A cluster started by `segmap up`, and how to command it."""

    process: subprocess.Popen[bytes]
    facts: dict[str, Any]

    def run(self, *words: str, expected: ExitCode = ExitCode.DONE) -> Any:
        """One command: its JSON document."""
        environment = os.environ | {"SEGMAP_API": self.facts["api"]}
        answer = subprocess.run(
            [sys.executable, "-m", "cli", *words, "--json"],
            env=environment,
            cwd=TOP,
            capture_output=True,
            text=True,
            check=False,
            timeout=READY_S,
        )
        assert answer.returncode == expected, answer.stderr
        return json.loads(answer.stdout)

    @property
    def pids(self) -> list[int]:
        return [int(row["pid"]) for row in self.facts["processes"] if row["pid"]]


def start(runtime_dir: Path) -> Running:
    """Starts it and waits until it says what runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "up", str(QUICKSTART), "--runtime-dir", str(runtime_dir), "--json"],
        cwd=TOP,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    text = b""
    deadline = time.monotonic() + READY_S
    while not text.endswith(b"\n}\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        more = os.read(process.stdout.fileno(), 65536) if ready else b""
        if not more:
            process.terminate()
            process.communicate(timeout=END_S)
            pytest.fail(f"segmap up did not come up: {text.decode()}")
        text += more
    return Running(process, json.loads(text))


def wait_gone(pids: list[int]) -> list[int]:
    """Waits for the kernel to tell that each process has ended; those that have not."""
    left = []
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            ready, _, _ = select.select([descriptor], [], [], END_S)
        finally:
            os.close(descriptor)
        if not ready and process_exists(pid):
            left.append(pid)
    return left


@pytest.fixture(scope="module")
def cluster() -> Generator[Running, None, None]:
    """One cluster for the commands of this module; ended by SIGTERM, and nothing may be left."""
    running = start(Path("/tmp") / f"segmap-up-{os.getpid()}")
    try:
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.communicate(timeout=END_S)
        subprocess.run(["rm", "-rf", f"/tmp/segmap-up-{os.getpid()}"], check=True)
    assert running.process.returncode == 0
    assert wait_gone(running.pids) == []


@pytest.mark.claim(1, 6, 7, 16)
def test_everything_is_connected(cluster: Running) -> None:
    status = cluster.run("status")
    assert {agent["name"]: agent["state"] for agent in status["agents"]} == dict.fromkeys(
        ("a", "b", "store"), "admitted"
    )
    assert {row["name"]: row["state"] for row in status["containers"]} == {"disk": "ready", "memory": "ready"}


@pytest.mark.claim(1, 11, 16, 24, 25, 26, 30, 33, 34)
def test_data_written_at_one_agent_is_read_at_the_other(cluster: Running, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom((5 << 20) + 777))
    created = cluster.run("vdisk", "create", "d", "--size", "1GiB")
    assert (created["segment_count"], created["allocated_segments"]) == (1024, 0)
    cluster.run("vdisk", "present", "d", "--agent", "a", "--agent", "b", "--any-host")
    urls = {item["agent"]: host_url(item) for item in cluster.run("vdisk", "show", "d")["presentations"]}
    written = cluster.run("io", "copy", str(source), urls["a"], "--to-offset", "3MiB", "--verify")
    assert written["verified"] is True
    cluster.run("io", "copy", urls["b"], str(copy), "--from-offset", "3MiB", "--length", str(written["bytes"]))
    assert copy.read_bytes() == source.read_bytes()

    shown = cluster.run("vdisk", "map", "d", "--png", str(tmp_path / "map.png"))
    mapped = [run for run in shown["runs"] if run["state"] == "mapped"]
    assert sum(run["count"] for run in mapped) >= 6
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")

    told = cluster.run("vdisk", "explain", "d", str((4 << 20) + 512))
    assert (told["segment"], told["offset_in_segment"]) == (4, 512)
    entry = cluster.run("agent", "entries", "b", "d", "--start", "4", "--count", "1")["entries"][0]
    assert (entry["slot"], entry["physical_segment"]) == (told["slot"], told["physical_segment"])
    assert told["container_offset"] == told["physical_segment"] * (1 << 20) + 512


def test_a_disk_goes_away_as_it_came(cluster: Running) -> None:
    cluster.run("vdisk", "create", "gone", "--size", "16MiB")
    cluster.run("vdisk", "present", "gone", "--agent", "a", "--any-host")
    cluster.run("vdisk", "delete", "gone", expected=ExitCode.CONFLICT)
    cluster.run("vdisk", "withdraw", "gone")
    cluster.run("vdisk", "delete", "gone")
    cluster.run("vdisk", "show", "gone", expected=ExitCode.NOT_FOUND)


def test_what_is_refused_says_so(cluster: Running) -> None:
    error = cluster.run("vdisk", "show", "nowhere", expected=ExitCode.NOT_FOUND)["error"]
    assert error["code"] == "not_found" and "nowhere" in error["message"]
    words = ("container", "add", "again", "--export", "store/disk")
    assert cluster.run(*words, expected=ExitCode.CONFLICT)["error"]["message"]


def test_everything_there_is_can_be_listed(cluster: Running) -> None:
    assert len(cluster.run("container", "list")["containers"]) == 2
    assert cluster.run("container", "show", "disk")["exporter"] == "store"
    assert {agent["name"] for agent in cluster.run("agent", "list")["agents"]} == {"a", "b", "store"}
    assert cluster.run("agent", "show", "store")["exports"]
    assert cluster.run("io", "parked")["parked"] == []
    assert cluster.run("events")["events"]


def test_a_killed_supervisor_leaves_nothing_running(runtime_dir: Path) -> None:
    running = start(runtime_dir)
    running.process.kill()
    running.process.communicate(timeout=END_S)
    assert wait_gone(running.pids) == []


def test_one_directory_has_one_supervisor(cluster: Running) -> None:
    directory = str(Path(cluster.facts["api"]).parent)
    words = [sys.executable, "-m", "cli", "up", str(QUICKSTART), "--runtime-dir", directory]
    answer = subprocess.run(words, cwd=TOP, capture_output=True, text=True, check=False, timeout=READY_S)
    assert answer.returncode == ExitCode.CONFLICT
    assert "another `segmap up` runs there" in answer.stderr


def test_paths_that_are_too_long_for_sockets_are_told_at_once(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "cli", "up", str(QUICKSTART), "--runtime-dir", str(tmp_path / ("x" * 100))]
    answer = subprocess.run(words, cwd=TOP, capture_output=True, text=True, check=False, timeout=READY_S)
    assert answer.returncode == ExitCode.USAGE
    assert "at most 107 bytes" in answer.stderr and "--runtime-dir" in answer.stderr
