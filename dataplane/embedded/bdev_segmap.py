"""A virtual disk as a bdev: I/O is split at segment boundaries and goes where the mapping table says [0024].

`read_now`/`write_now` serve what lies in one segment that the table lets through: nothing happens to the engine in
between, so it is not counted. All else becomes parts: the engine forwards, parks, answers or fails each one.
Invariants: at most WINDOW_PARTS parts of one host I/O exist at a time (an unmap of the whole disk is no flood of
faults); segment 0 of a container (its label) is never reached; a write that has ended well is `unflushed` at its
container until a flush that began after that has ended well.
"""

from __future__ import annotations

import asyncio
import errno
import uuid
from typing import Any, ClassVar, Final

from dataplane.embedded.bdev import Bdev, BdevError, BdevIo, Buffer, DirectCount
from dataplane.embedded.bdev_null import zeroes
from dataplane.embedded.direct_path import DirectPath
from dataplane.embedded.latency import LatencyHistogram
from dataplane.embedded.losses import LossWatch
from dataplane.embedded.plane_host import Container, PlaneHost
from dataplane.embedded.segmap_flush import Flush
from mapping.effects import Effect, Part
from mapping.engine import READ_MASK, WRITE_MASK, Engine, Geometry
from mapping.entry import State
from mapping.rules import Operation
from mapping.status import Status

WINDOW_PARTS: Final = 256
_READ: Final = Operation.READ
_WRITE: Final = Operation.WRITE
_CREATE_ERRORS: Final = {
    Status.EXISTS: (errno.EEXIST, ""),
    Status.LIMIT: (errno.ENOSPC, ""),
    Status.NO_CONTAINER: (errno.ENOENT, "a slot is not bound to a container"),
}


class SegmapBdev(Bdev):
    """`table`: its id at the controller. The size is whole segments."""

    product_name: ClassVar[str] = "Segmap disk"
    operations: ClassVar[frozenset[Operation]] = frozenset(
        {Operation.READ, Operation.WRITE, Operation.UNMAP, Operation.WRITE_ZEROES, Operation.FLUSH}
    )
    extra_io_types: ClassVar[frozenset[str]] = frozenset({"reset", "abort"})
    listed_until_closed: ClassVar[bool] = True
    volatile_cache = True

    def __init__(
        self,
        host: PlaneHost,
        name: str,
        table: int,
        geometry: Geometry,
        slots: list[int],
        identity: uuid.UUID | None = None,
    ) -> None:
        blocks = geometry.segment_count * geometry.blocks_per_segment
        super().__init__(name, geometry.block_size, blocks, identity)
        check_slots(host, geometry, slots)
        status = host.plane.create_table(table, geometry, slots)
        if status is not Status.OK:
            raise BdevError(*_CREATE_ERRORS[status])
        self.read_only = geometry.read_only
        self.table = table
        self.host = host
        self.engine: Engine = host.plane.tables[table]
        self.unflushed: dict[Container, None] = {}
        self.flushing: list[Flush] = []
        self.watches: dict[Container, LossWatch] = {}
        self._slots_changed()
        host.slots_changed[table] = self._slots_changed
        self._segment_size = geometry.segment_size
        self._path: DirectPath | None = None
        self._counts: dict[Bdev, DirectCount] = {}
        if DirectPath.suits(geometry.segment_size):
            self._path = path = DirectPath(self.engine, self.read_now, self.write_now, host.clock)
            host.paths.add(path)
            self.read_now, self.write_now = path.read_now, path.write_now  # type: ignore[method-assign]
        self._translate = self.engine.translate
        self._containers = host.containers
        self._clock = host.clock
        self.read_latency = LatencyHistogram()
        self.write_latency = LatencyHistogram()
        self._unsettled = 0
        self._windowed: set[HostIo] = set()
        self._drained: asyncio.Future[None] | None = None

    # --- at once -----------------------------------------------------------------------------------------------------

    def read_now(self, offset: int, length: int) -> Buffer | None:
        segment, inside = divmod(offset, self._segment_size)
        if inside + length > self._segment_size:
            return None
        entry = self._translate(segment, READ_MASK, self._clock())
        if entry < 0:
            return None
        container = self._containers[entry >> 4 & 4095]
        bdev, physical = container.bdev, entry >> 16
        if bdev is None or not 0 < physical < container.label.segment_count:
            return None
        stat = self.stat
        stat.reads += 1
        stat.bytes_read += length
        if bdev.direct is not None:
            self._aim(container, bdev)
        return bdev.read_now(physical * self._segment_size + inside, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        length = len(data)
        segment, inside = divmod(offset, self._segment_size)
        if inside + length > self._segment_size or self.read_only:
            return False
        entry = self._translate(segment, WRITE_MASK, self._clock())
        if entry < 0:
            return False
        container = self._containers[entry >> 4 & 4095]
        bdev, physical = container.bdev, entry >> 16
        if bdev is None or bdev.read_only or not 0 < physical < container.label.segment_count:
            return False
        if container not in self.unflushed:
            self.touch(container, container.losses)
        if bdev.direct is not None:
            self._aim(container, bdev)
        if not bdev.write_now(physical * self._segment_size + inside, data):
            return False
        stat = self.stat
        stat.writes += 1
        stat.bytes_written += length
        return True

    def _aim(self, container: Container, bdev: Bdev) -> None:
        """Let the next I/O to this container go straight to its memory."""
        if self._path is None:
            return
        count = self._counts.get(bdev)
        if count is None:
            count = self._counts[bdev] = DirectCount()
            self.stat.direct.append(count)
            bdev.stat.direct.append(count)
        writable = container in self.unflushed and not self.read_only and not bdev.read_only
        self._path.aim(container.slot, bdev, container.label.segment_count, count, writable)

    # --- in parts ----------------------------------------------------------------------------------------------------

    def _start(self, io: BdevIo) -> None:
        host_io = HostIo(self, io)
        io.context = host_io
        host_io.begin()

    def submit_parts(self, parts: list[Part]) -> None:
        """Give parts to the engine, and do what it says."""
        now_ns = self._clock()
        submit = self.engine.submit
        effects: list[Effect] = []
        for part in parts:
            effects += submit(part, now_ns)
        self.host.run(effects)
        if self.engine.parked_count:
            self.host.deadlines_changed()

    def complete(self, part: Part, status: Status) -> None:
        """A forwarded part's container I/O has ended."""
        self.host.run(self.engine.complete(part, status, self._clock()))
        if self._drained is not None:
            self._check_drained()

    def complete_unsettled(self, part: Part, status: Status, container: Container, bdev: Bdev | None) -> None:
        """Like `complete`, but `bdev` may still do it: barriers wait until the container is attached anew."""

        def settled() -> None:
            self._unsettled -= 1
            self.host.run(self.engine.settle(part))
            self._check_drained()

        self._unsettled += 1
        container.keep_unsettled(settled, bdev)
        self.host.run(self.engine.complete(part, status, self._clock(), settled=False))

    def windowed(self, host_io: HostIo, begun: bool) -> None:
        """Keep track of host I/Os that still have parts to make."""
        (self._windowed.add if begun else self._windowed.discard)(host_io)

    def touch(self, container: Container, losses: int) -> None:
        """A write goes to the container, or has ended well there; `losses` there when it began."""
        if container.volatile:
            self.unflushed[container] = None
            self.watches.setdefault(container, LossWatch(losses))

    def _slots_changed(self) -> None:
        """The table's container list is another: watch those in it, and those that a flush has to answer for."""
        listed = [self.host.containers[slot] for slot in sorted(self.engine.slots)]
        pending = [container for flush in self.flushing for container in flush.pending]
        containers = dict.fromkeys([*listed, *self.unflushed, *pending])
        self.watches = {
            container: self.watches.get(container) or LossWatch(container.losses) for container in containers
        }

    def flush(self, part: Part) -> None:
        """Flush every container of the table, and every one with unflushed writes, then complete the part."""
        if self._path is not None:
            self._path.disarm()
        Flush(self, part).begin()

    def abort(self, io: BdevIo) -> None:
        host_io = io.context
        if isinstance(host_io, HostIo):
            host_io.cancelled = True
            for container in self.host.containers.values():
                container.held.drop(lambda holder: holder is host_io)
            self.host.run(self.engine.abort(host_io))

    def host_lost(self, owner: object) -> None:
        for host_io in self._windowed:
            if host_io.io.owner is owner:
                host_io.cancelled = True
        for flush in self.flushing:
            flush.host_lost(owner)
        if owner is not None:
            self._drop_held(owner)
            self.host.run(self.engine.reset(owner))

    def _drop_held(self, owner: object = None) -> None:
        """Those of one host connection, or all, that wait for a container's bdev."""

        def unwanted(holder: object) -> bool:
            return isinstance(holder, HostIo) and holder.disk is self and owner in (None, holder.io.owner)

        for container in self.host.containers.values():
            container.held.drop(unwanted)

    # --- life --------------------------------------------------------------------------------------------------------

    def resize(self, segment_count: int) -> int:
        """Change the number of segments; the new number of blocks."""
        geometry = self.engine.geometry
        try:
            Geometry(segment_count, geometry.segment_size, geometry.block_size)
            effects = self.engine.resize(segment_count, self._clock())
        except (ValueError, OSError):
            raise BdevError(errno.EINVAL) from None
        self.host.run(effects)
        return segment_count * geometry.blocks_per_segment

    async def removed(self) -> None:
        """First the table goes (its I/O would fault with NO-TABLE), then what is parked, then the users.

        The disk is listed, without being `present`, until what has begun has ended: only then is it deleted.
        """
        self.host.run(self.host.plane.remove_table(self.table, self._clock())[1])
        self._drop_parked()
        await super().removed()

    async def close(self) -> None:
        """Drop what is parked, wait for what has begun, forget the table."""
        self._drop_parked()
        if self.engine.generations.begun or self._windowed:
            self._drained = asyncio.get_running_loop().create_future()
            self._check_drained()
            await self._drained
        del self.host.slots_changed[self.table]
        if self._path is not None:
            self.host.paths.discard(self._path)
        for bdev, count in self._counts.items():
            bdev.stat.settle(count)
        self.host.run(self.host.plane.drop_table(self.table))

    def _drop_parked(self) -> None:
        for host_io in self._windowed:
            host_io.cancelled = True
        self._drop_held()
        self.host.run(self.engine.reset())

    def _check_drained(self) -> None:
        future = self._drained
        if future is not None and not future.done() and not self.engine.generations.begun and not self._windowed:
            future.set_result(None)

    def info(self) -> dict[str, Any]:
        """What bdev_segmap_get says, without name and uuid."""
        geometry, engine = self.engine.geometry, self.engine
        return {
            "table": self.table,
            "segment_count": geometry.segment_count,
            "segment_size": geometry.segment_size,
            "block_size": geometry.block_size,
            "read_only": geometry.read_only,
            "reclaim": geometry.reclaim,
            "slots": sorted(engine.slots),
            "sequence": engine.sequence,
            "present": engine.present,
            "suspended": engine.suspended,
        }

    def statistics(self) -> dict[str, Any]:
        """One element of bdev_segmap_get_stats."""
        engine = self.engine
        counters, counts = engine.counters, engine.table.counts()
        now_ns = self._clock()
        since_ns = min((part.parked_ns for part in engine.parked()), default=now_ns)
        return {
            "name": self.name,
            "table": self.table,
            "sequence": engine.sequence,
            "forwarded": counters.forwarded,
            "zero_reads": counters.zero_reads,
            "faults": counters.faults,
            "failed": counters.failed,
            "dropped": counters.dropped,
            "parked": engine.parked_count,
            "outstanding_faults": len(engine.outstanding_faults()),
            "oldest_parked_ns": now_ns - since_ns,
            "unsettled": self._unsettled,
            "read_latency": self.read_latency.counts,
            "write_latency": self.write_latency.counts,
            "entries": {("mapped" if state is State.NONE else state.name.lower()): counts[state] for state in State},
        }

    def describe(self) -> dict[str, Any]:
        return {"segmap": self.info()}

    def config(self) -> dict[str, Any]:
        """Identity only: what the table holds is the controller's."""
        geometry = self.engine.geometry
        return {
            "method": "bdev_segmap_create",
            "params": {
                "name": self.name,
                "table": self.table,
                "segment_count": geometry.segment_count,
                "segment_size": geometry.segment_size,
                "block_size": geometry.block_size,
                "uuid": str(self.uuid),
                "read_only": geometry.read_only,
                "reclaim": geometry.reclaim,
            },
        }


def check_slots(host: PlaneHost, geometry: Geometry, slots: list[int]) -> None:
    """Raise BdevError(EINVAL) if a bound container is cut differently, or has larger blocks, than the disk."""
    for slot in slots:
        container = host.containers.get(slot)
        if container is None:
            continue
        if container.label.segment_size != geometry.segment_size:
            raise BdevError(errno.EINVAL, f"slot {slot} has segments of {container.label.segment_size} bytes")
        if container.bdev is not None and geometry.block_size % container.bdev.block_size:
            raise BdevError(errno.EINVAL, f"slot {slot} has blocks of {container.bdev.block_size} bytes")


class HostIo:
    """One host I/O on a virtual disk, and its parts that exist now. It is the `io` of its parts."""

    __slots__ = ("_at", "_end", "_left", "_pieces", "_status", "cancelled", "disk", "io")

    def __init__(self, disk: SegmapBdev, io: BdevIo) -> None:
        self.disk = disk
        self.io = io
        self.cancelled = False
        self._at = io.offset
        self._end = io.offset + io.length
        self._left = 0
        self._status = Status.OK
        self._pieces: dict[int, Buffer] = {}

    def begin(self) -> None:
        """Make the first parts."""
        if self.io.operation is Operation.FLUSH:
            self._left = 1
            self.disk.submit_parts([Part(Operation.FLUSH, -1, 0, 0, io=self, owner=self.io.owner)])
        elif self._at == self._end:
            self.io.end(Status.OK)
        else:
            self._make_parts()

    def _make_parts(self) -> None:
        io, size, block = self.io, self.disk.engine.geometry.segment_size, self.disk.block_size
        parts: list[Part] = []
        while self._at < self._end and len(parts) < WINDOW_PARTS:
            segment, inside = divmod(self._at, size)
            length = min(size - inside, self._end - self._at)
            parts.append(Part(io.operation, segment, inside // block, length // block, io=self, owner=io.owner))
            self._at += length
        if self._at < self._end:
            self.disk.windowed(self, True)
        self._left = len(parts)
        self.disk.submit_parts(parts)

    def forward(self, part: Part) -> None:
        """Do the part on its container."""
        operation = part.operation
        if operation is Operation.FLUSH:
            self.disk.flush(part)
            return
        container = self.disk.host.containers.get(part.slot)
        if container is None or not 0 < part.physical < container.label.segment_count:
            self.disk.complete(part, Status.IO_ERROR)
            return
        if container.bdev is None:
            if not container.held.add(self, part, False):
                self.disk.complete(part, Status.IO_ERROR)
            return
        block, size = self.disk.block_size, self.disk.engine.geometry.segment_size
        offset = part.physical * size + part.offset_blocks * block
        length = part.length_blocks * block
        if operation is _READ:
            self._read(part, container, container.bdev, offset, length)
            return
        if operation is Operation.UNMAP and not container.bdev.supports(operation):
            self.disk.complete(part, Status.OK)
            return
        data = self._data_of(part, length) if operation is _WRITE else None
        io = BdevIo(operation, offset, length, self._written, data=data, fua=self.io.fua, watched=True)
        io.context = part, container, container.losses
        io.begun_ns = self.disk.host.clock()
        container.bdev.submit(io)

    def _written(self, io: BdevIo) -> None:
        part, container, losses = io.context
        if _taken_away(io, container) and container.held.add(self, part, not io.settled):
            return
        if io.status is Status.OK:
            self.disk.write_latency.note(self.disk.host.clock() - io.begun_ns)
            if container not in self.disk.unflushed:
                self.disk.touch(container, losses)
        if io.settled:
            self.disk.complete(part, io.status)
        else:
            self.disk.complete_unsettled(part, io.status, container, io.bdev)

    def _read(self, part: Part, container: Container, bdev: Bdev, offset: int, length: int) -> None:
        begun_ns = self.disk.host.clock()
        data = bdev.read_now(offset, length)
        if data is not None:
            self.disk.read_latency.note(self.disk.host.clock() - begun_ns)
            self._pieces[part.segment] = data
            self.disk.complete(part, Status.OK)
            return
        io = BdevIo(_READ, offset, length, self._has_read)
        io.context = part, container
        io.begun_ns = begun_ns
        bdev.submit(io)

    def _data_of(self, part: Part, length: int) -> Buffer:
        """The part's bytes of the host's data, without a copy."""
        data = self.io.data
        assert data is not None
        if length == self.io.length:
            return data
        geometry = self.disk.engine.geometry
        start = part.segment * geometry.segment_size + part.offset_blocks * geometry.block_size - self.io.offset
        return memoryview(data)[start : start + length]

    def _has_read(self, io: BdevIo) -> None:
        part, container = io.context
        if _taken_away(io, container) and container.held.add(self, part, False):
            return
        if io.status is Status.OK:
            assert io.data is not None
            self.disk.read_latency.note(self.disk.host.clock() - io.begun_ns)
            self._pieces[part.segment] = io.data
        self.disk.complete(part, io.status)

    def again(self, part: Part) -> None:
        """Its container has a bdev again. What outlived its lease is not begun there."""
        lease = self.disk.host.plane.lease
        if part.begun_epoch == lease.epoch and lease.covers(self.disk.host.clock()):
            self.forward(part)
        else:
            self.disk.complete(part, Status.IO_ERROR)

    def give_up(self, part: Part, status: Status, sent: bool) -> None:
        """Its container's bdev has gone, and no other has come in time."""
        if sent:
            container = self.disk.host.containers[part.slot]
            self.disk.complete_unsettled(part, status, container, container.bdev)
        else:
            self.disk.complete(part, status)

    def zeroes(self, part: Part) -> None:
        """A part of a read is zeroes."""
        self._pieces[part.segment] = zeroes(part.length_blocks * self.disk.block_size)
        self.ended(part, Status.OK)

    def ended(self, part: Part, status: Status) -> None:
        """A part has ended; the last one ends the window or the host I/O."""
        self._left -= 1
        if self._status is Status.OK:
            self._status = status
        if not self._left:
            self._window_done()

    def _window_done(self) -> None:
        if self._at < self._end and self._status is Status.OK:
            asyncio.get_running_loop().call_soon(self._next_window)
            return
        self.disk.windowed(self, False)
        if self.io.operation is _READ and self._status is Status.OK:
            pieces = self._pieces
            if len(pieces) == 1:
                (self.io.data,) = pieces.values()
            else:
                self.io.data = b"".join(pieces[segment] for segment in sorted(pieces))
        self.io.end(self._status)

    def _next_window(self) -> None:
        if self.cancelled:
            self._status = Status.CANCELLED
            self._window_done()
            self.disk._check_drained()
        else:
            self._make_parts()


def _taken_away(io: BdevIo, container: Container) -> bool:
    """It has failed because its bdev went."""
    return io.status is Status.IO_ERROR and container.bdev is None
