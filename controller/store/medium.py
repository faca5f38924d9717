"""What folding reads from and writes to in the SQLite store.

Folding needs no flush of its own: its transactions go into the same write-ahead log as the commits, in order, and the
next commit's flush covers them. Losing them in a power failure means that recovery replays a little more.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import apsw

from controller.store.batches import row_check
from controller.store.folding import LogRow, Round
from controller.store.interface import AUDIT_KEPT, BATCH_IDS_KEPT, REQUESTS_KEPT, StoreCorrupt
from controller.store.nodes import StoredNode, decode_node, encode_node
from controller.store.records import RECORD_BYTES
from controller.store.tree import CountChange, Node, Settled, Tree, TreeKey, TreeKind

CHECKPOINT_PAGES: Final = 4096
"""Pages in the write-ahead log before it is copied into the database file (16 MiB)."""
RECORDS_PER_ROW: Final = 64
"""What dropping a log row costs, in records."""


class Window:
    """The newest rows of a table that keeps at least `kept` items in rows of several."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._rows: deque[tuple[int, int]] = deque()
        self._total = 0

    def add(self, sequence: int, count: int) -> None:
        """A row with `count` items."""
        self._rows.append((sequence, count))
        self._total += count

    def excess(self) -> int:
        """The sequence up to which rows may go (0: none); forgets these."""
        through = 0
        while self._rows and self._total - self._rows[0][1] >= self._kept:
            through, count = self._rows.popleft()
            self._total -= count
        return through


def _key_bytes(incarnation: int) -> bytes:
    return incarnation.to_bytes(8, "big")


class SqliteMedium:
    """Folding's view of the connection. Raises apsw.Error, NodeDamaged or StoreCorrupt; changes nothing then."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._folded = int(self._execute("SELECT value FROM meta WHERE key = 'folded'").get)
        self.backlog = 0
        self.wal_pages = 0
        self._batches = Window(BATCH_IDS_KEPT)
        self._requests: dict[int, Window] = {}
        self._load_windows()
        connection.set_wal_hook(self._wal_grew)

    def _load_windows(self) -> None:
        query = "SELECT ifnull(sum(length(records)), 0) FROM log WHERE sequence > ?"
        self.backlog = self._execute(query, (self._folded,)).get // RECORD_BYTES
        for sequence, length in self._execute("SELECT last_sequence, length(pairs) FROM batches ORDER BY 1"):
            self._batches.add(sequence, length // 16)
        query = "SELECT incarnation, last_sequence, length(ids) FROM requests ORDER BY 2"
        for incarnation, sequence, length in self._execute(query):
            self._request_window(int.from_bytes(incarnation, "big")).add(sequence, length // 8)

    def _wal_grew(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self.wal_pages = pages
        return apsw.SQLITE_OK

    @contextmanager
    def _unflushed(self) -> Iterator[None]:
        """A transaction that becomes durable with the next commit, or not at all."""
        self._execute("PRAGMA synchronous = NORMAL")
        try:
            self._execute("BEGIN IMMEDIATE")
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._execute("ROLLBACK")
                raise
        finally:
            self._execute("PRAGMA synchronous = FULL")

    # -- reading -------------------------------------------------------------------------------------------------

    def next_row(self, after: int) -> LogRow | None:
        """The first log row after a sequence."""
        query = 'SELECT sequence, batches, records, "check" FROM log WHERE sequence > ? ORDER BY sequence LIMIT 1'
        row = self._execute(query, (after,)).fetchone()
        if row is None:
            return None
        sequence, batches, records, check = row
        if sequence != after + 1 or row_check(sequence, batches, records) != check:
            raise StoreCorrupt(f"log row {sequence} after {after} is damaged, or a row is missing")
        return LogRow(sequence, batches, records)

    def read_node(self, node_id: int) -> Node:
        """A tree node."""
        row = self._execute("SELECT * FROM nodes WHERE id = ?", (node_id,)).fetchone()
        if row is None:
            raise StoreCorrupt(f"tree node {node_id} is missing")
        return decode_node(StoredNode(*row))

    def read_references(self, node_id: int) -> int:
        """How many parents a node has; rows exist only where it is not one."""
        row = self._execute("SELECT count FROM node_references WHERE id = ?", (node_id,)).fetchone()
        return row[0] if row else 1

    def read_trees(self) -> dict[TreeKey, Tree]:
        """All roots."""
        rows = self._execute("SELECT kind, key, root, level, shared_at FROM trees")
        return {(TreeKind(kind), key): Tree(root, level, shared) for kind, key, root, level, shared in rows}

    def read_queue(self) -> deque[CountChange]:
        """Count changes that are not worked off."""
        rows = self._execute("SELECT id, delta, nodes FROM count_changes ORDER BY id")
        return deque(CountChange(number, delta, array("Q", nodes)) for number, delta, nodes in rows)

    # -- writing -------------------------------------------------------------------------------------------------

    def save_leaves(self, leaves: list[Node]) -> None:
        """Leaves, ahead of their round."""
        with self._unflushed():
            self._put_nodes(leaves)

    def _put_nodes(self, nodes: list[Node]) -> None:
        rows = []
        for node in nodes:
            row = encode_node(node)
            rows.append((row.id, int(row.kind), row.level, row.birth, int(row.encoding), row.check, row.body))
        self._connection.executemany("INSERT OR REPLACE INTO nodes VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def save_round(self, done: Round) -> None:
        """The end of a round."""
        with self._unflushed():
            self._put_nodes(done.nodes)
            for (kind, key), tree in done.trees.items():
                self._put_tree(int(kind), key, tree)
            self._put_counts(done.counts)
            self._put_changes(done.changes)
            self._put_requests(done)
            if done.batches:
                pairs = array("Q", [number for pair in done.batches for number in pair]).tobytes()
                self._execute("INSERT INTO batches VALUES (?, ?)", (done.folded, pairs))
            meta = (("folded", done.folded), ("clock", done.clock), ("next_node", done.next_node))
            self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta)
        self._folded = done.folded
        self.backlog -= done.records
        for incarnation in done.forgotten:
            self._requests.pop(incarnation, None)
        for incarnation, ids in done.requests.items():
            self._request_window(incarnation).add(done.folded, len(ids))
        if done.batches:
            self._batches.add(done.folded, len(done.batches))

    def _request_window(self, incarnation: int) -> Window:
        return self._requests.setdefault(incarnation, Window(REQUESTS_KEPT))

    def _put_tree(self, kind: int, key: int, tree: Tree | None) -> None:
        if tree is None:
            self._execute("DELETE FROM trees WHERE kind = ? AND key = ?", (kind, key))
        else:
            row = (kind, key, tree.root, tree.level, tree.shared_at)
            self._execute("INSERT OR REPLACE INTO trees VALUES (?, ?, ?, ?, ?)", row)

    def _put_counts(self, counts: dict[int, int]) -> None:
        ones = [(node,) for node, count in counts.items() if count <= 1]
        others = [(node, count) for node, count in counts.items() if count > 1]
        self._connection.executemany("DELETE FROM node_references WHERE id = ?", ones)
        self._connection.executemany("INSERT OR REPLACE INTO node_references VALUES (?, ?)", others)

    def _put_changes(self, changes: list[CountChange]) -> None:
        rows = [(change.id, change.delta, change.nodes.tobytes()) for change in changes]
        self._connection.executemany("INSERT INTO count_changes VALUES (?, ?, ?)", rows)

    def _put_requests(self, done: Round) -> None:
        forgotten = [(_key_bytes(incarnation),) for incarnation in done.forgotten]
        self._connection.executemany("DELETE FROM requests WHERE incarnation = ?", forgotten)
        rows = [(_key_bytes(incarnation), done.folded, ids.tobytes()) for incarnation, ids in done.requests.items()]
        self._connection.executemany("INSERT INTO requests VALUES (?, ?, ?)", rows)

    def save_settled(self, done: Settled) -> None:
        """Counts that have followed."""
        with self._unflushed():
            self._put_counts(done.counts)
            self._connection.executemany("DELETE FROM nodes WHERE id = ?", [(node,) for node in done.freed])
            self._put_changes(done.added)
            self._connection.executemany("DELETE FROM count_changes WHERE id = ?", [(n,) for n in done.consumed])

    def trim(self, limit: int) -> bool:
        """Drop folded rows and what is over a limit; copy the write-ahead log back when it is long."""
        if self.wal_pages >= CHECKPOINT_PAGES:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self.wal_pages = 0
            return True
        first = self._execute("SELECT min(sequence) FROM log").get
        if first is not None and first <= self._folded:
            last = min(self._folded, first + limit // RECORDS_PER_ROW)
            with self._unflushed():
                self._execute("DELETE FROM log WHERE sequence <= ?", (last,))
            return True
        with self._unflushed():
            self._trim_windows()
        return False

    def _trim_windows(self) -> None:
        self._execute("DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?", (AUDIT_KEPT,))
        self._execute("DELETE FROM batches WHERE last_sequence <= ?", (self._batches.excess(),))
        for incarnation, window in self._requests.items():
            if through := window.excess():
                query = "DELETE FROM requests WHERE incarnation = ? AND last_sequence <= ?"
                self._execute(query, (_key_bytes(incarnation), through))
