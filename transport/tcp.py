"""TCP, with or without TLS: listen and connect, with deadlines, no delay of small writes, and dead peers noticed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from transport.connection import ConnectFailed, Connection, Limits
from transport.connection import Listener as Listener
from transport.stream import ACCEPT_BACKLOG, StreamConnection, StreamListener, secure
from transport.tls import TlsContext

DEFAULT_LIMITS: Final = Limits()
KEEPALIVE_IDLE_S: Final = 10
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_PROBES: Final = 3
USER_TIMEOUT_MS: Final = 20_000
_OPTIONS: Final = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_PROBES),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
)


class _TcpListener(StreamListener):
    def protocol(self) -> StreamConnection:
        connection = super().protocol()
        connection.configure = configure
        return connection


def configure(sock: socket.socket) -> None:
    """Set the options that every TCP connection of ours has."""
    for level, name, value in _OPTIONS:
        if hasattr(socket, name):
            sock.setsockopt(level, getattr(socket, name), value)


async def listen(
    host: str,
    port: int,
    accept: Callable[[Connection], None],
    *,
    tls: TlsContext | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Listener:
    """Listen on one address; port 0 picks one (`Listener.port`). Raises OSError if it is taken."""
    listener = _TcpListener(accept, limits, tls)
    loop = asyncio.get_running_loop()
    listener.bind(await loop.create_server(listener.protocol, host, port, backlog=ACCEPT_BACKLOG, family=_family(host)))
    return listener


def _family(host: str) -> socket.AddressFamily:
    """One family, so that port 0 gives one port."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET if host else socket.AF_UNSPEC


async def connect(
    host: str,
    port: int,
    *,
    tls: TlsContext | None = None,
    limits: Limits = DEFAULT_LIMITS,
    connect_timeout_s: float = 5.0,
) -> Connection:
    """A connection, with TLS once the server is known. Raises ConnectFailed."""
    loop = asyncio.get_running_loop()
    connection = StreamConnection(limits)
    connection.configure = configure
    try:
        async with asyncio.timeout(connect_timeout_s):
            await loop.create_connection(lambda: connection, host, port)
    except TimeoutError as error:
        raise ConnectFailed(f"{host}:{port}: no answer in {connect_timeout_s:g} s; is it up and reachable?") from error
    except OSError as error:
        raise ConnectFailed(f"{host}:{port}: {error.strerror or error}; does something listen there?") from error
    return connection if tls is None else await _secured(connection, tls, limits)


async def _secured(connection: StreamConnection, tls: TlsContext, limits: Limits) -> Connection:
    done: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    def ready(secured: Connection) -> None:
        if done.done():
            secured.abort()
        else:
            done.set_result(secured)

    def failed(error: Exception) -> None:
        if not done.done():
            done.set_exception(ConnectFailed(str(error)))

    secure(connection, tls, limits, ready, failed)
    try:
        return await done
    except asyncio.CancelledError:
        connection.abort()
        raise
