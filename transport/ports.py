"""A TCP port for the target to listen on, chosen once and kept from others while we live.

The range lies above what Linux gives to outgoing connections, so that a restarted target finds its port free. The
reservation is a bound socket that does not listen: who binds without SO_REUSEADDR, as `Reservation` does first, is
refused; a target, which binds with it, is not (ip(7), socket(7)).
"""

from __future__ import annotations

import random
import socket
from typing import Final

PORTS: Final = range(61000, 65536)
TRIES_MAX: Final = 256


class NoPort(OSError):
    """Every port that was tried is in use."""


class Reservation:
    """`port` is ours until `close`."""

    def __init__(self, host: str, port: int = 0, chance: random.Random | None = None) -> None:
        self._socket: socket.socket | None = None
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        tries = [port] if port else (chance or random.Random()).sample(PORTS, TRIES_MAX)
        for candidate in tries:
            self._socket = _bind(family, host, candidate)
            if self._socket is not None:
                self.port = candidate
                return
        if not port:
            raise NoPort(f"{host}: no free port among {TRIES_MAX} of {PORTS.start} to {PORTS.stop - 1}")
        self.port = port  # the target that we adopt may be listening there already

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _bind(family: int, host: str, port: int) -> socket.socket | None:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.bind((host, port))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        bound.close()
        return None
    return bound
