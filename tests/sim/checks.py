"""The invariants of the design, held after each thing that happens in the simulated world.

Committed truth is followed batch by batch, from what the store was given. Checked at once: durable before visible,
writable last, no location doubly mapped, free last, nothing lands on a location that belongs to somebody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller.store.image import MapImage
from controller.store.interface import Batch
from controller.store.records import SegmentState, apply
from mapping.entry import NO_WRITE, has_location, segment_of, slot_of
from mapping.rules import Operation
from mapping.status import Status

if TYPE_CHECKING:
    from mapping.effects import Part
    from tests.sim.mapper import SimMapper
    from tests.sim.world import World

Location = tuple[int, int]


class _Committed(MapImage):
    """The truth as committed, with who owns each location, and every entry that was ever committed."""

    def __init__(self, checks: Checks) -> None:
        super().__init__()
        self.checks = checks
        self.owner: dict[Location, tuple[int, int]] = {}
        self.ever: dict[tuple[int, int], set[int]] = {}

    def set_entry(self, vdisk: int, segment: int, entry: int) -> None:
        old = self.entry(vdisk, segment)
        super().set_entry(vdisk, segment, entry)
        self._changed(vdisk, segment, old, entry)

    def fill_entries(self, vdisk: int, start: int, count: int, entry: int) -> None:
        old = self.entries(vdisk, start, count)
        super().fill_entries(vdisk, start, count, entry)
        for index in range(count):
            if old[index] != entry:
                self._changed(vdisk, start + index, old[index], entry)

    def put_entries(self, vdisk: int, start: int, entries: object) -> None:
        for index, entry in enumerate(entries):  # type: ignore[call-overload]
            self.set_entry(vdisk, start + index, entry)

    def _changed(self, vdisk: int, segment: int, old: int, entry: int) -> None:
        self.ever.setdefault((vdisk, segment), set()).add(entry & ~NO_WRITE)
        if has_location(old) and self.owner.get((slot_of(old), segment_of(old))) == (vdisk, segment):
            del self.owner[slot_of(old), segment_of(old)]
        if has_location(entry):
            location = (slot_of(entry), segment_of(entry))
            known = self.owner.get(location)
            if known is not None and known != (vdisk, segment):
                raise self.checks.violated(f"location {location} of {known} is mapped at {(vdisk, segment)} too")
            if self.checks.data_is_not_zeroes(location):
                raise self.checks.violated(f"location {location} is mapped anew and does not hold zeroes")
            self.owner[location] = (vdisk, segment)

    def fill_segments(self, slot: int, start: int, count: int, state: int) -> None:
        super().fill_segments(slot, start, count, state)
        if state in (SegmentState.FREE, SegmentState.ZEROED, SegmentState.ZEROING):
            for segment in range(start, start + count):
                self.checks.freed((slot, segment))


class Checks:
    """Called by the world; raises Violation."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.committed = _Committed(self)
        self.flying: dict[int, tuple[SimMapper, Location, str]] = {}
        self.count = 0

    def violated(self, text: str) -> AssertionError:
        return self.world.timeline.violated(text)

    # --- the store ---------------------------------------------------------------------------------------------------

    def batch(self, batch: Batch) -> None:
        """The store has committed it."""
        apply(batch.records, self.committed)

    def data_is_not_zeroes(self, location: Location) -> bool:
        container = self.world.container_of(location[0])
        return any(block != "zeroes" for block in container.blocks(location[1]))

    def freed(self, location: Location) -> None:
        """Free last: nobody who lives can reach it, nothing that could land is under way to it."""
        if location in self.committed.owner:
            raise self.violated(f"location {location} is freed while it is mapped at {self.committed.owner[location]}")
        for mapper, flying, nqn in self.flying.values():
            if flying == location and nqn in self.world.container_of(location[0]).allowed:
                raise self.violated(
                    f"location {location} is freed while I/O of {mapper.name} ({nqn}) is under way to it"
                )

    # --- the data planes ---------------------------------------------------------------------------------------------

    def applied(self, mapper: SimMapper, table_id: int, status: Status, ranges: list[tuple[int, int]]) -> None:
        """Entries of a table were changed."""
        engine = mapper.plane.tables.get(table_id)
        if engine is None or not engine.present:
            return
        vdisk = table_id >> 32
        for start, count in ranges:
            for segment in range(start, min(start + count, engine.table.segment_count)):
                self.count += 1
                entry = engine.table.entries[segment]
                if has_location(entry):
                    self._visible(mapper, vdisk, segment, entry)

    def _visible(self, mapper: SimMapper, vdisk: int, segment: int, entry: int) -> None:
        if entry & ~NO_WRITE not in self.committed.ever.get((vdisk, segment), ()):
            raise self.violated(f"{mapper.name} holds {entry:#x} for {(vdisk, segment)}, which was never committed")
        if entry & NO_WRITE:
            return
        for other in self.world.mappers.values():
            theirs = self._holds(other, vdisk, segment)
            if other is not mapper and theirs and theirs | NO_WRITE != entry | NO_WRITE:
                raise self.violated(
                    f"{mapper.name} may write {(vdisk, segment)} at {entry:#x} while {other.name} holds {theirs:#x}"
                )

    def _holds(self, mapper: SimMapper, vdisk: int, segment: int) -> int:
        """The entry that a data plane would use now."""
        engine = mapper.plane.tables.get(self.world.table_id(vdisk, mapper))
        if engine is None or not engine.present or not mapper.plane.lease.covers(mapper.clock()):
            return 0
        return engine.table.entries[segment]

    def begun(self, mapper: SimMapper, vdisk: int, part: Part) -> None:
        self.flying[id(part)] = (mapper, (part.slot, part.physical), mapper.slot_nqns[part.slot][1])

    def ended(self, mapper: SimMapper, vdisk: int, part: Part) -> None:
        self.flying.pop(id(part), None)

    def landed(self, vdisk: int, segment: int, slot: int, physical: int, operation: Operation) -> None:
        """An I/O reaches a container: the location has to be this segment's, or nobody's."""
        owner = self.committed.owner.get((slot, physical))
        if owner != (vdisk, segment):
            state = SegmentState(self.committed.state(slot, physical)).name
            raise self.violated(
                f"{operation.name} of {(vdisk, segment)} lands on {(slot, physical)}, which is {owner or state}"
            )

    def zeroing(self, slot: int, segment: int) -> None:
        """A zero lands: on nobody's location."""
        owner = self.committed.owner.get((slot, segment))
        if owner is not None:
            raise self.violated(f"zeroes land on {(slot, segment)}, which is mapped at {owner}")
