"""The group committer: order, groups, limits, failures that stop it, recovery."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from controller.store.interface import Batch, Committed, StaleTerm, Store, StoreError, StoreFailed, StoreFull
from controller.store.memory import Failure, MemoryDisk, MemoryStore
from controller.store.records import RecordBuilder
from controller.store.writer import CommitterFull, CommitterLimits, CommitterStopped, GroupCommitter
from mapping.entry import pack
from tests.store.places import CLUSTER

PATIENCE_S = 20.0


def batch(number: int, records: int = 1) -> Batch:
    builder = RecordBuilder()
    for part in range(records):
        builder.set_entry(1, number * records + part, pack(1, number * records + part))
    return Batch(number, builder.take(), puts=(("n", str(number), None),))


class GatedStore(MemoryStore):
    """Its commits wait for `gate`; `groups` says which batches came together, `folds_before` how often it had
    folded before each."""

    gate = threading.Event()
    groups: list[list[int]] = []
    folds = 0
    folds_before: list[int] = []
    folded = threading.Event()
    committing = threading.Event()

    def commit(self, batches: Sequence[Batch], term: int) -> Committed:
        self.committing.set()
        assert self.gate.wait(PATIENCE_S)
        self.groups.append([each.id for each in batches])
        self.folds_before.append(self.folds)
        return super().commit(batches, term)

    def fold(self, limit: int = 4096) -> bool:
        type(self).folds += 1
        more = super().fold(limit)
        if not more and not self.backlog():
            self.folded.set()
        return more


@pytest.fixture
def disk() -> MemoryDisk:
    GatedStore.gate = threading.Event()
    GatedStore.gate.set()
    GatedStore.groups = []
    GatedStore.folds = 0
    GatedStore.folds_before = []
    GatedStore.folded = threading.Event()
    GatedStore.committing = threading.Event()
    return MemoryDisk(CLUSTER)


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work, PATIENCE_S)

    asyncio.run(bounded())


async def until_set(event: threading.Event) -> None:
    assert await asyncio.get_running_loop().run_in_executor(None, event.wait, PATIENCE_S)


def committer_on(disk: MemoryDisk, **limits: Any) -> GroupCommitter:
    return GroupCommitter(lambda: GatedStore.open(disk), CommitterLimits(**limits))


def test_it_commits_and_says_with_what_sequence(disk: MemoryDisk) -> None:
    async def work() -> None:
        committer = committer_on(disk)
        state = await committer.start()
        assert (state.term, state.sequence) == (1, 0)
        assert await committer.commit(batch(1)) == Committed(1, (1,))
        assert await committer.commit(batch(2)) == Committed(2, (2,))
        assert await committer.commit(batch(1)) == Committed(1, (1,))
        await committer.close()
        await committer.close()
        with pytest.raises(CommitterStopped):
            committer.submit(batch(3))
        state = await committer.start()
        assert state.term == 2 and set(state.objects["n"]) == {"1", "2"}
        await committer.close()

    run(work())


def test_groups_form_while_a_commit_is_under_way_and_order_is_kept(disk: MemoryDisk) -> None:
    async def work() -> None:
        committer = committer_on(disk, group_batches_max=4)
        await committer.start()
        GatedStore.gate.clear()
        futures = [committer.submit(batch(1))]
        await until_set(GatedStore.committing)
        futures += [committer.submit(batch(number)) for number in range(2, 8)]
        assert not any(future.done() for future in futures)
        GatedStore.gate.set()
        answers = await asyncio.gather(*futures)
        assert GatedStore.groups == [[1], [2, 3, 4, 5], [6, 7]]
        assert [answer.sequence for answer in answers] == [1, 2, 2, 2, 2, 3, 3]
        await committer.close()

    run(work())


def test_groups_are_bounded_in_bytes(disk: MemoryDisk) -> None:
    async def work() -> None:
        committer = committer_on(disk, group_bytes_max=2000)
        await committer.start()
        GatedStore.gate.clear()
        futures = [committer.submit(batch(1))]
        await until_set(GatedStore.committing)
        futures += [committer.submit(batch(number, size)) for number, size in ((2, 30), (3, 30), (4, 200), (5, 1))]
        GatedStore.gate.set()
        await asyncio.gather(*futures)
        assert GatedStore.groups == [[1], [2, 3], [4], [5]]
        await committer.close()

    run(work())


@pytest.mark.parametrize("limits", [{"queue_batches_max": 3}, {"queue_bytes_max": 3 * (24 + 256)}])
def test_the_queue_is_bounded(disk: MemoryDisk, limits: dict[str, int]) -> None:
    async def work() -> None:
        committer = committer_on(disk, **limits)
        await committer.start()
        GatedStore.gate.clear()
        futures = [committer.submit(batch(1))]
        await until_set(GatedStore.committing)
        futures += [committer.submit(batch(number)) for number in (2, 3, 4)]
        with pytest.raises(CommitterFull):
            committer.submit(batch(5))
        GatedStore.gate.set()
        await asyncio.gather(*futures)
        await committer.commit(batch(5))
        await committer.close()
        assert sorted(number for group in GatedStore.groups for number in group) == [1, 2, 3, 4, 5]

    run(work())


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("error", [StoreFailed("flush"), StaleTerm(9, 1)])
def test_an_error_stops_it_for_everybody_until_it_is_recovered(
    disk: MemoryDisk, error: StoreError, applied: bool
) -> None:
    async def work() -> None:
        committer = committer_on(disk)
        await committer.start()
        await committer.commit(batch(1))
        disk.inject(Failure("commit", error, applied))
        GatedStore.gate.clear()
        GatedStore.committing.clear()
        futures = [committer.submit(batch(2))]
        await until_set(GatedStore.committing)
        futures += [committer.submit(batch(3)), committer.submit(batch(4))]
        GatedStore.gate.set()
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert results == [error, error, error]
        assert committer.failure is error and await committer.stopped() is error
        with pytest.raises(CommitterStopped):
            committer.submit(batch(5))
        with pytest.raises(CommitterStopped):
            await committer.call(lambda store: store.sequence)
        assert GatedStore.groups == [[1], [2]]
        state = await committer.recover()
        assert state.term == 2 and committer.failure is None
        assert set(state.objects["n"]) == ({"1", "2"} if applied else {"1"})
        assert (await committer.commit(batch(2))).sequence == 2
        await committer.close()

    run(work())


def test_a_full_store_is_tried_again_until_it_has_space_and_nothing_is_lost_or_out_of_order(disk: MemoryDisk) -> None:
    told: list[StoreFull | None] = []

    async def work() -> None:
        limits = CommitterLimits(full_retry_s=0.001, full_retry_max_s=0.002)
        committer = GroupCommitter(lambda: GatedStore.open(disk), limits, told.append)
        await committer.start()
        await committer.commit(batch(1))
        errors = [StoreFull(f"full {number}") for number in range(5)]
        for error in errors:
            disk.inject(Failure("commit", error))
        results = await asyncio.gather(*(committer.submit(batch(number)) for number in (2, 3)))
        assert [result.sequence for result in results] == [2, 2]
        await committer.commit(batch(4))
        assert GatedStore.groups == [[1], *[[2, 3]] * 6, [4]]
        assert told == [errors[0], None]
        assert committer.failure is None
        await committer.close()

    run(work())


def test_calls_go_on_while_the_store_is_full_and_closing_does_not_wait_for_space(disk: MemoryDisk) -> None:
    async def work() -> None:
        full = asyncio.Event()
        limits = CommitterLimits(full_retry_s=2 * PATIENCE_S, full_retry_max_s=2 * PATIENCE_S)
        committer = GroupCommitter(lambda: GatedStore.open(disk), limits, lambda error: full.set())
        await committer.start()
        disk.inject(Failure("commit", StoreFull("full")))
        future = committer.submit(batch(1))
        await full.wait()
        assert await committer.call(lambda store: store.sequence) == 0
        assert not future.done()
        await committer.close()
        assert isinstance(future.exception(), StoreFull)

    run(work())


@pytest.mark.parametrize("operation", ["open", "new_term", "load"])
def test_a_failed_start_can_be_tried_again(disk: MemoryDisk, operation: str) -> None:
    async def work() -> None:
        committer = committer_on(disk)
        disk.inject(Failure(operation, StoreFailed("no")))
        with pytest.raises(StoreFailed):
            await committer.start()
        with pytest.raises(CommitterStopped):
            committer.submit(batch(1))
        await committer.start()
        await committer.commit(batch(1))
        await committer.close()

    run(work())


def test_close_commits_what_is_queued(disk: MemoryDisk) -> None:
    async def work() -> None:
        committer = committer_on(disk, group_batches_max=2)
        await committer.start()
        futures = [committer.submit(batch(number)) for number in range(5)]
        await committer.close()
        assert all(future.done() for future in futures) or await asyncio.gather(*futures)
        assert set(MemoryStore.open(disk).load().objects["n"]) == {str(number) for number in range(5)}

    run(work())


def test_giving_up_waiting_does_not_take_the_batch_back(disk: MemoryDisk) -> None:
    async def work() -> None:
        committer = committer_on(disk)
        await committer.start()
        GatedStore.gate.clear()
        waiting = asyncio.ensure_future(committer.commit(batch(1)))
        await until_set(GatedStore.committing)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        GatedStore.gate.set()
        assert (await committer.commit(batch(1))).sequence == 1
        await committer.close()

    run(work())


def test_it_folds_when_it_is_quiet(disk: MemoryDisk) -> None:
    async def work() -> None:
        committer = committer_on(disk, idle_s=0.0)
        await committer.start()
        await asyncio.gather(*(committer.commit(batch(number)) for number in range(50)))
        await until_set(GatedStore.folded)
        assert await committer.call(lambda store: store.backlog()) == 0
        await committer.close()

    run(work())


def test_a_backlog_of_an_earlier_life_is_folded(disk: MemoryDisk) -> None:
    store = MemoryStore.open(disk)
    store.commit([batch(1)], store.new_term())
    store.close()

    async def work() -> None:
        committer = committer_on(disk, idle_s=0.0)
        await committer.start()
        await until_set(GatedStore.folded)
        await committer.close()

    run(work())


def test_under_load_it_folds_only_when_the_log_is_long(disk: MemoryDisk) -> None:
    async def work(high: int) -> None:
        committer = committer_on(disk, backlog_high=high, idle_s=PATIENCE_S, group_batches_max=1)
        await committer.start()
        GatedStore.gate.clear()
        futures = [committer.submit(batch(100 * high + number)) for number in range(20)]
        GatedStore.gate.set()
        await asyncio.gather(*futures)
        folds = GatedStore.folds_before[-1] - GatedStore.folds_before[-19]
        assert folds == 0 if high > 20 else folds > 5
        await committer.close()

    run(work(1000))
    run(work(3))


def test_commits_wait_for_folding_when_the_log_is_at_its_limit(disk: MemoryDisk) -> None:
    backlogs: list[int] = []

    async def work() -> None:
        committer = committer_on(disk, backlog_high=5, backlog_max=10, fold_records=1, group_batches_max=1)
        await committer.start()
        futures = [committer.submit(batch(number)) for number in range(60)]
        await asyncio.gather(*futures)
        backlogs.append(await committer.call(lambda store: store.backlog()))
        await committer.close()

    run(work())
    assert backlogs[0] <= 11


def test_a_store_that_cannot_fold_still_commits_until_the_log_is_at_its_limit(disk: MemoryDisk) -> None:
    async def work() -> None:
        told: list[StoreFull | None] = []
        limits = CommitterLimits(
            backlog_high=1, backlog_max=10, fold_retry_s=PATIENCE_S, group_batches_max=1, full_retry_s=0.001
        )
        committer = GroupCommitter(lambda: GatedStore.open(disk), limits, told.append)
        await committer.start()
        for after in range(3):
            disk.inject(Failure("fold", StoreFull(f"full {after}")))
        futures = [committer.submit(batch(number)) for number in range(100)]
        results = await asyncio.gather(*futures)
        assert [result.sequence for result in results] == list(range(1, 101))
        assert told[1:] == [None] and isinstance(told[0], StoreFull)
        assert committer.failure is None
        await committer.close()

    run(work())


def test_calls_run_in_the_worker_and_their_errors_come_back(disk: MemoryDisk) -> None:
    def fail(store: Store) -> None:
        raise ValueError("no")

    async def work() -> None:
        committer = committer_on(disk)
        await committer.start()
        await committer.commit(batch(1))
        name, sequence = await committer.call(lambda store: (threading.current_thread().name, store.sequence))
        assert (name, sequence) == ("segmap-store", 1)
        with pytest.raises(ValueError, match="no"):
            await committer.call(fail)
        await committer.commit(batch(2))
        await committer.close()

    run(work())
