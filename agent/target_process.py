"""The agent's one target: adopted if it runs, started if not, watched, ended.

A new target is started only when no older one of ours is left: what the state file names and is not to be adopted is
ended first. Who listens on the RPC socket is asked from the kernel, so a target that somebody else started is watched
just the same.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_OID, UUID, uuid5

from agent.config import AgentConfig
from spdk_rpc.bound import bound_command
from spdk_rpc.commands import embedded_command, spdk_command
from spdk_rpc.find import TARGET_PROGRAM, SpdkNotFound, find_segmap_tgt, find_spdk
from spdk_rpc.process import ProcessIdentity, end_process, listener_of
from spdk_rpc.target import Target, TargetExited, TargetLost, TargetNotRunning, TargetStartError

STOP_S: Final = 5.0
ADOPT_S: Final = 5.0
FILE_MODE: Final = 0o600
MACHINE_ID: Final = Path("/etc/machine-id")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Running:
    """The target that was found or started. `identity` is what the core calls it."""

    identity: bytes
    adopted: bool


class TargetUnavailable(Exception):
    """No target can be had now; the text says why."""


@dataclass(frozen=True, slots=True)
class State:
    """What a daemon leaves to the next one."""

    port: int = 0
    process: ProcessIdentity | None = None

    @classmethod
    def load(cls, path: Path) -> State:
        """An unreadable file is as good as none."""
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            pid, start_time, port = int(data["pid"]), int(data["start_time"]), int(data["port"])
        except (OSError, ValueError, KeyError, TypeError):
            return cls()
        return cls(port, ProcessIdentity(pid, start_time) if pid else None)

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        process = self.process or ProcessIdentity(0, 0)
        text = json.dumps({"pid": process.pid, "start_time": process.start_time, "port": self.port})
        write_whole(path, text + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replace a file's text in one step."""
    started = path.with_name(path.name + ".new")
    with os.fdopen(os.open(started, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE), "w") as file:
        file.write(text)
    started.rename(path)


class TargetHandle:
    """At most one target. `exited(reason)` is called once when it has ended by itself, or was killed by others;
    `silent(reason)` when its process lives but does not answer any more."""

    def __init__(
        self, config: AgentConfig, port: int, exited: Callable[[str], None], silent: Callable[[str], None]
    ) -> None:
        self._config = config
        self._port = port
        self._exited = exited
        self._silent = silent
        self.target: Target | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The process id, 0 if there is none."""
        identity = self.target.identity if self.target is not None else None
        return identity.pid if identity is not None else 0

    async def obtain(self) -> Running:
        """Adopt or start. Raises TargetUnavailable."""
        config = self._config
        try:
            target, adopted = await self._adopt_or_start()
        except (TargetNotRunning, TargetStartError, SpdkNotFound, OSError) as error:
            raise TargetUnavailable(str(error)) from error
        self.target = target
        assert target.identity is not None
        State(self._port, target.identity).save(config.state_path)
        write_whole(config.pid_path, f"{target.identity.pid}\n")
        self._watcher = asyncio.create_task(self._watch(target, target.identity))
        return Running(_identity(target.identity), adopted)

    async def end(self) -> None:
        """End the process: SIGTERM, then SIGKILL."""
        target = await self._take()
        if target is not None:
            await target.stop(STOP_S)
            State(self._port).save(self._config.state_path)
            self._config.pid_path.unlink(missing_ok=True)

    async def release(self) -> None:
        """Let go of it; it goes on."""
        target = await self._take()
        if target is not None:
            await target.close()

    async def _take(self) -> Target | None:
        target, self.target = self.target, None
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        return target

    async def _watch(self, target: Target, identity: ProcessIdentity) -> None:
        async for event in target.events():
            if isinstance(event, TargetLost):
                self._silent(f"process {identity.pid}: {event.reason}; see {self._config.log_path}")
            elif isinstance(event, TargetExited):
                break
        self.target = None
        self._watcher = None
        await target.stop(STOP_S)
        self._config.pid_path.unlink(missing_ok=True)
        self._exited(f"process {identity.pid} has ended; see {self._config.log_path}")

    async def _adopt_or_start(self) -> tuple[Target, bool]:
        config = self._config
        recorded = State.load(config.state_path).process
        listening = await asyncio.to_thread(listener_of, config.rpc_path)
        if listening is not None:
            try:
                return await self._adopt(listening), True
            except TargetNotRunning:
                if config.target == "adopt" or listening != recorded:
                    raise
        if config.target == "adopt":
            raise TargetUnavailable(f"nothing listens at {config.rpc_path}; start the target, or let the agent do it")
        if recorded is not None:
            await end_process(recorded, STOP_S)
        return await self._start(), False

    async def _adopt(self, identity: ProcessIdentity) -> Target:
        config = self._config
        return await Target.adopt(config.rpc_path, identity, ready_s=ADOPT_S, timeout_s=config.rpc_timeout_s)

    async def _start(self) -> Target:
        config = self._config
        command = target_command(config)
        if config.target_lifetime == "daemon":
            command = bound_command(command)
        return await Target.start(
            command,
            config.rpc_path,
            log_path=config.log_path,
            ready_s=config.target_ready_s,
            timeout_s=config.rpc_timeout_s,
        )


def target_command(config: AgentConfig) -> list[str]:
    """What is run as the target. Raises SpdkNotFound."""
    socket = config.dataplane_path if config.maps else None
    if config.target == "spdk":
        return _spdk_command(config, socket)
    command = embedded_command(config.rpc_path, socket)
    return [*config.target_command, *command[3:]] if config.target_command else command


def _spdk_command(config: AgentConfig, dataplane_socket: Path | None) -> list[str]:
    if config.target_command:
        own = ["--dataplane-socket", str(dataplane_socket)] if dataplane_socket is not None else []
        return [*config.target_command, "-r", str(config.rpc_path), *own]
    options = config.spdk
    return spdk_command(
        find_segmap_tgt() if config.maps else find_spdk().binary(TARGET_PROGRAM),
        config.rpc_path,
        core_mask=options.core_mask,
        memory_mb=config.spdk_memory_mib,
        huge_pages=options.huge_pages,
        pci=options.huge_pages,
        core_locks=options.core_locks,
        dataplane_socket=dataplane_socket,
    )


async def end_left_over(config: AgentConfig) -> bool:
    """End the target that an ended daemon left running; True if there was one."""
    left = State.load(config.state_path).process
    ended = left is not None and await end_process(left, STOP_S)
    config.pid_path.unlink(missing_ok=True)
    return ended


def _identity(process: ProcessIdentity) -> bytes:
    """16 bytes that name this process for good, the same for every daemon that adopts it."""
    return uuid5(NAMESPACE_OID, f"{_boot()}:{process.pid}:{process.start_time}").bytes


def this_machine() -> bytes:
    """8 bytes that name this machine (0: it has no name), and 8 that name this boot of it: what ran before is gone."""
    try:
        name = sha256(MACHINE_ID.read_bytes().strip()).digest()[:8]
    except OSError:
        name = bytes(8)
    return name + sha256(UUID(_boot()).bytes).digest()[:8]


def _boot() -> str:
    return BOOT_ID.read_text().strip()
