"""The store in memory: the same interface and the same meaning, for simulations and for tests of what uses a store.

`MemoryDisk` is the medium that outlives a controller, `MemoryStore` a controller's open store on it. A crash keeps
exactly what a commit has flushed: folding since the newest commit is lost, as it may be on a real disk. Failures can
be injected: before anything happened, or after everything did, which the caller cannot tell apart.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Self
from uuid import UUID

from controller.store.batches import (
    EncodedAudit,
    EncodedJob,
    KnownBatches,
    SmallChanges,
    decode_audit,
    decode_job,
    prepare,
    unseal,
)
from controller.store.folding import Folder, FoldForest, LogRow, Round
from controller.store.interface import (
    AUDIT_KEPT,
    BATCH_IDS_KEPT,
    REQUESTS_KEPT,
    AuditEntry,
    Batch,
    Committed,
    StaleTerm,
    StoreClosed,
    StoreError,
    StoreLocked,
    StoreState,
)
from controller.store.records import RECORD_BYTES
from controller.store.replay import Replay
from controller.store.tree import CountChange, Node, Settled, Tree, TreeKey, read_image


@dataclass(frozen=True, slots=True)
class Failure:
    """The call number `after` (from 0) of `operation` raises `error`; `applied`: after it has taken effect."""

    operation: str
    error: StoreError
    applied: bool = False
    after: int = 0


@dataclass(slots=True)
class _Folded:
    """What folding has made; nodes are replaced, never changed, so that copies of the dicts are snapshots."""

    folded: int = 0
    clock: int = 1
    next_node: int = 1
    rows: deque[LogRow] = field(default_factory=deque)
    nodes: dict[int, Node] = field(default_factory=dict)
    references: dict[int, int] = field(default_factory=dict)
    trees: dict[TreeKey, Tree] = field(default_factory=dict)
    queue: dict[int, CountChange] = field(default_factory=dict)
    batches: dict[int, int] = field(default_factory=dict)
    requests: dict[int, array[int]] = field(default_factory=dict)

    def copy(self) -> _Folded:
        """A snapshot."""
        return _Folded(
            self.folded,
            self.clock,
            self.next_node,
            self.rows.copy(),
            self.nodes.copy(),
            self.references.copy(),
            self.trees.copy(),
            self.queue.copy(),
            self.batches.copy(),
            {incarnation: ids[:] for incarnation, ids in self.requests.items()},
        )


class MemoryDisk:
    """What survives a crash. Also folding's medium."""

    def __init__(self, cluster: UUID) -> None:
        self.cluster = cluster
        self.term = 0
        self.generation = 1
        self.sequence = 0
        self.objects: dict[tuple[str, str], bytes] = {}
        self.jobs: dict[int, EncodedJob] = {}
        self.audit: dict[int, EncodedAudit] = {}
        self.audit_last = 0
        self.owner: MemoryStore | None = None
        self.now = _Folded()
        self._flushed: _Folded | None = None
        self._failures: list[Failure] = []

    def crash(self) -> None:
        """The controller's machine fails: its store is dead, and what no commit flushed is gone."""
        self.owner = None
        if self._flushed is not None:
            self.now, self._flushed = self._flushed, None

    def inject(self, failure: Failure) -> None:
        """Make a coming call fail."""
        self._failures.append(failure)

    def take_failure(self, operation: str) -> Failure | None:
        """The failure of this call, if one was injected."""
        for index, failure in enumerate(self._failures):
            if failure.operation == operation:
                if failure.after == 0:
                    return self._failures.pop(index)
                self._failures[index] = replace(failure, after=failure.after - 1)
                return None
        return None

    def flush(self) -> None:
        """Everything so far survives a crash."""
        self._flushed = None

    def _unflushed(self) -> _Folded:
        if self._flushed is None:
            self._flushed = self.now.copy()
        return self.now

    # -- folding's medium ----------------------------------------------------------------------------------------

    def next_row(self, after: int) -> LogRow | None:
        """The first log row after a sequence."""
        rows = self.now.rows
        if not rows or rows[-1].sequence <= after:
            return None
        return rows[max(0, after + 1 - rows[0].sequence)]

    def read_node(self, node_id: int) -> Node:
        """A copy of a tree node."""
        node = self.now.nodes[node_id]
        return replace(node, body=node.body[:])

    def read_references(self, node_id: int) -> int:
        """How many parents a node has."""
        return self.now.references.get(node_id, 1)

    def _put_nodes(self, nodes: list[Node]) -> None:
        self.now.nodes.update((node.id, replace(node, body=node.body[:])) for node in nodes)

    def save_leaves(self, leaves: list[Node]) -> None:
        """Leaves, ahead of their round."""
        self._unflushed()
        self._put_nodes(leaves)

    def save_round(self, done: Round) -> None:
        """The end of a round."""
        now = self._unflushed()
        self._put_nodes(done.nodes)
        for key, tree in done.trees.items():
            if tree is None:
                now.trees.pop(key, None)
            else:
                now.trees[key] = Tree(tree.root, tree.level, tree.shared_at)
        self._put_counts(done.counts)
        now.queue.update((change.id, change) for change in done.changes)
        for incarnation in done.forgotten:
            now.requests.pop(incarnation, None)
        for incarnation, ids in done.requests.items():
            now.requests[incarnation] = (now.requests.get(incarnation, array("Q")) + ids)[-REQUESTS_KEPT:]
        now.batches.update(done.batches)
        for batch_id in list(islice(now.batches, max(0, len(now.batches) - BATCH_IDS_KEPT))):
            del now.batches[batch_id]
        now.folded, now.clock, now.next_node = done.folded, done.clock, done.next_node

    def _put_counts(self, counts: dict[int, int]) -> None:
        self.now.references.update(counts)
        for node_id, count in counts.items():
            if count <= 1:
                del self.now.references[node_id]

    def save_settled(self, done: Settled) -> None:
        """Counts that have followed."""
        now = self._unflushed()
        self._put_counts(done.counts)
        for node_id in done.freed:
            del now.nodes[node_id]
        now.queue.update((change.id, change) for change in done.added)
        for number in done.consumed:
            del now.queue[number]

    def trim(self, limit: int) -> bool:
        """Drop what is folded and what is over a limit."""
        now = self._unflushed()
        while now.rows and now.rows[0].sequence <= now.folded:
            now.rows.popleft()
        for number in list(islice(self.audit, max(0, len(self.audit) - AUDIT_KEPT))):
            del self.audit[number]
        return False

    def forest(self) -> FoldForest:
        """The trees as they are stored."""
        now = self.now
        forest = FoldForest(self, now.clock, now.next_node)
        forest.trees = {key: Tree(tree.root, tree.level, tree.shared_at) for key, tree in now.trees.items()}
        forest.queue = deque(now.queue.values())
        forest.next_change = forest.queue[-1].id + 1 if forest.queue else 1
        return forest

    def remove_unreachable(self) -> None:
        """Drop leaves of a round that never ended."""
        for node_id in [node_id for node_id in self.now.nodes if node_id >= self.now.next_node]:
            del self.now.nodes[node_id]


class MemoryStore:
    """A `Store` on a `MemoryDisk`. Use `MemoryStore.open`."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk
        self.cluster = disk.cluster
        self.term = disk.term
        self.sequence = disk.sequence
        disk.remove_unreachable()
        self._folder = Folder(disk, disk.forest(), disk.now.folded)
        self._known = KnownBatches()
        for batch_id, sequence in disk.now.batches.items():
            self._known.add(batch_id, sequence)
        for row in disk.now.rows:
            if row.sequence > disk.now.folded:
                for batch_id in array("Q", row.batches):
                    self._known.add(batch_id, row.sequence)

    @classmethod
    def open(cls, disk: MemoryDisk) -> Self:
        """Raises StoreLocked while another store on the disk is open."""
        if disk.owner is not None:
            raise StoreLocked("another controller has the store open")
        failure = disk.take_failure("open")
        if failure is not None:
            raise failure.error
        store = cls(disk)
        disk.owner = store
        return store

    def _use(self, operation: str) -> Failure | None:
        """Check that the store is open. Raises the failure of an operation that is to fail without effect."""
        if self._disk.owner is not self:
            raise StoreClosed("the store is closed")
        failure = self._disk.take_failure(operation)
        if failure is not None and not failure.applied:
            raise failure.error
        return failure

    def new_term(self) -> int:
        """Begin a reign: the stored term + 1, durable on return."""
        failure = self._use("new_term")
        self._disk.term += 1
        self._disk.flush()
        self.term = self._disk.term
        if failure is not None:
            raise failure.error
        return self.term

    def commit(self, batches: Sequence[Batch], term: int) -> Committed:
        """Apply a group in order, all or nothing. Raises StaleTerm, BatchRefused, and what was injected."""
        if self._disk.owner is not self:
            raise StoreClosed("the store is closed")
        if term != self._disk.term:
            raise StaleTerm(self._disk.term, term)
        fresh = self._known.fresh(batches)
        group = prepare(fresh)
        failure = self._use("commit")
        if fresh:
            self.sequence = self._disk.sequence = self.sequence + 1
            self._disk.now.rows.append(LogRow(self.sequence, group.batches, group.records))
            for changes in group.changes:
                self._change(changes)
            self._disk.flush()
            for batch_id in group.ids:
                self._known.add(batch_id, self.sequence)
        if failure is not None:
            raise failure.error
        sequences = self._known.sequences(batches, self.sequence)
        return Committed(max(sequences, default=self.sequence), sequences)

    def _change(self, changes: SmallChanges) -> None:
        disk = self._disk
        for key in changes.deletes:
            disk.objects.pop(key, None)
        for kind, name, value in changes.puts:
            disk.objects[kind, name] = value
        for job_id in changes.jobs_removed:
            disk.jobs.pop(job_id, None)
        disk.jobs.update((job.id, job) for job in changes.jobs)
        for entry in changes.audit:
            disk.audit_last += 1
            disk.audit[disk.audit_last] = entry

    def fold(self, limit: int = 4096) -> bool:
        """One slice of background work."""
        failure = self._use("fold")
        more = self._folder.step(limit)
        if failure is not None:
            raise failure.error
        return more

    def backlog(self) -> int:
        """Records that are not folded yet."""
        now = self._disk.now
        return sum(len(row.records) // RECORD_BYTES for row in now.rows if row.sequence > now.folded)

    def load(self) -> StoreState:
        """The whole state as of the newest commit."""
        failure = self._use("load")
        if failure is not None:
            raise failure.error
        disk = self._disk
        state = StoreState(disk.cluster, disk.term, disk.generation, disk.sequence)
        for (kind, key), value in disk.objects.items():
            state.objects.setdefault(kind, {})[key] = unseal(value, f"object {kind} {key}")
        state.jobs = {job_id: decode_job(job) for job_id, job in sorted(disk.jobs.items())}
        state.image = read_image(disk.forest())
        replay = Replay(state.image)
        for incarnation, ids in disk.now.requests.items():
            replay.add_requests(incarnation, ids.tobytes())
        for row in disk.now.rows:
            if row.sequence > disk.now.folded:
                replay.apply(row.records)
        state.requests = replay.newest_requests()
        return state

    def audit(self, after: int = 0, limit: int = 1000) -> list[tuple[int, AuditEntry]]:
        """Audit entries with a number above `after`, oldest first, with their numbers."""
        self._use("audit")
        rows = ((number, row) for number, row in self._disk.audit.items() if number > after)
        return [(number, decode_audit(number, row)) for number, row in islice(rows, limit)]

    def close(self) -> None:
        """Idempotent."""
        if self._disk.owner is self:
            self._disk.owner = None
