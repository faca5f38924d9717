"""How a tree node is stored: an encoding, a checksum, a body.

Bodies are stored as they are, or deflated where nearly all of a body is one value (sparse tables, fresh containers).
The checksum covers the stored bytes, because the file format itself does not check what a page holds.
"""

from __future__ import annotations

import zlib
from array import array
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from controller.store.tree import FANOUT, LEAF_BYTES, Node, TreeKind
from mapping.entry import ZERO_ENTRY

_EMPTY: Final = {TreeKind.ENTRIES: ZERO_ENTRY.to_bytes(8, "little"), TreeKind.REFERENCES: bytes(8)}
_EMPTY_ENOUGH: Final = LEAF_BYTES // 8 * 15 // 16
"""Deflating a fuller leaf costs more time than the bytes are worth."""


class NodeDamaged(ValueError):
    """Stored bytes that are no node."""


class Encoding(IntEnum):
    """How the body is stored."""

    PLAIN = 0
    DEFLATED = 1


@dataclass(frozen=True, slots=True)
class StoredNode:
    """One row of the node table."""

    id: int
    kind: int
    level: int
    birth: int
    encoding: int
    check: int
    body: bytes


def _worth_deflating(node: Node, data: bytes) -> bool:
    if node.level or node.kind is TreeKind.STATES:
        return True
    return data.count(_EMPTY[node.kind]) >= _EMPTY_ENOUGH or data == data[:8] * len(node.body)


def encode_node(node: Node) -> StoredNode:
    """A row for the node."""
    data = node.body.tobytes()
    encoding = Encoding.PLAIN
    if _worth_deflating(node, data):
        encoding, data = Encoding.DEFLATED, zlib.compress(data, 1)
    return StoredNode(node.id, node.kind, node.level, node.birth, encoding, zlib.crc32(data), data)


def decode_node(stored: StoredNode) -> Node:
    """The node of a row. Raises NodeDamaged if it is not what was written."""
    if zlib.crc32(stored.body) != stored.check:
        raise NodeDamaged(f"the checksum of node {stored.id} does not match")
    data = stored.body
    try:
        if Encoding(stored.encoding) is Encoding.DEFLATED:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, LEAF_BYTES + 1)
        kind = TreeKind(stored.kind)
    except (ValueError, zlib.error) as error:
        raise NodeDamaged(f"node {stored.id} cannot be read: {error}") from error
    if len(data) != (FANOUT * 8 if stored.level else LEAF_BYTES):
        raise NodeDamaged(f"node {stored.id} has {len(data)} bytes")
    body = array("B" if kind is TreeKind.STATES and not stored.level else "Q")
    body.frombytes(data)
    return Node(stored.id, kind, stored.level, stored.birth, body)
