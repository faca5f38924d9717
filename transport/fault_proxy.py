"""A TCP proxy that can be told to be a bad network: for test systems, in front of anything that speaks TCP.

Each direction has faults of its own: `delay_s` for every byte, a `cut` (nothing is forwarded until it is healed; what
came meanwhile then is, as after a real partition), and a `bandwidth` in bytes a second. `reset` breaks every
connection; while something is cut, a new one is accepted and stays silent. Nothing is reordered or lost out of a
living connection: it is TCP.

Limits: CONNECTIONS_MAX, more are reset; QUEUE_CHUNKS_MAX chunks wait in each direction, then the sender is held up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from transport.connection import Buffer, Connection, Listener
from transport.unix import listen as listen_unix

CHUNK_BYTES: Final = 64 << 10
QUEUE_CHUNKS_MAX: Final = 64
CONNECTIONS_MAX: Final = 1024
LINE_BYTES_MAX: Final = 4096
DELAY_S_MAX: Final = 3600.0
UP: Final = "up"
DOWN: Final = "down"
_ABORTING_CLOSE: Final = struct.pack("ii", 1, 0)


class BadFaults(ValueError):
    """What was asked for makes no sense; the text says why."""


@dataclass(slots=True)
class Faults:
    """Of one direction. `bandwidth` 0: without limit."""

    delay_s: float = 0.0
    cut: bool = False
    bandwidth: int = 0


@dataclass(slots=True)
class Counts:
    """Since the proxy began."""

    connections: int = 0
    resets: int = 0
    bytes: dict[str, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})


class FaultProxy:
    """`faults[UP]`: from whoever connects to us to the server; `faults[DOWN]`: back."""

    def __init__(self, server_host: str, server_port: int) -> None:
        self.server = (server_host, server_port)
        self.faults = {UP: Faults(), DOWN: Faults()}
        self.counts = Counts()
        self.port = 0
        self._healed = {UP: asyncio.Event(), DOWN: asyncio.Event()}
        self._open: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._server: asyncio.Server | None = None
        for event in self._healed.values():
            event.set()

    async def listen(self, host: str, port: int) -> None:
        """Begin. Port 0: any; `port` says which."""
        self._server = await asyncio.start_server(self._accepted, host, port, limit=CHUNK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End it, and every connection."""
        if self._server is not None:
            self._server.close()
        self.reset()
        await asyncio.gather(*self._open, return_exceptions=True)

    # --- what it is told ---------------------------------------------------------------------------------------------

    def change(self, direction: str, **values: Any) -> None:
        """Set some of a direction's faults. Raises BadFaults, and changes nothing then."""
        known = self.faults.get(direction)
        if known is None:
            raise BadFaults(f"direction {direction!r}: {UP} or {DOWN}")
        checked = {name: _checked(name, value) for name, value in values.items()}
        for name, value in checked.items():
            setattr(known, name, value)
        if known.cut:
            self._healed[direction].clear()
        else:
            self._healed[direction].set()

    def reset(self) -> None:
        """Break every connection that there is, as a reset does: what was on its way is lost."""
        for task, writers in self._open.items():
            self.counts.resets += 1
            for writer in writers:
                _break(writer)
            task.cancel()

    def show(self) -> dict[str, Any]:
        """For operators."""
        return {
            "port": self.port,
            "server": "{}:{}".format(*self.server),
            "open": len(self._open),
            **asdict(self.counts),
            "faults": {direction: asdict(faults) for direction, faults in self.faults.items()},
        }

    # --- connections -------------------------------------------------------------------------------------------------

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= CONNECTIONS_MAX:
            _break(writer)
            return
        self.counts.connections += 1
        writers = self._open[task] = [writer]
        try:
            for direction in (UP, DOWN):
                await self._healed[direction].wait()
            there, back = await asyncio.open_connection(*self.server, limit=CHUNK_BYTES)
            writers.append(back)
            for one in writers:
                one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(UP, reader, back))
                group.create_task(self._forward(DOWN, there, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            for one in writers:
                _break(one)
        finally:
            del self._open[task]
            for one in writers:
                one.close()

    async def _forward(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction of a connection, to its end."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_CHUNKS_MAX)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(reader, queue))
            group.create_task(self._write(direction, queue, writer))

    async def _read(self, reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            data = await reader.read(CHUNK_BYTES)
            await queue.put((loop.time(), data))
            if not data:
                return

    async def _write(
        self, direction: str, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        loop, faults = asyncio.get_running_loop(), self.faults[direction]
        while True:
            came, data = await queue.get()
            await asyncio.sleep(max(0.0, came + faults.delay_s - loop.time()))
            await self._healed[direction].wait()
            if not data:
                writer.write_eof()
                return
            if faults.bandwidth:
                await asyncio.sleep(len(data) / faults.bandwidth)
            writer.write(data)
            self.counts.bytes[direction] += len(data)
            await writer.drain()


def _checked(name: str, value: Any) -> Any:
    if name == "cut" and isinstance(value, bool):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "delay_s" and number and 0 <= value <= DELAY_S_MAX:
        return float(value)
    if name == "bandwidth" and isinstance(value, int) and number and value >= 0:
        return value
    known = f"delay_s: 0 to {DELAY_S_MAX:g}, cut: true or false, bandwidth: bytes a second"
    raise BadFaults(f"{name}: {value!r} cannot be; {known}")


def _break(writer: asyncio.StreamWriter) -> None:
    """End it with a reset: nothing that is buffered, here or in the kernel, gets there any more."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it may be closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORTING_CLOSE)
    writer.transport.abort()


# --- control: JSON, a line each way ----------------------------------------------------------------------------------


def obey(proxy: FaultProxy, line: bytes) -> dict[str, Any]:
    """Do what a line says: {"up": {"delay_s": 0.1, "cut": true, "bandwidth": 0}, "down": …, "reset": true}, all of it
    optional. The answer: what the proxy is now, or an "error", and nothing has been changed."""
    try:
        wanted = json.loads(line)
        if not isinstance(wanted, dict):
            raise BadFaults("an object is wanted")
        changes = {direction: wanted.pop(direction) for direction in (UP, DOWN) if direction in wanted}
        reset = wanted.pop("reset", False)
        if wanted or not all(isinstance(values, dict) for values in changes.values()) or not isinstance(reset, bool):
            raise BadFaults(f"unknown or wrong: {', '.join(wanted) or 'a value'}; known: up, down, reset")
        for values in changes.values():
            for name, value in values.items():
                _checked(name, value)
    except ValueError as error:
        return {"error": str(error)}
    for direction, values in changes.items():
        proxy.change(direction, **values)
    if reset:
        proxy.reset()
    return proxy.show()


async def listen_control(proxy: FaultProxy, path: Path) -> Listener:
    """Obey whoever connects to this Unix socket (mode 0600)."""
    return await listen_unix(path, lambda connection: _Control(proxy, connection).begin())


class _Control:
    """One connection: lines in, answers out."""

    def __init__(self, proxy: FaultProxy, connection: Connection) -> None:
        self._proxy = proxy
        self._connection = connection
        self._text = b""

    def begin(self) -> None:
        """Take what comes."""
        self._connection.start(self._received, self._ended)

    def _received(self, data: Buffer) -> None:
        self._text += bytes(data)
        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            self._connection.write([json.dumps(obey(self._proxy, line)).encode() + b"\n"])
        if len(self._text) > LINE_BYTES_MAX:
            self._connection.abort()

    def _ended(self, *_: object) -> None:
        """Nothing is kept for it."""
