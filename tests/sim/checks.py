"""The invariants of the design, held after each thing that happens in the simulated world.

Committed truth is followed batch by batch, from what the store was given. Checked at once, each at the step that could
break it (`invariants` has the table): durable before visible (1), writable last (4), free last and no location doubly
mapped (5, 6), no I/O begun and none succeeded without a lease counted from the renewal's sending (7), nothing lands on
a location that belongs to somebody else (8), zeroed and flushed before mapped (10).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from controller.store.image import MapImage
from controller.store.interface import Batch
from controller.store.records import SegmentState, apply
from mapping.effects import Part
from mapping.entry import NO_WRITE, has_location, segment_of, slot_of
from mapping.rules import Operation
from tests.sim.timeline import MS, SECOND

if TYPE_CHECKING:
    from tests.sim.dataplane import DataPlane
    from tests.sim.machine import Machine
    from tests.sim.world import World

Location = tuple[int, int]
RENEWALS_KEPT: Final = 64
STRETCH: Final = 1.0102
"""A duration on a clock that is slow by the drift bound."""


@dataclass(eq=False)
class Flight:
    """A container I/O from its begin to its end."""

    dataplane: DataPlane
    vdisk: int
    segment: int
    location: Location
    operation: Operation
    nqn: str


class _Committed(MapImage):
    """The truth as committed, with who owns each location, and every entry that was ever committed."""

    def __init__(self, checks: Checks) -> None:
        super().__init__()
        self.checks = checks
        self.owner: dict[Location, tuple[int, int]] = {}
        self.ever: dict[int, dict[int, set[int]]] = {}

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

    def drop_table(self, vdisk: int) -> None:
        left = [location for location, owner in self.owner.items() if owner[0] == vdisk]
        if left:
            raise self.checks.violated(f"vdisk {vdisk} is forgotten while {left} are mapped at it")
        super().drop_table(vdisk)
        self.ever.pop(vdisk, None)

    def _changed(self, vdisk: int, segment: int, old: int, entry: int) -> None:
        self.ever.setdefault(vdisk, {}).setdefault(segment, set()).add(entry & ~NO_WRITE)
        if has_location(old) and self.owner.get((slot_of(old), segment_of(old))) == (vdisk, segment):
            del self.owner[slot_of(old), segment_of(old)]
        if has_location(entry):
            location = (slot_of(entry), segment_of(entry))
            known = self.owner.get(location)
            if known is not None and known != (vdisk, segment):
                raise self.checks.violated(f"location {location} of {known} is mapped at {(vdisk, segment)} too")
            if known is None and not self.checks.world.container(location[0]).is_zeroes(location[1]):
                raise self.checks.violated(f"location {location} is mapped anew and does not hold flushed zeroes")
            self.owner[location] = (vdisk, segment)

    def fill_segments(self, slot: int, start: int, count: int, state: int) -> None:
        super().fill_segments(slot, start, count, state)
        if state in (SegmentState.FREE, SegmentState.ZEROED, SegmentState.ZEROING):
            for segment in range(start, start + count):
                self.checks.freed((slot, segment))


class Checks:
    """Called by the world; raises Violation. `count` says how much was checked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.committed = _Committed(self)
        self.flying: dict[Flight, None] = {}
        self.count = 0
        self._renewed: dict[str, dict[int, int]] = {}
        self._leased: dict[DataPlane, int] = {}

    def violated(self, text: str) -> AssertionError:
        return self.world.timeline.violated(text)

    # --- the store ---------------------------------------------------------------------------------------------------

    def batch(self, batch: Batch) -> None:
        """The store has committed it."""
        apply(batch.records, self.committed)

    def freed(self, location: Location) -> None:
        """Free last: it is not mapped, and nothing that could land is under way to it."""
        if location in self.committed.owner:
            raise self.violated(f"location {location} is freed while it is mapped at {self.committed.owner[location]}")
        for flight in self.flying:
            if flight.location == location and self.world.lets_in(location[0], flight.nqn):
                raise self.violated(
                    f"location {location} is freed while {flight.operation.name} of {flight.dataplane.machine.name}"
                    f" ({flight.nqn}) is under way to it"
                )

    # --- leases ------------------------------------------------------------------------------------------------------

    def renewed(self, machine: Machine, sent_ns: int) -> None:
        """A daemon asks for the lease now, on its clock at `sent_ns`."""
        sent = self._renewed.setdefault(machine.name, {})
        sent.setdefault(sent_ns, self.world.timeline.now_ns)
        if len(sent) > RENEWALS_KEPT:
            del sent[next(iter(sent))]

    def granted(self, dataplane: DataPlane, sent_ns: int, duration_ns: int) -> None:
        """A data plane has taken a grant: it counts from when its renewal was sent."""
        began = self._renewed.get(dataplane.machine.name, {}).get(sent_ns, 0)
        until = began + int(duration_ns * STRETCH) + MS
        self._leased[dataplane] = max(self._leased.get(dataplane, 0), until)

    def _needs_lease(self, dataplane: DataPlane, what: str) -> None:
        self.count += 1
        now = self.world.timeline.now_ns
        until = self._leased.get(dataplane, 0)
        if now > until:
            text = f"{dataplane.machine.name} {what} {(now - until) / SECOND:.3f} s after its lease can have lasted"
            raise self.violated(text)

    def began(self, dataplane: DataPlane, part: Part) -> None:
        self._needs_lease(dataplane, f"begins {part}")

    def ended_zero(self, dataplane: DataPlane, part: Part) -> None:
        self._needs_lease(dataplane, f"answers {part} with zeroes")

    def succeeded(self, dataplane: DataPlane, part: Part) -> None:
        self._needs_lease(dataplane, f"reports success of {part}")

    def forget(self, dataplane: DataPlane) -> None:
        self._leased.pop(dataplane, None)

    # --- the data planes ---------------------------------------------------------------------------------------------

    def applied(self, dataplane: DataPlane, table_id: int, ranges: list[tuple[int, int]]) -> None:
        """Entries of a table may have changed."""
        engine = dataplane.plane.tables.get(table_id)
        if engine is None or not engine.present:
            return
        vdisk = table_id >> 32
        for start, count in ranges:
            for segment in range(start, min(start + count, engine.table.segment_count)):
                self.count += 1
                entry = engine.table.entries[segment]
                if has_location(entry):
                    self._visible(dataplane, vdisk, segment, entry)

    def _visible(self, dataplane: DataPlane, vdisk: int, segment: int, entry: int) -> None:
        name = dataplane.machine.name
        if entry & ~NO_WRITE not in self.committed.ever.get(vdisk, {}).get(segment, ()):
            raise self.violated(f"{name} holds {entry:#x} for {(vdisk, segment)}, which was never committed")
        if entry & NO_WRITE:
            return
        for machine in self.world.mappers.values():
            theirs = self._holds(machine.dataplane, vdisk, segment)
            if machine.dataplane is not dataplane and theirs and theirs | NO_WRITE != entry | NO_WRITE:
                raise self.violated(
                    f"{name} may write {(vdisk, segment)} at {entry:#x} while {machine.name} holds {theirs:#x}"
                )

    def _holds(self, dataplane: DataPlane, vdisk: int, segment: int) -> int:
        """The entry that a data plane would use now, if its lease can have lasted until now."""
        engine = dataplane.plane.tables.get(self.world.table_id(vdisk, dataplane.machine))
        if dataplane.dead or engine is None or not engine.present:
            return 0
        if self.world.timeline.now_ns > self._leased.get(dataplane, 0):
            return 0
        return engine.table.entries[segment] if engine._lease.covers(dataplane.clock()) else 0

    # --- container I/O -----------------------------------------------------------------------------------------------

    def takes_off(self, dataplane: DataPlane, vdisk: int, part: Part) -> Flight:
        location = (part.slot, part.physical)
        nqn = dataplane.nqns.get(part.slot, "")
        flight = Flight(dataplane, vdisk, part.segment, location, part.operation, nqn)
        self.flying[flight] = None
        return flight

    def touched_down(self, flight: Flight) -> None:
        self.flying.pop(flight, None)

    def landed(self, flight: Flight, slot: int) -> None:
        """An I/O reaches the container of a slot: it has to be its location's, and that has to be this segment's."""
        self.count += 1
        if slot != flight.location[0]:
            raise self.violated(f"{flight.operation.name} to {flight.location} reaches the container of slot {slot}")
        owner = self.committed.owner.get(flight.location)
        if owner != (flight.vdisk, flight.segment):
            state = SegmentState(self.committed.state(*flight.location)).name
            raise self.violated(
                f"{flight.operation.name} of {(flight.vdisk, flight.segment)} by {flight.dataplane.machine.name} lands"
                f" on {flight.location}, which is {owner or state}"
            )

    def zeroing(self, slot: int, segment: int, nqn: str) -> None:
        """A zero lands: on nobody's location, and on none that is ready to be given out."""
        owner = self.committed.owner.get((slot, segment))
        state = self.committed.state(slot, segment)
        if owner is not None or state == SegmentState.ZEROED:
            raise self.violated(f"zeroes of {nqn} land on {(slot, segment)}, which is {owner or 'ZEROED already'}")
