"""A reserved port is ours alone, and the target can listen on it all the same."""

from __future__ import annotations

import random
import socket

import pytest

from transport.ports import PORTS, NoPort, Reservation


def listen(port: int) -> socket.socket:
    """As a target does: with SO_REUSEADDR."""
    return socket.create_server(("127.0.0.1", port))


def test_a_target_listens_on_the_reserved_port() -> None:
    held = Reservation("127.0.0.1")
    assert held.port in PORTS
    with listen(held.port):
        pass
    with listen(held.port):
        pass
    held.close()


def test_nobody_else_reserves_it() -> None:
    chance = random.Random(1)
    held = Reservation("127.0.0.1", chance=random.Random(1))
    other = Reservation("127.0.0.1", chance=chance)
    assert other.port != held.port
    held.close()
    other.close()


def test_a_port_that_is_asked_for_is_taken_even_if_a_target_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        held = Reservation("127.0.0.1", port)
        assert held.port == port
        held.close()


def test_no_port_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transport.ports._bind", lambda *_: None)
    with pytest.raises(NoPort):
        Reservation("127.0.0.1")
