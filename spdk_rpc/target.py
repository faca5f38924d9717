"""A target, SPDK's or the embedded one: started or adopted, watched, worked on, ended.

What can be done to it are operations (:mod:`spdk_rpc.containers`, :mod:`~spdk_rpc.disks`, :mod:`~spdk_rpc.exports`):
each says what shall be and converges, so each can be repeated at any time. They are pure; :meth:`Target.run` carries
them out, and so can a machine of its own that makes the calls with :attr:`Target.client`.

A process that lives but does not answer any more is lost like one that has ended: TargetLost says so after
MISSES_MAX probes in a row without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from spdk_rpc import containers, disks, exports
from spdk_rpc.call import Call
from spdk_rpc.client import AsyncRpcClient
from spdk_rpc.connections import Connections
from spdk_rpc.containers import Container
from spdk_rpc.converge import TargetError, read_bdev, read_subsystem
from spdk_rpc.errors import RpcConnectError, RpcError, RpcFailure
from spdk_rpc.exports import FENCED, Export, FrontEnd
from spdk_rpc.methods import framework
from spdk_rpc.methods.bdev import Bdev
from spdk_rpc.methods.bdev_segmap import SegmapBdev, SegmapState
from spdk_rpc.methods.nvmf import Address, Subsystem
from spdk_rpc.process import ProcessGone, ProcessIdentity, TargetProcess, read_log_tail
from spdk_rpc.steps import Pause, Steps

T = TypeVar("T")

READY_S = 20.0
TIMEOUT_S = 10.0
STOP_S = 10.0
DENY_S = 10.0
POLL_S = 0.01
PROBE_S = 1.0
MISSES_MAX = 3
EVENTS_MAX = 64


class Client(Protocol):
    """Who makes calls at the target: one connection, or several."""

    @property
    def socket_path(self) -> str: ...

    async def run(self, call: Call[T], timeout_s: float | None = None) -> T: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TargetExited:
    """The process has ended: with this status (minus a signal's number), or unknown."""

    status: int | None


@dataclass(frozen=True, slots=True)
class TargetLost:
    """The target does not answer any more: MISSES_MAX probes in a row."""

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

    def __init__(
        self,
        client: Client,
        process: TargetProcess | None = None,
        front_end: FrontEnd | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.client = client
        self._process = process
        self._front_end = front_end
        self._probe = AsyncRpcClient(client.socket_path, timeout_s)
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
        client = Connections(rpc_socket, timeout_s)
        try:
            await _wait_ready(client, process, ready_s, log_path)
        except BaseException:
            await client.close()
            await process.stop(0)
            process.close()
            raise
        return cls(client, process, front_end, timeout_s)._watch()

    @classmethod
    async def adopt(
        cls,
        rpc_socket: str | os.PathLike[str],
        identity: ProcessIdentity | None = None,
        *,
        ready_s: float = READY_S,
        timeout_s: float = TIMEOUT_S,
        front_end: FrontEnd | None = None,
    ) -> Self:
        """Takes over a running target; with ``identity`` it must be that process, and can be stopped.

        Raises TargetNotRunning, also when it does not answer within ``ready_s``.
        """
        try:
            process = None if identity is None else TargetProcess.adopt(identity)
        except ProcessGone as error:
            raise TargetNotRunning(f"no target to adopt at {os.fspath(rpc_socket)}: {error}") from error
        client = Connections(rpc_socket, timeout_s)
        try:
            await client.run(framework.wait_init(), ready_s)
        except BaseException as error:
            await client.close()
            if process is not None:
                process.close()
            if isinstance(error, RpcFailure):
                raise TargetNotRunning(f"no target to adopt: {error}") from error
            raise
        return cls(client, process, front_end, timeout_s)._watch()

    @property
    def identity(self) -> ProcessIdentity | None:
        """What to keep in order to adopt it later."""
        return None if self._process is None else self._process.identity

    async def stop(self, deadline_s: float = STOP_S) -> int | None:
        """Ends the process: SIGTERM, then SIGKILL; its exit status. TargetError if it was adopted without identity."""
        if self._process is None:
            raise TargetError("this target was adopted without its process: whoever started it must stop it")
        await self._let_go()
        try:
            return await self._process.stop(deadline_s)
        finally:
            self._process.close()

    async def close(self) -> None:
        """Lets go of the target; it goes on running. Calls under way end with an unknown outcome."""
        await self._let_go()
        if self._process is not None:
            self._process.close()

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

    # -- operations

    async def run(self, steps: Steps[T]) -> T:
        """Carries out an operation; its value. Raises what it raises, RpcFailure or TargetError."""
        value: Any = None
        failure: RpcFailure | None = None
        while True:
            try:
                step = steps.send(value) if failure is None else steps.throw(failure)
            except StopIteration as stop:
                ended: T = stop.value
                return ended
            value = failure = None
            try:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.delay_ns / 1e9)
                else:
                    value = await self.client.run(step)
            except RpcFailure as error:
                failure = error

    async def attach(self, container: Container) -> tuple[Bdev, ...]:
        """Attaches the container (:func:`spdk_rpc.containers.attach`); its bdevs."""
        await self.run(containers.attach(container))
        return await self.run(containers.read_bdevs(container))

    async def detach(self, container: Container) -> None:
        await self.run(containers.detach(container))

    async def create(self, disk: SegmapBdev) -> SegmapState:
        """Makes the segmap bdev (:func:`spdk_rpc.disks.create`)."""
        return await self.run(disks.create(disk))

    async def resize(self, name: str, segment_count: int) -> None:
        await self.run(disks.resize(name, segment_count))

    async def delete(self, name: str) -> None:
        await self.run(disks.delete(name))

    async def export(self, export: Export) -> Address:
        """Shows bdevs to hosts as the export says, and takes away what it does not say. Where hosts find them."""
        if self._front_end is None:
            raise TargetError("this target was started or adopted without a front end: it can export nothing")
        await self.run(self._front_end.prepare())
        await self.run(self._front_end.export(export))
        return self._front_end.address

    async def withdraw(self, nqn: str) -> None:
        await self.run(exports.withdraw(nqn))

    async def allow_host(self, nqn: str, hostnqn: str) -> None:
        """Lets one more host connect. Raises NoExport if there is no such export."""
        await self.run(exports.allow_host(nqn, hostnqn))

    async def deny_host(self, nqn: str, hostnqn: str, deadline_s: float = DENY_S) -> bool:
        """Whether the host is fenced (:func:`spdk_rpc.exports.deny_host`)."""
        steps = exports.deny_host(nqn, hostnqn, time.monotonic_ns, int(deadline_s * 1e9))
        return await self.run(steps) == FENCED

    async def subsystem(self, nqn: str) -> Subsystem | None:
        return await self.run(read_subsystem(nqn))

    async def bdev(self, name: str) -> Bdev | None:
        return await self.run(read_bdev(name))

    # -- watching

    def _watch(self) -> Self:
        self._watchers.append(asyncio.create_task(self._watch_answers()))
        if self._process is not None:
            self._watchers.append(asyncio.create_task(self._watch_process(self._process)))
        return self

    async def _watch_process(self, process: TargetProcess) -> None:
        self._tell(TargetExited(await process.wait()))

    async def _watch_answers(self) -> None:
        misses = 0
        while True:
            await asyncio.sleep(PROBE_S)
            try:
                await self._probe.run(framework.get_version())
            except RpcFailure as error:
                misses += 1
                if misses == MISSES_MAX:
                    self._tell(TargetLost(str(error)))
            else:
                if misses >= MISSES_MAX:
                    self._tell(TargetBack())
                misses = 0

    def _tell(self, event: TargetEvent) -> None:
        """The oldest event gives way when nobody reads: the newest says how things are."""
        if self._events.full():
            self._events.get_nowait()
        self._events.put_nowait(event)

    async def _let_go(self) -> None:
        """Ends the watch and the connections."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers.clear()
        await self._probe.close()
        await self.client.close()


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
    client: Client, process: TargetProcess, ready_s: float, log_path: str | os.PathLike[str] | None
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
