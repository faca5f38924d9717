"""Power failures and kills: what was committed is there, what was not is not, half a group never is."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.store import medium
from controller.store.image import MapImage
from controller.store.interface import Batch
from controller.store.records import RecordBuilder
from controller.store.sqlite import SqliteStore
from mapping.entry import pack
from tests.store.places import CLUSTER, QUICK, contents
from tests.store.unsafe_disk import RecordingVFS, Remains

VFS = "segmap-recording"
TOP = Path(__file__).resolve().parent.parent.parent


def group(number: int) -> list[Batch]:
    """Group `number`: two batches that must live or die together."""
    builder = RecordBuilder()
    if number % 5 == 4:
        builder.share_table(1, 2)
    for part in range(20):
        builder.set_entry(1, (number * 20 + part) * 977 % 30_000, pack(3, number * 20 + part))
        builder.request(1, number * 20 + part)
    return [
        Batch(number * 2 + 1, builder.take(), puts=(("n", "first", number),)),
        Batch(number * 2 + 2, puts=(("n", "second", number),)),
    ]


def expected_after(count: int) -> MapImage:
    image = MapImage()
    for number in range(count):
        for batch in group(number):
            image.apply(batch.records)
    return image


@pytest.fixture
def recording() -> Iterator[RecordingVFS]:
    vfs = RecordingVFS(VFS)
    yield vfs
    vfs.unregister()


def committed_after(directory: Path) -> int:
    """Open what is left, check that it is one of the states that were committed, and say which."""
    store = SqliteStore.open(directory / "store.db", cluster=CLUSTER, vfs=QUICK)
    try:
        state = store.load()
        numbers = state.objects.get("n", {})
        assert numbers.get("first") == numbers.get("second")
        count = numbers["first"] + 1 if numbers else 0
        assert contents(state.image) == contents(expected_after(count))
        assert list(state.requests.get(1, {})) == list(range(count * 20))
        if count:
            assert store.commit(group(count - 1), store.term).sequence == count
        return count
    finally:
        store.close()


@pytest.mark.parametrize("seed", range(4))
def test_power_failures_at_every_stage(
    tmp_path: Path, recording: RecordingVFS, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(medium, "CHECKPOINT_PAGES", 60)
    rng = random.Random(seed)
    store = SqliteStore.open(tmp_path / "store.db", cluster=CLUSTER, vfs=VFS)
    term = store.new_term()
    durable_from: list[int] = []
    for number in range(25):
        store.commit(group(number), term)
        durable_from.append(len(recording.record))
        for _ in range(rng.randrange(8)):
            store.fold(rng.choice([5, 64, 4096]))
    store.close()

    cuts = set(rng.sample(range(len(recording.record) + 1), 40)) | set(rng.sample(durable_from, 5))
    remains = Remains()
    states = set()
    for cut in range(len(recording.record) + 1):
        if cut in cuts:
            directory = tmp_path / str(cut)
            remains.write_to(directory, rng)
            count = committed_after(directory)
            durable = sum(point <= cut for point in durable_from)
            assert durable <= count <= durable + 1, f"cut {cut}: {count} groups are there, {durable} were durable"
            states.add(count)
            shutil.rmtree(directory)
        if cut < len(recording.record):
            remains.step(recording.record[cut])
    assert len(states) > 5


def test_the_unsafe_disk_is_unsafe(tmp_path: Path, recording: RecordingVFS) -> None:
    """Without flushing, the same check finds lost commits: it can fail."""
    store = SqliteStore.open(tmp_path / "store.db", cluster=CLUSTER, vfs=VFS)
    term = store.new_term()
    store._connection.execute("PRAGMA synchronous = OFF")
    for number in range(10):
        store.commit(group(number), term)
    remains = Remains()
    for done in recording.record:
        remains.step(done)
    store.close()
    remains.write_to(tmp_path / "after", random.Random(1))
    assert committed_after(tmp_path / "after") < 10


def test_kills_under_load(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    rng = random.Random(11)
    next_number = 0
    for _ in range(3):
        last = run_and_kill(path, next_number, rng.randrange(5, 60))
        store = SqliteStore.open(path)
        state = store.load()
        count = state.objects["n"]["last"] + 1
        assert count >= last + 1
        image = MapImage()
        for number in range(count):
            for part in range(8):
                image.set_entry(1, (number * 8 + part) * 37 % 50_000, pack(3, number * 8 + part))
        assert contents(state.image) == contents(image)
        store.close()
        next_number = count


def run_and_kill(path: Path, first: int, commits: int) -> int:
    """SIGKILL the child after it has said that so many commits are durable; the last number it said."""
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("committing_child.py")), str(path), str(first)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(TOP)},
    )
    assert child.stdout is not None
    try:
        last = -1
        for _ in range(commits):
            last = int(child.stdout.readline())
        child.kill()
        said = [line for line in child.stdout.read().split("\n") if line]
        return int(said[-1]) if said else last
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
