"""A target as the agent uses it, SPDK's or the embedded one: start, adopt, attach, create, export, and its events.

Every operation says what shall be and converges (:mod:`spdk_rpc.converge`), so each can be repeated at any time.
Containers are attached over a connection of their own: one that cannot be reached holds nothing else up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from spdk_rpc.call import Call
from spdk_rpc.client import AsyncRpcClient
from spdk_rpc.containers import (
    Container,
    Inventory,
    NvmeTcpContainer,
    TargetConflict,
    bdevs_of,
    plan_attach,
    plan_detach,
)
from spdk_rpc.converge import (
    ENODEV,
    Converger,
    TargetError,
    TargetStuck,
    read_bdev,
    read_segmap,
    read_subsystem,
)
from spdk_rpc.errors import INVALID_PARAMS, RpcConnectError, RpcError, RpcFailure
from spdk_rpc.exports import Export, FrontEnd, NvmeTcpFrontEnd, plan_allow, plan_deny, plan_withdraw
from spdk_rpc.methods import bdev, bdev_nvme, bdev_segmap, framework, nvmf
from spdk_rpc.methods.bdev import Bdev
from spdk_rpc.methods.bdev_segmap import SegmapBdev, SegmapState
from spdk_rpc.methods.nvmf import Address, Subsystem
from spdk_rpc.process import ProcessGone, ProcessIdentity, TargetProcess, read_log_tail

READY_S = 20.0
TIMEOUT_S = 10.0
ATTACH_TIMEOUT_S = 60.0
STOP_S = 10.0
DENY_S = 10.0
POLL_S = 0.05
PROBE_S = 1.0
EVENTS_MAX = 64
SET_OPTIONS = "bdev_nvme_set_options"


@dataclass(frozen=True, slots=True)
class TargetExited:
    """The process has ended: with this status (minus a signal's number), or unknown."""

    status: int | None


@dataclass(frozen=True, slots=True)
class TargetLost:
    """The target does not answer."""

    reason: str


@dataclass(frozen=True, slots=True)
class TargetBack:
    """The target answers again; perhaps it is another process: read everything anew."""


TargetEvent = TargetExited | TargetLost | TargetBack


class TargetStartError(TargetError):
    """It did not start; the text ends with the end of its log."""


class TargetNotRunning(TargetError):
    """Nothing to adopt there."""


class Target:
    """One running target."""

    def __init__(self, client: AsyncRpcClient, process: TargetProcess | None, front_end: FrontEnd) -> None:
        self.client = client
        self._process = process
        self._front_end = front_end
        self._probe = AsyncRpcClient(client.socket_path, TIMEOUT_S)
        self._containers = Converger(AsyncRpcClient(client.socket_path, ATTACH_TIMEOUT_S))
        self._exports = Converger(client)
        self._events: asyncio.Queue[TargetEvent] = asyncio.Queue(EVENTS_MAX)
        self._watchers: list[asyncio.Task[None]] = []

    # -- beginning and end

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        rpc_socket: str | os.PathLike[str],
        *,
        log_path: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        ready_s: float = READY_S,
        timeout_s: float = TIMEOUT_S,
        front_end: FrontEnd | None = None,
    ) -> Self:
        """Runs ``argv`` and waits until it answers at ``rpc_socket`` with all its subsystems started."""
        if await _answers(rpc_socket):
            raise TargetStartError(f"a target runs already at {os.fspath(rpc_socket)}: adopt it, or stop it first")
        try:
            process = TargetProcess.spawn(argv, log_path, env)
        except OSError as error:
            raise TargetStartError(f"cannot start {argv[0]}: {error.strerror or error}") from error
        client = AsyncRpcClient(rpc_socket, timeout_s)
        try:
            await _wait_ready(client, process, ready_s, log_path)
        except BaseException:
            await client.close()
            await process.stop(0)
            process.close()
            raise
        return cls(client, process, front_end or NvmeTcpFrontEnd())._watch()

    @classmethod
    async def adopt(
        cls,
        rpc_socket: str | os.PathLike[str],
        identity: ProcessIdentity | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        front_end: FrontEnd | None = None,
    ) -> Self:
        """Takes over a running target; with ``identity`` it must be that process, and can be stopped."""
        try:
            process = None if identity is None else TargetProcess.adopt(identity)
        except ProcessGone as error:
            raise TargetNotRunning(f"no target to adopt at {os.fspath(rpc_socket)}: {error}") from error
        client = AsyncRpcClient(rpc_socket, timeout_s)
        try:
            await client.run(framework.wait_init())
        except RpcFailure as error:
            await client.close()
            if process is not None:
                process.close()
            raise TargetNotRunning(f"no target to adopt: {error}") from error
        return cls(client, process, front_end or NvmeTcpFrontEnd())._watch()

    @property
    def identity(self) -> ProcessIdentity | None:
        """What to keep in order to adopt it later."""
        return None if self._process is None else self._process.identity

    async def stop(self, deadline_s: float = STOP_S) -> int | None:
        """Ends the process: SIGTERM, then SIGKILL; its exit status. TargetError if it was adopted without identity."""
        if self._process is None:
            raise TargetError("this target was adopted without its process: whoever started it must stop it")
        await self._end_watch()
        try:
            return await self._process.stop(deadline_s)
        finally:
            await self._release()

    async def close(self) -> None:
        """Lets go of the target; it goes on running."""
        await self._end_watch()
        await self._release()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends its process a signal, if it is known."""
        if self._process is not None:
            self._process.signal(number)

    async def events(self) -> AsyncIterator[TargetEvent]:
        """What happens to the target, as it happens; ends with TargetExited. For one reader."""
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, TargetExited):
                return

    # -- containers

    async def attach(self, container: Container) -> tuple[Bdev, ...]:
        """Attaches the container; its bdevs. Nothing changes if it is attached. Raises TargetConflict, RpcError."""
        if isinstance(container, NvmeTcpContainer):
            await self._containers.converge(reads_flush, plan_flush)
        inventory = await self._containers.converge(
            lambda client: read_inventory(client, container), lambda found: plan_attach(container, found)
        )
        return bdevs_of(container, inventory)

    async def detach(self, container: Container) -> None:
        """Detaches the container; nothing happens if it is not attached."""
        await self._containers.converge(
            lambda client: read_inventory(client, container), lambda found: plan_detach(container, found)
        )

    # -- virtual disks

    async def create(self, disk: SegmapBdev) -> SegmapState:
        """Makes the segmap bdev; nothing changes if it exists. Raises TargetConflict if another one has its name."""

        def plan(found: SegmapState | None) -> Sequence[Call[Any]]:
            if found is None:
                return [bdev_segmap.create(disk)]
            check_same(disk, found)
            return []

        state = await self._exports.converge(lambda client: read_segmap(client, disk.name), plan)
        assert state is not None
        return state

    async def resize(self, name: str, segment_count: int) -> None:
        """Makes the segmap bdev that long."""
        await self._exports.converge(
            lambda client: read_segmap(client, name),
            lambda found: (
                [] if found and found.segment_count == segment_count else [bdev_segmap.resize(name, segment_count)]
            ),
        )

    async def delete(self, name: str) -> None:
        """Deletes the segmap bdev; nothing happens if there is none."""
        await self._exports.converge(
            lambda client: read_segmap(client, name), lambda found: [] if found is None else [bdev_segmap.delete(name)]
        )

    # -- exports

    async def export(self, export: Export) -> Address:
        """Shows bdevs to hosts as the export says, and takes away what it does not say. Where hosts find them."""
        return await self._front_end.export(export, self._exports)

    async def withdraw(self, nqn: str) -> None:
        """Takes an export away; its hosts are disconnected. Nothing happens if there is none."""
        await self._exports.converge(
            lambda client: read_subsystem(client, nqn), lambda found: plan_withdraw(nqn, found)
        )

    async def allow_host(self, nqn: str, hostnqn: str) -> None:
        """Lets one more host connect. TargetError if there is no such export."""

        def plan(found: Subsystem | None) -> Sequence[Call[Any]]:
            if found is None:
                raise TargetError(f"no export {nqn}: it must exist before a host is allowed")
            return plan_allow(nqn, hostnqn, found)

        await self._exports.converge(lambda client: read_subsystem(client, nqn), plan)

    async def deny_host(self, nqn: str, hostnqn: str, deadline_s: float = DENY_S) -> bool:
        """True only when the host is not allowed any more and none of its queue pairs is left (read back).

        False means *not fenced*: after ``deadline_s`` a queue pair was left, or the target did not answer.
        """
        ends = time.monotonic() + deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                found = await self._exports.converge(
                    lambda client: read_subsystem(client, nqn), lambda found: plan_deny(nqn, hostnqn, found), deadline_s
                )
                while True:
                    if found is None or not await self._has_queue_pair(nqn, hostnqn, ends - time.monotonic()):
                        return True
                    await asyncio.sleep(POLL_S)
        except (TimeoutError, RpcFailure, TargetStuck):
            return False

    async def subsystem(self, nqn: str) -> Subsystem | None:
        return await read_subsystem(self.client, nqn)

    async def bdev(self, name: str) -> Bdev | None:
        return await read_bdev(self.client, name)

    async def _has_queue_pair(self, nqn: str, hostnqn: str, timeout_s: float) -> bool:
        try:
            pairs = await self.client.run(nvmf.subsystem_get_qpairs(nqn), timeout_s)
        except RpcError as error:
            if error.code in (INVALID_PARAMS, ENODEV) and await self.subsystem(nqn) is None:
                return False
            raise
        return any(pair.hostnqn == hostnqn for pair in pairs)

    # -- watching

    def _watch(self) -> Self:
        self._watchers.append(asyncio.create_task(self._watch_answers()))
        if self._process is not None:
            self._watchers.append(asyncio.create_task(self._watch_process(self._process)))
        return self

    async def _watch_process(self, process: TargetProcess) -> None:
        self._tell(TargetExited(await process.wait()))

    async def _watch_answers(self) -> None:
        lost = False
        while True:
            await asyncio.sleep(PROBE_S)
            try:
                await self._probe.run(framework.get_version())
            except RpcFailure as error:
                if not lost:
                    self._tell(TargetLost(str(error)))
                lost = True
            else:
                if lost:
                    self._tell(TargetBack())
                lost = False

    def _tell(self, event: TargetEvent) -> None:
        """The oldest event gives way when nobody reads: the newest says how things are."""
        if self._events.full():
            self._events.get_nowait()
        self._events.put_nowait(event)

    async def _end_watch(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers.clear()

    async def _release(self) -> None:
        await self._probe.close()
        await self._containers.client.close()
        await self.client.close()
        if self._process is not None:
            self._process.close()


async def read_inventory(client: AsyncRpcClient, container: Container) -> Inventory:
    """As much of what the target has as the container's plans look at."""
    if isinstance(container, NvmeTcpContainer):
        return Inventory(await client.run(bdev.get_bdevs()), await client.run(bdev_nvme.get_controllers()))
    found = await read_bdev(client, container.name)
    return Inventory(() if found is None else (found,))


async def reads_flush(client: AsyncRpcClient) -> bool:
    """Whether a flush of an NVMe bdev goes to its controller: SPDK answers it by itself unless told otherwise."""
    if SET_OPTIONS not in await client.run(framework.get_methods(current=True)):
        return True  # the embedded target has no such option: it always sends it
    for call in await client.run(framework.get_config("bdev")):
        if call["method"] == SET_OPTIONS:
            return call["params"].get("enable_flush", True) is True
    return True


def plan_flush(enabled: bool) -> Sequence[Call[Any]]:
    """Lets flushes go to the controllers. Refused (-EPERM) while one is attached: detach all first."""
    return [] if enabled else [bdev_nvme.set_options(enable_flush=True)]


def check_same(disk: SegmapBdev, found: SegmapState) -> None:
    """Raises TargetConflict unless the bdev is that disk. Its length may differ: that is resize's business."""
    for name in ("uuid", "table", "segment_size", "block_size"):
        want, there = getattr(disk, name), getattr(found, name)
        if str(want).lower() != str(there).lower():
            raise TargetConflict(f"segmap bdev {disk.name} exists and differs: {name} is {there!r}, not {want!r}")


async def _answers(rpc_socket: str | os.PathLike[str]) -> bool:
    async with AsyncRpcClient(rpc_socket, 1.0) as client:
        try:
            await client.run(framework.get_version())
        except RpcConnectError:
            return False
        except RpcFailure:
            return True
        return True


async def _wait_ready(
    client: AsyncRpcClient, process: TargetProcess, ready_s: float, log_path: str | os.PathLike[str] | None
) -> None:
    """Until it answers; TargetStartError when it has ended before, or after ``ready_s``."""

    async def until_ready() -> None:
        while True:
            try:
                await client.run(framework.wait_init(), ready_s)
                return
            except RpcError as error:
                raise TargetStartError(f"the target refuses to start: {error}") from error
            except RpcFailure:
                await asyncio.sleep(POLL_S)

    ready, exited = asyncio.create_task(until_ready()), asyncio.create_task(process.wait())
    try:
        await asyncio.wait({ready, exited}, timeout=ready_s, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            return
        why = f"ended with status {exited.result()}" if exited.done() else f"did not answer within {ready_s:g} s"
        raise TargetStartError(f"the target {why}; the end of its log:\n{read_log_tail(log_path) or '(none)'}")
    finally:
        for task in (ready, exited):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, TargetStartError):
                await task
