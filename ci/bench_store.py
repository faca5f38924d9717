"""Benchmarks of the store: durable faults at 1, 16 and 128 outstanding, bulk entries, loading, and what folding costs.

Every figure is a median; the raw disk (fdatasync of 4 KiB, overwritten) is measured in between, and durable rates are
also given as a ratio to it. A "fault" is what the controller commits for one: an entry, its container segment, and the
request that asked. "store" figures call the store, "committer" figures go through the group committer with that many
tasks that each wait for their commit.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

import uvloop

from controller.store.image import MapImage
from controller.store.interface import Batch
from controller.store.records import RecordBuilder
from controller.store.sqlite import SqliteStore
from controller.store.writer import GroupCommitter
from mapping.entry import pack

TITLE = "the durable store (SQLite), one thread"
GOALS = {
    "store_faults_per_s_at_1": (">=", 5_000),
    "store_faults_per_s_at_16": (">=", 60_000),
    "store_faults_per_s_at_128": (">=", 190_000),
    "store_commit_over_fdatasync": ("<=", 2.0),
    "bulk_entries_per_s": (">=", 5_000_000),
    "load_1m_segments_s": ("<=", 1.0),
    "replay_records_per_s": (">=", 1_000_000),
    "build_records_per_s": (">=", 1_000_000),
    "petabyte_load_s": ("<=", 0.1),
}
SEGMENTS = 1 << 20
RUNS = 5
GROUPS = {1: 400, 16: 300, 128: 200}
BULK_ENTRIES = 1 << 20
ARRAY = 1 << 16


@contextmanager
def _directory() -> Iterator[Path]:
    """On the disk that the project is on: the system's temporary directory may be memory."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as directory:
        yield Path(directory)


@contextmanager
def _store(directory: Path, name: str) -> Iterator[SqliteStore]:
    store = SqliteStore.open(directory / f"{name}.db")
    try:
        store.new_term()
        yield store
    finally:
        store.close()


class _Faults:
    """Batches of one random fault each, never the same twice."""

    def __init__(self) -> None:
        self._random = random.Random(1)
        self._number = 0

    def batch(self) -> Batch:
        self._number += 1
        builder = RecordBuilder()
        builder.set_entry(1, self._random.randrange(SEGMENTS), pack(1, self._number))
        builder.request(1, self._number)
        return Batch(self._number, builder.take())

    def group(self, size: int) -> list[Batch]:
        return [self.batch() for _ in range(size)]


def _seconds(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def _fdatasync_s(directory: Path, count: int = 200) -> float:
    """Median seconds of writing and flushing 4 KiB of a file that exists."""
    descriptor = os.open(directory / "raw", os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, bytes(4096 * count))
        os.fsync(descriptor)
        times = []
        for index in range(count):
            began = perf_counter()
            os.pwrite(descriptor, b"x" * 4096, index * 4096)
            os.fdatasync(descriptor)
            times.append(perf_counter() - began)
        return median(times)
    finally:
        os.close(descriptor)


def _store_faults(directory: Path) -> dict[str, float]:
    faults = _Faults()
    rates: dict[int, list[float]] = {size: [] for size in GROUPS}
    commits: list[float] = []
    raw: list[float] = []
    with _store(directory, "faults") as store:
        store.commit(faults.group(1), store.term)
        for _ in range(RUNS):
            raw.append(_fdatasync_s(directory))
            for size, count in GROUPS.items():
                groups = [faults.group(size) for _ in range(count)]
                times = [_seconds(lambda group=group: store.commit(group, store.term)) for group in groups]  # type: ignore[misc]
                rates[size].append(size * count / sum(times))
                if size == 1:
                    commits.append(median(times))
            while store.fold():
                pass
    results = {f"store_faults_per_s_at_{size}": median(values) for size, values in rates.items()}
    results["fdatasync_us"] = median(raw) * 1e6
    results["store_commit_us"] = median(commits) * 1e6
    results["store_commit_over_fdatasync"] = median(commit / disk for commit, disk in zip(commits, raw, strict=True))
    return results


async def _committer_run(
    committer: GroupCommitter, faults: _Faults, tasks: int, each: int
) -> tuple[float, list[float]]:
    times: list[float] = []

    async def worker() -> None:
        for _ in range(each):
            began = perf_counter()
            await committer.commit(faults.batch())
            times.append(perf_counter() - began)

    began = perf_counter()
    await asyncio.gather(*(worker() for _ in range(tasks)))
    return tasks * each / (perf_counter() - began), times


async def _committer_faults(directory: Path) -> dict[str, float]:
    """Steady load for seconds, folding and checkpoints included."""
    committer = GroupCommitter(lambda: SqliteStore.open(directory / "committer.db"))
    await committer.start()
    faults = _Faults()
    results = {}
    try:
        for tasks, each in ((1, 3000), (16, 5000), (128, 4000)):
            rate, times = await _committer_run(committer, faults, tasks, each)
            times.sort()
            results[f"committer_faults_per_s_at_{tasks}"] = rate
            results[f"committer_p50_us_at_{tasks}"] = times[len(times) // 2] * 1e6
            results[f"committer_p99_us_at_{tasks}"] = times[len(times) * 99 // 100] * 1e6
    finally:
        await committer.close()
    return results


def _bulk_batches(first: int) -> list[Batch]:
    batches = []
    for start in range(0, BULK_ENTRIES, ARRAY):
        builder = RecordBuilder()
        begin = pack(2, 1 + first + start)
        builder.entry_array(1, first + start, array("Q", range(begin, begin + (ARRAY << 16), 1 << 16)))
        batches.append(Batch(first + start + 1, builder.take()))
    return batches


def _bulk(directory: Path) -> dict[str, float]:
    """A million consecutive mapped segments: committed, then folded, then loaded."""
    commit, both, load, petabyte = [], [], [], []
    for run in range(RUNS):
        with _store(directory, f"bulk{run}") as store:
            batches = _bulk_batches(0)
            groups = [batches[at : at + 4] for at in range(0, len(batches), 4)]
            took = _seconds(lambda: [store.commit(group, store.term) for group in groups])  # noqa: B023
            commit.append(BULK_ENTRIES / took)
            took += _seconds(lambda: [None for _ in iter(store.fold, False)])
            both.append(BULK_ENTRIES / took)
        load.append(_seconds(lambda: SqliteStore.open(directory / f"bulk{run}.db").load()))  # noqa: B023
        with _store(directory, f"petabyte{run}") as store:
            builder = RecordBuilder()
            builder.set_entry(1, (1 << 30) - 1, pack(1, 1))
            store.commit([Batch(1, builder.take())], store.term)
            petabyte.append(_seconds(store.load))
    return {
        "bulk_entries_per_s": median(commit),
        "bulk_entries_folded_per_s": median(both),
        "load_1m_segments_s": median(load),
        "petabyte_load_s": median(petabyte),
    }


def _replay(directory: Path) -> dict[str, float]:
    """Records built, replayed into an image, and folded into trees in slices."""
    count = 200_000
    build, replay, fold, slices = [], [], [], []
    rng = random.Random(2)
    segments = [rng.randrange(SEGMENTS) for _ in range(count)]
    entries = [pack(1, number) for number in range(count)]
    for run in range(RUNS):
        builder = RecordBuilder()
        build.append(2 * count / _seconds(lambda: builder.faults(1, segments, entries, 1, range(count))))  # noqa: B023
        records = builder.take()
        replay.append(2 * count / _seconds(lambda: MapImage().apply(records)))  # noqa: B023
        with _store(directory, f"replay{run}") as store:
            store.commit([Batch(1, records)], store.term)
            times = []
            more = True
            while more:
                began = perf_counter()
                more = store.fold(2048)
                times.append(perf_counter() - began)
            fold.append(2 * count / sum(times))
            slices.append(sorted(times)[len(times) * 99 // 100])
    return {
        "build_records_per_s": median(build),
        "replay_records_per_s": median(replay),
        "fold_records_per_s": median(fold),
        "fold_slice_p99_ms": median(slices) * 1e3,
    }


def run() -> dict[str, float]:
    """Medians: rates in 1/s, times in the unit of their name."""
    with _directory() as directory:
        return {
            **_store_faults(directory),
            **uvloop.run(_committer_faults(directory)),
            **_bulk(directory),
            **_replay(directory),
        }


if __name__ == "__main__":
    for name, value in run().items():
        print(f"{name:36} {value:16,.4g}")
