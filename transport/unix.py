"""Unix sockets: the data plane's own. Only our user may connect; a stale path is replaced, one in use is refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from transport.connection import ConnectFailed, Connection, Limits, Listener
from transport.stream import ACCEPT_BACKLOG, StreamConnection, StreamListener

DEFAULT_LIMITS: Final = Limits()
PATH_BYTES_MAX: Final = 107
SOCKET_MODE: Final = 0o600


class AddressInUse(OSError):
    """Something listens on this path, or it is no socket."""


class _UnixListener(StreamListener):
    def __init__(self, accept: Callable[[Connection], None], limits: Limits, path: Path) -> None:
        super().__init__(accept, limits)
        self.path = path

    def close(self) -> None:
        """Listen no more, and remove the path."""
        super().close()
        self.path.unlink(missing_ok=True)


async def listen(
    path: Path | str, accept: Callable[[Connection], None], *, limits: Limits = DEFAULT_LIMITS
) -> Listener:
    """Listen on a path, mode 0600. Raises AddressInUse, or OSError if it cannot be made."""
    path = Path(path)
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise OSError(f"{path}: a Unix socket's path has at most {PATH_BYTES_MAX} bytes")
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        mask = os.umask(0o777 & ~SOCKET_MODE)
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
        listener = _UnixListener(accept, limits, path)
        loop = asyncio.get_running_loop()
        listener.bind(await loop.create_unix_server(listener.protocol, sock=sock, backlog=ACCEPT_BACKLOG))
    except BaseException:
        sock.close()
        raise
    return listener


def _clear(path: Path) -> None:
    """Remove a socket nobody listens on."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AddressInUse(f"{path}: exists and is no socket; remove it, or choose another path")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise AddressInUse(f"{path}: something listens there; stop it, or choose another path")


async def connect(path: Path | str, *, limits: Limits = DEFAULT_LIMITS, connect_timeout_s: float = 5.0) -> Connection:
    """A connection to a path. Raises ConnectFailed."""
    loop = asyncio.get_running_loop()
    connection = StreamConnection(limits)
    try:
        async with asyncio.timeout(connect_timeout_s):
            await loop.create_unix_connection(lambda: connection, str(path))
    except TimeoutError as error:
        raise ConnectFailed(f"{path}: no answer in {connect_timeout_s:g} s") from error
    except OSError as error:
        raise ConnectFailed(f"{path}: {error.strerror or error}; does something listen there?") from error
    return connection
