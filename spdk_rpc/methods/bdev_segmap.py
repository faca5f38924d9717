"""Virtual disks at a data plane: segmap's own methods, named and shaped as SPDK's are.

A segmap bdev is made with every entry INVALID, and forgets them when it is deleted. Entries, lease and slots come over
the data plane's own socket; by JSON-RPC they are only looked at. Refusals: ``-EEXIST`` (name or table), ``-EINVAL``
(geometry), ``-ENOENT`` (a slot is not bound), ``-ENOSPC`` (a limit), ``-ENODEV`` (no such disk), ``-ERANGE``.
"""

from __future__ import annotations

from dataclasses import dataclass

from spdk_rpc.call import Call, Node, read_number, read_object, read_text, read_true, without_none

GET_ENTRIES_MAX = 65536


@dataclass(frozen=True, slots=True)
class SegmapBdev:
    """What a virtual disk is made of. ``slots`` are those of its table's containers that are bound already."""

    name: str
    uuid: str
    table: int
    segment_count: int
    segment_size: int
    block_size: int
    read_only: bool = False
    reclaim: bool = False
    slots: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SegmapState:
    """A virtual disk as the data plane has it."""

    name: str
    uuid: str
    table: int
    segment_count: int
    segment_size: int
    block_size: int
    read_only: bool
    reclaim: bool
    slots: tuple[int, ...]
    sequence: int
    suspended: bool


@dataclass(frozen=True, slots=True)
class Entries:
    """``entries`` of the segments from ``start`` on, as :mod:`mapping.entry` packs them."""

    name: str
    start: int
    entries: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TableStats:
    """One disk's counters since it was made. ``parked`` and ``outstanding_faults`` are levels: what waits now.

    ``oldest_parked_ns``: how long the longest of it has waited. ``unsettled``: parts that have failed, but may still be
    done by a container whose connection was lost. ``read_latency`` and ``write_latency`` (all that is no read) count
    container I/O in buckets: less than 1 us, less than 2 us, less than 4 us …, the last one all the rest. ``entries``
    counts the table's entries by their highest active state: invalid, error, zero, no_write, mapped.
    """

    name: str
    table: int
    sequence: int
    forwarded: int
    zero_reads: int
    faults: int
    failed: int
    dropped: int
    parked: int
    outstanding_faults: int
    oldest_parked_ns: int
    unsettled: int
    read_latency: tuple[int, ...]
    write_latency: tuple[int, ...]
    entries: dict[str, int]


@dataclass(frozen=True, slots=True)
class Stats:
    """The data plane's standing, and its disks. ``lease_left_ns`` is 0 when the lease is not valid."""

    term: int
    incarnation: int
    epoch: int
    lease_valid: bool
    lease_left_ns: int
    connected: bool
    bdevs: tuple[TableStats, ...]


def create(disk: SegmapBdev) -> Call[str]:
    """``bdev_segmap_create``: the name"""
    params = without_none(
        name=disk.name,
        uuid=disk.uuid,
        table=disk.table,
        segment_count=disk.segment_count,
        segment_size=disk.segment_size,
        block_size=disk.block_size,
        read_only=disk.read_only,
        reclaim=disk.reclaim,
        slots=list(disk.slots) or None,
    )
    return Call("bdev_segmap_create", params, read_text)


def delete(name: str) -> Call[bool]:
    """``bdev_segmap_delete``: its namespaces go with it, and what is parked ends"""
    return Call("bdev_segmap_delete", {"name": name}, read_true)


def get(name: str | None = None) -> Call[tuple[SegmapState, ...]]:
    """``bdev_segmap_get``: all, or the one of that name"""
    return Call("bdev_segmap_get", without_none(name=name), lambda node: node.list(_read_state))


def get_entries(name: str, start: int, count: int) -> Call[Entries]:
    """``bdev_segmap_get_entries``: ``count`` (at most GET_ENTRIES_MAX, cut at the disk's end) from ``start`` on"""
    return Call("bdev_segmap_get_entries", {"name": name, "start": start, "count": count}, _read_entries)


def get_stats(name: str | None = None) -> Call[Stats]:
    """``bdev_segmap_get_stats``: of all disks, or of one"""
    return Call("bdev_segmap_get_stats", without_none(name=name), _read_stats)


def resize(name: str, segment_count: int) -> Call[bool]:
    """``bdev_segmap_resize``: hosts are told"""
    return Call("bdev_segmap_resize", {"name": name, "segment_count": segment_count}, read_true)


def _read_state(node: Node) -> SegmapState:
    return SegmapState(
        name=node.text("name"),
        uuid=node.text("uuid"),
        table=node.number("table"),
        segment_count=node.number("segment_count"),
        segment_size=node.number("segment_size"),
        block_size=node.number("block_size"),
        read_only=node.truth("read_only"),
        reclaim=node.truth("reclaim"),
        slots=node.member("slots").list(read_number),
        sequence=node.number("sequence"),
        suspended=node.truth("suspended"),
    )


def _read_entries(node: Node) -> Entries:
    return Entries(node.text("name"), node.number("start"), node.member("entries").list(read_number))


def _read_stats(node: Node) -> Stats:
    return Stats(
        term=node.number("term"),
        incarnation=node.number("incarnation"),
        epoch=node.number("epoch"),
        lease_valid=node.truth("lease_valid"),
        lease_left_ns=node.number("lease_left_ns"),
        connected=node.truth("connected"),
        bdevs=node.member("bdevs").list(_read_table_stats),
    )


def _read_table_stats(node: Node) -> TableStats:
    counts = node.member("entries")
    return TableStats(
        name=node.text("name"),
        table=node.number("table"),
        sequence=node.number("sequence"),
        forwarded=node.number("forwarded"),
        zero_reads=node.number("zero_reads"),
        faults=node.number("faults"),
        failed=node.number("failed"),
        dropped=node.number("dropped"),
        parked=node.number("parked"),
        outstanding_faults=node.number("outstanding_faults"),
        oldest_parked_ns=node.number("oldest_parked_ns"),
        unsettled=node.number("unsettled"),
        read_latency=node.member("read_latency").list(read_number),
        write_latency=node.member("write_latency").list(read_number),
        entries={name: counts.number(name) for name in read_object(counts)},
    )
