"""What the daemon does itself: containers, tables, presentations, allow-lists; with calls that fail in every way."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from agent.core import effects as e
from channel.messages import (
    AllowHost,
    AttachContainer,
    Attached,
    BindSlot,
    CreateTable,
    DeleteTable,
    DenyHost,
    DetachContainer,
    Done,
    Present,
    Presented,
    TableSlots,
    TableStatus,
    UnbindSlot,
    Withdraw,
)
from channel.values import AttachFlags, PresentFlags, TableFlags
from mapping.status import Status
from spdk_rpc.errors import RpcError
from spdk_rpc.methods.bdev_nvme import Path
from tests.agent.driver import CLUSTER, LISTENER, Driver, config, of

TABLE = 3 << 32 | 1
UUID = b"u" * 16
SUBSYSTEM = "nqn.2026-11.io.segmap:vdisk:x"
EXPORT = "nqn.2026-11.io.segmap:container:x:c0"
HOST = "nqn.2014-08.org.nvmexpress:uuid:h"
AGENT = "nqn.2026-11.io.segmap:agent:a:7"
ATTACH = AttachContainer(4, 1, UUID, CLUSTER, 1, 1 << 20, 100, 0, "TCP", "127.0.0.1", "61000", EXPORT, "c0")
PATH = Path("enabled", "TCP", "IPv4", "127.0.0.1", "61000", EXPORT, AGENT, 1)
ATTACH_METHOD, DETACH_METHOD = "bdev_nvme_attach_controller", "bdev_nvme_detach_controller"
QPAIRS = "nvmf_subsystem_get_qpairs"
ADD, REMOVE = "nvmf_subsystem_add_", "nvmf_subsystem_remove_"
CREATE = CreateTable(UUID, UUID, 4096, 1 << 20, 512, int(TableFlags.RECLAIM), "disk", [4])
PRESENT = Present(UUID, 1, 1, 256, 0, SUBSYSTEM, "SERIAL", f"{HOST}\n{HOST}2", "disk")


def mapper() -> Driver:
    driver = Driver().open()
    driver.target.seen.clear()
    return driver


def exporter() -> Driver:
    driver = Driver(config("exporter", deny_deadline_s=2.0)).open()
    driver.target.nvmf_create_subsystem(EXPORT, "S", "M")
    driver.target.seen.clear()
    return driver


# --- containers ------------------------------------------------------------------------------------------------------


def test_attach_connects_as_this_incarnation_and_binds() -> None:
    driver = mapper()
    made = driver.command(ATTACH)
    assert driver.responses(made) == [Attached(Status.OK, "", 100, 512, True)]
    assert driver.target.controllers == {"container4": PATH}
    (bind,) = of(e.SendDataPlane, made)
    assert isinstance(bind.message, BindSlot)
    assert (bind.message.slot, bind.message.bdev_name, bind.message.container) == (4, "container4n1", UUID)


def test_attach_of_what_is_attached_only_binds() -> None:
    driver = mapper()
    driver.target.controllers["container4"] = PATH
    assert driver.response_to(ATTACH).status == Status.OK
    assert not driver.target.called(ATTACH_METHOD)


def test_attach_replaces_a_connection_of_an_older_incarnation() -> None:
    driver = mapper()
    driver.target.controllers["container4"] = replace(PATH, hostnqn=AGENT[:-1] + "6")
    made = driver.command(ATTACH)
    assert driver.responses(made)[0].status == Status.OK
    assert driver.target.controllers["container4"] == PATH
    assert [type(ask.message) for ask in of(e.SendDataPlane, made)] == [UnbindSlot, BindSlot]


@pytest.mark.parametrize("outcome", ["lost", "late"])
def test_an_attach_of_unknown_outcome_is_read_back(outcome: str) -> None:
    driver = mapper()
    driver.target.fault(ATTACH_METHOD, outcome)
    assert driver.response_to(ATTACH).status == Status.OK
    tries = driver.target.called(ATTACH_METHOD)
    assert len(tries) == (2 if outcome == "lost" else 1)


def test_an_attach_that_never_succeeds_ends_with_a_timeout() -> None:
    driver = mapper()
    driver.target.fault(ATTACH_METHOD, *["lost"] * 10)
    assert driver.response_to(ATTACH).status == Status.TIMEOUT
    assert len(driver.target.called(ATTACH_METHOD)) == 4


def test_a_refused_attach_is_not_tried_again() -> None:
    driver = mapper()
    driver.target.fault(ATTACH_METHOD, RpcError(ATTACH_METHOD, -5, "Input/output error"))
    response = driver.response_to(ATTACH)
    assert (response.status, "Input/output error" in response.detail) == (Status.IO_ERROR, True)


@pytest.mark.parametrize("status", [Status.LABEL_MISMATCH, Status.FOREIGN_DATA, Status.IO_ERROR])
def test_a_wrong_container_is_let_go(status: Status) -> None:
    driver = mapper()
    driver.plane_statuses[BindSlot] = status
    driver.plane_statuses[UnbindSlot] = Status.NO_CONTAINER
    assert driver.response_to(ATTACH) == Attached(status, "because")
    assert not driver.target.controllers


def test_detach() -> None:
    driver = mapper()
    driver.target.controllers["container4"] = PATH
    assert driver.response_to(DetachContainer(4)) == Done()
    assert not driver.target.controllers
    assert driver.response_to(DetachContainer(4)) == Done(), "again is fine"


def test_a_slot_in_use_is_not_detached() -> None:
    driver = mapper()
    driver.target.controllers["container4"] = PATH
    driver.plane_statuses[UnbindSlot] = Status.BUSY
    assert driver.response_to(DetachContainer(4)).status == Status.BUSY
    assert "container4" in driver.target.controllers


@pytest.mark.parametrize("outcome", ["lost", "late"])
def test_a_detach_of_unknown_outcome_is_read_back(outcome: str) -> None:
    driver = mapper()
    driver.target.controllers["container4"] = PATH
    driver.target.fault(DETACH_METHOD, outcome)
    assert driver.response_to(DetachContainer(4)) == Done()
    assert not driver.target.controllers


def test_flushes_reach_the_container_from_the_first_attach_on() -> None:
    """SPDK answers them by itself unless it was told before: what hosts flushed would not be durable."""
    driver = mapper()
    driver.target.flush = False
    assert driver.response_to(ATTACH).status == Status.OK
    assert driver.target.flush is True
    assert driver.target.changes == ["bdev_nvme_set_options", ATTACH_METHOD]
    assert driver.response_to(replace(ATTACH, slot=5)).status == Status.OK
    assert driver.target.called("bdev_nvme_set_options") == [{"enable_flush": True}], "once"


def test_a_target_that_cannot_be_told_to_flush_gets_no_container() -> None:
    """Somebody attached something before: the option cannot be changed any more."""
    driver = mapper()
    driver.target.flush = False
    driver.target.controllers["other"] = replace(PATH, subnqn="nqn.other")
    response = driver.response_to(ATTACH)
    assert response.status == Status.IO_ERROR and "not permitted with nvme controllers" in response.detail
    assert set(driver.target.controllers) == {"other"}


def test_an_attached_container_reconnects_for_ever() -> None:
    driver = mapper()
    driver.command(ATTACH)
    (params,) = driver.target.called(ATTACH_METHOD)
    assert (params["ctrlr_loss_timeout_sec"], params["reconnect_delay_sec"]) == (-1, 1)
    assert (params["adrfam"], params["multipath"]) == ("IPv4", "disable")


def test_a_container_over_another_transport_is_refused() -> None:
    driver = mapper()
    assert driver.response_to(replace(ATTACH, trtype="RDMA")).status == Status.UNSUPPORTED
    assert not driver.target.changes


# --- tables ----------------------------------------------------------------------------------------------------------


def test_create_table_and_tell_it_its_containers() -> None:
    driver = mapper()
    made = driver.command(CREATE, TABLE)
    assert driver.responses(made) == [Done()]
    assert [(disk.table, disk.name) for disk in driver.target.disks.values()] == [(TABLE, "vdisk3")]
    (slots,) = of(e.SendDataPlane, made)
    assert slots.message == TableSlots([4], []) and slots.header.table == TABLE


def test_a_table_that_is_here_is_not_new() -> None:
    driver = mapper()
    driver.target.add_table(TABLE, "vdisk3")
    assert driver.response_to(CREATE, TABLE).status == Status.EXISTS


@pytest.mark.parametrize("outcome", ["lost", "late"])
def test_a_create_of_unknown_outcome_is_read_back(outcome: str) -> None:
    driver = mapper()
    driver.target.fault("bdev_segmap_create", outcome)
    assert driver.response_to(CREATE, TABLE) == Done()


def test_a_create_that_was_done_after_all_is_no_refusal() -> None:
    """Lost, then read back too early: the second try is refused with EEXIST, and the table is there."""
    driver = mapper()
    driver.target.fault("bdev_segmap_create", "lost", RpcError("bdev_segmap_create", -17, "File exists"), "late")
    assert driver.response_to(CREATE, TABLE) == Done()


def test_a_table_without_its_containers_is_taken_away() -> None:
    driver = mapper()
    driver.plane_statuses[TableSlots] = Status.NO_CONTAINER
    assert driver.response_to(CREATE, TABLE) == Done(Status.NO_CONTAINER, "because")
    assert not driver.target.disks


def test_delete_table() -> None:
    driver = mapper()
    driver.target.add_table(TABLE, "vdisk3")
    assert driver.response_to(DeleteTable(), TABLE) == Done()
    assert not driver.target.disks
    assert driver.response_to(DeleteTable(), TABLE) == Done()


def test_a_refused_delete_says_why() -> None:
    driver = mapper()
    driver.target.add_table(TABLE, "vdisk3")
    driver.target.fault("bdev_segmap_delete", RpcError("bdev_segmap_delete", -16, "Device or resource busy"))
    assert "busy" in driver.response_to(DeleteTable(), TABLE).detail


def test_a_table_is_deleted_when_the_data_plane_has_it_no_more() -> None:
    driver = mapper()
    driver.target.add_table(TABLE, "vdisk3")
    driver.plane_tables = [(TABLE, 3)]
    driver.target.fault("bdev_segmap_delete", "late")
    response = driver.response_to(DeleteTable(), TABLE)
    assert (response.status, response.detail) == (Status.BUSY, f"table {TABLE:#x}: its I/O has not ended")
    driver.plane_tables = [(TABLE + 1, 3)]
    assert driver.response_to(DeleteTable(), TABLE) == Done()
    driver.plane_statuses[TableStatus] = Status.INTERNAL
    assert driver.response_to(DeleteTable(), TABLE).status is Status.BUSY


# --- presentations ---------------------------------------------------------------------------------------------------


def test_present_shows_everything_before_it_listens() -> None:
    driver = mapper()
    driver.target.add_table(TABLE, "vdisk3")
    assert driver.response_to(PRESENT, TABLE) == Presented(Status.OK, "", "127.0.0.1", "61234", "TCP")
    seen = driver.target.subsystems[SUBSYSTEM]
    assert (seen.serial_number, seen.min_cntlid, seen.max_cntlid, seen.allow_any_host) == ("SERIAL", 1, 256, False)
    assert seen.hosts == {HOST, HOST + "2"}
    assert [(one.nsid, one.bdev_name) for one in seen.namespaces] == [(1, "vdisk3")]
    assert seen.addresses == (LISTENER,)
    methods = driver.target.methods
    assert methods.index(ADD + "listener") > max(methods.index(ADD + "ns"), methods.index(ADD + "host"))


@pytest.mark.claim(16)
def test_present_gives_the_identity_of_the_vdisk() -> None:
    driver = mapper()
    driver.target.add_table(TABLE, "vdisk3")
    driver.response_to(PRESENT, TABLE)
    (added,) = driver.target.called(ADD + "ns")
    identity = added["namespace"]
    assert uuid.UUID(identity["uuid"]).bytes == bytes.fromhex(identity["nguid"]) == UUID


def test_present_without_a_table() -> None:
    assert mapper().response_to(PRESENT, TABLE).status == Status.NO_TABLE


def test_present_again_changes_only_what_differs() -> None:
    driver = mapper()
    driver.target.add_table(TABLE, "vdisk3")
    driver.response_to(PRESENT, TABLE)
    driver.target.seen.clear()
    assert driver.response_to(PRESENT, TABLE).status == Status.OK
    assert driver.target.methods == ["bdev_segmap_get", "nvmf_get_subsystems"]
    fewer = Present(UUID, 1, 1, 256, int(PresentFlags.ALLOW_ANY_HOST), SUBSYSTEM, "SERIAL", HOST, "disk")
    assert driver.response_to(fewer, TABLE).status == Status.OK
    seen = driver.target.subsystems[SUBSYSTEM]
    assert seen.hosts == {HOST} and seen.allow_any_host


def test_another_identity_means_another_subsystem() -> None:
    driver = mapper()
    driver.target.add_table(TABLE, "vdisk3")
    driver.target.nvmf_create_subsystem(SUBSYSTEM, "OTHER", "M", 32, 1, 256, True)
    assert driver.response_to(PRESENT, TABLE).status == Status.OK
    seen = driver.target.subsystems[SUBSYSTEM]
    assert (seen.serial_number, seen.allow_any_host) == ("SERIAL", False)


@pytest.mark.parametrize("outcome", ["lost", "late"])
@pytest.mark.parametrize("method", ["nvmf_create_subsystem", ADD + "host", ADD + "ns", ADD + "listener"])
def test_a_present_of_unknown_outcome_is_read_back(method: str, outcome: str) -> None:
    driver = mapper()
    driver.target.add_table(TABLE, "vdisk3")
    driver.target.fault(method, outcome)
    assert driver.response_to(PRESENT, TABLE).status == Status.OK
    assert driver.target.subsystems[SUBSYSTEM].addresses == (LISTENER,)


def test_withdraw() -> None:
    driver = mapper()
    driver.target.add_table(TABLE, "vdisk3")
    driver.response_to(PRESENT, TABLE)
    assert driver.response_to(Withdraw(SUBSYSTEM)) == Done()
    assert not driver.target.subsystems
    assert driver.response_to(Withdraw(SUBSYSTEM)) == Done()


# --- allow-lists -----------------------------------------------------------------------------------------------------


def test_allow_host() -> None:
    driver = exporter()
    assert driver.response_to(AllowHost(EXPORT, AGENT)) == Done()
    assert driver.target.subsystems[EXPORT].hosts == {AGENT}
    assert driver.response_to(AllowHost(EXPORT, AGENT)) == Done(), "again is fine"


def test_allow_host_at_no_export() -> None:
    assert exporter().response_to(AllowHost("nqn.none", AGENT)).status == Status.NOT_FOUND


@pytest.mark.parametrize("outcome", ["lost", "late"])
def test_an_allow_of_unknown_outcome_is_read_back(outcome: str) -> None:
    driver = exporter()
    driver.target.fault(ADD + "host", outcome)
    assert driver.response_to(AllowHost(EXPORT, AGENT)) == Done()
    assert driver.target.subsystems[EXPORT].hosts == {AGENT}


def allowed_and_connected() -> Driver:
    driver = exporter()
    driver.response_to(AllowHost(EXPORT, AGENT))
    driver.target.queue_pairs[EXPORT] = [AGENT, AGENT, "nqn.other"]
    return driver


def test_deny_host_is_confirmed_by_what_is_left() -> None:
    driver = allowed_and_connected()
    assert driver.response_to(DenyHost(EXPORT, AGENT)) == Done()
    assert not driver.target.subsystems[EXPORT].hosts
    assert driver.target.methods[-2:] == ["nvmf_get_subsystems", QPAIRS], "looked at after the removal"


def test_a_host_that_keeps_a_queue_pair_is_not_fenced() -> None:
    driver = allowed_and_connected()
    driver.target.sticky_pairs = True
    began = driver.now
    made = driver.command(DenyHost(EXPORT, AGENT))
    assert not driver.responses(made + driver.advance(1.5))
    made = driver.advance(1.5)
    assert [response.status for response in driver.responses(made)] == [Status.NOT_FENCED]
    assert driver.now - began == 3_000_000_000


def test_a_queue_pair_that_goes_in_time_is_waited_for() -> None:
    driver = allowed_and_connected()
    driver.target.sticky_pairs = True
    driver.command(DenyHost(EXPORT, AGENT))
    driver.advance(1)
    driver.target.queue_pairs[EXPORT].clear()
    assert driver.responses(driver.advance(1)) == [Done()]


@pytest.mark.parametrize("method", [REMOVE + "host", QPAIRS, "nvmf_get_subsystems"])
@pytest.mark.parametrize("outcome", ["lost", "late", RpcError("it", -32603, "Internal error")])
def test_a_deny_of_unknown_outcome_is_looked_at_again(method: str, outcome: str | RpcError) -> None:
    driver = allowed_and_connected()
    driver.target.fault(method, outcome)
    assert driver.response_to(DenyHost(EXPORT, AGENT)) == Done()
    assert AGENT not in driver.target.queue_pairs[EXPORT]
    assert not driver.target.subsystems[EXPORT].hosts


def test_a_target_that_never_answers_confirms_nothing() -> None:
    driver = allowed_and_connected()
    driver.target.fault(QPAIRS, *["lost"] * 1000)
    assert driver.response_to(DenyHost(EXPORT, AGENT)).status == Status.NOT_FENCED


def test_an_export_that_lets_anybody_in_fences_nobody() -> None:
    driver = allowed_and_connected()
    driver.target.nvmf_create_subsystem("nqn.open", allow_any_host=True)
    assert driver.response_to(DenyHost("nqn.open", AGENT)) == Done()
    assert not driver.target.subsystems["nqn.open"].allow_any_host


def test_where_there_is_no_subsystem_there_is_no_queue_pair() -> None:
    assert exporter().response_to(DenyHost("nqn.none", AGENT)) == Done()


def test_commands_of_the_other_role_are_refused() -> None:
    assert mapper().response_to(DenyHost(EXPORT, AGENT)).status == Status.UNSUPPORTED
    assert exporter().response_to(CREATE, TABLE).status == Status.UNSUPPORTED
    assert exporter().response_to(ATTACH).status == Status.UNSUPPORTED


# --- order, ends and limits ------------------------------------------------------------------------------------------


def test_objects_do_not_wait_for_each_other() -> None:
    driver = mapper()
    driver.hold_calls = True
    driver.command(ATTACH)
    driver.command(CREATE, TABLE)
    assert {held.call.method for held in driver.held} == {"bdev_nvme_get_controllers", "bdev_segmap_get"}


def test_commands_of_one_object_are_in_order() -> None:
    driver = mapper()
    driver.hold_calls = True
    driver.command(ATTACH)
    driver.command(DetachContainer(4))
    assert len(driver.held) == 1, "the second has not begun"
    made = driver.finish_calls()
    assert [type(response) for response in driver.responses(made)] == [Attached, Done]
    assert not driver.target.controllers


def test_queued_commands_of_an_ended_session_are_dropped_and_the_running_one_ends() -> None:
    driver = mapper()
    driver.hold_calls = True
    driver.command(ATTACH)
    driver.command(DetachContainer(4))
    driver.step(e.SessionDown("gone"))
    made = driver.finish_calls()
    assert not driver.responses(made) and not driver.target.controllers
    assert driver.target.methods == ["bdev_nvme_get_controllers"], "the running one stopped at its next step"
    assert len(driver.core.work) == 0


def test_a_new_session_waits_for_what_an_old_one_has_in_flight() -> None:
    driver = mapper()
    driver.hold_calls = True
    driver.command(ATTACH)
    driver.step(e.SessionDown("gone"))
    driver.step(e.SessionUp())
    driver.welcome()
    driver.command(DetachContainer(4))
    assert len(driver.held) == 1
    made = driver.finish_calls()
    assert [type(response) for response in driver.responses(made)] == [Done]


def test_a_late_result_of_a_dead_target_is_ignored() -> None:
    driver = mapper()
    driver.hold_calls = True
    driver.command(ATTACH)
    (held,) = driver.held
    driver.step(e.TargetExited("killed"))
    assert driver.step(e.CallDone(held.token, PATH)) == []


def test_a_lost_data_plane_ends_what_waits_for_it() -> None:
    driver = mapper()
    driver.plane_answers = False
    driver.command(ATTACH)
    assert driver.asked and len(driver.core.work) == 1
    made = driver.step(e.DataPlaneDown("reset"))
    assert not driver.responses(made), "its session has ended, too"
    assert len(driver.core.work) == 0


def test_more_commands_than_the_limit_are_refused() -> None:
    driver = mapper()
    driver.hold_calls = True
    limit = driver.core.work.jobs_max
    for slot in range(limit):
        assert not driver.responses(driver.command(DetachContainer(slot % 4096)))
        driver.asked.clear()
    assert [one.status for one in driver.responses(driver.command(DetachContainer(1)))] == [Status.LIMIT]


def test_a_container_that_has_moved_is_attached_at_its_new_address_although_tables_list_its_slot() -> None:
    driver = mapper()
    driver.target.controllers["container4"] = PATH
    driver.plane_statuses[UnbindSlot] = Status.BUSY
    made = driver.command(replace(ATTACH, trsvcid="61001", flags=int(AttachFlags.ENDED)))
    assert driver.responses(made)[0].status == Status.OK
    assert driver.target.controllers["container4"] == replace(PATH, trsvcid="61001")
    *_, bind = of(e.SendDataPlane, made)
    assert isinstance(bind.message, BindSlot)
    assert (bind.message.slot, bind.message.flags) == (4, AttachFlags.ENDED), "the data plane is told what is over"


@pytest.mark.parametrize(
    ("status", "stays"), [(Status.LABEL_MISMATCH, False), (Status.OUT_OF_RANGE, False), (Status.IO_ERROR, True)]
)
def test_a_slot_in_use_does_not_keep_a_stranger_attached(status: Status, stays: bool) -> None:
    driver = mapper()
    driver.target.controllers["container4"] = PATH
    driver.plane_statuses |= {UnbindSlot: Status.BUSY, BindSlot: status}
    assert driver.response_to(replace(ATTACH, trsvcid="61001")).status == status
    assert bool(driver.target.controllers) is stays
