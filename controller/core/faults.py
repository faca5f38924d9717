"""Answering map faults ([0031]-[0033]; design: 1 durable before visible, 4, 5, 6).

Faults come as arrays and are answered as arrays. The common case, a write to a ZERO segment that no other agent may
hold, is one tight loop: take a zeroed segment, journal, and answer when committed. Everything else is decided one by
one, but carried out for all faults of a message together: one change, one barrier per agent and run, one commit.

If the entry as seen differs from the truth, the answer is the truth and nothing is allocated. A table gets a location
with NO-WRITE while another agent may hold an older truth of the segment: it becomes writable after a barrier.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from controller.core.agents import Agent, AgentTable, TableState
from controller.core.changes import Change, Waiting
from controller.core.cluster import ANSWERS_MAX, FROZEN_ADVICE, Cluster
from controller.core.effects import Close
from controller.core.holdings import CURRENT, NOTHING, UNKNOWN
from controller.core.truth import VDisk, location_runs, runs_of
from controller.store.records import SegmentState
from mapping.entry import MAPPED, NO_WRITE, ZERO, ZERO_ENTRY, has_location
from mapping.plane import FAIL_REQUEST, REPLACE
from mapping.rules import FaultKind, Operation
from mapping.status import Status

Fault = Sequence[int]
READ: Final = int(FaultKind.READ)
WRITE: Final = int(FaultKind.WRITE)
RECLAIM: Final = int(FaultKind.RECLAIM)
EXCLUSIVE: Final = int(FaultKind.EXCLUSIVE)
NO_TABLE: Final = int(FaultKind.NO_TABLE)
_RECLAIMING: Final = (int(Operation.UNMAP), int(Operation.WRITE_ZEROES))
RECLAIM_PATIENCE_NS: Final = 50_000_000
_ANSWERABLE: Final = (TableState.CREATED, TableState.CREATING)


class Group:
    """Faults of one table that share a change: (fault id, segment), and for writes the new entries."""

    __slots__ = ("change", "entries", "epoch", "fault_ids", "segments", "session", "table")

    def __init__(self, table: AgentTable, change: Change) -> None:
        self.table = table
        self.change = change
        self.session = table.agent.session
        self.epoch = table.agent.epoch
        self.fault_ids: list[int] = []
        self.segments = change.segments
        self.entries: list[int] = []

    def add(self, fault: Fault) -> None:
        """Own the fault's segment and answer it with the group."""
        self.change.vdisk.changing[fault[2]] = self.change
        self.segments.append(fault[2])
        self.fault_ids.append(fault[0])

    @property
    def void(self) -> bool:
        """True if nobody waits for the answer any more: the faults come again by themselves."""
        table, agent = self.table, self.table.agent
        if agent.session != self.session or agent.epoch != self.epoch or not agent.admitted:
            return True
        return agent.tables.get(table.vdisk.number) is not table


class Faults:
    """Receives, decides, answers."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._changes = cluster.changes
        self._again: list[Waiting] = []
        self._short: list[Waiting] = []
        self._starved: set[str] = set()
        self._deadlines: dict[tuple[int, int], int] = {}
        """Of the faults that wait no longer, while `drain` decides them: when a shortage fails them."""
        self.draining = False
        """True while faults are decided that have waited: their hosts may have given up."""

    # --- arrival -----------------------------------------------------------------------------------------------------

    def receive(self, agent: Agent, faults: Iterable[Fault], now_ns: int) -> None:
        """A MAP_FAULT of the agent's present session, incarnation and epoch."""
        groups: dict[int, list[Fault]] = {}
        for fault in faults:
            try:
                groups[fault[1]].append(fault)
            except KeyError:
                groups[fault[1]] = [fault]
        for table_id, group in groups.items():
            self._cluster.faults_received += len(group)
            table = agent.tables.get(table_id >> 32)
            if table is not None and table.table_id == table_id:
                self._decide(table, group, now_ns)
            else:
                self._cluster.bringup.delete_stray(agent, table_id, now_ns)

    def _decide(self, table: AgentTable, faults: list[Fault], now_ns: int) -> None:
        """At most as many together as one answer can carry. While the table is being deleted they wait."""
        if table.state in _ANSWERABLE:
            for first in range(0, len(faults), ANSWERS_MAX):
                self._process(table, faults[first : first + ANSWERS_MAX], now_ns)
        elif table.state is TableState.DELETING:
            for fault in faults:
                self._wait(table.held, table, fault)

    def kept(self, table: AgentTable) -> None:
        """The table was not deleted after all: its faults are decided."""
        held, table.held = table.held, []
        self.resume(held)

    def dropped(self, table: AgentTable) -> None:
        """The table is gone, and its parked I/O with it."""
        held, table.held = table.held, []
        table.agent.faults_waiting -= len(held)

    def resume(self, waiting: list[Waiting]) -> None:
        """These need not wait any longer: decide them afresh, at the end of this step."""
        self._again += waiting

    def drain(self, now_ns: int) -> None:
        """Decide what `resume` has collected. Faults of ended sessions and epochs are dropped: they are sent again."""
        self.draining = bool(self._again)
        while self._again:
            waiting, self._again = self._again, []
            groups: dict[AgentTable, list[Fault]] = {}
            for item in waiting:
                agent = item.table.agent
                agent.faults_waiting -= 1
                if agent.session == item.session and agent.epoch == item.epoch and agent.admitted:
                    groups.setdefault(item.table, []).append(item.fault)
                    if item.deadline_ns:
                        self._deadlines[item.session, item.fault[0]] = item.deadline_ns
            for table, faults in groups.items():
                self._decide(table, faults, now_ns)
            self._deadlines.clear()
        self.draining = False

    def _wait(self, queue: list[Waiting], table: AgentTable, fault: Fault, deadline_ns: int = 0) -> None:
        agent = table.agent
        if agent.faults_waiting >= self._cluster.limits.faults_waiting_per_agent:
            self._cluster.effects.append(Close(agent.session, Status.LIMIT, "too many of its faults wait"))
            return
        agent.faults_waiting += 1
        if self._deadlines and not deadline_ns:
            deadline_ns = self._deadlines.get((agent.session, fault[0]), 0)
        queue.append(Waiting(table, agent.session, agent.epoch, fault, deadline_ns))

    # --- the common case ---------------------------------------------------------------------------------------------

    def _process(self, table: AgentTable, faults: list[Fault], now_ns: int) -> None:
        """All faults of one table in a message. Writes of ZERO that nobody else holds are taken here."""
        vdisk, extent, refill = table.vdisk, table.extent, self._refill
        changing, chunks, segment_count = vdisk.changing, vdisk.chunks, vdisk.segment_count
        others = [other for other in vdisk.sharing if other is not table]
        if extent.next < extent.end and extent.slot not in table.slots:
            self._cluster.allocator.release(extent)
        group = Group(table, Change(vdisk, "a write waits for the store"))
        change, segments, fault_ids, entries = group.change, group.segments, group.fault_ids, group.entries
        slower = _Slower(self, table, others)
        read_only = table.presentation.read_only
        for fault in faults:
            segment = fault[2]
            if segment in changing:
                self._wait(changing[segment].waiting, table, fault)
                continue
            if fault[3] == ZERO_ENTRY and fault[5] == WRITE and segment < segment_count and not read_only:
                chunk = chunks.get(segment >> 12)
                if (chunk is None or chunk[segment & 4095] == ZERO_ENTRY) and (
                    not others or not self._held(others, segment)
                ):
                    if extent.next == extent.end and not refill(table, others, now_ns):
                        self._starve(table, fault, now_ns)
                        continue
                    entries.append(extent.next << 16 | extent.slot << 4 | MAPPED)
                    extent.next += 1
                    changing[segment] = change
                    segments.append(segment)
                    fault_ids.append(fault[0])
                    continue
            slower.decide(fault, now_ns)
        if segments:
            self._allocate(group, others)
        slower.finish(now_ns)

    def _held(self, others: list[AgentTable], segment: int) -> bool:
        return any(other.holdings.get(segment) for other in others)

    def _refill(self, table: AgentTable, others: list[AgentTable], now_ns: int) -> bool:
        """Reserve more zeroed segments for the table, if possible where all its sharers can read them; but only where
        no flush at a sharer succeeds without reaching them."""
        if self._cluster.frozen or self._cluster.store_full:
            return False
        usable = slots = table.usable_slots
        for other in others:
            if other.state is TableState.CREATED and slots & other.usable_slots:
                slots = slots & other.usable_slots
        allocator = self._cluster.allocator
        heeded = self._heeded(table.vdisk, usable, others)
        if allocator.refill(table.extent, slots & heeded) or allocator.refill(table.extent, heeded):
            table.vdisk.reached.add(table.extent.slot)
        else:
            new = [slot for slot in sorted(usable - heeded) if allocator.zeroed((slot,))]
            if new:
                self._cluster.bringup.reach(table, new[0], now_ns)
        self._cluster.zeroing.taken()
        return table.extent.next < table.extent.end

    def _heeded(self, vdisk: VDisk, slots: frozenset[int], others: list[AgentTable]) -> frozenset[int]:
        """Those of the containers that all other tables of the vdisk flush, or fail flushes without."""
        heeded = slots
        for other in others:
            heeded &= other.heeded_slots
        return heeded if heeded == slots else heeded | slots & vdisk.reached_slots

    def _allocate(self, group: Group, others: list[AgentTable]) -> None:
        """Journal the new entries; they become the truth, and the answers, when they are durable."""
        journal, vdisk = self._cluster.journal, group.change.vdisk
        count = len(group.segments)
        journal.records.faults(
            vdisk.number, group.segments, group.entries, group.table.agent.incarnation, group.fault_ids
        )
        ahead = self._allocate_ahead(group, others)
        if ahead:
            journal.records.entry_array(vdisk.number, group.segments[count], group.entries[count:])
        journal.then(lambda now: self._allocated(group, now))

    def _allocate_ahead(self, group: Group, others: list[AgentTable]) -> int:
        """A sequential writer gets its next segments at once. How many; they are appended to the group."""
        table, segments = group.table, group.segments
        last, streak = table.last_write, table.streak
        for segment in segments:
            streak = streak + 1 if segment == last + 1 else 0
            last = segment
        table.last_write, table.streak = last, streak
        limit = min(self._cluster.limits.allocate_ahead_segments, streak) if streak > 1 else 0
        vdisk, extent, change = group.change.vdisk, table.extent, group.change
        limit = min(limit, extent.end - extent.next, vdisk.segment_count - 1 - last)
        taken = 0
        while taken < limit:
            segment = last + 1 + taken
            if segment in vdisk.changing or vdisk.entry(segment) != ZERO_ENTRY or self._held(others, segment):
                break
            group.entries.append(extent.next << 16 | extent.slot << 4 | MAPPED)
            extent.next += 1
            vdisk.changing[segment] = change
            segments.append(segment)
            taken += 1
        table.last_write += taken
        return taken

    def _allocated(self, group: Group, now_ns: int) -> None:
        """Durable: the truth has changed, and nobody else has to be told."""
        self.learn(group)
        self.answer_group(group)
        self._changes.finish(group.change, now_ns)

    def learn(self, group: Group) -> None:
        """The group's new entries are the truth. The faulting table may hold the old until it applies the answer."""
        self._cluster.image.set_entries(group.change.vdisk.number, group.segments, group.entries)
        segments, holdings = group.segments, group.table.holdings
        if group.void:
            segments = [segment for segment in segments if holdings.get(segment) != NOTHING]
        holdings.set_all(segments, UNKNOWN)

    def answer_group(self, group: Group) -> None:
        """REPLACE each segment's entry; what was allocated ahead goes with the last fault."""
        if group.void:
            return
        answers = [
            (fault_id, segment, 1, REPLACE, 0)
            for fault_id, segment in zip(group.fault_ids, group.segments, strict=False)
        ]
        ahead = len(group.segments) - len(answers)
        if ahead:
            fault_id, segment, _, _, _ = answers[-1]
            answers[-1] = (fault_id, segment, 1 + ahead, REPLACE, 0)
        self._cluster.answer_all(group.table, answers, group.change.vdisk.told(group.entries))

    # --- single answers ----------------------------------------------------------------------------------------------

    def answer_truth(self, table: AgentTable, others: list[AgentTable], fault: Fault, now_ns: int) -> None:
        """REPLACE by the truth, and by that of the segments after it, as far as it is safe and useful."""
        vdisk, segment = table.vdisk, fault[2]
        entries = vdisk.entries(segment, self._ahead_count(vdisk, segment))
        usable = self._usable(table, entries)
        if not usable:
            self._starve(table, fault, now_ns)
            return
        del entries[usable:]
        if table.presentation.read_only:
            self._protect(entries, range(usable))
        else:
            for other in others:
                unknown = other.holdings.positions(UNKNOWN, segment, usable)
                self._protect(entries, (position - segment for position in unknown))
        self._cluster.answer(table, (fault[0], segment, usable, REPLACE, 0), entries)
        table.holdings.raise_to_current(segment, usable)

    def _ahead_count(self, vdisk: VDisk, segment: int) -> int:
        """How many segments from here on are not changing, up to the read-ahead."""
        count = min(self._cluster.limits.read_ahead_segments, vdisk.segment_count - segment)
        if vdisk.changing:
            for ahead in range(1, count):
                if segment + ahead in vdisk.changing:
                    return ahead
        return count

    def _usable(self, table: AgentTable, entries: array[int]) -> int:
        """How many of the entries name only containers that the table has."""
        if table.slots.issuperset(self._cluster.bringup.vdisk_slots(table.vdisk)):
            return len(entries)
        for index, entry in enumerate(entries):
            if has_location(entry) and (entry >> 4 & 4095) not in table.slots:
                return index
        return len(entries)

    def _protect(self, entries: array[int], positions: Iterable[int]) -> None:
        for position in positions:
            if has_location(entries[position]):
                entries[position] |= NO_WRITE

    def fail(self, table: AgentTable, fault: Fault, status: Status) -> None:
        """FAIL_REQUEST: the entry stays."""
        self._cluster.answer(table, (fault[0], fault[2], 0, FAIL_REQUEST, int(status)))

    # --- shortage ----------------------------------------------------------------------------------------------------

    def _starve(self, table: AgentTable, fault: Fault, now_ns: int) -> None:
        """No zeroed segment, or a container is not attached yet: wait, up to the deadline, and say so loudly."""
        cluster = self._cluster
        deadline_ns = self._deadlines.get((table.agent.session, fault[0])) or now_ns + cluster.timing.space_deadline_ns
        if deadline_ns <= now_ns and cluster.frozen and fault[5] in (WRITE, EXCLUSIVE):
            deadline_ns = now_ns + cluster.timing.space_deadline_ns
        if deadline_ns <= now_ns:
            self._give_up(table, fault, now_ns)
            return
        self._starved.add(table.vdisk.name)
        if not self._short:
            cluster.timers.at(deadline_ns, self._expire)
        self._wait(self._short, table, fault, deadline_ns)
        cluster.log.alarm(now_ns, "space", table.vdisk.name, self._shortage(table))
        cluster.zeroing.consider(now_ns)

    def _shortage(self, table: AgentTable) -> str:
        spaces = [space for slot, space in self._cluster.allocator.spaces.items() if slot in table.usable_slots]
        name = table.vdisk.name
        if self._cluster.store_full:
            return f"writes to vdisk {name} wait: the controller's store is full"
        if self._cluster.frozen:
            return f"writes to vdisk {name} wait: {FROZEN_ADVICE.format(self._cluster.frozen)}"
        if not spaces:
            return f"writes to vdisk {name} wait: agent {table.agent.name} has none of its containers attached"
        if table.vdisk.reaching and any(space.zeroed.total for space in spaces):
            return f"writes to vdisk {name} wait until its other agents know of a container that is new to it"
        if any(space.free.total for space in spaces) or self._cluster.zeroing.busy:
            return f"writes to vdisk {name} wait for segments to be zeroed"
        return f"writes to vdisk {name} wait: its containers are full; add a container"

    def _give_up(self, table: AgentTable, fault: Fault, now_ns: int) -> None:
        name = table.vdisk.name
        self._starved.add(name)
        if not any(item.table.vdisk is table.vdisk for item in self._short):
            text = f"writes to vdisk {name} have failed, and will: they found no space in time"
            self._cluster.log.alarm(now_ns, "space", name, text)
        writes = fault[5] in (WRITE, EXCLUSIVE) or (fault[5] == RECLAIM and self._cluster.store_full)
        self.fail(table, fault, Status.NO_SPACE if writes else Status.NO_CONTAINER)

    def _expire(self, now_ns: int) -> None:
        """Those whose deadline has passed end: the host is told, the entry is unchanged, nothing is lost."""
        late = [item for item in self._short if item.deadline_ns <= now_ns]
        self._short = [item for item in self._short if item.deadline_ns > now_ns]
        if self._short:
            self._cluster.timers.at(min(item.deadline_ns for item in self._short), self._expire)
        self.resume(late)

    def space_found(self, now_ns: int) -> None:
        """Segments were zeroed, freed or added: those who wait try again."""
        waiting, self._short = self._short, []
        starved, self._starved = self._starved, set()
        for name in sorted(starved):
            self._cluster.log.clear(now_ns, "space", name, f"writes to vdisk {name} go on")
        self.resume(waiting)

    slots_ready = space_found

    def waiting_for_space(self) -> int:
        """How many faults wait for space or for a container."""
        return len(self._short)


class _Slower:
    """What the loop of `_process` does not do itself, for one table and message."""

    def __init__(self, faults: Faults, table: AgentTable, others: list[AgentTable]) -> None:
        self._faults = faults
        self._cluster = faults._cluster
        self._table = table
        self._others = others
        self._groups: dict[str, Group] = {}

    def _join(self, why: str, fault: Fault) -> Group:
        group = self._groups.get(why)
        if group is None:
            group = self._groups[why] = Group(self._table, Change(self._table.vdisk, why))
        group.add(fault)
        return group

    def decide(self, fault: Fault, now_ns: int) -> None:
        """One fault: answered, refused, made to wait, or joined to a group that `finish` carries out."""
        segment, seen, kind = fault[2], fault[3], fault[5]
        table, faults = self._table, self._faults
        if kind == NO_TABLE:
            if not table.presentation.withdrawing:
                self._cluster.bringup.settle_missing(table, lambda now: None, now_ns)
            return
        if segment >= table.vdisk.segment_count:
            faults.fail(table, fault, Status.OUT_OF_RANGE)
            return
        if kind != READ and table.presentation.read_only:
            faults.fail(table, fault, Status.WRITE_PROTECTED)
            return
        if kind == EXCLUSIVE and len(table.vdisk.presentations) > 1:
            faults.fail(table, fault, Status.UNSUPPORTED)
            return
        truth = table.vdisk.entry(segment)
        if kind == READ:
            faults.answer_truth(table, self._others, fault, now_ns)
        elif kind == RECLAIM:
            self._decide_reclaim(fault, seen, truth, now_ns)
        else:
            self._decide_write(fault, seen, truth, now_ns)

    def _decide_reclaim(self, fault: Fault, seen: int, truth: int, now_ns: int) -> None:
        """One that has waited is answered with the truth: if it is still wanted, it comes afresh."""
        same = has_location(truth) and seen | NO_WRITE == truth | NO_WRITE
        if same and self._cluster.store_full:
            self._faults._starve(self._table, fault, now_ns)
        elif same and not self._faults.draining:
            self._join("a segment is being reclaimed", fault)
        else:
            self._faults.answer_truth(self._table, self._others, fault, now_ns)

    def _decide_write(self, fault: Fault, seen: int, truth: int, now_ns: int) -> None:
        """WRITE or EXCLUSIVE."""
        table, faults, segment = self._table, self._faults, fault[2]
        if truth & ZERO and truth == seen:
            self._allocate_shared(fault, now_ns)
        elif not has_location(truth):
            faults.answer_truth(table, self._others, fault, now_ns)
        elif truth & NO_WRITE and seen == truth:
            faults.fail(table, fault, Status.WRITE_PROTECTED)
        elif truth & NO_WRITE or not any(other.holdings.get(segment) == UNKNOWN for other in self._others):
            faults.answer_truth(table, self._others, fault, now_ns)
        elif (truth >> 4 & 4095) not in table.slots:
            faults._starve(table, fault, now_ns)
        else:
            self._join("others give up an older entry", fault).entries.append(truth)

    def _allocate_shared(self, fault: Fault, now_ns: int) -> None:
        extent = self._table.extent
        if extent.next == extent.end and not self._faults._refill(self._table, self._others, now_ns):
            self._faults._starve(self._table, fault, now_ns)
            return
        self._join("others give up ZERO", fault).entries.append(extent.next << 16 | extent.slot << 4 | MAPPED)
        extent.next += 1

    def finish(self, now_ns: int) -> None:
        """Carry out the groups."""
        for why, group in self._groups.items():
            if why == "others give up ZERO":
                self._write_shared(group)
            elif why == "others give up an older entry":
                self._make_writable(group, UNKNOWN, now_ns)
            else:
                self._reclaim(group, now_ns)

    def _write_shared(self, group: Group) -> None:
        """ZERO becomes a location: commit, others INVALID (blocking), answer (design: writable last)."""
        journal = self._cluster.journal
        journal.records.faults(
            group.change.vdisk.number, group.segments, group.entries, self._table.agent.incarnation, group.fault_ids
        )

        def committed(now_ns: int) -> None:
            self._faults.learn(group)
            for other in group.change.vdisk.sharing:
                for segment in group.segments if other is not group.table else ():
                    if other.holdings.get(segment) == CURRENT:
                        other.holdings.set(segment, UNKNOWN)
            self._make_writable(group, CURRENT, now_ns)

        journal.then(committed)

    def _make_writable(self, group: Group, least: int, now_ns: int) -> None:
        cluster = self._cluster

        def settled(now_ns: int) -> None:
            self._faults.answer_group(group)
            if not group.void:
                for segment in group.segments:
                    group.table.holdings.raise_to_current(segment, 1)
            cluster.changes.finish(group.change, now_ns)

        others = [table for table in group.change.vdisk.sharing if table is not group.table]
        cluster.changes.invalidate(group.change, others, now_ns, settled, least)

    def _reclaim(self, group: Group, now_ns: int) -> None:
        """Others INVALID (blocking), then the faulting table; commit ZERO and what that frees; answer (free last).

        A host may have given up meanwhile, and its next write must not be erased. So the faulting table comes last,
        when nobody else can write any more: the I/O that it still has parked faults again on INVALID, before the
        answer. Without that fault nothing is reclaimed.
        """
        others = [table for table in group.change.vdisk.sharing if table is not group.table]
        invalidate = self._cluster.changes.invalidate

        def unwritable(now_ns: int) -> None:
            invalidate(group.change, [group.table], now_ns, lambda now: self._commit_zero(group, now), NOTHING)

        invalidate(group.change, others, now_ns, unwritable, NOTHING)

    def _still_wanted(self, group: Group) -> list[int]:
        """The group's segments that a parked unmap or zeroing of the whole segment has faulted for again, on INVALID.

        Another one that waits may have been given up since. And the first came while nothing else was changing the
        segment, so it is our INVALID that the second has met.
        """
        vdisk = group.change.vdisk
        blocks = vdisk.segment_size // vdisk.block_size
        again = {
            item.fault[2]
            for item in group.change.waiting
            if item.table is group.table
            and not item.fault[3] & MAPPED
            and item.fault[4] in _RECLAIMING
            and item.fault[8] == blocks
        }
        return [] if group.void else [segment for segment in group.segments if segment in again]

    def _commit_zero(self, group: Group, now_ns: int, patient: bool = True) -> None:
        cluster, vdisk, segments = self._cluster, group.change.vdisk, self._still_wanted(group)
        if patient and len(segments) < len(group.segments) and not group.void:
            # A data plane may send the answer a little before the faults that it has gathered.
            cluster.timers.at(now_ns + RECLAIM_PATIENCE_NS, lambda now: self._commit_zero(group, now, False))
            return
        if not segments:
            cluster.changes.finish(group.change, now_ns)
            return
        freed = location_runs(array("Q", [vdisk.recorded(segment) for segment in segments]))
        for start, count in runs_of(segments):
            cluster.journal.records.entry_run(vdisk.number, start, count, ZERO_ENTRY)
        for slot, start, count in freed:
            cluster.journal.records.segment_run(slot, start, count, SegmentState.FREE)

        def reclaimed(now_ns: int) -> None:
            for start, count in runs_of(segments):
                cluster.image.fill_entries(vdisk.number, start, count, ZERO_ENTRY)
            cluster.zeroing.freed(freed, now_ns)
            cluster.changes.finish(group.change, now_ns)

        cluster.journal.then(reclaimed)
