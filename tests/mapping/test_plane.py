"""The data plane's core: admission, stamps, sequences, leases, slots and jobs."""

from __future__ import annotations

import pytest

from mapping.effects import BarrierReached, Complete, EpochBegan, Forward, Part, SendFault
from mapping.engine import Geometry, Limits
from mapping.entry import ZERO_ENTRY, State, pack
from mapping.plane import FAIL_REQUEST, FAIL_SEGMENT, REPLACE, SESSIONS_MAX, Answer, Plane, Stamp, numbered
from mapping.rules import Operation
from mapping.status import Status

SECOND = 1_000_000_000
LEASE = 10 * SECOND
CLUSTER = b"c" * 16


def admitted(term: int = 5, incarnation: int = 3) -> Plane:
    plane = Plane(b"i" * 16)
    assert plane.admit(term, incarnation, CLUSTER, Limits(), LEASE, 0) == (Status.OK, [])
    plane.bind_slot(0, b"k" * 16)
    assert plane.create_table(7, Geometry(64), [0]) is Status.OK
    assert plane.grant_lease(Stamp(term, incarnation, 1), 0, LEASE, 0)[0] is Status.OK
    return plane


def stamp(sequence: int = 0, term: int = 5, incarnation: int = 3, epoch: int = 1) -> Stamp:
    return Stamp(term, incarnation, epoch, sequence)


class TestAdmission:
    def test_terms_only_rise(self) -> None:
        plane = admitted()
        assert plane.admit(4, 3, CLUSTER, Limits(), LEASE, 1)[0] is Status.STALE_TERM
        assert plane.admit(6, 3, CLUSTER, Limits(), LEASE, 1)[0] is Status.OK
        assert plane.set_entries(stamp(1, term=5), 7, 0, 1, [0], 2)[0] is Status.STALE_TERM

    def test_an_incarnation_is_for_life(self) -> None:
        plane = admitted()
        for other in (2, 4, 0):
            assert plane.admit(5, other, CLUSTER, Limits(), LEASE, 1)[0] is Status.STALE_INCARNATION

    def test_another_cluster_is_refused(self) -> None:
        assert admitted().admit(5, 3, b"d" * 16, Limits(), LEASE, 1)[0] is Status.BAD_MESSAGE

    def test_before_it_nothing_is_accepted(self) -> None:
        plane = Plane(b"i" * 16)
        assert plane.grant_lease(Stamp(0, 0, 1), 0, LEASE, 0)[0] is Status.NOT_ADMITTED


class TestSessions:
    """What was sent in an earlier session of the same term, incarnation and epoch is refused, though in sequence."""

    def begun(self) -> Plane:
        plane = admitted()
        for session in (1, 2):
            assert plane.begin_session() is Status.OK and plane.session == session
            assert plane.admit(5, 3, CLUSTER, Limits(), LEASE, 1, session)[0] is Status.OK
        return plane

    @pytest.mark.parametrize("session", [0, 1, 3])
    def test_the_stamps_of_another_one_are_refused(self, session: int) -> None:
        plane, of = self.begun(), numbered(1, session)
        answer = Answer(1, REPLACE, 0, 0, 1, [pack(0, 1)])
        assert plane.set_entries(stamp(1, epoch=of), 7, 0, 1, [pack(0, 1)], 2)[0] is Status.STALE_EPOCH
        assert plane.set_state(stamp(1, epoch=of), 7, 0, 1, State.ZERO, True, 2)[0] is Status.STALE_EPOCH
        assert plane.answer_faults(stamp(1, epoch=of), 7, [answer], 2)[0] is Status.STALE_EPOCH
        assert plane.grant_lease(stamp(epoch=of), 1, LEASE, 2)[0] is Status.STALE_EPOCH
        assert plane.table_slots(stamp(epoch=of), 7, [0], 2)[0] is Status.STALE_EPOCH
        assert plane.suspend(stamp(epoch=of), 7, 2)[0] is Status.STALE_EPOCH
        assert plane.resume(stamp(epoch=of), 7, 2)[0] is Status.STALE_EPOCH
        assert plane.begin_job(stamp(epoch=of), "zeroing", [pack(0, 1)], 2)[0] is Status.STALE_EPOCH
        assert plane.tables[7].table.entries[0] == 0 and plane.tables[7].sequence == 0
        assert plane.set_entries(stamp(1, epoch=numbered(1, 2)), 7, 0, 1, [pack(0, 1)], 2)[0] is Status.OK

    def test_from_its_beginning_on_before_anybody_is_admitted(self) -> None:
        """HELLO names the sequences as they are then: nothing may move them before the controller does."""
        plane = self.begun()
        assert plane.begin_session() is Status.OK
        for session in (0, 1, 2):
            late = plane.set_entries(stamp(1, epoch=numbered(1, session)), 7, 0, 1, [pack(0, 1)], 2)
            assert late[0] is Status.STALE_EPOCH

    def test_only_the_last_one_is_admitted_or_one_without_a_number(self) -> None:
        plane = self.begun()
        for session in (1, 3):
            assert plane.admit(6, 3, CLUSTER, Limits(), LEASE, 1, session)[0] is Status.STALE_EPOCH
        assert (plane.term, plane.session) == (5, 2)
        assert plane.admit(5, 3, CLUSTER, Limits(), LEASE, 1)[0] is Status.OK
        assert plane.set_entries(stamp(1), 7, 0, 1, [pack(0, 1)], 2)[0] is Status.OK

    def test_neither_the_lease_nor_what_has_begun_notices(self) -> None:
        plane = admitted()
        plane.begin_job(stamp(), "copy", [pack(0, 1)], 1)
        plane.set_entries(stamp(1), 7, 0, 1, [pack(0, 1)], 1)
        part = Part(Operation.READ, 0, 0, 8)
        assert plane.tables[7].submit(part, 1) == [Forward(part)]
        plane.begin_session()
        assert plane.lease.covers(2) and plane.may_continue("copy", 2)
        assert plane.tables[7].complete(part, Status.OK, 2) == [Complete(part, Status.OK)]

    def test_numbers_are_never_used_again(self) -> None:
        plane = admitted()
        plane._sessions = SESSIONS_MAX - 1
        assert plane.begin_session() is Status.OK
        assert plane.begin_session() is Status.LIMIT
        assert plane.session == SESSIONS_MAX


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (stamp(1, term=4), Status.STALE_TERM),
        (stamp(1, term=6), Status.NOT_ADMITTED),
        (stamp(1, incarnation=2), Status.STALE_INCARNATION),
        (stamp(1, incarnation=4), Status.STALE_INCARNATION),
        (stamp(1, epoch=2), Status.STALE_EPOCH),
        (stamp(1, epoch=0), Status.STALE_EPOCH),
        (stamp(0), Status.SEQUENCE_OLD),
        (stamp(2), Status.SEQUENCE_GAP),
    ],
)
def test_a_wrong_stamp_changes_nothing(bad: Stamp, status: Status) -> None:
    plane = admitted()
    answer = Answer(1, REPLACE, 0, 0, 1, [ZERO_ENTRY])
    assert plane.set_entries(bad, 7, 0, 1, [ZERO_ENTRY], 1)[0] is status
    assert plane.set_state(bad, 7, 0, 1, State.ZERO, True, 1)[0] is status
    assert plane.answer_faults(bad, 7, [answer], 1)[0] is status
    assert plane.tables[7].table.entries[0] == 0
    assert plane.tables[7].sequence == 0


def test_a_sequence_is_consumed_even_if_the_content_is_refused() -> None:
    plane = admitted()
    assert plane.set_entries(stamp(1), 7, 0, 1, [pack(9, 1)], 1)[0] is Status.NO_CONTAINER
    assert plane.set_entries(stamp(1), 7, 0, 1, [ZERO_ENTRY], 1)[0] is Status.SEQUENCE_OLD
    assert plane.set_entries(stamp(2), 7, 0, 1, [ZERO_ENTRY], 1)[0] is Status.OK


def test_unknown_and_deleted_tables() -> None:
    plane = admitted()
    assert plane.set_entries(stamp(1), 8, 0, 1, [0], 1)[0] is Status.NO_TABLE
    assert plane.remove_table(7, 1) == (Status.OK, [])
    assert plane.set_entries(stamp(1), 7, 0, 1, [0], 1)[0] is Status.NO_TABLE
    assert plane.remove_table(8, 1)[0] is Status.NO_TABLE


class TestLease:
    def test_counts_from_the_sending_of_the_renewal(self) -> None:
        plane = admitted()
        plane.grant_lease(stamp(), 2 * SECOND, LEASE, 9 * SECOND)
        assert plane.lease.deadline_ns == 12 * SECOND
        assert plane.next_deadline() == 12 * SECOND

    def test_a_grant_never_shortens(self) -> None:
        plane = admitted()
        assert plane.grant_lease(stamp(), SECOND, SECOND, SECOND)[0] is Status.OK
        assert plane.lease.deadline_ns == LEASE

    @pytest.mark.parametrize(
        ("sent", "duration", "status"),
        [
            (-20 * SECOND, LEASE, Status.LEASE_EXPIRED),
            (2 * SECOND, LEASE, Status.BAD_MESSAGE),
            (SECOND, LEASE + 1, Status.BAD_MESSAGE),
            (SECOND, 0, Status.BAD_MESSAGE),
        ],
    )
    def test_late_future_and_oversized_grants_are_refused(self, sent: int, duration: int, status: Status) -> None:
        plane = admitted()
        assert plane.grant_lease(stamp(), sent, duration, SECOND)[0] is status
        assert plane.lease.deadline_ns == LEASE

    def test_expiry_is_sticky(self) -> None:
        plane = admitted()
        plane.set_entries(stamp(1), 7, 3, 1, [pack(0, 1)], 1)
        effects = plane.tick(LEASE)
        assert effects == [EpochBegan(2)]
        assert plane.tables[7].table.entries[3] == 0
        assert plane.grant_lease(stamp(), 9 * SECOND, LEASE, LEASE)[0] is Status.STALE_EPOCH
        assert plane.set_entries(stamp(2), 7, 3, 1, [pack(0, 1)], LEASE)[0] is Status.STALE_EPOCH
        assert plane.grant_lease(stamp(epoch=2), LEASE, LEASE, LEASE)[0] is Status.OK
        assert plane.set_entries(stamp(1, epoch=2), 7, 3, 1, [pack(0, 1)], LEASE)[0] is Status.OK

    def test_a_late_grant_finds_the_expiry_itself(self) -> None:
        plane = admitted()
        status, effects = plane.grant_lease(stamp(), 9 * SECOND, LEASE, LEASE + 1)
        assert status is Status.STALE_EPOCH
        assert effects == [EpochBegan(2)]

    def test_a_stopped_daemon_cannot_replay(self) -> None:
        plane = admitted()
        plane.tick(LEASE)
        plane.grant_lease(stamp(epoch=2), LEASE, LEASE, LEASE)
        answer = Answer(1, REPLACE, 0, 3, 1, [pack(0, 1)])
        assert plane.answer_faults(stamp(1), 7, [answer], LEASE)[0] is Status.STALE_EPOCH
        assert plane.tables[7].table.entries[3] == 0


def test_answers_in_one_message() -> None:
    plane = admitted()
    engine = plane.tables[7]
    parts = [Part(Operation.WRITE, segment, 0, 8) for segment in (1, 2, 3)]
    faults = [engine.submit(part, 1)[0] for part in parts]
    ids = [effect.fault.fault_id for effect in faults if isinstance(effect, SendFault)]
    answers = [
        Answer(ids[0], REPLACE, 0, 1, 1, [pack(0, 11)]),
        Answer(ids[1], FAIL_REQUEST, Status.NO_SPACE, 2, 0, []),
        Answer(ids[2], FAIL_SEGMENT, 0, 3, 0, []),
        Answer(999, FAIL_REQUEST, Status.NO_SPACE, 2, 0, []),
    ]
    status, effects = plane.answer_faults(stamp(1), 7, answers, 2)
    assert status is Status.OK
    assert effects == [
        Forward(parts[0]),
        Complete(parts[1], Status.NO_SPACE),
        Complete(parts[2], Status.IO_ERROR),
    ]


@pytest.mark.parametrize("bad", [(3, 0), (FAIL_REQUEST, 0), (FAIL_REQUEST, 200)])
def test_nonsense_answers_are_refused(bad: tuple[int, int]) -> None:
    plane = admitted()
    assert plane.answer_faults(stamp(1), 7, [Answer(1, *bad, 0, 0, [])], 1)[0] is Status.BAD_MESSAGE


def test_outstanding_faults_are_kept_for_the_next_session() -> None:
    plane = admitted()
    for segment in (4, 2, 9):
        plane.tables[7].submit(Part(Operation.READ, segment, 0, 8), 1)
    assert [fault.segment for fault in plane.outstanding_faults()] == [4, 2, 9]


@pytest.mark.claim(32, 31, 35)
def test_a_blocking_command_answers_after_older_io() -> None:
    plane = admitted()
    plane.set_entries(stamp(1), 7, 3, 1, [pack(0, 1)], 1)
    engine = plane.tables[7]
    old = Part(Operation.WRITE, 3, 0, 8)
    engine.submit(old, 2)
    status, effects = plane.set_entries(stamp(2), 7, 3, 1, [0], 3, barrier="token")
    assert (status, effects) == (Status.OK, [])
    assert engine.table.entries[3] == 0, "the table changes at once"
    assert engine.complete(old, Status.OK, 4)[-1] == BarrierReached("token", Status.OK)


def test_a_refused_blocking_command_has_no_barrier() -> None:
    assert admitted().set_entries(stamp(1), 7, 99, 1, [0], 3, barrier="token") == (Status.OUT_OF_RANGE, [])


def test_suspend_and_resume() -> None:
    plane = admitted()
    assert plane.suspend(stamp(), 7, 1, barrier="b") == (Status.OK, [BarrierReached("b", Status.OK)])
    assert plane.tables[7].submit(Part(Operation.READ, 3, 0, 8), 2) == []
    status, effects = plane.resume(stamp(), 7, 3)
    assert status is Status.OK
    assert isinstance(effects[0], SendFault)


class TestSlots:
    def test_a_table_lists_only_attached_containers(self) -> None:
        plane = admitted()
        assert plane.create_table(8, Geometry(4), [0, 1]) is Status.NO_CONTAINER
        assert plane.table_slots(stamp(), 7, [0, 1], 1)[0] is Status.NO_CONTAINER
        plane.bind_slot(1, b"l" * 16)
        assert plane.table_slots(stamp(), 7, [0, 1], 1)[0] is Status.OK

    def test_a_container_in_use_stays(self) -> None:
        plane = admitted()
        plane.set_entries(stamp(1), 7, 3, 1, [pack(0, 1)], 1)
        assert plane.table_slots(stamp(), 7, [], 1)[0] is Status.BUSY
        assert plane.unbind_slot(0) is Status.BUSY
        plane.set_entries(stamp(2), 7, 3, 1, [0], 1)
        assert plane.table_slots(stamp(), 7, [], 1)[0] is Status.OK
        assert plane.unbind_slot(0) is Status.OK
        assert plane.unbind_slot(0) is Status.NO_CONTAINER

    def test_a_flush_fails_while_a_container_with_data_is_absent(self) -> None:
        plane = admitted()
        engine = plane.tables[7]
        assert plane.table_slots(stamp(), 7, [0], 1, absent=[1]) == (Status.OK, [])
        flush = Part(Operation.FLUSH, -1, 0, 0)
        assert engine.submit(flush, 2) == [Complete(flush, Status.NO_CONTAINER)]
        assert plane.set_entries(stamp(1), 7, 3, 1, [pack(1, 1)], 2)[0] is Status.NO_CONTAINER
        assert plane.bind_slot(1, b"l" * 16) is Status.OK
        assert engine.submit(flush, 3) == [Complete(flush, Status.NO_CONTAINER)], "it is not listed yet"
        assert plane.table_slots(stamp(), 7, [0, 2], 3)[0] is Status.NO_CONTAINER
        assert engine.absent == {1}, "a refused list changes nothing"
        assert plane.table_slots(stamp(), 7, [0, 1], 3)[0] is Status.OK
        assert engine.submit(flush, 4) == [Forward(flush)]

    def test_a_flush_that_waits_for_a_lease_is_judged_when_it_begins(self) -> None:
        plane = admitted()
        engine = plane.tables[7]
        flush = Part(Operation.FLUSH, -1, 0, 0)
        engine.suspend()
        assert engine.submit(flush, 1) == []
        plane.table_slots(stamp(), 7, [0], 1, absent=[1])
        assert plane.resume(stamp(), 7, 2)[1] == [Complete(flush, Status.NO_CONTAINER)]

    def test_a_slot_is_one_container(self) -> None:
        plane = admitted()
        assert plane.bind_slot(0, b"k" * 16) is Status.OK
        assert plane.bind_slot(0, b"m" * 16) is Status.EXISTS


class TestJobs:
    def test_are_leased(self) -> None:
        plane = admitted()
        assert plane.begin_job(stamp(), "j", [pack(0, 1)], 1) == (Status.OK, [])
        assert plane.may_continue("j", LEASE - 1)
        assert plane.end_job("j", Status.OK, LEASE - 1) is Status.OK
        plane.begin_job(stamp(), "k", [pack(0, 1)], 1)
        assert not plane.may_continue("k", LEASE)
        plane.tick(LEASE)
        plane.grant_lease(stamp(epoch=2), LEASE, LEASE, LEASE)
        assert plane.end_job("k", Status.OK, LEASE + 1) is Status.LEASE_EXPIRED

    def test_a_failure_is_told_even_after_the_lease(self) -> None:
        plane = admitted()
        plane.begin_job(stamp(), "j", [pack(0, 1)], 1)
        plane.tick(LEASE)
        assert plane.end_job("j", Status.IO_ERROR, LEASE + 1) is Status.IO_ERROR

    def test_keep_their_container(self) -> None:
        plane = admitted()
        plane.table_slots(stamp(), 7, [], 1)
        plane.begin_job(stamp(), "j", [pack(0, 1)], 1)
        assert plane.unbind_slot(0) is Status.BUSY
        plane.end_job("j", Status.OK, 1)
        assert plane.unbind_slot(0) is Status.OK

    def test_need_the_container_and_a_lease(self) -> None:
        plane = admitted()
        assert plane.begin_job(stamp(), "j", [pack(4, 1)], 1)[0] is Status.NO_CONTAINER
        plane.tick(LEASE)
        assert plane.begin_job(stamp(epoch=2), "j", [pack(0, 1)], LEASE)[0] is Status.LEASE_EXPIRED


def test_dropping_a_table_ends_its_parked_io() -> None:
    plane = admitted()
    part = Part(Operation.READ, 3, 0, 8)
    plane.tables[7].submit(part, 1)
    assert plane.drop_table(7) == [Complete(part, Status.CANCELLED)]
    assert plane.create_table(7, Geometry(64), [0]) is Status.OK
    assert plane.create_table(7, Geometry(64), [0]) is Status.EXISTS
