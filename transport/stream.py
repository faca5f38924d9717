"""Connections and listeners over asyncio's stream sockets; what TCP and Unix sockets share.

Works on asyncio's own loop and on uvloop: a BufferedProtocol, no streams. A listener counts what it has accepted: above
`connections_max` (or `half_open_max` TLS handshakes at once) a new connection is aborted at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import cast

from transport.connection import (
    Buffer,
    Connection,
    ConnectionLost,
    Limits,
    Listener,
    OnClosed,
    OnData,
    OnWritable,
    Peer,
    WriteQueueFull,
    size_of,
)
from transport.tls import TlsConnection, TlsContext

ACCEPT_BACKLOG = 128


class StreamConnection(Connection, asyncio.BufferedProtocol):
    """One socket. `configure` sets its options once it is there."""

    def __init__(self, limits: Limits) -> None:
        self.peer = Peer("")
        self.configure: Callable[[socket.socket], None] | None = None
        self._limits = limits
        self._transport: asyncio.Transport | None = None
        self._read_view = memoryview(bytearray(limits.read_chunk_bytes))
        self._on_data: OnData | None = None
        self._on_closed: OnClosed | None = None
        self._on_writable: OnWritable | None = None
        self._writable = True
        self._reading = False
        self._closing = False
        self._lost = False
        self._error: Exception | None = None
        self._held = bytearray()
        self._close_timer: asyncio.TimerHandle | None = None

    # --- asyncio's side ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        transport = self._transport
        transport.pause_reading()
        transport.set_write_buffer_limits(high=self._limits.write_high_bytes, low=self._limits.write_low_bytes)
        self.peer = Peer(_address(transport))
        sock = transport.get_extra_info("socket")
        if self.configure is not None and sock is not None:
            self.configure(sock)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._read_view

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            return
        if self._on_data is not None and self._reading and not self._held:
            self._on_data(self._read_view[:nbytes])
        else:
            # uvloop starts reading after connection_made, whatever was asked for in it.
            self._held += self._read_view[:nbytes]
            if not self._reading and self._transport is not None:
                self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._writable = False
        if error is not None:
            self._error = ConnectionLost(f"{self.peer.address}: {error or type(error).__name__}")
            self._error.__cause__ = error
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._tell_closed()

    def pause_writing(self) -> None:
        self._set_writable(False)

    def resume_writing(self) -> None:
        self._set_writable(not self._closing)

    def _set_writable(self, writable: bool) -> None:
        self._writable = writable
        if self._on_writable is not None and not self._closing:
            self._on_writable(writable)

    def _deliver_held(self) -> None:
        """What came before `start`, or while a pause was not yet heeded; then the end, if it has come."""
        while self._held and self._reading and self._on_data is not None and not self._closing:
            held, self._held = self._held, bytearray()
            self._on_data(held)
        if self._lost:
            self._tell_closed()

    def _tell_closed(self) -> None:
        if self._held and not self._closing:
            return
        on_closed, self._on_data, self._on_writable = self._on_closed, None, None
        self._on_closed = None
        if on_closed is not None:
            on_closed(self._error)

    # --- the owner's side --------------------------------------------------------------------------------------------

    def start(self, on_data: OnData, on_closed: OnClosed, on_writable: OnWritable | None = None) -> None:
        self._on_data, self._on_closed, self._on_writable = on_data, on_closed, on_writable
        self.resume()
        asyncio.get_running_loop().call_soon(self._deliver_held)

    def write(self, buffers: Sequence[Buffer]) -> None:
        if self._transport is None or self._closing or self._transport.is_closing():
            raise ConnectionLost(f"{self.peer.address}: written to after the end")
        if size_of(buffers) > self.write_room:
            raise WriteQueueFull(f"{self.peer.address} does not read: {self.write_bytes} bytes queued")
        if len(buffers) == 1:
            self._transport.write(buffers[0])
        elif buffers:
            self._transport.writelines(buffers)

    def pause(self) -> None:
        if self._reading and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._reading = False

    def resume(self) -> None:
        if not self._reading and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._reading = True
        if self._held:
            asyncio.get_running_loop().call_soon(self._deliver_held)

    def close(self) -> None:
        if self._closing or self._transport is None or self._lost:
            return
        self._closing, self._writable = True, False
        self._held.clear()
        if not self._transport.is_closing():
            self._say_end(self._transport)
        timer = asyncio.get_running_loop().call_later(self._limits.close_timeout_s, self._transport.abort)
        self._close_timer = timer

    def _say_end(self, transport: asyncio.Transport) -> None:
        """End our half, and read on until the peer ends its own: closing over unread bytes would lose our last ones."""
        try:
            transport.write_eof()
        except OSError:
            transport.abort()
            return
        if not self._reading:
            transport.resume_reading()

    def abort(self) -> None:
        self._closing, self._writable = True, False
        self._held.clear()
        if self._transport is not None and not self._lost:
            self._transport.abort()

    @property
    def write_bytes(self) -> int:
        return 0 if self._transport is None or self._lost else self._transport.get_write_buffer_size()

    @property
    def write_room(self) -> int:
        return self._limits.write_max_bytes - self.write_bytes

    @property
    def writable(self) -> bool:
        return self._writable and not self._closing


def _address(transport: asyncio.Transport) -> str:
    name = transport.get_extra_info("peername") or transport.get_extra_info("sockname")
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(name or "")


class StreamListener(Listener):
    """`accept` gets each connection when it is ready (with TLS: identified)."""

    def __init__(self, accept: Callable[[Connection], None], limits: Limits, tls: TlsContext | None = None) -> None:
        self.limits = limits
        self.refused = 0
        self.failed = 0
        self._accept = accept
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._open: set[_Accepted] = set()
        self._half_open = 0

    def protocol(self) -> StreamConnection:
        """For asyncio's create_server."""
        return _Accepted(self)

    def bind(self, server: asyncio.Server) -> None:
        """The asyncio server whose connections these are."""
        self._server = server

    @property
    def port(self) -> int:
        assert self._server is not None
        name = self._server.sockets[0].getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    @property
    def connections(self) -> int:
        return len(self._open)

    def replace_tls(self, context: TlsContext) -> None:
        """New connections use this; those that are there go on as they are."""
        assert self._tls is not None, "a listener without TLS stays one"
        self._tls = context

    @property
    def half_open(self) -> int:
        """TLS handshakes in progress."""
        return self._half_open

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def close_all(self) -> None:
        for connection in list(self._open):
            connection.abort()

    async def wait_closed(self) -> None:
        while self._open:
            await next(iter(self._open)).ended

    def opened(self, connection: _Accepted) -> None:
        """A socket was accepted."""
        full = len(self._open) >= self.limits.connections_max
        if full or (self._tls is not None and self._half_open >= self.limits.half_open_max):
            self.refused += 1
            connection.abort()
            return
        self._open.add(connection)
        if self._tls is None:
            self._accept(connection)
        else:
            self._half_open += 1
            secure(connection, self._tls, self.limits, self._secured, self._failed)

    def closed(self, connection: _Accepted) -> None:
        """An accepted connection has ended."""
        self._open.discard(connection)

    def _secured(self, connection: Connection) -> None:
        self._half_open -= 1
        self._accept(connection)

    def _failed(self, error: Exception) -> None:
        self._half_open -= 1
        self.failed += 1


class _Accepted(StreamConnection):
    """A connection that its listener counts."""

    def __init__(self, listener: StreamListener) -> None:
        super().__init__(listener.limits)
        self._listener = listener
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.closed(self)
        if not self.ended.done():
            self.ended.set_result(None)
        super().connection_lost(error)


def secure(
    connection: Connection,
    context: TlsContext,
    limits: Limits,
    ready: Callable[[Connection], None],
    failed: Callable[[Exception], None],
) -> None:
    """TLS over `connection`, within `handshake_timeout_s`: calls either `ready` or `failed`, once."""

    def timed_out() -> None:
        secured.fail(ConnectionLost(f"{connection.peer.address}: TLS handshake took {limits.handshake_timeout_s} s"))

    def done(secured: Connection) -> None:
        timer.cancel()
        ready(secured)

    def broken(error: Exception) -> None:
        timer.cancel()
        failed(error)

    timer = asyncio.get_running_loop().call_later(limits.handshake_timeout_s, timed_out)
    secured = TlsConnection(connection, context, done, broken, asyncio.get_running_loop().call_soon)
    secured.begin()
