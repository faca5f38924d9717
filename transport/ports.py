"""TCP ports to listen on, chosen once and kept: out of those from which the kernel takes none for outgoing connections.

A port out of that range could, while its owner restarts, be taken by anybody's outgoing connection, even by the very
client that waits for the owner (a TCP connection to itself). A reservation is a bound socket that does not listen: who
binds without SO_REUSEADDR, as `Reservation` does first, is refused; a listener that binds with it is not (ip(7),
socket(7)).
"""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Final

LOWEST: Final = 10240
HIGHEST: Final = 65535
WIDTH_MIN: Final = 1000
DEFAULT: Final = range(LOWEST, 32768)
TRIES_MAX: Final = 256
RANGE_FILE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


class NoPort(OSError):
    """Every port that was tried is in use."""


def stable_ports() -> range:
    """Those below the kernel's own range; those above it if that leaves few."""
    try:
        first, last = map(int, RANGE_FILE.read_text().split())
    except (OSError, ValueError):
        return DEFAULT
    below, above = range(LOWEST, first), range(max(last + 1, LOWEST), HIGHEST + 1)
    return next((ports for ports in (below, above) if len(ports) >= WIDTH_MIN), DEFAULT)


class Reservation:
    """`port` is ours until `close`."""

    def __init__(self, host: str, port: int = 0, chance: random.Random | None = None) -> None:
        self._socket: socket.socket | None = None
        ports = stable_ports()
        tries = [port] if port else (chance or random.Random()).sample(ports, min(TRIES_MAX, len(ports)))
        for candidate in tries:
            self._socket = _bind(host, candidate)
            if self._socket is not None:
                self.port = candidate
                return
        if not port:
            raise NoPort(f"{host}: none of {len(tries)} ports of {ports.start} to {ports.stop - 1} is free")
        self.port = port  # the target that we adopt may be listening there already

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def pick(host: str, taken: set[int], preferred: int = 0) -> int:
    """A port that is free now and not in `taken`, where it is put; `preferred` if it can be had. Raises NoPort.

    Connections of before that are not quite gone (TIME_WAIT) do not keep anybody from the preferred one.
    """
    ports = stable_ports()
    tries = [preferred] if preferred else []
    for port in [*tries, *random.Random().sample(ports, min(TRIES_MAX, len(ports)))]:
        probe = None if port in taken else _bind(host, port, reuse=port == preferred)
        if probe is not None:
            probe.close()
            taken.add(port)
            return port
    raise NoPort(f"{host}: no free port of {ports.start} to {ports.stop - 1}")


def _bind(host: str, port: int, reuse: bool = False) -> socket.socket | None:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        bound.bind((host, port))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        bound.close()
        return None
    return bound
