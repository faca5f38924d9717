"""Targets that the contract tests run against: the embedded one always, SPDK where it is installed.

What the tests ask for was read off SPDK 26.09; the embedded target has to give the same answers.
"""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spdk_rpc.client import RpcClient
from spdk_rpc.commands import embedded_command, spdk_command
from spdk_rpc.errors import RpcError
from spdk_rpc.exports import plan_tcp
from spdk_rpc.find import SpdkNotFound, find_segmap_tgt, find_spdk
from spdk_rpc.target import Target

PLANES = [pytest.param("embedded", id="embedded"), pytest.param("spdk", id="spdk", marks=pytest.mark.spdk)]
# The targets that have virtual disks: a test that asks for them parametrises `plane` with these.
DISK_PLANES = [
    pytest.param("embedded", id="embedded"),
    pytest.param("segmap_tgt", id="segmap_tgt", marks=pytest.mark.spdk),
]
READY_S = 30.0
NQN = "nqn.2026-11.io.segmap:contract:"


@dataclass(frozen=True)
class Plane:
    """A running target, and how its like is started."""

    name: str
    client: RpcClient
    rpc_socket: Path
    dataplane_socket: Path
    command: Callable[..., list[str]]


def binary_of(plane: str) -> Path:
    """SPDK's target or ours, or a skip that says why there is none."""
    try:
        binary = find_spdk().binary("spdk_tgt")
    except SpdkNotFound as error:
        pytest.skip(f"real SPDK: {error}")
    if plane == "spdk":
        return binary
    try:
        return find_segmap_tgt()
    except SpdkNotFound as error:
        pytest.skip(str(error))


def command_of(
    plane: str,
    rpc_socket: Path,
    *,
    core_mask: str = "0x1",
    wait_for_rpc: bool = False,
    dataplane_socket: Path | None = None,
) -> list[str]:
    """The command line of a target, or a skip that says why there is none."""
    if plane == "embedded":
        return embedded_command(rpc_socket, dataplane_socket) + (["--wait-for-rpc"] if wait_for_rpc else [])
    binary = binary_of(plane)
    return spdk_command(
        binary,
        rpc_socket,
        core_mask=core_mask,
        core_locks=False,
        wait_for_rpc=wait_for_rpc,
        dataplane_socket=dataplane_socket if plane == "segmap_tgt" else None,
    )


@pytest.fixture(scope="session", params=PLANES)
def plane(request: pytest.FixtureRequest) -> Iterator[Plane]:
    """One target for all tests of its kind."""
    directory = Path("/tmp") / f"segmap-{uuid.uuid4().hex[:12]}"
    rpc_socket, dataplane_socket = directory / "rpc.sock", directory / "plane.sock"
    command = command_of(request.param, rpc_socket, dataplane_socket=dataplane_socket)
    directory.mkdir(mode=0o700)
    with asyncio.Runner() as runner:
        try:
            target = runner.run(Target.start(command, rpc_socket, log_path=directory / "target.log", ready_s=READY_S))
            try:
                with RpcClient(rpc_socket, timeout_s=10) as client:
                    yield Plane(request.param, client, rpc_socket, dataplane_socket, command_of)
            finally:
                status = runner.run(target.stop())
            assert status == 0, (directory / "target.log").read_text()[-2000:]
        finally:
            shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def rpc(plane: Plane) -> Callable[..., Any]:
    """``rpc(method, name=…)``: the result."""

    def call(method: str, **params: Any) -> Any:
        return plane.client.call(method, params)

    return call


@pytest.fixture
def code_of(plane: Plane) -> Callable[..., int]:
    """``code_of(method, params)``: the code of the refusal that must come."""

    def call(method: str, params: Any = None) -> int:
        with pytest.raises(RpcError) as caught:
            plane.client.call(method, params)
        assert caught.value.message, "a refusal says why"
        return caught.value.code

    return call


@pytest.fixture
def malloc(rpc: Callable[..., Any]) -> Iterator[str]:
    """A malloc bdev of 1 MiB with blocks of 512 bytes."""
    name = f"m-{uuid.uuid4().hex[:8]}"
    assert rpc("bdev_malloc_create", name=name, block_size=512, num_blocks=2048) == name
    yield name
    rpc("bdev_malloc_delete", name=name)


@pytest.fixture
def nqn(rpc: Callable[..., Any]) -> Iterator[str]:
    """A subsystem that shows nothing to nobody."""
    name = NQN + uuid.uuid4().hex[:8]
    assert rpc("nvmf_create_subsystem", nqn=name, serial_number="CONTRACT", max_namespaces=4) is True
    yield name
    rpc("nvmf_delete_subsystem", nqn=name)


@pytest.fixture
def tcp(rpc: Callable[..., Any]) -> None:
    """The TCP transport, as an agent makes it."""
    if not rpc("nvmf_get_transports"):
        (call,) = plan_tcp([])
        assert rpc(call.method, **call.params) is True
