"""The truth: containers, virtual disks and their tables, as the store has them (design: a cache, never a source).

The map itself is the store's own `MapImage`, so that memory and store cannot mean different things. Only what is
committed is written into it; what is about to change is marked in `VDisk.changing`.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from controller.store.image import CHUNK_SHIFT, Chunks, MapImage
from controller.store.records import SegmentState
from mapping.entry import ERROR, FLAGS, ZERO_ENTRY, has_location, low_words, slot_of

if TYPE_CHECKING:
    from controller.core.agents import AgentTable, Presentation
    from controller.core.changes import Change

_CHUNK: Final = 1 << CHUNK_SHIFT
_MASK: Final = _CHUNK - 1
_ALL_ZERO: Final = array("Q", [ZERO_ENTRY]) * _CHUNK
LOCATED: Final = bytes(flags & 0b1101 == 1 for flags in range(16)) * 16
"""For bytes.translate: 1 for an entry's low byte that has a location."""


class VDisk:
    """A virtual disk. `slots` is None if it may use every container of its segment size. `failed_slots`: the cluster's;
    what lies there is ERROR as long as they are in it (failed_containers.py).
    """

    __slots__ = (
        "block_size",
        "changing",
        "chunks",
        "deleting",
        "failed_slots",
        "name",
        "number",
        "presentations",
        "reached",
        "reaching",
        "searched",
        "segment_count",
        "segment_size",
        "slots",
        "tables",
        "uuid",
    )

    def __init__(self, number: int, record: dict[str, Any], chunks: Chunks) -> None:
        self.number = number
        self.name: str = record["name"]
        self.uuid = UUID(record["uuid"])
        self.segment_size: int = record["segment_size"]
        self.segment_count: int = record["segment_count"]
        self.block_size: int = record["block_size"]
        self.slots: frozenset[int] | None = None if record["slots"] is None else frozenset(record["slots"])
        self.deleting: bool = record["deleting"]
        self.chunks = chunks
        self.failed_slots: set[int] = set()
        self.changing: dict[int, Change] = {}
        self.tables: dict[int, AgentTable] = {}
        self.presentations: dict[int, Presentation] = {}
        self.reached: set[int] = set()
        self.reaching: set[int] = set()
        self.searched = False

    def record(self) -> dict[str, Any]:
        """What is persisted of it."""
        return {
            "name": self.name,
            "uuid": str(self.uuid),
            "segment_size": self.segment_size,
            "segment_count": self.segment_count,
            "block_size": self.block_size,
            "slots": None if self.slots is None else sorted(self.slots),
            "deleting": self.deleting,
        }

    @property
    def subnqn(self) -> str:
        """One identity at all agents."""
        return f"nqn.2026-11.io.segmap:vdisk:{self.uuid}"

    @property
    def reached_slots(self) -> set[int]:
        """The containers that have, or had, segments of it, with those reserved for it. Searched for once.

        Every table of it heeds them: its flushes reach them or fail. Before it gets its first segments in another, its
        other tables have to heed that, too; until they do it is in `reaching`."""
        if not self.searched:
            self.searched = True
            found = set[int]().union(*map(low_words, self.chunks.values()))
            self.reached.update(slot_of(word) for word in found if has_location(word))
        return self.reached

    @property
    def sharing(self) -> list[AgentTable]:
        """The tables that may hold entries."""
        return [table for table in self.tables.values() if table.present]

    def recorded(self, segment: int) -> int:
        """What the store has of one segment."""
        chunk = self.chunks.get(segment >> CHUNK_SHIFT)
        return ZERO_ENTRY if chunk is None else chunk[segment & _MASK]

    def entry(self, segment: int) -> int:
        """The truth of one segment."""
        entry = self.recorded(segment)
        return self._as_failed(entry) if self.failed_slots else entry

    def told(self, entries: list[int]) -> array[int]:
        """What agents are told that these entries, which the store has, are now."""
        return array("Q", map(self._as_failed, entries) if self.failed_slots else entries)

    def _as_failed(self, entry: int) -> int:
        return entry | ERROR if has_location(entry) and slot_of(entry) in self.failed_slots else entry

    def entries(self, start: int, count: int) -> array[int]:
        """The truth of a range; a copy."""
        found = self._recorded(start, count)
        return array("Q", map(self._as_failed, found)) if self.failed_slots else found

    def _recorded(self, start: int, count: int) -> array[int]:
        result = array("Q")
        while count:
            offset = start & _MASK
            length = min(count, _CHUNK - offset)
            result += self.chunks.get(start >> CHUNK_SHIFT, _ALL_ZERO)[offset : offset + length]
            start += length
            count -= length
        return result

    def allocated(self) -> int:
        """Segments with a location."""
        return sum(chunk.tobytes()[::8].translate(LOCATED).count(1) for chunk in self.chunks.values())


class Container:
    """Physical storage, exported by an agent. READY once its label has been written and verified.

    `generation`: that of the store which wrote the label last. `coming`: of its record, what is on its way to the
    store: whatever is recorded meanwhile must not undo it.
    """

    __slots__ = (
        "block_size",
        "coming",
        "contents",
        "export",
        "exporter",
        "failed",
        "generation",
        "name",
        "nsid",
        "ready",
        "segment_count",
        "segment_size",
        "slot",
        "subnqn",
        "traddr",
        "trsvcid",
        "trtype",
        "uuid",
        "volatile_cache",
    )

    def __init__(self, slot: int, record: dict[str, Any]) -> None:
        self.slot = slot
        self.name: str = record["name"]
        self.uuid = UUID(record["uuid"])
        self.exporter: int = record["exporter"]
        self.export: str = record["export"]
        self.subnqn: str = record["subnqn"]
        self.nsid: int = record["nsid"]
        self.trtype: str = record["trtype"]
        self.traddr: str = record["traddr"]
        self.trsvcid: str = record["trsvcid"]
        self.segment_size: int = record["segment_size"]
        self.segment_count: int = record["segment_count"]
        self.block_size: int = record["block_size"]
        self.contents: str = record["contents"]
        self.volatile_cache: bool = record["volatile_cache"]
        self.ready: bool = record["ready"]
        self.generation: int = record.get("generation", 1)
        self.failed: bool = record.get("failed", False)
        self.coming: dict[str, Any] = {}

    def record(self) -> dict[str, Any]:
        """What is persisted of it."""
        record = {
            "name": self.name,
            "uuid": str(self.uuid),
            "exporter": self.exporter,
            "export": self.export,
            "subnqn": self.subnqn,
            "nsid": self.nsid,
            "trtype": self.trtype,
            "traddr": self.traddr,
            "trsvcid": self.trsvcid,
            "segment_size": self.segment_size,
            "segment_count": self.segment_count,
            "block_size": self.block_size,
            "contents": self.contents,
            "volatile_cache": self.volatile_cache,
            "ready": self.ready,
            "generation": self.generation,
            "failed": self.failed,
            **self.coming,
        }
        if not record["failed"]:
            del record["failed"]
        return record

    def suits(self, segment_size: int, block_size: int) -> bool:
        """Whether a vdisk cut like this can lie in it: data planes refuse any other."""
        return self.segment_size == segment_size and block_size % self.block_size == 0


def segment_states(image: MapImage, container: Container) -> bytearray:
    """The container's states in the image, as many as it has segments: a store loads them in chunks, to their ends."""
    states = image.segments.setdefault(container.slot, bytearray())
    if len(states) < container.segment_count:
        states.extend(bytes([SegmentState.FREE]) * (container.segment_count - len(states)))
    del states[container.segment_count :]
    return states


def location_runs(entries: array[int]) -> list[tuple[int, int, int]]:
    """(slot, start, count) of the locations in entries, neighbours joined."""
    located = sorted(entry & ~FLAGS for entry in entries if entry & 0b1101 == 1)
    runs: list[tuple[int, int, int]] = []
    for entry in sorted(located, key=lambda entry: (entry >> 4 & 4095, entry >> 16)):
        slot, segment = entry >> 4 & 4095, entry >> 16
        if runs and runs[-1][0] == slot and runs[-1][1] + runs[-1][2] == segment:
            runs[-1] = (slot, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((slot, segment, 1))
    return runs


def runs_of(segments: list[int]) -> list[tuple[int, int]]:
    """(start, count) of the contiguous runs in a list of segments."""
    runs: list[tuple[int, int]] = []
    for segment in sorted(segments):
        if runs and runs[-1][0] + runs[-1][1] == segment:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((segment, 1))
    return runs
