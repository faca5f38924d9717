"""Benchmarks of the mapping core: lookups, submits, bulk loads, an empty petabyte."""

from __future__ import annotations

import random
import resource
from array import array
from collections.abc import Callable
from statistics import median
from time import perf_counter

from mapping.effects import Part
from mapping.engine import READ_MASK, Geometry, Limits
from mapping.entry import pack
from mapping.plane import Plane, Stamp
from mapping.rules import Operation
from mapping.status import Status
from mapping.table import Table

TITLE = "the reference engine and its tables, one core"
GOALS = {
    "lookups_per_s": (">=", 1_000_000),
    "petabyte_table_s": ("<=", 0.1),
    "petabyte_table_mib": ("<=", 10),
}
SEGMENTS = 1 << 20
LOOKUPS = 200_000
LOAD = 65536
RUNS = 5


def _plane() -> Plane:
    plane = Plane(bytes(16))
    plane.admit(1, 1, b"c" * 16, Limits(), 10**10, 0)
    plane.bind_slot(0, b"k" * 16)
    plane.create_table(1, Geometry(SEGMENTS), [0])
    plane.grant_lease(Stamp(1, 1, 1), 0, 10**10, 0)
    return plane


def _rate(work: Callable[[], None], count: int) -> float:
    rates = []
    for _ in range(RUNS):
        began = perf_counter()
        work()
        rates.append(count / (perf_counter() - began))
    return median(rates)


def run() -> dict[str, float]:
    """Medians: rates in 1/s, times in s, memory in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = perf_counter()
    petabyte = Table(1 << 30)
    results = {"petabyte_table_s": perf_counter() - began}
    results["petabyte_table_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    petabyte.close()

    plane = _plane()
    engine = plane.tables[1]
    entries = array("Q", [pack(0, number) for number in range(LOAD)])

    def load() -> None:
        for start in range(0, SEGMENTS, LOAD):
            stamp = Stamp(1, 1, 1, engine.sequence + 1)
            status, _ = plane.set_entries(stamp, 1, start, LOAD, entries, 1)
            assert status is Status.OK

    results["set_entries_per_s"] = _rate(load, SEGMENTS)
    segments = random.Random(1).choices(range(SEGMENTS), k=LOOKUPS)

    def translate() -> None:
        lookup = engine.translate
        for segment in segments:
            lookup(segment, READ_MASK, 1)

    def submit() -> None:
        for segment in segments:
            part = Part(Operation.READ, segment, 0, 8)
            engine.submit(part, 1)
            engine.complete(part, Status.OK, 1)

    results["lookups_per_s"] = _rate(translate, LOOKUPS)
    results["submit_complete_per_s"] = _rate(submit, LOOKUPS)
    return results
