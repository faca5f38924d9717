"""Runs the same commands on the C core and on the reference engine, and says what each did in the same words.

A command is a list of words (u64) for tests/native/rig.c; `Pair` gives it to both and compares the logs, record by
record. Every command is kept, so that the history can be replayed elsewhere.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from mapping.effects import BarrierReached, Complete, Effect, EpochBegan, Forward, Part, ReturnZeroes, SendFault
from mapping.engine import Engine, Geometry, Limits
from mapping.entry import State, slot_of
from mapping.plane import Answer, Plane, Stamp
from mapping.rules import Operation
from mapping.status import Status

CDEF = """
struct rig;
struct rig *rig_open(uint64_t parked_max);
void rig_close(struct rig *rig);
void rig_run(struct rig *rig, const uint64_t *words);
const uint64_t *rig_log(struct rig *rig, uint64_t *length);
"""
CHANNELS = 2
NEVER = (1 << 64) - 1
Record = tuple[int, ...]


class Command(IntEnum):
    """The numbers of the commands in rig.c."""

    SUBMIT = 0
    COMPLETE = 1
    WITHDRAW = 2
    SET_ENTRIES = 3
    SET_STATE = 4
    ANSWER = 5
    SUSPEND = 6
    RESUME = 7
    GRANT = 8
    TICK = 9
    RESET = 10
    ABORT = 11
    ADMIT = 12
    BIND = 13
    UNBIND = 14
    CREATE = 15
    REMOVE = 16
    DROP = 17
    TABLE_SLOTS = 18
    RESIZE = 19
    BEGIN_JOB = 20
    MAY_CONTINUE = 21
    END_JOB = 22
    LOOK = 23
    LOOK_AT_PLANE = 24
    DECIDE = 25
    WITH_STATE = 26
    SETTLE = 27
    BEGIN_SESSION = 28


class Kind(IntEnum):
    """What a record of the log is."""

    FORWARD = 1
    ZEROES = 2
    COMPLETE = 3
    SEND_FAULT = 4
    BARRIER = 5
    EPOCH = 6
    RESULT = 7
    TABLE = 8
    PLANE = 9
    FAULTS = 10
    ENTRIES = 11
    DECISION = 12


def records(words: Sequence[int]) -> list[Record]:
    """The records of a log: (kind, words...)."""
    found = []
    at = 0
    while at < len(words):
        kind, count = words[at], words[at + 1]
        found.append((kind, *words[at + 2 : at + 2 + count]))
        at += 2 + count
    return found


class NativeRig:
    """The C core. `history` is what tests/native/replay.c reads."""

    def __init__(self, ffi: Any, library: Any, parked_max: int) -> None:
        self._ffi = ffi
        self._library = library
        self._rig = library.rig_open(parked_max)
        self._length = ffi.new("uint64_t *")
        self.history = array("Q", [parked_max])
        self.log: list[Record] = []

    def run(self, *words: int) -> list[Record]:
        """What one command did."""
        packed = array("Q", words)
        self.history.append(len(packed))
        self.history.extend(packed)
        self._library.rig_run(self._rig, self._ffi.from_buffer("uint64_t[]", packed))
        log = self._library.rig_log(self._rig, self._length)
        found = records(self._ffi.unpack(log, self._length[0]) if self._length[0] else [])
        self.log += found
        return found

    def close(self) -> None:
        self._library.rig_close(self._rig)


class ReferenceRig:
    """The reference engine behind the same commands."""

    def __init__(self, parked_max: int) -> None:
        self.plane = Plane(b"i" * 16, CHANNELS, Limits(3000, 2000, parked_max))
        self.parts: dict[int, Part] = {}
        self.begun: dict[int, Part] = {}
        self.unsettled: dict[int, Part] = {}
        self.table_of: dict[int, int] = {}
        self._index: dict[int, int] = {}
        self._names: dict[int, object] = {}
        self._log: list[Record] = []

    def _named(self, number: int) -> object:
        """The same object for the same number: the engine compares by identity."""
        return self._names.setdefault(number, object())

    def run(self, *words: int) -> list[Record]:
        """What one command did."""
        self._log = []
        getattr(self, Command(words[0]).name.lower())(*words[1:])
        return self._log

    # --- effects ---

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Forward):
                part = effect.part
                self.begun[self._index[id(part)]] = part
                where = 0 if part.operation is Operation.FLUSH else part.entry
                self._log.append((Kind.FORWARD, self._index[id(part)], where))
            elif isinstance(effect, ReturnZeroes):
                self._log.append((Kind.ZEROES, self._end(effect.part)))
            elif isinstance(effect, Complete):
                self._log.append((Kind.COMPLETE, self._end(effect.part), effect.status))
            elif isinstance(effect, SendFault):
                self._send_fault(effect)
            elif isinstance(effect, BarrierReached):
                self._log.append((Kind.BARRIER, effect.token, effect.status))
            elif isinstance(effect, EpochBegan):
                self._log.append((Kind.EPOCH, effect.epoch))

    def _end(self, part: Part) -> int:
        index = self._index[id(part)]
        self.parts.pop(index)
        return index

    def _send_fault(self, effect: SendFault) -> None:
        fault = effect.fault
        self._log.append(
            (
                Kind.SEND_FAULT,
                fault.fault_id,
                fault.table,
                fault.segment,
                fault.entry,
                fault.operation,
                fault.kind,
                fault.state,
                fault.offset_blocks,
                fault.length_blocks,
                fault.since_ns,
            )
        )

    def _outcome(self, outcome: tuple[Status, list[Effect]]) -> None:
        self._apply(outcome[1])
        self._log.append((Kind.RESULT, outcome[0]))

    def _result(self, result: int) -> None:
        self._log.append((Kind.RESULT, result))

    # --- commands ---

    def submit(
        self,
        table: int,
        index: int,
        channel: int,
        operation: int,
        segment: int,
        offset: int,
        length: int,
        io: int,
        owner: int,
        now: int,
    ) -> None:
        where = -1 if segment == NEVER else segment
        part = Part(
            Operation(operation),
            where,
            offset,
            length,
            io=self._named(io),
            owner=self._named(owner),
            channel=channel,
        )
        self.parts[index] = part
        self._names[-1 - index] = part  # kept alive: its id is its name
        self._index[id(part)] = index
        self.table_of[index] = table
        self._apply(self.plane.tables[table].submit(part, now))

    def complete(self, index: int, status: int, settled: int, now: int) -> None:
        part = self.begun.pop(index)
        if not settled:
            self.unsettled[index] = part
        self._apply(self.plane.tables[self.table_of[index]].complete(part, Status(status), now, bool(settled)))

    def settle(self, index: int) -> None:
        self._apply(self.plane.tables[self.table_of[index]].settle(self.unsettled.pop(index)))

    def withdraw(self, index: int, now: int) -> None:
        """A part that could not be handed on has not begun, and is tried again."""
        part = self.begun.pop(index)
        engine = self.plane.tables[self.table_of[index]]
        reached = engine.generations.end(part.channel, part.generation)
        engine.counters.forwarded -= 1
        self._apply([*reached])
        self._apply(engine.submit(part, now))

    def set_entries(self, *words: int) -> None:
        stamp, (table, now, token, start, count, length), entries = Stamp(*words[:4]), words[4:10], words[10:]
        assert len(entries) == length
        self._outcome(self.plane.set_entries(stamp, table, start, count, entries, now, token or None))

    def set_state(self, *words: int) -> None:
        stamp, (table, now, token, start, count, state, active) = Stamp(*words[:4]), words[4:]
        self._outcome(self.plane.set_state(stamp, table, start, count, State(state), bool(active), now, token or None))

    def answer(self, *words: int) -> None:
        stamp, (table, now, count), rest = Stamp(*words[:4]), words[4:7], words[7:]
        answers = []
        for _ in range(count):
            fault_id, action, status, start, segments, length = rest[:6]
            answers.append(Answer(fault_id, action, status, start, segments, rest[6 : 6 + length]))
            rest = rest[6 + length :]
        self._outcome(self.plane.answer_faults(stamp, table, answers, now))

    def suspend(self, *words: int) -> None:
        stamp, (table, now, token) = Stamp(*words[:4]), words[4:]
        self._outcome(self.plane.suspend(stamp, table, now, token or None))

    def resume(self, *words: int) -> None:
        stamp, (table, now) = Stamp(*words[:4]), words[4:]
        self._outcome(self.plane.resume(stamp, table, now))

    def grant(self, *words: int) -> None:
        stamp, (sent, duration, now) = Stamp(*words[:4]), words[4:]
        self._outcome(self.plane.grant_lease(stamp, sent, duration, now))

    def tick(self, now: int) -> None:
        self._apply(self.plane.tick(now))

    def reset(self, table: int, owner: int) -> None:
        self._apply(self.plane.tables[table].reset(self._named(owner) if owner else None))

    def abort(self, table: int, io: int) -> None:
        self._apply(self.plane.tables[table].abort(self._named(io)))

    def admit(
        self, term: int, incarnation: int, cluster: int, park: int, io: int, lease: int, session: int, now: int
    ) -> None:
        limits = Limits(park, io)
        self._outcome(self.plane.admit(term, incarnation, bytes([cluster]) * 16, limits, lease, now, session))

    def begin_session(self) -> None:
        self._result(self.plane.begin_session())

    def bind(self, slot: int, container: int) -> None:
        self._result(self.plane.bind_slot(slot, bytes([container]) * 16))

    def unbind(self, slot: int) -> None:
        self._result(self.plane.unbind_slot(slot))

    def create(
        self, table: int, segments: int, size: int, block: int, reclaim: int, read_only: int, _: int, *slots: int
    ) -> None:
        geometry = Geometry(segments, size, block, bool(reclaim), bool(read_only))
        self._result(self.plane.create_table(table, geometry, slots))

    def remove(self, table: int, now: int) -> None:
        self._outcome(self.plane.remove_table(table, now))

    def drop(self, table: int) -> None:
        self._apply(self.plane.drop_table(table))

    def table_slots(self, *words: int) -> None:
        stamp, (table, now, lacks, _), slots = Stamp(*words[:4]), words[4:8], words[8:]
        self._outcome(self.plane.table_slots(stamp, table, slots, now, [9] if lacks else []))

    def resize(self, table: int, segments: int, now: int) -> None:
        self._outcome((Status.OK, self.plane.tables[table].resize(segments, now)))

    def begin_job(self, *words: int) -> None:
        stamp, (token, now, _), slots = Stamp(*words[:4]), words[4:7], words[7:]
        entries = [slot << 4 for slot in slots]
        assert [slot_of(entry) for entry in entries] == list(slots)
        self._outcome(self.plane.begin_job(stamp, token, entries, now))

    def may_continue(self, token: int, now: int) -> None:
        self._result(self.plane.may_continue(token, now))

    def end_job(self, token: int, status: int, now: int) -> None:
        self._result(self.plane.end_job(token, Status(status), now))

    # --- looking ---

    def look(self, table: int) -> None:
        engine = self.plane.tables[table]
        counters, counts = engine.counters, engine.table.counts()
        deadline = engine.next_deadline()
        self._log.append(
            (
                Kind.TABLE,
                engine.sequence,
                engine.present,
                engine.suspended,
                engine.parked_count,
                NEVER if deadline is None else deadline,
                counters.forwarded,
                counters.zero_reads,
                counters.faults,
                counters.failed,
                counters.dropped,
                *(counts[state] for state in State),
            )
        )
        self._log.append((Kind.FAULTS, *_parts_waiting(engine)))
        self._log.append((Kind.ENTRIES, *engine.table.get(0, engine.table.segment_count)))

    def look_at_plane(self) -> None:
        plane, lease = self.plane, self.plane.lease
        deadline = plane.next_deadline()
        self._log.append(
            (
                Kind.PLANE,
                plane.term,
                plane.incarnation,
                plane.session,
                plane.epoch,
                lease.valid,
                lease.deadline_ns,
                NEVER if deadline is None else deadline,
            )
        )


def _parts_waiting(engine: Engine) -> list[int]:
    return [word for fault in engine.outstanding_faults() for word in (fault.fault_id, len(fault.parts))]


class Pair:
    """Both, in step."""

    def __init__(self, ffi: Any, library: Any, parked_max: int = 16384) -> None:
        self.native = NativeRig(ffi, library, parked_max)
        self.reference = ReferenceRig(parked_max)
        self._parts = 0

    def run(self, *words: int) -> list[Record]:
        """Run a command on both; what it did, which must be the same."""
        expected = self.reference.run(*words)
        found = self.native.run(*words)
        assert found == expected, f"{Command(words[0]).name}{words[1:]}: {found} is not {expected}"
        return found

    def look(self) -> None:
        """Compare all there is to see."""
        for table in self.reference.plane.tables:
            self.run(Command.LOOK, table)
        self.run(Command.LOOK_AT_PLANE)

    def submit(
        self,
        table: int,
        operation: Operation,
        segment: int,
        now: int,
        *,
        offset: int = 0,
        length: int = 8,
        channel: int = 0,
        io: int = 1,
        owner: int = 1,
    ) -> tuple[int, list[Record]]:
        """A new part: its index, and what became of it."""
        index, self._parts = self._parts, self._parts + 1
        where = NEVER if operation is Operation.FLUSH else segment
        log = self.run(Command.SUBMIT, table, index, channel, operation, where, offset, length, io, owner, now)
        return index, log

    def close(self) -> None:
        self.native.close()
