"""A child's tie to its parent: when the parent dies, however it dies, the kernel sends the child a signal.

prctl(2) PR_SET_PDEATHSIG is about the *thread* that started the child, so parents start children from their main one.
"""

from __future__ import annotations

import ctypes
import os
import signal

PARENT_VARIABLE = "SEGMAP_PARENT"
PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Asks for ``number`` at the parent's death, if the environment names a parent; ends at once if it is gone."""
    parent = os.environ.pop(PARENT_VARIABLE, "")
    if not parent.isdigit():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):
        raise SystemExit(1)
