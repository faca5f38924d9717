"""Attaching over NVMe/TCP: a second target is the host, as a mapper is to a container host; and the fence."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from spdk_rpc.client import RpcClient
from spdk_rpc.containers import NvmeTcpContainer, reads_flush
from spdk_rpc.errors import RpcError
from spdk_rpc.exports import Export, ExportNamespace
from spdk_rpc.methods import bdev, bdev_nvme, nvmf
from spdk_rpc.methods.nvmf import Address
from spdk_rpc.target import Target
from tests.contract.conftest import NQN, READY_S, Plane, command_of
from tests.contract.front_ends import free_front_end
from tests.contract.shapes import check_shape

DECODE, EIO, EEXIST, ENODEV, EINVAL, EALREADY = -32603, -5, -17, -19, -22, -114
HOST = "nqn.2026-11.io.segmap:agent:a:1"
Runs = Callable[[Coroutine[Any, Any, Any]], Any]


class Pair:
    """A container host (the plane's target) and a host of it, both as Target, and the host's plain client."""

    def __init__(self, runner: asyncio.Runner, exporter: Target, mapper: Target, client: RpcClient) -> None:
        self.run: Runs = runner.run
        self.exporter = exporter
        self.mapper = mapper
        self.client = client


@pytest.fixture(scope="module")
def pair(plane: Plane) -> Iterator[Pair]:
    directory = Path("/tmp") / f"segmap-{uuid.uuid4().hex[:12]}"
    directory.mkdir(mode=0o700)
    rpc_socket = directory / "host.sock"
    command = command_of(plane.name, rpc_socket, core_mask="0x2")
    with asyncio.Runner() as runner:
        try:
            mapper = runner.run(Target.start(command, rpc_socket, log_path=directory / "log", ready_s=READY_S))
            exporter = runner.run(Target.adopt(plane.rpc_socket, front_end=free_front_end()))
            with RpcClient(rpc_socket, timeout_s=30) as client:
                yield Pair(runner, exporter, mapper, client)
            runner.run(exporter.close())
            assert runner.run(mapper.stop()) == 0, (directory / "log").read_text()[-2000:]
        finally:
            shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def container(pair: Pair, malloc: str) -> Iterator[NvmeTcpContainer]:
    """A container that HOST may attach."""
    nqn = NQN + "container:" + uuid.uuid4().hex[:8]
    export = Export(nqn, (ExportNamespace(1, malloc),), hosts=frozenset({HOST}), serial_number="C1")
    where: Address = pair.run(pair.exporter.export(export))
    container = NvmeTcpContainer("container1", where.traddr, where.trsvcid, nqn, HOST)
    yield container
    pair.run(pair.mapper.detach(container))
    pair.run(pair.exporter.withdraw(nqn))


def attach_params(container: NvmeTcpContainer) -> dict[str, Any]:
    return {
        "name": container.name,
        "trtype": "TCP",
        "adrfam": "IPv4",
        "traddr": container.traddr,
        "trsvcid": container.trsvcid,
        "subnqn": container.subnqn,
        "hostnqn": container.hostnqn,
    }


def code_of_attach(pair: Pair, params: dict[str, Any]) -> int:
    with pytest.raises(RpcError) as caught:
        pair.client.call("bdev_nvme_attach_controller", params)
    return caught.value.code


def test_attach_and_detach(pair: Pair, container: NvmeTcpContainer) -> None:
    assert pair.client.call("bdev_nvme_get_controllers") == []
    assert pair.client.call("bdev_nvme_attach_controller", attach_params(container)) == ["container1n1"]
    found = pair.client.call("bdev_nvme_get_controllers", {"name": "container1"})
    trid = {"trtype": str, "adrfam": str, "traddr": str, "trsvcid": str, "subnqn": str}
    shape = {"name": str, "ctrlrs": [{"state": str, "trid": trid, "cntlid": int, "host": {"nqn": str}}]}
    check_shape(found, [shape])
    assert found[0]["ctrlrs"][0]["state"] == "enabled"
    assert found[0]["ctrlrs"][0]["trid"]["subnqn"] == container.subnqn
    assert found[0]["ctrlrs"][0]["host"]["nqn"] == HOST
    assert pair.client.call("bdev_nvme_detach_controller", {"name": "container1"}) is True
    assert pair.client.call("bdev_nvme_get_controllers") == []
    assert pair.client.call("bdev_get_bdevs") == []


def test_attached_bdev(pair: Pair, container: NvmeTcpContainer, rpc: Callable[..., Any], malloc: str) -> None:
    pair.client.call("bdev_nvme_attach_controller", attach_params(container))
    (here,) = pair.client.call("bdev_get_bdevs", {"name": "container1n1"})
    (there,) = rpc("bdev_get_bdevs", name=malloc)
    assert (here["product_name"], here["uuid"]) == ("NVMe disk", there["uuid"])
    assert (here["block_size"], here["num_blocks"]) == (there["block_size"], there["num_blocks"])
    controller = {"cntlid": int, "serial_number": str, "model_number": str, "subnqn": str}
    check_shape(here["driver_specific"], {"nvme": [{"trid": {"subnqn": str}, "ctrlr_data": controller}]})
    assert here["driver_specific"]["nvme"][0]["ctrlr_data"]["serial_number"] == "C1"
    assert {name for name, value in here["supported_io_types"].items() if value} >= {"read", "write", "flush"}


def test_digests(pair: Pair, container: NvmeTcpContainer) -> None:
    params = attach_params(container) | {"hdgst": True, "ddgst": True}
    assert pair.client.call("bdev_nvme_attach_controller", params) == ["container1n1"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"hostnqn": "nqn.2026-11.io.segmap:stranger"}, EIO),
        ({"subnqn": NQN + "nosuch"}, EIO),
        ({"trsvcid": "1"}, EIO),
        ({"hostnqn": None}, EIO),
        ({"subnqn": None}, EIO),
        ({"trsvcid": None}, EIO),
        ({"hostnqn": "junk"}, EIO),
        ({"trtype": "BOGUS"}, ENODEV),
        ({"adrfam": "x"}, EINVAL),
        ({"ctrlr_loss_timeout_sec": 5, "reconnect_delay_sec": 0}, EINVAL),
        ({"ctrlr_loss_timeout_sec": 2, "reconnect_delay_sec": 5}, EINVAL),
        ({"ctrlr_loss_timeout_sec": -2, "reconnect_delay_sec": 1}, EINVAL),
        ({"ctrlr_loss_timeout_sec": -1}, EINVAL),
        ({"reconnect_delay_sec": 1}, EINVAL),
        ({"ctrlr_loss_timeout_sec": 5, "reconnect_delay_sec": 2, "fast_io_fail_timeout_sec": 1}, EINVAL),
        ({"ctrlr_loss_timeout_sec": 5, "reconnect_delay_sec": 2, "fast_io_fail_timeout_sec": 6}, EINVAL),
        ({"traddr": None}, DECODE),
        ({"name": None}, DECODE),
        ({"multipath": "x"}, DECODE),
        ({"bogus": 1}, DECODE),
    ],
)
def test_attach_refused(pair: Pair, container: NvmeTcpContainer, change: dict[str, Any], code: int) -> None:
    params = {name: value for name, value in (attach_params(container) | change).items() if value is not None}
    assert code_of_attach(pair, params) == code
    assert pair.client.call("bdev_nvme_get_controllers") == []


def test_attached_twice(pair: Pair, container: NvmeTcpContainer) -> None:
    params = attach_params(container)
    pair.client.call("bdev_nvme_attach_controller", params)
    assert code_of_attach(pair, params) == EALREADY
    assert code_of_attach(pair, params | {"multipath": "disable"}) == EALREADY
    assert code_of_attach(pair, params | {"name": "container2"}) == EEXIST
    assert [one["name"] for one in pair.client.call("bdev_nvme_get_controllers")] == ["container1"]


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("bdev_nvme_detach_controller", {"name": "nosuch"}, ENODEV),
        ("bdev_nvme_detach_controller", {}, DECODE),
        ("bdev_nvme_detach_controller", {"name": "nosuch", "bogus": 1}, DECODE),
        ("bdev_nvme_get_controllers", {"name": "nosuch"}, EINVAL),
        ("bdev_nvme_get_controllers", {"bogus": 1}, DECODE),
    ],
)
def test_refused(pair: Pair, method: str, params: dict[str, Any], code: int) -> None:
    with pytest.raises(RpcError) as caught:
        pair.client.call(method, params)
    assert caught.value.code == code


def test_queue_pairs_name_the_host(pair: Pair, container: NvmeTcpContainer, rpc: Callable[..., Any]) -> None:
    pair.run(pair.mapper.attach(container))
    pairs = rpc("nvmf_subsystem_get_qpairs", nqn=container.subnqn)
    where = {"trtype": str, "adrfam": str, "traddr": str, "trsvcid": str}
    shape = {"cntlid": int, "qid": int, "state": str, "hostnqn": str, "listen_address": where, "peer_address": where}
    check_shape(pairs, [shape])
    assert 0 in [one["qid"] for one in pairs]
    assert {one["hostnqn"] for one in pairs} == {HOST}
    assert {one["listen_address"]["trsvcid"] for one in pairs} == {container.trsvcid}


def test_removed_host_has_no_queue_pair_left_and_cannot_come_back(
    pair: Pair, container: NvmeTcpContainer, rpc: Callable[..., Any]
) -> None:
    pair.run(pair.mapper.attach(container))
    assert rpc("nvmf_subsystem_get_qpairs", nqn=container.subnqn)
    assert pair.run(pair.exporter.deny_host(container.subnqn, HOST)) is True
    assert rpc("nvmf_subsystem_get_qpairs", nqn=container.subnqn) == []
    pair.client.call("bdev_nvme_detach_controller", {"name": "container1"})
    assert code_of_attach(pair, attach_params(container)) == EIO
    assert pair.run(pair.exporter.deny_host(container.subnqn, HOST)) is True  # again: still fenced


def test_target_attach_is_idempotent_and_reconciles(pair: Pair, container: NvmeTcpContainer) -> None:
    first = pair.run(pair.mapper.attach(container))
    assert [one.name for one in first] == ["container1n1"]
    assert [one.name for one in pair.run(pair.mapper.attach(container))] == ["container1n1"]
    again = NvmeTcpContainer("container1", container.traddr, container.trsvcid, container.subnqn, HOST + "2")
    pair.run(pair.exporter.allow_host(container.subnqn, HOST + "2"))
    assert [one.name for one in pair.run(pair.mapper.attach(again))] == ["container1n1"]
    (controller,) = pair.client.run(bdev_nvme.get_controllers())
    assert [path.hostnqn for path in controller.paths] == [HOST + "2"]
    pair.run(pair.mapper.detach(again))
    pair.run(pair.mapper.detach(again))
    assert pair.client.run(bdev.get_bdevs()) == ()


def test_flushes_go_to_the_container(pair: Pair, container: NvmeTcpContainer) -> None:
    """SPDK answers them by itself unless it is told to send them."""
    pair.run(pair.mapper.attach(container))
    assert pair.run(pair.mapper.run(reads_flush())) is True


def test_namespace_that_comes_later_is_seen(pair: Pair, container: NvmeTcpContainer, rpc: Callable[..., Any]) -> None:
    """By an asynchronous event: the host reads the namespaces anew."""
    pair.run(pair.mapper.attach(container))
    rpc("bdev_null_create", name="later", block_size=512, num_blocks=64)
    try:
        rpc("nvmf_subsystem_add_ns", nqn=container.subnqn, namespace={"bdev_name": "later", "nsid": 2})
        (found,) = pair.client.run(bdev.get_bdevs("container1n2", timeout_ms=5000))
        assert found.num_blocks == 64
    finally:
        rpc("bdev_null_delete", name="later")


def test_export_is_idempotent_and_reconciles(pair: Pair, container: NvmeTcpContainer, malloc: str) -> None:
    nqn = container.subnqn
    export = Export(nqn, (ExportNamespace(1, malloc),), hosts=frozenset({HOST}), serial_number="C1")
    where = pair.run(pair.exporter.export(export))
    assert where.trsvcid == container.trsvcid
    changed = Export(nqn, (ExportNamespace(2, malloc),), hosts=frozenset({HOST + "2"}), serial_number="C1")
    assert pair.run(pair.exporter.export(changed)) == where
    found = pair.run(pair.exporter.subsystem(nqn))
    assert [one.nsid for one in found.namespaces] == [2]
    assert (found.hosts, found.addresses) == (frozenset({HOST + "2"}), (where,))
    other_identity = Export(nqn, (ExportNamespace(2, malloc),), serial_number="C2")
    pair.run(pair.exporter.export(other_identity))
    found = pair.run(pair.exporter.subsystem(nqn))
    assert (found.serial_number, found.hosts, found.allow_any_host) == ("C2", frozenset(), False)
    discovery = pair.run(pair.exporter.subsystem(nvmf.DISCOVERY_NQN))
    assert where in discovery.addresses
    pair.run(pair.exporter.withdraw(nqn))
    pair.run(pair.exporter.withdraw(nqn))
    assert pair.run(pair.exporter.subsystem(nqn)) is None
