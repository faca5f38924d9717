"""Virtual disks and the data plane's socket, with a scripted daemon: faults, states, barriers, lease, flush."""

from __future__ import annotations

import asyncio
import errno
import random

import pytest

from channel.messages import (
    Epoch,
    GetEntries,
    GetParked,
    GetState,
    LeaseGrant,
    Refused,
    Resume,
    SetEntries,
    SetState,
    Suspend,
    TableStatus,
)
from channel.values import AnswerAction, Header
from dataplane.embedded.bdev import BdevError, BdevEvent
from dataplane.embedded.bdev_segmap import WINDOW_PARTS
from mapping.entry import ERROR_ENTRY, NO_WRITE, ZERO_ENTRY, State
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from tests.embedded.scripted_daemon import (
    INCARNATION,
    SEGMENT,
    TABLE,
    TERM,
    Io,
    Rig,
    at,
    flush,
    on_loop,
    read,
    settle,
    write,
)

REPLACE, FAIL_REQUEST, FAIL_SEGMENT = AnswerAction.REPLACE, AnswerAction.FAIL_REQUEST, AnswerAction.FAIL_SEGMENT


@pytest.mark.claim(1, 2, 3, 12, 18, 24, 30)
@on_loop
async def test_a_write_faults_waits_and_lands_where_the_answer_says() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        io = write(disk, SEGMENT + 4096, b"x" * 4096)
        (fault,) = await rig.daemon.fault()
        assert (fault.table, fault.segment, fault.operation, fault.kind) == (TABLE, 1, Operation.WRITE, 1)
        assert (fault.offset_blocks, fault.length_blocks, fault.state) == (8, 8, State.INVALID)
        assert io.status is None
        rig.daemon.answer(fault, REPLACE, [at(9)])
        await settle()
        assert io.status is Status.OK
        assert rig.fast.read_now(9 * SEGMENT + 4096, 4096) == b"x" * 4096
        assert disk.read_now(SEGMENT + 4096, 4096) == b"x" * 4096


@on_loop
async def test_an_io_over_segments_is_split_and_put_together_again() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        await rig.daemon.set(0, [at(5), at(3), ZERO_ENTRY, at(7)])
        data = random.Random(1).randbytes(4 * SEGMENT)
        assert write(disk, 0, data[: 2 * SEGMENT]).status is Status.OK
        assert write(disk, 3 * SEGMENT, data[3 * SEGMENT :]).status is Status.OK
        io = read(disk, 512, 4 * SEGMENT - 1024)
        assert io.status is Status.OK
        expected = data[: 2 * SEGMENT] + bytes(SEGMENT) + data[3 * SEGMENT :]
        assert io.data == expected[512:-512]
        assert rig.fast.read_now(3 * SEGMENT, SEGMENT) == data[SEGMENT : 2 * SEGMENT]


@on_loop
async def test_whole_part_writes_are_not_copied() -> None:
    async with Rig() as rig:
        disk = await rig.ready(slots=(0, 1))
        await rig.daemon.set(0, [at(2, 1), at(3, 1)])
        data = bytearray(b"a" * 2 * SEGMENT)
        Io(disk, Operation.WRITE, 0, SEGMENT, data=memoryview(data)[:SEGMENT])
        Io(disk, Operation.WRITE, 0, 2 * SEGMENT, data=data)
        for io in rig.slow.waiting:
            assert io.data is not None
            assert memoryview(io.data).obj is data
        rig.slow.finish(3)


@pytest.mark.claim(22, 23)
@on_loop
async def test_every_answer_to_a_fault() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        ios = [read(disk, segment * SEGMENT) for segment in (0, 1, 2)]
        faults = await rig.daemon.fault(3)
        rig.daemon.answer(faults[0], REPLACE, [ZERO_ENTRY])
        rig.daemon.answer(faults[1], FAIL_REQUEST, status=Status.NO_SPACE)
        rig.daemon.answer(faults[2], FAIL_SEGMENT)
        await settle()
        assert [io.status for io in ios] == [Status.OK, Status.NO_SPACE, Status.IO_ERROR]
        assert ios[0].data == bytes(4096)
        response = await rig.daemon.ask(GetEntries(0, 3))
        assert list(response.entries) == [ZERO_ENTRY, 0, ERROR_ENTRY]


@pytest.mark.claim(4, 5, 20)
@on_loop
async def test_one_fault_per_segment_and_kind_and_others_pass() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        await rig.daemon.set(0, [at(1, flags=NO_WRITE)])
        waiting = [write(disk, 512 * number, b"w" * 512) for number in range(4)]
        assert read(disk, 0).status is Status.OK
        assert len(await rig.daemon.fault()) == 1
        rig.daemon.answer(rig.daemon.faults()[0], REPLACE, [at(1)])
        await settle()
        assert [io.status for io in waiting] == [Status.OK] * 4


@on_loop
async def test_faults_without_a_peer_go_up_when_one_is_admitted_and_again_to_the_next() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        old = rig.daemon
        io = read(disk, 0)
        await old.fault()
        rig.daemon = rig.connect()
        await rig.daemon.until(lambda: rig.daemon.hello)
        await old.until(lambda: old.ended)
        late = read(disk, SEGMENT)
        await settle()
        assert rig.daemon.faults() == []
        await rig.daemon.admit()
        faults = await rig.daemon.fault(2)
        assert [fault.segment for fault in faults] == [0, 1]
        rig.daemon.answer(faults[0], REPLACE, [ZERO_ENTRY, ZERO_ENTRY])
        await settle()
        assert (io.status, late.status) == (Status.OK, Status.OK)


@on_loop
async def test_sequences_continue_over_sessions_and_gaps_are_refused() -> None:
    async with Rig() as rig:
        await rig.ready()
        assert (await rig.daemon.set(0, [at(1)])).status is Status.OK
        rig.daemon = rig.connect()
        await rig.daemon.admit()
        assert rig.daemon.hello is not None
        assert list(rig.daemon.hello.message.tables) == [(TABLE, 1)]
        message = SetEntries(0, 1, [at(2)])
        for sequence, status in ((1, Status.SEQUENCE_OLD), (3, Status.SEQUENCE_GAP), (2, Status.OK)):
            assert (await rig.daemon.ask(message, rig.daemon.header(sequence))).status is status
        assert list((await rig.daemon.ask(TableStatus())).tables) == [(TABLE, 2)]


@on_loop
async def test_stale_stamps_and_unknown_tables_are_refused() -> None:
    async with Rig() as rig:
        await rig.ready()
        message = SetEntries(0, 1, [at(1)])
        for header, status in (
            (Header(TERM - 1, INCARNATION, 1, TABLE, 1), Status.STALE_TERM),
            (Header(TERM + 1, INCARNATION, 1, TABLE, 1), Status.NOT_ADMITTED),
            (Header(TERM, INCARNATION + 1, 1, TABLE, 1), Status.STALE_INCARNATION),
            (Header(TERM, INCARNATION, 2, TABLE, 1), Status.STALE_EPOCH),
            (Header(TERM, INCARNATION, 1, TABLE + 1, 1), Status.NO_TABLE),
        ):
            assert (await rig.daemon.ask(message, header)).status is status
        assert (await rig.daemon.ask(SetEntries(16, 1, [at(1)]), rig.daemon.next())).status is Status.OUT_OF_RANGE
        assert (
            await rig.daemon.ask(SetEntries(0, 1, [at(1, slot=3)]), rig.daemon.next())
        ).status is Status.NO_CONTAINER
        rig.daemon.tell(LeaseGrant(rig.now, 1), Header(TERM - 1, INCARNATION, 1))
        await rig.daemon.until(lambda: any(isinstance(notice, Refused) for notice in rig.daemon.notices))


@pytest.mark.claim(31, 32)
@on_loop
async def test_a_barrier_waits_for_what_has_begun_and_stops_nothing_else() -> None:
    async with Rig() as rig:
        disk = await rig.ready(slots=(0, 1))
        await rig.daemon.set(0, [at(2, 1), at(4)])
        first = read(disk, 0)
        answer = rig.daemon.begin(SetEntries(0, 1, [at(5, 0)]), rig.daemon.next(blocking=True))
        await settle()
        assert not answer.done()
        second = read(disk, 0)
        assert second.status is Status.OK
        assert first.status is None
        assert (await rig.daemon.set(1, [at(6)])).status is Status.OK
        rig.slow.finish()
        assert (await answer)[0].status is Status.OK
        assert first.status is Status.OK


@on_loop
async def test_a_barrier_past_the_io_deadline_fails_and_its_late_end_does_no_harm() -> None:
    async with Rig() as rig:
        disk = await rig.ready(slots=(1,))
        await rig.daemon.set(0, [at(2, 1)])
        io = read(disk, 0)
        answer = rig.daemon.begin(SetState(0, 1, State.NO_WRITE, True), rig.daemon.next(blocking=True))
        await settle()
        rig.pass_time(5)
        assert (await answer)[0].status is Status.BARRIER_TIMEOUT
        rig.slow.finish()
        assert io.status is Status.OK


@on_loop
async def test_parked_io_is_no_reason_for_a_barrier_to_wait() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        io = write(disk, 0, b"p" * 512)
        (fault,) = await rig.daemon.fault()
        assert (await rig.daemon.set(1, [ZERO_ENTRY], blocking=True)).status is Status.OK
        assert io.status is None
        rig.daemon.answer(fault, REPLACE, [at(1)])
        await settle()
        assert io.status is Status.OK


@on_loop
async def test_parked_io_of_a_lost_host_is_dropped_and_never_executed() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        lost, kept = object(), object()
        io = write(disk, 0, b"l" * 512, owner=lost)
        other = write(disk, 512, b"k" * 512, owner=kept)
        (fault,) = await rig.daemon.fault()
        disk.host_lost(lost)
        assert (io.status, other.status) == (Status.CANCELLED, None)
        rig.daemon.answer(fault, REPLACE, [at(1)])
        await settle()
        assert other.status is Status.OK
        assert disk.read_now(0, 1024) == bytes(512) + b"k" * 512


@on_loop
async def test_an_aborted_io_ends_and_never_executes() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        io = write(disk, 0, b"a" * 512)
        (fault,) = await rig.daemon.fault()
        disk.abort(io.io)
        assert io.status is Status.CANCELLED
        rig.daemon.answer(fault, REPLACE, [at(1)])
        await settle()
        assert disk.read_now(0, 512) == bytes(512)


@on_loop
async def test_parked_io_ends_at_the_park_limit() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        io = write(disk, 0, b"a" * 512)
        await rig.daemon.fault()
        for _ in range(3):
            rig.now += 6 * 10**9
            rig.grant()
            await settle()
            assert io.status is None
        rig.now += 3 * 10**9
        rig.host.tick()
        assert io.status is Status.TIMEOUT


@pytest.mark.claim(13, 29)
@on_loop
async def test_expiry_wipes_the_table_and_nothing_begun_before_it_succeeds() -> None:
    async with Rig() as rig:
        disk = await rig.ready(slots=(0, 1))
        await rig.daemon.set(0, [at(2, 1), at(3), at(4)])
        writing, reading = write(disk, 0, b"w" * 512), read(disk, 0)
        rig.now += 10 * 10**9
        assert disk.read_now(SEGMENT, 512) is None
        assert not disk.write_now(SEGMENT, bytes(512))
        rig.slow.finish(2)
        assert writing.status is Status.LEASE_EXPIRED
        assert reading.status is None
        rig.host.tick()
        await rig.daemon.until(lambda: any(isinstance(notice, Epoch) for notice in rig.daemon.notices))
        rig.daemon.grant(rig.now - 1)
        await settle()
        assert disk.read_now(SEGMENT, 512) is None
        rig.daemon.epoch, rig.daemon.sequence = 2, 0
        rig.grant()
        await settle()
        response = await rig.daemon.ask(GetEntries(0, 3))
        assert list(response.entries) == [0, 0, 0]
        fault = rig.daemon.faults()[-1]
        rig.daemon.answer(fault, REPLACE, [ZERO_ENTRY])
        await settle()
        assert (reading.status, reading.data) == (Status.OK, bytes(4096))


@on_loop
async def test_nothing_begins_before_the_first_lease_and_a_flush_waits_for_it() -> None:
    async with Rig() as rig:
        await rig.bind()
        disk = rig.disk()
        await rig.daemon.set(0, [at(1)])
        reading, flushing = read(disk, 0), flush(disk)
        assert disk.read_now(0, 512) is None
        assert (reading.status, flushing.status) == (None, None)
        rig.grant()
        await settle()
        assert flushing.status is Status.OK


@on_loop
async def test_suspend_parks_and_resume_goes_on_in_order() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        await rig.daemon.set(0, [at(1)])
        assert (await rig.daemon.ask(Suspend(), rig.daemon.header(blocking=True))).status is Status.OK
        assert disk.read_now(0, 512) is None
        ios = [write(disk, 0, bytes([number]) * 512) for number in (1, 2)]
        parked = (await rig.daemon.ask(GetParked())).parked
        assert [(record.segment, record.count) for record in parked] == [(0, 2)]
        assert [io.status for io in ios] == [None, None]
        assert (await rig.daemon.ask(Resume())).status is Status.OK
        assert [io.status for io in ios] == [Status.OK, Status.OK]
        assert disk.read_now(0, 512) == b"\2" * 512


@pytest.mark.claim(17, 19, 21, 27, 33)
@on_loop
async def test_states_come_as_bits() -> None:
    async with Rig() as rig:
        await rig.ready()
        await rig.daemon.set(0, [at(1), ZERO_ENTRY, at(2), at(3)])
        response = await rig.daemon.ask(SetState(2, 2, State.NO_WRITE, True), rig.daemon.next())
        assert response.status is Status.OK
        expected = {State.NONE: 0b1, State.ZERO: 0b10, State.NO_WRITE: 0b1100, State.INVALID: 0xFFF0}
        for state, bits in expected.items():
            found = (await rig.daemon.ask(GetState(0, 16, state))).bits
            assert int.from_bytes(found, "little") == bits
        response = await rig.daemon.ask(SetState(0, 1, State.ZERO, False), rig.daemon.next())
        assert response.status is Status.FORBIDDEN


@on_loop
async def test_what_is_parked_can_be_asked_for() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        write(disk, 0, b"a" * 512)
        rig.now += 2 * 10**9
        read(disk, SEGMENT)
        parked = list((await rig.daemon.ask(GetParked())).parked)
        assert [(item.segment, item.since_ns_ago, item.count, item.operation, item.kind) for item in parked] == [
            (0, 2 * 10**9, 1, Operation.WRITE, 1),
            (1, 0, 1, Operation.READ, 0),
        ]
        assert (await rig.daemon.ask(GetParked(), rig.daemon.header(table=99))).status is Status.NO_TABLE


@on_loop
async def test_unmap_and_zeroes_of_whole_and_part_segments() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        await rig.daemon.set(0, [at(1), at(2), ZERO_ENTRY])
        disk.write_now(0, b"d" * SEGMENT)
        part = Io(disk, Operation.WRITE_ZEROES, 512, 512)
        assert part.status is Status.OK
        assert disk.read_now(0, 1536) == b"d" * 512 + bytes(512) + b"d" * 512
        whole = Io(disk, Operation.UNMAP, 0, 3 * SEGMENT)
        faults = await rig.daemon.fault(2)
        assert [(fault.segment, fault.kind) for fault in faults] == [(0, 2), (1, 2)]
        rig.daemon.answer(faults[0], REPLACE, [ZERO_ENTRY, ZERO_ENTRY])
        await settle()
        assert whole.status is Status.OK


@on_loop
async def test_an_unmap_of_the_whole_disk_comes_in_windows() -> None:
    async with Rig() as rig:
        disk = await rig.ready(segments=3 * WINDOW_PARTS + 1)
        io = Io(disk, Operation.UNMAP, 0, disk.size, owner=rig)
        await rig.daemon.fault(WINDOW_PARTS)
        await settle()
        assert len(rig.daemon.faults()) == WINDOW_PARTS
        await rig.daemon.set(0, [ZERO_ENTRY], count=2 * WINDOW_PARTS)
        await rig.daemon.fault(2 * WINDOW_PARTS)
        disk.host_lost(rig)
        await settle()
        assert io.status is Status.CANCELLED
        assert disk.engine.parked_count == 0


@on_loop
async def test_a_flush_covers_every_container_and_fails_once_after_a_loss() -> None:
    async with Rig() as rig:
        disk = await rig.ready(slots=(0, 1))
        await rig.daemon.set(0, [at(1), at(2, 1)])
        flushing = flush(disk)
        assert flushing.status is None
        assert [io.operation for io in rig.slow.waiting] == [Operation.FLUSH]
        rig.slow.finish()
        assert flushing.status is Status.OK
        disk.write_now(0, b"v" * 512)
        rig.fast.losses += 1
        again = [flush(disk), flush(disk)]
        rig.slow.finish(2)
        assert [io.status for io in again] == [Status.IO_ERROR, Status.IO_ERROR]
        last = flush(disk)
        rig.slow.finish()
        assert last.status is Status.OK


@on_loop
async def test_a_failed_flush_keeps_what_is_unflushed() -> None:
    async with Rig() as rig:
        disk = await rig.ready(slots=(0, 1))
        await rig.daemon.set(0, [at(1), at(2, 1)])
        disk.write_now(0, b"v" * 512)
        io = flush(disk)
        rig.slow.finish(status=Status.IO_ERROR)
        assert io.status is Status.IO_ERROR
        rig.fast.losses += 1
        io = flush(disk)
        rig.slow.finish()
        assert io.status is Status.IO_ERROR


@on_loop
async def test_a_write_in_flight_across_a_flush_is_answered_for_by_the_next() -> None:
    async with Rig() as rig:
        disk = await rig.ready(slots=(1,))
        await rig.daemon.set(0, [at(2, 1)])
        writing, first = write(disk, 0, b"w" * 512), flush(disk)
        rig.slow.waiting.pop(1).end(Status.OK)
        assert (first.status, writing.status) == (Status.OK, None)
        rig.slow.finish()
        assert writing.status is Status.OK
        await rig.daemon.set(0, [0])
        assert (await rig.replace_slots([])).status is Status.OK
        rig.slow.losses += 1
        for status in (Status.IO_ERROR, Status.OK):
            io = flush(disk)
            rig.slow.finish()
            assert io.status is status
        assert flush(disk).status is Status.OK
        assert rig.slow.waiting == []


@on_loop
async def test_a_loss_is_told_whoever_has_written() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        other = rig.disk(table=TABLE + 1)
        assert (flush(disk).status, flush(other).status) == (Status.OK, Status.OK)
        rig.fast.losses += 1
        later = rig.disk(table=TABLE + 2)
        for status in (Status.IO_ERROR, Status.OK):
            assert (flush(disk).status, flush(other).status) == (status, status)
        assert flush(later).status is Status.OK


@on_loop
async def test_a_container_that_joins_the_list_is_watched_from_then_on() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        await rig.bind(1, "c1")
        rig.slow.losses += 1
        assert (await rig.replace_slots([0, 1])).status is Status.OK
        rig.slow.losses += 1
        assert (await rig.replace_slots([1])).status is Status.OK
        for status in (Status.IO_ERROR, Status.OK):
            io = flush(disk)
            rig.slow.finish()
            assert io.status is status


@on_loop
async def test_a_loss_while_a_flush_runs_is_told_by_the_next_one_too() -> None:
    async with Rig() as rig:
        disk = await rig.ready(slots=(0, 1))
        await rig.daemon.set(0, [at(1)])
        first = flush(disk)
        disk.write_now(0, b"w" * 512)
        rig.fast.losses += 1
        rig.slow.finish()
        assert first.status is Status.IO_ERROR
        for status in (Status.IO_ERROR, Status.OK):
            io = flush(disk)
            rig.slow.finish()
            assert io.status is status


@on_loop
async def test_a_failure_that_nobody_waits_for_is_told_again() -> None:
    async with Rig() as rig:
        disk = await rig.ready(slots=(0, 1))
        rig.fast.losses += 1
        host, other = object(), object()
        for owner in (host, other):
            gone = flush(disk, owner=host)
            disk.host_lost(owner)
            rig.slow.finish()
            assert gone.status is Status.IO_ERROR
        again = flush(disk)
        rig.slow.finish()
        assert again.status is Status.OK


@on_loop
async def test_a_container_that_is_taken_away_fails_its_io_and_can_come_back() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        await rig.daemon.set(0, [at(1)])
        disk.write_now(0, b"v" * 512)
        await rig.layer.unregister(rig.fast)
        assert disk.read_now(0, 512) is None
        assert read(disk, 0).status is Status.IO_ERROR
        back = type(rig.fast)("c0", 512, rig.fast.block_count)
        rig.layer.register(back)
        assert (await rig.bind(flags=0)).status is Status.LABEL_MISMATCH
        assert (await rig.bind()).status is Status.OK
        assert disk.read_now(0, 512) == bytes(512)
        assert flush(disk).status is Status.IO_ERROR
        assert flush(disk).status is Status.OK


@on_loop
async def test_locations_outside_the_container_and_its_label_are_never_reached() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        await rig.daemon.set(0, [at(0), at(64), at(63)])
        for segment in (0, 1):
            assert disk.read_now(segment * SEGMENT, 512) is None
            assert not disk.write_now(segment * SEGMENT, bytes(512))
            assert read(disk, segment * SEGMENT).status is Status.IO_ERROR
            assert write(disk, segment * SEGMENT, bytes(512)).status is Status.IO_ERROR
        assert read(disk, 2 * SEGMENT).status is Status.OK


@on_loop
async def test_a_read_only_disk_refuses_writes() -> None:
    async with Rig() as rig:
        disk = await rig.ready(read_only=True)
        await rig.daemon.set(0, [at(1)])
        assert not disk.write_now(0, bytes(512))
        assert write(disk, 0, bytes(512)).status is Status.WRITE_PROTECTED
        assert Io(disk, Operation.UNMAP, 0, SEGMENT).status is Status.WRITE_PROTECTED
        assert disk.read_now(0, 512) == bytes(512)


@on_loop
async def test_resize_tells_and_cuts() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        events: list[BdevEvent] = []
        close = disk.open(events.append)
        waiting = read(disk, 12 * SEGMENT)
        rig.layer.resized(disk, disk.resize(8))
        assert (disk.block_count, events) == (8 * SEGMENT // 512, [BdevEvent.RESIZE])
        assert waiting.status is Status.OUT_OF_RANGE
        assert read(disk, 8 * SEGMENT).status is Status.OUT_OF_RANGE
        with pytest.raises(BdevError):
            disk.resize(0)
        close()


@on_loop
async def test_delete_drops_what_is_parked_and_waits_for_what_has_begun() -> None:
    async with Rig() as rig:
        disk = await rig.ready(slots=(0, 1))
        await rig.daemon.set(0, [at(2, 1)])
        begun, parked = read(disk, 0), read(disk, SEGMENT)
        await rig.daemon.fault()
        task = asyncio.ensure_future(rig.layer.unregister(disk))
        await settle()
        assert (begun.status, parked.status, task.done()) == (None, Status.CANCELLED, False)
        rig.slow.finish()
        await task
        assert begun.ended
        assert rig.host.plane.tables == {}


@on_loop
async def test_a_disk_is_listed_until_what_has_begun_has_ended() -> None:
    async with Rig() as rig:
        disk = await rig.ready(slots=(1,))
        await rig.daemon.set(0, [at(2, 1)])
        begun = write(disk, 0, b"w" * 512)
        task = asyncio.ensure_future(rig.layer.unregister(disk))
        await settle()
        assert rig.layer.get(disk.name) is disk
        assert (disk.info()["table"], disk.info()["present"]) == (TABLE, False)
        with pytest.raises(BdevError) as caught:
            await rig.layer.unregister(disk)
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(BdevError) as caught:
            rig.disk()
        assert caught.value.errno == errno.EEXIST
        assert not any(kind == "bdev_unregister" for _, kind, _ in rig.layer.notifications)
        rig.slow.finish()
        await task
        assert (begun.status, rig.layer.get(disk.name), rig.host.plane.tables) == (Status.OK, None, {})
        assert rig.layer.notifications[-1][1:] == ("bdev_unregister", disk.name)


@on_loop
async def test_a_table_id_and_a_name_are_used_once() -> None:
    async with Rig() as rig:
        await rig.ready()
        with pytest.raises(BdevError) as caught:
            rig.disk()
        assert caught.value.errno == 17
        with pytest.raises(BdevError) as caught:
            rig.disk(table=8, slots=(4,))
        assert caught.value.errno == 2


@on_loop
async def test_the_direct_path_counts_at_both_bdevs_and_stops_when_something_changes() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        await rig.daemon.set(0, [at(1), at(2, flags=NO_WRITE), ZERO_ENTRY, at(64), at(0)])
        before = rig.fast.stat.totals()["reads"]
        for _ in range(3):
            assert disk.write_now(0, b"a" * 512)
            assert disk.read_now(0, 512) == b"a" * 512
        assert disk.stat.totals() == disk.stat.totals() | {"reads": 3, "writes": 3, "bytes_read": 1536}
        assert rig.fast.stat.totals()["reads"] == before + 3
        assert disk.read_now(SEGMENT, 512) == bytes(512)
        assert not disk.write_now(SEGMENT, bytes(512))
        for segment in (2, 3, 4, 5):
            assert disk.read_now(segment * SEGMENT, 512) is None
        assert disk.read_now(SEGMENT - 512, 1024) is None
        await rig.daemon.set(0, [at(9)])
        assert disk.read_now(0, 512) == bytes(512)
        await rig.daemon.ask(Suspend())
        assert disk.read_now(0, 512) is None
        assert not disk.write_now(0, bytes(512))
        await rig.daemon.ask(Resume())
        assert disk.write_now(0, b"b" * 512)
        rig.now += 10 * 10**9
        assert disk.read_now(0, 512) is None
        await rig.layer.unregister(disk)
        assert rig.fast.stat.direct == []
        assert rig.host.paths == set()


@on_loop
async def test_writes_by_the_direct_path_after_a_flush_are_unflushed_again() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        await rig.daemon.set(0, [at(1)])
        for _ in range(2):
            assert disk.write_now(0, bytes(512))
        assert flush(disk).status is Status.OK
        assert disk.write_now(0, bytes(512))
        rig.fast.losses += 1
        assert flush(disk).status is Status.IO_ERROR


@on_loop
async def test_the_direct_path_says_what_the_general_one_says() -> None:
    dice = random.Random(5)
    async with Rig() as rig:
        disk = await rig.ready()
        straight, general = disk.read_now, type(disk).read_now
        for _ in range(200):
            entry = dice.choice([0, ZERO_ENTRY, ERROR_ENTRY, at(dice.randrange(70)), at(3, flags=NO_WRITE)])
            segment = dice.randrange(16)
            await rig.daemon.set(segment, [entry])
            for _ in range(4):
                offset = dice.randrange(16 * SEGMENT // 512) * 512
                length = dice.choice((512, 4096, SEGMENT))
                if offset + length <= disk.size:
                    assert straight(offset, length) == general(disk, offset, length)


@on_loop
async def test_io_on_a_table_that_is_being_deleted_faults_with_no_table_and_ends_with_it() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        left = asyncio.get_running_loop().create_future()
        close = disk.open(lambda event: left.done() or left.set_result(event))
        parked = read(disk, 0)
        await rig.daemon.fault(1)
        deleting = asyncio.ensure_future(rig.layer.unregister(disk))
        await left
        late = read(disk, SEGMENT)
        faults = await rig.daemon.fault(2)
        assert [(fault.segment, fault.kind) for fault in faults][-1] == (1, FaultKind.NO_TABLE)
        assert not deleting.done() and late.status is None
        close()
        await deleting
        assert (parked.status, late.status) == (Status.CANCELLED, Status.CANCELLED)
