"""The data plane's pure core: its tables, its lease, and what it refuses (design: in order; the lease stops new I/O).

Everything that carries entries bears a Stamp. A stamp of a lower term, of another incarnation, of another epoch or of
another session is refused; within a table, sequences are applied in order without gaps. A right sequence is consumed
even if its content is refused, so that what follows it is still in order.

Sessions are numbered here, because nobody else is sure to see them in order: a daemon that begins one with a controller
asks first where this data plane stands, and from then on what was sent in an earlier session is refused, whoever still
has it. A controller that does not number its stamps (ADMIT says 0) is served too, and relies on the daemon for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mapping.effects import Effect, EpochBegan, Fault
from mapping.engine import Engine, Geometry, Limits
from mapping.entry import State, has_location, slot_of
from mapping.lease import Lease
from mapping.status import Status

TABLES_MAX: Final = 32768
SESSION_SHIFT: Final = 32
SESSIONS_MAX: Final = (1 << 32) - 1
_FAILURES: Final = frozenset(status.value for status in Status) - {Status.OK}
Outcome = tuple[Status, list[Effect]]


class Stamp(NamedTuple):
    """Where a message stands in the order of things; `sequence` is 0 where none is needed, `epoch` is `numbered`."""

    term: int
    incarnation: int
    epoch: int
    sequence: int = 0


def numbered(epoch: int, session: int) -> int:
    """What stamps say of the epoch and of the session in which they were made (0: it has no number)."""
    return session << SESSION_SHIFT | epoch


@dataclass(frozen=True, slots=True)
class Answer:
    """One fault's answer; `action`: 0 replace, 1 fail request, 2 fail segment. `entries` only for replace."""

    fault_id: int
    action: int
    status: int
    start: int
    count: int
    entries: Sequence[int]


REPLACE: Final = 0
FAIL_REQUEST: Final = 1
FAIL_SEGMENT: Final = 2


class Plane:
    """`instance`: 16 random bytes made at each start. `now_ns` everywhere is CLOCK_MONOTONIC."""

    def __init__(self, instance: bytes, channels: int = 1, limits: Limits | None = None) -> None:
        self.instance = instance
        self.cluster = b""
        self.term = 0
        self.incarnation = 0
        self.session = 0
        self.lease = Lease()
        self.limits = limits or Limits()
        self.tables: dict[int, Engine] = {}
        self.slots: dict[int, bytes] = {}
        self._channels = channels
        self._fault_ids = 0
        self._sessions = 0
        self._jobs: dict[Any, tuple[int, frozenset[int]]] = {}

    @property
    def epoch(self) -> int:
        return self.lease.epoch

    # --- standing ----------------------------------------------------------------------------------------------------

    def begin_session(self) -> Status:
        """A session with a controller is about to begin, as number `session`: stamps of all before it are refused."""
        if self._sessions >= SESSIONS_MAX:
            return Status.LIMIT
        self._sessions += 1
        self.session = self._sessions
        return Status.OK

    def admit(
        self,
        term: int,
        incarnation: int,
        cluster: bytes,
        limits: Limits,
        lease_max_ns: int,
        now_ns: int,
        session: int = 0,
    ) -> Outcome:
        """A controller of `term` has admitted this data plane as `incarnation`. Outstanding faults go up again.

        `session`: what its stamps will bear, the number of the session that has begun last, or 0.
        """
        if term < self.term:
            return Status.STALE_TERM, []
        if self.incarnation and incarnation != self.incarnation:
            return Status.STALE_INCARNATION, []
        if not incarnation or not term or (self.cluster and cluster != self.cluster):
            return Status.BAD_MESSAGE, []
        if session not in (0, self._sessions):
            return Status.STALE_EPOCH, []
        self.term, self.incarnation, self.cluster, self.session = term, incarnation, cluster, session
        self.lease.duration_max_ns = lease_max_ns
        self.limits.park_ns, self.limits.io_ns = limits.park_ns, limits.io_ns
        return Status.OK, self.tick(now_ns)

    def check(self, stamp: Stamp, now_ns: int) -> Status:
        """OK if the stamp is of the present term, incarnation, epoch and session. Call `tick(now_ns)` first."""
        if not self.incarnation or stamp.term > self.term:
            return Status.NOT_ADMITTED
        if stamp.term < self.term:
            return Status.STALE_TERM
        if stamp.incarnation != self.incarnation:
            return Status.STALE_INCARNATION
        return Status.OK if stamp.epoch == numbered(self.lease.epoch, self.session) else Status.STALE_EPOCH

    def grant_lease(self, stamp: Stamp, sent_ns: int, duration_ns: int, now_ns: int) -> Outcome:
        """Extend the lease, counted from when its renewal was sent. Refused once it has expired: sticky."""
        effects = self.tick(now_ns)
        status = self.check(stamp, now_ns)
        if status is Status.OK:
            status = self.lease.grant(sent_ns, duration_ns, now_ns)
        if status is Status.OK:
            for engine in self.tables.values():
                effects += engine.lease_granted(now_ns)
        return status, effects

    def tick(self, now_ns: int) -> list[Effect]:
        """Time has passed: the lease may expire, parked I/O and barriers may be late."""
        effects: list[Effect] = []
        if self.lease.valid and now_ns >= self.lease.deadline_ns:
            self.lease.expire()
            effects.append(EpochBegan(self.lease.epoch))
            for engine in self.tables.values():
                effects += engine.lease_expired(now_ns)
        for engine in self.tables.values():
            effects += engine.tick(now_ns)
        return effects

    def next_deadline(self) -> int | None:
        """When `tick` may have something to do, or None."""
        deadlines = [engine.next_deadline() for engine in self.tables.values()]
        deadlines.append(self.lease.deadline_ns if self.lease.valid else None)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def outstanding_faults(self) -> list[Fault]:
        """Every fault without an answer, oldest first."""
        faults = [fault for engine in self.tables.values() for fault in engine.outstanding_faults()]
        return sorted(faults, key=lambda fault: fault.fault_id)

    # --- tables and containers ---------------------------------------------------------------------------------------

    def _next_fault_id(self) -> int:
        self._fault_ids += 1
        return self._fault_ids

    def create_table(self, table_id: int, geometry: Geometry, slots: Iterable[int] = ()) -> Status:
        """A new table, every entry INVALID [0034]."""
        listed = frozenset(slots)
        if table_id in self.tables:
            return Status.EXISTS
        if len(self.tables) >= TABLES_MAX:
            return Status.LIMIT
        if not listed <= self.slots.keys():
            return Status.NO_CONTAINER
        engine = Engine(table_id, geometry, self.lease, self._next_fault_id, self.limits, self._channels)
        engine.slots = listed
        self.tables[table_id] = engine
        return Status.OK

    def remove_table(self, table_id: int, now_ns: int) -> Outcome:
        """Forget a table's entries; its I/O faults with NO-TABLE until `drop_table`."""
        engine = self.tables.get(table_id)
        if engine is None:
            return Status.NO_TABLE, []
        return Status.OK, engine.remove(now_ns)

    def drop_table(self, table_id: int) -> list[Effect]:
        """The virtual disk is gone: parked I/O is dropped. No part of it may be begun."""
        engine = self.tables.pop(table_id)
        assert not engine.generations.begun, "a table was dropped under I/O"
        effects = engine.reset()
        engine.table.close()
        return effects

    def table_slots(
        self, stamp: Stamp, table_id: int, slots: Iterable[int], now_ns: int, absent: Iterable[int] = ()
    ) -> Outcome:
        """Replace a table's container list. A container can leave it only when no entry can still name it.

        `absent`: containers that may hold data of the virtual disk and are not attached here. While there is one,
        flushes fail: what an earlier incarnation, or another agent, left in its cache cannot be flushed from here.
        """
        effects = self.tick(now_ns)
        status, engine = self._engine(stamp, table_id, now_ns)
        listed = frozenset(slots)
        if engine is None:
            return status, effects
        if not listed <= self.slots.keys():
            return Status.NO_CONTAINER, effects
        leaving = engine.slots - listed
        if leaving and any(has_location(entry) and slot_of(entry) in leaving for entry in engine.table.used_entries()):
            return Status.BUSY, effects
        engine.slots, engine.absent = listed, frozenset(absent)
        return Status.OK, effects

    def bind_slot(self, slot: int, container: bytes) -> Status:
        """The container with this UUID is attached as `slot`; its label has been verified."""
        known = self.slots.setdefault(slot, container)
        return Status.OK if known == container else Status.EXISTS

    def unbind_slot(self, slot: int) -> Status:
        """Detach; refused while a table lists the slot or a job uses it."""
        if slot not in self.slots:
            return Status.NO_CONTAINER
        if any(slot in engine.slots for engine in self.tables.values()):
            return Status.BUSY
        if any(slot in slots for _, slots in self._jobs.values()):
            return Status.BUSY
        del self.slots[slot]
        return Status.OK

    # --- commands that carry entries ---------------------------------------------------------------------------------

    def _engine(self, stamp: Stamp, table_id: int, now_ns: int) -> tuple[Status, Engine | None]:
        status = self.check(stamp, now_ns)
        if status is not Status.OK:
            return status, None
        engine = self.tables.get(table_id)
        if engine is None or not engine.present:
            return Status.NO_TABLE, None
        return Status.OK, engine

    def _in_sequence(self, stamp: Stamp, table_id: int, now_ns: int, apply: Callable[[Engine], Outcome]) -> Outcome:
        effects = self.tick(now_ns)
        status, engine = self._engine(stamp, table_id, now_ns)
        if engine is None:
            return status, effects
        if stamp.sequence != engine.sequence + 1:
            old = stamp.sequence <= engine.sequence
            return (Status.SEQUENCE_OLD if old else Status.SEQUENCE_GAP), effects
        engine.sequence += 1
        status, more = apply(engine)
        return status, effects + more

    def set_entries(
        self,
        stamp: Stamp,
        table_id: int,
        start: int,
        count: int,
        entries: Sequence[int],
        now_ns: int,
        barrier: Any = None,
    ) -> Outcome:
        """Replace entries. With `barrier` (a token), OK means: applied; answer when BarrierReached(token) comes."""

        def apply(engine: Engine) -> Outcome:
            return _then_barrier(engine, engine.set_entries(start, count, entries, now_ns), barrier, now_ns)

        return self._in_sequence(stamp, table_id, now_ns, apply)

    def set_state(
        self,
        stamp: Stamp,
        table_id: int,
        start: int,
        count: int,
        state: State,
        active: bool,
        now_ns: int,
        barrier: Any = None,
    ) -> Outcome:
        """Change one state of entries; `barrier` as in `set_entries`."""

        def apply(engine: Engine) -> Outcome:
            return _then_barrier(engine, engine.set_state(start, count, state, active, now_ns), barrier, now_ns)

        return self._in_sequence(stamp, table_id, now_ns, apply)

    def answer_faults(self, stamp: Stamp, table_id: int, answers: Sequence[Answer], now_ns: int) -> Outcome:
        """Apply answers in order. The first refusal is the status; the others are applied all the same."""

        def apply(engine: Engine) -> Outcome:
            first = Status.OK
            effects: list[Effect] = []
            for answer in answers:
                status, more = _apply_answer(engine, answer, now_ns)
                effects += more
                if first is Status.OK and status is not Status.NOT_FOUND:
                    first = status
            return first, effects

        return self._in_sequence(stamp, table_id, now_ns, apply)

    def suspend(self, stamp: Stamp, table_id: int, now_ns: int, barrier: Any = None) -> Outcome:
        """Park new I/O; with `barrier`, also wait for what has begun."""
        effects = self.tick(now_ns)
        status, engine = self._engine(stamp, table_id, now_ns)
        if engine is None:
            return status, effects
        engine.suspend()
        status, more = _then_barrier(engine, (Status.OK, []), barrier, now_ns)
        return status, effects + more

    def resume(self, stamp: Stamp, table_id: int, now_ns: int) -> Outcome:
        """End `suspend`."""
        effects = self.tick(now_ns)
        status, engine = self._engine(stamp, table_id, now_ns)
        return (status, effects) if engine is None else (Status.OK, effects + engine.resume(now_ns))

    # --- copy and zero -----------------------------------------------------------------------------------------------

    def begin_job(self, stamp: Stamp, token: Any, entries: Iterable[int], now_ns: int) -> Outcome:
        """A copy or zero of the locations `entries` wants to begin: leased like any I/O."""
        effects = self.tick(now_ns)
        slots = frozenset(slot_of(entry) for entry in entries)
        status = self.check(stamp, now_ns)
        if status is Status.OK and not self.lease.covers(now_ns):
            status = Status.LEASE_EXPIRED
        if status is Status.OK and not slots <= self.slots.keys():
            status = Status.NO_CONTAINER
        if status is Status.OK:
            self._jobs[token] = (self.lease.epoch, slots)
        return status, effects

    def may_continue(self, token: Any, now_ns: int) -> bool:
        """True while the job's next container I/O may begin."""
        return self._jobs[token][0] == self.lease.epoch and self.lease.covers(now_ns)

    def end_job(self, token: Any, status: Status, now_ns: int) -> Status:
        """The job's I/O has ended; LEASE_EXPIRED if it outlived its lease.

        A failure stays what it is: its container may still carry the I/O out, which a job begun anew does not wait for.
        """
        covered = self.may_continue(token, now_ns)
        del self._jobs[token]
        return status if covered or status is not Status.OK else Status.LEASE_EXPIRED


def _then_barrier(engine: Engine, outcome: Outcome, token: Any, now_ns: int) -> Outcome:
    status, effects = outcome
    if token is None or status is not Status.OK:
        return outcome
    return status, effects + engine.barrier(token, now_ns)


def _apply_answer(engine: Engine, answer: Answer, now_ns: int) -> Outcome:
    if answer.action == REPLACE:
        return engine.answer_replace(answer.fault_id, answer.start, answer.count, answer.entries, now_ns)
    if answer.action == FAIL_REQUEST:
        if answer.status not in _FAILURES:
            return Status.BAD_MESSAGE, []
        return engine.answer_fail_request(answer.fault_id, Status(answer.status))
    if answer.action == FAIL_SEGMENT:
        return engine.answer_fail_segment(answer.fault_id, answer.start, now_ns)
    return Status.BAD_MESSAGE, []
