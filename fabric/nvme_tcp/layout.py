"""Fixed-size little-endian structures from tables of (offset, format) by field name: one table reads and writes.

Invariant: fields lie inside the structure and do not overlap; both are checked when the table is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any


class Layout:
    """`size` bytes with named fields; bytes that no field covers are zero."""

    __slots__ = ("fields", "size")

    def __init__(self, size: int, fields: Mapping[str, tuple[int, str]]) -> None:
        self.size = size
        self.fields = {name: (offset, Struct("<" + code)) for name, (offset, code) in fields.items()}
        end = 0
        for name, (offset, form) in sorted(self.fields.items(), key=lambda item: item[1][0]):
            if offset < end or offset + form.size > size:
                raise ValueError(f"field {name} at {offset} overlaps or leaves the structure")
            end = offset + form.size

    def build(self, **values: int | bytes) -> bytes:
        """The structure; fields not given are zero. Text fields are bytes and padded with zeros."""
        data = bytearray(self.size)
        for name, value in values.items():
            offset, form = self.fields[name]
            form.pack_into(data, offset, value)
        return bytes(data)

    def parse(self, data: bytes | bytearray | memoryview) -> dict[str, Any]:
        """All fields by name. Raises ValueError if `data` is too short."""
        if len(data) < self.size:
            raise ValueError(f"{len(data)} bytes, {self.size} needed")
        return {name: form.unpack_from(data, offset)[0] for name, (offset, form) in self.fields.items()}
