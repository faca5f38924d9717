"""A check of the whole cluster while faults go on: what it does to their latency. Part of the failover benchmark."""

from __future__ import annotations

import asyncio
from statistics import quantiles
from time import perf_counter
from typing import Any, Final

from ci.failover_cluster import FILLER, connected_filler, keep_lease
from ci.fault_load import Faulter
from tests.cluster.cluster import Cluster, pause

VDISK: Final = "e"
VDISK_SEGMENTS: Final = 1 << 19
BATCH: Final = 200
QUIET_BATCHES: Final = 20
POLL_S: Final = 0.1


async def measure_check(made: Cluster, results: dict[str, float]) -> None:
    """Latencies of durable write faults at depth 1, without and with a check under way."""
    filler = await connected_filler(made, VDISK_SEGMENTS)
    leased = asyncio.create_task(keep_lease(filler))
    try:
        vdisk = await made.call("vdisk.create", name=VDISK, size_bytes=VDISK_SEGMENTS << 20)
        await made.call("vdisk.present", name=VDISK, agents=[FILLER], any_host=True)
        filler.table = vdisk["number"] << 32 | filler.number
        quiet = [taken for _ in range(QUIET_BATCHES) for taken in await _latencies(filler)]
        began = perf_counter()
        check: asyncio.Task[dict[str, Any]] = asyncio.create_task(_checked(made))
        busy: list[float] = []
        while not check.done():
            busy += await _latencies(filler)
        report = await check
        results["check_s"] = perf_counter() - began
        assert report["good"] and not filler.failures, report
        for name, latencies in (("quiet", quiet), ("check", busy)):
            found = quantiles(latencies, n=1000)
            results[f"{name}_fault_p50_ms"] = found[499] * 1e3
            results[f"{name}_fault_p99_ms"] = found[989] * 1e3
            results[f"{name}_fault_longest_ms"] = max(latencies) * 1e3
        results["check_stall_ms"] = results["check_fault_p99_ms"] - results["quiet_fault_p99_ms"]
    finally:
        leased.cancel()
        filler.connection.abort()


async def _latencies(filler: Faulter) -> list[float]:
    return (await filler.run(1, BATCH)).latencies or []


async def _checked(made: Cluster) -> dict[str, Any]:
    """Begin a check and wait for its end."""
    report = await made.call("cluster.check")
    while report["state"] == "running":
        await pause(POLL_S)
        report = await made.call("cluster.check", run=report["run"])
    return report
