"""Plans: from what a target has to what it should have. Pure, so every case is a table row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from spdk_rpc.call import Call
from spdk_rpc.containers import (
    AioContainer,
    Container,
    Inventory,
    MallocContainer,
    NullContainer,
    NvmeTcpContainer,
    TargetConflict,
    bdevs_of,
    plan_attach,
    plan_detach,
)
from spdk_rpc.exports import (
    Export,
    ExportNamespace,
    find_address,
    plan_allow,
    plan_deny,
    plan_discovery,
    plan_export,
    plan_tcp,
    plan_withdraw,
)
from spdk_rpc.methods.bdev import Bdev
from spdk_rpc.methods.bdev_nvme import Controller, Path
from spdk_rpc.methods.nvmf import DISCOVERY_NQN, Address, Namespace, Subsystem, Transport

UUID = "11111111-2222-3333-4444-555555555555"
NQN = "nqn.2026-11.io.segmap:c:1"
HOST = "nqn.2026-11.io.segmap:agent:a:1"
HERE = Address("TCP", "IPv4", "127.0.0.1", "4420")
NVME = NvmeTcpContainer("container1", "127.0.0.1", "4420", NQN, HOST)
PATH = Path("enabled", "TCP", "IPv4", "127.0.0.1", "4420", NQN, HOST, 1)
MALLOC = MallocContainer("m0", 512, 2048, UUID)
AIO = AioContainer("a0", "/data/a", 512)
NULL = NullContainer("n0", 512, 8)


def made(name: str, product: str, block_size: int = 512, num_blocks: int = 2048, **driver: Any) -> Bdev:
    return Bdev(name, (), product, block_size, num_blocks, UUID, False, frozenset(), driver)


def names(calls: Any) -> list[str]:
    return [call.method for call in calls]


@pytest.mark.parametrize(
    ("container", "method"),
    [
        (MALLOC, "bdev_malloc_create"),
        (AIO, "bdev_aio_create"),
        (NULL, "bdev_null_create"),
        (NVME, "bdev_nvme_attach_controller"),
    ],
)
def test_attach_to_an_empty_target(container: Container, method: str) -> None:
    (call,) = plan_attach(container, Inventory())
    assert (call.method, call.params["name"]) == (method, container.name)
    assert plan_detach(container, Inventory()) == []


@pytest.mark.parametrize(
    ("container", "there", "delete"),
    [
        (MALLOC, made("m0", "Malloc disk"), "bdev_malloc_delete"),
        (AIO, made("a0", "AIO disk", aio={"filename": "/data/a"}), "bdev_aio_delete"),
        (NULL, made("n0", "Null disk", num_blocks=8), "bdev_null_delete"),
    ],
)
def test_attached_already(container: Container, there: Bdev, delete: str) -> None:
    inventory = Inventory((made("other", "Malloc disk"), there))
    assert plan_attach(container, inventory) == []
    assert bdevs_of(container, inventory) == (there,)
    assert names(plan_detach(container, inventory)) == [delete]


@pytest.mark.parametrize(
    ("container", "there", "said"),
    [
        (MALLOC, made("m0", "AIO disk"), "it is a AIO disk, not a Malloc disk"),
        (MALLOC, made("m0", "Malloc disk", num_blocks=7), "num_blocks is 7, not 2048"),
        (MALLOC, made("m0", "Malloc disk", block_size=4096), "block_size is 4096, not 512"),
        (replace(MALLOC, uuid=UUID.replace("1", "9")), made("m0", "Malloc disk"), "uuid is"),
        (AIO, made("a0", "AIO disk", aio={"filename": "/data/b"}), "filename is '/data/b', not '/data/a'"),
        (AIO, made("a0", "AIO disk"), "filename is None"),
    ],
)
def test_another_bdev_has_the_name(container: Container, there: Bdev, said: str) -> None:
    with pytest.raises(TargetConflict, match=said):
        plan_attach(container, Inventory((there,)))


def test_detach_leaves_another_kind_alone() -> None:
    assert plan_detach(MALLOC, Inventory((made("m0", "AIO disk"),))) == []


def test_nvme_attached_already() -> None:
    bdevs = (made("container1n1", "NVMe disk"), made("container1n12", "NVMe disk"))
    others = (made("container11n1", "NVMe disk"), made("container1nx", "NVMe disk"), made("container1", "Malloc disk"))
    inventory = Inventory((*bdevs, *others), (Controller("container1", (PATH,)),))
    assert plan_attach(NVME, inventory) == []
    assert bdevs_of(NVME, inventory) == bdevs
    assert names(plan_detach(NVME, inventory)) == ["bdev_nvme_detach_controller"]


@pytest.mark.parametrize(
    "path",
    [
        replace(PATH, hostnqn=HOST + "2"),
        replace(PATH, subnqn=NQN + "2"),
        replace(PATH, trsvcid="1"),
        replace(PATH, traddr="::1"),
        replace(PATH, trtype="RDMA"),
    ],
)
def test_nvme_attached_elsewhere_or_as_another_host(path: Path) -> None:
    inventory = Inventory((), (Controller("container1", (path,)),))
    assert names(plan_attach(NVME, inventory)) == ["bdev_nvme_detach_controller", "bdev_nvme_attach_controller"]


# --- exports

EXPORT = Export(
    NQN,
    (ExportNamespace(1, "b1", UUID, "0123456789abcdef-0123456789abcdef"),),
    frozenset({HOST}),
    serial_number="S1",
    model_number="M1",
)
SHOWN = Subsystem(
    nqn=NQN,
    subtype="NVMe",
    addresses=(HERE,),
    allow_any_host=False,
    hosts=frozenset({HOST}),
    serial_number="S1",
    model_number="M1",
    max_namespaces=32,
    min_cntlid=1,
    max_cntlid=0xFFEF,
    namespaces=(Namespace(1, "b1", "0123456789ABCDEF0123456789ABCDEF", UUID),),
)
ADD = "nvmf_subsystem_add_"
REMOVE = "nvmf_subsystem_remove_"
ALL = ["nvmf_create_subsystem", ADD + "ns", ADD + "host", ADD + "listener"]


def test_new_export_listens_last() -> None:
    calls = plan_export(EXPORT, HERE, None)
    assert names(calls) == ALL
    assert calls[1].params["namespace"]["nguid"] == "0123456789ABCDEF0123456789ABCDEF"
    assert "allow_any_host" not in calls[0].params


def test_export_as_wanted() -> None:
    assert plan_export(EXPORT, HERE, SHOWN) == []


@pytest.mark.parametrize(
    ("found", "calls"),
    [
        (replace(SHOWN, hosts=frozenset()), [ADD + "host"]),
        (replace(SHOWN, hosts=frozenset({HOST, "x"})), [REMOVE + "host"]),
        (replace(SHOWN, hosts=frozenset({"x"}), namespaces=()), [REMOVE + "host", ADD + "ns", ADD + "host"]),
        (replace(SHOWN, allow_any_host=True), ["nvmf_subsystem_allow_any_host"]),
        (replace(SHOWN, addresses=()), [ADD + "listener"]),
        (replace(SHOWN, addresses=(HERE, replace(HERE, trsvcid="1"))), [REMOVE + "listener"]),
        (replace(SHOWN, addresses=(replace(HERE, trsvcid="1"),)), [ADD + "listener", REMOVE + "listener"]),
        (replace(SHOWN, namespaces=(replace(SHOWN.namespaces[0], uuid="x"),)), [REMOVE + "ns", ADD + "ns"]),
        (replace(SHOWN, namespaces=(replace(SHOWN.namespaces[0], nguid="x"),)), [REMOVE + "ns", ADD + "ns"]),
        (replace(SHOWN, namespaces=(replace(SHOWN.namespaces[0], bdev_name="x"),)), [REMOVE + "ns", ADD + "ns"]),
        (replace(SHOWN, namespaces=(replace(SHOWN.namespaces[0], nsid=2),)), [REMOVE + "ns", ADD + "ns"]),
        (replace(SHOWN, serial_number="S2"), ["nvmf_delete_subsystem", *ALL]),
        (replace(SHOWN, model_number="M2"), ["nvmf_delete_subsystem", *ALL]),
        (replace(SHOWN, min_cntlid=2), ["nvmf_delete_subsystem", *ALL]),
        (replace(SHOWN, max_namespaces=2), ["nvmf_delete_subsystem", *ALL]),
    ],
)
def test_export_reconciled(found: Subsystem, calls: list[str]) -> None:
    assert names(plan_export(EXPORT, HERE, found)) == calls


def test_export_to_any_host_says_so_after_its_namespaces() -> None:
    calls = plan_export(replace(EXPORT, allow_any_host=True, hosts=frozenset()), HERE, None)
    assert names(calls) == ["nvmf_create_subsystem", ADD + "ns", "nvmf_subsystem_allow_any_host", ADD + "listener"]


def test_identity_that_was_not_given_is_not_compared() -> None:
    assert plan_export(replace(EXPORT, serial_number=None, model_number=None), HERE, SHOWN) == []


def test_withdraw_allow_deny() -> None:
    assert plan_withdraw(NQN, None) == plan_deny(NQN, HOST, None) == plan_allow(NQN, HOST, SHOWN) == []
    assert names(plan_withdraw(NQN, SHOWN)) == ["nvmf_delete_subsystem"]
    assert names(plan_allow(NQN, "x", SHOWN)) == [ADD + "host"]
    assert names(plan_deny(NQN, HOST, SHOWN)) == [REMOVE + "host"]
    assert plan_deny(NQN, "x", SHOWN) == []


def test_nobody_is_denied_while_anybody_is_allowed() -> None:
    calls: list[Call[Any]] = list(plan_deny(NQN, HOST, replace(SHOWN, allow_any_host=True)))
    assert [(call.method, call.params.get("allow_any_host")) for call in calls] == [
        ("nvmf_subsystem_allow_any_host", False),
        (REMOVE + "host", None),
    ]


def test_transport_and_discovery() -> None:
    assert names(plan_tcp([])) == ["nvmf_create_transport"]
    assert plan_tcp([Transport("TCP", 1, 1, 1, 1)]) == []
    assert plan_discovery(HERE, None) == plan_discovery(HERE, SHOWN) == []
    (call,) = plan_discovery(HERE, replace(SHOWN, addresses=()))
    assert call.params["nqn"] == DISCOVERY_NQN


def test_address_of_a_running_target() -> None:
    assert find_address([replace(SHOWN, addresses=()), SHOWN], "127.0.0.1") == HERE
    assert find_address([SHOWN], "::1") is None
