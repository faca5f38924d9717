"""The embedded target on one core: random reads beside tgt and nbdkit, a mapped vdisk beside the bare bdev.

The load is SPDK's own `spdk_nvme_perf` on the other core; runs alternate, so that ratios compare like with like.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from ci.bench import Skip
from ci.plane_driver import PlaneDriver
from ci.rivals import LOAD_CORE, SECONDS, TARGET_CORE, nbdkit_iops, output_of, pinned, running, tgt_iops, wait_for
from mapping.entry import pack
from spdk_rpc.client import RpcClient
from spdk_rpc.commands import embedded_command, spdk_command
from spdk_rpc.find import Installation, SpdkNotFound, find_spdk
from spdk_rpc.methods import bdev, bdev_segmap, framework, nvmf
from spdk_rpc.methods.bdev_segmap import SegmapBdev
from spdk_rpc.methods.nvmf import Address

TITLE = "embedded target, loopback, one core; generators on the other core"
GOALS = {
    "ratio_to_tgt": (">=", 1.0),
    "ratio_to_nbdkit": (">=", 0.6),
    "ratio_mapped_to_unmapped": (">=", 0.85),
    "read_1mib_bytes_per_s": (">=", 1.5e9),
}
ROUNDS = 3
MIB = 1 << 20
SEGMENTS = 255
TABLE = 1
BARE, MAPPED = "nqn.2026-11.io.segmap:bench:bare", "nqn.2026-11.io.segmap:bench:mapped"


def _prepare(client: RpcClient, port: int, disks: dict[str, str]) -> None:
    client.run(nvmf.create_transport("TCP"))
    for nqn, disk in disks.items():
        client.run(nvmf.create_subsystem(nqn, serial_number="BENCH", allow_any_host=True))
        client.run(nvmf.subsystem_add_ns(nqn, disk))
        client.run(nvmf.subsystem_add_listener(nqn, Address("TCP", "IPv4", "127.0.0.1", str(port))))


@contextmanager
def embedded(port: int) -> Iterator[None]:
    """The embedded target with a bare malloc bdev and a vdisk that is mapped onto another one."""
    with tempfile.TemporaryDirectory() as place:
        rpc, plane = Path(place) / "rpc.sock", Path(place) / "plane.sock"
        with running(pinned(TARGET_CORE, *embedded_command(rpc, plane)), Path(place) / "log"):
            wait_for(rpc)
            wait_for(plane)
            with RpcClient(rpc, timeout_s=10) as client, PlaneDriver(plane) as driver:
                for name in ("bare", "base"):
                    client.run(bdev.malloc_create(name, 512, (SEGMENTS + 1) * MIB // 512))
                driver.bind(0, "base", SEGMENTS + 1)
                client.run(bdev_segmap.create(SegmapBdev("disk", _UUID, TABLE, SEGMENTS, MIB, 512)))
                driver.map(TABLE, [0], array("Q", [pack(0, 1 + number) for number in range(SEGMENTS)]))
                _prepare(client, port, {BARE: "bare", MAPPED: "disk"})
                yield


@contextmanager
def spdk(installed: Installation, port: int) -> Iterator[None]:
    """A stock spdk_tgt with the same malloc bdev: what the generator can be given at most."""
    with tempfile.TemporaryDirectory() as place:
        rpc = Path(place) / "rpc.sock"
        command = spdk_command(installed.binary("spdk_tgt"), rpc, core_mask=hex(1 << TARGET_CORE), core_locks=False)
        with running(command, Path(place) / "log"):
            wait_for(rpc)
            with RpcClient(rpc, timeout_s=20) as client:
                client.run(framework.wait_init())
                client.run(bdev.malloc_create("bare", 512, 64 * MIB // 512))
                _prepare(client, port, {BARE: "bare"})
                yield


_UUID = "11111111-2222-4333-8444-555555555555"


def perf(installed: Installation, port: int, nqn: str, size: int, depth: int) -> float:
    """IOPS of random reads, by spdk_nvme_perf."""
    address = f"trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:{nqn}"
    options = ["-q", str(depth), "-o", str(size), "-w", "randread", "-t", str(SECONDS), "-c", hex(1 << LOAD_CORE)]
    binary = installed.binary("spdk_nvme_perf")
    text = output_of([str(binary), "--no-huge", "-s", "256", *options, "-r", address])
    found = re.search(r"^Total\s*:\s+([\d.]+)", text, re.MULTILINE)
    if found is None:
        raise Skip("spdk_nvme_perf printed no result")
    return float(found[1])


def _optional(results: dict[str, list[float]], name: str, measure: Callable[[], float]) -> None:
    try:
        results.setdefault(name, []).append(measure())
    except (Skip, subprocess.TimeoutExpired) as why:
        print(f"target: no {name}: {why}")


def run() -> dict[str, float]:
    """Medians of alternating runs. Ratios are of the medians. Raises Skip where SPDK's generator is not installed."""
    try:
        installed = find_spdk()
        installed.binary("spdk_nvme_perf")
    except SpdkNotFound as why:
        raise Skip(str(why)) from why
    if (os.cpu_count() or 1) < 2:
        raise Skip("needs two cores")
    runs: dict[str, list[float]] = {}
    for round_number in range(ROUNDS):
        port = 21000 + os.getpid() % 9000 + 2 * round_number
        with embedded(port):
            runs.setdefault("iops_4kib_unmapped", []).append(perf(installed, port, BARE, 4096, 32))
            runs.setdefault("iops_4kib_mapped", []).append(perf(installed, port, MAPPED, 4096, 32))
            runs.setdefault("read_1mib_bytes_per_s", []).append(perf(installed, port, BARE, MIB, 4) * MIB)
        _optional(runs, "iops_4kib_tgt", tgt_iops)
        _optional(runs, "iops_4kib_nbdkit", nbdkit_iops)
    with spdk(installed, port + 1):
        runs["iops_4kib_spdk_tgt"] = [perf(installed, port + 1, BARE, 4096, 32)]
    medians = {name: median(values) for name, values in runs.items()}
    for name, over, under in (
        ("ratio_to_tgt", "iops_4kib_unmapped", "iops_4kib_tgt"),
        ("ratio_to_nbdkit", "iops_4kib_unmapped", "iops_4kib_nbdkit"),
        ("ratio_mapped_to_unmapped", "iops_4kib_mapped", "iops_4kib_unmapped"),
    ):
        if under in medians:
            medians[name] = medians[over] / medians[under]
    return medians
