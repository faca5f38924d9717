"""A process that ends when its starter ends, however that dies: the kernel sends it a signal (prctl(2), PDEATHSIG).

`python -I -S bound.py PARENT-PID PROGRAM ARGUMENT...` runs a program so; the tie survives execve(2). It is in the way
of every restart of a target: it needs no site-packages, and imports nothing but the standard library. A child that
knows how to tie itself finds its parent in the environment. The signal is sent at the end of the *thread* that started
the child, so parents start children from their main one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PARENT_VARIABLE: Final = "SEGMAP_PARENT"


def bound_command(argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` bound to this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv]


def bound_environment() -> dict[str, str]:
    """The environment for a child that calls `die_with_parent`."""
    return os.environ | {PARENT_VARIABLE: str(os.getpid())}


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Ask for `number` at the parent's death, if the environment names a parent; ends at once if that is gone."""
    parent = os.environ.pop(PARENT_VARIABLE, "")
    if parent.isdigit():
        _tie(int(parent), number)


def main(argv: Sequence[str]) -> None:
    """Bind ourselves to the parent, and become the program."""
    parent, *command = argv
    _tie(int(parent), signal.SIGKILL)
    os.execvp(command[0], command)


def _tie(parent: int, number: signal.Signals) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
