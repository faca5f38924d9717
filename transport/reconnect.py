"""Connecting again and again, ever more slowly, and never all at once: chance and sleeping are injected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from transport.connection import ConnectFailed, Connection


@dataclass
class Backoff:
    """Delays `first_s`, times `factor` each, at most `max_s`; each shortened by up to `jitter` of itself.

    `chance`: numbers in [0, 1), `random.random` in a process.
    """

    chance: Callable[[], float]
    first_s: float = 0.1
    factor: float = 2.0
    max_s: float = 5.0
    jitter: float = 0.5
    _base_s: float = field(default=0.0, init=False)

    def next_delay_s(self) -> float:
        """How long to wait before the next attempt."""
        self._base_s = min(self._base_s * self.factor if self._base_s else self.first_s, self.max_s)
        return self._base_s * (1 - self.jitter * self.chance())

    def reset(self) -> None:
        """It worked: begin with `first_s` again."""
        self._base_s = 0.0


class Reconnector:
    """Keeps one connection: `connected` gets each new one and starts it; tell us its end with `lost`."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        connected: Callable[[Connection], None],
        backoff: Backoff,
        failed: Callable[[ConnectFailed], None] | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.backoff = backoff
        self.attempts = 0
        self._connect = connect
        self._connected = connected
        self._failed = failed
        self._sleep = sleep
        self._lost = asyncio.Event()

    def lost(self) -> None:
        """The connection given last has ended. Connect again, after the next delay."""
        self._lost.set()

    def useful(self) -> None:
        """The connection did what it is for (a session opened): the next delay is the first again."""
        self.backoff.reset()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.attempts += 1
            try:
                connection = await self._connect()
            except ConnectFailed as error:
                if self._failed is not None:
                    self._failed(error)
            else:
                self._lost.clear()
                self._connected(connection)
                await self._lost.wait()
            await self._sleep(self.backoff.next_delay_s())
