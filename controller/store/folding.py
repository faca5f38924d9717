"""Folding: log rows become tree nodes, in slices short enough to run between two commits.

A round gathers rows into the forest in memory, writes the dirty leaves, and ends with one transaction that moves
everything else at once: inner nodes, roots, queued count changes and the cursor. Leaves may be written early, in
transactions of their own, because a leaf that is ahead of the cursor does no harm: replay starts at the cursor, record
values are absolute, and every record that the leaf already contains is replayed before anybody looks. New leaves of a
round that never ended are unreachable, and are removed when the store is opened. Then the counts follow, and the
folded rows go.

A slice that fails changes nothing here or there: the next one tries the same again.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Protocol

from controller.store.records import RECORD_BYTES, apply
from controller.store.tree import CountChange, Forest, Node, NodeSource, Settled, Tree, TreeKey

ROUND_RECORDS_MAX: Final = 1 << 18
"""Records of one round: more of them write each leaf less often, but recovery replays them all."""
DIRTY_LEAVES_MAX: Final = 1024
"""Dirty nodes in memory (32 KiB each) before a round writes its leaves in between."""
CACHED_NODES_MAX: Final = 2048
"""Clean nodes kept from one round to the next."""
APPLY_RECORDS: Final = 512
"""Records applied before the dirty nodes are counted again."""
RECORDS_PER_LEAF: Final = 256
"""What writing one leaf costs, in records."""


@dataclass(slots=True)
class LogRow:
    """One committed group: its batch ids (u64s) and its records."""

    sequence: int
    batches: bytes
    records: bytes


@dataclass(slots=True)
class Round:
    """What the last transaction of a round makes durable, besides leaves."""

    folded: int
    records: int
    clock: int
    next_node: int
    nodes: list[Node]
    trees: dict[TreeKey, Tree | None]
    counts: dict[int, int]
    changes: list[CountChange]
    batches: list[tuple[int, int]]
    forgotten: set[int]
    requests: dict[int, array[int]]


class FoldMedium(NodeSource, Protocol):
    """What a round reads from and writes to. Each `save` is atomic and raises with nothing changed."""

    def next_row(self, after: int) -> LogRow | None: ...
    def save_leaves(self, leaves: list[Node]) -> None: ...
    def save_round(self, done: Round) -> None: ...
    def save_settled(self, done: Settled) -> None: ...
    def trim(self, limit: int) -> bool:
        """Drop what is folded and what is over a limit. True: more is left."""


class FoldForest(Forest):
    """The forest, and the requests that the rows of a round recorded."""

    def __init__(self, source: NodeSource, clock: int = 1, next_node: int = 1) -> None:
        super().__init__(source, clock, next_node)
        self.requests: dict[int, array[int]] = {}
        self.forgotten: set[int] = set()

    def request(self, incarnation: int, request_id: int) -> None:
        """Remember a request of an incarnation."""
        try:
            self.requests[incarnation].append(request_id)
        except KeyError:
            self.requests[incarnation] = array("Q", [request_id])

    def forget_incarnation(self, incarnation: int) -> None:
        """Its requests before this one are forgotten."""
        self.requests.pop(incarnation, None)
        self.forgotten.add(incarnation)


class _Phase(Enum):
    GATHER = auto()
    WRITE = auto()
    FINISH = auto()
    SETTLE = auto()
    TRIM = auto()


@dataclass(slots=True)
class _Gathered:
    """The rows of the current round so far; `row` is the one in progress, from byte `offset` on."""

    reached: int
    records: int = 0
    complete: bool = False
    row: LogRow | None = None
    offset: int = 0
    batches: list[tuple[int, int]] = field(default_factory=list)
    leaves: list[Node] = field(default_factory=list)


class Folder:
    """The rounds, slice by slice. `folded` is the cursor: the sequence up to which the trees are complete."""

    def __init__(self, medium: FoldMedium, forest: FoldForest, folded: int) -> None:
        self.folded = folded
        self._medium = medium
        self._forest = forest
        self._phase = _Phase.SETTLE if forest.queue else _Phase.GATHER
        self._round = _Gathered(folded)
        self._settled: Settled | None = None
        self._changes_saved = forest.next_change

    def step(self, limit: int) -> bool:
        """One slice, worth about `limit` records. False: nothing is left to do."""
        match self._phase:
            case _Phase.GATHER:
                return self._gather(limit)
            case _Phase.WRITE:
                self._write(max(1, limit // RECORDS_PER_LEAF))
            case _Phase.FINISH:
                self._finish()
            case _Phase.SETTLE:
                self._settle(limit)
            case _Phase.TRIM:
                if not self._medium.trim(limit):
                    self._phase = _Phase.GATHER
        return True

    def _gather(self, limit: int) -> bool:
        gathered = self._round
        while limit > 0:
            if gathered.row is None and not self._begin_row():
                return self._phase is not _Phase.GATHER
            row = gathered.row
            assert row is not None
            before = gathered.offset
            gathered.offset = apply(row.records, self._forest, before, min(limit, APPLY_RECORDS))
            limit -= 1 + (gathered.offset - before) // RECORD_BYTES
            if gathered.offset == len(row.records):
                self._end_row(row)
            if len(self._forest.dirty) >= DIRTY_LEAVES_MAX:
                self._phase = _Phase.WRITE
                break
        return True

    def _begin_row(self) -> bool:
        gathered = self._round
        full = gathered.records >= ROUND_RECORDS_MAX
        gathered.row = None if full else self._medium.next_row(gathered.reached)
        gathered.offset = 0
        if gathered.row is None and gathered.reached > self.folded:
            gathered.complete = True
            self._phase = _Phase.WRITE
        return gathered.row is not None

    def _end_row(self, row: LogRow) -> None:
        gathered = self._round
        gathered.reached = row.sequence
        gathered.records += len(row.records) // RECORD_BYTES
        gathered.batches += [(batch, row.sequence) for batch in array("Q", row.batches)]
        gathered.row = None

    def _write(self, count: int) -> None:
        gathered = self._round
        gathered.leaves += self._forest.release_leaves()
        if gathered.leaves:
            self._medium.save_leaves(gathered.leaves[-count:])
            del gathered.leaves[-count:]
        if not gathered.leaves:
            self._phase = _Phase.FINISH if gathered.complete else _Phase.GATHER
            if not gathered.complete:
                self._shrink()

    def _finish(self) -> None:
        forest, gathered = self._forest, self._round
        self._medium.save_round(
            Round(
                folded=gathered.reached,
                records=gathered.records,
                clock=forest.clock,
                next_node=forest.next_node,
                nodes=list(forest.dirty.values()),
                trees={key: forest.trees.get(key) for key in forest.dirty_trees},
                counts=dict(forest.counts),
                changes=[change for change in forest.queue if change.id >= self._changes_saved],
                batches=gathered.batches,
                forgotten=forest.forgotten,
                requests=forest.requests,
            )
        )
        self._changes_saved = forest.next_change
        forest.dirty.clear()
        forest.dirty_trees.clear()
        forest.counts.clear()
        forest.requests, forest.forgotten = {}, set()
        self.folded = gathered.reached
        self._round = _Gathered(self.folded)
        self._shrink()
        self._phase = _Phase.SETTLE

    def _shrink(self) -> None:
        cache, dirty = self._forest.cache, self._forest.dirty
        if len(cache) > CACHED_NODES_MAX:
            cache.clear()
            cache.update(dirty)

    def _settle(self, limit: int) -> None:
        if self._settled is None:
            if not self._forest.queue:
                self._phase = _Phase.TRIM
                return
            self._settled = self._forest.settle(limit)
        self._medium.save_settled(self._settled)
        self._settled = None
        self._changes_saved = self._forest.next_change
