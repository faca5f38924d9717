"""Copy-on-write trees of chunks: the durable form of tables and container states, without any I/O.

A leaf holds 4096 entries (or 32768 segment states, or 4096 counts), an inner node 512 children; child 0 is "nothing
here", which reads as ZERO (FREE, 0), so a table of 2^30 entries costs nothing until used. Trees grow upwards as needed.

Sharing a tree is O(1): both trees point at the same root and remember the `clock` of that moment. A tree owns the nodes
that were born after its newest share and changes those in place; older nodes are copied on the way down. So no count is
needed to write. Counts are needed only to free, and they follow lazily: every change of a count goes into an ordered
queue, `settle` works it off. An increment always precedes the decrement that could free the same node, therefore
nothing is freed before the counts have followed.

Nodes with birth 0 are frozen: several parents within one tree may point at them (a run of a million ERROR entries is
three nodes), so they are always copied before a change.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

from controller.store.image import CHUNK_ENTRIES, MapImage, consecutive
from controller.store.records import SegmentState
from mapping.entry import ERROR, MAPPED, ZERO, ZERO_ENTRY, has_location, segment_of, slot_of

FANOUT_SHIFT: Final = 9
FANOUT: Final = 1 << FANOUT_SHIFT
LEAF_BYTES: Final = CHUNK_ENTRIES * 8
_LEAF_SHIFT: Final = (12, 15, 12)
_TYPECODE: Final = ("Q", "B", "Q")
_DEFAULT: Final = (ZERO_ENTRY, int(SegmentState.FREE), 0)
_STATE_BITS: Final = MAPPED | ZERO | ERROR
_STATES_SHIFT: Final = 16 + _LEAF_SHIFT[1]
_STATES_MASK: Final = (1 << _LEAF_SHIFT[1]) - 1
_MAPPED_STATE: Final = int(SegmentState.MAPPED)


class TreeKind(IntEnum):
    """What the leaves hold; the key of a tree is (kind, vdisk number or slot)."""

    ENTRIES = 0
    STATES = 1
    REFERENCES = 2


TreeKey = tuple[TreeKind, int]
_ENTRIES: Final = TreeKind.ENTRIES
_STATES: Final = TreeKind.STATES


@dataclass(slots=True, eq=False)
class Node:
    """`level` 0 is a leaf. `body`: entries, states or counts of a leaf, child ids of an inner node."""

    id: int
    kind: TreeKind
    level: int
    birth: int
    body: array[int]

    def children(self) -> array[int]:
        """Ids of the children there are; none for a leaf."""
        return array("Q", [child for child in self.body if child]) if self.level else array("Q")


@dataclass(slots=True, eq=False)
class Tree:
    """`root` 0: empty. `leaves`: the leaves that may be changed in place right now."""

    root: int = 0
    level: int = 0
    shared_at: int = 0
    leaves: dict[int, Node] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class CountChange:
    """Queued: the reference count of each node changes by `delta`."""

    id: int
    delta: int
    nodes: array[int]


class NodeSource(Protocol):
    """Where nodes come from that are not in memory."""

    def read_node(self, node_id: int) -> Node: ...
    def read_references(self, node_id: int) -> int: ...


def blank(kind: TreeKind, level: int, value: int | None = None) -> array[int]:
    """The body of a new node: all default, or all `value`."""
    if level:
        return array("Q", bytes(FANOUT * 8))
    return array(_TYPECODE[kind], [_DEFAULT[kind] if value is None else value]) * (1 << _LEAF_SHIFT[kind])


class Forest:
    """All trees. A target of map records; what has changed is in `dirty`, `dirty_trees`, `counts` and `queue`."""

    def __init__(self, source: NodeSource, clock: int = 1, next_node: int = 1) -> None:
        self.trees: dict[TreeKey, Tree] = {}
        self.clock = clock
        self.next_node = next_node
        self.queue: deque[CountChange] = deque()
        self.next_change = 1
        self.cache: dict[int, Node] = {}
        self.dirty: dict[int, Node] = {}
        self.dirty_trees: set[TreeKey] = set()
        self.counts: dict[int, int] = {}
        self._source = source

    # -- nodes ---------------------------------------------------------------------------------------------------

    def node(self, node_id: int) -> Node:
        """From memory, else from the source."""
        node = self.cache.get(node_id)
        if node is None:
            node = self.cache[node_id] = self._source.read_node(node_id)
        return node

    def stored_count(self, node_id: int) -> int:
        """How many parents the node has, as far as the counts have followed."""
        count = self.counts.get(node_id)
        return self._source.read_references(node_id) if count is None else count

    def _new(self, kind: TreeKind, level: int, body: array[int], birth: int) -> Node:
        node = Node(self.next_node, kind, level, birth, body)
        self.next_node += 1
        self.cache[node.id] = self.dirty[node.id] = node
        return node

    def _count_later(self, delta: int, nodes: Iterable[int]) -> None:
        self.queue.append(CountChange(self.next_change, delta, array("Q", nodes)))
        self.next_change += 1

    def _own(self, tree: Tree, node_id: int, kind: TreeKind, level: int) -> Node:
        """The node, as one that this tree may change in place: itself, a copy, or a blank one."""
        if not node_id:
            return self._new(kind, level, blank(kind, level), self.clock)
        node = self.node(node_id)
        if node.birth > tree.shared_at:
            self.dirty[node.id] = node
            return node
        if level:
            self._count_later(1, node.children())
        self._count_later(-1, (node_id,))
        return self._new(kind, level, node.body[:], self.clock)

    def _tree(self, key: TreeKey) -> Tree:
        self.dirty_trees.add(key)
        tree = self.trees.get(key)
        if tree is None:
            tree = self.trees[key] = Tree()
        return tree

    def _grow(self, tree: Tree, kind: TreeKind, last: int) -> None:
        """Put roots on top until index `last` is inside."""
        while last >> (_LEAF_SHIFT[kind] + FANOUT_SHIFT * tree.level):
            tree.level += 1
            if tree.root:
                top = self._new(kind, tree.level, blank(kind, tree.level), self.clock)
                top.body[0] = tree.root
                tree.root = top.id

    def _leaf(self, key: TreeKey, number: int) -> Node:
        """Leaf `number` of the tree, owned and dirty, with every node on the way to it."""
        tree = self._tree(key)
        leaf = tree.leaves.get(number)
        if leaf is not None:
            return leaf
        kind = key[0]
        self._grow(tree, kind, number << _LEAF_SHIFT[kind])
        node = self._own(tree, tree.root, kind, tree.level)
        tree.root = node.id
        for level in range(tree.level - 1, -1, -1):
            child = number >> FANOUT_SHIFT * level & FANOUT - 1
            below = self._own(tree, node.body[child], kind, level)
            node.body[child] = below.id
            node = below
        tree.leaves[number] = node
        return node

    # -- records -------------------------------------------------------------------------------------------------

    def set_entry(self, vdisk: int, segment: int, entry: int) -> None:
        """One entry; its location becomes MAPPED."""
        try:
            leaf = self.trees[_ENTRIES, vdisk].leaves[segment >> 12]
        except KeyError:
            leaf = self._leaf((_ENTRIES, vdisk), segment >> 12)
        leaf.body[segment & 4095] = entry
        if entry & _STATE_BITS == MAPPED:
            self._mark_mapped(entry)

    def _mark_mapped(self, entry: int) -> None:
        try:
            leaf = self.trees[_STATES, entry >> 4 & 0xFFF].leaves[entry >> _STATES_SHIFT]
        except KeyError:
            leaf = self._leaf((_STATES, entry >> 4 & 0xFFF), entry >> _STATES_SHIFT)
        leaf.body[entry >> 16 & _STATES_MASK] = _MAPPED_STATE

    def put_entries(self, vdisk: int, start: int, entries: array[int]) -> None:
        """Consecutive entries; their locations become MAPPED."""
        self._put((TreeKind.ENTRIES, vdisk), start, entries)
        if consecutive(entries):
            self.fill_segments(slot_of(entries[0]), segment_of(entries[0]), len(entries), _MAPPED_STATE)
            return
        for entry in entries:
            if entry & _STATE_BITS == MAPPED:
                self._mark_mapped(entry)

    def _put(self, key: TreeKey, start: int, values: array[int]) -> None:
        shift = _LEAF_SHIFT[key[0]]
        done, count = 0, len(values)
        while done < count:
            offset = (start + done) & (1 << shift) - 1
            length = min(count - done, (1 << shift) - offset)
            self._leaf(key, (start + done) >> shift).body[offset : offset + length] = values[done : done + length]
            done += length

    def fill_entries(self, vdisk: int, start: int, count: int, entry: int) -> None:
        """The same entry `count` times; O(height) nodes, however many entries."""
        if has_location(entry):
            self._mark_mapped(entry)
        self._fill((TreeKind.ENTRIES, vdisk), start, count, entry)

    def fill_segments(self, slot: int, start: int, count: int, state: int) -> None:
        """`count` segments of a container get `state`."""
        self._fill((TreeKind.STATES, slot), start, count, state)

    def fill_references(self, slot: int, start: int, count: int, references: int) -> None:
        """`count` segments of a container get an absolute reference count."""
        self._fill((TreeKind.REFERENCES, slot), start, count, references)

    def _fill(self, key: TreeKey, start: int, count: int, value: int) -> None:
        kind, shift = key[0], _LEAF_SHIFT[key[0]]
        known = self.trees.get(key)
        end = start + count
        if value == _DEFAULT[kind]:
            end = min(end, 1 << shift + FANOUT_SHIFT * known.level) if known else 0
            if start >= end:
                return
        number, offset = start >> shift, start & (1 << shift) - 1
        if offset + count < 1 << shift and (value != _DEFAULT[kind] or (known and number in known.leaves)):
            body = self._leaf(key, number).body
            body[offset : offset + count] = array(body.typecode, [value]) * count
            return
        tree = self._tree(key)
        self._grow(tree, kind, end - 1)
        if count >= 1 << shift:
            tree.leaves.clear()
        tree.root = self._fill_below(tree, kind, tree.level, tree.root, start, end, value)

    def _fill_below(
        self, tree: Tree, kind: TreeKind, level: int, node_id: int, start: int, end: int, value: int
    ) -> int:
        """Fill start..end, counted from the subtree's own begin; returns the subtree's new root."""
        default = value == _DEFAULT[kind]
        if default and not node_id:
            return 0
        if start == 0 and end == 1 << _LEAF_SHIFT[kind] + FANOUT_SHIFT * level:
            if node_id:
                self._count_later(-1, (node_id,))
            return 0 if default else self._uniform(kind, level, value).id
        node = self._own(tree, node_id, kind, level)
        if level == 0:
            node.body[start:end] = array(node.body.typecode, [value]) * (end - start)
        else:
            self._fill_children(tree, node, start, end, value)
        return node.id

    def _fill_children(self, tree: Tree, node: Node, start: int, end: int, value: int) -> None:
        span = 1 << _LEAF_SHIFT[node.kind] + FANOUT_SHIFT * (node.level - 1)
        uniform: Node | None = None
        for child in range(start // span, -(-end // span)):
            first, stop = max(start - child * span, 0), min(end - child * span, span)
            if uniform is not None and stop - first == span:
                if node.body[child]:
                    self._count_later(-1, (node.body[child],))
                self.counts[uniform.id] = self.counts.get(uniform.id, 1) + 1
                node.body[child] = uniform.id
                continue
            below = self._fill_below(tree, node.kind, node.level - 1, node.body[child], first, stop, value)
            node.body[child] = below
            if below and stop - first == span:
                uniform = self.node(below)

    def _uniform(self, kind: TreeKind, level: int, value: int) -> Node:
        """A frozen subtree that is `value` everywhere: one node per level."""
        node = self._new(kind, 0, blank(kind, 0, value), 0)
        for above in range(1, level + 1):
            self.counts[node.id] = FANOUT
            node = self._new(kind, above, array("Q", [node.id]) * FANOUT, 0)
        return node

    def share_table(self, source: int, destination: int) -> None:
        """`destination` points at the root of `source`: O(1)."""
        self.drop_table(destination)
        old = self.trees.get((TreeKind.ENTRIES, source))
        if old is None or not old.root:
            return
        new = self._tree((TreeKind.ENTRIES, destination))
        new.root, new.level = old.root, old.level
        old.shared_at = new.shared_at = self.clock
        self.clock += 1
        old.leaves.clear()
        self.dirty_trees.add((TreeKind.ENTRIES, source))
        self._count_later(1, (old.root,))

    def drop_table(self, vdisk: int) -> None:
        """Every entry is ZERO again; the nodes go when the counts say so."""
        self._drop((TreeKind.ENTRIES, vdisk))

    def drop_container(self, slot: int) -> None:
        """No state and no count of the slot is left."""
        self._drop((TreeKind.STATES, slot))
        self._drop((TreeKind.REFERENCES, slot))

    def _drop(self, key: TreeKey) -> None:
        tree = self.trees.pop(key, None)
        if tree is not None:
            self.dirty_trees.add(key)
            if tree.root:
                self._count_later(-1, (tree.root,))

    def request(self, incarnation: int, request_id: int) -> None:
        """Requests are not part of the trees."""

    def forget_incarnation(self, incarnation: int) -> None:
        """Requests are not part of the trees."""

    # -- counts --------------------------------------------------------------------------------------------------

    def settle(self, limit: int) -> Settled:
        """Work off about `limit` queued count changes. All nodes must be clean: the result has to be saved next."""
        done = Settled()
        while self.queue and limit > 0:
            change = self.queue.popleft()
            done.consumed.append(change.id)
            limit -= len(change.nodes)
            for node_id in change.nodes:
                self._count(done, node_id, change.delta)
        return done

    def _count(self, done: Settled, node_id: int, delta: int) -> None:
        count = done.counts.get(node_id)
        if count is None:
            count = self._source.read_references(node_id)
        done.counts[node_id] = count + delta
        if count + delta == 0:
            children = self.node(node_id).children()
            if children:
                self._count_later(-1, children)
                done.added.append(self.queue[-1])
            self.cache.pop(node_id, None)
            done.freed.append(node_id)

    def release_leaves(self) -> list[Node]:
        """The dirty leaves, to be written now; from here on they are clean and must be owned afresh."""
        leaves = [node for node in self.dirty.values() if node.level == 0]
        for node in leaves:
            del self.dirty[node.id]
        for tree in self.trees.values():
            tree.leaves.clear()
        return leaves

    # -- reading -------------------------------------------------------------------------------------------------

    def leaves(self, key: TreeKey) -> Iterator[tuple[int, Node]]:
        """Every leaf there is, with its number. Reads past the cache, so that it does not fill up."""
        tree = self.trees.get(key)
        if tree is None or not tree.root:
            return
        stack = [(tree.root, 0)]
        while stack:
            node_id, number = stack.pop()
            node = self.dirty.get(node_id) or self.cache.get(node_id) or self._source.read_node(node_id)
            if node.level == 0:
                yield number, node
                continue
            base = number << FANOUT_SHIFT
            stack += [(child, base + i) for i, child in enumerate(node.body) if child]


@dataclass(slots=True)
class Settled:
    """What `settle` did: to be saved in one transaction."""

    consumed: list[int] = field(default_factory=list)
    added: list[CountChange] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    freed: list[int] = field(default_factory=list)


def read_image(forest: Forest) -> MapImage:
    """All trees, flat. Leaves that several tables share stay one array in memory."""
    image = MapImage()
    frozen: dict[int, array[int]] = {}
    for kind, key in forest.trees:
        for number, leaf in forest.leaves((kind, key)):
            if kind == TreeKind.ENTRIES:
                tree = forest.trees[kind, key]
                owned = leaf.birth > tree.shared_at
                body = leaf.body[:] if owned else frozen.setdefault(leaf.id, leaf.body[:])
                image.adopt_chunk(key, number, body, owned)
            elif kind == TreeKind.STATES:
                _read_states(image, key, number, leaf.body)
            else:
                base = number << _LEAF_SHIFT[kind]
                counts = image.references.setdefault(key, {})
                counts.update((base + i, count) for i, count in enumerate(leaf.body) if count)
    return image


def _read_states(image: MapImage, slot: int, number: int, body: array[int]) -> None:
    states = image.segments.setdefault(slot, bytearray())
    base = number << _LEAF_SHIFT[TreeKind.STATES]
    if len(states) < base + len(body):
        states.extend(bytes(base + len(body) - len(states)))
    states[base : base + len(body)] = body.tobytes()


def audit_counts(forest: Forest) -> dict[int, tuple[int, int]]:
    """Nodes whose stored count plus what is queued differs from the pointers there are: {node: (is, should be)}.

    Nodes that no tree reaches any more still count for their children until the queue has freed them.
    """
    queued: dict[int, int] = {}
    for change in forest.queue:
        for node_id in change.nodes:
            queued[node_id] = queued.get(node_id, 0) + change.delta
    pointers = dict.fromkeys(queued, 0)
    for tree in forest.trees.values():
        if tree.root:
            pointers[tree.root] = pointers.get(tree.root, 0) + 1
    visit = list(pointers)
    while visit:
        for child in forest.node(visit.pop()).children():
            if child not in pointers:
                pointers[child] = 0
                visit.append(child)
            pointers[child] += 1
    expected = {node_id: forest.stored_count(node_id) + queued.get(node_id, 0) for node_id in pointers}
    return {node_id: (expected[node_id], should) for node_id, should in pointers.items() if expected[node_id] != should}
