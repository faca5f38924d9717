"""Auditing the image: a container's segment is exactly one of label, free, zeroed, mapped, quarantined, or in a job.

Every mapped location is MAPPED, with as many entries as its reference count says; every MAPPED segment is mapped
(design: 5, 6, 10). The audit goes in slices, and the image may change between them: what looks wrong is only a suspect,
is judged afresh in later passes, and becomes a finding if it is wrong in all of them. Each judgement is made within one
slice, on one state.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from controller.store.image import CHUNK_ENTRIES, CHUNK_SHIFT, MapImage, consecutive
from controller.store.interface import Job
from controller.store.records import SegmentState
from mapping.entry import FLAGS, MAPPED, NO_WRITE, ZERO_ENTRY, has_location, segment_of, slot_of

ERROR: Final = "error"
WARNING: Final = "warning"
FINDINGS_MAX: Final = 1000
SUSPECTS_MAX: Final = 4096
WINDOW_SEGMENTS: Final = 1 << 16
_IS_MAPPED: Final = bytes(int(state == SegmentState.MAPPED) for state in range(256))
_AT_WORK: Final = re.compile(rb"[\x03\x06]+")
"""Runs of ZEROING and COPYING."""
_JOB_STATES: Final = frozenset((SegmentState.ZEROING, SegmentState.COPYING, SegmentState.QUARANTINED))


@dataclass(frozen=True, slots=True)
class Finding:
    """`severity` error: an invariant does not hold; warning: something could not be looked at."""

    severity: str
    kind: str
    text: str

    def row(self) -> dict[str, Any]:
        """For programs."""
        return {"severity": self.severity, "kind": self.kind, "text": self.text}


class Findings:
    """At most FINDINGS_MAX of them; `dropped` counts the rest."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.dropped = 0

    def add(self, severity: str, kind: str, text: str) -> None:
        """Found."""
        if len(self.found) < FINDINGS_MAX:
            self.found.append(Finding(severity, kind, text))
        else:
            self.dropped += 1

    @property
    def errors(self) -> int:
        """How many say that an invariant does not hold."""
        return sum(finding.severity == ERROR for finding in self.found)


class Shape(NamedTuple):
    """A container, or a vdisk: its name, and how many segments it has."""

    name: str
    segment_count: int


@dataclass(frozen=True, slots=True)
class JobRun:
    """Segments that a job has."""

    job: int
    slot: int
    start: int
    count: int


class Books(Protocol):
    """What is audited. Read anew in each slice."""

    @property
    def image(self) -> MapImage: ...
    def containers(self) -> Mapping[int, Shape]:
        """The ready ones, by slot."""

    def vdisks(self) -> Mapping[int, Shape]: ...
    def job_runs(self) -> Iterable[JobRun]: ...


class Recorded:
    """The books as the store has them."""

    def __init__(self, image: MapImage, objects: Mapping[str, Mapping[str, Any]], jobs: Mapping[int, Job]) -> None:
        self.image = image
        self._containers = {
            int(key): Shape(record["name"], record["segment_count"])
            for key, record in objects.get("container", {}).items()
            if record["ready"]
        }
        self._vdisks = {
            int(key): Shape(record["name"], record["segment_count"]) for key, record in objects.get("vdisk", {}).items()
        }
        self._runs = [run for job in jobs.values() for run in runs_of_job(job)]

    def containers(self) -> Mapping[int, Shape]:
        return self._containers

    def vdisks(self) -> Mapping[int, Shape]:
        return self._vdisks

    def job_runs(self) -> Iterable[JobRun]:
        return self._runs


def runs_of_job(job: Job) -> list[JobRun]:
    """The container segments that a job has: `slot` and `runs` of its payload."""
    payload = job.payload
    if not isinstance(payload, dict) or "slot" not in payload or "runs" not in payload:
        return []
    runs: Any = payload["runs"]
    return [JobRun(job.id, int(payload["slot"]), start, count) for start, count in runs]  # type: ignore[arg-type]


class ImageAudit:
    """One audit. `run()` yields after each slice; `done` of `total` units of work; the result is in `findings`.

    What it yields is True if suspects are judged afresh next: time for changes that are half done to be completed.
    """

    def __init__(self, books: Books, passes: int = 1) -> None:
        self.findings = Findings()
        self.done = 0
        self.segments = 0
        self._books = books
        self._passes = passes
        self._seen: dict[int, bytearray] = {}
        self._many: dict[int, int] = {}
        self._suspects: dict[int, str] = {}
        self._misplaced: dict[tuple[int, int], str] = {}
        windows = sum(-(-shape.segment_count // WINDOW_SEGMENTS) for shape in books.containers().values())
        self.total = len(self._chunks()) + windows

    def run(self) -> Iterator[bool]:
        """The audit, slice by slice."""
        books = self._books
        self._seen = {slot: bytearray(shape.segment_count) for slot, shape in books.containers().items()}
        for vdisk, number in self._chunks():
            self._scan(vdisk, number)
            self.done += 1
            yield False
        for slot in self._seen:
            yield from self._compare(slot)
        self._suspect_the_rest()
        for _ in range(self._passes):
            if self._suspects or self._misplaced:
                yield True
                yield from self._look_again()
        for text in (*self._suspects.values(), *self._misplaced.values()):
            self.findings.add(ERROR, "segment", text)

    def _chunks(self) -> list[tuple[int, int]]:
        return [(vdisk, number) for vdisk, chunks in self._books.image.tables.items() for number in sorted(chunks)]

    # --- the first pass: who maps what, in bulk ----------------------------------------------------------------------

    def _scan(self, vdisk: int, number: int) -> None:
        chunk = self._books.image.tables.get(vdisk, {}).get(number)
        if chunk is None:
            return
        self._check_end(vdisk, number, chunk)
        if consecutive(chunk):
            slot, start = slot_of(chunk[0]), segment_of(chunk[0])
            seen = self._seen.get(slot)
            if seen is not None and start + len(chunk) <= len(seen) and not any(seen[start : start + len(chunk)]):
                seen[start : start + len(chunk)] = b"\1" * len(chunk)
                return
        self._scan_entries(vdisk, number << CHUNK_SHIFT, chunk)

    def _scan_entries(self, vdisk: int, base: int, chunk: array[int]) -> None:
        seen, many = self._seen, self._many
        for index, entry in enumerate(chunk):
            if entry & 0b1101 != MAPPED:
                continue
            try:
                states = seen[entry >> 4 & 0xFFF]
                if states[entry >> 16]:
                    many[entry & ~FLAGS] = many.get(entry & ~FLAGS, 1) + 1
                states[entry >> 16] = 1
            except (KeyError, IndexError):
                if len(self._misplaced) < SUSPECTS_MAX:
                    self._misplaced[vdisk, base + index] = ""

    def _check_end(self, vdisk: int, number: int, chunk: array[int]) -> None:
        shape = self._books.vdisks().get(vdisk)
        end = 0 if shape is None else shape.segment_count
        first = max(0, min(CHUNK_ENTRIES, end - (number << CHUNK_SHIFT)))
        for index in range(first, CHUNK_ENTRIES):
            if chunk[index] != ZERO_ENTRY and len(self._misplaced) < SUSPECTS_MAX:
                self._misplaced[vdisk, (number << CHUNK_SHIFT) + index] = ""

    def _compare(self, slot: int) -> Iterator[bool]:
        """The states of a container against what maps its segments."""
        states, seen = self._books.image.segments.get(slot, bytearray()), self._seen[slot]
        jobs = [run for run in self._books.job_runs() if run.slot == slot]
        for start in range(0, len(seen), WINDOW_SEGMENTS):
            end = min(start + WINDOW_SEGMENTS, len(seen))
            window = bytes(states[start:end]).ljust(end - start, b"\0")
            self.segments += end - start
            expected = seen[start:end]
            if window.translate(_IS_MAPPED) != expected:
                for index, (state, mapped) in enumerate(zip(window, expected, strict=True)):
                    if _IS_MAPPED[state] != mapped:
                        self._suspect(slot, start + index)
            for match in _AT_WORK.finditer(window):
                self._suspect_outside(slot, start + match.start(), start + match.end(), jobs)
            at = window.find(SegmentState.LABEL, 1 if start == 0 else 0)
            if at >= 0 or (start == 0 and window[0] != SegmentState.LABEL):
                self._suspect(slot, start + max(at, 0))
            self.done += 1
            yield False

    def _suspect_outside(self, slot: int, start: int, end: int, jobs: list[JobRun]) -> None:
        """Segments at work that no job has."""
        covered = {segment for run in jobs for segment in range(max(start, run.start), min(end, run.start + run.count))}
        for segment in range(start, end):
            if segment not in covered:
                self._suspect(slot, segment)

    def _suspect(self, slot: int, segment: int) -> None:
        if len(self._suspects) < SUSPECTS_MAX:
            self._suspects[segment << 16 | slot << 4] = ""

    def _suspect_the_rest(self) -> None:
        """Reference counts that are not one, states beyond a container's end, and segments of jobs."""
        books, image = self._books, self._books.image
        for location, count in self._many.items():
            if image.references.get(slot_of(location), {}).get(segment_of(location), 1) != count:
                self._suspect(slot_of(location), segment_of(location))
        for slot, counts in image.references.items():
            for segment, count in counts.items():
                if self._many.get(segment << 16 | slot << 4, 1) != count:
                    self._suspect(slot, segment)
        for slot, states in image.segments.items():
            known = len(self._seen.get(slot, b""))
            if states.count(0, known) != max(0, len(states) - known):
                self._suspect(slot, next(at for at in range(known, len(states)) if states[at]))
        for run in books.job_runs():
            states = image.segments.get(run.slot, bytearray())
            if not _JOB_STATES.issuperset(states[run.start : run.start + run.count]):
                for segment in range(run.start, run.start + run.count):
                    self._suspect(run.slot, segment)

    # --- later passes: who is still wrong ----------------------------------------------------------------------------

    def _look_again(self) -> Iterator[bool]:
        owners: dict[int, list[tuple[int, int]]] = {location: [] for location in self._suspects}
        wanted = {location | flags for location in owners for flags in (MAPPED, MAPPED | NO_WRITE)}
        self.total += len(chunks := self._chunks())
        for vdisk, number in chunks:
            chunk = self._books.image.tables.get(vdisk, {}).get(number)
            if chunk is not None and not wanted.isdisjoint(chunk):
                base = number << CHUNK_SHIFT
                for index, entry in enumerate(chunk):
                    if entry in wanted:
                        owners[entry & ~FLAGS].append((vdisk, base + index))
            self.done += 1
            yield False
        judged = {location: self._judge(location, found) for location, found in owners.items()}
        self._suspects = {location: text for location, text in judged.items() if text}
        placed = {where: self._judge_place(*where) for where in self._misplaced}
        self._misplaced = {where: text for where, text in placed.items() if text}

    def _judge(self, location: int, found: list[tuple[int, int]]) -> str:
        """What is wrong with a segment now; nothing: an empty text."""
        image, slot, segment = self._books.image, slot_of(location), segment_of(location)
        owners = [where for where in found if image.entry(*where) & ~FLAGS == location]
        state, shape = image.state(slot, segment), self._books.containers().get(slot)
        job = next((r.job for r in self._books.job_runs() if r.slot == slot and 0 <= segment - r.start < r.count), 0)
        references = image.references.get(slot, {}).get(segment)
        by = ", ".join(f"{self._name(vdisk)} segment {index}" for vdisk, index in owners[:4])
        wrong = ""
        if state == SegmentState.MAPPED and len(owners) != (references or 1):
            wrong = f"is mapped {len(owners)} times ({by or 'leaked'}), its reference count is {references or 1}"
        elif state != SegmentState.MAPPED and owners:
            wrong = f"is {_state_name(state)}, and mapped at {by}"
        elif state != SegmentState.MAPPED and references:
            wrong = f"is {_state_name(state)} with a reference count of {references}"
        elif state in (SegmentState.ZEROING, SegmentState.COPYING) and not job:
            wrong = f"is {_state_name(state)}, and no job has it"
        elif job and state not in _JOB_STATES:
            wrong = f"is {_state_name(state)}, and job {job} has it"
        elif (segment == 0) != (state == SegmentState.LABEL) and shape is not None:
            wrong = f"is {_state_name(state)}: the label is in segment 0, and only there"
        elif state and (shape is None or segment >= shape.segment_count):
            wrong = f"is {_state_name(state)}, and no ready container has it"
        name = f"container {shape.name}" if shape is not None else f"slot {slot}"
        return f"{name} segment {segment} {wrong}" if wrong else ""

    def _judge_place(self, vdisk: int, segment: int) -> str:
        """What is wrong with an entry now, seen from the vdisk."""
        entry, shape = self._books.image.entry(vdisk, segment), self._books.vdisks().get(vdisk)
        if entry == ZERO_ENTRY:
            return ""
        if shape is None:
            return f"table {vdisk} has an entry for segment {segment}, and there is no such vdisk"
        if segment >= shape.segment_count:
            return f"vdisk {shape.name} has {shape.segment_count} segments, and an entry for segment {segment}"
        container = self._books.containers().get(slot_of(entry))
        if has_location(entry) and (container is None or segment_of(entry) >= container.segment_count):
            place = f"slot {slot_of(entry)} segment {segment_of(entry)}"
            return f"vdisk {shape.name} segment {segment} is at {place}, which no ready container has"
        return ""

    def _name(self, vdisk: int) -> str:
        shape = self._books.vdisks().get(vdisk)
        return f"vdisk {shape.name}" if shape is not None else f"table {vdisk}"


def _state_name(state: int) -> str:
    return SegmentState(state).name if state in SegmentState._value2member_map_ else f"in state {state}"
