"""Bounded fuzz of the HTTP listener: broken requests of every kind; it lives, leaks nothing, and serves others."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import random
from pathlib import Path

import pytest

from controller.api.operations import OPERATIONS
from controller.api.server import ApiServer
from tests.api.shelf import Shelf

ROUNDS = 300
SEEDS = (1, 2, 3)
READ_MAX_S = 5.0


def broken_request(chance: random.Random) -> bytes:
    """A request that is right, nearly right, or noise."""
    row = chance.choice(OPERATIONS)
    path = row.path.format(
        **{name: chance.choice(["d", "%00", "..", "a" * 300, "%zz", "ü"]) for name in row.path_parameters}
    )
    junk = {parameter.name: random_value(chance, 0) for parameter in row.parameters if chance.random() < 0.8}
    body = json.dumps(junk).encode() if chance.random() < 0.7 else chance.randbytes(chance.randrange(200))
    method = chance.choice([row.method, row.method, "PATCH", "G\tT"])
    query = chance.choice(["", "?start=1", "?x=%ff&x", "?&&="])
    head = [
        f"{method} {path}{query} HTTP/1.{chance.choice('1119')}",
        "Host: x",
        f"Content-Length: {chance.choice([len(body), len(body), 0, -1, 10**9, 'x'])}",
        chance.choice(
            ["Content-Type: application/json", "Content-Type: text/html", "X: " + "y" * chance.randrange(9000)]
        ),
        chance.choice(["Request-Id: r", "Request-Id: \x7f", "Transfer-Encoding: chunked", "Connection: close"]),
    ]
    request = "\r\n".join(head).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body
    if chance.random() < 0.3:
        position = chance.randrange(len(request))
        request = request[:position] + chance.randbytes(chance.randrange(1, 9)) + request[position + 1 :]
    return request[: chance.randrange(1, len(request))] if chance.random() < 0.2 else request


def random_value(chance: random.Random, depth: int) -> object:
    values: list[object] = [None, True, -1, 2**70, 1.5, "", "d", "\ud800", "nqn.x", [], {}]
    if depth < 3 and chance.random() < 0.3:
        return [random_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return chance.choice(values)


async def throw(path: Path, request: bytes) -> None:
    """Sends the request, ends our side, and reads whatever comes until the other side closes."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        writer.write_eof()
        await asyncio.wait_for(reader.read(1 << 20), READ_MAX_S)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def healthy(path: Path) -> bool:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"GET /v1/vdisks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), READ_MAX_S)
    writer.close()
    await writer.wait_closed()
    return answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("seed", SEEDS)
def test_broken_requests_hurt_nobody(seed: int, runtime_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "segmap.api")
    print(f"seed {seed}")

    async def main() -> None:
        chance = random.Random(seed)
        shelf = Shelf()
        path = runtime_dir / "api.sock"
        api = ApiServer(shelf.call, path)
        await api.start()
        try:
            assert await healthy(path)
            gc.collect()
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(ROUNDS // 10):
                await asyncio.gather(*(throw(path, broken_request(chance)) for _ in range(10)))
                assert await healthy(path)
            gc.collect()
            assert len(os.listdir("/proc/self/fd")) <= before
        finally:
            await api.stop()

    asyncio.run(main())
    assert not [record for record in caplog.records if record.name.startswith("segmap.api")], "nobody fills our log"
