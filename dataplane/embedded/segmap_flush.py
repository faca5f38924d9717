"""A flush of a virtual disk: at every container of its table, and at every one with unflushed writes.

It fails if one of them may have lost writes since the disk's last good flush, by whichever agent they were made; a
disk counts from when a container was listed in its table. Where a container that may have data of the disk is absent,
the engine has refused the flush: it does not come here. What this cannot see: writes that an earlier incarnation of
this agent left unflushed in a container that then lost them before this one had it in a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataplane.embedded.bdev import BdevIo
from dataplane.embedded.losses import Begun, LossWatch
from dataplane.embedded.plane_host import Container
from mapping.effects import Part
from mapping.rules import Operation
from mapping.status import Status

if TYPE_CHECKING:
    from dataplane.embedded.bdev_segmap import SegmapBdev


class Flush:
    """One flush. `pending`: containers whose unflushed writes it answers for."""

    __slots__ = ("_disk", "_left", "_part", "_status", "_watched", "heard", "pending")

    def __init__(self, disk: SegmapBdev, part: Part) -> None:
        self._disk = disk
        self._part = part
        self._status = Status.OK
        self.heard = True
        self.pending = self._take_unflushed()
        listed = [disk.host.containers[slot] for slot in sorted(disk.engine.slots)]
        self._watched: dict[Container, tuple[LossWatch, Begun]] = {}
        for container in dict.fromkeys([*listed, *self.pending]):
            watch = disk.watches[container]
            self._watched[container] = watch, watch.begin(container.losses)
        self._left = len(self._watched) + 1

    def _take_unflushed(self) -> dict[Container, None]:
        """What was written since the last flush, and what flushes that have not ended answer for."""
        pending: dict[Container, None] = {}
        for earlier in self._disk.flushing:
            pending |= earlier.pending
        pending |= self._disk.unflushed
        self._disk.unflushed = {}
        return pending

    def begin(self) -> None:
        """Flush all at the same time."""
        self._disk.flushing.append(self)
        for container in self._watched:
            bdev = container.bdev
            if bdev is not None and bdev.supports(Operation.FLUSH):
                bdev.submit(BdevIo(Operation.FLUSH, 0, 0, self._flushed, watched=True))
            else:
                self._ended(Status.OK if bdev is not None else Status.IO_ERROR)
        self._ended(Status.OK)

    def host_lost(self, owner: object) -> None:
        """A host connection is gone: if it waits for this flush, a failure tells nobody."""
        if self._part.owner is owner:
            self.heard = False

    def _flushed(self, io: BdevIo) -> None:
        self._ended(io.status)

    def _ended(self, status: Status) -> None:
        if self._status is Status.OK:
            self._status = status
        self._left -= 1
        if self._left:
            return
        self._disk.flushing.remove(self)
        lost = {
            container
            for container, (watch, begun) in self._watched.items()
            if watch.ended(begun, container.losses, self.heard)
        }
        if lost:
            self._status = Status.IO_ERROR
        if self._status is not Status.OK:
            told = lost if self.heard else ()
            self._disk.unflushed |= dict.fromkeys(item for item in self.pending if item not in told)
        self._disk.complete(self._part, self._status)
