"""SPDK's host programs against our target, and our host against SPDK's target. Skipped where SPDK is not installed."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
import uvloop

from dataplane.embedded.nvme_host import NvmeHostError, NvmeTcpHost, discover
from fabric.nvme_tcp.limits import TransportLimits
from fabric.nvme_tcp.spec import DISCOVERY_NQN, Status
from spdk_rpc.commands import spdk_command
from spdk_rpc.containers import MallocContainer
from spdk_rpc.exports import Export, ExportNamespace
from spdk_rpc.find import SpdkNotFound, find_spdk
from spdk_rpc.target import Target
from tests.contract.front_ends import free_front_end
from tests.fabric.nvme_tcp.rig import HOST, NQN, Rig
from tests.fabric.nvme_tcp.test_shells import Served, served

pytestmark = pytest.mark.spdk
PATIENCE_S = 60.0
MEMORY = ("--no-huge", "-s", "256")


def program(name: str) -> str:
    if os.geteuid() != 0:
        pytest.skip("SPDK's programs need root")
    try:
        return str(find_spdk().binary(name))
    except SpdkNotFound as error:
        pytest.skip(f"real SPDK: {error}")


def where(at: Served, subnqn: str = NQN) -> str:
    return f"trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{at.port} subnqn:{subnqn} hostnqn:{HOST}"


async def output_of(*command: str) -> str:
    """What a program prints; it has to succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            text, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, text.decode()
    return text.decode()


def rig(fast: bool = True) -> Rig:
    """Open to any host: spdk_nvme_identify makes up a host NQN."""
    each = Rig(TransportLimits(max_io_size=131072), fast=fast, uuid=b"u" * 16)
    each.target.allow_any_host(NQN, True)
    return each


def test_identify() -> None:
    identify = program("spdk_nvme_identify")

    async def test() -> None:
        async with served(rig()) as at:
            text = await output_of(identify, *MEMORY, "-r", where(at))
            assert "Serial Number:                         S1" in text
            assert "Max Data Transfer Size:                131072" in text
            assert "Size (in LBAs):                        4096" in text
            assert "Volatile Write Cache:        Present" in text

    uvloop.run(test())


def test_discovery() -> None:
    identify = program("spdk_nvme_identify")

    async def test() -> None:
        async with served(rig()) as at:
            text = await output_of(identify, *MEMORY, "-r", where(at, DISCOVERY_NQN))
            assert "Discovery Log" in text
            assert NQN in text

    uvloop.run(test())


@pytest.mark.parametrize(
    ("fast", "options"),
    [
        pytest.param(True, ("-o", "4096", "-w", "randrw", "-M", "50", "-q", "32"), id="small"),
        pytest.param(False, ("-o", "131072", "-w", "randrw", "-M", "50", "-q", "8"), id="large"),
        pytest.param(True, ("-o", "4096", "-w", "randrw", "-M", "50", "-q", "32", "-H", "-I"), id="digests"),
        pytest.param(False, ("-o", "262144", "-w", "randwrite", "-q", "8", "-P", "3"), id="split"),
    ],
)
def test_perf(fast: bool, options: tuple[str, ...]) -> None:
    perf = program("spdk_nvme_perf")

    async def test() -> None:
        async with served(rig(fast)) as at:
            text = await output_of(perf, *MEMORY, "-t", "1", *options, "-r", where(at))
            (total,) = [line for line in text.splitlines() if line.startswith("Total")]
            assert float(total.split()[2]) > 0
            assert "Failed to" not in text

    uvloop.run(test())


@pytest.mark.parametrize(("size", "digests"), [(4096, False), (65536, True), (262144, False)])
def test_bdevperf_reads_back_what_it_wrote(size: int, digests: bool, runtime_dir: Path) -> None:
    bdevperf = program("bdevperf")

    async def test() -> None:
        async with served(rig(fast=not digests)) as at:
            parameters = {
                "name": "N", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(at.port),
                "subnqn": NQN, "hostnqn": HOST, "hdgst": digests, "ddgst": digests,
            }  # fmt: skip
            attach = {"method": "bdev_nvme_attach_controller", "params": parameters}
            config = {"subsystems": [{"subsystem": "bdev", "config": [attach]}]}
            path = runtime_dir / "bdevperf.json"
            path.write_text(json.dumps(config))
            rpc_socket = str(runtime_dir / "bdevperf.sock")
            # A depth at which the verified ranges, which do not overlap, fit into the namespace.
            depth = str(min(16, 2 * 1024 * 1024 // size // 2))
            arguments = ("-q", depth, "-o", str(size), "-w", "verify", "-t", "1", "--json", str(path), "-r", rpc_socket)
            text = await output_of(bdevperf, "--no-huge", "-s", "1024", "--no-pci", *arguments)
            assert "fail" not in text.lower() or "Fail/s" in text
            assert any(at.rig.memory)

    uvloop.run(test())


@pytest.mark.parametrize("digests", [False, True])
def test_our_host_against_spdk(digests: bool, runtime_dir: Path) -> None:
    command = spdk_command(Path(program("spdk_tgt")), runtime_dir / "rpc.sock", core_mask="0x1", core_locks=False)

    async def test() -> None:
        target = await Target.start(
            command, runtime_dir / "rpc.sock", log_path=runtime_dir / "log", ready_s=30.0, front_end=free_front_end()
        )
        try:
            await target.attach(MallocContainer("m", 512, 16384, "12345678-2222-3333-4444-555555555556"))
            place = await target.export(Export(NQN, (ExportNamespace(1, "m"),), frozenset({HOST})))
            await use(place.traddr, place.trsvcid, digests)
        finally:
            await target.stop()

    async def use(traddr: str, trsvcid: str, digests: bool) -> None:
        assert NQN in {entry.subnqn for entry in await discover(traddr, trsvcid, HOST)}
        with pytest.raises(NvmeHostError) as caught:
            await NvmeTcpHost.connect(traddr, trsvcid, NQN, "nqn.2026-11.io.segmap:stranger")
        assert caught.value.status & 0x7FF == Status.CONNECT_INVALID_HOST
        host = await NvmeTcpHost.connect(traddr, trsvcid, NQN, HOST, header_digest=digests, data_digest=digests)
        assert (host.namespaces[1].block_size, host.namespaces[1].block_count) == (512, 16384)
        assert host.controller.queues[0].framing.header_digest is digests
        data = os.urandom(1 << 20)
        for length in (512, 4096, 8192, 131072, 1 << 20):
            await host.write(1, 512, data[:length])
            assert await host.read(1, 512, length) == data[:length]
        await host.flush(1)
        await host.write_zeroes(1, 0, 1 << 20)
        assert await host.read(1, 0, 1 << 20) == bytes(1 << 20)
        await host.deallocate(1, [(0, 4096), (65536, 4096)])
        await host.close()

    uvloop.run(test())
