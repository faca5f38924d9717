"""The target's life: started or adopted, built up, restarted when it dies, given up when it dies too often.

A new target is started only after the old one's process is gone for certain (TargetExited): the first time at once,
hosts wait for it; then after a rest. A target that lived for STABLE_NS clears the count of failures; a restart that the
agent itself wants is not a failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from agent.core.effects import Alarm, Effect, GiveUp, Note, StartTarget, StopTarget

SECOND_NS: Final = 1_000_000_000
FAILURES_MAX: Final = 12
BACKOFF_MIN_NS: Final = SECOND_NS // 10
BACKOFF_MAX_NS: Final = 15 * SECOND_NS
STABLE_NS: Final = 60 * SECOND_NS


class Life(Enum):
    """Where the target stands."""

    IDLE = auto()
    STARTING = auto()
    RUNNING = auto()
    STOPPING = auto()
    RESTING = auto()
    GIVEN_UP = auto()


@dataclass(slots=True)
class Supply:
    """The machine. `identity` is the running target's, empty when none runs."""

    life: Life = Life.IDLE
    identity: bytes = b""
    failures: int = 0
    started_ns: int = 0
    wake_ns: int | None = None

    @property
    def running(self) -> bool:
        return self.life is Life.RUNNING

    def start(self, now_ns: int) -> list[Effect]:
        self.life, self.wake_ns, self.started_ns = Life.STARTING, None, now_ns
        return [StartTarget()]

    def started(self, identity: bytes, now_ns: int) -> list[Effect]:
        self.life, self.identity, self.started_ns = Life.RUNNING, identity, now_ns
        return []

    def exited(self, reason: str, now_ns: int) -> list[Effect]:
        """The process is gone: rest, then start anew; or give up."""
        wanted = self.life is Life.STOPPING
        stable = self.life is Life.RUNNING and now_ns - self.started_ns >= STABLE_NS
        self.identity = b""
        self.failures = 0 if stable else self.failures + (0 if wanted else 1)
        if wanted:
            return [Note(f"target ended: {reason}"), *self.start(now_ns)]
        if self.failures >= FAILURES_MAX:
            self.life, self.wake_ns = Life.GIVEN_UP, None
            return [GiveUp(f"the target failed {self.failures} times in a row, the last time: {reason}")]
        delay_ns = min(BACKOFF_MIN_NS << self.failures - 2, BACKOFF_MAX_NS) if self.failures > 1 else 0
        self.life, self.wake_ns = Life.RESTING, now_ns + delay_ns
        when = f"in {delay_ns / SECOND_NS:g} s" if delay_ns else "at once"
        return [Alarm(f"the target is gone: {reason}; it is started again {when}")]

    def restart(self, reason: str) -> list[Effect]:
        """End the running target; a new one follows."""
        if self.life is not Life.RUNNING:
            return []
        self.life = Life.STOPPING
        return [Alarm(f"the target is restarted: {reason}"), StopTarget(reason)]

    def tick(self, now_ns: int) -> list[Effect]:
        if self.wake_ns is not None and now_ns >= self.wake_ns:
            return self.start(now_ns)
        return []
