"""One supervised process: started in a session of its own, restarted with growing pauses, ended for good.

Invariants: at most one process of a child lives; after `stop` nothing of its process group is left; a process that
ends while it is wanted is started again after a pause that doubles from RESTART_MIN_S to RESTART_MAX_S and is forgotten
once it has lived for STABLE_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from spdk_rpc.bound import bound_environment

RESTART_MIN_S = 0.2
RESTART_MAX_S = 10.0
STABLE_S = 20.0
TERMINATE_S = 8.0
TAIL_BYTES = 2000


class Child:
    """A process we want to live. ``tell(text)`` hears of deaths and restarts."""

    def __init__(self, name: str, command: Sequence[str], log: Path, tell: Callable[[str], None]) -> None:
        self.name = name
        self.command = tuple(command)
        self.log = log
        self.tell = tell
        self.restarts = 0
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._may_run = asyncio.Event()
        self._may_run.set()

    @property
    def pid(self) -> int:
        """Process id, 0 while it does not run."""
        return self._process.pid if self._process and self._process.returncode is None else 0

    def start(self) -> None:
        """Starts it, and again whenever it ends; returns at once."""
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._keep_alive())

    async def _keep_alive(self) -> None:
        pause = RESTART_MIN_S
        loop = asyncio.get_running_loop()
        while True:
            await self._may_run.wait()
            began = loop.time()
            code = await self._run_once()
            if not self._may_run.is_set():
                continue
            if loop.time() - began > STABLE_S:
                pause = RESTART_MIN_S
            self.tell(f"{self.name} ended ({describe_exit(code)}); starting it again in {pause:g} s; log: {self.log}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, RESTART_MAX_S)
            self.restarts += 1

    async def _run_once(self) -> int:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=bound_environment(),
            )
        try:
            return await self._process.wait()
        finally:
            self._signal_group(signal.SIGKILL)

    async def kill(self) -> None:
        """SIGKILL now, and no restart until `revive`."""
        self._may_run.clear()
        self._signal_group(signal.SIGKILL)
        if self._process:
            await self._process.wait()

    def revive(self) -> None:
        """Let it run again after `kill`."""
        self._may_run.set()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL for what is left of its group; no restart."""
        process, self._may_run = self._process, asyncio.Event()
        if process and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(process.wait()), TERMINATE_S)
            if process.returncode is None:
                self.tell(f"{self.name} does not end; killing it")
        self._signal_group(signal.SIGKILL)
        if self._watch:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        if process:
            await process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def log_tail(self) -> str:
        """The end of its log, for messages."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
        return ""


def describe_exit(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    return f"exit status {code}"


def segmap_command(*words: str) -> tuple[str, ...]:
    """The argv of a `segmap` command in this very installation."""
    return (sys.executable, "-P", "-m", "cli", *words)


def process_exists(pid: int) -> bool:
    """Whether a process of that id lives (a zombie does not)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
