"""The network where no namespaces can be had: everything on loopback, with a fault proxy in each connection that can be
led through one: agents to the controller, and hosts to mapping agents. Agents reach containers directly.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tests.chaos.machines import HOSTS
from tests.cluster.cluster import Network
from transport.fault_proxy import DOWN, UP, FaultProxy

NOWHERE: Final = ("127.0.0.1", 1)
CONTROLLER: Final = "controller"


class Wires(Network):
    """A proxy for each (who connects, to whom); open it in the loop that it is used in."""

    def __init__(self, agents: tuple[str, ...], mappers: tuple[str, ...]) -> None:
        self.names = (HOSTS, CONTROLLER, *agents)
        ways = [(agent, CONTROLLER) for agent in agents] + [(HOSTS, mapper) for mapper in mappers]
        self._proxies = {way: FaultProxy(*NOWHERE) for way in ways}
        self._loop = asyncio.get_running_loop()

    @property
    def links(self) -> tuple[tuple[str, str], ...]:
        """What can be cut."""
        return tuple(self._proxies)

    async def open(self) -> None:
        """Listen everywhere."""
        for proxy in self._proxies.values():
            await proxy.listen("127.0.0.1", 0)

    async def close(self) -> None:
        """End all of it."""
        for proxy in self._proxies.values():
            await proxy.close()

    def way(self, name: str, to: str, host: str, port: int) -> tuple[str, int]:
        proxy = self._proxies.get((name, to))
        if proxy is None:
            return host, port
        proxy.server = (host, port)
        return "127.0.0.1", proxy.port

    def cut(self, sender: str, receiver: str) -> None:
        """Nothing goes from `sender` to `receiver` any more. From any thread, like `heal`."""
        self._change(sender, receiver, True)

    def heal(self, sender: str, receiver: str) -> None:
        """Undo `cut`."""
        self._change(sender, receiver, False)

    def _change(self, sender: str, receiver: str, cut: bool) -> None:
        for way, direction in (((sender, receiver), UP), ((receiver, sender), DOWN)):
            proxy = self._proxies.get(way)
            if proxy is not None:
                asyncio.run_coroutine_threadsafe(_tell(proxy, direction, cut), self._loop).result()


async def _tell(proxy: FaultProxy, direction: str, cut: bool) -> None:
    proxy.change(direction, cut=cut)
