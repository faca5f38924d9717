"""What can happen to a data plane, as moves: each picks its details from a source of choices and runs them on a pair.

The same moves serve Hypothesis (which shrinks) and seeded chance (which is fast).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from mapping.entry import ERROR, NO_WRITE, ZERO_ENTRY, State, pack
from mapping.plane import numbered
from mapping.rules import Operation
from mapping.status import Status
from tests.native.rig import Command, Kind, Pair, Record

TABLES: Final = (7 << 32 | 1, 8 << 32 | 1)
BLOCKS: Final = 2048
LEASE: Final = 1000
PARK: Final = 700
IO: Final = 150
SEGMENTS: Final = 6
ENTRIES: Final = (
    0,
    2,  # NO-WRITE without mapped: INVALID
    ZERO_ENTRY,
    pack(0, 1),
    pack(1, 2),
    pack(0, 3, NO_WRITE),
    pack(1, 4, ERROR),
    pack(0, 1),
    pack(1, 2),
    pack(0, 5),
    pack(9, 1),  # a container that is never listed
)
STATES: Final = (*State, State.NO_WRITE, State.NO_WRITE, State.NO_WRITE, State.ZERO)


class Choices(Protocol):
    """Where the details come from."""

    def pick(self, options: Sequence[Any]) -> Any:
        """One of the options."""

    def number(self, low: int, high: int) -> int:
        """One of low..high."""


class Story:
    """One history of one pair: an admitted plane with two tables, the second without RECLAIM."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.now = 1
        self.tokens = 0
        self.faults: list[tuple[int, int, int]] = []
        self.jobs: list[int] = []
        self.run(Command.ADMIT, 1, 1, 99, PARK, IO, LEASE, 0, self.now)
        for slot in (0, 1):
            self.run(Command.BIND, slot, slot)
        for number, table in enumerate(TABLES):
            self.run(Command.CREATE, table, SEGMENTS, 1 << 20, 512, number == 0, False, 2, 0, 1)

    @property
    def plane(self) -> Any:
        return self.pair.reference.plane

    def run(self, *words: int) -> list[Record]:
        log = self.pair.run(*words)
        self.faults += [(record[1], record[2], record[3]) for record in log if record[0] == Kind.SEND_FAULT]
        return log

    def stamp(self, sequence: int = 0) -> list[int]:
        plane = self.plane
        return [plane.term, plane.incarnation, numbered(plane.epoch, plane.session), sequence]

    def _next(self, table: int) -> list[int]:
        return self.stamp(self.plane.tables[table].sequence + 1)

    def _token(self, blocking: bool) -> int:
        self.tokens += 1
        return self.tokens if blocking else 0

    def _range(self, choose: Choices, table: int) -> tuple[int, int]:
        segments = self.plane.tables[table].geometry.segment_count
        start = choose.number(0, segments)
        return start, choose.number(0 if start == segments else 1, max(1, segments - start))

    # --- moves ---

    def submit(self, choose: Choices) -> None:
        operation = choose.pick(list(Operation))
        offset, length = choose.pick([(0, BLOCKS), (8, 8)])
        table = choose.pick(TABLES)
        log = self.pair.submit(
            table,
            operation,
            choose.number(0, SEGMENTS),
            self.now,
            offset=offset,
            length=length,
            channel=choose.number(0, 1),
            io=choose.number(1, 9),
            owner=choose.number(1, 2),
        )[1]
        self.faults += [(record[1], record[2], record[3]) for record in log if record[0] == Kind.SEND_FAULT]

    def complete(self, choose: Choices) -> None:
        begun = list(self.pair.reference.begun)
        if begun:
            status = choose.pick([Status.OK, Status.OK, Status.IO_ERROR])
            settled = status is Status.OK or choose.pick([True, False])
            self.run(Command.COMPLETE, choose.pick(begun), status, settled, self.now)

    def settle(self, choose: Choices) -> None:
        unsettled = list(self.pair.reference.unsettled)
        if unsettled:
            self.run(Command.SETTLE, choose.pick(unsettled))

    def withdraw(self, choose: Choices) -> None:
        begun = list(self.pair.reference.begun)
        if begun:
            self.run(Command.WITHDRAW, choose.pick(begun), self.now)

    def set_entries(self, choose: Choices) -> None:
        table = choose.pick(TABLES)
        start, count = self._range(choose, table)
        filled = choose.pick([True, False])
        entries = [choose.pick(ENTRIES) for _ in range(1 if filled else max(1, count))]
        token = self._token(choose.pick([True, False]))
        self.run(Command.SET_ENTRIES, *self._next(table), table, self.now, token, start, count, len(entries), *entries)

    def set_state(self, choose: Choices) -> None:
        table = choose.pick(TABLES)
        start, count = self._range(choose, table)
        state, active = choose.pick(STATES), choose.pick([True, True, False])
        token = self._token(choose.pick([True, False]))
        self.run(Command.SET_STATE, *self._next(table), table, self.now, token, start, count, state, active)

    def answer(self, choose: Choices) -> None:
        """Up to three faults are answered in one message, some of them a second time."""
        words: list[int] = []
        picked = [choose.pick(self.faults[-12:]) for _ in range(choose.number(1, 3))] if self.faults else []
        if not picked:
            return
        table = picked[0][1]
        for fault_id, _, segment in picked:
            action = choose.pick([0, 0, 0, 0, 1, 2, 3])
            status = choose.pick([Status.NO_SPACE, Status.WRITE_PROTECTED, Status.OK, 99])
            entries = [choose.pick(ENTRIES) for _ in range(choose.number(1, 2))]
            count = choose.pick([1, len(entries), 3])
            words += [fault_id, action, status, segment, count, len(entries), *entries]
        self.run(Command.ANSWER, *self._next(table), table, self.now, len(picked), *words)

    def replay(self, choose: Choices) -> None:
        """A message that is not the next one."""
        table = choose.pick(TABLES)
        sequence = max(0, self.plane.tables[table].sequence + choose.pick([-2, -1, 0, 2, 3]))
        self.run(Command.SET_ENTRIES, *self.stamp(sequence), table, self.now, 0, 0, 1, 1, pack(0, 1))

    def stale(self, choose: Choices) -> None:
        """A message of another time."""
        table, stamp = choose.pick(TABLES), self.stamp(1)
        place = choose.number(0, 2)
        stamp[place] = max(0, stamp[place] + choose.pick([-1, 1]))
        self.run(Command.SUSPEND, *stamp, table, self.now, 0)
        self.run(Command.GRANT, *stamp, self.now, LEASE, self.now)

    def late(self, choose: Choices) -> None:
        """A message of an earlier or a later session, or of one without a number, that would be in sequence."""
        table = choose.pick(TABLES)
        stamp = self._next(table)
        stamp[2] = numbered(self.plane.epoch, max(0, self.plane.session + choose.pick([-1, 1])) * choose.number(0, 1))
        self.run(Command.SET_ENTRIES, *stamp, table, self.now, 0, 0, 1, 1, pack(0, 1))

    def wait(self, choose: Choices) -> None:
        self.now += choose.pick([1, 1, 10, 10, 50, 50, 100, 200, 1500, 1500])
        if choose.pick([True, False]):
            self.run(Command.TICK, self.now)

    def renew(self, choose: Choices) -> None:
        sent = self.now - choose.pick([0, 0, 0, 100, LEASE, -1])
        self.run(Command.TICK, self.now)
        self.run(Command.GRANT, *self.stamp(), max(0, sent), choose.pick([LEASE, LEASE, 0, LEASE + 1]), self.now)

    def lose_host(self, choose: Choices) -> None:
        self.run(Command.RESET, choose.pick(TABLES), choose.number(0, 2))

    def abort(self, choose: Choices) -> None:
        self.run(Command.ABORT, choose.pick(TABLES), choose.number(1, 9))

    def suspend(self, choose: Choices) -> None:
        table = choose.pick(TABLES)
        self.run(Command.SUSPEND, *self.stamp(), table, self.now, self._token(choose.pick([True, False])))

    def resume(self, choose: Choices) -> None:
        self.run(Command.RESUME, *self.stamp(), choose.pick(TABLES), self.now)

    def admit(self, choose: Choices) -> None:
        term = max(0, self.plane.term + choose.pick([0, 1, -1]))
        incarnation, cluster = choose.pick([1, 1, 1, 2]), choose.pick([99, 99, 98])
        park, io = choose.pick([(PARK, IO), (PARK // 2, IO // 2)])
        if choose.pick([True, False]):
            self.run(Command.BEGIN_SESSION)
        session = choose.pick([0, self.plane.session, self.plane.session, self.plane.session + 1])
        self.run(Command.ADMIT, term, incarnation, cluster, park, io, LEASE, session, self.now)

    def table_slots(self, choose: Choices) -> None:
        slots = choose.pick([[0, 1], [0, 1], [0], [1], [0, 5]])
        lacks = choose.pick([0, 0, 1])
        self.run(Command.TABLE_SLOTS, *self.stamp(), choose.pick(TABLES), self.now, lacks, len(slots), *slots)

    def resize(self, choose: Choices) -> None:
        self.run(Command.RESIZE, choose.pick(TABLES), choose.pick([SEGMENTS - 2, SEGMENTS, SEGMENTS + 2]), self.now)

    def job(self, choose: Choices) -> None:
        """Copies and zeroes begin, go on and end."""
        if self.jobs and choose.pick([True, False]):
            token = self.jobs.pop()
            self.run(Command.MAY_CONTINUE, token, self.now)
            self.run(Command.END_JOB, token, choose.pick([Status.OK, Status.IO_ERROR]), self.now)
            return
        token = self._token(True)
        slot = choose.pick([0, 1, 7])
        log = self.run(Command.BEGIN_JOB, *self.stamp(), token, self.now, 1, slot)
        if log[-1] == (Kind.RESULT, Status.OK):
            self.jobs.append(token)

    def unbind(self, choose: Choices) -> None:
        self.run(Command.UNBIND, choose.pick([3, 0]))
        self.run(Command.BIND, choose.pick([0, 3]), choose.pick([0, 3]))

    def remove(self, choose: Choices) -> None:
        """A table is deleted; once its I/O has ended it is dropped, and made again."""
        table = choose.pick(TABLES)
        if choose.number(0, 9):
            return
        reference = self.pair.reference
        self.run(Command.REMOVE, table, self.now)
        self.submit(choose)
        for index in [index for index in reference.begun if reference.table_of[index] == table]:
            self.run(Command.COMPLETE, index, Status.OK, True, self.now)
        for index in [index for index in reference.unsettled if reference.table_of[index] == table]:
            self.run(Command.SETTLE, index)
        self.run(Command.DROP, table)
        slots = [slot for slot in (0, 1) if slot in self.plane.slots]
        self.run(Command.CREATE, table, SEGMENTS, 1 << 20, 512, 1, 0, len(slots), *slots)


MOVES: Final[tuple[Callable[[Story, Choices], None], ...]] = (
    Story.submit,
    Story.complete,
    Story.settle,
    Story.withdraw,
    Story.set_entries,
    Story.set_state,
    Story.answer,
    Story.replay,
    Story.stale,
    Story.late,
    Story.wait,
    Story.renew,
    Story.lose_host,
    Story.abort,
    Story.suspend,
    Story.resume,
    Story.admit,
    Story.table_slots,
    Story.resize,
    Story.job,
    Story.unbind,
    Story.remove,
)
# Commands without end would leave no I/O: what happens often in life happens often here.
OFTEN: Final = (Story.submit,) * 10 + (Story.complete,) * 5 + (Story.set_entries,) * 6 + (Story.answer,) * 5
ALL_MOVES: Final = MOVES + OFTEN + (Story.renew, Story.settle, Story.resume, Story.job) * 3
