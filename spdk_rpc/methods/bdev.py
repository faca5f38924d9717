"""Block devices of any kind, and the three kinds that need no network: malloc, aio, null.

Sizes are in blocks of ``block_size`` bytes. Deleting a bdev that does not exist is ``-ENODEV``, creating one whose name
or UUID is taken ``-EEXIST``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spdk_rpc.call import Call, Node, read_object, read_text, read_texts, read_true, without_none


@dataclass(frozen=True, slots=True)
class Bdev:
    """One block device. ``supported`` has the I/O types it takes; ``driver_specific`` is the driver's own object."""

    name: str
    aliases: tuple[str, ...]
    product_name: str
    block_size: int
    num_blocks: int
    uuid: str
    claimed: bool
    supported: frozenset[str]
    driver_specific: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return self.block_size * self.num_blocks


@dataclass(frozen=True, slots=True)
class Iostat:
    """What one bdev has done since its start (or the last reset of its counters). Latencies are in ticks."""

    name: str
    bytes_read: int
    num_read_ops: int
    bytes_written: int
    num_write_ops: int
    bytes_unmapped: int
    num_unmap_ops: int
    read_latency_ticks: int
    write_latency_ticks: int
    io_error: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Iostats:
    """``tick_rate`` ticks are a second; ``ticks`` is when the counters were read."""

    tick_rate: int
    ticks: int
    bdevs: tuple[Iostat, ...]


def get_bdevs(name: str | None = None, timeout_ms: int | None = None) -> Call[tuple[Bdev, ...]]:
    """``bdev_get_bdevs``: all, or the one of that name or alias (``-ENODEV``; waits for it with ``timeout_ms``)."""
    return Call("bdev_get_bdevs", without_none(name=name, timeout=timeout_ms), lambda node: node.list(read_bdev))


def get_iostat(names: Sequence[str] | None = None, reset_mode: str | None = None) -> Call[Iostats]:
    """``bdev_get_iostat``; ``reset_mode`` is all, maxmin, error or none (the counters start anew after the answer)."""
    params = without_none(names=None if names is None else list(names), reset_mode=reset_mode)
    return Call("bdev_get_iostat", params, _read_iostats)


def malloc_create(
    name: str | None, block_size: int, num_blocks: int, uuid: str | None = None, physical_block_size: int | None = None
) -> Call[str]:
    """``bdev_malloc_create``: the name (the target's choice if none is given)"""
    params = without_none(
        name=name, block_size=block_size, num_blocks=num_blocks, uuid=uuid, physical_block_size=physical_block_size
    )
    return Call("bdev_malloc_create", params, read_text)


def malloc_delete(name: str) -> Call[bool]:
    """``bdev_malloc_delete``"""
    return Call("bdev_malloc_delete", {"name": name}, read_true)


def aio_create(
    name: str,
    filename: str,
    block_size: int | None = None,
    *,
    uuid: str | None = None,
    read_only: bool = False,
    fallocate: bool = False,
) -> Call[str]:
    """``bdev_aio_create``: the name. ``fallocate`` adds unmap and write zeroes."""
    params = without_none(
        name=name,
        filename=filename,
        block_size=block_size,
        uuid=uuid,
        readonly=read_only or None,
        fallocate=fallocate or None,
    )
    return Call("bdev_aio_create", params, read_text)


def aio_delete(name: str) -> Call[bool]:
    """``bdev_aio_delete``"""
    return Call("bdev_aio_delete", {"name": name}, read_true)


def null_create(name: str, block_size: int, num_blocks: int, uuid: str | None = None) -> Call[str]:
    """``bdev_null_create``: the name. A null bdev forgets what is written and reads as anything."""
    return Call(
        "bdev_null_create",
        without_none(name=name, block_size=block_size, num_blocks=num_blocks, uuid=uuid),
        read_text,
    )


def null_delete(name: str) -> Call[bool]:
    """``bdev_null_delete``"""
    return Call("bdev_null_delete", {"name": name}, read_true)


def error_create(base_name: str) -> Call[bool]:
    """``bdev_error_create``: ``EE_<base_name>``, which fails I/O as it is told; without a base, when there is one."""
    return Call("bdev_error_create", {"base_name": base_name}, read_true)


def error_delete(name: str) -> Call[bool]:
    """``bdev_error_delete``"""
    return Call("bdev_error_delete", {"name": name}, read_true)


def error_inject(name: str, io_type: str, error_type: str, num: int = 1) -> Call[bool]:
    """``bdev_error_inject_error``: the next ``num`` I/Os of a type (read, write, unmap, flush, all; clear: none)."""
    params = {"name": name, "io_type": io_type, "error_type": error_type, "num": num}
    return Call("bdev_error_inject_error", params, read_true)


def error_resume(name: str) -> Call[bool]:
    """``bdev_error_resume_pending``"""
    return Call("bdev_error_resume_pending", {"name": name}, read_true)


def delay_create(name: str, base_bdev_name: str, read_us: int = 0, write_us: int = 0) -> Call[str]:
    """``bdev_delay_create``: the name. Reads and writes end so many microseconds later."""
    params: dict[str, Any] = {"name": name, "base_bdev_name": base_bdev_name}
    for kind, latency in (("read", read_us), ("write", write_us)):
        params |= {f"avg_{kind}_latency": latency, f"p99_{kind}_latency": latency}
    return Call("bdev_delay_create", params, read_text)


def delay_delete(name: str) -> Call[bool]:
    """``bdev_delay_delete``"""
    return Call("bdev_delay_delete", {"name": name}, read_true)


def delay_update(name: str, latency_type: str, latency_us: int) -> Call[bool]:
    """``bdev_delay_update_latency``: avg_read, p99_read, avg_write or p99_write."""
    params = {"delay_bdev_name": name, "latency_type": latency_type, "latency_us": latency_us}
    return Call("bdev_delay_update_latency", params, read_true)


def read_bdev(node: Node) -> Bdev:
    supported = read_object(node.member("supported_io_types", {}))
    return Bdev(
        name=node.text("name"),
        aliases=read_texts(node.member("aliases", [])),
        product_name=node.text("product_name"),
        block_size=node.number("block_size"),
        num_blocks=node.number("num_blocks"),
        uuid=node.text("uuid", ""),
        claimed=node.truth("claimed", False),
        supported=frozenset(name for name, value in supported.items() if value is True),
        driver_specific=read_object(node.member("driver_specific", {})),
    )


def _read_iostats(node: Node) -> Iostats:
    return Iostats(node.number("tick_rate"), node.number("ticks"), node.member("bdevs").list(_read_iostat))


def _read_iostat(node: Node) -> Iostat:
    return Iostat(
        name=node.text("name"),
        bytes_read=node.number("bytes_read"),
        num_read_ops=node.number("num_read_ops"),
        bytes_written=node.number("bytes_written"),
        num_write_ops=node.number("num_write_ops"),
        bytes_unmapped=node.number("bytes_unmapped"),
        num_unmap_ops=node.number("num_unmap_ops"),
        read_latency_ticks=node.number("read_latency_ticks"),
        write_latency_ticks=node.number("write_latency_ticks"),
        io_error=read_object(node.member("io_error", {})),
    )
