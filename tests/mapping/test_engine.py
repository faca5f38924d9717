"""The reference engine, behaviour by behaviour: forwarding, faults, answers, parking, barriers, leases."""

from __future__ import annotations

import pytest

from mapping.effects import BarrierReached, Complete, Effect, Fault, Forward, Part, ReturnZeroes, SendFault
from mapping.engine import READ_MASK, WRITE_MASK, Engine, Geometry, Limits
from mapping.entry import ERROR, MAPPED, NO_WRITE, ZERO_ENTRY, State, pack, state_of
from mapping.lease import Lease
from mapping.rules import FaultKind, Operation
from mapping.status import Status

SECOND = 1_000_000_000
WHOLE = 2048


def make(read_only: bool = False, limits: Limits | None = None, channels: int = 1) -> Engine:
    lease = Lease()
    lease.grant(0, 10 * SECOND, 0)
    ids = iter(range(1, 10_000))
    geometry = Geometry(64, read_only=read_only)
    engine = Engine(1, geometry, lease, lambda: next(ids), limits or Limits(), channels)
    engine.slots = frozenset({0, 1})
    return engine


def expire(engine: Engine, now: int) -> list[Effect]:
    engine._lease.expire()
    return engine.lease_expired(now)


def regrant(engine: Engine, now: int) -> list[Effect]:
    assert engine._lease.grant(now, 10 * SECOND, now) is Status.OK
    return engine.lease_granted(now)


def part(operation: Operation = Operation.READ, segment: int = 5, length: int = 8, **extra: object) -> Part:
    return Part(operation, segment, 0, length, **extra)  # type: ignore[arg-type]


def the_fault(effects: list[Effect]) -> Fault:
    (effect,) = effects
    assert isinstance(effect, SendFault)
    return effect.fault


def statuses(effects: list[Effect]) -> list[Status]:
    assert all(isinstance(effect, Complete) for effect in effects)
    return [effect.status for effect in effects if isinstance(effect, Complete)]


@pytest.mark.claim(24, 34)
def test_a_loaded_entry_forwards_and_completes() -> None:
    engine = make()
    engine.set_entries(5, 1, [pack(1, 99)], 0)
    read = part()
    assert engine.submit(read, 1) == [Forward(read)]
    assert (read.slot, read.physical) == (1, 99)
    assert engine.generations.begun == 1
    assert engine.complete(read, Status.OK, 2) == [Complete(read, Status.OK)]
    assert engine.generations.begun == 0


def test_a_container_error_reaches_the_host() -> None:
    engine = make()
    engine.set_entries(5, 1, [pack(1, 99)], 0)
    read = part()
    engine.submit(read, 1)
    assert engine.complete(read, Status.IO_ERROR, 2) == [Complete(read, Status.IO_ERROR)]


@pytest.mark.parametrize("entry", [pack(0, 9), pack(0, 9, NO_WRITE), ZERO_ENTRY, pack(0, 9, ERROR), 0])
def test_translate_agrees_with_submit(entry: int) -> None:
    for operation, mask in ((Operation.READ, READ_MASK), (Operation.WRITE, WRITE_MASK)):
        engine = make()
        engine.set_entries(5, 1, [entry], 0)
        forwards = any(isinstance(effect, Forward) for effect in engine.submit(part(operation), 1))
        assert (engine.translate(5, mask, 1) == entry) == forwards
        assert (engine.translate(5, mask, 1) == -1) == (not forwards)


def test_translate_is_closed_without_lease_when_suspended_and_when_deleted() -> None:
    engine = make()
    engine.set_entries(5, 1, [pack(0, 9)], 0)
    assert engine.translate(5, READ_MASK, 10 * SECOND) == -1
    engine.suspend()
    assert engine.translate(5, READ_MASK, 1) == -1
    engine.resume(1)
    assert engine.translate(5, READ_MASK, 1) == pack(0, 9)
    engine.remove(1)
    assert engine.translate(5, READ_MASK, 1) == -1


@pytest.mark.claim(22)
def test_zero_reads_zeroes_and_writes_fault() -> None:
    engine = make()
    engine.set_entries(5, 1, [ZERO_ENTRY], 0)
    read = part()
    assert engine.submit(read, 1) == [ReturnZeroes(read)]
    fault = the_fault(engine.submit(part(Operation.WRITE), 1))
    assert (fault.kind, fault.state, fault.entry) == (FaultKind.WRITE, State.ZERO, ZERO_ENTRY)


@pytest.mark.claim(23)
def test_error_fails_reads_and_writes() -> None:
    engine = make()
    engine.set_entries(5, 1, [pack(0, 1, ERROR)], 0)
    for operation in (Operation.READ, Operation.WRITE, Operation.UNMAP):
        assert statuses(engine.submit(part(operation), 1)) == [Status.IO_ERROR]


def test_a_fault_says_what_was_asked() -> None:
    engine = make()
    fault = the_fault(engine.submit(Part(Operation.WRITE, 7, 16, 8), 3))
    assert (fault.table, fault.segment, fault.operation, fault.kind) == (1, 7, Operation.WRITE, FaultKind.WRITE)
    assert (fault.offset_blocks, fault.length_blocks, fault.entry, fault.since_ns) == (16, 8, 0, 3)


def test_one_fault_per_segment_and_kind() -> None:
    engine = make()
    the_fault(engine.submit(part(), 1))
    assert engine.submit(part(), 1) == []
    the_fault(engine.submit(part(Operation.WRITE), 1))
    the_fault(engine.submit(part(segment=6), 1))
    assert engine.parked_count == 4


def test_others_pass_a_parked_io() -> None:
    engine = make()
    engine.set_entries(6, 1, [pack(0, 1)], 0)
    the_fault(engine.submit(part(), 1))
    assert isinstance(engine.submit(part(segment=6), 1)[0], Forward)


def test_replace_retries_the_parked() -> None:
    engine = make()
    first, second = part(), part()
    fault = the_fault(engine.submit(first, 1))
    engine.submit(second, 1)
    status, effects = engine.answer_replace(fault.fault_id, 4, 3, [ZERO_ENTRY, pack(0, 8), ZERO_ENTRY], 2)
    assert status is Status.OK
    assert effects == [Forward(first), Forward(second)]
    assert list(engine.table.get(4, 3)) == [ZERO_ENTRY, pack(0, 8), ZERO_ENTRY]
    assert engine.parked_count == 0


def test_a_retry_may_fault_again_with_a_new_id() -> None:
    engine = make()
    write = part(Operation.WRITE)
    fault = the_fault(engine.submit(write, 1))
    _, effects = engine.answer_replace(fault.fault_id, 5, 1, [ZERO_ENTRY], 2)
    again = the_fault(effects)
    assert again.fault_id != fault.fault_id
    assert again.entry == ZERO_ENTRY
    assert write.parked_ns == 1, "the park limit counts from the first parking"


def test_read_ahead_releases_other_faults_too() -> None:
    engine = make()
    five, six = part(), part(segment=6)
    fault = the_fault(engine.submit(five, 1))
    the_fault(engine.submit(six, 1))
    _, effects = engine.answer_replace(fault.fault_id, 5, 2, [pack(0, 1), pack(0, 2)], 2)
    assert effects == [Forward(five), Forward(six)]
    assert engine.outstanding_faults() == []


def test_entries_that_do_not_help_leave_the_fault_alone() -> None:
    engine = make()
    fault = the_fault(engine.submit(part(Operation.WRITE), 1))
    _, effects = engine.set_entries(5, 1, [ZERO_ENTRY], 2)
    assert effects == []
    assert engine.outstanding_faults() == [fault]


def test_an_answer_nobody_waits_for_still_counts() -> None:
    engine = make()
    assert engine.answer_replace(77, 5, 1, [pack(0, 1)], 1) == (Status.OK, [])
    assert engine.table.entries[5] == pack(0, 1)


def test_fail_request_leaves_the_entry() -> None:
    engine = make()
    fault = the_fault(engine.submit(part(Operation.WRITE), 1))
    status, effects = engine.answer_fail_request(fault.fault_id, Status.NO_SPACE)
    assert (status, statuses(effects)) == (Status.OK, [Status.NO_SPACE])
    assert engine.table.entries[5] == 0
    assert engine.answer_fail_request(fault.fault_id, Status.NO_SPACE) == (Status.NOT_FOUND, [])


def test_fail_segment_becomes_error_also_from_invalid() -> None:
    engine = make()
    fault = the_fault(engine.submit(part(Operation.WRITE), 1))
    status, effects = engine.answer_fail_segment(fault.fault_id, 5, 2)
    assert (status, statuses(effects)) == (Status.OK, [Status.IO_ERROR])
    assert engine.table.entries[5] == MAPPED | ERROR
    engine.set_entries(6, 1, [pack(1, 44)], 2)
    engine.answer_fail_segment(0, 6, 2)
    assert engine.table.entries[6] == pack(1, 44, ERROR), "the location is kept for diagnosis"


def test_entries_of_containers_that_are_not_attached_are_refused() -> None:
    engine = make()
    assert engine.set_entries(5, 1, [pack(2, 1)], 0) == (Status.NO_CONTAINER, [])
    assert engine.set_entries(0, 64, [pack(0, 1)] * 63 + [pack(7, 1)], 0) == (Status.NO_CONTAINER, [])
    assert engine.set_entries(5, 1, [pack(2, 1, ERROR)], 0)[0] is Status.OK, "an ERROR entry's location is ignored"
    assert engine.table.entries[0] == 0


@pytest.mark.parametrize(("start", "count", "length"), [(64, 1, 1), (60, 5, 5), (0, 0, 0), (0, 3, 2), (-1, 1, 1)])
def test_ranges_outside_the_table_are_refused(start: int, count: int, length: int) -> None:
    assert make().set_entries(start, count, [0] * length, 0) == (Status.OUT_OF_RANGE, [])


@pytest.mark.claim(30)
def test_one_entry_fills_a_range() -> None:
    engine = make()
    assert engine.set_entries(8, 40, [pack(0, 3, NO_WRITE)], 0)[0] is Status.OK
    assert engine.table.counts()[State.NO_WRITE] == 40


def test_invalid_entries_are_stored_as_zero() -> None:
    engine = make()
    engine.set_entries(0, 10, [pack(0, 3) & ~1] * 10, 0)
    assert not any(engine.table.get(0, 10))


@pytest.mark.claim(27, 31, 35)
def test_state_commands() -> None:
    engine = make()
    engine.set_entries(0, 4, [pack(0, 1), pack(0, 2, NO_WRITE), ZERO_ENTRY, 0], 0)
    assert engine.set_state(0, 4, State.NO_WRITE, True, 1)[0] is Status.OK
    assert [state_of(entry) for entry in engine.table.get(0, 4)] == [
        State.NO_WRITE,
        State.NO_WRITE,
        State.ZERO,
        State.INVALID,
    ]
    assert engine.get_state(0, 4, State.NO_WRITE) == bytes([1, 1, 0, 0])
    assert engine.set_state(0, 4, State.ZERO, False, 1) == (Status.FORBIDDEN, [])
    assert engine.set_state(62, 4, State.ZERO, True, 1) == (Status.OUT_OF_RANGE, [])


def test_deactivating_no_write_releases_parked_writes() -> None:
    engine = make()
    engine.set_entries(5, 1, [pack(0, 1, NO_WRITE)], 0)
    write = part(Operation.WRITE)
    the_fault(engine.submit(write, 1))
    assert engine.set_state(5, 1, State.NO_WRITE, False, 2) == (Status.OK, [Forward(write)])


def test_whole_segment_unmap_asks_to_reclaim_and_zero_completes_it() -> None:
    engine = make()
    engine.set_entries(5, 1, [pack(0, 1)], 0)
    unmap = part(Operation.UNMAP, length=WHOLE)
    fault = the_fault(engine.submit(unmap, 1))
    assert fault.kind is FaultKind.RECLAIM
    _, effects = engine.answer_replace(fault.fault_id, 5, 1, [ZERO_ENTRY], 2)
    assert effects == [Complete(unmap, Status.OK)]


def test_read_only_refuses_writes_before_anything_else() -> None:
    engine = make(read_only=True)
    for operation in (Operation.WRITE, Operation.UNMAP, Operation.WRITE_ZEROES, Operation.COMPARE_AND_WRITE):
        assert statuses(engine.submit(part(operation), 1)) == [Status.WRITE_PROTECTED]
    the_fault(engine.submit(part(), 1))


def test_out_of_range() -> None:
    assert statuses(make().submit(part(segment=64), 1)) == [Status.OUT_OF_RANGE]


@pytest.mark.claim(28)
def test_deleted_table_faults_no_table() -> None:
    engine = make()
    engine.set_entries(5, 1, [pack(0, 1)], 0)
    engine.remove(0)
    fault = the_fault(engine.submit(part(), 1))
    assert fault.kind is FaultKind.NO_TABLE


class TestBarrier:
    def test_nothing_begun_is_reached_at_once(self) -> None:
        assert make().barrier("b", 0) == [BarrierReached("b", Status.OK)]

    def test_waits_for_what_began_before_and_not_for_what_came_after(self) -> None:
        engine = make()
        engine.set_entries(5, 1, [pack(0, 1)], 0)
        old, new = part(), part()
        engine.submit(old, 1)
        assert engine.barrier("b", 2) == []
        engine.submit(new, 3)
        assert engine.complete(new, Status.OK, 4) == [Complete(new, Status.OK)]
        assert engine.complete(old, Status.OK, 5) == [Complete(old, Status.OK), BarrierReached("b", Status.OK)]

    def test_does_not_count_parked_io(self) -> None:
        engine = make()
        the_fault(engine.submit(part(), 1))
        assert engine.barrier("b", 2) == [BarrierReached("b", Status.OK)]

    def test_all_channels_count(self) -> None:
        engine = make(channels=2)
        engine.set_entries(5, 1, [pack(0, 1)], 0)
        one, two = part(channel=0), part(channel=1)
        engine.submit(one, 1)
        engine.submit(two, 1)
        engine.barrier("b", 2)
        assert engine.complete(one, Status.OK, 3) == [Complete(one, Status.OK)]
        assert BarrierReached("b", Status.OK) in engine.complete(two, Status.OK, 3)

    def test_barriers_that_arrive_meanwhile_share_the_next_turn(self) -> None:
        engine = make()
        engine.set_entries(5, 1, [pack(0, 1)], 0)
        first, second = part(), part()
        engine.submit(first, 1)
        engine.barrier("a", 2)
        engine.submit(second, 3)
        assert engine.barrier("b", 4) == []
        assert engine.barrier("c", 4) == []
        assert engine.complete(first, Status.OK, 5)[1:] == [BarrierReached("a", Status.OK)]
        assert engine.complete(second, Status.OK, 6)[1:] == [
            BarrierReached("b", Status.OK),
            BarrierReached("c", Status.OK),
        ]

    def test_waits_for_what_its_container_may_still_carry_out(self) -> None:
        engine = make()
        engine.set_entries(5, 1, [pack(0, 1)], 0)
        write = part(Operation.WRITE)
        engine.submit(write, 1)
        engine.barrier("b", 2)
        assert engine.complete(write, Status.IO_ERROR, 3, settled=False) == [Complete(write, Status.IO_ERROR)]
        assert engine.generations.begun == 1
        assert engine.settle(write) == [BarrierReached("b", Status.OK)]
        assert engine.generations.begun == 0

    def test_an_unsettled_part_keeps_its_deadline(self) -> None:
        engine = make(limits=Limits(io_ns=100))
        engine.set_entries(5, 1, [pack(0, 1)], 0)
        write = part(Operation.WRITE)
        engine.submit(write, 0)
        engine.complete(write, Status.IO_ERROR, 1, settled=False)
        engine.barrier("b", 10)
        assert engine.tick(110) == [BarrierReached("b", Status.BARRIER_TIMEOUT)]
        assert engine.settle(write) == []

    def test_fails_at_the_io_deadline(self) -> None:
        engine = make(limits=Limits(io_ns=100))
        engine.set_entries(5, 1, [pack(0, 1)], 0)
        stuck = part()
        engine.submit(stuck, 0)
        engine.barrier("b", 10)
        assert engine.next_deadline() == 110
        assert engine.tick(109) == []
        assert engine.tick(110) == [BarrierReached("b", Status.BARRIER_TIMEOUT)]
        assert engine.complete(stuck, Status.OK, 111) == [Complete(stuck, Status.OK)]


class TestParking:
    def test_park_limit_drops(self) -> None:
        engine = make(limits=Limits(park_ns=100))
        the_fault(engine.submit(part(), 0))
        engine.submit(part(), 50)
        assert engine.next_deadline() == 100
        assert engine.tick(99) == []
        assert statuses(engine.tick(100)) == [Status.TIMEOUT]
        assert engine.next_deadline() == 150
        assert statuses(engine.tick(150)) == [Status.TIMEOUT]
        assert engine.outstanding_faults() == []
        assert engine.next_deadline() is None

    def test_too_many_are_refused(self) -> None:
        engine = make(limits=Limits(parked_max=2))
        engine.submit(part(), 0)
        engine.submit(part(segment=6), 0)
        assert statuses(engine.submit(part(segment=7), 0)) == [Status.BUSY]
        assert statuses(engine.submit(part(), 0)) == [Status.BUSY]

    def test_a_lost_host_connection_drops_its_own(self) -> None:
        engine = make()
        fault = the_fault(engine.submit(part(owner="lost"), 0))
        kept = part(owner="kept")
        engine.submit(kept, 0)
        assert statuses(engine.reset("lost")) == [Status.CANCELLED]
        _, effects = engine.answer_replace(fault.fault_id, 5, 1, [pack(0, 1)], 1)
        assert effects == [Forward(kept)]

    def test_a_dropped_write_never_executes(self) -> None:
        engine = make()
        fault = the_fault(engine.submit(part(Operation.WRITE, owner="lost"), 0))
        engine.reset("lost")
        assert engine.answer_replace(fault.fault_id, 5, 1, [pack(0, 1)], 1) == (Status.OK, [])

    def test_abort_drops_the_parts_of_one_io(self) -> None:
        engine = make()
        engine.submit(part(io="a"), 0)
        engine.submit(part(segment=6, io="a"), 0)
        engine.submit(part(io="b"), 0)
        assert statuses(engine.abort("a")) == [Status.CANCELLED] * 2
        assert engine.parked_count == 1

    def test_suspend_parks_without_faults_and_resume_keeps_the_order(self) -> None:
        engine = make()
        engine.set_entries(5, 1, [pack(0, 1)], 0)
        engine.suspend()
        first, second = part(Operation.WRITE), part()
        assert engine.submit(first, 1) == engine.submit(second, 1) == []
        assert engine.resume(2) == [Forward(first), Forward(second)]
        assert engine.parked_count == 0


class TestLease:
    def test_nothing_begins_without_one(self) -> None:
        engine = make()
        engine.set_entries(5, 1, [pack(0, 1)], 0)
        assert engine.submit(part(), 10 * SECOND) == [], "it waits, and asks nobody"
        assert engine.parked_count == 1
        assert engine.outstanding_faults() == []

    def test_answers_that_come_without_one_cause_no_new_faults(self) -> None:
        engine = make()
        old = the_fault(engine.submit(part(), 1))
        now = 10 * SECOND
        assert engine.answer_replace(old.fault_id, 5, 1, [pack(0, 1)], now) == (Status.OK, [])
        assert engine.parked_count == 1

    def test_expiry_wipes_and_parked_io_faults_anew(self) -> None:
        engine = make()
        engine.set_entries(6, 1, [pack(0, 1)], 0)
        engine.sequence = 9
        old = the_fault(engine.submit(part(Operation.WRITE), 1))
        assert expire(engine, 2) == []
        fault = the_fault(regrant(engine, 3))
        assert fault.fault_id > old.fault_id
        assert engine.table.counts()[State.INVALID] == 64
        assert engine.sequence == 0

    def test_a_write_that_outlives_it_never_succeeds(self) -> None:
        engine = make()
        engine.set_entries(5, 1, [pack(0, 1)], 0)
        write = part(Operation.WRITE)
        engine.submit(write, 1)
        expire(engine, 2)
        regrant(engine, 3)
        assert engine.complete(write, Status.OK, 4) == [Complete(write, Status.LEASE_EXPIRED)]

    def test_even_if_the_expiry_has_not_been_noticed_yet(self) -> None:
        engine = make()
        engine.set_entries(5, 1, [pack(0, 1)], 0)
        write = part(Operation.WRITE)
        engine.submit(write, 1)
        assert engine.complete(write, Status.OK, 10 * SECOND) == [Complete(write, Status.LEASE_EXPIRED)]

    def test_a_read_that_outlives_it_is_tried_afresh(self) -> None:
        engine = make()
        engine.set_entries(5, 1, [pack(0, 1)], 0)
        read = part()
        engine.submit(read, 1)
        expire(engine, 2)
        assert engine.complete(read, Status.OK, 3) == []
        fault = the_fault(regrant(engine, 4))
        assert engine.answer_replace(fault.fault_id, 5, 1, [pack(0, 1)], 5)[1] == [Forward(read)]

    def test_flush_waits_for_it(self) -> None:
        engine = make()
        expire(engine, 1)
        flush = Part(Operation.FLUSH, -1, 0, 0)
        assert engine.submit(flush, 2) == []
        assert regrant(engine, 3) == [Forward(flush)]
        assert engine.complete(flush, Status.OK, 4) == [Complete(flush, Status.OK)]

    def test_io_that_only_its_absence_stopped_goes_on_with_it(self) -> None:
        engine = make()
        expire(engine, 1)
        read = part()
        assert engine.submit(read, 2) == []
        assert engine.set_entries(5, 1, [pack(0, 1)], 3)[0] is Status.OK
        assert regrant(engine, 4) == [Forward(read)]

    def test_a_barrier_still_waits_for_what_began_under_the_old_one(self) -> None:
        engine = make()
        engine.set_entries(5, 1, [pack(0, 1)], 0)
        write = part(Operation.WRITE)
        engine.submit(write, 1)
        expire(engine, 2)
        assert engine.barrier("b", 3) == []
        assert engine.complete(write, Status.OK, 4)[-1] == BarrierReached("b", Status.OK)


def test_resize_fails_parked_io_beyond_the_end() -> None:
    engine = make()
    the_fault(engine.submit(part(segment=63), 0))
    the_fault(engine.submit(part(segment=3), 0))
    assert statuses(engine.resize(32, 1)) == [Status.OUT_OF_RANGE]
    assert engine.parked_count == 1


@pytest.mark.parametrize("fields", [{"block_size": 1024}, {"segment_size": 1000}, {"segment_size": 1 << 31}])
def test_geometry_is_checked(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="size"):
        Geometry(10, **fields)  # type: ignore[arg-type]
