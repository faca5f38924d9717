"""Plans: from what a target has to what it should have. Pure, so every case is a table row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from spdk_rpc import disks
from spdk_rpc.call import Call
from spdk_rpc.containers import (
    AioContainer,
    Container,
    Inventory,
    MallocContainer,
    NullContainer,
    NvmePcieContainer,
    NvmeTcpContainer,
    bdevs_of,
    plan_attach,
    plan_detach,
    plan_flush,
)
from spdk_rpc.converge import TargetConflict
from spdk_rpc.errors import RpcError
from spdk_rpc.exports import (
    Export,
    ExportNamespace,
    NvmeTcpFrontEnd,
    plan_allow,
    plan_deny,
    plan_discovery,
    plan_export,
    plan_tcp,
    plan_withdraw,
)
from spdk_rpc.methods.bdev import Bdev
from spdk_rpc.methods.bdev_nvme import Controller, Path
from spdk_rpc.methods.bdev_segmap import SegmapBdev
from spdk_rpc.methods.nvmf import DISCOVERY_NQN, Address, Namespace, Subsystem, Transport
from tests.spdk_rpc.pretend_target import PretendTarget, carry_out

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


def test_a_local_nvme_container_is_attached_once() -> None:
    local = NvmePcieContainer("nv0", "0000:01:00.0")
    (call,) = plan_attach(local, Inventory())
    assert (call.params["trtype"], call.params["traddr"]) == ("PCIe", "0000:01:00.0")
    inventory = Inventory((made("nv0n1", "NVMe disk"),), (Controller("nv0", (PATH,)),))
    assert plan_attach(local, inventory) == []
    assert bdevs_of(local, inventory) == inventory.bdevs
    assert names(plan_detach(local, inventory)) == ["bdev_nvme_detach_controller"]


def test_flushes_are_let_through_once() -> None:
    assert plan_flush(True) == []
    assert [call.params for call in plan_flush(False)] == [{"enable_flush": True}]


def test_the_address_says_its_family() -> None:
    (call,) = plan_attach(replace(NVME, traddr="::1"), Inventory())
    assert call.params["adrfam"] == "IPv6"


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


def test_the_front_end_exports_and_is_discovered_at_its_address() -> None:
    target = PretendTarget()
    target.nvmf_create_subsystem(DISCOVERY_NQN, subtype="Discovery")
    front_end = NvmeTcpFrontEnd("127.0.0.1", 4420)
    assert front_end.address == HERE and NvmeTcpFrontEnd("::1", 1).address.adrfam == "IPv6"
    for _ in range(2):
        carry_out(front_end.prepare(), target.perform)
        carry_out(front_end.export(replace(EXPORT, namespaces=())), target.perform)
    assert target.subsystems[NQN].addresses == target.subsystems[DISCOVERY_NQN].addresses == (HERE,)
    assert target.changes == ["nvmf_create_transport", ALL[0], *ALL[2:], ADD + "listener"], "once, discovery last"


def test_a_list_of_hosts_that_is_others_business() -> None:
    export = replace(EXPORT, hosts=None)
    assert plan_export(export, HERE, SHOWN) == []
    assert plan_export(export, HERE, replace(SHOWN, hosts=frozenset({"x"}))) == []
    assert names(plan_export(export, HERE, replace(SHOWN, allow_any_host=True))) == ["nvmf_subsystem_allow_any_host"]
    assert names(plan_export(export, HERE, None)) == [ALL[0], ALL[1], ALL[3]]


# --- disks

DISK = SegmapBdev("vdisk3", UUID, 3 << 32 | 1, 100, 1 << 20, 512)


def test_a_disk_is_made_once_resized_and_deleted() -> None:
    target = PretendTarget()
    for _ in range(2):
        assert carry_out(disks.create(DISK), target.perform).table == DISK.table
        carry_out(disks.resize("vdisk3", 200), target.perform)
        carry_out(disks.create(DISK), target.perform)
    assert target.disks["vdisk3"].segment_count == 200
    for _ in range(2):
        carry_out(disks.delete("vdisk3"), target.perform)
    assert target.changes == ["bdev_segmap_create", "bdev_segmap_resize", "bdev_segmap_delete"]


def test_a_disk_is_deleted_by_its_table_whatever_its_name() -> None:
    target = PretendTarget()
    target.add_table(DISK.table, "old")
    target.add_table(DISK.table + 1, "other")
    for _ in range(2):
        carry_out(disks.delete_table(DISK.table), target.perform)
    assert set(target.disks) == {"other"} and target.changes == ["bdev_segmap_delete"]


@pytest.mark.parametrize("change", [{"uuid": "x"}, {"table": 1}, {"segment_size": 4096}, {"block_size": 4096}])
def test_another_disk_has_the_name(change: dict[str, Any]) -> None:
    target = PretendTarget()
    carry_out(disks.create(DISK), target.perform)
    target.disks["vdisk3"] = replace(target.disks["vdisk3"], **change)
    with pytest.raises(TargetConflict, match=f"{next(iter(change))} is"):
        carry_out(disks.create(DISK), target.perform)


def test_a_disk_that_is_not_there_is_not_resized() -> None:
    with pytest.raises(RpcError, match="No such device"):
        carry_out(disks.resize("vdisk3", 200), PretendTarget().perform)
