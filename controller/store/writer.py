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
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar

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
    done: Callable[[int], None]
    refused: Callable[[StoreError], None]


_Call = tuple[Callable[[Store], Any], "Future[Any]"]
_Inbox = SimpleQueue["list[_Waiting] | _Call | None"]
"""What the loop hands to the worker: batches, something to call, or None: the end."""


class _Owner(NamedTuple):
    """The event loop, and what the worker has called in it."""

    loop: asyncio.AbstractEventLoop
    fail: Callable[[StoreError], None]
    full: Callable[[StoreFull | None], None]
    told: Callable[[], None]


def _weight(batch: Batch) -> int:
    return len(batch.records) + 16 * len(batch.requests) + 256


def _ignore(error: StoreError) -> None:
    pass


class GroupCommitter:
    """Commits batches in the order in which they come. One per store; all methods belong to the event loop's thread.

    `on_full(error)`: the store is full, commits wait; `on_full(None)`: they go on. `told` is called whenever those who
    waited for a group have been told, once for all of them.
    """

    def __init__(
        self,
        opener: Callable[[], Store],
        limits: CommitterLimits | None = None,
        on_full: Callable[[StoreFull | None], None] = lambda full: None,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits or CommitterLimits()
        self.failure: StoreError | None = None
        self._opener = opener
        self._on_full = on_full
        self._told = told
        self._inbox: _Inbox = SimpleQueue()
        self._worker: _Worker | None = None
        self._gathered: list[_Waiting] = []
        self._batches = self._bytes = 0
        self._stopped = asyncio.Event()

    async def start(self) -> StoreState:
        """Open the store, begin a term, read everything. Raises StoreError, and is not started then."""
        if self._worker is not None:
            raise CommitterStopped("the committer runs already")
        self.failure = None
        self._stopped = asyncio.Event()
        self._inbox = SimpleQueue()
        self._batches = self._bytes = 0
        started: Future[StoreState] = Future()
        started.set_running_or_notify_cancel()
        owner = _Owner(asyncio.get_running_loop(), self._fail, self._on_full, self._told)
        worker = _Worker(self._opener, self._inbox, self.limits, owner, started)
        worker.start()
        try:
            state = await asyncio.wrap_future(started)
        except BaseException:
            self._inbox.put(None)
            await self._join(worker)
            raise
        self._worker = worker
        return state

    def submit(self, batch: Batch) -> asyncio.Future[Committed]:
        """Queue a batch; the future says when it is durable. Raises CommitterFull or CommitterStopped at once.

        What is submitted in one turn of the loop is handed to the worker together, and so forms one group.
        """
        future: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()

        def done(sequence: int) -> None:
            if not future.done():
                future.set_result(Committed(sequence, (sequence,)))

        def refused(error: StoreError) -> None:
            if not future.done():
                future.set_exception(error)
                future.exception()

        self.post(batch, done, refused)
        if len(self._gathered) == 1:
            asyncio.get_running_loop().call_soon(self.hand_over)
        return future

    def post(self, batch: Batch, done: Callable[[int], None], refused: Callable[[StoreError], None] = _ignore) -> None:
        """Queue a batch; `done(sequence)` when it is durable, or `refused`. Raises as `submit`. Then `hand_over`."""
        worker = self._worker
        if worker is None or self.failure is not None:
            raise CommitterStopped(f"the committer is not running: {self.failure or 'it was closed'}")
        weight = _weight(batch)
        queued, queued_bytes = self._batches - worker.taken, self.queued_bytes
        if queued >= self.limits.queue_batches_max or queued_bytes + weight > self.limits.queue_bytes_max:
            raise CommitterFull(f"{queued} batches of {queued_bytes} bytes are waiting")
        self._gathered.append(_Waiting(batch, weight, done, refused))
        self._batches += 1
        self._bytes += weight

    @property
    def queued_bytes(self) -> int:
        """Of the batches that no group has taken yet."""
        return self._bytes - (self._worker.taken_bytes if self._worker is not None else 0)

    def abandon(self, error: StoreError) -> None:
        """The owner cannot go on with what it has in memory: stop as after an error. `recover` commits the queue."""
        if self.failure is None:
            self._fail(error)

    def hand_over(self) -> None:
        """Wake the worker, once, for all that was queued since the last time."""
        if self._gathered:
            self._inbox.put(self._gathered)
            self._gathered = []

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
        self.hand_over()
        self._inbox.put((action, result))
        answer: _Result = await asyncio.wrap_future(result)
        return answer

    def _fail(self, error: StoreError) -> None:
        """In the loop's thread, before what is in the inbox is refused: nothing is queued after this."""
        self.hand_over()
        self.failure = error
        self._stopped.set()

    async def stopped(self) -> StoreError:
        """Wait until an error stops the committer."""
        await self._stopped.wait()
        assert self.failure is not None
        return self.failure

    async def _join(self, worker: _Worker) -> None:
        await asyncio.get_running_loop().run_in_executor(None, worker.join)

    async def close(self) -> None:
        """Commit what is queued, close the store. Idempotent."""
        worker, self._worker = self._worker, None
        if worker is not None:
            self.hand_over()
            self._inbox.put(None)
            await self._join(worker)

    async def recover(self) -> StoreState:
        """After an error: close, open afresh, a new term, read back. Everything in memory must be rebuilt from it."""
        await self.close()
        return await self.start()


class _Worker(threading.Thread):
    """The thread that owns the store. `taken` batches of `taken_bytes` have left the queue so far."""

    def __init__(
        self,
        opener: Callable[[], Store],
        inbox: _Inbox,
        limits: CommitterLimits,
        owner: _Owner,
        started: Future[StoreState],
    ) -> None:
        super().__init__(name="segmap-store", daemon=True)
        self._opener = opener
        self._inbox = inbox
        self._limits = limits
        self._owner = owner
        self._begun = started
        self._full = False
        self.taken = self.taken_bytes = 0
        self._queue: deque[_Waiting] = deque()
        self._calls: deque[_Call] = deque()
        self._closing = False
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
                group = self._next_group()
                if self._closing and not (group or self._calls):
                    return
                slices = self._commit(store, group) if group else self._slices(store, busy=False)
                group = []
                self._run_calls(store)
                if slices:
                    self._fold(store, slices)
        except BaseException as error:
            self._give_up(error, group)

    # -- groups --------------------------------------------------------------------------------------------------

    def _next_group(self) -> list[_Waiting]:
        """The next group, after waiting for something if there is nothing to do."""
        if self._queue or self._closing:
            self._receive(0.0)
        else:
            self._receive(self._patience())
        return self._take_group(self._queue)

    def _receive(self, patience_s: float | None) -> None:
        """Take everything from the inbox, after waiting so long for the first of it."""
        inbox = self._inbox
        try:
            item = inbox.get(patience_s != 0.0, patience_s)
            while True:
                if isinstance(item, list):
                    self._queue.extend(item)
                elif item is None:
                    self._closing = True
                else:
                    self._calls.append(item)
                item = inbox.get_nowait()
        except Empty:
            pass

    def _patience(self) -> float | None:
        if not (self._fold_wanted or self._backlog):
            return None
        return max(0.0, self._fold_not_before - monotonic())

    def _take_group(self, queue: deque[_Waiting]) -> list[_Waiting]:
        group: list[_Waiting] = []
        weight = 0
        while queue and len(group) < self._limits.group_batches_max:
            next_weight = queue[0].weight
            if group and weight + next_weight > self._limits.group_bytes_max:
                break
            weight += next_weight
            group.append(queue.popleft())
        self.taken += len(group)
        self.taken_bytes += weight
        return group

    def _commit(self, store: Store, group: list[_Waiting]) -> int:
        """Commit and tell; returns how much folding is due. Telling comes last: it wakes the loop, and the two threads
        would only stand in each other's way."""
        batches = [waiting.batch for waiting in group]
        committed = self._when_there_is_space(store, lambda: store.commit(batches, self._term))
        self._group_records = sum([len(waiting.batch.records) for waiting in group]) // RECORD_BYTES
        self._fold_not_before = max(self._fold_not_before, monotonic() + self._limits.idle_s)
        slices = self._slices(store, busy=True)
        self._owner.loop.call_soon_threadsafe(_tell, group, committed, self._owner.told)
        return slices

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
                    self._owner.loop.call_soon_threadsafe(self._owner.full, error)
                if not self._pause(store, pause_s):
                    raise
                pause_s = min(2 * pause_s, self._limits.full_retry_max_s)
                continue
            if self._full:
                _LOG.warning("the store has space again")
                self._full = False
                self._owner.loop.call_soon_threadsafe(self._owner.full, None)
            return result

    def _pause(self, store: Store, pause_s: float) -> bool:
        """Calls go on meanwhile. False, at once, if the committer is to close."""
        end = monotonic() + pause_s
        while not self._closing and (left_s := end - monotonic()) > 0:
            self._receive(left_s)
            self._run_calls(store)
        return not self._closing

    def _run_calls(self, store: Store) -> None:
        while self._calls:
            _run_call(store, *self._calls.popleft())

    def _give_up(self, error: BaseException, group: list[_Waiting]) -> None:
        failure = error if isinstance(error, StoreError) else StoreError(f"the store's worker failed: {error!r}")
        _LOG.critical("the store has stopped: %s", failure, exc_info=error)
        self._owner.loop.call_soon_threadsafe(self._refuse, group, failure)

    def _refuse(self, group: list[_Waiting], failure: StoreError) -> None:
        """In the loop's thread."""
        self._owner.fail(failure)
        waiting = [*group, *self._queue]
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, list):
                waiting += item
            elif item is not None:
                self._calls.append(item)
        for each in waiting:
            each.refused(failure)
        for _, result in self._calls:
            result.set_exception(failure)

    # -- folding -------------------------------------------------------------------------------------------------

    def _slices(self, store: Store, busy: bool) -> int:
        """How many slices are due: one if it is quiet, more after a large group if it is high time."""
        limits = self._limits
        backlog = self._backlog = store.backlog()
        high = busy and backlog >= limits.backlog_high
        quiet = not busy and monotonic() >= self._fold_not_before
        if not (high or quiet) or not (self._fold_wanted or backlog):
            return 0
        if backlog < limits.backlog_max and monotonic() < self._full_until:
            return 0
        return 1 + self._group_records // limits.fold_records if high else 1

    def _fold(self, store: Store, slices: int) -> None:
        """So many slices; more while the log is at its limit."""
        limits = self._limits
        try:
            self._fold_wanted = store.fold(limits.fold_records)
            while self._fold_wanted and (slices > 1 or store.backlog() >= limits.backlog_max):
                self._fold_wanted = store.fold(limits.fold_records)
                slices -= 1
            self._backlog = store.backlog()
        except StoreFull as error:
            _LOG.error("the store cannot fold its log: %s", error)
            if self._backlog >= limits.backlog_max:
                self._fold_wanted = self._when_there_is_space(store, lambda: store.fold(limits.fold_records))
                return
            self._full_until = self._fold_not_before = monotonic() + limits.fold_retry_s


def _tell(group: list[_Waiting], committed: Committed, told: Callable[[], None]) -> None:
    """In the loop's thread."""
    for waiting, sequence in zip(group, committed.sequences, strict=True):
        waiting.done(sequence)
    told()


def _run_call(store: Store, action: Callable[[Store], Any], result: Future[Any]) -> None:
    try:
        result.set_result(action(store))
    except StoreClosed as error:
        result.set_exception(error)
        raise
    except Exception as error:
        result.set_exception(error)
