"""Virtual disks: created thin, presented at agents, withdrawn, deleted (design: 8; [0015] [0023] [0029] [0034]).

What is wanted is persisted first and then brought about by `bringup`; a presentation's record goes only after the agent
has answered DELETE_TABLE or is fenced. A deleted vdisk's locations are freed after that, in commits of bounded size.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final

from controller.config import SECOND_NS
from controller.core.agents import Agent, AgentTable, Presentation, TableState
from controller.core.cluster import Cluster
from controller.core.holdings import NOTHING
from controller.core.refusals import Refusal
from controller.core.truth import VDisk, location_runs
from controller.store.image import CHUNK_SHIFT
from controller.store.records import SegmentState
from mapping.entry import ZERO_ENTRY

SEGMENT_SIZE_MIN: Final = 4096
SEGMENT_SIZE_MAX: Final = 1 << 30
CHUNKS_FREED_AT_ONCE: Final = 16


class Volumes:
    """The life of virtual disks."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._deleted: dict[int, list[Callable[[int, int], None]]] = {}
        self._freeing: set[int] = set()
        self._next_number = max(cluster.vdisks, default=0) + 1
        known = cluster.objects.get("counter", {}).get("vdisk")
        if isinstance(known, int):
            self._next_number = max(self._next_number, known + 1)

    def named(self, name: str) -> VDisk:
        """Raises Refusal if there is none."""
        for vdisk in self._cluster.vdisks.values():
            if vdisk.name == name:
                return vdisk
        raise Refusal("not_found", f"there is no vdisk {name}", "`segmap vdisk list` shows them")

    # --- create ------------------------------------------------------------------------------------------------------

    def create(
        self, name: str, size_bytes: int, segment_size: int, block_size: int, slots: frozenset[int] | None
    ) -> VDisk:
        """A new vdisk, ZERO everywhere; the caller replies once it is committed."""
        cluster, limits = self._cluster, self._cluster.limits
        segment_size = segment_size or limits.segment_size
        block_size = block_size or limits.block_size
        if any(vdisk.name == name for vdisk in cluster.vdisks.values()):
            raise Refusal("exists", f"there is a vdisk {name} already")
        if len(cluster.vdisks) >= limits.vdisks:
            raise Refusal("limit", f"there are {limits.vdisks} vdisks already")
        if block_size not in (512, 4096) or segment_size % block_size:
            raise Refusal("bad_argument", "block_size is 512 or 4096, and segment_size a multiple of it")
        if not SEGMENT_SIZE_MIN <= segment_size <= SEGMENT_SIZE_MAX:
            raise Refusal("bad_argument", f"segment_size is {SEGMENT_SIZE_MIN}..{SEGMENT_SIZE_MAX} bytes")
        segment_count = -(-size_bytes // segment_size)
        if not 0 < segment_count <= limits.vdisk_segments:
            raise Refusal("bad_argument", f"size_bytes is 1..{limits.vdisk_segments * segment_size}")
        for container in [cluster.containers[slot] for slot in sorted(slots or ())]:
            if not container.suits(segment_size, block_size):
                cut = f"segments of {container.segment_size} bytes on blocks of {container.block_size}"
                raise Refusal("bad_argument", f"container {container.name} has {cut}: the vdisk does not fit them")
        number = self._next_number
        if number >= 1 << 32:
            raise Refusal("limit", "vdisk numbers are used up")
        self._next_number += 1
        record = {
            "name": name,
            "uuid": str(cluster.make_uuid()),
            "segment_size": segment_size,
            "segment_count": segment_count,
            "block_size": block_size,
            "slots": None if slots is None else sorted(slots),
            "deleting": False,
        }
        vdisk = VDisk(number, record, cluster.image.tables.setdefault(number, {}))
        cluster.add_vdisk(vdisk)
        cluster.journal.put("vdisk", str(number), vdisk.record())
        cluster.journal.put("counter", "vdisk", number)
        return vdisk

    # --- present and withdraw ----------------------------------------------------------------------------------------

    def present(
        self, vdisk: VDisk, agents: list[Agent], hosts: list[str], read_only: bool, any_host: bool, now_ns: int
    ) -> None:
        """Record the presentations; they are brought about once that is committed."""
        if vdisk.deleting:
            raise Refusal("busy", f"vdisk {vdisk.name} is being deleted")
        for agent in agents:
            if not agent.mapper:
                raise Refusal("bad_argument", f"agent {agent.name} is not a mapper")
            if agent.draining:
                raise Refusal(
                    "busy", f"agent {agent.name} is drained", f"`segmap agent undrain {agent.name}` ends that"
                )
            known = vdisk.presentations.get(agent.number)
            if known is not None and known.withdrawing:
                raise Refusal("busy", f"vdisk {vdisk.name} is being withdrawn from {agent.name}", "try again later")
            if known is not None and known.read_only != read_only:
                raise Refusal("exists", f"{vdisk.name} is presented at {agent.name} already, with other access")
        for agent in agents:
            self._present_at(vdisk, agent, hosts, read_only, any_host)

    def _present_at(self, vdisk: VDisk, agent: Agent, hosts: list[str], read_only: bool, any_host: bool) -> None:
        cluster = self._cluster
        presentation = vdisk.presentations.get(agent.number)
        if presentation is None:
            presentation = vdisk.presentations[agent.number] = Presentation(hosts, read_only, any_host)
        elif (presentation.hosts, presentation.any_host) != (hosts, any_host):
            presentation.hosts, presentation.any_host, presentation.replaced = hosts, any_host, True
        cluster.journal.put("presentation", f"{vdisk.number}:{agent.number}", presentation.record())
        wanted = presentation

        def recorded(now_ns: int) -> None:
            if vdisk.presentations.get(agent.number) is not wanted:
                return
            if agent.number not in vdisk.tables:
                table = AgentTable(agent, vdisk, wanted)
                table.state = TableState.ABSENT
                table.holdings.reset(NOTHING)
                cluster.add_table(table)
            cluster.bringup.reconcile(agent, now_ns)

        cluster.journal.then(recorded)

    def withdraw(self, vdisk: VDisk, agent: Agent, now_ns: int) -> None:
        """Record that it is to go; then take it away."""
        cluster = self._cluster
        presentation = vdisk.presentations.get(agent.number)
        if presentation is None or presentation.withdrawing:
            return
        presentation.withdrawing = True
        cluster.journal.put("presentation", f"{vdisk.number}:{agent.number}", presentation.record())

        def recorded(now_ns: int) -> None:
            table = vdisk.tables.get(agent.number)
            if table is None:
                self._forget(vdisk, agent.number)
            elif agent.admitted:
                cluster.bringup.reconcile(agent, now_ns)
            elif agent.holds_nothing:
                self.withdrawn(table, now_ns)
            else:
                cluster.fencing.needed(agent, now_ns)

        cluster.journal.then(recorded)

    def withdrawn(self, table: AgentTable, now_ns: int) -> None:
        """The agent has nothing of it any more."""
        vdisk, agent = table.vdisk, table.agent
        if agent.tables.get(vdisk.number) is not table:
            return
        del agent.tables[vdisk.number]
        del vdisk.tables[agent.number]
        self._cluster.allocator.release(table.extent)
        self._forget(vdisk, agent.number)

    def _forget(self, vdisk: VDisk, agent_number: int) -> None:
        cluster = self._cluster
        cluster.journal.delete("presentation", f"{vdisk.number}:{agent_number}")

        def committed(now_ns: int) -> None:
            vdisk.presentations.pop(agent_number, None)
            cluster.changed = True
            if vdisk.deleting:
                self._begin_freeing(vdisk, now_ns)

        cluster.journal.then(committed)

    # --- delete ------------------------------------------------------------------------------------------------------

    def delete(self, vdisk: VDisk, done: Callable[[int, int], None], now_ns: int) -> None:
        """Withdraw everywhere, then free; `done(freed segments, now)` once that is committed."""
        self._deleted.setdefault(vdisk.number, []).append(done)
        if vdisk.deleting:
            return
        vdisk.deleting = True
        self._cluster.journal.put("vdisk", str(vdisk.number), vdisk.record())
        self._cluster.journal.then(lambda now: self._continue_delete(vdisk, now))

    def resume(self, now_ns: int) -> None:
        """After a restart: go on with what was begun."""
        for vdisk in list(self._cluster.vdisks.values()):
            for table in list(vdisk.tables.values()):
                if table.presentation.withdrawing and table.agent.holds_nothing:
                    self.withdrawn(table, now_ns)
            if vdisk.deleting:
                self._continue_delete(vdisk, now_ns)

    def _continue_delete(self, vdisk: VDisk, now_ns: int) -> None:
        for number in list(vdisk.presentations):
            self.withdraw(vdisk, self._cluster.agents[number], now_ns)
        self._begin_freeing(vdisk, now_ns)

    def _begin_freeing(self, vdisk: VDisk, now_ns: int) -> None:
        """Once nobody has a table of it, and only once."""
        if not vdisk.presentations and vdisk.number not in self._freeing:
            self._freeing.add(vdisk.number)
            self._free_some(vdisk, 0, now_ns)

    def _free_some(self, vdisk: VDisk, freed: int, now_ns: int) -> None:
        """Free the locations of a few chunks, and go on once that is committed; at last the vdisk is forgotten."""
        cluster = self._cluster
        if vdisk.changing:
            cluster.timers.at(now_ns + SECOND_NS // 10, lambda now: self._free_some(vdisk, freed, now))
            return
        chunks = sorted(vdisk.chunks)[:CHUNKS_FREED_AT_ONCE]
        runs = location_runs(sum((vdisk.chunks[number] for number in chunks), array("Q")))
        for number in chunks:
            start = number << CHUNK_SHIFT
            count = min(1 << CHUNK_SHIFT, vdisk.segment_count - start)
            cluster.journal.records.entry_run(vdisk.number, start, count, ZERO_ENTRY)
        for slot, start, count in runs:
            cluster.journal.records.segment_run(slot, start, count, SegmentState.FREE)
        total = freed + sum(count for _, _, count in runs)
        last = len(vdisk.chunks) == len(chunks)
        if last:
            cluster.journal.records.drop_table(vdisk.number)
            cluster.journal.delete("vdisk", str(vdisk.number))

        def committed(now_ns: int) -> None:
            for number in chunks:
                start = number << CHUNK_SHIFT
                count = min(1 << CHUNK_SHIFT, vdisk.segment_count - start)
                cluster.image.fill_entries(vdisk.number, start, count, ZERO_ENTRY)
                vdisk.chunks.pop(number, None)
            cluster.zeroing.freed(runs, now_ns)
            if not last:
                self._free_some(vdisk, total, now_ns)
                return
            self._freeing.discard(vdisk.number)
            cluster.image.drop_table(vdisk.number)
            del cluster.vdisks[vdisk.number]
            cluster.changed = True
            for done in self._deleted.pop(vdisk.number, []):
                done(total, now_ns)

        cluster.journal.then(committed)
