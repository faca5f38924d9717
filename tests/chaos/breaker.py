"""Does what the schedule says to a cluster, and undoes it: `run` returns when everything has been undone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.config import AgentConfig
from tests.chaos.machines import Machines, NotPossible, SmallDisk
from tests.chaos.schedule import Fault, Kind
from tests.chaos.weather import Weather
from tests.cluster.cluster import Cluster, Daemon, pause

TARGET: Final = ".target"


class Breaker:
    """`story` is told each thing as it happens. Counts: done, by kind and by victim."""

    def __init__(
        self,
        cluster: Cluster,
        machines: Machines | None,
        disks: dict[str, SmallDisk],
        weather: Weather,
        story: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._machines = machines
        self._disks = disks
        self._weather = weather
        self._story = story
        self._owners = {
            container.name: name for name, containers in cluster.exporters.items() for container in containers
        }
        self._down: Counter[str] = Counter()
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
            if fault.kind in (Kind.SLOW, Kind.ERRORS):
                await self._inject(fault, True)
            self.kinds[fault.kind.value] += 1
            self.victims[f"{fault.kind.value} {fault.victim}"] += 1
            self._story(f"begin {fault.number}: {fault}")
            await pause(max(0.0, fault.end_s - self._weather.now()))
            await asyncio.to_thread(undo)
            if fault.kind in (Kind.SLOW, Kind.ERRORS):
                await self._inject(fault, False)
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
        self._down[daemon.name] += 1
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()

        def undo() -> None:
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
        assert self._machines is not None
        one, other = fault.victim, fault.other
        if fault.kind is Kind.ONE_WAY:
            return [(one, other)]
        if fault.kind is Kind.CUT:
            return [(one, other), (other, one)]
        others = [name for name in self._machines.names if name != one]
        return [way for name in others for way in ((one, name), (name, one))]

    def _cut(self, ways: list[tuple[str, str]]) -> Callable[[], None]:
        machines = self._machines
        assert machines is not None
        for way in ways:
            self._cuts[way] += 1
            machines.cut(*way)

        def undo() -> None:
            for way in ways:
                self._cuts[way] -= 1
                if not self._cuts[way]:
                    machines.heal(*way)

        return undo

    # --- containers --------------------------------------------------------------------------------------------------

    async def _inject(self, fault: Fault, on: bool) -> None:
        """Into the error and delay bdevs below a container; nothing if its target is not there to be told."""
        config = self._cluster.agents[self._owners[fault.victim]].config
        assert isinstance(config, AgentConfig)
        raise NotPossible(f"{config.name} has no such bdevs")


def _nothing() -> None:
    pass
