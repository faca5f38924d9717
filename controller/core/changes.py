"""One change at a time per (vdisk, segment), and the barriers between them (design: 4 writable last, 5 free last, 6).

A Change owns its segments from `begin` to `finish`; faults that arrive for them meanwhile wait in it. `invalidate` is
the one way in which other agents lose entries: a blocking change to INVALID, answered by each, or the confirmed fence
of those that cannot answer.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from channel.messages import SetEntries
from controller.core.agents import AgentTable, Standing, TableState
from controller.core.cluster import Cluster
from controller.core.holdings import CURRENT, NOTHING
from controller.core.truth import VDisk, runs_of
from mapping.entry import INVALID_ENTRY
from mapping.status import Status

_INVALID: Final = array("Q", [INVALID_ENTRY])


class Waiting(NamedTuple):
    """A fault that waits for a change, for space or for a container; void if its session or epoch has ended."""

    table: AgentTable
    session: int
    epoch: int
    fault: Any
    deadline_ns: int


class Change:
    """Some segments of one vdisk, changing. `why` is told to operators."""

    __slots__ = ("segments", "vdisk", "waiting", "why")

    def __init__(self, vdisk: VDisk, why: str) -> None:
        self.vdisk = vdisk
        self.why = why
        self.segments: list[int] = []
        self.waiting: list[Waiting] = []


class Changes:
    """Begins, waits and finishes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def begin(self, vdisk: VDisk, segments: Iterable[int], why: str) -> Change:
        """Own these segments; none of them may be changing."""
        change = Change(vdisk, why)
        for segment in segments:
            assert segment not in vdisk.changing, "two changes of one segment"
            vdisk.changing[segment] = change
            change.segments.append(segment)
        return change

    def finish(self, change: Change, now_ns: int) -> None:
        """Let go of the segments, and of the faults that waited."""
        changing = change.vdisk.changing
        for segment in change.segments:
            del changing[segment]
        if change.waiting:
            self._cluster.faults.resume(change.waiting)

    def invalidate(
        self,
        change: Change,
        tables: Iterable[AgentTable],
        now_ns: int,
        then: Callable[[int], None],
        least: int = CURRENT,
    ) -> None:
        """INVALID, blocking, at these tables; `then` once all have answered or are fenced.

        Only segments of which a table holds `least` or more are asked of it: UNKNOWN before the truth becomes writable,
        CURRENT when the truth changes, NOTHING (all) before a location is freed, since I/O that began under an entry
        forgotten since may still be in flight.
        """
        barrier = _Barrier(then)
        for table in tables:
            if not table.present:
                continue
            segments = [segment for segment in change.segments if table.holdings.get(segment) >= least]
            for start, count in runs_of(segments):
                barrier.count += 1
                self._order(table, start, count, barrier, now_ns)
        barrier.opened(now_ns)

    def _order(self, table: AgentTable, start: int, count: int, barrier: _Barrier, now_ns: int) -> None:
        cluster = self._cluster

        def reached(now_ns: int) -> None:
            table.holdings.fill(start, count, NOTHING)
            barrier.reached(now_ns)

        def done(status: int, response: Any, now_ns: int) -> None:
            if status == Status.OK or response is None:
                reached(now_ns)
            elif status == Status.NO_TABLE:
                cluster.bringup.settle_missing(table, reached, now_ns)
            else:
                why = f"a blocking change of {table.vdisk.name} ended with {Status(status).name}"
                cluster.fencing.when_over(table.agent, reached, now_ns)
                cluster.fencing.fence(table.agent, why, now_ns)

        if table.state is TableState.DELETING:
            table.gone.append(reached)
            cluster.fencing.needed(table.agent, now_ns)
            return
        if table.agent.standing is Standing.FENCING:
            cluster.fencing.when_over(table.agent, reached, now_ns)
            return
        cluster.commands.order(
            table.agent,
            lambda: (SetEntries(start, count, _INVALID), table.table_id, True),
            done,
            now_ns,
            table=table,
        )
        cluster.fencing.needed(table.agent, now_ns)


class _Barrier:
    """Counts answers; opens only once all commands have been given."""

    __slots__ = ("count", "is_open", "then")

    def __init__(self, then: Callable[[int], None]) -> None:
        self.count = 0
        self.is_open = False
        self.then = then

    def opened(self, now_ns: int) -> None:
        self.is_open = True
        if not self.count:
            self.then(now_ns)

    def reached(self, now_ns: int) -> None:
        self.count -= 1
        if self.is_open and not self.count:
            self.then(now_ns)
