"""bdev_segmap_*: SPDK itself has not got them; the embedded target and a SPDK target with segmap's module have."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spdk_rpc.methods import bdev, bdev_segmap
from spdk_rpc.methods.bdev_segmap import SegmapBdev
from tests.contract.conftest import DISK_PLANES, Plane

pytestmark = pytest.mark.parametrize("plane", DISK_PLANES, indirect=True, scope="session")
UUID = "99999999-2222-3333-4444-555555555555"
DISK = SegmapBdev("disk1", UUID, (7 << 32) | 1, 64, 1 << 20, 512, reclaim=True)
ENODEV, EEXIST, EINVAL, ERANGE = -19, -17, -22, -34
DECODE = {-32602, -32603}


@pytest.fixture
def disk(plane: Plane) -> Iterator[SegmapBdev]:
    assert plane.client.run(bdev_segmap.create(DISK)) == DISK.name
    yield DISK
    plane.client.run(bdev_segmap.delete(DISK.name))


def test_new_disk_has_no_entry(plane: Plane, disk: SegmapBdev) -> None:
    (state,) = plane.client.run(bdev_segmap.get(disk.name))
    assert (state.name, state.uuid, state.table, state.sequence) == (disk.name, UUID, disk.table, 0)
    assert (state.segment_count, state.segment_size, state.block_size) == (64, 1 << 20, 512)
    assert (state.slots, state.read_only, state.reclaim) == ((), False, True)
    entries = plane.client.run(bdev_segmap.get_entries(disk.name, 0, 64))
    assert (entries.start, entries.entries) == (0, (0,) * 64)
    stats = plane.client.run(bdev_segmap.get_stats(disk.name))
    assert [one.name for one in stats.bdevs] == [disk.name]
    assert stats.bdevs[0].entries["invalid"] == 64
    assert sum(stats.bdevs[0].entries.values()) == 64
    assert (stats.bdevs[0].oldest_parked_ns, stats.bdevs[0].unsettled) == (0, 0)
    assert stats.bdevs[0].read_latency == stats.bdevs[0].write_latency == (0,) * 24


def test_it_is_a_bdev(plane: Plane, disk: SegmapBdev) -> None:
    (found,) = plane.client.run(bdev.get_bdevs(disk.name))
    assert (found.uuid, found.block_size, found.size_bytes) == (UUID, 512, 64 << 20)
    assert {"read", "write", "unmap", "write_zeroes", "flush"} <= found.supported


def test_entries_are_cut_at_the_end(plane: Plane, disk: SegmapBdev) -> None:
    assert plane.client.run(bdev_segmap.get_entries(disk.name, 60, 100)).entries == (0,) * 4


def test_resize(plane: Plane, disk: SegmapBdev) -> None:
    for count in (128, 32):
        assert plane.client.run(bdev_segmap.resize(disk.name, count))
        (found,) = plane.client.run(bdev.get_bdevs(disk.name))
        assert found.size_bytes == count << 20


def test_create_refused(plane: Plane, disk: SegmapBdev, code_of: Callable[..., int]) -> None:
    good = bdev_segmap.create(SegmapBdev("disk2", UUID.replace("9", "8"), 5, 4, 1 << 20, 512)).params
    assert code_of("bdev_segmap_create", good | {"name": disk.name}) == EEXIST
    assert code_of("bdev_segmap_create", good | {"table": disk.table}) == EEXIST
    for change in ({"segment_count": 0}, {"segment_size": 1000}, {"block_size": 100}):
        assert code_of("bdev_segmap_create", good | change) == EINVAL, change
    for change in ({"bogus": 1}, {"name": 5}, {"table": "x"}, {"uuid": "junk"}, {"segment_count": -1}):
        assert code_of("bdev_segmap_create", good | change) in DECODE, change
    assert "disk2" not in [state.name for state in plane.client.run(bdev_segmap.get())]


@pytest.mark.parametrize("method", ["delete", "get", "get_entries", "get_stats", "resize"])
def test_no_such_disk(code_of: Callable[..., int], method: str) -> None:
    more = {"get_entries": {"start": 0, "count": 1}, "resize": {"segment_count": 5}}
    assert code_of(f"bdev_segmap_{method}", {"name": "nosuch"} | more.get(method, {})) == ENODEV
    assert code_of(f"bdev_segmap_{method}", {"name": 5} | more.get(method, {})) in DECODE


def test_entries_out_of_range(code_of: Callable[..., int], disk: SegmapBdev) -> None:
    assert code_of("bdev_segmap_get_entries", {"name": disk.name, "start": 65, "count": 1}) == ERANGE


def test_plugin(plane: Plane) -> None:
    """``spdk-rpc --plugin spdk_rpc.plugin``: every command once."""

    def spdk_rpc(*words: str) -> str:
        program = Path(sys.executable).parent / "spdk-rpc"
        command: list[Any] = [program, "-s", plane.rpc_socket, "--plugin", "spdk_rpc.plugin", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    made = spdk_rpc("bdev_segmap_create", "plugged", "16", "-u", UUID, "-t", "0x900000001", "-s", "1M", "--reclaim")
    assert made.strip() == "plugged"
    assert '"segment_count": 16' in spdk_rpc("bdev_segmap_get", "-b", "plugged")
    assert '"table": 38654705665' in spdk_rpc("bdev_segmap_get")
    assert '"entries"' in spdk_rpc("bdev_segmap_get_entries", "plugged", "0", "4")
    spdk_rpc("bdev_segmap_resize", "plugged", "32")
    assert '"invalid": 32' in spdk_rpc("bdev_segmap_get_stats", "-b", "plugged")
    spdk_rpc("bdev_segmap_delete", "plugged")
    assert "plugged" not in spdk_rpc("bdev_segmap_get")
