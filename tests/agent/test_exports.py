"""What an exporter builds on its target, what it tells of it, and what it does when something cannot be built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from agent.config import ContainerConfig
from agent.core import effects as e
from channel.messages import Export, LeaseGrant
from spdk_rpc.errors import RpcError
from spdk_rpc.methods.bdev import Bdev
from spdk_rpc.methods.nvmf import Address
from tests.agent.driver import LISTENER, Driver, config, notice, of, sent

MIB = 1 << 20
FILE = ContainerConfig("disk0", "aio", Path("/images/disk0"), 64 * MIB)
MEMORY = ContainerConfig("ram0", "malloc", size_bytes=16 * MIB, block_size=4096)
MISSING = ContainerConfig("gone", "aio", Path("/images/gone"))
LOCAL = ContainerConfig("nv0", "nvme", traddr="0000:01:00.0")
OTHERS = ContainerConfig("raid0", "bdev", bdev="md")
NQN = "nqn.2026-11.io.segmap:container:a:"


def exporter(*containers: ContainerConfig) -> Driver:
    return Driver(config("exporter", containers=containers))


def test_each_container_gets_a_subsystem_that_lets_nobody_in() -> None:
    driver = exporter(FILE, MEMORY)
    assert e.Ready() in driver.start()
    assert driver.target.files == {"/images/disk0": 64 * MIB}
    for name in ("disk0", "ram0"):
        seen = driver.target.subsystems[NQN + name]
        assert (seen.allow_any_host, seen.hosts, seen.addresses) == (False, frozenset(), (LISTENER,))
        assert [one.bdev_name for one in seen.namespaces] == [name]


def test_exports_are_told_on_each_session() -> None:
    driver = exporter(FILE, MEMORY)
    driver.start()
    for _ in range(2):
        driver.step(e.SessionUp())
        exports = sent(Export, driver.welcome())
        assert [(one.name, one.last) for one in exports] == [("disk0", False), ("ram0", True)]
        assert [(one.block_size, one.block_count) for one in exports] == [(512, 131072), (4096, 4096)]
        assert {(one.trtype, one.traddr, one.trsvcid) for one in exports} == {("TCP", "127.0.0.1", "61234")}
        assert [one.subnqn for one in exports] == [NQN + "disk0", NQN + "ram0"]
        driver.step(e.SessionDown("gone"))


def test_a_container_keeps_its_uuid_over_restarts() -> None:
    uuids = []
    for _ in range(2):
        driver = exporter(MEMORY)
        driver.start()
        driver.step(e.SessionUp())
        (told,) = sent(Export, driver.welcome())
        uuids.append((driver.target.bdevs["ram0"].uuid, told.uuid))
    assert uuids[0] == uuids[1] and uuids[0][0]
    bdev, namespace = uuids[0]
    assert bdev != str(UUID(bytes=namespace)), "a two-role agent attaches the namespace beside the exported bdev"


def test_an_adopted_target_keeps_its_allow_lists() -> None:
    driver = exporter(MEMORY)
    driver.start()
    seen = driver.target.subsystems[NQN + "ram0"]
    driver.target.nvmf_subsystem_add_host(NQN + "ram0", "nqn.agent")
    driver.step(e.TargetExited("the daemon was restarted, say"))
    driver.advance(1)
    driver.step(e.TargetStarted(b"t" * 16, True))
    now = driver.target.subsystems[NQN + "ram0"]
    assert now.hosts == {"nqn.agent"} and now.serial_number == seen.serial_number


def test_a_dead_targets_exports_are_built_again_with_empty_lists() -> None:
    driver = exporter(MEMORY).open()
    driver.step(e.TargetExited("signal 9"))
    driver.target.subsystems.clear()
    driver.target.bdevs.clear()
    driver.advance(1)
    driver.step(e.TargetStarted(b"u" * 16, False))
    assert driver.target.subsystems[NQN + "ram0"].hosts == frozenset()


def test_one_bad_container_does_not_stop_the_others_and_is_tried_again() -> None:
    driver = exporter(MISSING, MEMORY)
    made = driver.start()
    assert ["gone" in alarm.text for alarm in of(e.Alarm, made)] == [True]
    driver.step(e.SessionUp())
    assert [one.name for one in sent(Export, driver.welcome())] == ["ram0"]
    assert not of(e.Alarm, driver.advance(5.5)), "the same trouble is told once"
    driver.step(e.FromController(notice(LeaseGrant(1, 2))))
    driver.target.files["/images/gone"] = MIB
    made = driver.advance(5)
    assert [one.name for one in sent(Export, made)] == ["gone", "ram0"]


def test_bdevs_that_the_target_has_already() -> None:
    driver = exporter(OTHERS, LOCAL)
    driver.target.bdevs["md"] = Bdev("md", (), "Raid Volume", 512, 4096, "", False, frozenset())
    made = driver.start()
    assert not of(e.Alarm, made)
    assert [one.bdev_name for one in driver.target.subsystems[NQN + "raid0"].namespaces] == ["md"]
    assert [one.bdev_name for one in driver.target.subsystems[NQN + "nv0"].namespaces] == ["nv0n1"]


def test_a_bdev_that_is_not_there() -> None:
    driver = exporter(OTHERS)
    (alarm,) = of(e.Alarm, driver.start())
    assert "no bdev md" in alarm.text


def test_a_target_that_cannot_listen_exports_nothing() -> None:
    driver = exporter(MEMORY)
    driver.target.fault("nvmf_create_transport", RpcError("nvmf_create_transport", -32603, "no"))
    (alarm,) = of(e.Alarm, driver.start())
    assert "(transport)" in alarm.text
    assert not of(e.Alarm, driver.advance(6)) and NQN + "ram0" in driver.target.subsystems


def test_calls_of_unknown_outcome_are_read_back() -> None:
    driver = exporter(MEMORY)
    driver.target.fault("nvmf_create_subsystem", "late")
    driver.target.fault("nvmf_subsystem_add_listener", "lost")
    assert not of(e.Alarm, driver.start())
    assert driver.target.subsystems[NQN + "ram0"].addresses == (Address("TCP", "IPv4", "127.0.0.1", "61234"),)


def test_a_full_disk_keeps_a_container_from_being_exported() -> None:
    driver = exporter(FILE, MEMORY)
    driver.disk_full = True
    (alarm,) = of(e.Alarm, driver.start())
    assert "disk0" in alarm.text and "/images/disk0: No space left on device" in alarm.text
    assert set(driver.target.subsystems) == {NQN + "ram0"}


def test_another_bdev_under_a_containers_name_is_not_exported() -> None:
    """A target that was adopted, with another configuration than it was started with."""
    driver = exporter(MEMORY)
    driver.target.bdevs["ram0"] = Bdev("ram0", (), "Malloc disk", 512, 4096, "", False, frozenset())
    (alarm,) = of(e.Alarm, driver.start())
    assert "block_size is 512, not 4096" in alarm.text
    assert not driver.target.subsystems


def test_flushes_reach_a_local_nvme_container() -> None:
    driver = exporter(LOCAL)
    driver.target.flush = False
    driver.start()
    assert driver.target.flush is True


def test_a_container_that_can_be_made_to_fail() -> None:
    """What is exported is a delay bdev on an error bdev on the storage; made once, however often one looks."""
    driver = exporter(replace(MEMORY, faults=True))
    bdevs = driver.target.bdevs

    def stand(name: str, product: str, driver_specific: dict[str, Any]) -> None:
        bdevs[name] = replace(bdevs["ram0"], name=name, product_name=product, driver_specific=driver_specific)

    def error_create(base_name: str) -> bool:
        stand("EE_" + base_name, "Error Injection Disk", {"error_disk": {"base_bdev": base_name}})
        return True

    def delay_create(name: str, base_bdev_name: str, **latencies: int) -> str:
        assert set(latencies.values()) == {0}
        stand(name, "delay", {"delay": {"base_bdev_name": base_bdev_name}})
        return name

    driver.target.bdev_error_create = error_create  # type: ignore[attr-defined]
    driver.target.bdev_delay_create = delay_create  # type: ignore[attr-defined]
    assert not of(e.Alarm, driver.start())
    (namespace,) = driver.target.subsystems[NQN + "ram0"].namespaces
    assert namespace.bdev_name == "faults-ram0"
    assert bdevs["faults-ram0"].driver_specific == {"delay": {"base_bdev_name": "EE_ram0"}}
    assert not of(e.Alarm, driver.advance(6))
    assert len(driver.target.called("bdev_error_create")) == len(driver.target.called("bdev_delay_create")) == 1
