"""A reserved port is ours alone, and the target can listen on it all the same."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from transport import ports
from transport.ports import NoPort, Reservation, pick, stable_ports


def listen(port: int) -> socket.socket:
    """As a target does: with SO_REUSEADDR."""
    return socket.create_server(("127.0.0.1", port))


def test_a_target_listens_on_the_reserved_port() -> None:
    held = Reservation("127.0.0.1")
    assert held.port in stable_ports()
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
    monkeypatch.setattr(ports, "_bind", lambda *_, **__: None)
    with pytest.raises(NoPort, match="is free"):
        Reservation("127.0.0.1")
    with pytest.raises(NoPort, match="no free port"):
        pick("127.0.0.1", set())


def test_picked_ports_are_free_and_differ() -> None:
    taken: set[int] = set()
    picked = {pick("127.0.0.1", taken) for _ in range(20)}
    assert picked == taken and len(picked) == 20
    assert all(port in stable_ports() for port in picked)


def test_a_preferred_port_is_kept_unless_it_is_taken() -> None:
    port = pick("127.0.0.1", set())
    assert pick("127.0.0.1", set(), port) == port
    assert pick("127.0.0.1", {port}, port) != port
    with listen(port):
        assert pick("127.0.0.1", set(), port) != port


def test_a_connection_that_is_not_quite_gone_does_not_move_a_listener() -> None:
    port = pick("127.0.0.1", set())
    with listen(port) as server, socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _ = server.accept()
        accepted.close()
        assert client.recv(1) == b""
    assert pick("127.0.0.1", set(), port) == port


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("32768\t60999\n", range(10240, 32768)),
        ("1024 60999", range(61000, 65536)),
        ("1024 65000", ports.DEFAULT),
        ("junk", ports.DEFAULT),
        ("", ports.DEFAULT),
    ],
)
def test_the_kernels_own_ports_are_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: range
) -> None:
    path = tmp_path / "range"
    path.write_text(text)
    monkeypatch.setattr(ports, "RANGE_FILE", path)
    assert stable_ports() == expected
    monkeypatch.setattr(ports, "RANGE_FILE", tmp_path / "missing")
    assert stable_ports() == ports.DEFAULT
