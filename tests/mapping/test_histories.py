"""Long random histories of the engine, held against the invariants of its docstring.

Everything a data plane can be asked to do happens in any order: I/O on several channels, commands, answers, barriers,
aborts, expiries. After each step every part is in exactly one place, and each ends exactly once.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from mapping.effects import BarrierReached, Complete, Effect, EpochBegan, Forward, Part, ReturnZeroes, SendFault
from mapping.engine import READ_MASK, WRITE_MASK, Geometry, Limits
from mapping.entry import ERROR, NO_WRITE, ZERO_ENTRY, State, has_location, pack, slot_of, state_of
from mapping.plane import FAIL_REQUEST, FAIL_SEGMENT, REPLACE, Answer, Plane, Stamp
from mapping.rules import Action, Operation, StateForbidden, decide, is_write, with_state
from mapping.status import Status

SEGMENTS = 6
BLOCKS = 2048
LEASE = 1000
TABLE = 7
ENTRIES = st.sampled_from([0, ZERO_ENTRY, pack(0, 1), pack(1, 2), pack(0, 3, NO_WRITE), pack(1, 4, ERROR), pack(9, 1)])
RANGES = st.integers(0, SEGMENTS - 1).flatmap(lambda start: st.tuples(st.just(start), st.integers(1, SEGMENTS - start)))


class Histories(RuleBasedStateMachine):
    forwarded: Bundle[Part] = Bundle("forwarded")
    unsettled: Bundle[Part] = Bundle("unsettled")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1
        self.plane = Plane(b"i" * 16, channels=2)
        self.plane.admit(1, 1, b"c" * 16, Limits(park_ns=3000, io_ns=2000), LEASE, self.now)
        self.plane.bind_slot(0, b"k" * 16)
        self.plane.bind_slot(1, b"l" * 16)
        self.plane.create_table(TABLE, Geometry(SEGMENTS), [0, 1])
        self.engine = self.plane.tables[TABLE]
        self.model = [0] * SEGMENTS
        self.begun: dict[int, tuple[Part, int]] = {}
        self.waiting: dict[int, Part] = {}
        self.ended: set[int] = set()
        self.alive: list[Part] = []
        self.barriers: dict[int, set[int]] = {}
        self.tokens = 0
        self.sent: dict[int, Any] = {}

    # --- what the effects mean ---

    def apply(self, effects: list[Effect]) -> list[Part]:
        began = []
        for effect in effects:
            if isinstance(effect, Forward):
                self.check_forward(effect.part)
                began.append(effect.part)
            elif isinstance(effect, Complete | ReturnZeroes):
                self.end(effect.part)
                if isinstance(effect, ReturnZeroes):
                    assert self.model[effect.part.segment] & 13 == ZERO_ENTRY
            elif isinstance(effect, BarrierReached):
                waited = self.barriers.pop(effect.token)
                assert effect.status is Status.BARRIER_TIMEOUT or not waited & self.begun.keys()
            elif isinstance(effect, EpochBegan):
                self.model = [0] * SEGMENTS
            elif isinstance(effect, SendFault):
                assert effect.fault.fault_id not in self.sent, "fault ids are never used twice"
                self.sent[effect.fault.fault_id] = effect.fault
        return began

    def check_forward(self, part: Part) -> None:
        assert self.plane.lease.covers(self.now), "nothing begins without a lease"
        assert not self.engine.suspended
        assert id(part) not in self.begun
        del self.waiting[id(part)]
        self.begun[id(part)] = (part, self.plane.epoch)
        if part.operation is not Operation.FLUSH:
            assert part.entry == self.model[part.segment], "it goes where the table says"
            assert has_location(part.entry)
            assert not (is_write(part.operation) and part.entry & NO_WRITE)
            assert slot_of(part.entry) in self.engine.slots

    def end(self, part: Part) -> None:
        assert id(part) not in self.ended, "a part ends once"
        self.waiting.pop(id(part), None)
        self.begun.pop(id(part), None)
        self.ended.add(id(part))

    def stamp(self, sequence: int = 0) -> Stamp:
        return Stamp(1, 1, self.plane.epoch, sequence)

    def next_stamp(self) -> Stamp:
        return self.stamp(self.engine.sequence + 1)

    def token(self, blocking: bool) -> int | None:
        if not blocking:
            return None
        self.tokens += 1
        self.barriers[self.tokens] = set(self.begun)
        return self.tokens

    # --- what can happen ---

    @rule(
        target=forwarded,
        operation=st.sampled_from(list(Operation)),
        segment=st.integers(0, SEGMENTS - 1),
        whole=st.booleans(),
        channel=st.integers(0, 1),
        owner=st.sampled_from(["a", "b"]),
    )
    def submit(self, operation: Operation, segment: int, whole: bool, channel: int, owner: str) -> Any:
        segment = -1 if operation is Operation.FLUSH else segment
        part = Part(operation, segment, 0, BLOCKS if whole else 8, io=object(), owner=owner, channel=channel)
        self.alive.append(part)
        self.waiting[id(part)] = part
        return multiple(*self.apply(self.engine.submit(part, self.now)))

    @rule(target=forwarded, part=consumes(forwarded), status=st.sampled_from([Status.OK, Status.IO_ERROR]))
    def complete(self, part: Part, status: Status) -> Any:
        _, epoch = self.begun.pop(id(part))
        self.waiting[id(part)] = part
        effects = self.engine.complete(part, status, self.now)
        for effect in effects:
            if isinstance(effect, Complete) and effect.part is part:
                stale = epoch != self.plane.epoch or not self.plane.lease.covers(self.now)
                if stale and part.operation is Operation.READ:
                    assert state_of(self.model[part.segment]) is State.ERROR, "tried afresh, it met an error"
                else:
                    assert effect.status is (Status.LEASE_EXPIRED if stale else status)
        return multiple(*self.apply(effects))

    @rule(target=unsettled, part=consumes(forwarded))
    def lose_connection(self, part: Part) -> Part:
        _, epoch = self.begun[id(part)]
        effects = self.engine.complete(part, Status.IO_ERROR, self.now, settled=False)
        assert self.apply(effects) == []
        assert id(part) in self.ended
        self.begun[id(part)] = (part, epoch)
        return part

    @rule(part=consumes(unsettled))
    def settle(self, part: Part) -> None:
        del self.begun[id(part)]
        assert self.apply(self.engine.settle(part)) == []

    @rule(target=forwarded, where=RANGES, entry=ENTRIES, fill=st.booleans(), blocking=st.booleans())
    def set_entries(self, where: tuple[int, int], entry: int, fill: bool, blocking: bool) -> Any:
        start, count = where
        token = self.token(blocking)
        entries = [entry] if fill else [entry] * count
        status, effects = self.plane.set_entries(
            self.next_stamp(), TABLE, start, count, entries, self.now, barrier=token
        )
        return self.changed(status, effects, token, dict.fromkeys(range(start, start + count), entry))

    @rule(
        target=forwarded, where=RANGES, state=st.sampled_from(list(State)), active=st.booleans(), blocking=st.booleans()
    )
    def set_state(self, where: tuple[int, int], state: State, active: bool, blocking: bool) -> Any:
        start, count = where
        token = self.token(blocking)
        try:
            entries = {
                segment: with_state(self.model[segment], state, active) for segment in range(start, start + count)
            }
        except StateForbidden:
            entries = {}
        status, effects = self.plane.set_state(
            self.next_stamp(), TABLE, start, count, state, active, self.now, barrier=token
        )
        assert (status is Status.OK) == bool(entries)
        return self.changed(status, effects, token, entries)

    def changed(self, status: Status, effects: list[Effect], token: int | None, entries: dict[int, int]) -> Any:
        if status is Status.OK:
            for segment, entry in entries.items():
                self.model[segment] = entry if entry & 1 else 0
        elif token is not None:
            del self.barriers[token]
        return multiple(*self.apply(effects))

    @rule(
        target=forwarded,
        action=st.sampled_from([REPLACE, FAIL_REQUEST, FAIL_SEGMENT]),
        entry=ENTRIES,
        pick=st.integers(0, 50),
    )
    @precondition(lambda self: self.sent)
    def answer(self, action: int, entry: int, pick: int) -> Any:
        fault = list(self.sent.values())[pick % len(self.sent)]
        answer = Answer(fault.fault_id, action, Status.NO_SPACE, fault.segment, 1, [entry])
        status, effects = self.plane.answer_faults(self.next_stamp(), TABLE, [answer], self.now)
        entries = {}
        if action == REPLACE:
            entries = {fault.segment: entry}
        elif action == FAIL_SEGMENT:
            old = self.model[fault.segment]
            entries = {fault.segment: old | 9}
        return self.changed(status, effects, None, entries)

    @rule(sequence=st.integers(-3, 3).filter(lambda offset: offset != 1))
    def replay(self, sequence: int) -> None:
        stamp = self.stamp(max(0, self.engine.sequence + sequence))
        status, effects = self.plane.set_entries(stamp, TABLE, 0, SEGMENTS, [pack(0, 1)], self.now)
        assert status in (Status.SEQUENCE_OLD, Status.SEQUENCE_GAP)
        assert all(isinstance(effect, Complete) and effect.status is Status.TIMEOUT for effect in effects)
        self.apply(effects)

    @rule(target=forwarded, step=st.sampled_from([1, 50, 400, 1500]))
    def wait(self, step: int) -> Any:
        self.now += step
        return multiple(*self.apply(self.plane.tick(self.now)))

    @rule(target=forwarded)
    def renew(self) -> Any:
        status, effects = self.plane.grant_lease(self.stamp(), self.now, LEASE, self.now)
        assert status is Status.OK
        return multiple(*self.apply(effects))

    @rule(target=forwarded)
    def expire_and_renew(self) -> Any:
        self.now += LEASE
        began = self.apply(self.plane.tick(self.now))
        status, effects = self.plane.grant_lease(self.stamp(), self.now, LEASE, self.now)
        assert status is Status.OK
        return multiple(*began, *self.apply(effects))

    @rule(owner=st.sampled_from(["a", "b"]))
    def lose_host(self, owner: str) -> None:
        self.apply(self.engine.reset(owner))
        assert all(part.owner != owner for part in self.engine.parked())

    @rule(target=forwarded, suspend=st.booleans())
    def suspend_or_resume(self, suspend: bool) -> Any:
        command = self.plane.suspend if suspend else self.plane.resume
        status, effects = command(self.stamp(), TABLE, self.now)
        assert status is Status.OK
        return multiple(*self.apply(effects))

    # --- what always holds ---

    @invariant()
    def the_table_is_the_model(self) -> None:
        assert list(self.engine.table.get(0, SEGMENTS)) == self.model

    @invariant()
    def every_part_is_in_one_place(self) -> None:
        parked = [id(part) for part in self.engine.parked()]
        assert len(parked) == len(set(parked)) == self.engine.parked_count
        assert set(parked) == set(self.waiting)
        assert self.engine.generations.begun == len(self.begun)

    @invariant()
    def one_fault_a_segment_and_kind(self) -> None:
        faults = self.engine.outstanding_faults()
        assert len({(fault.segment, fault.kind) for fault in faults}) == len(faults)
        assert all(fault.parts for fault in faults)

    @invariant()
    def nobody_waits_for_an_entry_that_lets_him_pass(self) -> None:
        for fault in self.engine.outstanding_faults() if self.plane.lease.covers(self.now) else []:
            whole = fault.length_blocks == BLOCKS
            action = decide(self.model[fault.segment], fault.operation, whole, reclaim=True)
            assert action == (Action.FAULT, fault.kind)

    @invariant()
    def the_fast_path_agrees(self) -> None:
        for segment, entry in enumerate(self.model):
            is_open = self.plane.lease.covers(self.now) and not self.engine.suspended
            for mask in (READ_MASK, WRITE_MASK):
                expected = entry if is_open and entry & mask == 1 else -1
                assert self.engine.translate(segment, mask, self.now) == expected


Histories.TestCase.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestHistories = Histories.TestCase
