"""Virtual disks at a target: segmap bdevs made, made longer or shorter, and deleted (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spdk_rpc.call import Call
from spdk_rpc.converge import TargetConflict, converge
from spdk_rpc.methods import bdev_segmap
from spdk_rpc.methods.bdev_segmap import SegmapBdev, SegmapState
from spdk_rpc.steps import Steps, make

Disks = tuple[SegmapState, ...]


def read_disks() -> Steps[Disks]:
    """All of the target's."""
    return make(bdev_segmap.get())


def create(disk: SegmapBdev) -> Steps[SegmapState]:
    """Makes the segmap bdev; nothing changes if it exists. Raises TargetConflict if another one has its name."""

    def plan(found: Disks) -> Sequence[Call[Any]]:
        state = _named(disk.name, found)
        if state is None:
            return [bdev_segmap.create(disk)]
        check_same(disk, state)
        return []

    state = _named(disk.name, (yield from converge(read_disks, plan)))
    assert state is not None, "the plan was empty"
    return state


def resize(name: str, segment_count: int) -> Steps[Disks]:
    """Makes the segmap bdev that long."""

    def plan(found: Disks) -> Sequence[Call[Any]]:
        state = _named(name, found)
        is_done = state is not None and state.segment_count == segment_count
        return [] if is_done else [bdev_segmap.resize(name, segment_count)]

    return converge(read_disks, plan)


def delete(name: str) -> Steps[Disks]:
    """Deletes the segmap bdev; nothing happens if there is none."""
    return converge(read_disks, lambda found: [bdev_segmap.delete(name)] if _named(name, found) else [])


def delete_table(table: int) -> Steps[Disks]:
    """Deletes the segmap bdev of that table, whatever its name; nothing happens if there is none."""
    return converge(read_disks, lambda found: [bdev_segmap.delete(one.name) for one in found if one.table == table])


def table_of(table: int, found: Disks) -> SegmapState | None:
    """The disk whose table it is."""
    return next((state for state in found if state.table == table), None)


def _named(name: str, found: Disks) -> SegmapState | None:
    return next((state for state in found if state.name == name), None)


def check_same(disk: SegmapBdev, found: SegmapState) -> None:
    """Raises TargetConflict unless the bdev is that disk. Its length may differ: that is resize's business."""
    for name in ("uuid", "table", "segment_size", "block_size"):
        want, there = getattr(disk, name), getattr(found, name)
        if str(want).lower() != str(there).lower():
            raise TargetConflict(f"segmap bdev {disk.name} exists and differs: {name} is {there!r}, not {want!r}")
