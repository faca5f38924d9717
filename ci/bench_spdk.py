"""The bdev module at SPDK's speed: nanoseconds of CPU per 4 KiB I/O, beside SPDK's own bdevs on the same base.

One bdevperf, one core, one leaf bdev at a time, in alternating slices. What is measured is the CPU time of the
reactor's thread per I/O (it polls: all of its time is I/O), which other processes on the machine disturb less than they
disturb the clock. Ratios are of medians. Then the same disk over NVMe/TCP beside its base (`spdk_nvme_perf`, the
clock), and what control costs meanwhile.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from channel.messages import SetEntries, UnbindSlot
from ci.bench import Skip
from ci.plane_driver import PlaneDriver
from ci.rivals import LOAD_CORE, output_of, pinned, wait_for
from mapping.entry import pack
from spdk_rpc.client import RpcClient
from spdk_rpc.commands import spdk_command
from spdk_rpc.find import SpdkNotFound, find_segmap_tgt, find_spdk
from spdk_rpc.methods import framework

TITLE = "SPDK's data plane: CPU ns per 4 KiB I/O on one core, and ratios"
GOALS = {
    "null_read_qd64_1k_entries_to_passthru": ("<=", 1.03),
    "null_write_qd64_1k_entries_to_passthru": ("<=", 1.03),
    "null_read_qd1_1k_entries_to_passthru": ("<=", 1.05),
    "null_write_qd1_1k_entries_to_passthru": ("<=", 1.05),
    "null_read_qd64_1m_entries_to_passthru": ("<=", 1.06),
    "null_read_qd64_1k_entries_to_raid0": ("<=", 1.0),
    "null_read_qd64_1k_entries_to_concat": ("<=", 1.0),
    "tcp_read_to_base": (">=", 0.97),
    "tcp_write_to_base": (">=", 0.97),
    "set_entry_us": ("<=", 20),
    "set_entry_blocking_us": ("<=", 150),
    "bulk_load_entries_per_s": (">=", 100e6),
    "create_64tib_ms": ("<=", 10),
}
ROUNDS = 5
SLICE_S = 1
BLOCK = 4096
MIB = 1 << 20
SMALL, LARGE = 1 << 10, 1 << 20
SLOT = 1
ENTRIES_MAX = 65536
LOADED = 512  # times ENTRIES_MAX
PERF_S = 2
_TABLES = itertools.count(1)
_IOPS = re.compile(r"^Total\s*:\s+([\d.]+)", re.MULTILINE)


class Bench:
    """A bdevperf (or segmap_tgt) with the module, its RPC and its data plane's socket."""

    def __init__(self, process: subprocess.Popen[bytes], client: RpcClient, driver: PlaneDriver) -> None:
        self._pid = process.pid
        self.client = client
        self.driver = driver

    def rpc(self, method: str, **params: Any) -> Any:
        return self.client.call(method, params or None)

    def cpu_ns(self) -> int:
        """What the reactor's thread, the process's first, has run."""
        return int(Path(f"/proc/{self._pid}/task/{self._pid}/schedstat").read_text().split()[0])

    def ns_per_io(self, workload: str, depth: int) -> float:
        """One slice on the bdev that is the only leaf."""
        before = self.cpu_ns()
        result = self.rpc("perform_tests", time_in_sec=SLICE_S, workload_type=workload, queue_depth=depth)
        spent = self.cpu_ns() - before
        (job,) = result["results"]
        return float(spent / (job["iops"] * job["runtime"]))

    @contextmanager
    def base(self, kind: str, segments: int) -> Iterator[str]:
        """A bdev to be below the others."""
        self.rpc(f"bdev_{kind}_create", name="base", block_size=512, num_blocks=(segments + 1) * MIB // 512)
        try:
            yield "base"
        finally:
            self.rpc(f"bdev_{kind}_delete", name="base")

    @contextmanager
    def passthru(self, base: str, segments: int) -> Iterator[None]:
        self.rpc("bdev_passthru_create", name="subject", base_bdev_name=base)
        yield
        self.rpc("bdev_passthru_delete", name="subject")

    @contextmanager
    def raid(self, level: str, base: str, segments: int) -> Iterator[None]:
        sizes = {"strip_size_kb": 64}
        self.rpc("bdev_raid_create", name="subject", raid_level=level, base_bdevs=[base], superblock=False, **sizes)
        yield
        self.rpc("bdev_raid_delete", name="subject")

    @contextmanager
    def lvol(self, base: str, segments: int) -> Iterator[None]:
        self.rpc("bdev_lvol_create_lvstore", bdev_name=base, lvs_name="store", cluster_sz=MIB, clear_method="none")
        size_mib = (segments + 1) * 9 // 10
        self.rpc("bdev_lvol_create", lvs_name="store", lvol_name="subject", size_in_mib=size_mib, clear_method="none")
        yield
        self.rpc("bdev_lvol_delete", name="store/subject")
        self.rpc("bdev_lvol_delete_lvstore", lvs_name="store")

    @contextmanager
    def segmap(self, base: str, segments: int) -> Iterator[int]:
        """A virtual disk, every segment mapped, to somewhere at random. Yields its table."""
        table = next(_TABLES)
        places = array("Q", (pack(SLOT, place) for place in range(1, segments + 1)))
        random.Random(table).shuffle(places)
        self.driver.bind(SLOT, base, segments + 1)
        self.rpc("bdev_segmap_create", name="subject", table=table, segment_count=segments, reclaim=False, slots=[SLOT])
        for start in range(0, segments, ENTRIES_MAX):
            chunk = places[start : start + ENTRIES_MAX]
            self.driver.order(SetEntries(start, len(chunk), chunk), table)
        yield table
        self.rpc("bdev_segmap_delete", name="subject")
        self.driver.order(UnbindSlot(SLOT))


@contextmanager
def started(command: list[str], place: Path, environment: dict[str, str]) -> Iterator[Bench]:
    """The program, initialised, admitted and under a lease."""
    rpc, plane = place / "rpc.sock", place / "plane.sock"
    with (
        (place / "log").open("wb") as log,
        subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for(rpc)
            with RpcClient(rpc, timeout_s=60) as client:
                client.call("bdev_set_options", {"bdev_auto_examine": False})
                client.call("framework_start_init")
                client.run(framework.wait_init())
                wait_for(plane)
                with PlaneDriver(plane) as driver:
                    yield Bench(process, client, driver)
        finally:
            process.terminate()


def programs() -> tuple[Path, Path]:
    """segmap_tgt and bdevperf. Raises Skip."""
    try:
        return find_segmap_tgt(), find_spdk().binary("bdevperf")
    except SpdkNotFound as error:
        raise Skip(str(error)) from None


@contextmanager
def perf_bench(*more: str) -> Iterator[Bench]:
    """A bdevperf on the first core."""
    target, bdevperf = programs()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        environment = {
            "LD_PRELOAD": str(target.with_name("libsegmap_bdev.so")),
            "SEGMAP_DATAPLANE_SOCKET": str(place / "plane.sock"),
        }
        command = spdk_command(bdevperf, place / "rpc.sock", core_mask="0x1", core_locks=False, wait_for_rpc=True)
        with started(
            [*command, "-z", "-q", "1", "-o", str(BLOCK), "-w", "randread", "-t", "1"], place, environment
        ) as at:
            yield at


Subject = Callable[[str, int], Any]


def alternated(
    at: Bench, kind: str, subjects: dict[str, Subject], segments: int, loads: list[tuple[str, int]]
) -> dict[str, float]:
    """Median ns per I/O by "<load> <subject>": every round has every subject once."""
    slices: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, subject in subjects.items():
            with at.base(kind, segments) as base, subject(base, segments):
                for workload, depth in loads:
                    key = f"{workload.removeprefix('rand')}_qd{depth}_{name}"
                    slices.setdefault(key, []).append(at.ns_per_io(workload, depth))
    return {key: median(values) for key, values in slices.items()}


def against(figures: dict[str, float], ns: dict[str, float], kind: str, load: str, name: str, other: str) -> None:
    figures[f"{kind}_{load}_{name}_to_{other}"] = ns[f"{load}_{name}"] / ns[f"{load}_{other}"]


def on_one_core() -> dict[str, float]:
    """Everything that bdevperf measures."""
    figures: dict[str, float] = {}
    with perf_bench() as at:
        loads = [(workload, depth) for workload in ("randread", "randwrite") for depth in (64, 1)]
        small = {
            "passthru": at.passthru,
            "1k_entries": at.segmap,
            "raid0": lambda base, segments: at.raid("raid0", base, segments),
            "concat": lambda base, segments: at.raid("concat", base, segments),
        }
        ns = alternated(at, "null", small, SMALL, loads)
        figures |= {f"null_{key}_ns": value for key, value in ns.items()}
        for workload, depth in loads:
            load = f"{workload.removeprefix('rand')}_qd{depth}"
            for other in ("passthru", "raid0", "concat"):
                against(figures, ns, "null", load, "1k_entries", other)
        ns = alternated(at, "null", {"passthru": at.passthru, "1m_entries": at.segmap}, LARGE, [("randread", 64)])
        figures["null_read_qd64_1m_entries_ns"] = ns["read_qd64_1m_entries"]
        against(figures, ns, "null", "read_qd64", "1m_entries", "passthru")
        figures |= over_malloc(at)
        figures |= control(at)
    return figures


def over_malloc(at: Bench) -> dict[str, float]:
    """Beside a fully allocated lvol, on memory."""
    figures: dict[str, float] = {}
    subjects = {"passthru": at.passthru, "1k_entries": at.segmap, "lvol": at.lvol}
    ns = alternated(at, "malloc", subjects, 200, [("randwrite", 64), ("randread", 64)])
    for load in ("read_qd64", "write_qd64"):
        for other in ("passthru", "lvol"):
            against(figures, ns, "malloc", load, "1k_entries", other)
    return figures


# --- control -----------------------------------------------------------------------------------------------------


def control(at: Bench) -> dict[str, float]:
    """How long changes take while the disk is read as fast as it can be, and how fast a table is loaded."""
    figures: dict[str, float] = {}
    began = time.perf_counter_ns()
    at.rpc("bdev_segmap_create", name="huge", table=1 << 40, segment_count=64 << 20, reclaim=False)
    figures["create_64tib_ms"] = (time.perf_counter_ns() - began) / 1e6
    chunk = array("Q", bytes(8 * ENTRIES_MAX))
    began = time.perf_counter_ns()
    changes = (SetEntries(number * ENTRIES_MAX, ENTRIES_MAX, chunk) for number in range(LOADED))
    at.driver.pour(changes, 1 << 40)
    figures["bulk_load_entries_per_s"] = LOADED * ENTRIES_MAX / ((time.perf_counter_ns() - began) / 1e9)
    at.rpc("bdev_segmap_delete", name="huge")
    with at.base("null", SMALL) as base, at.segmap(base, SMALL) as table:
        reading = threading.Thread(target=at.ns_per_io, args=("randread", 64))
        reading.start()
        for name, blocking in (("set_entry_us", False), ("set_entry_blocking_us", True)):
            figures[name] = median(timed_sets(at, table, [pack(SLOT, 1)], blocking, reading)) / 1e3
        reading.join()
    return figures


def timed_sets(at: Bench, table: int, entry: list[int], blocking: bool, during: threading.Thread) -> list[int]:
    """Nanoseconds of each of many changes of one entry, while the load runs."""
    times: list[int] = []
    while during.is_alive() and len(times) < 500:
        began = time.perf_counter_ns()
        at.driver.order(SetEntries(0, 1, entry), table, blocking=blocking)
        times.append(time.perf_counter_ns() - began)
    return times


# --- over NVMe/TCP -----------------------------------------------------------------------------------------------


def over_tcp() -> dict[str, float]:
    """IOPS of a mapped disk, in terms of those of its base exported by the same target."""
    target, _ = programs()
    perf = find_spdk().binary("spdk_nvme_perf")
    port = "14431"
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        command = spdk_command(target, place / "rpc.sock", core_mask="0x1", core_locks=False, wait_for_rpc=True)
        with started([*command, "--dataplane-socket", str(place / "plane.sock")], place, {}) as at:
            at.rpc("nvmf_create_transport", trtype="TCP")
            at.rpc("bdev_malloc_create", name="bare", block_size=512, num_blocks=64 * MIB // 512)
            with at.base("malloc", 64) as base, at.segmap(base, 64):
                nqns = {"base": "bare", "mapped": "subject"}
                for name, bdev in nqns.items():
                    nqn = f"nqn.2026-11.io.segmap:bench:{name}"
                    address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port}
                    at.rpc("nvmf_create_subsystem", nqn=nqn, allow_any_host=True)
                    at.rpc("nvmf_subsystem_add_ns", nqn=nqn, namespace={"bdev_name": bdev})
                    at.rpc("nvmf_subsystem_add_listener", nqn=nqn, listen_address=address)
                figures = tcp_figures(perf, port, list(nqns))
                for name in nqns:
                    at.rpc("nvmf_delete_subsystem", nqn=f"nqn.2026-11.io.segmap:bench:{name}")
    return figures


def tcp_figures(perf: Path, port: str, names: list[str]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for load in ("read", "write"):
        runs: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            for name, taken in runs.items():
                place = (
                    f"trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:nqn.2026-11.io.segmap:bench:{name}"
                )
                words = ["--no-huge", "-s", "256", "-q", "32", "-o", str(BLOCK), "-w", f"rand{load}", "-t", str(PERF_S)]
                found = _IOPS.search(output_of(pinned(LOAD_CORE, str(perf), *words, "-c", "0x2", "-r", place)))
                if found is None:
                    raise Skip("spdk_nvme_perf printed no total")
                taken.append(float(found[1]))
        figures |= {f"tcp_{load}_{name}_iops": median(taken) for name, taken in runs.items()}
        figures[f"tcp_{load}_to_base"] = figures[f"tcp_{load}_mapped_iops"] / figures[f"tcp_{load}_base_iops"]
    return figures


def run() -> dict[str, float]:
    return on_one_core() | over_tcp()
