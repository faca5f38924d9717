"""A target's process: started by us, or found again by its pid and start time.

It has a session of its own and no pipe to us, so it can outlive us; a process that we did not start is watched and
signalled all the same. Everything goes through a pidfd (pidfd_open(2)): a pid that was given to another process in the
meantime is never signalled.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOG_TAIL_LINES = 20
LOG_TAIL_BYTES = 8 << 10
LISTENER_S = 1.0
CREDENTIALS = struct.Struct("iII")  # unix(7): struct ucred


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """Names one process for good: ``start_time`` (clock ticks since boot, proc(5)) tells reused pids apart."""

    pid: int
    start_time: int


class ProcessGone(Exception):
    """There is no such process any more."""


def read_start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None if there is no such process, or it has ended and waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


class TargetProcess:
    """A handle on the process; ``close`` lets go of it without ending it."""

    def __init__(self, identity: ProcessIdentity, descriptor: int, is_child: bool) -> None:
        self.identity = identity
        self._descriptor = descriptor
        self._is_child = is_child
        self._exited: asyncio.Future[int | None] | None = None

    @classmethod
    def spawn(
        cls, argv: Sequence[str], log_path: os.PathLike[str] | str | None, env: Mapping[str, str] | None = None
    ) -> TargetProcess:
        """Starts ``argv``; its output is added to the file ``log_path``. Raises OSError."""
        program = shutil.which(argv[0])
        if program is None:
            raise FileNotFoundError(f"{argv[0]}: no such program")
        log = os.open(log_path or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            pid = os.posix_spawn(
                program,
                list(argv),
                dict(os.environ if env is None else env),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
            )
        finally:
            os.close(log)
        # A child stays there until we reap it, so its pid cannot be another's.
        return cls(ProcessIdentity(pid, read_start_time(pid) or 0), os.pidfd_open(pid), is_child=True)

    @classmethod
    def adopt(cls, identity: ProcessIdentity) -> TargetProcess:
        """The running process of that identity. Raises ProcessGone."""
        try:
            descriptor = os.pidfd_open(identity.pid)
        except ProcessLookupError as error:
            raise ProcessGone(f"no process {identity.pid}") from error
        if read_start_time(identity.pid) != identity.start_time:
            os.close(descriptor)
            raise ProcessGone(f"process {identity.pid} is not the one that was started")
        return cls(identity, descriptor, is_child=False)

    async def wait(self) -> int | None:
        """Its exit status once it has ended (minus the signal's number); None if it was not our child."""
        if self._exited is None:
            self._exited = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(self._descriptor, self._note_exit, self._exited)
        return await asyncio.shield(self._exited)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; nothing happens if it has ended."""
        if self._descriptor >= 0:
            try:
                signal.pidfd_send_signal(self._descriptor, number)
            except ProcessLookupError:
                pass

    async def stop(self, deadline_s: float) -> int | None:
        """SIGTERM, after ``deadline_s`` SIGKILL; its exit status."""
        self.signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.wait(), deadline_s)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            return await self.wait()

    def close(self) -> None:
        if self._descriptor < 0:
            return
        if self._exited is not None and not self._exited.done():
            self._exited.get_loop().remove_reader(self._descriptor)
            self._exited.cancel()
        os.close(self._descriptor)
        self._descriptor = -1

    def _note_exit(self, exited: asyncio.Future[int | None]) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        if not exited.done():
            exited.set_result(self._reap())

    def _reap(self) -> int | None:
        if not self._is_child:
            return None
        try:
            result = os.waitid(os.P_PIDFD, self._descriptor, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return None
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def listener_of(rpc_socket: str | os.PathLike[str]) -> ProcessIdentity | None:
    """The process that listens on a Unix socket, asked from the kernel (SO_PEERCRED); None if none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(LISTENER_S)
        try:
            probe.connect(os.fspath(rpc_socket))
            data = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        except OSError:
            return None
    pid = CREDENTIALS.unpack(data)[0]
    start_time = read_start_time(pid)
    return None if start_time is None else ProcessIdentity(pid, start_time)


async def end_process(identity: ProcessIdentity, deadline_s: float) -> bool:
    """SIGTERM, after ``deadline_s`` SIGKILL; True if there was such a process. It has ended now."""
    try:
        process = TargetProcess.adopt(identity)
    except ProcessGone:
        return False
    try:
        await process.stop(deadline_s)
    finally:
        process.close()
    return True


def read_log_tail(path: os.PathLike[str] | str | None) -> str:
    """The last lines of a target's output, for messages."""
    if path is None:
        return ""
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_TAIL_LINES:])
