"""The command lines that start targets."""

from __future__ import annotations

import os
import sys

MEMORY_MB = 1024  # spdk_tgt's pools do not fit into less


def spdk_command(
    binary: str | os.PathLike[str],
    rpc_socket: str | os.PathLike[str],
    *,
    core_mask: str = "0x1",
    memory_mb: int = MEMORY_MB,
    huge_pages: bool = False,
    pci: bool = False,
    core_locks: bool = True,
    wait_for_rpc: bool = False,
    dataplane_socket: str | os.PathLike[str] | None = None,
) -> list[str]:
    """A SPDK application (spdk_tgt, segmap_tgt). Without huge pages and PCI it needs neither set up.

    ``core_locks`` refuse a core on which another SPDK application polls. ``dataplane_socket``: segmap_tgt's own option.
    """
    command = [os.fspath(binary), "-r", os.fspath(rpc_socket), "-m", core_mask, "-s", str(memory_mb)]
    if not huge_pages:
        command.append("--no-huge")
    if not pci:
        command.append("--no-pci")
    if not core_locks:
        command.append("--disable-cpumask-locks")
    if wait_for_rpc:
        command.append("--wait-for-rpc")
    if dataplane_socket is not None:
        command += ["--dataplane-socket", os.fspath(dataplane_socket)]
    return command


def embedded_command(
    rpc_socket: str | os.PathLike[str], dataplane_socket: str | os.PathLike[str] | None = None
) -> list[str]:
    """The embedded target, in this Python."""
    command = [sys.executable, "-m", "dataplane.embedded", "--rpc-socket", os.fspath(rpc_socket)]
    if dataplane_socket is not None:
        command += ["--dataplane-socket", os.fspath(dataplane_socket)]
    return command
