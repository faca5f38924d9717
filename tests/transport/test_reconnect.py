"""Connecting again: delays, chance, and that every loss leads to another attempt."""

from __future__ import annotations

import asyncio

import pytest

from transport.connection import ConnectFailed, Connection
from transport.memory import Timeline, pair
from transport.reconnect import Backoff, Reconnector


def test_delays_grow_to_a_maximum_and_begin_again() -> None:
    backoff = Backoff(lambda: 0.0, first_s=1, factor=2, max_s=5)
    assert [backoff.next_delay_s() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next_delay_s() == 1


def test_chance_shortens_delays() -> None:
    numbers = iter([0.0, 0.5, 0.999])
    backoff = Backoff(lambda: next(numbers), first_s=8, factor=1, max_s=8, jitter=0.5)
    assert [backoff.next_delay_s() for _ in range(3)] == pytest.approx([8, 6, 4.004])


def test_failures_and_losses_lead_to_another_attempt() -> None:
    async def body() -> None:
        slept: list[float] = []
        failures: list[str] = []
        connections: list[Connection] = []
        results = iter(["down", "up", "down", "up", "enough"])

        async def connect() -> Connection:
            result = next(results)
            if result == "down":
                raise ConnectFailed("not there")
            if result == "enough":
                raise asyncio.CancelledError
            return pair(Timeline())[0]

        def connected(connection: Connection) -> None:
            connections.append(connection)
            if len(connections) == 2:
                keeper.useful()
            asyncio.get_running_loop().call_soon(keeper.lost)

        async def sleep(delay_s: float) -> None:
            slept.append(delay_s)

        keeper = Reconnector(
            connect,
            connected,
            Backoff(lambda: 0.0, first_s=1),
            lambda error: failures.append(str(error)),
            sleep,
        )
        with pytest.raises(asyncio.CancelledError):
            await keeper.run()
        assert slept == [1, 2, 4, 1] and len(connections) == 2 and failures == ["not there"] * 2
        assert keeper.attempts == 5

    asyncio.run(body())
