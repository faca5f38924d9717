"""Several connections to one target, so that what takes long holds nothing else up.

A target answers the calls of one connection in order. Attaching and detaching a container can take as long as its host
is silent; those calls have connections of their own, and a host is denied on one that is never behind them.
"""

from __future__ import annotations

import asyncio
import os
from typing import TypeVar

from spdk_rpc.call import Call
from spdk_rpc.client import AsyncRpcClient

T = TypeVar("T")

CONNECTIONS = 3
SLOW_CONNECTIONS = 4
SLOW_TIMEOUT_S = 60.0
SLOW_METHODS = frozenset({"bdev_nvme_attach_controller", "bdev_nvme_detach_controller"})


class Connections:
    """Each is made when it is needed first. A call waits for a free one of its kind; then its time begins."""

    def __init__(self, socket_path: str | os.PathLike[str], timeout_s: float) -> None:
        self.socket_path = os.fspath(socket_path)
        self._fast = _Lane(self.socket_path, timeout_s, CONNECTIONS)
        self._slow = _Lane(self.socket_path, max(timeout_s, SLOW_TIMEOUT_S), SLOW_CONNECTIONS)

    async def run(self, call: Call[T], timeout_s: float | None = None) -> T:
        """The call's value; raises a :class:`spdk_rpc.errors.RpcFailure`."""
        lane = self._slow if call.method in SLOW_METHODS else self._fast
        return await lane.run(call, timeout_s)

    async def close(self) -> None:
        """Ends the connections; calls under way end with an unknown outcome."""
        await asyncio.gather(*(client.close() for lane in (self._fast, self._slow) for client in lane.clients))


class _Lane:
    """Connections that are taken in turn."""

    def __init__(self, socket_path: str, timeout_s: float, count: int) -> None:
        self.clients = [AsyncRpcClient(socket_path, timeout_s) for _ in range(count)]
        self._idle: asyncio.Queue[AsyncRpcClient] = asyncio.Queue()
        for client in self.clients:
            self._idle.put_nowait(client)

    async def run(self, call: Call[T], timeout_s: float | None) -> T:
        client = await self._idle.get()
        try:
            return await client.run(call, timeout_s)
        finally:
            self._idle.put_nowait(client)
