"""The label in segment 0 of every container: who the container is (design: containers are who they say).

4096 bytes, little-endian: magic, version, store generation, segment size and count, cluster and container UUID, CRC.
The rest is zero. It is verified at every attach, before an entry may name the container.
"""

import struct
from dataclasses import dataclass
from typing import Final
from zlib import crc32

MAGIC: Final = b"SEGMAP-CONTAINER"
VERSION: Final = 1
LABEL_BYTES: Final = 4096
_LAYOUT: Final = struct.Struct("<16sIIQQQ16s16s")


class LabelError(ValueError):
    """The bytes are no label, or not the one that was expected; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Label:
    """Identity of a container. `generation`: that of the store which wrote it; sizes in bytes and segments."""

    cluster: bytes
    container: bytes
    generation: int
    segment_size: int
    segment_count: int

    def encode(self) -> bytes:
        """4096 bytes, checksum at the end of the fixed part."""
        body = _LAYOUT.pack(
            MAGIC, VERSION, 0, self.generation, self.segment_size, self.segment_count, self.cluster, self.container
        )
        return (body + struct.pack("<I", crc32(body))).ljust(LABEL_BYTES, b"\0")

    def verify(self, found: "Label") -> None:
        """Raise LabelError unless `found` is this container of this cluster, cut the same way, and not newer."""
        for name in ("cluster", "container", "segment_size", "segment_count"):
            mine, theirs = getattr(self, name), getattr(found, name)
            if mine != theirs:
                raise LabelError(f"container label: {name} is {_show(theirs)}, expected {_show(mine)}")
        if found.generation > self.generation:
            raise LabelError(
                f"container label: written by store generation {found.generation}, this store is {self.generation}"
            )


def _show(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def decode(data: bytes) -> Label:
    """The label in `data` (at least 4096 bytes). Raises LabelError if there is none or it is damaged."""
    if len(data) < LABEL_BYTES:
        raise LabelError(f"container label: {len(data)} bytes, {LABEL_BYTES} needed")
    magic, version, _, generation, size, count, cluster, container = _LAYOUT.unpack_from(data)
    if magic != MAGIC:
        raise LabelError("container label: none here")
    if struct.unpack_from("<I", data, _LAYOUT.size)[0] != crc32(data[: _LAYOUT.size]):
        raise LabelError("container label: checksum differs, the label is damaged")
    if version != VERSION:
        raise LabelError(f"container label: version {version}, this program knows {VERSION}")
    return Label(cluster, container, generation, size, count)
