"""malloc, aio and null bdevs, what bdev_get_bdevs says of them, and I/O counters."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spdk_rpc.methods import bdev
from tests.contract.conftest import Plane
from tests.contract.shapes import check_shape

DECODE = -32603  # what SPDK's bdev modules answer to parameters that they cannot read
ENOENT, ENOMEM, EEXIST, ENODEV, EISDIR, EINVAL, ETIMEDOUT = -2, -12, -17, -19, -21, -22, -110
UUID = "11111111-2222-3333-4444-555555555555"

BDEV = {
    "name": str,
    "aliases": [str],
    "product_name": str,
    "block_size": int,
    "num_blocks": int,
    "uuid": str,
    "assigned_rate_limits": {
        "rw_ios_per_sec": int,
        "rw_mbytes_per_sec": int,
        "r_mbytes_per_sec": int,
        "w_mbytes_per_sec": int,
    },
    "claimed": bool,
    "zoned": bool,
    "supported_io_types": {
        "read": bool,
        "write": bool,
        "unmap": bool,
        "flush": bool,
        "reset": bool,
        "write_zeroes": bool,
        "compare_and_write": bool,
        "abort": bool,
    },
    "driver_specific": dict,
}
IOSTAT = {
    "name": str,
    "bytes_read": int,
    "num_read_ops": int,
    "bytes_written": int,
    "num_write_ops": int,
    "bytes_unmapped": int,
    "num_unmap_ops": int,
    "read_latency_ticks": int,
    "max_read_latency_ticks": int,
    "min_read_latency_ticks": int,
    "write_latency_ticks": int,
    "unmap_latency_ticks": int,
    "io_error": dict,
}


@pytest.fixture
def image(runtime_dir: Path) -> Path:
    path = runtime_dir / "image"
    with open(path, "wb") as file:
        file.truncate(4 << 20)
    return path


@pytest.fixture
def aio(rpc: Callable[..., Any], image: Path) -> Iterator[str]:
    name = f"a-{uuid.uuid4().hex[:8]}"
    assert rpc("bdev_aio_create", name=name, filename=str(image), block_size=512) == name
    yield name
    rpc("bdev_aio_delete", name=name)


def supported(found: dict[str, Any]) -> set[str]:
    return {name for name, value in found["supported_io_types"].items() if value}


# --- malloc


def test_malloc(rpc: Callable[..., Any]) -> None:
    name = rpc("bdev_malloc_create", name="malloc-1", block_size=512, num_blocks=131072, uuid=UUID)
    assert name == "malloc-1"
    (found,) = rpc("bdev_get_bdevs", name="malloc-1")
    check_shape(found, BDEV)
    assert (found["product_name"], found["block_size"], found["num_blocks"]) == ("Malloc disk", 512, 131072)
    assert (found["uuid"], found["aliases"], found["claimed"]) == (UUID, [UUID], False)
    assert supported(found) >= {"read", "write", "unmap", "flush", "reset", "write_zeroes", "abort"}
    assert not supported(found) & {"nvme_admin", "nvme_io", "compare_and_write", "zone_append"}
    assert rpc("bdev_malloc_delete", name="malloc-1") is True
    assert rpc("bdev_malloc_create", name="malloc-1", block_size=512, num_blocks=8, uuid=UUID) == "malloc-1"
    assert rpc("bdev_malloc_delete", name="malloc-1") is True


def test_malloc_without_a_name_or_uuid_gets_both(rpc: Callable[..., Any]) -> None:
    name = rpc("bdev_malloc_create", block_size=4096, num_blocks=256)
    (found,) = rpc("bdev_get_bdevs", name=name)
    assert name.startswith("Malloc")
    assert uuid.UUID(found["uuid"]).int != 0
    assert rpc("bdev_malloc_delete", name=name) is True


GOOD_MALLOC = {"name": "malloc-x", "block_size": 512, "num_blocks": 8}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"block_size": 513}, EINVAL),
        ({"num_blocks": 0}, EINVAL),
        ({"name": ""}, EINVAL),
        ({"physical_block_size": 100}, EINVAL),
        ({"num_blocks": 1 << 40}, ENOMEM),
        ({"num_blocks": None}, DECODE),
        ({"block_size": "512"}, DECODE),
        ({"block_size": -1}, DECODE),
        ({"block_size": 512.5}, DECODE),
        ({"name": 5}, DECODE),
        ({"uuid": "junk"}, DECODE),
        ({"bogus": 1}, DECODE),
    ],
)
def test_malloc_refused(plane: Plane, code_of: Callable[..., int], change: dict[str, Any], code: int) -> None:
    params = {name: value for name, value in (GOOD_MALLOC | change).items() if value is not None}
    assert code_of("bdev_malloc_create", params) == code
    assert "malloc-x" not in [found.name for found in plane.client.run(bdev.get_bdevs())]


def test_malloc_number_with_a_zero_fraction_is_a_number(rpc: Callable[..., Any]) -> None:
    assert rpc("bdev_malloc_create", name="malloc-f", block_size=512.0, num_blocks=16) == "malloc-f"
    assert rpc("bdev_malloc_delete", name="malloc-f") is True


def test_names_and_uuids_are_of_one_bdev(rpc: Callable[..., Any], code_of: Callable[..., int], malloc: str) -> None:
    (found,) = rpc("bdev_get_bdevs", name=malloc)
    assert code_of("bdev_malloc_create", GOOD_MALLOC | {"name": malloc}) == EEXIST
    assert code_of("bdev_malloc_create", GOOD_MALLOC | {"uuid": found["uuid"]}) == EEXIST
    assert code_of("bdev_null_create", GOOD_MALLOC | {"name": malloc}) == EEXIST


# --- aio


def test_aio(rpc: Callable[..., Any], image: Path, aio: str) -> None:
    (found,) = rpc("bdev_get_bdevs", name=aio)
    check_shape(found, BDEV | {"driver_specific": {"aio": {"filename": str, "readonly": bool, "fallocate": bool}}})
    assert (found["product_name"], found["block_size"], found["num_blocks"]) == ("AIO disk", 512, 8192)
    assert found["driver_specific"]["aio"]["filename"] == str(image)
    assert found["driver_specific"]["aio"]["readonly"] is False
    assert supported(found) >= {"read", "write", "flush", "reset"}


def test_aio_with_fallocate_can_unmap(rpc: Callable[..., Any], image: Path) -> None:
    rpc("bdev_aio_create", name="aio-f", filename=str(image), block_size=4096, fallocate=True, uuid=UUID)
    (found,) = rpc("bdev_get_bdevs", name="aio-f")
    assert supported(found) >= {"unmap", "write_zeroes"}
    assert (found["num_blocks"], found["uuid"]) == (1024, UUID)
    assert rpc("bdev_aio_delete", name="aio-f") is True


def test_aio_read_only(rpc: Callable[..., Any], image: Path) -> None:
    rpc("bdev_aio_create", name="aio-r", filename=str(image), block_size=512, readonly=True)
    (found,) = rpc("bdev_get_bdevs", name="aio-r")
    assert found["driver_specific"]["aio"]["readonly"] is True
    assert rpc("bdev_aio_delete", name="aio-r") is True


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"filename": "/nonexistent/file"}, ENOENT),
        ({"filename": "/tmp"}, EISDIR),
        ({"block_size": None}, EINVAL),  # a file has no block size of its own
        ({"block_size": 100}, EINVAL),
        ({"block_size": 1 << 30}, EINVAL),
        ({"name": None}, DECODE),
        ({"filename": None}, DECODE),
        ({"block_size": "x"}, DECODE),
        ({"readonly": "x"}, DECODE),
        ({"bogus": 1}, DECODE),
    ],
)
def test_aio_refused(plane: Plane, code_of: Callable[..., int], image: Path, change: dict[str, Any], code: int) -> None:
    params = {"name": "aio-x", "filename": str(image), "block_size": 512} | change
    assert code_of("bdev_aio_create", {name: value for name, value in params.items() if value is not None}) == code
    assert "aio-x" not in [found.name for found in plane.client.run(bdev.get_bdevs())]


def test_aio_file_of_no_whole_number_of_blocks(code_of: Callable[..., int], runtime_dir: Path) -> None:
    odd = runtime_dir / "odd"
    odd.write_bytes(bytes(1000))
    assert code_of("bdev_aio_create", {"name": "aio-o", "filename": str(odd), "block_size": 512}) == EINVAL


def test_aio_name_is_taken(code_of: Callable[..., int], image: Path, malloc: str) -> None:
    assert code_of("bdev_aio_create", {"name": malloc, "filename": str(image), "block_size": 512}) == EEXIST


# --- null


def test_null(rpc: Callable[..., Any]) -> None:
    assert rpc("bdev_null_create", name="null-1", block_size=4096, num_blocks=1 << 40, uuid=UUID) == "null-1"
    (found,) = rpc("bdev_get_bdevs", name="null-1")
    check_shape(found, BDEV)
    assert (found["product_name"], found["num_blocks"], found["uuid"]) == ("Null disk", 1 << 40, UUID)
    assert rpc("bdev_null_delete", name="null-1") is True


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"block_size": 100}, EINVAL),
        ({"block_size": 0}, EINVAL),
        ({"num_blocks": 0}, EINVAL),
        ({"name": None}, DECODE),
        ({"uuid": "x"}, DECODE),
        ({"bogus": 1}, DECODE),
    ],
)
def test_null_refused(code_of: Callable[..., int], change: dict[str, Any], code: int) -> None:
    params = {name: value for name, value in (GOOD_MALLOC | change).items() if value is not None}
    assert code_of("bdev_null_create", params) == code


# --- all kinds


@pytest.mark.parametrize("kind", ["malloc", "aio", "null"])
@pytest.mark.parametrize(
    ("params", "code"),
    [({"name": "nosuch"}, ENODEV), ({}, DECODE), ({"name": 5}, DECODE), ({"name": "nosuch", "bogus": 1}, DECODE)],
)
def test_delete_refused(code_of: Callable[..., int], kind: str, params: dict[str, Any], code: int) -> None:
    assert code_of(f"bdev_{kind}_delete", params) == code


def test_delete_takes_only_its_own_kind(code_of: Callable[..., int], malloc: str, aio: str) -> None:
    assert code_of("bdev_aio_delete", {"name": malloc}) == ENODEV
    assert code_of("bdev_null_delete", {"name": malloc}) == ENODEV
    assert code_of("bdev_malloc_delete", {"name": aio}) == ENODEV


def test_get_bdevs_of_all_and_by_alias(rpc: Callable[..., Any], malloc: str, aio: str) -> None:
    found = rpc("bdev_get_bdevs")
    check_shape(found, [BDEV])
    assert {malloc, aio} <= {one["name"] for one in found}
    (by_name,) = rpc("bdev_get_bdevs", name=malloc)
    assert rpc("bdev_get_bdevs", name=by_name["uuid"]) == [by_name]
    assert rpc("bdev_get_bdevs", name=malloc, timeout=1000) == [by_name]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"name": "nosuch"}, ENODEV),
        ({"bogus": 1}, DECODE),
        ({"name": 5}, DECODE),
        ({"name": "nosuch", "timeout": "x"}, DECODE),
    ],
)
def test_get_bdevs_refused(code_of: Callable[..., int], params: dict[str, Any], code: int) -> None:
    assert code_of("bdev_get_bdevs", params) == code


def test_get_bdevs_waits_for_one_that_does_not_come(code_of: Callable[..., int]) -> None:
    begun = time.monotonic()
    assert code_of("bdev_get_bdevs", {"name": "nosuch", "timeout": 50}) == ETIMEDOUT
    assert time.monotonic() - begun >= 0.05


def test_iostat(rpc: Callable[..., Any], malloc: str, aio: str) -> None:
    found = rpc("bdev_get_iostat", names=[malloc])
    check_shape(found, {"tick_rate": int, "ticks": int, "bdevs": [IOSTAT]})
    assert [one["name"] for one in found["bdevs"]] == [malloc]
    assert found["tick_rate"] > 0
    later = rpc("bdev_get_iostat")
    assert {malloc, aio} <= {one["name"] for one in later["bdevs"]}
    assert later["ticks"] > found["ticks"]
    assert rpc("bdev_get_iostat", names=[])["bdevs"] == []


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"names": ["nosuch"]}, ENODEV),
        ({"names": "nosuch"}, DECODE),
        ({"name": "nosuch"}, DECODE),
        ({"reset_mode": "bogus"}, DECODE),
        ({"per_channel": True}, EINVAL),
    ],
)
def test_iostat_refused(code_of: Callable[..., int], params: dict[str, Any], code: int) -> None:
    assert code_of("bdev_get_iostat", params) == code


def test_typed_calls(plane: Plane, malloc: str) -> None:
    (found,) = plane.client.run(bdev.get_bdevs(malloc))
    assert (found.name, found.size_bytes, found.product_name) == (malloc, 1 << 20, "Malloc disk")
    assert {"read", "write"} <= found.supported
    assert malloc in [one.name for one in plane.client.run(bdev.get_iostat()).bdevs]
