"""What a step wants durable, gathered into one batch, and what may happen only then (design: durable before visible).

A step changes the journal as it goes; at its end the whole of it becomes one `Persist`. What depends on it is given as
continuations, which `committed` hands back in the order they were added. While the store is full (`held`) the steps
share one batch instead, so that however long that lasts, the queue of commits does not grow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from controller.core.effects import Persist
from controller.store.interface import Batch, Job, JsonValue
from controller.store.records import RecordBuilder

Continuation = Callable[[int], None]
_COUNTER_BITS: Final = 40
HELD_BYTES_MAX: Final = 1 << 20
"""Records that are held back; what is more goes to the committer after all."""


class Journal:
    """Batch ids are term << 40 | counter: never used twice, whatever crashed."""

    def __init__(self, term: int) -> None:
        self.records = RecordBuilder()
        self.in_flight: dict[int, list[Continuation]] = {}
        self.held = False
        self.follow: Callable[[Batch], None] | None = None
        """If set: called with each batch as soon as it is committed, before its continuations."""
        self._followed: dict[int, Batch] = {}
        self._base = term << _COUNTER_BITS
        self._counter = 0
        self._puts: dict[tuple[str, str], JsonValue] = {}
        self._deletes: dict[tuple[str, str], None] = {}
        self._jobs: dict[int, Job] = {}
        self._jobs_removed: dict[int, None] = {}
        self._then: list[Continuation] = []

    def put(self, kind: str, key: str, value: JsonValue) -> None:
        """Insert or replace a small object."""
        self._deletes.pop((kind, key), None)
        self._puts[kind, key] = value

    def delete(self, kind: str, key: str) -> None:
        """Remove a small object, if there is one."""
        self._puts.pop((kind, key), None)
        self._deletes[kind, key] = None

    def job(self, job: Job) -> None:
        """Insert or replace a job."""
        self._jobs_removed.pop(job.id, None)
        self._jobs[job.id] = job

    def remove_job(self, job_id: int) -> None:
        """Forget a job."""
        self._jobs.pop(job_id, None)
        self._jobs_removed[job_id] = None

    def then(self, continuation: Continuation) -> None:
        """Call it, with the time, once everything journalled so far in this step is committed."""
        self._then.append(continuation)

    def take(self) -> Persist | None:
        """The step is over: its batch, if there is anything in it or waiting for it."""
        if not (self._then or len(self.records) or self._puts or self._deletes or self._jobs or self._jobs_removed):
            return None
        if self.held and self.in_flight and len(self.records) < HELD_BYTES_MAX:
            return None
        self._counter += 1
        token = self._base | self._counter
        batch = Batch(
            id=token,
            records=self.records.take(),
            puts=tuple([(kind, key, value) for (kind, key), value in self._puts.items()]),
            deletes=tuple(self._deletes),
            jobs=tuple(self._jobs.values()),
            jobs_removed=tuple(self._jobs_removed),
        )
        self.in_flight[token] = self._then
        if self.follow is not None:
            self._followed[token] = batch
        self._puts, self._deletes, self._jobs, self._jobs_removed, self._then = {}, {}, {}, {}, []
        return Persist(batch, token)

    def committed(self, token: int) -> list[Continuation]:
        """The continuations of a batch that is durable now."""
        batch = self._followed.pop(token, None) if self._followed else None
        if batch is not None and self.follow is not None:
            self.follow(batch)
        return self.in_flight.pop(token)
