"""Version, methods, subsystems, saved configuration, and the start with --wait-for-rpc."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spdk_rpc.client import RpcClient
from spdk_rpc.errors import INVALID_STATE, RpcError
from spdk_rpc.methods import bdev, framework
from spdk_rpc.process import TargetProcess
from tests.contract.conftest import Plane
from tests.contract.shapes import check_shape

# What segmap calls, and so what every target must have.
METHODS = frozenset(
    {
        "spdk_get_version",
        "rpc_get_methods",
        "framework_start_init",
        "framework_wait_init",
        "framework_get_subsystems",
        "framework_get_config",
        "bdev_get_bdevs",
        "bdev_get_iostat",
        "bdev_malloc_create",
        "bdev_malloc_delete",
        "bdev_aio_create",
        "bdev_aio_delete",
        "bdev_null_create",
        "bdev_null_delete",
        "bdev_nvme_attach_controller",
        "bdev_nvme_detach_controller",
        "bdev_nvme_get_controllers",
        "nvmf_create_transport",
        "nvmf_get_transports",
        "nvmf_create_subsystem",
        "nvmf_delete_subsystem",
        "nvmf_get_subsystems",
        "nvmf_subsystem_add_ns",
        "nvmf_subsystem_remove_ns",
        "nvmf_subsystem_add_listener",
        "nvmf_subsystem_remove_listener",
        "nvmf_subsystem_add_host",
        "nvmf_subsystem_remove_host",
        "nvmf_subsystem_allow_any_host",
        "nvmf_subsystem_get_qpairs",
        "nvmf_discovery_get_referrals",
    }
)
STARTUP_METHODS = frozenset({"spdk_get_version", "rpc_get_methods", "framework_start_init", "framework_wait_init"})


def test_version(rpc: Callable[..., Any], plane: Plane) -> None:
    check_shape(
        rpc("spdk_get_version"), {"version": str, "fields": {"major": int, "minor": int, "patch": int, "suffix": str}}
    )
    assert plane.client.run(framework.get_version()).text.startswith("SPDK v")


@pytest.mark.parametrize("method", ["spdk_get_version", "framework_get_subsystems"])
def test_methods_that_take_no_parameters(code_of: Callable[..., int], method: str) -> None:
    assert code_of(method, {"bogus": 1}) == -32602


def test_methods(rpc: Callable[..., Any]) -> None:
    known = rpc("rpc_get_methods")
    assert set(known) >= METHODS
    assert len(set(known)) == len(known)


def test_current_methods_have_none_of_the_start(rpc: Callable[..., Any]) -> None:
    current = set(rpc("rpc_get_methods", current=True))
    assert "framework_start_init" not in current
    assert current >= METHODS - {"framework_start_init"}
    assert current <= set(rpc("rpc_get_methods"))


@pytest.mark.parametrize("params", [{"current": "x"}, {"bogus": 1}])
def test_get_methods_refuses(code_of: Callable[..., int], params: dict[str, Any]) -> None:
    assert code_of("rpc_get_methods", params) == -32602


def test_start_init_comes_too_late(code_of: Callable[..., int]) -> None:
    assert code_of("framework_start_init") == INVALID_STATE


def test_subsystems_stand_behind_what_they_depend_on(plane: Plane) -> None:
    before: set[str] = set()
    for subsystem in plane.client.run(framework.get_subsystems()):
        assert before >= set(subsystem.depends_on)
        before.add(subsystem.name)
    assert before >= {"bdev", "nvmf"}


@pytest.mark.parametrize("params", [None, {"name": "nosuch"}, {"name": 1}, {"name": "bdev", "bogus": 1}])
def test_get_config_refuses(code_of: Callable[..., int], params: dict[str, Any] | None) -> None:
    assert code_of("framework_get_config", params) == -32602


def test_config_has_what_was_made(plane: Plane, rpc: Callable[..., Any], malloc: str, nqn: str, tcp: None) -> None:
    rpc("nvmf_subsystem_add_ns", nqn=nqn, namespace={"bdev_name": malloc, "nsid": 2})
    rpc("nvmf_subsystem_add_host", nqn=nqn, host="nqn.2026-11.io.segmap:h")
    calls = [
        (call["method"], call.get("params", {}))
        for name in ("bdev", "nvmf")
        for call in plane.client.run(framework.get_config(name))
    ]
    made = [params for method, params in calls if method == "bdev_malloc_create" and params["name"] == malloc]
    check_shape(made, [{"name": str, "num_blocks": int, "block_size": int, "uuid": str}])
    assert (made[0]["num_blocks"], made[0]["block_size"]) == (2048, 512)
    of_subsystem = [(method, params) for method, params in calls if params.get("nqn") == nqn]
    assert [method for method, _ in of_subsystem] == [
        "nvmf_create_subsystem",
        "nvmf_subsystem_add_host",
        "nvmf_subsystem_add_ns",
    ]
    assert of_subsystem[0][1]["serial_number"] == "CONTRACT"
    assert of_subsystem[2][1]["namespace"]["nsid"] == 2
    assert ("nvmf_create_transport", "TCP") in [(method, params.get("trtype")) for method, params in calls]


def spdk_rpc_command(rpc_socket: Path, *words: str, stdin: str = "") -> str:
    """The command line client of the spdk package."""
    program = Path(sys.executable).parent / "spdk-rpc"
    done = subprocess.run(
        [program, "-s", rpc_socket, *words], input=stdin, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_saved_configuration_makes_the_same_again(plane: Plane, runtime_dir: Path) -> None:
    """save_config → a new target with --wait-for-rpc → load_config → save_config: bdevs and exports are the same."""
    image = runtime_dir / "image"
    image.write_bytes(bytes(1 << 20))
    first, second = runtime_dir / "1.sock", runtime_dir / "2.sock"
    with running(plane, first):
        with RpcClient(first) as client:
            client.run(bdev.malloc_create("saved-malloc", 512, 2048))
            client.run(bdev.null_create("saved-null", 512, 2048))
            client.run(bdev.aio_create("saved-aio", str(image), 512))
            client.call("nvmf_create_transport", {"trtype": "TCP"})
            client.call("nvmf_create_subsystem", {"nqn": "nqn.2026-11.io.segmap:saved", "serial_number": "S"})
            namespace = {"bdev_name": "saved-malloc", "nsid": 3}
            client.call("nvmf_subsystem_add_ns", {"nqn": "nqn.2026-11.io.segmap:saved", "namespace": namespace})
            client.call("nvmf_subsystem_add_host", {"nqn": "nqn.2026-11.io.segmap:saved", "host": "nqn.2026-11.io.x:h"})
        saved = spdk_rpc_command(first, "save_config")
    with running(plane, second, wait_for_rpc=True):
        spdk_rpc_command(second, "load_config", stdin=saved)
        again = spdk_rpc_command(second, "save_config")
    assert set(essential(saved)) == set(essential(again))
    assert len(essential(saved)) >= 6


def essential(config: str) -> list[str]:
    """The calls of a saved configuration that make bdevs and subsystems."""
    return [
        json.dumps(call, sort_keys=True)
        for subsystem in json.loads(config)["subsystems"]
        for call in subsystem["config"] or []
        if "_create" in call["method"] or "subsystem_add" in call["method"]
    ]


class running:  # used like a function
    """A target of its own for one test; not waited for when it starts with --wait-for-rpc."""

    def __init__(self, plane: Plane, rpc_socket: Path, *, wait_for_rpc: bool = False) -> None:
        self.command = plane.command(plane.name, rpc_socket, core_mask="0x2", wait_for_rpc=wait_for_rpc)
        self.rpc_socket = rpc_socket
        self.wait_for_rpc = wait_for_rpc

    def __enter__(self) -> RpcClient:
        self.process = TargetProcess.spawn(self.command, self.rpc_socket.with_suffix(".log"))
        self.client = RpcClient(self.rpc_socket, timeout_s=20)
        asyncio.run(until_it_answers(self.client))
        if not self.wait_for_rpc:
            self.client.run(framework.wait_init())
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.close()
        status = asyncio.run(self.process.stop(10))
        self.process.close()
        assert status == 0, self.rpc_socket.with_suffix(".log").read_text()[-2000:]


async def until_it_answers(client: RpcClient) -> None:
    from spdk_rpc.errors import RpcFailure
    from spdk_rpc.target import POLL_S, READY_S

    async with asyncio.timeout(READY_S):
        while True:
            try:
                await asyncio.to_thread(client.run, framework.get_version())
                return
            except RpcFailure:
                await asyncio.sleep(POLL_S)


def test_start_in_two_steps(plane: Plane, runtime_dir: Path) -> None:
    with running(plane, runtime_dir / "rpc.sock", wait_for_rpc=True) as client:
        assert set(client.run(framework.get_methods(current=True))) >= STARTUP_METHODS
        assert "bdev_get_bdevs" not in client.run(framework.get_methods(current=True))
        assert "bdev_get_bdevs" in client.run(framework.get_methods())
        for method in ("bdev_get_bdevs", "framework_get_subsystems", "nvmf_get_subsystems"):
            with pytest.raises(RpcError) as caught:
                client.call(method)
            assert caught.value.code == INVALID_STATE
        with pytest.raises(RpcError) as caught:
            client.call("framework_start_init", {"x": 1})
        assert caught.value.code == -32602
        assert client.run(framework.start_init())
        assert client.run(framework.wait_init())
        assert client.run(bdev.get_bdevs()) == ()


def test_cli_lists_bdevs_and_subsystems(plane: Plane, malloc: str, nqn: str) -> None:
    program = Path(sys.executable).parent / "spdk-cli"
    done = subprocess.run(
        [program, "-s", plane.rpc_socket, "ls"], capture_output=True, text=True, timeout=30, check=False
    )
    assert malloc in done.stdout, done.stdout + done.stderr
    assert nqn in done.stdout
