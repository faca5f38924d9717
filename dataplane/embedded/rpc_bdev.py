"""Methods about bdevs: list, statistics, create and delete of malloc, aio and null."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from dataplane.embedded.bdev import Bdev, BdevError
from dataplane.embedded.bdev_aio import AioBdev
from dataplane.embedded.bdev_malloc import MallocBdev
from dataplane.embedded.bdev_null import PREFERENCES, NullBdev
from dataplane.embedded.parameters import (
    boolean,
    identity,
    int32,
    list_of,
    one_of,
    optional,
    required,
    string,
    uint32,
    uint64,
)
from dataplane.embedded.rpc_table import MethodTable, Parameters

if TYPE_CHECKING:
    from dataplane.embedded.target import Target

TABLE: Final = MethodTable()
TICK_RATE: Final = 1_000_000_000
_NAMES_MAX: Final = 128
_METADATA_SIZES: Final = (0, 8, 16, 32, 64, 128)
_ZERO_STAT: Final = dict.fromkeys(
    f"{prefix}{kind}_latency_ticks" for kind in ("read", "write", "unmap", "copy") for prefix in ("", "max_", "min_")
)


def bdev_report(bdev: Bdev) -> dict[str, Any]:
    """One element of bdev_get_bdevs."""
    preferences = bdev.preferences if isinstance(bdev, NullBdev) else dict.fromkeys(PREFERENCES, 0)
    report: dict[str, Any] = {
        "name": bdev.name,
        "aliases": bdev.aliases,
        "product_name": bdev.product_name,
        "block_size": bdev.block_size,
        "num_blocks": bdev.block_count,
        **preferences,
        "uuid": str(bdev.uuid),
    }
    if bdev.numa_id is not None:
        report["numa_id"] = bdev.numa_id
    report["assigned_rate_limits"] = dict.fromkeys(
        ("rw_ios_per_sec", "rw_mbytes_per_sec", "r_mbytes_per_sec", "w_mbytes_per_sec"), 0
    )
    report["claimed"] = bdev.claim is not None
    if bdev.claim is not None:
        report["claim_type"] = bdev.claim[1]
    return report | {
        "zoned": False,
        "supported_io_types": bdev.supported_io_types(),
        "driver_specific": bdev.describe(),
    }


@TABLE.method("bdev_get_bdevs", optional("name", string), optional("timeout", uint64, 0), bare=True)
def bdev_get_bdevs(target: Target, parameters: Parameters) -> Any:
    """All, or the one of that name, waiting `timeout` ms for it."""
    if parameters["name"] is None:
        return [bdev_report(bdev) for bdev in target.layer.bdevs.values()]
    return _wait_for(target, parameters["name"], parameters["timeout"])


async def _wait_for(target: Target, name: str, timeout_ms: int) -> list[dict[str, Any]]:
    return [bdev_report(await target.layer.wait_for(name, timeout_ms))]


def _statistics(bdev: Bdev) -> dict[str, Any]:
    totals = bdev.stat.totals()
    return {
        "bytes_read": totals["bytes_read"],
        "num_read_ops": totals["reads"],
        "bytes_written": totals["bytes_written"],
        "num_write_ops": totals["writes"],
        "bytes_unmapped": totals["bytes_unmapped"],
        "num_unmap_ops": totals["unmaps"],
        "bytes_copied": 0,
        "num_copy_ops": 0,
        **dict.fromkeys(_ZERO_STAT, 0),
        "io_error": {"failed": bdev.stat.failed} if bdev.stat.failed else {},
    }


@TABLE.method(
    "bdev_get_iostat",
    optional("names", list_of(string, _NAMES_MAX)),
    optional("per_channel", boolean, False),
    optional("reset_mode", one_of("all", "maxmin", "error", "none"), "none"),
    bare=True,
)
def bdev_get_iostat(target: Target, parameters: Parameters) -> dict[str, Any]:
    """Counters. Latencies are not measured here and are 0."""
    names = parameters["names"]
    if parameters["per_channel"] and (names is None or len(names) != 1):
        raise BdevError(errno.EINVAL)
    bdevs = list(target.layer.bdevs.values()) if names is None else [target.layer.find(name) for name in names]
    head = {"tick_rate": TICK_RATE, "ticks": target.clock()}
    if parameters["per_channel"]:
        return head | {"name": bdevs[0].name, "channels": [{"thread_id": 1, **_statistics(bdevs[0])}]}
    result = head | {"bdevs": [{"name": bdev.name, **_statistics(bdev)} for bdev in bdevs]}
    if parameters["reset_mode"] in ("all", "error"):
        for bdev in bdevs:
            bdev.stat.reset(errors_only=parameters["reset_mode"] == "error")
    return result


@TABLE.plain("bdev_wait_for_examine", "bdev_wait_for_examine requires no parameters")
def bdev_wait_for_examine(target: Target, _: Parameters) -> bool:
    """Nothing is ever examined."""
    return True


def _refuse_metadata(parameters: Parameters) -> None:
    """Sizes that SPDK refuses are EINVAL; those that only this target lacks are ENOTSUP."""
    if parameters["md_size"] not in _METADATA_SIZES:
        raise BdevError(errno.EINVAL)
    if parameters["md_size"] or parameters["dif_type"]:
        raise BdevError(errno.ENOTSUP)


@TABLE.method(
    "bdev_malloc_create",
    optional("name", string),
    required("block_size", uint32),
    required("num_blocks", uint64),
    optional("uuid", identity),
    optional("optimal_io_boundary", uint32, 0),
    optional("md_size", uint32, 0),
    optional("md_interleave", boolean, False),
    optional("dif_type", int32, 0),
    optional("dif_is_head_of_md", boolean, False),
    optional("physical_block_size", uint32, 0),
    optional("dif_pi_format", uint32, 0),
    optional("numa_id", int32, -1),
)
def bdev_malloc_create(target: Target, parameters: Parameters) -> str:
    """Memory; without a name it is Malloc0, Malloc1, …"""
    if not parameters["num_blocks"] or parameters["block_size"] % 512:
        raise BdevError(errno.EINVAL)
    _refuse_metadata(parameters)
    name = parameters["name"]
    if name is None:
        name = target.layer.free_name("Malloc")
    target.layer.check(name, parameters["uuid"])
    bdev = MallocBdev(
        name,
        parameters["block_size"],
        parameters["num_blocks"],
        parameters["uuid"],
        parameters["physical_block_size"],
        parameters["optimal_io_boundary"],
    )
    target.layer.register(bdev)
    return bdev.name


@TABLE.method(
    "bdev_null_create",
    required("name", string),
    required("block_size", uint32),
    required("num_blocks", uint64),
    optional("uuid", identity),
    optional("physical_block_size", uint32, 0),
    optional("md_size", uint32, 0),
    optional("dif_type", int32, 0),
    optional("dif_is_head_of_md", boolean, False),
    optional("dif_pi_format", uint32, 0),
    *(optional(name, uint32, 0) for name in PREFERENCES),
)
def bdev_null_create(target: Target, parameters: Parameters) -> str:
    """Nothing."""
    _refuse_metadata(parameters)
    bdev = NullBdev(
        parameters["name"],
        parameters["block_size"],
        parameters["num_blocks"],
        parameters["uuid"],
        parameters["physical_block_size"],
        {name: parameters[name] for name in PREFERENCES},
    )
    target.layer.register(bdev)
    return bdev.name


@TABLE.method(
    "bdev_aio_create",
    required("name", string),
    required("filename", string),
    optional("block_size", uint32, 0),
    optional("readonly", boolean, False),
    optional("fallocate", boolean, False),
    optional("uuid", identity),
    optional("nowait", boolean, False),
)
async def bdev_aio_create(target: Target, parameters: Parameters) -> str:
    """A file or block device. `nowait` is not supported."""
    if parameters["nowait"]:
        raise BdevError(errno.EINVAL)
    bdev = AioBdev(
        target.pool,
        parameters["name"],
        parameters["filename"],
        parameters["block_size"],
        parameters["readonly"],
        parameters["fallocate"],
        parameters["uuid"],
    )
    try:
        target.layer.register(bdev)
    except BdevError:
        await bdev.close()
        raise
    return bdev.name


@TABLE.method("bdev_malloc_delete", required("name", string))
async def bdev_malloc_delete(target: Target, parameters: Parameters) -> bool:
    """Its namespaces go with it."""
    await target.layer.unregister(target.layer.find(parameters["name"], MallocBdev))
    return True


@TABLE.method("bdev_null_delete", required("name", string))
async def bdev_null_delete(target: Target, parameters: Parameters) -> bool:
    """Its namespaces go with it."""
    await target.layer.unregister(target.layer.find(parameters["name"], NullBdev))
    return True


@TABLE.method("bdev_aio_delete", required("name", string))
async def bdev_aio_delete(target: Target, parameters: Parameters) -> bool:
    """Its namespaces go with it; the file stays."""
    await target.layer.unregister(target.layer.find(parameters["name"], AioBdev))
    return True
