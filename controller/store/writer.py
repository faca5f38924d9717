"""The group committer: an asyncio shell around a blocking store, in one worker thread.

While one commit is being flushed, the next group forms; that is all that group commit is. Background folding runs in
short slices between commits: when nobody waits, or when the log has grown so long that recovery would take too long.

A full store changes nothing, so the same group is tried again, ever less often, until there is space; `on_full` is told
when that begins and when it ends. Any other error of a commit stops the committer loudly: the group's waiters and all
queued ones get it, later ones are refused. A failed flush is never tried again as if it could still work; `recover`
closes the store, opens it afresh, takes a new term and reads back what is true.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, TypeVar

from controller.store.interface import Batch, Committed, Store, StoreClosed, StoreError, StoreFull, StoreState
from controller.store.records import RECORD_BYTES

_LOG: Final = logging.getLogger("segmap.store")
_Result = TypeVar("_Result")


class CommitterFull(StoreError):
    """The queue is at its limit. The batch was not taken."""

    advice = "the disk does not keep up: answer busy, and try again later"


class CommitterStopped(StoreError):
    """The committer has stopped after an error, or was closed. The batch was not taken."""

    advice = "recover the committer, and rebuild the state from what it reads back"


@dataclass(frozen=True, slots=True)
class CommitterLimits:
    """Named limits of a committer."""

    queue_batches_max: int = 8192
    queue_bytes_max: int = 64 << 20
    group_batches_max: int = 1024
    group_bytes_max: int = 8 << 20
    fold_records: int = 2048
    """Records per slice of folding."""
    backlog_high: int = 1 << 18
    """Fewer unfolded records wait for `idle_s` without commits. From here on each commit is followed by a slice, a
    large one by as many slices as it has records."""
    backlog_max: int = 1 << 20
    """From here on commits wait for folding."""
    idle_s: float = 0.2
    fold_retry_s: float = 5.0
    """Pause of folding after the store was full."""
    full_retry_s: float = 0.1
    full_retry_max_s: float = 5.0
    """Pauses between two tries of a commit while the store is full: the first, and the longest."""


@dataclass(slots=True, eq=False)
class _Waiting:
    batch: Batch
    weight: int
    future: asyncio.Future[Committed]


@dataclass(slots=True)
class _Inbox:
    """What the loop hands to the worker; guarded by `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    batches: deque[_Waiting] = field(default_factory=deque)
    bytes: int = 0
    calls: deque[tuple[Callable[[Store], Any], Future[Any]]] = field(default_factory=deque)
    closing: bool = False


def _weight(batch: Batch) -> int:
    return len(batch.records) + 16 * len(batch.requests) + 256


class GroupCommitter:
    """Commits batches in the order of `submit`. One per store; all methods belong to the event loop's thread.

    `on_full(error)`: the store is full, commits wait; `on_full(None)`: they go on.
    """

    def __init__(
        self,
        opener: Callable[[], Store],
        limits: CommitterLimits | None = None,
        on_full: Callable[[StoreFull | None], None] = lambda full: None,
    ) -> None:
        self.limits = limits or CommitterLimits()
        self._on_full = on_full
        self.failure: StoreError | None = None
        self._opener = opener
        self._inbox = _Inbox()
        self._worker: _Worker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._submitted: list[_Waiting] = []
        self._submitted_bytes = 0
        self._stopped = asyncio.Event()

    async def start(self) -> StoreState:
        """Open the store, begin a term, read everything. Raises StoreError, and is not started then."""
        if self._worker is not None:
            raise CommitterStopped("the committer runs already")
        self.failure = None
        self._stopped = asyncio.Event()
        self._inbox = _Inbox()
        started: Future[StoreState] = Future()
        started.set_running_or_notify_cancel()
        self._loop = asyncio.get_running_loop()
        worker = _Worker(self._opener, self._inbox, self.limits, self._loop, started, self._fail, self._on_full)
        worker.start()
        try:
            state = await asyncio.wrap_future(started)
        except BaseException:
            self._inbox_close()
            await self._join(worker)
            raise
        self._worker = worker
        return state

    def submit(self, batch: Batch) -> asyncio.Future[Committed]:
        """Queue a batch; the future says when it is durable. Raises CommitterFull or CommitterStopped at once.

        What is submitted in one turn of the loop is handed to the worker together, and so forms one group.
        """
        if self._worker is None or self._loop is None or self.failure is not None:
            raise CommitterStopped(f"the committer is not running: {self.failure or 'it was closed'}")
        waiting = _Waiting(batch, _weight(batch), self._loop.create_future())
        queued = len(self._inbox.batches) + len(self._submitted)
        queued_bytes = self._inbox.bytes + self._submitted_bytes
        if queued >= self.limits.queue_batches_max or queued_bytes + waiting.weight > self.limits.queue_bytes_max:
            raise CommitterFull(f"{queued} batches of {queued_bytes} bytes are waiting")
        if not self._submitted:
            self._loop.call_soon(self._hand_over)
        self._submitted.append(waiting)
        self._submitted_bytes += waiting.weight
        return waiting.future

    @property
    def queued_bytes(self) -> int:
        """Of the batches that no group has taken yet."""
        return self._inbox.bytes + self._submitted_bytes

    def abandon(self, error: StoreError) -> None:
        """The owner cannot go on with what it has in memory: stop as after an error. `recover` commits the queue."""
        if self.failure is None:
            self._fail(error)

    def _hand_over(self) -> None:
        if not self._submitted:
            return
        inbox = self._inbox
        with inbox.changed:
            inbox.batches.extend(self._submitted)
            inbox.bytes += self._submitted_bytes
            inbox.changed.notify()
        self._submitted = []
        self._submitted_bytes = 0

    async def commit(self, batch: Batch) -> Committed:
        """Commit a batch; `sequence` of the answer is the batch's own. Raises as `submit`, and what the store raised.

        Giving up waiting does not take the batch back.
        """
        return await self.submit(batch)

    async def call(self, action: Callable[[Store], _Result]) -> _Result:
        """Run something short on the store between two groups, in the worker."""
        if self._worker is None or self.failure is not None:
            raise CommitterStopped(f"the committer is not running: {self.failure or 'it was closed'}")
        result: Future[Any] = Future()
        result.set_running_or_notify_cancel()
        with self._inbox.changed:
            self._inbox.calls.append((action, result))
            self._inbox.changed.notify()
        answer: _Result = await asyncio.wrap_future(result)
        return answer

    def _fail(self, error: StoreError) -> None:
        """In the loop's thread, before the worker refuses what is in the inbox: nothing is queued after this."""
        self._hand_over()
        self.failure = error
        self._stopped.set()

    async def stopped(self) -> StoreError:
        """Wait until an error stops the committer."""
        await self._stopped.wait()
        assert self.failure is not None
        return self.failure

    def _inbox_close(self) -> None:
        with self._inbox.changed:
            self._inbox.closing = True
            self._inbox.changed.notify()

    async def _join(self, worker: _Worker) -> None:
        await asyncio.get_running_loop().run_in_executor(None, worker.join)

    async def close(self) -> None:
        """Commit what is queued, close the store. Idempotent."""
        worker, self._worker = self._worker, None
        if worker is not None:
            self._hand_over()
            self._inbox_close()
            await self._join(worker)

    async def recover(self) -> StoreState:
        """After an error: close, open afresh, a new term, read back. Everything in memory must be rebuilt from it."""
        await self.close()
        return await self.start()


class _Worker(threading.Thread):
    """The thread that owns the store."""

    def __init__(
        self,
        opener: Callable[[], Store],
        inbox: _Inbox,
        limits: CommitterLimits,
        loop: asyncio.AbstractEventLoop,
        started: Future[StoreState],
        fail: Callable[[StoreError], None],
        on_full: Callable[[StoreFull | None], None],
    ) -> None:
        super().__init__(name="segmap-store", daemon=True)
        self._opener = opener
        self._inbox = inbox
        self._limits = limits
        self._loop = loop
        self._begun = started
        self._fail = fail
        self._on_full = on_full
        self._full = False
        self._term = 0
        self._fold_wanted = False
        self._fold_not_before = 0.0
        self._full_until = 0.0
        self._group_records = 0
        self._backlog = 0

    def run(self) -> None:
        """Open, serve until closed or failed, close."""
        try:
            store = self._opener()
        except BaseException as error:
            self._begun.set_exception(error)
            return
        try:
            self._serve(store)
        finally:
            store.close()

    def _serve(self, store: Store) -> None:
        try:
            self._term = store.new_term()
            state = store.load()
        except BaseException as error:
            self._begun.set_exception(error)
            return
        self._backlog = store.backlog()
        self._begun.set_result(state)
        group: list[_Waiting] = []
        try:
            while True:
                group, calls, closing = self._next()
                if group:
                    self._commit(store, group)
                for action, result in calls:
                    _run_call(store, action, result)
                if closing and not group and not calls:
                    return
                self._fold(store, busy=bool(group))
        except BaseException as error:
            self._give_up(error, group)

    # -- groups --------------------------------------------------------------------------------------------------

    def _next(self) -> tuple[list[_Waiting], list[tuple[Callable[[Store], Any], Future[Any]]], bool]:
        """The next group, after waiting for one if there is nothing else to do."""
        inbox = self._inbox
        with inbox.changed:
            if not (inbox.batches or inbox.calls or inbox.closing):
                inbox.changed.wait(self._patience())
            calls = list(inbox.calls)
            inbox.calls.clear()
            return self._take_group(inbox), calls, inbox.closing

    def _patience(self) -> float | None:
        if not (self._fold_wanted or self._backlog):
            return None
        return max(0.0, self._fold_not_before - monotonic())

    def _take_group(self, inbox: _Inbox) -> list[_Waiting]:
        group: list[_Waiting] = []
        weight = 0
        while inbox.batches and len(group) < self._limits.group_batches_max:
            next_weight = inbox.batches[0].weight
            if group and weight + next_weight > self._limits.group_bytes_max:
                break
            weight += next_weight
            group.append(inbox.batches.popleft())
        inbox.bytes -= weight
        return group

    def _commit(self, store: Store, group: list[_Waiting]) -> None:
        self._group_records = sum(len(waiting.batch.records) for waiting in group) // RECORD_BYTES
        batches = [waiting.batch for waiting in group]
        committed = self._when_there_is_space(store, lambda: store.commit(batches, self._term))
        self._fold_not_before = max(self._fold_not_before, monotonic() + self._limits.idle_s)
        self._loop.call_soon_threadsafe(_resolve, group, committed)

    def _when_there_is_space(self, store: Store, action: Callable[[], _Result]) -> _Result:
        """Its result. While the store is full it is tried again and again. Raises StoreFull when asked to close."""
        pause_s = self._limits.full_retry_s
        while True:
            try:
                result = action()
            except StoreFull as error:
                if not self._full:
                    _LOG.error("the store is full, commits wait: %s", error)
                    self._full = True
                    self._loop.call_soon_threadsafe(self._on_full, error)
                if not self._pause(store, pause_s):
                    raise
                pause_s = min(2 * pause_s, self._limits.full_retry_max_s)
                continue
            if self._full:
                _LOG.warning("the store has space again")
                self._full = False
                self._loop.call_soon_threadsafe(self._on_full, None)
            return result

    def _pause(self, store: Store, pause_s: float) -> bool:
        """Calls go on meanwhile. False, at once, if the committer is to close."""
        inbox, end = self._inbox, monotonic() + pause_s
        while True:
            with inbox.changed:
                left = end - monotonic()
                if not inbox.calls and not inbox.closing and left > 0:
                    inbox.changed.wait(left)
                calls = list(inbox.calls)
                inbox.calls.clear()
                if inbox.closing and not calls:
                    return False
            for action, result in calls:
                _run_call(store, action, result)
            if monotonic() >= end:
                return True

    def _give_up(self, error: BaseException, group: list[_Waiting]) -> None:
        failure = error if isinstance(error, StoreError) else StoreError(f"the store's worker failed: {error!r}")
        _LOG.critical("the store has stopped: %s", failure, exc_info=error)
        self._loop.call_soon_threadsafe(self._refuse, group, failure)

    def _refuse(self, group: list[_Waiting], failure: StoreError) -> None:
        """In the loop's thread."""
        self._fail(failure)
        inbox = self._inbox
        with inbox.changed:
            waiting = [*group, *inbox.batches]
            calls = list(inbox.calls)
            inbox.batches.clear()
            inbox.calls.clear()
        for each in waiting:
            if not each.future.done():
                each.future.set_exception(failure)
                each.future.exception()
        for _, result in calls:
            result.set_exception(failure)

    # -- folding -------------------------------------------------------------------------------------------------

    def _fold(self, store: Store, busy: bool) -> None:
        """A slice, if it is quiet or high time; more after a large group, and while the log is at its limit."""
        limits = self._limits
        backlog = self._backlog = store.backlog()
        high = busy and backlog >= limits.backlog_high
        quiet = not busy and monotonic() >= self._fold_not_before
        if not (high or quiet) or not (self._fold_wanted or backlog):
            return
        if backlog < limits.backlog_max and monotonic() < self._full_until:
            return
        try:
            slices = 1 + self._group_records // limits.fold_records if high else 1
            self._fold_wanted = store.fold(limits.fold_records)
            while self._fold_wanted and (slices > 1 or store.backlog() >= limits.backlog_max):
                self._fold_wanted = store.fold(limits.fold_records)
                slices -= 1
            self._backlog = store.backlog()
        except StoreFull as error:
            _LOG.error("the store cannot fold its log: %s", error)
            if backlog >= limits.backlog_max:
                self._fold_wanted = self._when_there_is_space(store, lambda: store.fold(limits.fold_records))
                return
            self._full_until = self._fold_not_before = monotonic() + limits.fold_retry_s


def _resolve(group: list[_Waiting], committed: Committed) -> None:
    for waiting, sequence in zip(group, committed.sequences, strict=True):
        if not waiting.future.done():
            waiting.future.set_result(Committed(sequence, (sequence,)))


def _run_call(store: Store, action: Callable[[Store], Any], result: Future[Any]) -> None:
    try:
        result.set_result(action(store))
    except StoreClosed as error:
        result.set_exception(error)
        raise
    except Exception as error:
        result.set_exception(error)
