"""JSON-RPC as SPDK speaks it: what is accepted, what is refused, and when the connection ends."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from spdk_rpc.framing import JsonFramer
from tests.contract.conftest import Plane

VERSION = {"jsonrpc": "2.0", "method": "spdk_get_version", "id": 1}
INVALID_REQUEST, NOT_FOUND = -32600, -32601


class Wire:
    """A connection that sends what it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.framer = JsonFramer()
        self.texts: list[Any] = []

    def send(self, text: str | bytes) -> None:
        self.sock.sendall(text if isinstance(text, bytes) else text.encode())

    def answer(self) -> Any:
        """The next answer, or None if the target closed the connection."""
        while not self.texts:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.texts += [json.loads(text) for text in self.framer.feed(data)]
        return self.texts.pop(0)

    def is_alive(self) -> bool:
        try:
            self.send(json.dumps(VERSION | {"id": 999}))
        except OSError:
            return False
        answer = self.answer()
        return answer is not None and answer["id"] == 999


@pytest.fixture
def wire(plane: Plane) -> Iterator[Wire]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(plane.rpc_socket))
        yield Wire(sock)


@pytest.mark.parametrize(
    ("text", "ident"),
    [
        ('{"method":"spdk_get_version","id":1}', 1),
        ('{"jsonrpc":"2.0","method":"spdk_get_version","id":"abc"}', "abc"),
        ('{"jsonrpc":"2.0","method":"spdk_get_version","id":1.5}', 1.5),
        ('{"jsonrpc":"2.0","method":"spdk_get_version","id":1,"params":null}', 1),
        ('\n\n {"jsonrpc":"2.0",\n"method":"spdk_get_version","id":1}\n', 1),
    ],
)
def test_accepted(wire: Wire, text: str, ident: object) -> None:
    wire.send(text)
    answer = wire.answer()
    assert (answer["jsonrpc"], answer["id"]) == ("2.0", ident)
    assert answer["result"]["version"]
    assert wire.is_alive()


@pytest.mark.parametrize(
    ("text", "code", "ident"),
    [
        ('{"jsonrpc":"2.0","method":"nosuch","id":5}', NOT_FOUND, 5),
        ('{"jsonrpc":"2.0","method":"nosuch","id":null}', NOT_FOUND, None),
        ('{"jsonrpc":"2.0","method":"nosuch"}', NOT_FOUND, None),
        ('{"jsonrpc":"1.0","method":"spdk_get_version","id":1}', INVALID_REQUEST, None),
        ('{"jsonrpc":"2.0","id":1}', INVALID_REQUEST, None),
        ('{"jsonrpc":"2.0","method":5,"id":1}', INVALID_REQUEST, None),
        ('{"jsonrpc":"2.0","method":"spdk_get_version","id":1,"params":"x"}', INVALID_REQUEST, 1),
        ('{"jsonrpc":"2.0","method":"spdk_get_version","id":1,"extra":1}', INVALID_REQUEST, None),
        ('{"jsonrpc":"2.0","method":"spdk_get_version","id":1,"id":2}', INVALID_REQUEST, None),
        ('{"jsonrpc":"2.0","method":"spdk_get_version","id":true}', INVALID_REQUEST, None),
        ('"text"', INVALID_REQUEST, None),
        ("5 ", INVALID_REQUEST, None),
        ("[]", INVALID_REQUEST, None),
    ],
)
def test_refused_and_the_connection_lives(wire: Wire, text: str, code: int, ident: object) -> None:
    wire.send(text)
    answer = wire.answer()
    assert (answer["error"]["code"], answer["id"]) == (code, ident)
    assert answer["error"]["message"]
    assert wire.is_alive()


@pytest.mark.parametrize(
    "text",
    [
        "}{",
        "hello",
        '{"jsonrpc":"2.0","method":"a\x01","id":1}',
        "[" * 70 + "]" * 70,
        json.dumps(VERSION | {"params": [0] * 8190}),
        '{"jsonrpc":"2.0","method":"spdk_get_version","id":1,"params":"' + "x" * 300_000,
    ],
    ids=["brackets", "word", "control", "deep", "many-values", "long"],
)
def test_what_ends_the_connection(plane: Plane, wire: Wire, text: str) -> None:
    """There is no way to find the next request after it; the target itself goes on."""
    try:
        wire.send(text)
    except (BrokenPipeError, ConnectionResetError):
        pass
    else:
        answer = wire.answer()
        assert answer is None or answer["error"]["code"] == -32700
        assert wire.answer() is None
    assert plane.client.call("spdk_get_version")


def test_several_requests_in_one_piece_and_one_in_several(wire: Wire) -> None:
    texts = [json.dumps(VERSION | {"id": number}) for number in range(3)]
    wire.send("".join(texts))
    assert [wire.answer()["id"] for _ in texts] == [0, 1, 2]
    for byte in texts[2].encode():
        wire.send(bytes([byte]))
    assert wire.answer()["id"] == 2


def test_notification_has_no_answer(wire: Wire) -> None:
    wire.send('{"jsonrpc":"2.0","method":"spdk_get_version"}')
    wire.send(json.dumps(VERSION | {"id": 7}))
    assert wire.answer()["id"] == 7


def test_batch(wire: Wire) -> None:
    wire.send(json.dumps([VERSION, {"jsonrpc": "2.0", "method": "nosuch", "id": 2}, 5]))
    first, second, third = wire.answer()
    assert first["result"]["version"]
    assert (second["id"], second["error"]["code"]) == (2, NOT_FOUND)
    assert (third["id"], third["error"]["code"]) == (None, INVALID_REQUEST)


def test_a_connection_in_the_middle_of_a_request_holds_up_nobody(plane: Plane, wire: Wire) -> None:
    wire.send('{"jsonrpc":"2.0",')
    assert plane.client.call("spdk_get_version")
    wire.send('"method":"spdk_get_version","id":3}')
    assert wire.answer()["id"] == 3
