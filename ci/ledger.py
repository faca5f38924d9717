"""The ledger of a test run: time per suite against its budget, which data planes were driven, what was left behind.

A suite is the first directory under tests/. A process, a descriptor or a thread that the tests started and did not end
is a fault of the run, like a suite over its budget.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import tomllib
import uuid
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import uvloop

TOP = Path(__file__).resolve().parent.parent
RUN_VARIABLE = "SEGMAP_TEST_RUN"
SLOWEST_SHOWN = 10
EMBEDDED_SUITES = frozenset({"embedded", "dataplane", "contract", "process"})


def suite_of(nodeid: str) -> str:
    """``tests/agent/test_x.py::test_y`` belongs to suite ``agent``; a file at the top is a suite of its own."""
    parts = nodeid.split("::")[0].split("/")
    return parts[1] if len(parts) > 2 else parts[-1].removesuffix(".py")


def data_plane_of(nodeid: str, needs_spdk: bool) -> str | None:
    """Which data plane a test drives: its marker tells of SPDK, its parameter or its suite of the embedded one."""
    if needs_spdk:
        return "SPDK"
    if "[embedded" in nodeid or suite_of(nodeid) in EMBEDDED_SUITES:
        return "embedded"
    return None


def open_descriptors() -> dict[int, str]:
    """Our own descriptors and what they are; the one that lists them is gone by the time we look."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def processes_of_run(run: str) -> list[str]:
    """Live processes whose environment carries this run's mark, ourselves left out."""
    mark = f"{RUN_VARIABLE}={run}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            if mark not in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                continue
            command = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(f"process {name}: {command.strip()}")
    return found


class Ledger:
    """Durations, data planes and leftovers of one run."""

    def __init__(self, budgets: bool) -> None:
        self.budgets = budgets
        self.run = uuid.uuid4().hex
        self.seconds: dict[str, float] = defaultdict(float)
        self.tests: dict[str, float] = defaultdict(float)
        self.planes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.plane_of: dict[str, str] = {}
        self.faults: list[str] = []
        self.descriptors: dict[int, str] = {}
        self.threads: set[int | None] = set()
        self.started = time.monotonic()

    def begin(self) -> None:
        os.environ[RUN_VARIABLE] = self.run
        # libuv opens a pipe for signals with its first loop and keeps it for good: before we count.
        uvloop.new_event_loop().close()
        self.descriptors = open_descriptors()
        self.threads = {thread.ident for thread in threading.enumerate()}

    def add(self, nodeid: str, phase: str | None, outcome: str, seconds: float) -> None:
        """One phase (setup, call, teardown) of one test."""
        self.seconds[suite_of(nodeid)] += seconds
        self.tests[nodeid] += seconds
        plane = self.plane_of.get(nodeid)
        if plane and (phase == "call" or (phase == "setup" and outcome != "passed")):
            self.planes[plane][outcome] += 1

    def end(self) -> None:
        gc.collect()
        self.faults.extend(f"left running: {line}" for line in processes_of_run(self.run))
        for number, what in open_descriptors().items():
            if number not in self.descriptors and what.startswith(("socket:", "pipe:", "/")) and not is_harmless(what):
                self.faults.append(f"left open: descriptor {number}: {what}")
        for thread in threading.enumerate():
            if thread.ident not in self.threads and not thread.daemon:
                self.faults.append(f"left running: thread {thread.name}")
        if self.budgets:
            self.faults.extend(over_budget(self.seconds, time.monotonic() - self.started, read_budgets()))


def is_harmless(what: str) -> bool:
    return what.startswith(("/dev/null", "/dev/urandom", "/dev/pts", "/proc", str(TOP / ".hypothesis")))


def read_budgets() -> dict[str, float]:
    """Suite name → seconds; ``*`` is the default, ``total`` the sum."""
    table = tomllib.loads((TOP / "ci" / "budgets.toml").read_text())
    return {"*": float(table["default_s"]), "total": float(table["total_s"])} | {
        suite: float(seconds) for suite, seconds in table["suites"].items()
    }


def over_budget(seconds: dict[str, float], total: float, budgets: dict[str, float]) -> list[str]:
    faults = [
        f"over budget: suite {suite} took {took:.1f} s of {budgets.get(suite, budgets['*']):g} s"
        for suite, took in sorted(seconds.items())
        if took > budgets.get(suite, budgets["*"])
    ]
    if total > budgets["total"]:
        faults.append(f"over budget: all suites took {total:.1f} s of {budgets['total']:g} s")
    return faults


def summary_lines(ledger: Ledger) -> Iterable[str]:
    """Time per suite, the slowest tests, and which data planes were driven."""
    budgets = read_budgets()
    yield "time per suite:"
    for suite, took in sorted(ledger.seconds.items(), key=lambda pair: -pair[1]):
        yield f"  {took:7.1f} s of {budgets.get(suite, budgets['*']):4g} s  {suite}"
    yield f"  {time.monotonic() - ledger.started:7.1f} s of {budgets['total']:4g} s  together, collection included"
    yield "slowest tests:"
    for nodeid, took in sorted(ledger.tests.items(), key=lambda pair: -pair[1])[:SLOWEST_SHOWN]:
        yield f"  {took:7.2f} s  {nodeid}"
    yield "data planes tested:"
    for plane in ("embedded", "SPDK"):
        counts = ledger.planes.get(plane)
        text = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) if counts else "no test"
        yield f"  {plane}: {text}"
