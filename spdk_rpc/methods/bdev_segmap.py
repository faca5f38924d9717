"""Virtual disks at a data plane: segmap's own methods, named and shaped as SPDK's are.

A segmap bdev is made with every entry INVALID; its entries come over the data plane's own socket, never by JSON-RPC.
Entries are 64-bit, and many JSON readers keep only 53 bits, so they travel as "0x…" texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spdk_rpc.call import Call, Node, ShapeError, read_number, read_object, read_text, read_true, without_none

GET_ENTRIES_MAX = 4096


@dataclass(frozen=True, slots=True)
class SegmapBdev:
    """What a virtual disk is made of. ``nguid`` is 32 hex digits; ``containers`` are (slot, bdev name) pairs."""

    name: str
    uuid: str
    table: int
    size_segments: int
    segment_size: int
    block_size: int
    nguid: str | None = None
    read_only: bool = False
    reclaim: bool = False
    containers: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    slot: int
    bdev_name: str
    label: Any


@dataclass(frozen=True, slots=True)
class Lease:
    state: str
    remaining_ms: int


@dataclass(frozen=True, slots=True)
class SegmapState:
    """A virtual disk as the data plane has it; ``entries`` counts them by their highest active state."""

    name: str
    uuid: str
    table: int
    segment_size: int
    block_size: int
    size_segments: int
    sequence: int
    containers: tuple[Container, ...]
    lease: Lease
    incarnation: int
    epoch: int
    term: int
    entries: dict[str, int]


@dataclass(frozen=True, slots=True)
class Entries:
    name: str
    start: int
    entries: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counted since the bdev was made. ``parked`` is a level: how many requests wait at the moment."""

    name: str
    reads: int
    writes: int
    unmaps: int
    flushes: int
    faults: int
    parked: int
    errors: int
    bytes_read: int
    bytes_written: int


def create(disk: SegmapBdev) -> Call[str]:
    """``bdev_segmap_create``: the name"""
    params = without_none(
        name=disk.name,
        uuid=disk.uuid,
        nguid=disk.nguid,
        table=disk.table,
        size_segments=disk.size_segments,
        segment_size=disk.segment_size,
        block_size=disk.block_size,
        read_only=disk.read_only or None,
        reclaim=disk.reclaim or None,
        containers=[{"slot": slot, "bdev_name": name} for slot, name in disk.containers] or None,
    )
    return Call("bdev_segmap_create", params, read_text)


def delete(name: str) -> Call[bool]:
    """``bdev_segmap_delete``"""
    return Call("bdev_segmap_delete", {"name": name}, read_true)


def get(name: str | None = None) -> Call[tuple[SegmapState, ...]]:
    """``bdev_segmap_get``: all, or the one of that name (``-ENODEV`` if there is none)"""
    return Call("bdev_segmap_get", without_none(name=name), lambda node: node.list(_read_state))


def get_entries(name: str, start: int, count: int) -> Call[Entries]:
    """``bdev_segmap_get_entries``: ``count`` (at most GET_ENTRIES_MAX) from segment ``start``"""
    return Call("bdev_segmap_get_entries", {"name": name, "start": start, "count": count}, _read_entries)


def get_stats(name: str | None = None) -> Call[tuple[Stats, ...]]:
    """``bdev_segmap_get_stats``"""
    return Call("bdev_segmap_get_stats", without_none(name=name), lambda node: node.list(_read_stats))


def resize(name: str, size_segments: int) -> Call[bool]:
    """``bdev_segmap_resize``"""
    return Call("bdev_segmap_resize", {"name": name, "size_segments": size_segments}, read_true)


def _read_state(node: Node) -> SegmapState:
    lease = node.member("lease")
    counts = node.member("entries")
    return SegmapState(
        name=node.text("name"),
        uuid=node.text("uuid"),
        table=node.number("table"),
        segment_size=node.number("segment_size"),
        block_size=node.number("block_size"),
        size_segments=node.number("size_segments"),
        sequence=node.number("sequence"),
        containers=node.member("containers").list(_read_container),
        lease=Lease(lease.text("state"), lease.number("remaining_ms", 0)),
        incarnation=node.number("incarnation"),
        epoch=node.number("epoch"),
        term=node.number("term"),
        entries={name: counts.number(name) for name in read_object(counts)},
    )


def _read_container(node: Node) -> Container:
    return Container(node.number("slot"), node.text("bdev_name"), node.member("label", "").value)


def _read_entries(node: Node) -> Entries:
    return Entries(node.text("name"), node.number("start"), node.member("entries").list(_read_entry))


def _read_entry(node: Node) -> int:
    try:
        return int(read_text(node), 16)
    except ValueError as error:
        if isinstance(error, ShapeError):
            raise
        raise node.wrong("an entry as 0x…") from error


def _read_stats(node: Node) -> Stats:
    names = ("reads", "writes", "unmaps", "flushes", "faults", "parked", "errors", "bytes_read", "bytes_written")
    numbers = [read_number(node.member(name)) for name in names]
    return Stats(node.text("name"), *numbers)
