"""Faults put under a container: the error and the delay bdev, on the embedded target and on SPDK."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from dataplane.embedded.nvme_host import NvmeStatusError, NvmeTcpHost
from fabric.nvme_tcp import spec
from spdk_rpc.containers import DelayContainer, ErrorContainer, MallocContainer
from spdk_rpc.converge import TargetConflict
from spdk_rpc.exports import Export, ExportNamespace
from spdk_rpc.methods import bdev as typed
from spdk_rpc.target import Target
from tests.contract.conftest import NQN, Plane
from tests.contract.front_ends import free_front_end
from tests.contract.shapes import check_shape

DECODE, INTERNAL = -32602, -32603
EPERM, EEXIST, ENODEV, EINVAL = -1, -17, -19, -22
LATENCIES = {"avg_read_latency": 0, "p99_read_latency": 0, "avg_write_latency": 0, "p99_write_latency": 0}
PATTERN = bytes(range(256)) * 16
HOST = "nqn.2026-11.io.segmap:contract:host"


@pytest.fixture
def error(rpc: Callable[..., Any], malloc: str) -> Iterator[str]:
    assert rpc("bdev_error_create", base_name=malloc) is True
    yield f"EE_{malloc}"
    rpc("bdev_error_delete", name=f"EE_{malloc}")


@pytest.fixture
def delay(rpc: Callable[..., Any], malloc: str) -> Iterator[str]:
    name = f"delay-{malloc}"
    assert rpc("bdev_delay_create", name=name, base_bdev_name=malloc, **LATENCIES) == name
    yield name
    rpc("bdev_delay_delete", name=name)


# --- what there is -------------------------------------------------------------------------------------------------


def test_an_error_bdev_stands_on_its_base(rpc: Callable[..., Any], malloc: str, error: str) -> None:
    (found,), (base,) = rpc("bdev_get_bdevs", name=error), rpc("bdev_get_bdevs", name=malloc)
    assert found["product_name"] == "Error Injection Disk"
    assert found["driver_specific"] == {"error_disk": {"base_bdev": malloc}}
    assert (found["block_size"], found["num_blocks"]) == (base["block_size"], base["num_blocks"])
    assert found["uuid"] != base["uuid"]
    assert (found["claimed"], base["claimed"], base["claim_type"]) == (False, True, "exclusive_write")
    assert {"read", "write", "unmap", "flush"} <= {name for name, has in found["supported_io_types"].items() if has}


def test_a_delay_bdev_stands_on_its_base(rpc: Callable[..., Any], malloc: str) -> None:
    name, given, latencies = f"d-{malloc}", str(uuid.uuid4()), dict(zip(LATENCIES, (1, 20, 300, 4000), strict=True))
    assert rpc("bdev_delay_create", name=name, base_bdev_name=malloc, uuid=given, **latencies) == name
    (found,), (base,) = rpc("bdev_get_bdevs", name=name), rpc("bdev_get_bdevs", name=malloc)
    assert (found["product_name"], found["uuid"], base["claimed"]) == ("delay", given, True)
    values = {"name": name, "base_bdev_name": malloc, "uuid": given, **latencies}
    check_shape(found["driver_specific"], {"delay": {name: type(value) for name, value in values.items()}})
    assert found["driver_specific"]["delay"] == values
    assert {"method": "bdev_delay_create", "params": values} in rpc("framework_get_config", name="bdev")
    assert rpc("bdev_delay_update_latency", delay_bdev_name=name, latency_type="p99_write", latency_us=7) is True
    assert rpc("bdev_get_bdevs", name=name)[0]["driver_specific"]["delay"]["p99_write_latency"] == 7
    assert rpc("bdev_delay_delete", name=name) is True
    assert rpc("bdev_get_bdevs", name=malloc)[0]["claimed"] is False


def test_one_on_the_other(rpc: Callable[..., Any], malloc: str, error: str) -> None:
    name = f"d-{malloc}"
    assert rpc("bdev_delay_create", name=name, base_bdev_name=error, **LATENCIES) == name
    assert rpc("bdev_get_bdevs", name=error)[0]["claimed"] is True
    assert rpc("bdev_delay_delete", name=name) is True


def test_what_stands_on_a_base_goes_with_it_and_comes_back_with_it(
    rpc: Callable[..., Any], code_of: Callable[..., int]
) -> None:
    base = f"m-{uuid.uuid4().hex[:8]}"
    assert rpc("bdev_error_create", base_name=base) is True, "there is no such base yet"
    assert code_of("bdev_get_bdevs", {"name": f"EE_{base}"}) == ENODEV
    rpc("bdev_malloc_create", name=base, block_size=512, num_blocks=64)
    assert rpc("bdev_get_bdevs", name=f"EE_{base}")[0]["num_blocks"] == 64
    assert code_of("bdev_error_create", {"base_name": base}) == EEXIST
    assert rpc("bdev_malloc_delete", name=base) is True
    assert code_of("bdev_get_bdevs", {"name": f"EE_{base}"}) == ENODEV


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("bdev_error_create", {}, DECODE),
        ("bdev_error_create", {"base_name": "x", "bogus": 1}, DECODE),
        ("bdev_error_delete", {"name": "nosuch"}, ENODEV),
        ("bdev_error_delete", {}, DECODE),
        ("bdev_error_resume_pending", {"name": "nosuch"}, ENODEV),
        ("bdev_error_inject_error", {"name": "nosuch", "io_type": "read", "error_type": "failure"}, ENODEV),
        ("bdev_error_inject_error", {"name": "nosuch", "io_type": "bogus", "error_type": "failure"}, DECODE),
        ("bdev_error_inject_error", {"name": "nosuch", "io_type": "read", "error_type": "bogus"}, DECODE),
        ("bdev_error_inject_error", {"name": "nosuch", "io_type": "read"}, DECODE),
        ("bdev_delay_create", {"name": "d", "base_bdev_name": "nosuch", "avg_read_latency": 1}, INTERNAL),
        ("bdev_delay_create", {"name": "d", "base_bdev_name": "n", **LATENCIES, "avg_read_latency": -1}, INTERNAL),
        ("bdev_delay_create", {"name": "d", "base_bdev_name": "n", **LATENCIES, "avg_read_latency": 9}, EINVAL),
        ("bdev_delay_delete", {"name": "nosuch"}, ENODEV),
        ("bdev_delay_delete", {}, INTERNAL),
        ("bdev_delay_update_latency", {"delay_bdev_name": "n", "latency_type": "avg_read", "latency_us": 1}, DECODE),
        ("bdev_delay_update_latency", {"delay_bdev_name": "n", "latency_type": "bogus", "latency_us": 1}, INTERNAL),
    ],
)
def test_refused(code_of: Callable[..., int], method: str, params: dict[str, Any], code: int) -> None:
    assert code_of(method, params) == code


@pytest.mark.parametrize(
    "wrong",
    [
        {"error_type": "nvme_failure"},
        {"error_type": "failure", "nvme_sc": 3},
        {"error_type": "corrupt_data"},
    ],
)
def test_injections_that_contradict_themselves(code_of: Callable[..., int], error: str, wrong: dict[str, Any]) -> None:
    assert code_of("bdev_error_inject_error", {"name": error, "io_type": "read", **wrong}) == EINVAL


def test_only_of_its_own_kind(code_of: Callable[..., int], malloc: str, error: str) -> None:
    injection = {"io_type": "read", "error_type": "failure"}
    assert code_of("bdev_error_inject_error", {"name": malloc, **injection}) == ENODEV
    assert code_of("bdev_error_delete", {"name": malloc}) == ENODEV
    assert code_of("bdev_delay_delete", {"name": error}) == ENODEV
    assert code_of("bdev_malloc_delete", {"name": error}) == ENODEV


def test_a_base_carries_one(code_of: Callable[..., int], malloc: str, error: str) -> None:
    params = {"name": f"second-{malloc}", "base_bdev_name": malloc, **LATENCIES}
    assert code_of("bdev_delay_create", params) == EPERM
    assert code_of("bdev_error_create", {"base_name": malloc}) == EEXIST


# --- what they do --------------------------------------------------------------------------------------------------


def through(plane: Plane, bdev: str, play: Callable[[NvmeTcpHost, Callable[..., Any]], Awaitable[None]]) -> None:
    """A host's view of an export of the bdev."""
    subsystem = NQN + uuid.uuid4().hex[:8]

    def rpc(method: str, **params: Any) -> Awaitable[Any]:
        return asyncio.to_thread(plane.client.call, method, params)

    async def run() -> None:
        target = await Target.adopt(plane.rpc_socket, front_end=free_front_end())
        try:
            export = Export(subsystem, (ExportNamespace(1, bdev),), hosts=frozenset({HOST}))
            where = await target.export(export)
            host = await NvmeTcpHost.connect(where.traddr, where.trsvcid, subsystem, HOST, reconnect=None)
            try:
                await play(host, rpc)
            finally:
                await host.close()
                await target.withdraw(subsystem)
        finally:
            await target.close()

    asyncio.run(run())


async def fails(io: Awaitable[Any]) -> int:
    with pytest.raises(NvmeStatusError) as caught:
        await io
    return caught.value.status & spec.STATUS_MASK


def test_as_many_fail_as_were_told(plane: Plane, error: str) -> None:
    async def play(host: NvmeTcpHost, rpc: Callable[..., Any]) -> None:
        await host.write(1, 0, PATTERN)
        await rpc("bdev_error_inject_error", name=error, io_type="write", error_type="failure", num=2)
        for _ in range(2):
            await fails(host.write(1, 0, bytes(4096)))
        assert await host.read(1, 0, 4096) == PATTERN, "reads are not concerned, and nothing was written"
        await host.write(1, 0, bytes(4096))
        await rpc("bdev_error_inject_error", name=error, io_type="all", error_type="failure", num=1000)
        await fails(host.read(1, 0, 4096))
        await fails(host.flush(1))
        await rpc("bdev_error_inject_error", name=error, io_type="clear", error_type="failure")
        assert await host.read(1, 0, 4096) == bytes(4096)

    through(plane, error, play)


def test_an_nvme_status_is_given_to_the_host(plane: Plane, error: str) -> None:
    async def play(host: NvmeTcpHost, rpc: Callable[..., Any]) -> None:
        injection = {"name": error, "io_type": "write", "error_type": "nvme_failure"}
        await rpc("bdev_error_inject_error", **injection, nvme_sct=0, nvme_sc=spec.Status.CAPACITY_EXCEEDED)
        assert await fails(host.write(1, 0, PATTERN)) == spec.Status.CAPACITY_EXCEEDED
        await host.write(1, 0, PATTERN)

    through(plane, error, play)


def test_a_byte_that_is_read_is_wrong(plane: Plane, error: str) -> None:
    async def play(host: NvmeTcpHost, rpc: Callable[..., Any]) -> None:
        await host.write(1, 0, PATTERN)
        injection = {"name": error, "error_type": "corrupt_data", "corrupt_offset": 700, "corrupt_value": 0x81}
        await rpc("bdev_error_inject_error", **injection, io_type="read", num=1)
        found = bytes(await host.read(1, 0, 4096))
        assert [at for at in range(4096) if found[at] != PATTERN[at]] == [700]
        assert found[700] == PATTERN[700] ^ 0x81
        assert await host.read(1, 0, 4096) == PATTERN
        await rpc("bdev_error_inject_error", **injection, io_type="write", num=1)
        await host.write(1, 0, PATTERN)
        found = bytes(await host.read(1, 0, 4096))
        assert [at for at in range(4096) if found[at] != PATTERN[at]] == [700]

    through(plane, error, play)


def test_what_is_pending_goes_on_when_it_may(plane: Plane, error: str) -> None:
    async def play(host: NvmeTcpHost, rpc: Callable[..., Any]) -> None:
        await rpc("bdev_error_inject_error", name=error, io_type="write", error_type="pending", num=10)
        writing = asyncio.ensure_future(host.write(1, 0, PATTERN))
        assert await host.read(1, 4096, 4096) == bytes(4096)
        assert await host.read(1, 0, 4096) == bytes(4096)
        assert not writing.done()
        await rpc("bdev_error_resume_pending", name=error)
        await writing
        assert await host.read(1, 0, 4096) == PATTERN
        await host.write(1, 0, bytes(4096))

    through(plane, error, play)


def test_without_memory_it_is_tried_again(plane: Plane, error: str) -> None:
    async def play(host: NvmeTcpHost, rpc: Callable[..., Any]) -> None:
        await rpc("bdev_error_inject_error", name=error, io_type="read", error_type="nomem", num=1)
        first, second = await asyncio.gather(host.read(1, 0, 4096), host.read(1, 4096, 4096))
        assert (first, second) == (bytes(4096), bytes(4096))

    through(plane, error, play)


def test_reads_and_writes_are_late(plane: Plane, delay: str) -> None:
    async def play(host: NvmeTcpHost, rpc: Callable[..., Any]) -> None:
        for kind in ("p99_write", "avg_write"):
            await rpc("bdev_delay_update_latency", delay_bdev_name=delay, latency_type=kind, latency_us=200_000)
        began = time.monotonic()
        await host.write(1, 0, PATTERN)
        assert time.monotonic() - began >= 0.19
        began = time.monotonic()
        await asyncio.gather(*(host.write(1, 4096 * index, PATTERN) for index in range(8)))
        assert time.monotonic() - began < 1.0, "all of them at the same time"
        assert await host.read(1, 4096, 4096) == PATTERN

    through(plane, delay, play)


def test_typed_calls(plane: Plane, error: str) -> None:
    client, name = plane.client, f"d-{error}"
    assert client.run(typed.error_inject(error, "read", "failure", 3)) is True
    assert client.run(typed.delay_create(name, error, write_us=5)) == name
    assert client.run(typed.delay_update(name, "avg_read", 1)) is True
    (found,) = client.run(typed.get_bdevs(name))
    latencies = {kind: value for kind, value in found.driver_specific["delay"].items() if kind.endswith("latency")}
    assert latencies == {"avg_read_latency": 1, "p99_read_latency": 0, "avg_write_latency": 5, "p99_write_latency": 5}
    assert client.run(typed.delay_delete(name)) is True


def test_attached_as_what_they_are_and_only_once(plane: Plane) -> None:
    """As an exporter with `faults` has them."""
    base = MallocContainer(f"m-{uuid.uuid4().hex[:8]}", 512, 2048)
    error = ErrorContainer(base.name)
    delay = DelayContainer(f"faults-{base.name}", error.name)

    async def run() -> None:
        target = await Target.adopt(plane.rpc_socket, front_end=free_front_end())
        try:
            for container in (base, error, delay, error, delay):
                (bdev,) = await target.attach(container)
                assert (bdev.name, bdev.size_bytes) == (container.name, 1 << 20)
            with pytest.raises(TargetConflict, match="stands on"):
                await target.attach(DelayContainer(delay.name, base.name))
            for container in (delay, error, base, base):
                await target.detach(container)
        finally:
            await target.close()

    asyncio.run(run())
