"""Receiving: where the next bytes go, and what is held back until a PDU is whole.

One linear buffer per connection: bytes are appended at its tail and parsed at its head. Views of it (in-capsule data)
may be lent out; while any is, the buffer is never rewound but replaced when full. Data of a transfer goes straight
into its destination: `get_buffer` then returns the rest of that instead.

Invariant: the unparsed remainder is shorter than RECEIVE_BYTES, because the longest PDU that is parsed here is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

RECEIVE_BYTES: Final = 256 * 1024
ROOM_BYTES: Final = 16 * 1024  # less room than this behind the tail: rewind or replace


class ReceiveBuffer:
    """The bytes received and not yet parsed: `data[head:tail]`, and the destination of a transfer under way."""

    __slots__ = ("at", "data", "head", "lent", "sink", "size", "tail", "view")

    def __init__(self, size: int = RECEIVE_BYTES) -> None:
        self.size = size
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self.head = 0
        self.tail = 0
        self.lent = 0
        self.sink: memoryview | None = None
        self.at = 0

    def get(self) -> memoryview:
        """Where the next bytes are to be received: never empty."""
        if self.sink is not None:
            return self.sink[self.at :]
        if self.size - self.tail < ROOM_BYTES:
            self._make_room()
        return self.view[self.tail :]

    def received(self, count: int) -> bool:
        """`count` bytes have arrived there. True if the sink has just become full (take it with `take_sink`)."""
        if self.sink is None:
            self.tail += count
            return False
        self.at += count
        return self.at == len(self.sink)

    def take_sink(self) -> None:
        self.sink = None

    def fill(self, sink: memoryview, offset: int, room: int) -> int:
        """Move up to `room` bytes at `offset` into `sink`; if they do not fill it, the rest is received there.

        Returns how many bytes were moved. The caller has consumed everything before `offset`.
        """
        count = min(len(sink), room)
        sink[:count] = self.view[offset : offset + count]
        if count < len(sink):
            self.sink, self.at = sink, count
        return count

    def consumed(self, head: int) -> None:
        """Everything before `head` is done with."""
        if head == self.tail and not self.lent:
            self.head = self.tail = 0
        else:
            self.head = head

    def returned(self, lender: bytearray) -> None:
        """A lent view of `lender` is not used any more."""
        if lender is self.data:
            self.lent -= 1

    def release(self) -> None:
        """The connection is gone: give the memory back now, not when the objects around it are collected."""
        self.data = bytearray()
        self.view = memoryview(self.data)
        self.head = self.tail = self.lent = 0
        self.sink = None

    def _make_room(self) -> None:
        rest = self.view[self.head : self.tail]
        if self.lent:
            self.data = bytearray(self.size)
            self.view = memoryview(self.data)
            self.lent = 0
            self.view[: len(rest)] = rest
        else:
            self.data[: len(rest)] = bytes(rest)
        self.head, self.tail = 0, len(rest)


def feed(target: memoryview, data: Buffer, offset: int) -> int:
    """Copy as much of `data[offset:]` as fits into `target`; returns how much."""
    source = memoryview(data).cast("B")[offset : offset + len(target)]
    target[: len(source)] = source
    return len(source)
