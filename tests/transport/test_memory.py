"""Connections in memory: order, delay, pieces, partitions, cuts, backpressure; nothing happens but by the clock."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.connection import Connection, ConnectionLost, Limits, WriteQueueFull
from transport.memory import Timeline, Wire, pair


class Seen:
    """What came at one end, and when."""

    def __init__(self, connection: Connection, timeline: Timeline) -> None:
        self.connection = connection
        self.data = bytearray()
        self.pieces: list[tuple[int, int]] = []
        self.closed: list[Exception | None] = []
        self.writable: list[bool] = []
        self._timeline = timeline
        connection.start(self._on_data, self.closed.append, self.writable.append)

    def _on_data(self, data: Any) -> None:
        self.data += data
        self.pieces.append((self._timeline.now_ns, len(data)))


def wired(**keywords: Any) -> tuple[Timeline, Wire, Seen, Seen]:
    timeline = Timeline()
    wire = Wire(timeline, **keywords)
    return timeline, wire, Seen(wire.a, timeline), Seen(wire.b, timeline)


def test_the_timeline_calls_in_order_of_time_then_of_scheduling() -> None:
    timeline = Timeline(100)
    called: list[str] = []
    timeline.call_at(300, lambda: called.append("late"))
    timeline.call_at(200, lambda: called.append("first"))
    timeline.call_at(200, lambda: called.append("second"))
    timeline.call_at(5, lambda: called.append("overdue"))
    timeline.call_later(50, lambda: called.append("dropped")).cancel()
    timeline.run_until(200)
    assert called == ["overdue", "first", "second"] and timeline.now_ns == 200
    assert timeline.next_ns() == 300 and timeline.run_next() and not timeline.run_next()
    timeline.run_until(1000)
    assert called[-1] == "late" and timeline.now_ns == 1000


def test_a_timeline_that_never_ends_is_noticed() -> None:
    timeline = Timeline()

    def again() -> None:
        timeline.call_later(1, again)

    again()
    with pytest.raises(RuntimeError, match="1000 callbacks"):
        timeline.run_idle(1000)


def test_nothing_arrives_within_the_write() -> None:
    timeline, _, a, b = wired()
    a.connection.write([b"one", memoryview(b"two")])
    assert not b.data and a.connection.write_bytes == 6
    timeline.run_idle()
    assert b.data == b"onetwo" and a.connection.write_bytes == 0 and timeline.now_ns == 0


def test_delay_and_pieces() -> None:
    timeline, _, a, b = wired(delay_ns=lambda length: 10 * length, chunk=lambda length: 4)
    a.connection.write([bytes(10)])
    timeline.run_idle()
    assert b.pieces == [(40, 4), (40, 4), (40, 2)]


@given(st.integers(0, 1 << 32), st.lists(st.binary(min_size=1, max_size=50), max_size=20))
def test_any_delay_and_chunking_keeps_the_order(seed: int, writes: list[bytes]) -> None:
    chance = random.Random(seed)
    timeline, _, a, b = wired(
        delay_ns=lambda length: chance.randrange(100), chunk=lambda length: chance.randrange(1, length + 1)
    )
    for data in writes:
        a.connection.write([data])
        timeline.run_until(timeline.now_ns + chance.randrange(50))
    a.connection.close()
    timeline.run_idle()
    assert b.data == b"".join(writes) and b.closed == [None] and a.closed == [None]


def test_a_one_way_partition_holds_and_heals() -> None:
    timeline, wire, a, b = wired(delay_ns=5)
    wire.partition(b_to_a=False)
    a.connection.write([b"held"])
    b.connection.write([b"passes"])
    timeline.run_until(100)
    assert a.data == b"passes" and not b.data
    wire.heal()
    timeline.run_until(200)
    assert b.data == b"held" and not a.closed and not b.closed


def test_an_end_is_held_by_a_partition_too() -> None:
    timeline, wire, a, b = wired()
    wire.partition()
    a.connection.close()
    timeline.run_until(100)
    assert a.closed == [None] and not b.closed
    wire.heal()
    timeline.run_until(200)
    assert b.closed == [None]


def test_a_cut_loses_what_is_on_its_way() -> None:
    timeline, wire, a, b = wired(delay_ns=50)
    a.connection.write([b"lost"])
    timeline.run_until(10)
    wire.cut()
    timeline.run_until(10)
    assert a.closed and b.closed
    timeline.run_idle()
    assert not b.data
    for end in (a, b):
        (error,) = end.closed
        assert isinstance(error, ConnectionLost)
        with pytest.raises(ConnectionLost):
            end.connection.write([b"x"])


@pytest.mark.parametrize("kept", [0, 1, 4, 7])
def test_cut_after_so_many_bytes(kept: int) -> None:
    timeline, wire, a, b = wired(chunk=lambda length: 3)
    wire.cut_after(kept, a_to_b=True)
    a.connection.write([b"12345678"])
    timeline.run_idle()
    assert b.data == b"12345678"[:kept]
    assert isinstance(a.closed[0], ConnectionLost) and isinstance(b.closed[0], ConnectionLost)


def test_close_comes_after_everything_written() -> None:
    timeline, _, a, b = wired(delay_ns=7, chunk=lambda length: 1)
    a.connection.write([b"abc"])
    a.connection.close()
    a.connection.close()
    with pytest.raises(ConnectionLost):
        a.connection.write([b"d"])
    b.connection.write([b"not read any more"])
    timeline.run_idle()
    assert b.data == b"abc" and b.closed == [None] and a.closed == [None] and not a.data


def test_abort_drops_what_is_queued() -> None:
    timeline, _, a, b = wired(delay_ns=7)
    a.connection.write([b"abc"])
    a.connection.abort()
    timeline.run_idle()
    assert a.closed == [None] and isinstance(b.closed[0], ConnectionLost) and not b.data


def test_pause_and_resume() -> None:
    timeline, _, a, b = wired(chunk=lambda length: 2)
    b.connection.pause()
    a.connection.write([b"abcdef"])
    timeline.run_until(10)
    assert not b.data and a.connection.write_bytes == 6
    b.connection.resume()
    timeline.run_next()
    assert b.data == b"ab"
    b.connection.pause()
    timeline.run_idle()
    assert b.data == b"ab"
    b.connection.resume()
    timeline.run_idle()
    assert b.data == b"abcdef"


def test_backpressure_and_one_byte_more_than_the_limit() -> None:
    limits = Limits(write_high_bytes=10, write_low_bytes=4, write_max_bytes=20)
    timeline, _, a, b = wired(limits=limits, chunk=lambda length: 4)
    b.connection.pause()
    a.connection.write([bytes(10)])
    timeline.run_until(1)
    assert not a.writable and a.connection.writable
    a.connection.write([bytes(10)])
    assert not a.connection.writable and a.connection.write_room == 0
    with pytest.raises(WriteQueueFull):
        a.connection.write([bytes(1)])
    timeline.run_until(2)
    assert a.writable == [False]
    b.connection.resume()
    timeline.run_idle()
    assert a.writable == [False, True] and len(b.data) == 20 and a.connection.writable


def test_data_before_start_waits_and_an_end_before_start_is_told() -> None:
    timeline = Timeline()
    a, b = pair(timeline)
    seen_a = Seen(a, timeline)
    a.write([b"early"])
    timeline.run_idle()
    seen_b = Seen(b, timeline)
    timeline.run_idle()
    assert seen_b.data == b"early"
    a, b = pair(timeline)
    seen_a = Seen(a, timeline)
    a.abort()
    timeline.run_idle()
    seen_b = Seen(b, timeline)
    assert not seen_b.closed
    timeline.run_idle()
    assert len(seen_b.closed) == 1 and seen_a.closed == [None]
