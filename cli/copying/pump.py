"""The copy itself: reads ahead, hashes in order, writes behind, all of it bounded.

At most DEPTH chunks are being read and DEPTH written. The checksum is SHA-256 over the bytes as read, in order, taken
in a thread of its own while other chunks move. When something fails, or the copy is cancelled, everything before the
first unwritten byte is flushed and that offset is told, so that the copy can be resumed there.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cli.copying.endpoint import Chunk, Destination, Source

CHUNK_BYTES = 1 << 20
DEPTH = 8
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Range:
    """``length`` bytes (None: to the source's end) from ``source_offset``, to ``destination_offset``."""

    source_offset: int = 0
    destination_offset: int = 0
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Bytes moved, their SHA-256 in hex, and the seconds from the first read to the last flush."""

    length: int
    sha256: str
    seconds: float


class CopyFailedError(Exception):
    """``durable`` bytes from the start of the range are safely at the destination; ``reason`` is what went wrong."""

    def __init__(self, durable: int, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.durable = durable
        self.reason = reason


class Pump:
    """One copy (or, without a destination, one reading for the checksum)."""

    def __init__(self, source: Source, destination: Destination | None, progress: Progress, depth: int = DEPTH) -> None:
        self._source = source
        self._destination = destination
        self._progress = progress
        self._depth = depth
        self._hash = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1, "segmap-sha256")
        self._reads: deque[asyncio.Task[Chunk]] = deque()
        self._writes: dict[asyncio.Task[None], tuple[int, int]] = {}
        self._written: dict[int, int] = {}
        self._safe = 0
        self._hashed: deque[asyncio.Future[None]] = deque()
        self._moved = 0
        self._flushing = False

    async def run(self, what: Range) -> Result:
        """Moves the range; CopyFailedError if it could not all be moved or was cancelled (a second cancel ends it)."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._move(what)
            if self._destination:
                self._flushing = True
                await self._destination.flush()
        except (Exception, asyncio.CancelledError) as error:
            raise CopyFailedError(await self._settle(), error) from error
        finally:
            await self._cancel()
            self._hasher.shutdown(wait=True)
        return Result(self._moved, self._hash.hexdigest(), loop.time() - began)

    async def _move(self, what: Range) -> None:
        loop = asyncio.get_running_loop()
        total = self._length_of(what)
        issued = 0
        while True:
            while len(self._reads) < self._depth and (total is None or issued < total):
                length = CHUNK_BYTES if total is None else min(CHUNK_BYTES, total - issued)
                self._reads.append(loop.create_task(self._read(what.source_offset + issued, length)))
                issued += length
            if not self._reads:
                break
            data = await self._reads.popleft()
            if not len(data):
                break
            self._hashed.append(loop.run_in_executor(self._hasher, self._hash.update, data))
            await self._write(what.destination_offset + self._moved, data)
            self._moved += len(data)
        if total is not None and self._moved < total:
            raise EOFError(f"the source ended at byte {what.source_offset + self._moved}")
        await self._wait_writes(0)
        while self._hashed:
            await self._hashed.popleft()

    def _length_of(self, what: Range) -> int | None:
        if self._source.size is None:
            return what.length
        rest = max(0, self._source.size - what.source_offset)
        return rest if what.length is None else what.length

    async def _read(self, offset: int, length: int) -> Chunk:
        return await self._source.read(offset, length)

    async def _write(self, offset: int, data: Chunk) -> None:
        while len(self._hashed) > self._depth:
            await self._hashed.popleft()
        if not self._destination:
            self._progress(len(data))
            return
        await self._wait_writes(self._depth - 1)
        task = asyncio.get_running_loop().create_task(self._destination.write(offset, data))
        self._writes[task] = (self._moved, len(data))

    async def _wait_writes(self, most: int) -> None:
        while len(self._writes) > most:
            done, _ = await asyncio.wait(self._writes, return_when=asyncio.FIRST_COMPLETED)
            self._collect(done)
            for task in done:
                task.result()

    def _collect(self, done: Iterable[asyncio.Task[None]]) -> None:
        """Counts writes that have ended well; what is written without a gap from the start is safe once flushed."""
        for task in done:
            start, length = self._writes.pop(task)
            if not task.cancelled() and task.exception() is None:
                self._written[start] = length
                self._progress(length)
        while self._safe in self._written:
            self._safe += self._written.pop(self._safe)

    async def _settle(self) -> int:
        """Lets running writes end, flushes, and tells how many bytes from the start are safe.

        None are if a flush has failed: what it was for may be lost, and the next one may succeed all the same.
        """
        if not self._destination or self._flushing:
            return 0
        await asyncio.gather(*self._writes, return_exceptions=True)
        self._collect(list(self._writes))
        try:
            await self._destination.flush()
        except Exception:
            return 0
        return self._safe

    async def _cancel(self) -> None:
        pending = [*self._reads, *self._writes]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
