"""Methods about virtual disks: bdev_segmap_{create,delete,get,get_entries,get_stats,resize}.

Identity and inspection only: what a table holds comes over the data plane's socket.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from dataplane.embedded.bdev import BdevError
from dataplane.embedded.bdev_segmap import SegmapBdev
from dataplane.embedded.parameters import (
    boolean,
    identity,
    list_of,
    optional,
    required,
    string,
    uint16,
    uint32,
    uint64,
)
from dataplane.embedded.rpc_table import MethodTable, Parameters
from mapping.engine import Geometry
from mapping.entry import SLOT_MAX

if TYPE_CHECKING:
    from dataplane.embedded.target import Target

TABLE: Final = MethodTable()
ENTRIES_MAX: Final = 65536
_ENTRIES_DEFAULT: Final = 1024


@TABLE.method(
    "bdev_segmap_create",
    required("name", string),
    required("table", uint64),
    required("segment_count", uint64),
    optional("segment_size", uint32, 1 << 20),
    optional("block_size", uint32, 512),
    optional("uuid", identity),
    optional("slots", list_of(uint16, SLOT_MAX + 1)),
    optional("read_only", boolean, False),
    optional("reclaim", boolean, True),
)
def bdev_segmap_create(target: Target, parameters: Parameters) -> str:
    """A virtual disk with a table of INVALID entries [0034]."""
    name: str = parameters["name"]
    target.layer.check(name, parameters["uuid"])
    try:
        geometry = Geometry(
            parameters["segment_count"],
            parameters["segment_size"],
            parameters["block_size"],
            parameters["reclaim"],
            parameters["read_only"],
        )
        bdev = SegmapBdev(
            target.plane_host, name, parameters["table"], geometry, parameters["slots"] or [], parameters["uuid"]
        )
    except ValueError as error:
        raise BdevError(errno.EINVAL, str(error)) from None
    except (OSError, OverflowError):
        raise BdevError(errno.ENOMEM) from None
    target.layer.register(bdev)
    return name


@TABLE.method("bdev_segmap_delete", required("name", string))
async def bdev_segmap_delete(target: Target, parameters: Parameters) -> bool:
    """The disk, its namespaces, its parked I/O and its table; it is listed until its container I/O has ended."""
    await target.layer.unregister(target.layer.find(parameters["name"], SegmapBdev))
    return True


def _disks(target: Target, name: str | None) -> list[SegmapBdev]:
    if name is None:
        return [bdev for bdev in target.layer.bdevs.values() if isinstance(bdev, SegmapBdev)]
    return [_disk(target, name)]


def _disk(target: Target, name: str) -> SegmapBdev:
    bdev = target.layer.find(name, SegmapBdev)
    assert isinstance(bdev, SegmapBdev)
    return bdev


@TABLE.method("bdev_segmap_get", optional("name", string), bare=True)
def bdev_segmap_get(target: Target, parameters: Parameters) -> list[dict[str, Any]]:
    """What they are."""
    disks = _disks(target, parameters["name"])
    return [{"name": disk.name, "uuid": str(disk.uuid), **disk.info()} for disk in disks]


@TABLE.method(
    "bdev_segmap_get_entries",
    required("name", string),
    optional("start", uint64, 0),
    optional("count", uint32, _ENTRIES_DEFAULT),
)
def bdev_segmap_get_entries(target: Target, parameters: Parameters) -> dict[str, Any]:
    """Entries of a table, at most ENTRIES_MAX, cut at its end."""
    disk = _disk(target, parameters["name"])
    start, table = parameters["start"], disk.engine.table
    count = min(parameters["count"], table.segment_count - start)
    if not 1 <= parameters["count"] <= ENTRIES_MAX or count < 1:
        raise BdevError(errno.ERANGE)
    return {"name": disk.name, "start": start, "entries": list(table.get(start, count))}


@TABLE.method("bdev_segmap_get_stats", optional("name", string), bare=True)
def bdev_segmap_get_stats(target: Target, parameters: Parameters) -> dict[str, Any]:
    """Standing of the data plane, and counters of its disks."""
    plane, lease = target.plane_host.plane, target.plane_host.plane.lease
    left_ns = lease.deadline_ns - target.clock() if lease.valid else 0
    return {
        "term": plane.term,
        "incarnation": plane.incarnation,
        "epoch": plane.epoch,
        "lease_valid": left_ns > 0,
        "lease_left_ns": max(0, left_ns),
        "connected": target.plane_server.connected,
        "bdevs": [disk.statistics() for disk in _disks(target, parameters["name"])],
    }


@TABLE.method("bdev_segmap_resize", required("name", string), required("segment_count", uint64))
def bdev_segmap_resize(target: Target, parameters: Parameters) -> bool:
    """Whole segments more or fewer; front ends are told."""
    disk = _disk(target, parameters["name"])
    target.layer.resized(disk, disk.resize(parameters["segment_count"]))
    return True
