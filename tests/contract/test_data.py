"""Data over NVMe/TCP: SPDK's bdevperf writes patterns to a target's export, reads them back and compares."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spdk_rpc.exports import Export, ExportNamespace
from spdk_rpc.find import SpdkNotFound, find_spdk
from spdk_rpc.methods.nvmf import Address
from spdk_rpc.target import Target
from tests.contract.conftest import NQN, Plane
from tests.contract.front_ends import free_front_end

pytestmark = pytest.mark.spdk
HOST = "nqn.2026-11.io.segmap:contract:host"
SUBSYSTEM = NQN + "data"


@pytest.fixture
def bdevperf() -> Path:
    try:
        return find_spdk().binary("bdevperf")
    except SpdkNotFound as error:
        pytest.skip(f"bdevperf of a real SPDK: {error}")


@pytest.fixture
def where(plane: Plane, malloc: str) -> Iterator[Address]:
    """An export of a malloc bdev that HOST may attach."""
    with asyncio.Runner() as runner:
        target = runner.run(Target.adopt(plane.rpc_socket, front_end=free_front_end()))
        export = Export(SUBSYSTEM, (ExportNamespace(1, malloc),), hosts=frozenset({HOST}))
        yield runner.run(target.export(export))
        runner.run(target.withdraw(SUBSYSTEM))
        runner.run(target.close())


def configuration(where: Address, digests: bool) -> dict[str, Any]:
    attach = {
        "name": "c",
        "trtype": "TCP",
        "adrfam": "IPv4",
        "traddr": where.traddr,
        "trsvcid": where.trsvcid,
        "subnqn": SUBSYSTEM,
        "hostnqn": HOST,
        "hdgst": digests,
        "ddgst": digests,
    }
    calls = [
        {"method": "bdev_nvme_set_options", "params": {"enable_flush": True}},
        {"method": "bdev_nvme_attach_controller", "params": attach},
        {"method": "bdev_wait_for_examine"},
    ]
    return {"subsystems": [{"subsystem": "bdev", "config": calls}]}


@pytest.mark.parametrize(
    ("size", "digests"), [(4096, False), (131072, True)], ids=["4-KiB-plain", "128-KiB-with-digests"]
)
def test_what_is_written_is_read(
    rpc: Callable[..., Any],
    bdevperf: Path,
    runtime_dir: Path,
    where: Address,
    malloc: str,
    size: int,
    digests: bool,
) -> None:
    config = runtime_dir / "bdevperf.json"
    config.write_text(json.dumps(configuration(where, digests)))
    words = ["--no-huge", "-s", "512", "--no-pci", "-m", "0x2", "--disable-cpumask-locks", "-r", runtime_dir / "p.sock"]
    load = ["-q", "8" if size == 4096 else "2", "-o", str(size), "-w", "verify", "-t", "1", "-c", config]
    done = subprocess.run([bdevperf, *words, *load], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (counted,) = rpc("bdev_get_iostat", names=[malloc])["bdevs"]
    # bdevperf has verified; this says that it was our data plane, however busy the machine is.
    assert counted["bytes_written"] >= 10 * size
    assert counted["bytes_read"] >= 10 * size
