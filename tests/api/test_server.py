"""The HTTP API: every operation's route, validation, errors, limits, request ids, and the client that speaks it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cli.client import TOKEN_VARIABLE, Client, UnreachableError
from controller.api import server
from controller.api.access import Access, add_token
from controller.api.errors import HTTP_STATUS, MEANING, ApiError
from controller.api.operations import BODY_BYTES_MAX, LIST_MAX, OPERATIONS, Operation, Parameter
from controller.api.server import ApiServer, bind_private
from tests.api.shelf import Shelf

Body = Callable[[Shelf, Path], Awaitable[None]]


def serve(runtime_dir: Path, body: Body) -> None:
    """Runs ``body`` beside a server over a shelf, on a Unix socket."""

    async def main() -> None:
        shelf = Shelf()
        path = runtime_dir / "api.sock"
        api = ApiServer(shelf.call, path)
        await api.start()
        try:
            await body(shelf, path)
        finally:
            shelf.gate.set()
            await api.stop()
        assert not path.exists()

    asyncio.run(main())


async def ask(path: Path, request: bytes) -> tuple[int, Any]:
    """One raw request on a connection of its own: (status, JSON body)."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    status = int((await reader.readline()).split()[1])
    headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(re.search(r"content-length: (\d+)", headers)[1])  # type: ignore[index]
    body = await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()
    return status, json.loads(body)


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def sample(parameter: Parameter) -> Any:
    """A value that the parameter takes."""
    if parameter.kind == "number":
        return max(parameter.least, 1)
    samples = {"name": "x", "text": "x", "boolean": True, "names": ["x", "y"], "nqns": ["nqn.2014-08.org:x"]}
    return samples.get(parameter.kind, parameter.kind.split("|")[0])


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda row: row.name)
def test_every_operation_arrives_with_all_its_arguments(operation: Operation, runtime_dir: Path) -> None:
    async def body(shelf: Shelf, path: Path) -> None:
        full = {parameter.name: sample(parameter) for parameter in operation.parameters}
        client = Client(path)
        with contextlib.suppress(ApiError):
            await asyncio.to_thread(lambda: client.call(operation.name, **full))
        name, arguments, request_id = shelf.calls[0]
        assert (name, arguments) == (operation.name, full)
        assert bool(request_id) == operation.mutating

    serve(runtime_dir, body)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda row: row.name)
def test_every_parameter_refuses_what_it_is_not(operation: Operation) -> None:
    full = {parameter.name: sample(parameter) for parameter in operation.parameters}
    for parameter in operation.parameters:
        wrongs: tuple[object, ...] = (None, 1.5, -1, {}, [[]], "\ud800", "x" * 1000, ["x"] * (LIST_MAX + 1))
        for wrong in wrongs:
            with pytest.raises(ApiError, match=parameter.name) as caught:
                operation.arguments({**full, parameter.name: wrong})
            assert caught.value.code == "bad_argument"
    with pytest.raises(ApiError, match="unknown parameter"):
        operation.arguments({**full, "bogus": 1})


def test_routes_and_names_are_unique() -> None:
    assert len({row.name for row in OPERATIONS}) == len(OPERATIONS)
    assert len({(row.method, row.path) for row in OPERATIONS}) == len(OPERATIONS)
    for row in OPERATIONS:
        assert set(row.path_parameters) <= {parameter.name for parameter in row.parameters}
        assert row.mutating == (row.method != "GET")


def test_every_error_code_has_a_status_and_a_meaning() -> None:
    assert HTTP_STATUS.keys() == MEANING.keys()
    assert ApiError("never heard of", "m").code == "internal"


def test_errors_cross_the_wire_whole(runtime_dir: Path) -> None:
    async def body(shelf: Shelf, path: Path) -> None:
        def doubles() -> ApiError:
            Client(path).call("vdisk.create", name="d", size_bytes=1)
            with pytest.raises(ApiError) as caught:
                Client(path).call("vdisk.create", name="d", size_bytes=1)
            return caught.value

        error = await asyncio.to_thread(doubles)
        assert (error.code, error.message, error.hint) == ("exists", "vdisk 'd' exists", "choose another name")

    serve(runtime_dir, body)


def test_the_same_request_id_gets_the_first_answer(runtime_dir: Path) -> None:
    async def body(shelf: Shelf, path: Path) -> None:
        request = post(
            "/v1/vdisks", b'{"name": "d", "size_bytes": 9}', "Content-Type: application/json", "Request-Id: 7"
        )
        assert await ask(path, request) == await ask(path, request)
        assert len(shelf.vdisks) == 1

    serve(runtime_dir, body)


def test_the_client_asks_again_with_the_same_request_id(runtime_dir: Path) -> None:
    """A server that closes the connection instead of answering: three tries, one request id."""
    path = runtime_dir / "api.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    seen: list[str] = []

    async def main() -> None:
        asking = asyncio.create_task(asyncio.to_thread(lambda: Client(path).call("vdisk.delete", name="d")))
        for _ in range(3):
            connection, _ = await asyncio.to_thread(listener.accept)
            text = (await asyncio.to_thread(connection.recv, 65536)).decode()
            seen.append(re.search(r"Request-Id: (\S+)", text)[1])  # type: ignore[index]
            connection.close()
        with pytest.raises(UnreachableError, match="closes the connection"):
            await asking

    asyncio.run(main())
    listener.close()
    assert len(seen) == 3 and len(set(seen)) == 1


@pytest.mark.parametrize(
    ("request_bytes", "status", "text"),
    [
        (b"GET /v1/nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404, "no operation at"),
        (b"PUT /v1/vdisks HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405, "does not take PUT"),
        (b"GET /v1/vdisks?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "unknown parameter"),
        (b"GET /v1/vdisks/d/explain HTTP/1.1\r\nHost: x\r\n\r\n", 400, "offset: missing"),
        (b"GET /v1/vdisks/d/explain?offset=-1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "offset: expected"),
        (b"GET /v1/vdisks/d/explain?offset=1&offset=2 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "given twice"),
        (b"GET /v1/vdisks/%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "name: expected"),
        (b"GET /v1/vdisks/none HTTP/1.1\r\nHost: x\r\n\r\n", 404, "no vdisk"),
        (post("/v1/vdisks", b"{}"), 400, "needs the header Request-Id"),
        (post("/v1/vdisks", b"{}", "Request-Id: a b"), 400, "needs the header Request-Id"),
        (post("/v1/vdisks", b"{}", "Request-Id: 1"), 400, "Content-Type: application/json"),
        (post("/v1/vdisks", b"{", "Request-Id: 1", "Content-Type: application/json"), 400, "not valid JSON"),
        (post("/v1/vdisks", b"[" * 9999, "Request-Id: 1", "Content-Type: application/json"), 400, "not valid JSON"),
        (post("/v1/vdisks", b"[]", "Request-Id: 1", "Content-Type: application/json"), 400, "must be a JSON object"),
        (post("/v1/vdisks", b"", "Request-Id: 1"), 400, "name: missing"),
        (post("/v1/vdisks?name=x", b"", "Request-Id: 1"), 400, "belongs into the body"),
        (
            post("/v1/vdisks/d/present", b'{"name": "e"}', "Request-Id: 1", "Content-Type: application/json"),
            400,
            "path",
        ),
        (post("/v1/agents/a/fence", b"", "Request-Id: 1"), 500, "a defect of segmap"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(
    request_bytes: bytes, status: int, text: str, runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def body(shelf: Shelf, path: Path) -> None:
        got, answer = await ask(path, request_bytes)
        assert got == status
        assert set(answer) == {"code", "message", "hint"}
        assert text in answer["message"] + answer["hint"]

    serve(runtime_dir, body)


def test_bodies_are_limited(runtime_dir: Path) -> None:
    async def body(shelf: Shelf, path: Path) -> None:
        big = b'{"name": "' + b"x" * BODY_BYTES_MAX + b'"}'
        status, answer = await ask(path, post("/v1/vdisks", big, "Request-Id: 1", "Content-Type: application/json"))
        assert status == 413
        assert str(BODY_BYTES_MAX) in answer["message"]

    serve(runtime_dir, body)


def test_requests_at_once_are_limited(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUESTS_MAX", 3)

    async def body(shelf: Shelf, path: Path) -> None:
        shelf.gate.clear()
        request = b"GET /v1/vdisks HTTP/1.1\r\nHost: x\r\n\r\n"
        held = [asyncio.create_task(ask(path, request)) for _ in range(3)]
        await shelf.until_called(3)
        status, answer = await ask(path, request)
        assert (status, answer["code"]) == (429, "limit")
        shelf.gate.set()
        assert [status for status, _ in await asyncio.gather(*held)] == [200] * 3
        assert (await ask(path, request))[0] == 200

    serve(runtime_dir, body)


def test_the_socket_is_ours_alone(runtime_dir: Path) -> None:
    async def body(shelf: Shelf, path: Path) -> None:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with pytest.raises(OSError, match="another controller serves"):
            bind_private(path)

    serve(runtime_dir, body)


def test_a_left_over_socket_is_replaced(runtime_dir: Path) -> None:
    path = runtime_dir / "api.sock"
    bind_private(path).close()
    assert path.exists()

    async def body(shelf: Shelf, path: Path) -> None:
        assert (await ask(path, b"GET /v1/vdisks HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200

    serve(runtime_dir, body)


def test_socket_paths_have_a_limit(runtime_dir: Path) -> None:
    with pytest.raises(OSError, match="more than 107 bytes"):
        bind_private(runtime_dir / ("x" * 108))


def test_tcp_serves_loopback_names_only(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, add_token(runtime_dir / "tokens", "x", "view"))

    async def main() -> None:
        api = ApiServer(Shelf().call, listen=("127.0.0.1", 0), access=Access(runtime_dir / "tokens"))
        await api.start()
        try:
            address = ("127.0.0.1", api.port)
            assert await asyncio.to_thread(lambda: Client(address).call("vdisk.list")) == {"vdisks": []}
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET /v1/vdisks HTTP/1.1\r\nHost: evil.example\r\n\r\n")
            assert b" 400 " in await reader.readline()
            writer.close()
            await writer.wait_closed()
        finally:
            await api.stop()

    asyncio.run(main())
    with pytest.raises(ValueError, match="loopback"):
        ApiServer(Shelf().call, listen=("0.0.0.0", 0))


def test_no_controller_is_told_apart(runtime_dir: Path) -> None:
    with pytest.raises(UnreachableError, match="No such file"):
        Client(runtime_dir / "none.sock").call("cluster.status")
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    address = listener.getsockname()
    listener.close()
    with pytest.raises(UnreachableError, match="refused"):
        Client(address).call("cluster.status")
