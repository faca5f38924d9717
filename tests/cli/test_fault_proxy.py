"""`segmap fault-proxy run` and `set`, as a person uses them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.exit_codes import ExitCode

SEGMAP = [sys.executable, "-m", "cli", "fault-proxy"]


def tell(control: Path, *words: str, expected: ExitCode = ExitCode.DONE) -> Any:
    done = subprocess.run(
        [*SEGMAP, "set", control, *words, "--json"], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == expected, done.stderr
    return json.loads(done.stdout) if expected is ExitCode.DONE else done.stderr


def test_a_cut_and_its_end(runtime_dir: Path) -> None:
    control = runtime_dir / "control"
    with socket.create_server(("127.0.0.1", 0)) as server:
        to = f"127.0.0.1:{server.getsockname()[1]}"
        command = [*SEGMAP, "run", str(control), "--to", to, "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
            try:
                assert proxy.stdout is not None
                text = ""
                while not text.rstrip().endswith("\n}") and not text.rstrip().endswith("}}"):
                    text += proxy.stdout.readline()
                port = json.loads(text)["port"]
                assert tell(control, "--cut", "--direction", "down", "--delay", "20ms")["faults"] == {
                    "up": {"delay_s": 0.0, "cut": False, "bandwidth": 0},
                    "down": {"delay_s": 0.02, "cut": True, "bandwidth": 0},
                }
                assert "a duration" in tell(control, "--delay", "soon", expected=ExitCode.USAGE)
                shown = tell(control, "--heal", "--bandwidth", "1MiB")["faults"]
                assert shown["up"] == shown["down"] == {"delay_s": 0.0, "cut": False, "bandwidth": 1 << 20}
                with socket.create_connection(("127.0.0.1", port), timeout=10) as near:
                    far, _ = server.accept()
                    with far:
                        near.sendall(b"hello")
                        assert far.recv(5) == b"hello"
                        assert tell(control, "--reset")["resets"] == 1
                        far.settimeout(10)
                        with pytest.raises(ConnectionResetError):
                            far.recv(1)
            finally:
                proxy.send_signal(signal.SIGTERM)
                assert proxy.wait(30) == 0
    assert not control.exists()
    assert "no fault proxy answers" in tell(control, expected=ExitCode.UNREACHABLE)
