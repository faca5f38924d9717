"""Commands that take several steps: concurrent across objects, in order for each object, bounded.

A procedure is a generator: it yields a step, and gets the step's value, or the exception with which it ended.
Operations on the target (spdk_rpc.steps) are procedures of calls and pauses, and parts of longer ones. Steps of one
object (a container slot, a table, a subsystem) never overlap. A procedure of an ended controller session is closed at
its next step, and only then the next one of the same object begins: what is in flight at the target is never overtaken.
When the target has died everything is dropped, and late results are ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from typing import Any, Final

from agent.core.effects import CallTarget, CreateFile, Effect, SendDataPlane
from channel.messages import Message
from channel.values import Header
from spdk_rpc.call import Call
from spdk_rpc.steps import Pause

JOBS_MAX: Final = 4096
OWN_JOBS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Ask:
    """A step: a request of ours to the data plane, about `table`; its value is the ResponseReceived."""

    message: Message
    table: int = 0
    sequence: int = 0


class Unanswered(Exception):
    """The data plane has not answered a request of ours: nobody knows whether it was carried out."""


@dataclass(frozen=True, slots=True)
class EnsureFile:
    """A step: a missing file is created sparse, an existing one is left as it is. Fails with an OSError."""

    path: str
    size_bytes: int


Step = Call[Any] | Ask | EnsureFile | Pause
Procedure = Generator[Step, Any, Any]
Finish = Callable[[Any], list[Effect]]


@dataclass(slots=True)
class Job:
    """A procedure on its way. `session`: the controller session that wants it, 0 for our own work."""

    key: Hashable
    session: int
    procedure: Procedure
    finish: Finish
    wake_ns: int | None = None
    orphan: bool = False


class Work:
    """Runs procedures. `standing` gives the header of a request of ours to the data plane."""

    def __init__(self, standing: Callable[[], Header], jobs_max: int = JOBS_MAX) -> None:
        self._standing = standing
        self.jobs_max = jobs_max
        self._lanes: dict[Hashable, deque[Job]] = {}  # of each object: the first job runs
        self._waiting: dict[int, Job] = {}
        self._pausing: set[int] = set()
        self._asked: set[int] = set()
        self._tokens = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def full(self) -> bool:
        return self._count >= self.jobs_max

    def submit(self, key: Hashable, session: int, procedure: Procedure, finish: Finish, now_ns: int) -> list[Effect]:
        """Begin a procedure, or queue it behind the others of its object. Ask `full()` before a session's."""
        assert self._count < self.jobs_max + OWN_JOBS_MAX, "the caller must refuse work beyond the limit"
        job = Job(key, session, procedure, finish)
        lane = self._lanes.setdefault(key, deque())
        lane.append(job)
        self._count += 1
        return self._advance(job, None, None, now_ns) if lane[0] is job else []

    def resolve(self, token: int, value: Any, failure: Exception | None, now_ns: int) -> list[Effect]:
        """The step with this token has ended. A token of a dropped job is ignored."""
        job = self._waiting.pop(token, None)
        self._asked.discard(token)
        return [] if job is None else self._advance(job, value, failure, now_ns)

    def data_plane_lost(self, reason: str, now_ns: int) -> list[Effect]:
        """Our requests to the data plane will not be answered any more."""
        effects: list[Effect] = []
        for token in sorted(self._asked):
            effects += self.resolve(token, None, Unanswered(reason), now_ns)
        return effects

    def tick(self, now_ns: int) -> list[Effect]:
        """Wake the procedures whose pause is over."""
        due = [token for token in self._pausing if (self._waiting[token].wake_ns or 0) <= now_ns]
        effects: list[Effect] = []
        for token in due:
            self._pausing.discard(token)
            effects += self.resolve(token, None, None, now_ns)
        return effects

    def next_deadline(self) -> int | None:
        return min((self._waiting[token].wake_ns or 0 for token in self._pausing), default=None)

    def end_session(self, session: int) -> None:
        """Drop what has not begun; what has begun ends at its next step."""
        for key in list(self._lanes):
            running, *queued = self._lanes[key]
            kept = [job for job in queued if job.session != session]
            self._count -= len(queued) - len(kept)
            self._lanes[key] = deque([running, *kept])
            running.orphan = running.orphan or running.session == session

    def drop_all(self) -> None:
        """The target is dead: nothing of this can go on."""
        for job in [job for lane in self._lanes.values() for job in lane]:
            job.procedure.close()
        self._lanes.clear()
        self._waiting.clear()
        self._pausing.clear()
        self._asked.clear()
        self._count = 0

    def _advance(self, job: Job, value: Any, failure: Exception | None, now_ns: int) -> list[Effect]:
        """Go on with `job`; when it has ended, with the next one of its object, and so on."""
        effects: list[Effect] = []
        following: Job | None = job
        while following is not None:
            job = following
            ended, more = self._run(job, value, failure, now_ns)
            effects += more
            following = self._next(job) if ended else None
            value = failure = None
        return effects

    def _run(self, job: Job, value: Any, failure: Exception | None, now_ns: int) -> tuple[bool, list[Effect]]:
        """To the procedure's next step, or to its end."""
        if job.orphan:
            job.procedure.close()
            return True, []
        try:
            step = job.procedure.throw(failure) if failure is not None else job.procedure.send(value)
        except StopIteration as stop:
            return True, job.finish(stop.value)
        return False, self._begin(job, step, now_ns)

    def _begin(self, job: Job, step: Step, now_ns: int) -> list[Effect]:
        self._tokens += 1
        self._waiting[self._tokens] = job
        if isinstance(step, Pause):
            job.wake_ns = now_ns + step.delay_ns
            self._pausing.add(self._tokens)
            return []
        if isinstance(step, Ask):
            self._asked.add(self._tokens)
            header = self._standing()._replace(table=step.table, sequence=step.sequence)
            return [SendDataPlane(step.message, header, self._tokens)]
        if isinstance(step, EnsureFile):
            return [CreateFile(self._tokens, step.path, step.size_bytes)]
        return [CallTarget(self._tokens, step)]

    def _next(self, ended: Job) -> Job | None:
        lane = self._lanes[ended.key]
        lane.popleft()
        self._count -= 1
        if lane:
            return lane[0]
        del self._lanes[ended.key]
        return None
