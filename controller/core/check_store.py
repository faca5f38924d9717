"""Part of a check: what the core has in memory against what the store says, while both go on.

The store is read back once; from then on that reading follows every commit, so that it and the memory mean the same
moment. What differs is only a suspect: memory may be ahead of a commit that is under way. It is a finding if it still
differs after every commit of that time has ended, several times over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from controller.core.agents import Standing
from controller.core.cluster import Cluster
from controller.core.effects import ReadStore
from controller.core.truth import Container, segment_states
from controller.store.audit import ERROR, SUSPECTS_MAX, WARNING, Finding
from controller.store.image import CHUNK_SHIFT, MapImage
from controller.store.interface import Batch, Job, JsonValue, StoreState
from controller.store.records import SegmentState
from mapping.entry import describe

if TYPE_CHECKING:
    from controller.core.checking import Check

WAIT_NS: Final = 5_000_000
SLICE_PAUSE_NS: Final = 1_000_000
CHUNKS_PER_SLICE: Final = 16
ROUNDS: Final = 4
TAPE_BYTES_MAX: Final = 256 << 20
"""Records committed while the store is being read; with more, it is not compared."""
_WINDOW: Final = 1 << 16
_FREE, _ZEROED = 1, 2
_POOL_OF: Final = bytes(
    _FREE if state == SegmentState.FREE else _ZEROED if state == SegmentState.ZEROED else 0 for state in range(256)
)


def settled(cluster: Cluster) -> Iterator[int]:
    """Until every commit that is under way now has ended, and its consequences have been drawn."""
    under_way = set(cluster.journal.in_flight)
    yield WAIT_NS
    while not under_way.isdisjoint(cluster.journal.in_flight):
        yield WAIT_NS


class StoreComparison:
    """Reads the store back and compares."""

    def __init__(self, cluster: Cluster, check: Check) -> None:
        self.run_number = check.run
        self._cluster = cluster
        self._check = check
        self._tape: list[Batch] = []
        self._tape_bytes = 0
        self._answer: tuple[StoreState | None, tuple[Finding, ...]] | None = None
        self._image: MapImage | None = None
        self._objects: dict[str, dict[str, JsonValue]] = {}
        self._jobs: dict[int, Job] = {}

    # --- following ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Follow every commit from now on."""
        self._cluster.journal.follow = self._committed

    def stop(self) -> None:
        """Follow no more."""
        self._cluster.journal.follow = None
        self._tape = []
        self._image = None

    def _committed(self, batch: Batch) -> None:
        if self._image is not None:
            self._apply(batch)
        elif self._tape_bytes <= TAPE_BYTES_MAX:
            self._tape.append(batch)
            self._tape_bytes += len(batch.records)

    def _apply(self, batch: Batch) -> None:
        assert self._image is not None
        self._image.apply(batch.records)
        for kind, key in batch.deletes:
            self._objects.get(kind, {}).pop(key, None)
        for kind, key, value in batch.puts:
            self._objects.setdefault(kind, {})[key] = value
        for job_id in batch.jobs_removed:
            self._jobs.pop(job_id, None)
        for job in batch.jobs:
            self._jobs[job.id] = job

    def ask(self) -> Iterator[int]:
        """Have the store read back, once all is committed that is not followed."""
        yield from settled(self._cluster)
        self._cluster.effects.append(ReadStore(self.run_number))

    def answered(self, state: StoreState | None, findings: tuple[Finding, ...]) -> None:
        """It was read."""
        self._answer = (state, findings)

    # --- comparing ---------------------------------------------------------------------------------------------------

    def compare(self) -> Iterator[int]:
        """Everything, once the store has been read."""
        check = self._check
        while self._answer is None:
            yield WAIT_NS
        state, findings = self._answer
        for finding in findings:
            check.findings.add(finding.severity, finding.kind, finding.text)
        if state is None or self._tape_bytes > TAPE_BYTES_MAX:
            check.missing("store", "memory was not compared with the store: it could not be read back in time")
            return
        self._image, self._objects, self._jobs = state.image, state.objects, state.jobs
        tape, self._tape = self._tape, []
        for batch in tape:
            self._apply(batch)
        yield SLICE_PAUSE_NS
        entries: list[tuple[int, int]] = []
        yield from self._entries(entries)
        yield from repeat(self._cluster, check, "memory", entries, self._entry_differs)
        places: list[tuple[int, int]] = []
        yield from self._states(places)
        yield from repeat(self._cluster, check, "memory", places, self._place_differs)
        yield from self._compare_records()

    def _entry_differs(self, where: tuple[int, int]) -> str:
        assert self._image is not None
        memory, store = self._cluster.image.entry(*where), self._image.entry(*where)
        if memory == store:
            return ""
        return f"vdisk {where[0]} segment {where[1]} is {describe(memory)} in memory, {describe(store)} in the store"

    def _place_differs(self, place: tuple[int, int]) -> str:
        assert self._image is not None
        slot, segment = place
        images = (self._cluster.image, self._image)
        memory, store = ((image.state(*place), image.references.get(slot, {}).get(segment, 0)) for image in images)
        if memory == store:
            return ""
        names = f"{SegmentState(memory[0]).name} in memory, {SegmentState(store[0]).name} in the store"
        return f"slot {slot} segment {segment} is {names}; reference counts {memory[1]}, {store[1]}"

    def _entries(self, suspects: list[tuple[int, int]]) -> Iterator[int]:
        assert self._image is not None
        mine, theirs = self._cluster.image.tables, self._image.tables
        chunks = {(vdisk, number) for tables in (mine, theirs) for vdisk in tables for number in tables[vdisk]}
        for index, (vdisk, number) in enumerate(sorted(chunks)):
            memory, store = mine.get(vdisk, {}).get(number), theirs.get(vdisk, {}).get(number)
            if memory != store:
                base = number << CHUNK_SHIFT
                for segment in range(base, base + (1 << CHUNK_SHIFT)):
                    if self._cluster.image.entry(vdisk, segment) != self._image.entry(vdisk, segment):
                        suspects.append((vdisk, segment))
            if index % CHUNKS_PER_SLICE == 0:
                self._check.progress = 0.3 + 0.2 * index / len(chunks)
                yield SLICE_PAUSE_NS
        self._check.count("table_chunks", len(chunks))

    def _states(self, suspects: list[tuple[int, int]]) -> Iterator[int]:
        mine = self._cluster.image
        assert self._image is not None
        for slot in sorted(mine.segments.keys() | self._image.segments.keys()):
            count = max(len(mine.segments.get(slot, b"")), len(self._image.segments.get(slot, b"")))
            for start in range(0, count, _WINDOW):
                memory, store = (
                    bytes(image.segments.get(slot, b"")[start : start + _WINDOW]).ljust(_WINDOW, b"\0")
                    for image in (mine, self._image)
                )
                if memory != store:
                    suspects += [(slot, start + i) for i in range(_WINDOW) if memory[i] != store[i]]
                yield SLICE_PAUSE_NS
            counts = mine.references.get(slot, {}).items() ^ self._image.references.get(slot, {}).items()
            suspects += [(slot, segment) for segment, _ in counts]

    # --- records -----------------------------------------------------------------------------------------------------

    def _compare_records(self) -> Iterator[int]:
        def differs(key: tuple[str, str]) -> str:
            memory, store = self._in_memory().get(key), self._in_store().get(key)
            if memory == store:
                return ""
            return f"{key[0]} {key[1]} is {memory} in memory, {store} in the store"

        keys = self._in_memory().keys() | self._in_store().keys()
        self._check.count("records", len(keys))
        yield from repeat(self._cluster, self._check, "record", [key for key in sorted(keys) if differs(key)], differs)

    def _in_memory(self) -> dict[tuple[str, str], Any]:
        cluster = self._cluster
        records: dict[tuple[str, str], Any] = {}
        for container in cluster.containers.values():
            records["container", str(container.slot)] = container.record()
        for vdisk in cluster.vdisks.values():
            records["vdisk", str(vdisk.number)] = vdisk.record()
            for number, presentation in vdisk.presentations.items():
                records["presentation", f"{vdisk.number}:{number}"] = presentation.record()
        for agent in cluster.agents.values():
            if agent.standing is not Standing.NONE:
                records["agent", str(agent.number)] = agent.record()
        for allow in cluster.allows.values():
            records["allow", allow.key] = allow.record()
        for job in cluster.zeroing.jobs.values():
            records["job", str(job.id)] = (job.kind, job.state, _plain(job.payload))
        return records

    def _in_store(self) -> dict[tuple[str, str], Any]:
        records: dict[tuple[str, str], Any] = {
            (kind, key): record
            for kind in ("vdisk", "presentation", "agent", "allow")
            for key, record in self._objects.get(kind, {}).items()
        }
        for key, value in self._objects.get("container", {}).items():
            assert isinstance(value, dict), "an object of the store is not a record"
            records["container", key] = Container(int(key), value).record()
        for job in self._jobs.values():
            if job.kind == "zero":
                records["job", str(job.id)] = (job.kind, job.state, _plain(job.payload))
        return records


def _plain(value: Any) -> Any:
    """As JSON has it: lists, not tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def repeat(
    cluster: Cluster, check: Check, kind: str, suspects: list[Any], differs: Callable[[Any], str]
) -> Iterator[int]:
    """Judge suspects again after the commits under way; findings are those that are wrong every time."""
    dropped = max(0, len(suspects) - SUSPECTS_MAX)
    del suspects[SUSPECTS_MAX:]
    for _ in range(ROUNDS):
        if not suspects:
            return
        yield from settled(cluster)
        suspects = [suspect for suspect in suspects if differs(suspect)]
    for suspect in suspects:
        check.findings.add(ERROR, kind, differs(suspect))
    if suspects and dropped:
        check.findings.add(WARNING, kind, f"{dropped} more differed at first sight")


class AllocatorCheck:
    """What the allocator would give out is what is free, once each, and all of it is accounted for."""

    def __init__(self, cluster: Cluster, check: Check) -> None:
        self._cluster = cluster
        self._check = check

    def run(self) -> Iterator[int]:
        """Container by container, each at one moment."""
        for slot in list(self._cluster.allocator.spaces):
            suspects = self._look(slot)
            for _ in range(ROUNDS):
                if not suspects:
                    break
                yield from settled(self._cluster)
                found = self._look(slot)
                suspects = {segment: text for segment, text in found.items() if segment in suspects}
            for text in list(suspects.values())[:SUSPECTS_MAX]:
                self._check.findings.add(ERROR, "allocator", text)
            yield SLICE_PAUSE_NS

    def _look(self, slot: int) -> dict[int, str]:
        """What is wrong now, by segment. Nothing is given out of a container that has been failed meanwhile."""
        allocator, container = self._cluster.allocator, self._cluster.containers[slot]
        if slot not in allocator.spaces:
            return {}
        states = segment_states(self._cluster.image, container)
        marks, wrong = bytearray(len(states)), dict[int, str]()
        space = allocator.spaces[slot]
        runs = [(_FREE, *run) for run in space.free.runs] + [(_ZEROED, *run) for run in space.zeroed.runs]
        runs += [(_ZEROED, start, count) for owner, start, count in allocator.reserved() if owner == slot]
        for mark, start, count in runs:
            if any(marks[start : start + count]):
                wrong[start] = f"container {container.name}: segments {start}..{start + count - 1} are given out twice"
            marks[start : start + count] = bytes([mark]) * count
        expected = bytes(states).translate(_POOL_OF)
        if expected != marks:
            for segment, (mark, should) in enumerate(zip(marks, expected, strict=True)):
                if mark != should:
                    state = SegmentState(states[segment]).name
                    where = ("nowhere", "to be zeroed", "to be given out")[mark]
                    wrong[segment] = f"container {container.name} segment {segment} is {state}, but listed {where}"
        return wrong
