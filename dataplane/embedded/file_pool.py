"""Blocking file calls off the loop: a few threads, one bounded queue, answers back in the loop.

`submit` refuses when QUEUE_MAX calls wait. An answer is the call's result, or the OSError that it raised.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

THREADS: Final = 4
QUEUE_MAX: Final = 4096
Job = tuple[Callable[..., Any], tuple[Any, ...], Callable[[Any], None]]


class FilePool:
    """Threads begin with the first call. Use it from the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int = THREADS, queue_max: int = QUEUE_MAX) -> None:
        self._loop = loop
        self._count = threads
        self._queue_max = queue_max
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._answers: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._threads: list[threading.Thread] = []
        self._waking = False
        self.waiting = 0

    def submit(self, done: Callable[[Any], None], call: Callable[..., Any], *arguments: Any) -> bool:
        """`call(*arguments)` in a thread, then `done(answer)` in the loop. False: too much waits already."""
        if self.waiting >= self._queue_max:
            return False
        if not self._threads:
            self._begin()
        self.waiting += 1
        self._queue.put((call, arguments, done))
        return True

    def _begin(self) -> None:
        for number in range(self._count):
            thread = threading.Thread(target=self._work, name=f"file-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            if job is None:
                return
            call, arguments, done = job
            try:
                answer = call(*arguments)
            except OSError as error:
                answer = error
            self._answers.append((done, answer))
            del job, call, arguments, done, answer
            if not self._waking:
                self._waking = True
                try:
                    self._loop.call_soon_threadsafe(self._drain)
                except RuntimeError:
                    return

    def _drain(self) -> None:
        self._waking = False
        answers = self._answers
        while answers:
            done, answer = answers.popleft()
            self.waiting -= 1
            done(answer)

    def close(self) -> None:
        """End the threads once what waits is done; its answers are not delivered any more."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
