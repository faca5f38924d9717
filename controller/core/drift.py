"""How fast agents' clocks run against ours: leases are safe only up to the bound (design: 7, 9).

A renewal says when it was sent by the clock that the lease is counted on. Its way takes some time, so that the
difference of the two clocks is at least what it seems to be, and the largest of many is nearly it. What that changes by
from one stretch of time to a later one is drift; the middle one of all such changes over half of the time that is
remembered counts, so that a stretch in which every way was long changes nothing. A machine that was suspended, and
whose clock stood still meanwhile, shows in the same way. Nothing is decided on it: it is an alarm, since a lease that
outlives our belief in it is found by nobody else.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from controller.config import SECOND_NS
from controller.core.agents import Agent
from controller.core.eventlog import EventLog

STRETCH_NS: Final = 60 * SECOND_NS
STRETCHES_KEPT: Final = 30
STRETCHES_LEAST: Final = 6
SLACK_NS: Final = SECOND_NS
"""What the quickest ways of two stretches may differ by, usually."""


class _Clock:
    """One boot of one machine: (our time, difference) of the quickest renewal of each stretch, oldest first."""

    __slots__ = ("best", "ends_ns", "kept", "machine")

    def __init__(self, machine: bytes, now_ns: int) -> None:
        self.machine = machine
        self.ends_ns = now_ns + STRETCH_NS
        self.best: tuple[int, int] | None = None
        self.kept: deque[tuple[int, int]] = deque(maxlen=STRETCHES_KEPT)


class DriftWatch:
    """Watches all agents. `bound`: how much a clock may gain or lose against ours, as a fraction."""

    def __init__(self, bound: float, log: EventLog) -> None:
        self._bound = bound
        self._log = log
        self._clocks: dict[int, _Clock] = {}

    def renewed(self, agent: Agent, sent_ns: int, now_ns: int) -> None:
        """A renewal of the agent, sent at `sent_ns` on its clock, came now."""
        clock = self._clocks.get(agent.number)
        if clock is None or clock.machine != agent.machine:
            clock = self._clocks[agent.number] = _Clock(agent.machine, now_ns)
        seen = (now_ns, sent_ns - now_ns)
        if clock.best is None or seen[1] > clock.best[1]:
            clock.best = seen
        if now_ns >= clock.ends_ns:
            clock.kept.append(clock.best)
            clock.best, clock.ends_ns = None, now_ns + STRETCH_NS
            self._judge(agent, list(clock.kept), now_ns)

    def _judge(self, agent: Agent, kept: list[tuple[int, int]], now_ns: int) -> None:
        if len(kept) < STRETCHES_LEAST:
            return
        pairs = zip(kept, kept[len(kept) // 2 :], strict=False)
        changes = sorted((late[1] - early[1], late[0] - early[0]) for early, late in pairs)
        change, elapsed = changes[len(changes) // 2]
        if abs(change) <= SLACK_NS + self._bound * elapsed:
            self._log.clear(now_ns, "clock", agent.name, f"the clock of agent {agent.name} is within the bound")
            return
        way = "gains" if change > 0 else "loses (or stood still for a while)"
        text = (
            f"the clock of agent {agent.name} {way} {abs(change) / elapsed:.0%} against ours: leases are safe "
            f"up to {self._bound:.0%} only"
        )
        self._log.alarm(now_ns, "clock", agent.name, text)
