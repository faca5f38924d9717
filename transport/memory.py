"""Connections in memory, on a clock that only moves when told: the same code as in a process, without its chances.

A `Wire` is two ends and two directions. Each direction delivers in order; `delay_ns` and `chunk` say when and in which
pieces, `partition` holds everything back, `cut` and `cut_after` end it with bytes lost. Nothing happens within a call
of the owner: all deliveries and ends are events of the `Timeline`, in the order of time, then of scheduling.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from transport.connection import (
    Buffer,
    Connection,
    ConnectionLost,
    Limits,
    OnClosed,
    OnData,
    OnWritable,
    Peer,
    WriteQueueFull,
    size_of,
)

DEFAULT_LIMITS: Final = Limits()


class Scheduler(Protocol):
    """A clock that calls back."""

    @property
    def now_ns(self) -> int: ...
    def call_at(self, when_ns: int, callback: Callable[[], None]) -> object: ...


@dataclass(order=True)
class Scheduled:
    """A callback to come; `cancel` drops it."""

    when_ns: int
    number: int
    callback: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        """It will not be called."""
        self.callback = None


class Timeline:
    """A clock of its own. Callbacks run in the order of their time; equal times in the order of scheduling."""

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns
        self._number = 0
        self._queue: list[Scheduled] = []

    @property
    def now_ns(self) -> int:
        return self._now_ns

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> Scheduled:
        """Call at `when_ns`, or next if that has passed."""
        self._number += 1
        scheduled = Scheduled(max(when_ns, self._now_ns), self._number, callback)
        heapq.heappush(self._queue, scheduled)
        return scheduled

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Scheduled:
        """Call `delay_ns` from now."""
        return self.call_at(self._now_ns + delay_ns, callback)

    def call_soon(self, callback: Callable[[], None]) -> Scheduled:
        """Call now, after what is due now already."""
        return self.call_at(self._now_ns, callback)

    def next_ns(self) -> int | None:
        """When the next callback is due."""
        while self._queue and self._queue[0].callback is None:
            heapq.heappop(self._queue)
        return self._queue[0].when_ns if self._queue else None

    def run_next(self) -> bool:
        """Move to the next callback and call it; False if there is none."""
        when_ns = self.next_ns()
        if when_ns is None:
            return False
        scheduled = heapq.heappop(self._queue)
        self._now_ns = when_ns
        callback = scheduled.callback
        assert callback is not None
        callback()
        return True

    def run_until(self, when_ns: int) -> None:
        """Call everything that is due until then, and move there."""
        while (due := self.next_ns()) is not None and due <= when_ns:
            self.run_next()
        self._now_ns = max(self._now_ns, when_ns)

    def run_idle(self, callbacks_max: int = 1_000_000) -> None:
        """Until nothing is scheduled. Raises RuntimeError if it does not end."""
        for _ in range(callbacks_max):
            if not self.run_next():
                return
        raise RuntimeError(f"still something to do after {callbacks_max} callbacks")


class MemoryConnection(Connection):
    """One end of a wire."""

    def __init__(self, name: str, scheduler: Scheduler, limits: Limits) -> None:
        self.peer = Peer(name)
        self.out: _Direction
        self.into: _Direction
        self._scheduler = scheduler
        self._limits = limits
        self._on_data: OnData | None = None
        self._on_closed: OnClosed | None = None
        self._on_writable: OnWritable | None = None
        self._writable = True
        self._started = False
        self._closing = False
        self._end: tuple[Exception | None] | None = None
        self.reading = False

    def start(self, on_data: OnData, on_closed: OnClosed, on_writable: OnWritable | None = None) -> None:
        self._on_data, self._on_closed, self._on_writable = on_data, on_closed, on_writable
        self._started = True
        if self._end is not None:
            self._scheduler.call_at(self._scheduler.now_ns, self._tell_closed)
        self.resume()

    def write(self, buffers: Sequence[Buffer]) -> None:
        if self._closing or self._end is not None:
            raise ConnectionLost(f"{self.peer.address}: written to after the end")
        if size_of(buffers) > self.write_room:
            raise WriteQueueFull(f"{self.peer.address} does not read: {self.write_bytes} bytes queued")
        self.out.put(b"".join(buffers))
        if self._writable and self.write_bytes > self._limits.write_high_bytes:
            self._set_writable(False)

    def pause(self) -> None:
        self.reading = False

    def resume(self) -> None:
        if self._started and not self.reading:
            self.reading = True
            self.into.wake()

    def close(self) -> None:
        if not self._closing and self._end is None:
            self._closing, self._writable = True, False
            self.out.finish()
            self._scheduler.call_at(self._scheduler.now_ns, lambda: self.end(None))

    def abort(self) -> None:
        if self._end is None:
            self._closing, self._writable = True, False
            self.out.lose(ConnectionLost(f"{self.peer.address}: the peer aborted"))
            self._scheduler.call_at(self._scheduler.now_ns, lambda: self.end(None))

    @property
    def write_bytes(self) -> int:
        return self.out.queued_bytes

    @property
    def write_room(self) -> int:
        return self._limits.write_max_bytes - self.out.queued_bytes

    @property
    def writable(self) -> bool:
        return self._writable and not self._closing and self._end is None

    # --- the wire's side ---------------------------------------------------------------------------------------------

    def deliver(self, data: bytes) -> None:
        """Bytes have come."""
        if self._on_data is not None and self._end is None and not self._closing:
            self._on_data(memoryview(data))

    def drained(self) -> None:
        """The peer took some."""
        if not self._writable and not self._closing and self.write_bytes <= self._limits.write_low_bytes:
            self._set_writable(True)

    def end(self, error: Exception | None) -> None:
        """The wire has ended: properly, by a cut, or because we closed."""
        if self._end is None:
            self._end = (error,)
            self._writable = False
            if error is not None or not self._closing:
                self.out.lose(ConnectionLost(f"{self.peer.address}: the peer is gone"))
            self._tell_closed()

    def _set_writable(self, writable: bool) -> None:
        self._writable = writable

        def tell() -> None:
            if self._on_writable is not None and self._end is None and not self._closing:
                self._on_writable(writable)

        self._scheduler.call_at(self._scheduler.now_ns, tell)

    def _tell_closed(self) -> None:
        on_closed, self._on_closed, self._on_data, self._on_writable = self._on_closed, None, None, None
        if on_closed is not None and self._end is not None:
            on_closed(self._end[0])


class _Direction:
    """Bytes on their way from one end to the other."""

    def __init__(self, wire: Wire, sender: MemoryConnection, receiver: MemoryConnection) -> None:
        self._wire = wire
        self._sender = sender
        self._receiver = receiver
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._last_ns = 0
        self._finished = False
        self._lost: Exception | None = None
        self._over = False
        self._armed_ns: int | None = None
        self._armed = 0
        self.queued_bytes = 0
        self.held = False
        self.cut_after_bytes = -1

    def put(self, data: bytes) -> None:
        """Cut into pieces and send each on its way."""
        while data:
            size = max(1, self._wire.chunk(len(data))) if self._wire.chunk else len(data)
            piece, data = data[:size], data[size:]
            self._last_ns = max(self._last_ns, self._wire.scheduler.now_ns + self._wire.delay(len(piece)))
            self._pieces.append((self._last_ns, piece))
            self.queued_bytes += len(piece)
        self.wake()

    def finish(self) -> None:
        """Nothing more comes: the receiver is told once it has everything."""
        self._finished = True
        self.wake()

    def lose(self, error: Exception) -> None:
        """Drop what is on its way; the receiver is told that it was lost."""
        self._pieces.clear()
        self.queued_bytes = 0
        self._lost = self._lost or error
        self.wake()

    def wake(self) -> None:
        """Look again: something was put, or the receiver reads, or the partition is over."""
        if self._over or self.held:
            return
        now_ns = self._wire.scheduler.now_ns
        if self._lost is not None or (self._finished and not self._pieces):
            when_ns = max(now_ns, 0 if self._lost is not None else self._last_ns)
        elif self._pieces and self._receiver.reading:
            when_ns = max(now_ns, self._pieces[0][0])
        else:
            return
        if self._armed_ns is None or when_ns < self._armed_ns:
            self._armed_ns = when_ns
            self._armed += 1
            number = self._armed
            self._wire.scheduler.call_at(when_ns, lambda: self._due(number))

    def _due(self, number: int) -> None:
        if number != self._armed:
            return
        self._armed_ns = None
        if self._over or self.held:
            return
        if self._lost is not None:
            self._over = True
            self._receiver.end(self._lost)
        elif not self._pieces:
            if self._finished:
                self._over = True
                self._receiver.end(None)
        elif self._receiver.reading and self._pieces[0][0] <= self._wire.scheduler.now_ns:
            self._deliver(self._pieces.popleft()[1])
        self.wake()

    def _deliver(self, piece: bytes) -> None:
        self.queued_bytes -= len(piece)
        if 0 <= self.cut_after_bytes <= len(piece):
            piece = piece[: self.cut_after_bytes]
            self._wire.cut()
            if piece:
                self._receiver.deliver(piece)
            return
        if self.cut_after_bytes > 0:
            self.cut_after_bytes -= len(piece)
        self._receiver.deliver(piece)
        self._sender.drained()


class Wire:
    """Two connected ends, `a` and `b`. `delay_ns`: constant, or of the piece's length; `chunk`: length → piece length.

    Both are asked anew for each piece, so they may draw from a seeded chance.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        names: tuple[str, str] = ("a", "b"),
        delay_ns: int | Callable[[int], int] = 0,
        chunk: Callable[[int], int] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.scheduler = scheduler
        self.delay_ns = delay_ns
        self.chunk = chunk
        self.a = MemoryConnection(names[1], scheduler, limits)
        self.b = MemoryConnection(names[0], scheduler, limits)
        self._ab = _Direction(self, self.a, self.b)
        self._ba = _Direction(self, self.b, self.a)
        self.a.out, self.a.into = self._ab, self._ba
        self.b.out, self.b.into = self._ba, self._ab

    @property
    def ends(self) -> tuple[MemoryConnection, MemoryConnection]:
        """(a, b)."""
        return self.a, self.b

    def delay(self, length: int) -> int:
        """How long a piece takes."""
        return self.delay_ns if isinstance(self.delay_ns, int) else self.delay_ns(length)

    def partition(self, *, a_to_b: bool = True, b_to_a: bool = True) -> None:
        """Hold back everything in these directions, ends included, until `heal`."""
        self._ab.held = self._ab.held or a_to_b
        self._ba.held = self._ba.held or b_to_a

    def heal(self) -> None:
        """What was held back arrives."""
        for direction in (self._ab, self._ba):
            direction.held = False
            direction.wake()

    def cut(self) -> None:
        """Both ends lose the connection, now; what is on its way is lost. Also through a partition."""
        for direction in (self._ab, self._ba):
            direction.held = False
            direction.lose(ConnectionLost("the wire was cut"))

    def cut_after(self, bytes_: int, *, a_to_b: bool) -> None:
        """Cut once this many more bytes have arrived in that direction: within a frame, if you like."""
        (self._ab if a_to_b else self._ba).cut_after_bytes = bytes_


def pair(scheduler: Scheduler, limits: Limits = DEFAULT_LIMITS) -> tuple[MemoryConnection, MemoryConnection]:
    """Two connected ends without delay."""
    return Wire(scheduler, limits=limits).ends
