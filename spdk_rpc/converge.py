"""From what a target has to what it should have: read, plan, call, and read again until the plan is empty.

A plan is a pure function of what was read. So an operation can be repeated at any time, and a call whose outcome is
unknown needs no guess: the next round reads what it did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from spdk_rpc.call import Call
from spdk_rpc.client import AsyncRpcClient
from spdk_rpc.errors import INVALID_PARAMS, RpcError, RpcOutcomeUnknown
from spdk_rpc.methods import bdev, bdev_segmap, nvmf
from spdk_rpc.methods.bdev import Bdev
from spdk_rpc.methods.bdev_segmap import SegmapState
from spdk_rpc.methods.nvmf import Subsystem

T = TypeVar("T")

ROUNDS_MAX = 8
ENODEV = -19


class TargetError(Exception):
    """A target cannot be had, or not be brought where it should be."""


class TargetStuck(TargetError):
    """Calls succeed, but what is read back never becomes what was wanted."""


class Converger:
    """Makes one change at a time over its own connection."""

    def __init__(self, client: AsyncRpcClient) -> None:
        self.client = client
        self._changing = asyncio.Lock()

    async def converge(
        self,
        read: Callable[[AsyncRpcClient], Awaitable[T]],
        plan: Callable[[T], Sequence[Call[Any]]],
        timeout_s: float | None = None,
    ) -> T:
        """What was read when nothing was left to do.

        A refusal (RpcError) is raised unless reading back shows another plan than the one that was refused: then
        somebody else, or an earlier call whose outcome was unknown, did it. Raises TargetStuck after ROUNDS_MAX rounds.
        """
        async with self._changing:
            refused: tuple[list[tuple[str, dict[str, Any]]], RpcError] | None = None
            steps: list[tuple[str, dict[str, Any]]] = []
            for _ in range(ROUNDS_MAX):
                state = await read(self.client)
                calls = plan(state)
                if not calls:
                    return state
                steps = [(call.method, call.params) for call in calls]
                if refused is not None and refused[0] == steps:
                    raise refused[1]
                refused = await self._make(calls, steps, timeout_s)
            raise TargetStuck(f"still to do after {ROUNDS_MAX} rounds: {', '.join(name for name, _ in steps)}")

    async def _make(
        self, calls: Sequence[Call[Any]], steps: list[tuple[str, dict[str, Any]]], timeout_s: float | None
    ) -> tuple[list[tuple[str, dict[str, Any]]], RpcError] | None:
        try:
            for call in calls:
                await self.client.run(call, timeout_s)
        except RpcError as error:
            # What is left of the plan when nothing else changes: the refused call and those behind it.
            return steps[steps.index((call.method, call.params)) :], error
        except RpcOutcomeUnknown:
            return None
        return None


async def read_bdev(client: AsyncRpcClient, name: str) -> Bdev | None:
    """The bdev of that name, or None."""
    try:
        return (await client.run(bdev.get_bdevs(name)))[0]
    except RpcError as error:
        if error.code == ENODEV:
            return None
        raise


async def read_subsystem(client: AsyncRpcClient, nqn: str) -> Subsystem | None:
    """The subsystem of that name, or None."""
    try:
        found = await client.run(nvmf.get_subsystems(nqn))
    except RpcError as error:
        if error.code in (INVALID_PARAMS, ENODEV):  # 26.05: -32602, and the name is the only parameter
            return None
        raise
    return found[0] if found else None


async def read_segmap(client: AsyncRpcClient, name: str) -> SegmapState | None:
    """The segmap bdev of that name, or None."""
    try:
        return (await client.run(bdev_segmap.get(name)))[0]
    except RpcError as error:
        if error.code == ENODEV:
            return None
        raise
