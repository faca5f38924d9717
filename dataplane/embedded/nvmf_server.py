"""NVMe/TCP target on asyncio: listening sockets, connections, the clock. What to do is decided in fabric.nvme_tcp.

Bytes are received straight into the connection's buffers and sent with one system call per batch. What the socket
does not take at once is copied, so that later writes to the memory it came from cannot change it. While a host does
not take its answers, nothing more is read from it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol, cast

from fabric.nvme_tcp.command import Command
from fabric.nvme_tcp.subsystem import Listener, TargetError
from fabric.nvme_tcp.target import NvmeTarget
from fabric.nvme_tcp.target_connection import TargetConnection
from transport import tcp

if TYPE_CHECKING:
    from typing_extensions import Buffer

TICK_S: Final = 1.0
IOV_MAX: Final = 1024
JOIN_BYTES_MAX: Final = 512 * 1024  # up to here one copy is cheaper than many vectors
WRITE_HIGH: Final = 256 * 1024
BACKLOG: Final = 128


class Backend(Protocol):
    """Who does the I/O. Each command is completed exactly once, in any order, at once or later."""

    def execute(self, connection: TargetConnection, commands: list[Command]) -> None:
        """Begin these commands."""

    def abort(self, command: Command) -> None:
        """The host gives this one up: if it waits, complete it as aborted now and never execute it."""

    def connection_lost(self, connection: TargetConnection, commands: list[Command]) -> None:
        """Nobody waits for these: drop what waits; complete every one, what is being executed when it has ended."""


class HostProtocol(asyncio.BufferedProtocol):
    """One TCP connection."""

    def __init__(self, server: NvmfServer, listener: Listener) -> None:
        self._server = server
        self._listener = listener
        self._backend = server.backend
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._paused = False
        self._finished = False
        self.connection: TargetConnection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only
        transport.set_write_buffer_limits(high=WRITE_HIGH)
        name = transport.get_extra_info("peername") or ("?", 0)
        sock = transport.get_extra_info("socket")
        tcp.configure(sock)
        self._transport = transport
        self._fd = sock.fileno()
        self.connection = self._server.opened(self, self._listener, f"{name[0]}:{name[1]}")
        if self.connection is None:
            transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        assert self.connection is not None
        return self.connection.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        connection = self.connection
        assert connection is not None
        connection.holding = True
        commands = connection.buffer_updated(nbytes, time.monotonic_ns())
        if commands:
            self._backend.execute(connection, commands)
        self._after(connection)

    def _after(self, connection: TargetConnection) -> None:
        """What follows a batch: aborts, output, backpressure."""
        if connection.aborts:
            for _, victim in list(connection.aborts):
                if not victim.done:
                    self._backend.abort(victim)
            connection.finish_aborts()
        connection.holding = False
        self.flush()
        if connection.stalled and not self._paused:
            assert self._transport is not None
            self._transport.pause_reading()
            self._server.loop.call_soon(self._resume)

    def _resume(self) -> None:
        connection = self.connection
        if connection is None or connection.lost or self._paused or self._transport is None:
            return
        connection.holding = True
        commands = connection.resume(time.monotonic_ns())
        if commands:
            self._backend.execute(connection, commands)
        if not connection.stalled and not self._paused and not self._transport.is_reading():
            self._transport.resume_reading()
        self._after(connection)

    def flush(self) -> None:
        """Send what there is; close if the connection wants to be closed."""
        connection, transport = self.connection, self._transport
        if connection is None or transport is None or connection.lost:
            return
        buffers = connection.data_to_send()
        if buffers and not transport.is_closing():
            self._send(transport, buffers)
        if connection.closing and not self._finished:
            self._finished = True
            self._server.finish(transport)

    def _send(self, transport: asyncio.Transport, buffers: list[Buffer]) -> None:
        if transport.get_write_buffer_size():
            transport.write(b"".join(buffers))
            return
        total = sum(map(len, cast("list[bytes]", buffers)))
        try:
            if total <= JOIN_BYTES_MAX:
                joined = b"".join(buffers)
                sent = os.write(self._fd, joined)
                if sent < total:
                    transport.write(memoryview(joined)[sent:])
                return
            sent = os.writev(self._fd, buffers[:IOV_MAX])
        except BlockingIOError:
            sent = 0
        except OSError:
            transport.abort()
            return
        if sent < total:
            transport.writelines(_rest(buffers, sent))

    def pause_writing(self) -> None:
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        transport, connection = self._transport, self.connection
        if transport is None or connection is None or transport.is_closing():
            return
        if connection.stalled:
            self._resume()
        elif not transport.is_reading():
            transport.resume_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        connection, self._transport = self.connection, None
        if connection is not None:
            self._server.lost(self, connection)


def _rest(buffers: list[Buffer], sent: int) -> list[bytes | memoryview]:
    """Everything after the first `sent` bytes, copied unless it cannot change anyway."""
    rest: list[bytes | memoryview] = []
    for buffer in buffers:
        view = memoryview(buffer)
        if sent >= view.nbytes:
            sent -= view.nbytes
            continue
        unsent = view.cast("B")[sent:]
        rest.append(unsent if isinstance(buffer, bytes) else bytes(unsent))
        sent = 0
    return rest


class NvmfServer:
    """All listening sockets and connections of one target. Everything happens in the loop's thread."""

    def __init__(self, target: NvmeTarget, backend: Backend) -> None:
        self.target = target
        self.backend = backend
        self._loop: asyncio.AbstractEventLoop | None = None
        self._servers: dict[Listener, asyncio.Server] = {}
        self._protocols: dict[TargetConnection, HostProtocol] = {}
        self._ticker: asyncio.TimerHandle | None = None
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()
        target.on_attention = self._attention

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    async def listen(self, listener: Listener) -> Listener:
        """Begin to listen. Service id "0" takes a free port; the listener with the real one is returned."""
        if listener in self._servers:
            raise TargetError(f"{listener.traddr}:{listener.trsvcid} is in use")
        family = socket.AF_INET6 if listener.adrfam.lower() == "ipv6" else socket.AF_INET
        place = [listener]
        server = await self.loop.create_server(
            lambda: HostProtocol(self, place[0]),
            listener.traddr,
            int(listener.trsvcid),
            family=family,
            backlog=BACKLOG,
            start_serving=False,
        )
        if listener.trsvcid == "0":
            place[0] = replace(listener, trsvcid=str(server.sockets[0].getsockname()[1]))
        self._servers[place[0]] = server
        await server.start_serving()
        return place[0]

    async def unlisten(self, listener: Listener) -> None:
        """Accept nothing more there, and end the connections that came by it."""
        server = self._servers.pop(listener, None)
        if server is None:
            raise TargetError(f"{listener.traddr}:{listener.trsvcid} is not in use")
        server.close()
        for connection in [found for found in self._protocols if found.listener == listener]:
            connection.close("the listener was removed")

    async def close(self) -> None:
        """End everything; returns when the last connection is gone."""
        for listener in list(self._servers):
            await self.unlisten(listener)
        for connection in list(self._protocols):
            connection.close("the target ends")
        await self._idle.wait()
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    # For HostProtocol

    def opened(self, protocol: HostProtocol, listener: Listener, peer: str) -> TargetConnection | None:
        """A new connection; None if there are too many."""
        connection = self.target.accept(listener, peer, time.monotonic_ns())
        if connection is not None:
            self._protocols[connection] = protocol
            self._idle.clear()
            if self._ticker is None:
                self._ticker = self.loop.call_later(TICK_S, self._tick)
        return connection

    def finish(self, transport: asyncio.Transport) -> None:
        """Close after what is buffered has been sent, or without that if the host does not take it."""
        transport.close()
        self.loop.call_later(TICK_S, transport.abort)

    def lost(self, protocol: HostProtocol, connection: TargetConnection) -> None:
        """The connection is gone: its I/O is dropped."""
        self._protocols.pop(connection, None)
        commands = connection.connection_lost()
        if commands:
            self.backend.connection_lost(connection, commands)
        if not self._protocols:
            self._idle.set()

    def _attention(self) -> None:
        self.loop.call_soon(self._flush_attention)

    def _flush_attention(self) -> None:
        for connection in self.target.take_attention():
            protocol = self._protocols.get(connection)
            if protocol is not None:
                protocol.flush()

    def _tick(self) -> None:
        self._ticker = None
        now_ns = time.monotonic_ns()
        deadline_ns = self.target.next_deadline()
        if deadline_ns is not None and deadline_ns <= now_ns:
            self.target.tick(now_ns)
        if self._protocols:
            self._ticker = self.loop.call_later(TICK_S, self._tick)
