"""The reference engine: one virtual disk's table at a data plane, and the I/O that goes through it ([0024]-[0037]).

The C core of bdev_segmap has the same functions and is compared with this one. Pure: the clock is `now_ns`
(CLOCK_MONOTONIC), everything to be done comes back as effects, in order. Invariants:

* A part *begins* when it joins its channel's generation and its entry is loaded, in that order, and ends in
  `complete`; parked parts have not begun.
* While the lease does not cover now, nothing begins; a part begun before an expiry never succeeds after it.
* A parked part is in exactly one place: a fault, the list of those without a lease, or the suspended list.
* One fault per segment and kind is outstanding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mapping.effects import Complete, Effect, Fault, Forward, Part, ReturnZeroes, SendFault
from mapping.entry import ERROR_ENTRY, FLAGS, MAPPED, State, has_location, low_words, normalised, slot_of, state_of
from mapping.generations import Generations
from mapping.lease import Lease
from mapping.rules import DECISIONS, Action, FaultKind, Operation, StateForbidden, is_write, with_state
from mapping.status import Status
from mapping.table import Table

PARKED_MAX: Final = 16384
READ_MASK: Final = 0b1101
WRITE_MASK: Final = 0b1111
_NS: Final = 1_000_000_000
_FORWARD: Final = Action.FORWARD
_FLUSH: Final = Operation.FLUSH


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape of a virtual disk: sizes in bytes, counts in segments; `reclaim` and `read_only` are table attributes."""

    segment_count: int
    segment_size: int = 1 << 20
    block_size: int = 512
    reclaim: bool = True
    read_only: bool = False

    def __post_init__(self) -> None:
        if self.block_size not in (512, 4096):
            raise ValueError(f"block size is 512 or 4096, not {self.block_size}")
        if self.segment_size % self.block_size or not 4096 <= self.segment_size <= 1 << 30:
            raise ValueError(f"segment size {self.segment_size} is not a multiple of the block size in 4 KiB..1 GiB")

    @property
    def blocks_per_segment(self) -> int:
        return self.segment_size // self.block_size


@dataclass(slots=True)
class Limits:
    """How long parked I/O and container I/O may take (ns), and how much may be parked at one table (parts)."""

    park_ns: int = 30 * _NS
    io_ns: int = 20 * _NS
    parked_max: int = PARKED_MAX


@dataclass(slots=True)
class Counters:
    """What the table has seen; parts, not host I/Os."""

    forwarded: int = 0
    zero_reads: int = 0
    faults: int = 0
    failed: int = 0
    dropped: int = 0


@dataclass(slots=True)
class _Parked:
    faults: dict[tuple[int, FaultKind], Fault] = field(default_factory=dict)
    by_id: dict[int, Fault] = field(default_factory=dict)
    unleased: list[Part] = field(default_factory=list)
    suspended: list[Part] = field(default_factory=list)
    count: int = 0
    earliest_ns: int | None = None


class Engine:
    """One table. `next_fault_id` gives ids that are unique at the data plane."""

    def __init__(
        self,
        table_id: int,
        geometry: Geometry,
        lease: Lease,
        next_fault_id: Callable[[], int],
        limits: Limits | None = None,
        channels: int = 1,
    ) -> None:
        self.table_id = table_id
        self.geometry = geometry
        self.table = Table(geometry.segment_count)
        self.slots: frozenset[int] = frozenset()
        self.absent: frozenset[int] = frozenset()
        self.sequence = 0
        self.present = True
        self.suspended = False
        self.limits = limits or Limits()
        self.generations = Generations(channels)
        self.counters = Counters()
        self.open_until_ns = 0
        self._lease = lease
        self._parked = _Parked()
        self._next_fault_id = next_fault_id
        self._reclaim_bit = 128 if geometry.reclaim else 0
        self._blocks = geometry.blocks_per_segment
        self.refresh()

    # --- the I/O path ------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Recompute until when `translate` may answer; called whenever the lease or the table's standing changes."""
        is_open = self.present and not self.suspended and self._lease.valid
        self.open_until_ns = self._lease.deadline_ns if is_open else 0

    def translate(self, segment: int, mask: int, now_ns: int) -> int:
        """The entry of `segment` if I/O goes straight through it, else -1 (then `submit` decides).

        `mask` is READ_MASK or WRITE_MASK. Only for I/O that ends before anything else happens to the engine: such an
        I/O is never counted, since no command can come between. Writes to a read-only table are the caller's check.
        """
        if now_ns < self.open_until_ns:
            entry = self.table.entries[segment]
            if entry & mask == MAPPED:
                return entry
        return -1

    def submit(self, part: Part, now_ns: int) -> list[Effect]:
        """A part of a host's I/O arrives, or is tried again."""
        if self.geometry.read_only and is_write(part.operation):
            return [self._fail(part, Status.WRITE_PROTECTED)]
        if self.suspended:
            return self._park(part, self._parked.suspended, now_ns)
        if not self._lease.covers(now_ns):
            return self._park(part, self._parked.unleased, now_ns)
        if part.operation is _FLUSH:
            return [self._fail(part, Status.NO_CONTAINER) if self.absent else self._begin(part)]
        return self._decide(part, now_ns)

    def _decide(self, part: Part, now_ns: int) -> list[Effect]:
        if not self.present:
            return self._fault(part, 0, FaultKind.NO_TABLE, now_ns)
        if not (part.segment >= 0 and part.segment < self.table.segment_count):
            return [self._fail(part, Status.OUT_OF_RANGE)]
        entry = self.table.entries[part.segment]
        whole = self._reclaim_bit if part.length_blocks == self._blocks else 0
        action, kind = DECISIONS[entry & FLAGS | part.operation << 4 | whole]
        if action is _FORWARD:
            part.entry = entry
            return [self._begin(part)]
        if action is Action.FAULT:
            assert kind is not None
            return self._fault(part, entry, kind, now_ns)
        if action is Action.RETURN_ZEROES:
            self.counters.zero_reads += 1
            return [ReturnZeroes(part)]
        return [Complete(part, Status.OK)] if action is Action.COMPLETE else [self._fail(part, Status.IO_ERROR)]

    def _begin(self, part: Part) -> Forward:
        part.generation = self.generations.begin(part.channel)
        part.begun_epoch = self._lease.epoch
        self.counters.forwarded += 1
        return Forward(part)

    def _fail(self, part: Part, status: Status) -> Complete:
        self.counters.failed += 1
        return Complete(part, status)

    def complete(self, part: Part, status: Status, now_ns: int, settled: bool = True) -> list[Effect]:
        """The container I/O of a forwarded part has ended.

        A read that outlived the lease it began under is tried afresh; anything else ends with LEASE_EXPIRED, since
        its outcome may have been overtaken. Not `settled`: the part ends for its host with a failure, but its container
        may still carry it out (the connection was lost), so barriers go on waiting for it, until `settle`.
        """
        assert settled or status is not Status.OK, "success has settled"
        reached = self.settle(part) if settled else []
        if part.begun_epoch == self._lease.epoch and self._lease.covers(now_ns):
            return [Complete(part, status), *reached]
        if part.operation is Operation.READ and settled:
            return [*reached, *self.submit(part, now_ns)]
        return [self._fail(part, Status.LEASE_EXPIRED), *reached]

    def settle(self, part: Part) -> list[Effect]:
        """Nothing of the part can reach its container any more."""
        assert part.generation >= 0, "a part ended twice"
        reached = self.generations.end(part.channel, part.generation)
        part.generation = -1
        return list(reached)

    # --- parking -----------------------------------------------------------------------------------------------------

    def _count_parked(self, part: Part, now_ns: int) -> bool:
        parked = self._parked
        if parked.count >= self.limits.parked_max:
            return False
        parked.count += 1
        if part.parked_ns < 0:
            part.parked_ns = now_ns
        if parked.earliest_ns is None or part.parked_ns < parked.earliest_ns:
            parked.earliest_ns = part.parked_ns
        return True

    def _park(self, part: Part, queue: list[Part], now_ns: int) -> list[Effect]:
        if not self._count_parked(part, now_ns):
            return [self._fail(part, Status.BUSY)]
        queue.append(part)
        return []

    def _fault(self, part: Part, entry: int, kind: FaultKind, now_ns: int) -> list[Effect]:
        if not self._count_parked(part, now_ns):
            return [self._fail(part, Status.BUSY)]
        key = (part.segment, kind)
        fault = self._parked.faults.get(key)
        if fault is None:
            fault = Fault(self._next_fault_id(), self.table_id, part, entry, kind, state_of(entry), now_ns)
            self._parked.faults[key] = self._parked.by_id[fault.fault_id] = fault
            effects: list[Effect] = [SendFault(fault)]
            self.counters.faults += 1
        else:
            effects = []
        fault.parts.append(part)
        part.fault = fault
        return effects

    def _take(self, fault: Fault) -> list[Part]:
        """Remove a fault; its parts, no longer parked."""
        del self._parked.faults[fault.segment, fault.kind]
        del self._parked.by_id[fault.fault_id]
        parts, fault.parts = fault.parts, []
        for part in parts:
            part.fault = None
        self._parked.count -= len(parts)
        return parts

    def _retry(self, parts: Sequence[Part], now_ns: int) -> list[Effect]:
        effects: list[Effect] = []
        for part in parts:
            effects += self.submit(part, now_ns)
        return effects

    def _take_all(self) -> list[Part]:
        parked = self._parked
        parts = [part for fault in list(parked.faults.values()) for part in self._take(fault)]
        parts += parked.unleased + parked.suspended
        self._parked = _Parked()
        return sorted(parts, key=lambda part: part.parked_ns)

    def outstanding_faults(self) -> list[Fault]:
        """Faults without an answer, oldest first: what a new session has to be told again."""
        return sorted(self._parked.by_id.values(), key=lambda fault: fault.fault_id)

    @property
    def parked_count(self) -> int:
        return self._parked.count

    def parked(self) -> Iterator[Part]:
        """Every parked part, in no order."""
        for fault in self._parked.faults.values():
            yield from fault.parts
        yield from self._parked.unleased
        yield from self._parked.suspended

    def _drop(self, doomed: Callable[[Part], bool], status: Status) -> list[Effect]:
        """Drop parked parts; they end with `status` and never execute. A fault that nobody waits for any more goes."""
        dropped = [part for part in self.parked() if doomed(part)]
        gone = set(map(id, dropped))
        parked = self._parked
        parked.unleased = [part for part in parked.unleased if id(part) not in gone]
        parked.suspended = [part for part in parked.suspended if id(part) not in gone]
        parked.count -= len(dropped)
        for part in dropped:
            fault, part.fault = part.fault, None
            if fault is not None:
                fault.parts.remove(part)
                if not fault.parts:
                    self._take(fault)
        self.counters.dropped += len(dropped)
        return [Complete(part, status) for part in dropped]

    def reset(self, owner: Any = None) -> list[Effect]:
        """Drop the parked I/O of one owner (a lost host connection), or of all (None)."""
        return self._drop(lambda part: owner is None or part.owner is owner, Status.CANCELLED)

    def abort(self, io: Any) -> list[Effect]:
        """Drop the parked parts of one I/O. Parts that have begun are not touched."""
        return self._drop(lambda part: part.io is io, Status.CANCELLED)

    # --- commands and answers ----------------------------------------------------------------------------------------

    def check_entries(self, start: int, count: int, entries: Sequence[int]) -> Status:
        """OK if these entries may be stored at `start`: in range, and naming only the table's containers."""
        if not self.table.in_range(start, count) or len(entries) not in (1, count):
            return Status.OUT_OF_RANGE
        for low in low_words(entries):
            if has_location(low) and slot_of(low) not in self.slots:
                return Status.NO_CONTAINER
        return Status.OK

    def set_entries(self, start: int, count: int, entries: Sequence[int], now_ns: int) -> tuple[Status, list[Effect]]:
        """Replace `count` entries by `entries`, or all of them by the only one given [0034] [0035]."""
        status = self.check_entries(start, count, entries)
        if status is not Status.OK:
            return status, []
        self._store(start, count, entries)
        return Status.OK, self._reconsider(start, count, now_ns)

    def _store(self, start: int, count: int, entries: Sequence[int]) -> None:
        if len(entries) != count:
            self.table.fill(start, count, normalised(entries[0]))
        elif all(low & MAPPED for low in low_words(entries)):
            self.table.set(start, entries)
        else:
            self.table.set(start, [normalised(entry) for entry in entries])

    def set_state(self, start: int, count: int, state: State, active: bool, now_ns: int) -> tuple[Status, list[Effect]]:
        """Activate a state of `count` entries, or deactivate NO-WRITE [0034]."""
        if not self.table.in_range(start, count):
            return Status.OUT_OF_RANGE, []
        try:
            self.table.set(start, [with_state(entry, state, active) for entry in self.table.get(start, count)])
        except StateForbidden:
            return Status.FORBIDDEN, []
        return Status.OK, self._reconsider(start, count, now_ns)

    def get_state(self, start: int, count: int, state: State) -> bytes:
        """One byte, 0 or 1, for each entry: whether `state` is its highest active one. The range is the caller's."""
        return bytes(state_of(entry) is state for entry in self.table.get(start, count))

    def barrier(self, token: Any, now_ns: int) -> list[Effect]:
        """BarrierReached(token) once every part begun so far has ended, or at the I/O deadline."""
        return list(self.generations.barrier(token, now_ns + self.limits.io_ns))

    def _reconsider(self, start: int, count: int, now_ns: int) -> list[Effect]:
        """Retry parked parts that the changed entries no longer stop; the others keep their fault."""
        effects: list[Effect] = []
        for fault in self._faults_in(start, count):
            entry = self.table.entries[fault.segment]
            whole = self._reclaim_bit if fault.length_blocks == self._blocks else 0
            if DECISIONS[entry & FLAGS | fault.operation << 4 | whole] != (Action.FAULT, fault.kind):
                effects += self._retry(self._take(fault), now_ns)
        return effects

    def _faults_in(self, start: int, count: int) -> list[Fault]:
        faults = self._parked.faults
        if not faults:
            return []
        if count < len(faults):
            keys = ((segment, kind) for segment in range(start, start + count) for kind in FaultKind)
            return [faults[key] for key in keys if key in faults]
        return [fault for fault in faults.values() if start <= fault.segment < start + count]

    def answer_replace(
        self, fault_id: int, start: int, count: int, entries: Sequence[int], now_ns: int
    ) -> tuple[Status, list[Effect]]:
        """The controller's replacement entries: stored, and the fault's parts are tried again [0033].

        The entries count even if nobody waits for this fault any more.
        """
        status = self.check_entries(start, count, entries)
        if status is not Status.OK:
            return status, []
        self._store(start, count, entries)
        fault = self._parked.by_id.get(fault_id)
        waiting = self._take(fault) if fault is not None else []
        effects = self._retry(waiting, now_ns)
        return Status.OK, effects + self._reconsider(start, count, now_ns)

    def answer_fail_request(self, fault_id: int, status: Status) -> tuple[Status, list[Effect]]:
        """The fault's parts end with `status`; the entry stays."""
        fault = self._parked.by_id.get(fault_id)
        if fault is None:
            return Status.NOT_FOUND, []
        return Status.OK, [self._fail(part, status) for part in self._take(fault)]

    def answer_fail_segment(self, fault_id: int, segment: int, now_ns: int) -> tuple[Status, list[Effect]]:
        """The segment's entry becomes ERROR, keeping its location for diagnosis; parts end in an error [0033]."""
        if not self.table.in_range(segment, 1):
            return Status.OUT_OF_RANGE, []
        self.table.set(segment, [normalised(self.table.entries[segment]) | ERROR_ENTRY])
        fault = self._parked.by_id.get(fault_id)
        waiting = self._take(fault) if fault is not None else []
        return Status.OK, self._retry(waiting, now_ns) + self._reconsider(segment, 1, now_ns)

    # --- standing ----------------------------------------------------------------------------------------------------

    def remove(self, now_ns: int) -> list[Effect]:
        """The table is deleted: entries forgotten; I/O that still comes faults with NO-TABLE [claim 28]."""
        self.present = False
        self.table.wipe()
        self.refresh()
        return self._retry(self._take_all(), now_ns)

    def suspend(self) -> None:
        """New I/O parks, without faults, until `resume`."""
        self.suspended = True
        self.refresh()

    def resume(self, now_ns: int) -> list[Effect]:
        """End `suspend`; what it parked goes on in the order of arrival."""
        self.suspended = False
        self.refresh()
        waiting, self._parked.suspended = self._parked.suspended, []
        self._parked.count -= len(waiting)
        return self._retry(waiting, now_ns)

    def lease_expired(self, now_ns: int) -> list[Effect]:
        """A new epoch: every entry forgotten, the sequence starts afresh; parked parts wait for the next lease."""
        self.table.wipe()
        self.sequence = 0
        self.refresh()
        return self._retry(self._take_all(), now_ns)

    def lease_granted(self, now_ns: int) -> list[Effect]:
        """I/O may begin again: what waited for the lease is tried, and faults now if its entry stops it."""
        self.refresh()
        waiting, self._parked.unleased = self._parked.unleased, []
        self._parked.count -= len(waiting)
        return self._retry(waiting, now_ns)

    def resize(self, segment_count: int, now_ns: int) -> list[Effect]:
        """Change the number of segments; parked I/O beyond a smaller end ends with OUT_OF_RANGE."""
        self.table.resize(segment_count)
        self.geometry = Geometry(
            segment_count,
            self.geometry.segment_size,
            self.geometry.block_size,
            self.geometry.reclaim,
            self.geometry.read_only,
        )
        beyond = [fault for fault in self._parked.faults.values() if fault.segment >= segment_count]
        return self._retry([part for fault in beyond for part in self._take(fault)], now_ns)

    def tick(self, now_ns: int) -> list[Effect]:
        """Time has passed: parked I/O over the park limit is dropped, late barriers fail."""
        effects: list[Effect] = list(self.generations.tick(now_ns))
        earliest = self._parked.earliest_ns
        if earliest is not None and earliest + self.limits.park_ns <= now_ns:
            effects += self._drop(lambda part: part.parked_ns + self.limits.park_ns <= now_ns, Status.TIMEOUT)
            self._parked.earliest_ns = min((part.parked_ns for part in self.parked()), default=None)
        return effects

    def next_deadline(self) -> int | None:
        """When `tick` may have something to do, or None."""
        earliest = self._parked.earliest_ns
        deadlines = [
            self.generations.next_deadline(),
            None if earliest is None else earliest + self.limits.park_ns,
        ]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)
