"""COPY_SEGMENTS and ZERO_SEGMENTS: leased work on containers, one job at a time, flushed before it is answered.

The lease is looked at before each container I/O, and once more when the flush has ended: a job that outlived its lease
never reports success. A destination that may have lost unflushed writes meanwhile fails the job. Once container I/O
has begun a job fails with LEASE_EXPIRED or IO_ERROR only: with any other status no segment was touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from channel.values import SegmentCopy, SegmentRun
from dataplane.embedded.bdev import Bdev, transfer
from dataplane.embedded.plane_host import Container, PlaneHost
from mapping.entry import has_location, segment_of, slot_of
from mapping.plane import Stamp
from mapping.rules import Operation
from mapping.status import Status

WAITING_MAX: Final = 64
_CHUNK: Final = 1 << 20
_ZERO_CHUNK: Final = 16 << 20
Outcome = tuple[Status, str]


class JobFailed(Exception):
    """Why a job ended early."""

    def __init__(self, status: Status, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class SegmentJobs:
    """The copy and zero work of one plane."""

    def __init__(self, host: PlaneHost) -> None:
        self._host = host
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def copy(self, stamp: Stamp, copies: Sequence[SegmentCopy]) -> Outcome:
        """Copy each source segment to its destination."""
        entries = [entry for copy in copies for entry in copy]

        async def work(job: _Job) -> None:
            for source, destination in copies:
                await job.copy(source, destination)

        return await self._run(stamp, entries, [copy.destination for copy in copies], work)

    async def zero(self, stamp: Stamp, runs: Sequence[SegmentRun]) -> Outcome:
        """Write zeroes to each run of segments."""
        entries = [run.start for run in runs]

        async def work(job: _Job) -> None:
            for start, count in runs:
                await job.zero(start, count)

        return await self._run(stamp, entries, entries, work)

    async def _run(
        self, stamp: Stamp, entries: list[int], written: list[int], work: Callable[[_Job], Awaitable[None]]
    ) -> Outcome:
        if self._waiting >= WAITING_MAX:
            return Status.BUSY, f"{WAITING_MAX} jobs wait already"
        if not all(map(has_location, entries)):
            return Status.BAD_MESSAGE, "an entry names no location"
        self._waiting += 1
        try:
            async with self._turn:
                return await self._one(stamp, entries, written, work)
        finally:
            self._waiting -= 1

    async def _one(
        self, stamp: Stamp, entries: list[int], written: list[int], work: Callable[[_Job], Awaitable[None]]
    ) -> Outcome:
        host = self._host
        job = _Job(host, {slot_of(entry) for entry in written})
        status, effects = host.plane.begin_job(stamp, job, entries, host.clock())
        host.run(effects)
        if status is not Status.OK:
            return status, ""
        detail = ""
        try:
            await work(job)
            await job.flush()
        except JobFailed as failure:
            refused = not job.begun or failure.status is Status.LEASE_EXPIRED
            status, detail = failure.status if refused else Status.IO_ERROR, str(failure)
        except BaseException:
            host.plane.end_job(job, Status.CANCELLED, host.clock())
            raise
        return host.plane.end_job(job, status, host.clock()), detail


class _Job:
    """One job: its container I/O; whether some has `begun`."""

    def __init__(self, host: PlaneHost, slots: set[int]) -> None:
        self.begun = False
        self._host = host
        self._written = [host.containers[slot] for slot in sorted(slots & host.containers.keys())]
        self._losses = [container.losses for container in self._written]

    def _at(self, entry: int, count: int = 1) -> tuple[Container, Bdev, int, int]:
        """(container, bdev, offset, bytes) of `count` segments from a location."""
        container = self._host.containers[slot_of(entry)]
        segment = segment_of(entry)
        if segment < 1 or count < 1 or segment + count > container.label.segment_count:
            raise JobFailed(Status.OUT_OF_RANGE, f"segments {segment}+{count} of slot {container.slot}")
        if container.bdev is None:
            raise JobFailed(Status.IO_ERROR, f"slot {container.slot} has lost its bdev")
        size = container.label.segment_size
        return container, container.bdev, segment * size, count * size

    async def _do(self, bdev: Bdev, operation: Operation, offset: int, length: int, data: bytes | None = None) -> bytes:
        if not self._host.plane.may_continue(self, self._host.clock()):
            raise JobFailed(Status.LEASE_EXPIRED, "the lease has expired")
        self.begun = True
        status, result = await transfer(bdev, operation, offset, length, data)
        if status is not Status.OK:
            raise JobFailed(status, f"{operation.name} of bdev {bdev.name} at {offset}: {status.name}")
        return bytes(result)

    async def copy(self, source: int, destination: int) -> None:
        """One segment."""
        _, reader, read_at, length = self._at(source)
        _, writer, write_at, room = self._at(destination)
        if room != length:
            raise JobFailed(Status.BAD_MESSAGE, "the segments differ in size")
        for at in range(0, length, _CHUNK):
            size = min(_CHUNK, length - at)
            data = await self._do(reader, Operation.READ, read_at + at, size)
            await self._do(writer, Operation.WRITE, write_at + at, size, data)

    async def zero(self, start: int, count: int) -> None:
        """A run of segments."""
        _, bdev, offset, length = self._at(start, count)
        for at in range(0, length, _ZERO_CHUNK):
            size = min(_ZERO_CHUNK, length - at)
            if bdev.supports(Operation.WRITE_ZEROES):
                await self._do(bdev, Operation.WRITE_ZEROES, offset + at, size)
            else:
                await self._do(bdev, Operation.WRITE, offset + at, size, bytes(size))

    async def flush(self) -> None:
        """What was written is on stable storage."""
        for container, losses in zip(self._written, self._losses, strict=True):
            bdev = container.bdev
            if bdev is not None and bdev.supports(Operation.FLUSH):
                await self._do(bdev, Operation.FLUSH, 0, 0)
            if bdev is None or container.losses != losses:
                raise JobFailed(Status.IO_ERROR, f"slot {container.slot} may have lost writes")
