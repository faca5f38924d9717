"""Benchmark of durable write faults: agent session, TLS, controller core, SQLite store, and back.

The controller runs in a process of its own, kept on one core. The load generator runs in this one, on the other cores,
and polls, as generators of storage load do: waking it would be measured with every answer. Its ceiling is measured in
the same run against a far end that answers from nothing. The flush cost of the same disk is measured, too.

One fault at a time is a matter of waking and waiting: `floor_per_s_depth_1` is what this machine could do, in the same
run, if TLS, decisions and SQL cost nothing. It is 1 / (tcp + thread + sync): a bare TCP round trip between the two
processes, a bare round trip between the loop's and the store's thread, and an fdatasync that overwrites a log
(`ci/fault_floor.py`). `share_of_floor_depth_1` is how much of it the controller reaches.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import tempfile
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import uvloop

from ci.fault_floor import Cores, Costs, Floor
from ci.fault_load import CONTAINER_SEGMENTS, Agent, Faulter, null_controller
from controller.config import ControllerConfig
from controller.shell import ControllerShell
from transport import pki

TITLE = "durable write faults over TLS, one core for the controller"
GOALS = {
    "faults_per_s_depth_1": (">=", 4_000),
    "faults_per_s_depth_16": (">=", 25_000),
    "faults_per_s_depth_128": (">=", 60_000),
    "p50_minus_3_syncs_ms": ("<=", 0.3),
}
RUNS = 3
FAULTS = {1: 3_000, 16: 40_000, 128: 120_000}
VDISK_SEGMENTS = 1 << 20
SYNCS = 200


def _certificates(directory: Path) -> None:
    pki.init(directory)
    pki.issue(directory, "controller", "controller")
    for name in ("store", "map"):
        pki.issue(directory, name, "agent")


def _config(directory: Path) -> ControllerConfig:
    files = pki.files(directory / "pki", "controller", "controller")
    return ControllerConfig(directory / "store.db", files.ca, files.certificate, files.key)


async def _controller(directory: Path, pipe: Pipe) -> None:
    shell = ControllerShell(_config(directory))
    await shell.start()
    pipe.send(shell.port)
    loop = asyncio.get_running_loop()
    while True:
        request = await loop.run_in_executor(None, pipe.recv)
        if request is None:
            break
        pipe.send(await shell.call(*request))
    await shell.stop()


async def _null(directory: Path, pipe: Pipe) -> None:
    listener, port = await null_controller(directory / "pki")
    pipe.send(port)
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    listener.close_all()


def _serve(directory: Path, cores: Cores, pipe: Pipe, null: bool) -> None:
    """The far end's process."""
    os.sched_setaffinity(0, cores.controller)
    logging.disable(logging.CRITICAL)
    work = _null if null else _controller
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work(directory, pipe))


class FarEnd:
    """The process at the other end of the connection."""

    def __init__(self, directory: Path, cores: Cores, null: bool) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_serve, args=(directory, cores, theirs, null))
        self.process.start()
        self.port: int = self.pipe.recv()

    def call(self, operation: str, args: dict[str, Any]) -> dict[str, Any]:
        self.pipe.send((operation, args))
        result: dict[str, Any] = self.pipe.recv()
        return result

    def stop(self) -> None:
        self.pipe.send(None)
        self.process.join(30)


async def _connected(directory: Path, far: FarEnd) -> tuple[Agent, Faulter]:
    store, mapper = Agent("store", 2), Faulter("map", VDISK_SEGMENTS)
    await store.connect(far.port, directory / "pki", b"s" * 16)
    await mapper.connect(far.port, directory / "pki", b"m" * 16)
    return store, mapper


async def _provision(far: FarEnd, store: Agent, mapper: Faulter) -> None:
    async def call(operation: str, **args: Any) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(None, far.call, operation, args)

    store.export("disk", CONTAINER_SEGMENTS)
    while not (await call("agent.show", agent="store"))["exports"]:
        pass
    await call("container.add", name="c", agent="store", export="disk", contents="zeroed")
    vdisk = await call("vdisk.create", name="v", size_bytes=VDISK_SEGMENTS << 20)
    await call("vdisk.present", name="v", agents=["map"], any_host=True)
    mapper.table = vdisk["number"] << 32 | mapper.number


async def _measure(mapper: Faulter, floor: Floor | None, results: dict[str, float]) -> None:
    """Alternating runs of the floor and all depths; medians."""
    rates: dict[int, list[float]] = {depth: [] for depth in FAULTS}
    latencies: list[float] = []
    floors: list[Costs] = []
    for _ in range(RUNS):
        if floor is not None:
            floors.append(floor.measure())
        for depth, faults in FAULTS.items():
            run = await mapper.run(depth, faults)
            rates[depth].append(run.rate)
            latencies += run.latencies or []
    for depth, found in rates.items():
        results[f"{'faults' if floors else 'ceiling'}_per_s_depth_{depth}"] = median(found)
    if floors:
        results["p50_ms"] = median(latencies) * 1e3
        results["p99_ms"] = quantiles(latencies, n=100)[98] * 1e3
        _show_floor(Costs(*map(median, zip(*floors, strict=True))), results)


def _show_floor(costs: Costs, results: dict[str, float]) -> None:
    for name, cost in costs._asdict().items():
        results[f"floor_{name}_us"] = cost * 1e6
    results["floor_per_s_depth_1"] = costs.rate
    results["share_of_floor_depth_1"] = results["faults_per_s_depth_1"] / costs.rate


async def _load(directory: Path, cores: Cores, floor: Floor | None, results: dict[str, float]) -> None:
    """With a floor to compare with: the controller. Without: the generator's ceiling."""
    loop = asyncio.get_running_loop()
    null = floor is None
    far = await loop.run_in_executor(None, FarEnd, directory, cores, null)
    try:
        store, mapper = await _connected(directory, far)
        if not null:
            await _provision(far, store, mapper)
        await mapper.run(16, 2_000)
        await _measure(mapper, floor, results)
        assert not mapper.failures, "faults were refused"
        store.connection.abort()
        mapper.connection.abort()
    finally:
        await loop.run_in_executor(None, far.stop)


def _sync_ms(directory: Path) -> float:
    """Median fdatasync of a page appended to a file beside the store."""
    times = []
    with (directory / "sync").open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            file.write(bytes(4096))
            began = perf_counter()
            os.fdatasync(file.fileno())
            times.append(perf_counter() - began)
    return median(times) * 1e3


def run() -> dict[str, float]:
    """Medians: rates in 1/s, times in ms."""
    results: dict[str, float] = {}
    cores, before = Cores.ours(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores.generator)
    try:
        with tempfile.TemporaryDirectory() as name:
            _run(Path(name), cores, results)
    finally:
        os.sched_setaffinity(0, before)
    results["p50_minus_3_syncs_ms"] = results["p50_ms"] - 3 * results["fdatasync_ms"]
    return results


def _run(directory: Path, cores: Cores, results: dict[str, float]) -> None:
    _certificates(directory / "pki")
    results["fdatasync_ms"] = _sync_ms(directory)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        floor = Floor(directory, cores)
        try:
            runner.run(_load(directory, cores, floor, results))
        finally:
            floor.stop()
        runner.run(_load(directory, cores, None, results))


if __name__ == "__main__":
    for key, value in run().items():
        print(f"{key:28} {value:12,.3f}")
