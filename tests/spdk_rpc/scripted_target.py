"""A Unix-socket server that plays a script: what it sends, cut as the test says, and when it closes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Connection = Callable[["Peer"], None]


class Peer:
    """The server's end of one connection, in the hands of a script."""

    def __init__(self, sock: socket.socket, released: threading.Event) -> None:
        self.sock = sock
        self.released = released

    def request(self) -> dict[str, Any]:
        """The next whole request."""
        data = b""
        while True:
            piece = self.sock.recv(1 << 20)
            if not piece:
                raise ConnectionError("the client closed the connection")
            data += piece
            try:
                value = json.loads(data)
            except ValueError:
                continue
            assert isinstance(value, dict)
            return value

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sock.sendall(piece)

    def answer(self, request: dict[str, Any], result: Any) -> None:
        self.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode() + b"\n")

    def wait_until_released(self) -> None:
        self.released.wait(10)

    def wait_until_closed(self) -> None:
        """Returns when the client has closed the connection."""
        try:
            while self.sock.recv(4096):
                pass
        except OSError:
            pass


@contextmanager
def scripted_target(path: Path, *connections: Connection) -> Iterator[threading.Event]:
    """Serves one connection after the other, each by its script; a fault of a script fails the test."""
    released, faults = threading.Event(), list[BaseException]()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    listener.settimeout(10)

    def serve() -> None:
        try:
            for script in connections:
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(10)
                    script(Peer(sock, released))
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield released
    finally:
        released.set()
        thread.join(15)
        listener.close()
    assert not faults, faults
    assert not thread.is_alive()
