"""Does what the schedule says to a cluster, and undoes it: `run` returns when everything has been undone."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agent.config import AgentConfig
from cli.client import UnreachableError
from controller.api.errors import ApiError
from spdk_rpc.call import Call
from spdk_rpc.client import AsyncRpcClient
from spdk_rpc.containers import DelayContainer, ErrorContainer
from spdk_rpc.errors import RpcFailure
from spdk_rpc.methods import bdev
from tests.chaos.machines import Machines, SmallDisk
from tests.chaos.schedule import Fault, Kind
from tests.chaos.weather import Weather
from tests.chaos.wires import Wires
from tests.cluster.cluster import Cluster, Daemon, pause

TARGET: Final = ".target"
RPC_S: Final = 3.0
RPC_RETRY_S: Final = 0.2
LATENCIES: Final = ("avg_read", "p99_read", "avg_write", "p99_write")


class Breaker:
    """`story` is told each thing as it happens. Counts: done, by kind and by victim."""

    def __init__(
        self,
        cluster: Cluster,
        network: Machines | Wires,
        disks: dict[str, SmallDisk],
        weather: Weather,
        story: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._network = network
        self._disks = disks
        self._weather = weather
        self._story = story
        self._owners = {
            container.name: name for name, containers in cluster.exporters.items() for container in containers
        }
        self._down: Counter[str] = Counter()
        self._daemons = threading.Lock()
        self._cuts: Counter[tuple[str, str]] = Counter()
        self.kinds: Counter[str] = Counter()
        self.victims: Counter[str] = Counter()

    async def run(self, faults: list[Fault]) -> None:
        """All of them, each in its time."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._one(fault))

    async def _one(self, fault: Fault) -> None:
        await pause(max(0.0, fault.at_s - self._weather.now()))
        self._weather.begins(fault)
        try:
            undo = await asyncio.to_thread(self._do, fault)
            await self._ask(fault, True)
            self.kinds[fault.kind.value] += 1
            self.victims[f"{fault.kind.value} {fault.victim}"] += 1
            self._story(f"begin {fault.number}: {fault}")
            await pause(max(0.0, fault.end_s - self._weather.now()))
            await asyncio.to_thread(undo)
            await self._ask(fault, False)
            self._story(f"end   {fault.number}: {fault.kind.value} {fault.victim}")
        except ProcessLookupError:
            self._story(f"void  {fault.number}: {fault}: it was not running")
        finally:
            self._weather.ends(fault)

    def _do(self, fault: Fault) -> Callable[[], None]:
        """Do it; what undoes it."""
        kind, victim = fault.kind, fault.victim
        if kind is Kind.KILL:
            return self._kill_target(victim) if victim.endswith(TARGET) else self._kill_daemon(self._daemon(victim))
        if kind is Kind.MACHINE:
            undo = self._kill_daemon(self._daemon(victim))
            if victim in self._cluster.agents:
                self._kill_left(victim)
            return undo
        if kind in (Kind.PAUSE, Kind.STOP):
            return self._stop(self._pid(victim))
        if kind in (Kind.CUT, Kind.ONE_WAY, Kind.ISOLATE):
            return self._cut(self._ways(fault))
        if kind is Kind.FREEZE:
            self._disks[victim].freeze()
            return self._disks[victim].thaw
        if kind is Kind.FILL:
            self._disks[victim].fill()
            return self._disks[victim].empty
        return _nothing

    # --- processes ---------------------------------------------------------------------------------------------------

    def _daemon(self, name: str) -> Daemon:
        return self._cluster.controller if name == "controller" else self._cluster.agents[name]

    def _pid(self, victim: str) -> int:
        if not victim.endswith(TARGET):
            process = self._daemon(victim).process
            if process is None or process.poll() is not None:
                raise ProcessLookupError(victim)
            return process.pid
        config = self._cluster.agents[victim.removesuffix(TARGET)].config
        assert isinstance(config, AgentConfig)
        try:
            pid = int(config.pid_path.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            raise ProcessLookupError(victim) from None
        if str(config.rpc_path).encode() not in command:
            raise ProcessLookupError(victim)
        return pid

    def _kill_target(self, victim: str) -> Callable[[], None]:
        os.kill(self._pid(victim), signal.SIGKILL)
        return _nothing

    def _kill_left(self, name: str) -> None:
        try:
            self._kill_target(name + TARGET)
        except ProcessLookupError:
            pass  # it was down already

    def _kill_daemon(self, daemon: Daemon) -> Callable[[], None]:
        """Two faults may hold one down: it comes back when the last of them ends."""
        with self._daemons:
            self._down[daemon.name] += 1
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.kill()

        def undo() -> None:
            with self._daemons:
                self._down[daemon.name] -= 1
                if not self._down[daemon.name]:
                    daemon.start()

        return undo

    def _stop(self, pid: int) -> Callable[[], None]:
        os.kill(pid, signal.SIGSTOP)
        handle = os.pidfd_open(pid)

        def undo() -> None:
            try:
                signal.pidfd_send_signal(handle, signal.SIGCONT)
            except ProcessLookupError:
                pass  # killed meanwhile
            finally:
                os.close(handle)

        return undo

    # --- networks ----------------------------------------------------------------------------------------------------

    def _ways(self, fault: Fault) -> list[tuple[str, str]]:
        one, other = fault.victim, fault.other
        if fault.kind is Kind.ONE_WAY:
            return [(one, other)]
        if fault.kind is Kind.CUT:
            return [(one, other), (other, one)]
        others = [name for name in self._network.names if name != one]
        return [way for name in others for way in ((one, name), (name, one))]

    def _cut(self, ways: list[tuple[str, str]]) -> Callable[[], None]:
        for way in ways:
            self._cuts[way] += 1
            self._network.cut(*way)

        def undo() -> None:
            for way in ways:
                self._cuts[way] -= 1
                if not self._cuts[way]:
                    self._network.heal(*way)

        return undo

    # --- what somebody is asked to do --------------------------------------------------------------------------------

    async def _ask(self, fault: Fault, on: bool) -> None:
        """Faults that are done by the cluster itself."""
        if fault.kind in (Kind.SLOW, Kind.ERRORS):
            await self._inject(fault, on)
        elif fault.kind is Kind.FENCE and on:
            await self._operate("agent.fence", fault.victim, insist=False)
        elif fault.kind is Kind.DRAIN:
            await self._operate("agent.drain" if on else "agent.undrain", fault.victim, insist=not on)

    async def _operate(self, operation: str, agent: str, insist: bool) -> None:
        """As an operator, who does not wait for the end; refused or unheard, only if it has to be."""
        while True:
            try:
                await self._cluster.call(operation, agent=agent, wait_s=0)
            except (ApiError, UnreachableError) as error:
                if not insist:
                    self._story(f"      {operation} {agent}: {error}")
                    return
                await pause(RPC_RETRY_S)
            else:
                return

    async def _inject(self, fault: Fault, on: bool) -> None:
        """Into the error and delay bdevs below a container. What cannot be put there now is left out; to take it away
        is tried until somebody has heard it: a target that was only stopped still has it."""
        name, config = fault.victim, self._cluster.agents[self._owners[fault.victim]].config
        assert isinstance(config, AgentConfig)
        if fault.kind is Kind.ERRORS:
            io_type = ("all" if fault.size % 2 else "write") if on else "clear"
            calls: list[Call[Any]] = [bdev.error_inject(ErrorContainer(name).name, io_type, "failure", fault.size)]
        else:
            size = fault.size if on else 0
            calls = [bdev.delay_update(DelayContainer.faulty(name), kind, size) for kind in LATENCIES]
        async with AsyncRpcClient(config.rpc_path, timeout_s=RPC_S) as client:
            while calls:
                try:
                    await client.run(calls[0])
                    calls.pop(0)
                except RpcFailure:
                    if on:
                        return
                    await pause(RPC_RETRY_S)


def _nothing() -> None:
    pass
