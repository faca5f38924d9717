"""The store's narrow interface: what is durable, how it is changed, and what can go wrong.

A group of batches is one transaction and gets one sequence number; a batch id is applied once, however often it is
given. The term fences: only the newest reign may write (design.md, invariant 9). Errors say whether anything
changed, because a caller that guesses wrong loses data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias
from uuid import UUID

from controller.store.image import MapImage

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | dict[str, JsonValue] | None"

U64_MAX: Final = (1 << 64) - 1
BATCH_BYTES_MAX: Final = 16 << 20
"""Packed records of one batch."""
VALUE_BYTES_MAX: Final = 1 << 20
"""One JSON value (object, job payload, audit detail), encoded."""
NAME_LENGTH_MAX: Final = 255
"""Kinds and keys of objects, kinds and states of jobs, actors and actions: characters."""
BATCH_IDS_KEPT: Final = 65536
"""Batch ids remembered, newest first: older ones are no longer recognised as repeats."""
REQUESTS_KEPT: Final = 65536
"""Request ids remembered per incarnation."""
FROZEN_KIND: Final = "store"
FROZEN_KEY: Final = "frozen"
"""The object that says that nothing may be allocated, and why; restoring puts it, reconciling takes it away."""
AUDIT_KEPT: Final = 100_000
"""Audit rows kept; older ones are dropped in the background."""


class StoreError(Exception):
    """Base of everything the store raises. `advice` says what an operator can do."""

    advice = ""

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.advice})" if self.advice else text


class StoreFull(StoreError):
    """No space. Nothing changed: the transaction was undone."""

    advice = "free space on the file system that holds the store, or move the store to a larger one"


class StoreCorrupt(StoreError):
    """What was read back is not what was written, or is not a store of this cluster."""

    advice = "stop the controller, keep the file for diagnosis and restore the newest backup"


class StoreLocked(StoreError):
    """Another process has the store open."""

    advice = "find the other controller that uses this store; two must never share one"


class StoreVersion(StoreError):
    """The file was written by a newer release than this one."""

    advice = "run the release that wrote it, or a newer one"


class StoreFailed(StoreError):
    """The system refused a read, write or flush. The outcome is unknown until the store is reopened and read back."""

    advice = "reopen the store; if it happens again check the disk and the kernel's log"


class StoreClosed(StoreError):
    """The store was closed, or gave up after an error whose outcome is unknown."""

    advice = "open it again"


class StaleTerm(StoreError):
    """The given term does not reign. Nothing changed."""

    def __init__(self, stored: int, given: int) -> None:
        super().__init__(f"the store is in term {stored}, this commit came from term {given}")
        self.stored = stored
        self.given = given


class BatchRefused(StoreError):
    """The batch itself is malformed or over a limit: our own mistake. Nothing changed."""


@dataclass(frozen=True, slots=True)
class Job:
    """Long work that survives a crash: `progress` of `total`, in units that the kind defines."""

    id: int
    kind: str
    state: str
    progress: int
    total: int
    payload: JsonValue


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what. `at_ns` is wall-clock time, given by the caller."""

    at_ns: int
    actor: str
    action: str
    detail: JsonValue


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that become durable together. Deletes are applied before puts, removals before jobs."""

    id: int
    records: bytes = b""
    puts: tuple[tuple[str, str, JsonValue], ...] = ()
    deletes: tuple[tuple[str, str], ...] = ()
    requests: tuple[tuple[int, int], ...] = ()
    jobs: tuple[Job, ...] = ()
    jobs_removed: tuple[int, ...] = ()
    audit: tuple[AuditEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Committed:
    """`sequence` of the group; `sequences` of each batch: a repeated one answers what it answered first."""

    sequence: int
    sequences: tuple[int, ...]


@dataclass(slots=True)
class StoreState:
    """Everything the store knows, copied out: the caller owns it."""

    cluster: UUID
    term: int
    generation: int
    sequence: int
    objects: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    image: MapImage = field(default_factory=MapImage)
    requests: dict[int, dict[int, None]] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)


def frozen(state: StoreState) -> str:
    """Why nothing may be allocated; an empty text: it may."""
    record = state.objects.get(FROZEN_KIND, {}).get(FROZEN_KEY)
    return str(record["reason"]) if isinstance(record, dict) else ""


class Store(Protocol):
    """Used by one thread at a time. Every method may raise StoreError; its class says what it leaves behind."""

    cluster: UUID
    term: int
    sequence: int

    def new_term(self) -> int:
        """Begin a reign: the stored term + 1, durable on return."""

    def load(self) -> StoreState:
        """The whole state as of the newest commit. Reads only."""

    def commit(self, batches: Sequence[Batch], term: int) -> Committed:
        """Apply a group in order, as one durable transaction. Raises StaleTerm unless `term` reigns."""

    def fold(self, limit: int = 4096) -> bool:
        """One slice of background work, worth about `limit` records. True: more is waiting.

        Raises StoreFull with everything as before: it can be tried again.
        """

    def backlog(self) -> int:
        """Records in the log that are not folded into the trees yet."""

    def audit(self, after: int = 0, limit: int = 1000) -> list[tuple[int, AuditEntry]]:
        """Audit entries with a number above `after`, oldest first, with their numbers."""

    def close(self) -> None:
        """Idempotent. Committed work survives; unfolded work is folded by the next life."""
