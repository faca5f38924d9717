"""Free TCP ports that stay free: below the range from which the kernel takes ports for outgoing connections.

A port out of that range could, while its owner restarts, be taken by anybody's outgoing connection, even by the very
client that waits for the owner (a TCP connection to itself).
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

LOWEST = 10240
TRIES_MAX = 200
RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class NoFreePortError(Exception):
    """Nothing in the range could be bound."""


def highest_stable_port() -> int:
    """The last port below the kernel's own range; 32767 where it cannot be read."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        first = int(RANGE_FILE.read_text().split()[0])
        if first > LOWEST + 1000:
            return first - 1
    return 32767


def is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def pick(host: str, taken: set[int], preferred: int = 0) -> int:
    """A free port on ``host`` that is not in ``taken``, and is put there; ``preferred`` if it can be had."""
    chance = random.Random()
    highest = highest_stable_port()
    for attempt in range(TRIES_MAX):
        port = preferred if attempt == 0 and preferred else chance.randint(LOWEST, highest)
        if port not in taken and is_free(host, port):
            taken.add(port)
            return port
    raise NoFreePortError(f"no free port on {host} between {LOWEST} and {highest}")
