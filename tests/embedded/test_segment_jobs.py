"""COPY_SEGMENTS and ZERO_SEGMENTS: data, order, lease, losses, limits."""

from __future__ import annotations

import asyncio
import random

import pytest

from channel.messages import CopySegments, UnbindSlot, ZeroSegments
from channel.values import SegmentCopy, SegmentRun
from dataplane.embedded.segment_jobs import WAITING_MAX
from mapping.entry import ZERO_ENTRY
from mapping.rules import Operation
from mapping.status import Status
from tests.embedded.scripted_daemon import SEGMENT, Rig, at, on_loop, settle


@on_loop
async def test_segments_are_copied_between_containers_and_flushed() -> None:
    async with Rig() as rig:
        await rig.ready(slots=(0, 1))
        data = random.Random(3).randbytes(2 * SEGMENT)
        rig.fast.write_now(4 * SEGMENT, data)
        answer = rig.daemon.begin(CopySegments([SegmentCopy(at(4), at(7, 1)), SegmentCopy(at(5), at(3, 1))]))
        operations = []
        while not answer.done():
            await asyncio.sleep(0)
            operations += [io.operation for io in rig.slow.waiting]
            rig.slow.finish(len(rig.slow.waiting))
        assert answer.result()[0].status is Status.OK
        assert operations == [Operation.WRITE, Operation.WRITE, Operation.FLUSH]
        memory = rig.slow._memory
        assert memory[7 * SEGMENT : 8 * SEGMENT] == data[:SEGMENT]
        assert memory[3 * SEGMENT : 4 * SEGMENT] == data[SEGMENT:]


@on_loop
async def test_runs_are_zeroed() -> None:
    async with Rig() as rig:
        await rig.ready()
        rig.fast.write_now(SEGMENT, b"x" * 5 * SEGMENT)
        assert (await rig.daemon.ask(ZeroSegments([SegmentRun(at(2), 3)]))).status is Status.OK
        assert rig.fast.read_now(SEGMENT, 5 * SEGMENT) == b"x" * SEGMENT + bytes(3 * SEGMENT) + b"x" * SEGMENT


@on_loop
async def test_what_is_refused() -> None:
    async with Rig() as rig:
        await rig.ready()
        for message, status in (
            (ZeroSegments([SegmentRun(at(0), 1)]), Status.OUT_OF_RANGE),
            (ZeroSegments([SegmentRun(at(63), 2)]), Status.OUT_OF_RANGE),
            (ZeroSegments([SegmentRun(at(1), 0)]), Status.OUT_OF_RANGE),
            (ZeroSegments([SegmentRun(at(1, 9), 1)]), Status.NO_CONTAINER),
            (ZeroSegments([SegmentRun(ZERO_ENTRY, 1)]), Status.BAD_MESSAGE),
            (CopySegments([SegmentCopy(at(1), at(64))]), Status.OUT_OF_RANGE),
        ):
            assert (await rig.daemon.ask(message)).status is status


@on_loop
async def test_a_job_that_outlives_its_lease_never_succeeds() -> None:
    async with Rig() as rig:
        await rig.ready(slots=(0, 1))
        answer = rig.daemon.begin(CopySegments([SegmentCopy(at(1), at(1, 1))]))
        await settle()
        rig.now += 10 * 10**9
        rig.slow.finish()
        assert (await answer)[0].status is Status.LEASE_EXPIRED
        refused = await rig.daemon.ask(ZeroSegments([SegmentRun(at(2), 1)]))
        assert refused.status in (Status.LEASE_EXPIRED, Status.STALE_EPOCH)


@on_loop
async def test_jobs_go_one_at_a_time_and_hold_their_slots() -> None:
    async with Rig() as rig:
        await rig.bind()
        await rig.bind(1, "c1")
        rig.grant()
        await settle()
        first = rig.daemon.begin(ZeroSegments([SegmentRun(at(1, 1), 1)]))
        second = rig.daemon.begin(ZeroSegments([SegmentRun(at(2, 1), 1)]))
        await settle()
        assert len(rig.slow.waiting) == 1
        assert (await rig.daemon.ask(UnbindSlot(1))).status is Status.BUSY
        while not second.done():
            await asyncio.sleep(0)
            rig.slow.finish()
        assert (first.result()[0].status, second.result()[0].status) == (Status.OK, Status.OK)


@on_loop
async def test_too_many_waiting_jobs_are_refused() -> None:
    async with Rig() as rig:
        await rig.ready(slots=(0, 1))
        answers = [rig.daemon.begin(ZeroSegments([SegmentRun(at(1, 1), 1)])) for _ in range(WAITING_MAX + 1)]
        assert (await answers[-1])[0].status is Status.BUSY
        while not answers[-2].done():
            await asyncio.sleep(0)
            rig.slow.finish(len(rig.slow.waiting))
        assert all(answer.result()[0].status is Status.OK for answer in answers[:-1])


@on_loop
async def test_a_destination_that_lost_writes_fails_the_job() -> None:
    async with Rig() as rig:
        await rig.ready(slots=(0, 1))
        answer = rig.daemon.begin(CopySegments([SegmentCopy(at(1), at(1, 1))]))
        await settle()
        rig.slow.losses += 1
        rig.slow.finish()
        await settle()
        rig.slow.finish()
        assert (await answer)[0].status is Status.IO_ERROR


@on_loop
async def test_an_io_error_ends_the_job() -> None:
    async with Rig() as rig:
        await rig.ready(slots=(0, 1))
        answer = rig.daemon.begin(CopySegments([SegmentCopy(at(1, 1), at(1))]))
        await settle()
        rig.slow.finish(status=Status.IO_ERROR)
        response = (await answer)[0]
        assert response.status is Status.IO_ERROR
        assert "READ" in response.detail


@pytest.mark.parametrize("status", [Status.BUSY, Status.LIMIT, Status.UNSUPPORTED, Status.NO_SPACE, Status.CANCELLED])
@on_loop
async def test_whatever_ends_a_job_that_has_begun_is_an_io_error(status: Status) -> None:
    async with Rig() as rig:
        await rig.ready(slots=(0, 1))
        answer = rig.daemon.begin(ZeroSegments([SegmentRun(at(1, 1), 1), SegmentRun(at(5, 1), 1)]))
        await settle()
        rig.slow.finish()
        await settle()
        rig.slow.finish(status=status)
        response = (await answer)[0]
        assert response.status is Status.IO_ERROR
        assert status.name in response.detail


@on_loop
async def test_a_mistake_is_one_only_before_the_job_has_begun() -> None:
    async with Rig() as rig:
        await rig.ready()
        wrong = SegmentRun(at(63), 2)
        assert (await rig.daemon.ask(ZeroSegments([wrong, SegmentRun(at(1), 1)]))).status is Status.OUT_OF_RANGE
        response = await rig.daemon.ask(ZeroSegments([SegmentRun(at(1), 1), wrong]))
        assert (response.status, response.detail) == (Status.IO_ERROR, "segments 63+2 of slot 0")
