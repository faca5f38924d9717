"""The fault proxy: what it forwards, what it holds back, what it breaks; and how it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from transport.fault_proxy import DOWN, LINE_BYTES_MAX, UP, BadFaults, FaultProxy, listen_control, obey

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
PATIENCE_S = 10.0


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[FaultProxy, Callable[[], Awaitable[Streams]], list[bytes]]]:
    """A proxy in front of an echo server; what connects to it; what the server has got."""
    got: list[bytes] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                got.append(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1])
    await proxy.listen("127.0.0.1", 0)
    opened: list[asyncio.StreamWriter] = []

    async def connect() -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        opened.append(writer)
        return reader, writer

    try:
        async with asyncio.timeout(PATIENCE_S):
            yield proxy, connect, got
    finally:
        for writer in opened:
            writer.close()
        await proxy.close()
        server.close()
        await server.wait_closed()


def play(story: Callable[[FaultProxy, Callable[[], Awaitable[Streams]], list[bytes]], Awaitable[None]]) -> None:
    async def run() -> None:
        async with proxied() as (proxy, connect, got):
            await story(proxy, connect, got)

    asyncio.run(run())


async def echoed(streams: Streams, data: bytes = b"hello") -> bytes:
    streams[1].write(data)
    return await streams[0].readexactly(len(data))


async def nothing_comes(reader: asyncio.StreamReader) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.05)


def test_without_faults_it_is_not_there() -> None:
    async def story(proxy: FaultProxy, connect: Any, got: list[bytes]) -> None:
        streams = await connect()
        data = bytes(range(256)) * 4096
        assert await echoed(streams, data) == data
        streams[1].write_eof()
        assert await streams[0].read() == b""
        shown = proxy.show()
        assert (shown["connections"], shown["bytes"]) == (1, {UP: len(data), DOWN: len(data)})

    play(story)


def test_a_cut_holds_back_one_way_until_it_is_healed() -> None:
    async def story(proxy: FaultProxy, connect: Any, got: list[bytes]) -> None:
        streams = await connect()
        assert await echoed(streams) == b"hello"
        proxy.change(DOWN, cut=True)
        streams[1].write(b"more")
        while b"".join(got) != b"hellomore":
            await asyncio.sleep(0.01)
        await nothing_comes(streams[0])
        proxy.change(DOWN, cut=False)
        assert await streams[0].readexactly(4) == b"more"
        proxy.change(UP, cut=True)
        streams[1].write(b"last")
        await nothing_comes(streams[0])
        assert b"".join(got) == b"hellomore"
        proxy.change(UP, cut=False)
        assert await streams[0].readexactly(4) == b"last"

    play(story)


def test_new_connections_are_silent_while_it_is_cut() -> None:
    async def story(proxy: FaultProxy, connect: Any, got: list[bytes]) -> None:
        proxy.change(UP, cut=True)
        streams = await connect()
        streams[1].write(b"hello")
        await nothing_comes(streams[0])
        proxy.change(UP, cut=False)
        assert await streams[0].readexactly(5) == b"hello"

    play(story)


def test_a_reset_breaks_what_there_is_and_loses_what_was_on_its_way() -> None:
    async def story(proxy: FaultProxy, connect: Any, got: list[bytes]) -> None:
        streams = await connect()
        assert await echoed(streams) == b"hello"
        proxy.change(UP, cut=True)
        streams[1].write(b"lost")
        await nothing_comes(streams[0])
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await streams[0].readexactly(1)
        proxy.change(UP, cut=False)
        assert await echoed(await connect(), b"again") == b"again"
        assert b"".join(got) == b"helloagain"

    play(story)


def test_delay_and_bandwidth() -> None:
    async def story(proxy: FaultProxy, connect: Any, got: list[bytes]) -> None:
        loop, streams = asyncio.get_running_loop(), await connect()
        proxy.change(UP, delay_s=0.2)
        began = loop.time()
        assert await echoed(streams) == b"hello"
        assert loop.time() - began >= 0.19
        proxy.change(UP, delay_s=0.0, bandwidth=1 << 20)
        began = loop.time()
        assert await echoed(streams, bytes(1 << 18)) == bytes(1 << 18)
        assert loop.time() - began >= 0.2

    play(story)


def test_a_server_that_is_not_there() -> None:
    async def run() -> None:
        proxy = FaultProxy("127.0.0.1", 1)
        await proxy.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
        await proxy.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b'{"sideways": {}}',
        b'{"up": 1}',
        b'{"up": {"cut": 1}}',
        b'{"up": {"delay_s": -1}}',
        b'{"up": {"delay_s": 1e9}}',
        b'{"up": {"delay_s": true}}',
        b'{"up": {"bandwidth": 0.5}}',
        b'{"up": {"colour": 1}}',
        b'{"up": {"cut": true}, "down": {"bandwidth": -1}}',
        b'{"reset": 1}',
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(line: bytes) -> None:
    proxy = FaultProxy("127.0.0.1", 1)
    before = proxy.show()
    assert obey(proxy, line).keys() == {"error"}
    assert proxy.show() == before


def test_no_third_direction() -> None:
    with pytest.raises(BadFaults):
        FaultProxy("127.0.0.1", 1).change("sideways", cut=True)


def test_told_over_its_socket(runtime_dir: Path) -> None:
    async def run() -> None:
        proxy = FaultProxy("127.0.0.1", 1)
        listener = await listen_control(proxy, runtime_dir / "control")
        reader, writer = await asyncio.open_unix_connection(runtime_dir / "control")
        writer.write(b'{"up": {"cut": true}}\n{"down": {"delay_s": 2}}\n')
        await reader.readline()
        faults = json.loads(await reader.readline())["faults"]
        assert faults[UP]["cut"] is True and faults[DOWN]["delay_s"] == 2.0
        writer.write(b"x" * (LINE_BYTES_MAX + 1))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readexactly(1)
        writer.close()
        listener.close()
        await listener.wait_closed()
        await proxy.close()

    asyncio.run(run())
