"""The target as a process: start, lock, signals, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from spdk_rpc.client import RpcClient


def start(path: Path, *more: str) -> subprocess.Popen[str]:
    """A target process."""
    arguments = [sys.executable, "-m", "dataplane.embedded", "--rpc-socket", str(path), *more]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)


def wait_until_served(process: subprocess.Popen[str]) -> None:
    """It says so in its log."""
    assert process.stderr is not None
    for line in process.stderr:
        if "serving JSON-RPC" in line:
            return
    raise AssertionError("the target ended")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, "rpc"])
def test_it_serves_and_ends_in_order(tmp_path: Path, end: signal.Signals | str) -> None:
    path, dataplane = tmp_path / "rpc.sock", tmp_path / "dp.sock"
    process = start(path, "--dataplane-socket", str(dataplane), "--name", "t1")
    try:
        wait_until_served(process)
        assert dataplane.is_socket()
        with RpcClient(str(path)) as client:
            assert client.call("bdev_malloc_create", {"block_size": 512, "num_blocks": 8}) == "Malloc0"
            if end == "rpc":
                assert client.call("spdk_kill_instance", {"sig_name": "SIGTERM"}) is True
        if isinstance(end, signal.Signals):
            process.send_signal(end)
        assert process.wait(10) == 0
        assert os.listdir(tmp_path) == []
    finally:
        process.kill()
        process.communicate()


def test_peers_that_keep_their_connections_do_not_keep_it(tmp_path: Path) -> None:
    paths = tmp_path / "rpc.sock", tmp_path / "dp.sock"
    process = start(paths[0], "--dataplane-socket", str(paths[1]))
    peers = []
    try:
        wait_until_served(process)
        for path in paths:
            peers.append(peer := socket.socket(socket.AF_UNIX))
            peer.connect(str(path))
        peers[0].sendall(b'{"method":"spdk_get_version","id":1}')
        assert peers[0].recv(65536)
        process.terminate()
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 0
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.wait()
        for peer in peers:
            peer.close()


def test_a_second_one_on_the_same_path_says_why_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "rpc.sock"
    first = start(path)
    try:
        wait_until_served(first)
        second = start(path)
        _, errors = second.communicate(timeout=10)
        assert second.returncode == 1
        assert "another target" in errors
    finally:
        first.kill()
        first.communicate()
    third = start(path)
    try:
        wait_until_served(third)
    finally:
        third.terminate()
        third.communicate()
        assert third.returncode == 0
