"""Runs a program that ends when its starter ends: `python -m spdk_rpc.bound PARENT-PID PROGRAM ARGUMENT...`.

The kernel sends SIGKILL when the parent dies (prctl(2), PR_SET_PDEATHSIG), which survives execve(2). So a target that
is not meant to outlive its daemon is never left behind, not even by a SIGKILLed one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def bound_command(argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` bound to this process."""
    return [sys.executable, "-m", "spdk_rpc.bound", str(os.getpid()), *argv]


def main(argv: Sequence[str]) -> None:
    """Bind ourselves to the parent, and become the program."""
    parent, *command = argv
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
