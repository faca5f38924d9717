"""Benchmark of failures: how long hosts wait when a data plane or the controller is killed and started again.

Real processes on loopback, a container host and one mapping agent, SIGKILL under load; a small disk, and a thin one of
64 TiB with 2^20 mapped segments. "own" is the time from the start of the new data plane's process to the first I/O that
a host has completed, less the confirmed fencing of the one before and less one fault's round trip. Everything, the load
too, shares this machine's cores: on a busy one look at the processor times, of the data plane until the first I/O and
of the controller until the first answered fault. Bytecode is cached as where segmap is installed, in a directory of
this run.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import time
from typing import Any, Final

import uvloop

from ci.failover_check import measure_check
from ci.failover_cluster import MIB, Load, filled_cluster, loaded_host, settled
from ci.failover_timeline import Timeline, processor_s, started_at
from dataplane.embedded.nvme_host import ReconnectPolicy
from dataplane.embedded.patient_host import PatientHost
from tests.cluster.cluster import Cluster, pause

TITLE = "SIGKILL of a data plane and of the controller, under load; a check of 2^20 mapped segments under faults"
GOALS = {
    "small_own_s": ("<=", 1.0),
    "large_own_s": ("<=", 1.0),
    "controller_start_to_fault_s": ("<=", 2.0),
    "gap_ratio_depth_1": ("<=", 2.0),
    "gap_ratio_depth_8": ("<=", 2.0),
    "check_stall_ms": ("<=", 20.0),
}
ROUNDS: Final = 3
SETTLE_S: Final = 1.0
DOWN_S: Final = 3.0
QUIET_S: Final = 6.0
SMALL: Final = 64  # segments
LARGE: Final = 1 << 26
MAPPED: Final = 1 << 20
LOADED: Final = 256
DEPTH: Final = 8
FAULTS: Final = 30
READ_AHEAD: Final = 512
QUICK: Final = ReconnectPolicy(0.01, 0.02)


async def _until(made: Cluster, condition: Any) -> None:
    await made.until(condition, 60)


# --- a data plane ----------------------------------------------------------------------------------------------------


async def _kill_plane(made: Cluster, host: PatientHost, returned: list[float], load: Load) -> dict[str, float]:
    """One failover, piece by piece."""
    agent = made.agents["a"]
    line = Timeline(agent.log, made.controller.log)
    returned.clear()
    killed = time()
    await made.kill_target("a")
    await _until(made, lambda: returned and load.first_after(returned[0]))
    spent = processor_s(made.target_pid("a"))
    first = load.first_after(returned[0])
    assert first is not None
    await _until(made, lambda: line.when(r"target \d+ started"))
    begun = started_at(made.target_pid("a"))
    moments = [
        killed,
        begun,
        line.when(r"target \d+ started"),
        line.when("fencing agent a "),
        line.when("agent a incarnation .* is fenced"),
        line.when("agent a is connected"),
        returned[0],
        first,
    ]
    names = ["killed_to_start", "start_to_ready", "ready_to_hello", "fence", "admit", "present_connect", "first_io"]
    pieces = {
        name: later - earlier
        for name, earlier, later in zip(names, moments, moments[1:], strict=False)
        if later is not None and earlier is not None
    }
    return {**pieces, "kill_to_io": first - killed, "start_to_io": first - begun, "plane_processor": spent}


async def _fault_s(host: PatientHost, begin: int) -> float:
    """Median of reads of segments that the data plane's table does not have: one fault each."""
    times = []
    for number in range(FAULTS):
        began = time()
        await host.read(1, (begin + number * READ_AHEAD) * MIB, 4096)
        times.append(time() - began)
    return median(times)


async def _planes(made: Cluster, prefix: str, segments: int, size: int, results: dict[str, float]) -> None:
    returned: list[float] = []
    host = await loaded_host(made, reconnect=QUICK, on_restored=lambda: returned.append(time()))
    load = Load(host, DEPTH, segments)
    load.start()
    rounds = []
    for _ in range(ROUNDS):
        await pause(SETTLE_S)
        rounds.append(await _kill_plane(made, host, returned, load))
    await load.stop()
    fault_s = await _fault_s(host, size - FAULTS * READ_AHEAD - READ_AHEAD) if size > FAULTS * READ_AHEAD * 2 else 0.0
    for name in rounds[0]:
        results[f"{prefix}_{name}_s"] = median(one[name] for one in rounds)
    results[f"{prefix}_own_s"] = median(one["start_to_io"] - one["fence"] for one in rounds) - fault_s
    if fault_s:
        results["fault_ms"] = fault_s * 1e3
    await host.close()


# --- the controller --------------------------------------------------------------------------------------------------


async def _restart_controller(made: Cluster, host: PatientHost, segment: int, results: dict[str, list[float]]) -> None:
    """Down for a while; a write that needs it waits from the beginning."""
    made.controller.kill()
    line = Timeline(made.controller.log)
    write = asyncio.create_task(host.write(1, segment * MIB, bytes(4096)))
    await pause(DOWN_S)
    assert not write.done(), "it needed no fault"
    began = time()
    made.controller.start()
    await write
    ended = time()
    assert made.controller.process is not None
    results.setdefault("controller_processor_s", []).append(processor_s(made.controller.process.pid))
    moments = [began, *(line.when(text) for text in ("opening the store", "listening on", "agent a is connected"))]
    for name, earlier, later in zip(("import", "open", "connect"), moments, moments[1:], strict=False):
        if earlier is not None and later is not None:
            results.setdefault(f"controller_{name}_s", []).append(later - earlier)
    results.setdefault("controller_start_to_fault_s", []).append(ended - began)
    await _until(made, lambda: settled(made))


async def _controllers(made: Cluster, results: dict[str, float]) -> None:
    host = await loaded_host(made)
    found: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        await pause(SETTLE_S)
        await _restart_controller(made, host, MAPPED + 4096 * (number + 1), found)
    results |= {name: median(values) for name, values in found.items()}
    await host.close()


async def _gap(made: Cluster, depth: int, results: dict[str, float]) -> None:
    """Longest I/O on loaded segments: undisturbed, and through a restart of the controller."""
    host = await loaded_host(made)
    for segment in range(LOADED):
        await host.read(1, segment * MIB, 4096)
    load = Load(host, depth, LOADED)
    load.start()
    await pause(SETTLE_S)
    quiet = time()
    await pause(QUIET_S)
    killed = time()
    made.controller.kill()
    await pause(DOWN_S)
    made.controller.start()
    started = time()
    await _until(made, lambda: settled(made))
    await pause(SETTLE_S)
    end = time()
    await pause(QUIET_S)
    undisturbed_s = max(load.longest(quiet, killed), load.longest(end, time()))
    await load.stop()
    results[f"quiet_longest_ms_depth_{depth}"] = undisturbed_s * 1e3
    results[f"down_longest_ms_depth_{depth}"] = load.longest(killed, started) * 1e3
    results[f"start_longest_ms_depth_{depth}"] = load.longest(started, end) * 1e3
    results[f"gap_ratio_depth_{depth}"] = load.longest(killed, end) / undisturbed_s
    await host.close()


# --- all of it -------------------------------------------------------------------------------------------------------


@contextmanager
def _bytecode(directory: Path) -> Iterator[None]:
    """Processes cache their bytecode, as installed ones do."""
    before = dict(os.environ)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(directory)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


async def _measure(directory: Path, results: dict[str, float]) -> None:
    for name in ("small", "large"):
        (directory / name).mkdir()
    async with filled_cluster(directory / "small", SMALL, 0) as made:
        await _planes(made, "small", SMALL // 2, SMALL, results)
    async with filled_cluster(directory / "large", LARGE, MAPPED) as made:
        await _planes(made, "large", MAPPED, LARGE, results)
        await _controllers(made, results)
        for depth in (1, DEPTH):
            await _gap(made, depth, results)
        await measure_check(made, results)


def run() -> dict[str, float]:
    """Medians of the rounds, in seconds and milliseconds as named."""
    results = {"load_average": os.getloadavg()[0]}
    with (
        tempfile.TemporaryDirectory(prefix="segmap-failover-") as name,
        _bytecode(Path(name) / "pycache"),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_measure(Path(name), results))
    return results


if __name__ == "__main__":
    for key, value in run().items():
        print(f"{key:32} {value:12,.3f}")
