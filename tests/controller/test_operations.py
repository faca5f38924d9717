"""What operators ask: results, refusals, request ids, the life of containers and vdisks, and what waits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from channel import messages as m
from channel.values import ParkedRecord
from controller.api.operations import BY_NAME, SHELL_OPERATIONS
from controller.config import ConfigError, ControllerConfig, Limits
from controller.core import effects as fx
from controller.core.operations import OPERATIONS
from mapping.entry import NO_WRITE, ZERO_ENTRY
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from tests.controller.rig import SEGMENT_SIZE, Rig


def code(result: Any) -> str:
    assert isinstance(result, fx.RefuseOperation), result
    return result.code


def result_of(rig: Rig) -> Any:
    return rig.replies[rig.tokens]


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "args", "expected"),
    [
        ("vdisk.polish", {}, "unknown_operation"),
        ("vdisk.show", {}, "bad_argument"),
        ("vdisk.show", {"name": 5}, "bad_argument"),
        ("vdisk.show", {"name": "x", "colour": "red"}, "bad_argument"),
        ("vdisk.show", {"name": "x"}, "not_found"),
        ("vdisk.create", {"name": "", "size_bytes": 1}, "bad_argument"),
        ("vdisk.create", {"name": "x", "size_bytes": 0}, "bad_argument"),
        ("vdisk.create", {"name": "x", "size_bytes": True}, "bad_argument"),
        ("vdisk.create", {"name": "x", "size_bytes": 1, "thick": True}, "bad_argument"),
        ("vdisk.create", {"name": "x", "size_bytes": 1, "block_size": 1024}, "bad_argument"),
        ("vdisk.create", {"name": "x", "size_bytes": 1, "segment_size": 512}, "bad_argument"),
        ("vdisk.create", {"name": "x", "size_bytes": 1, "containers": ["none"]}, "not_found"),
        ("vdisk.create", {"name": "x", "size_bytes": 1, "containers": [1]}, "bad_argument"),
        ("vdisk.create", {"name": "v", "size_bytes": 1}, "exists"),
        ("vdisk.create", {"name": "x", "size_bytes": 1 << 62}, "bad_argument"),
        ("vdisk.present", {"name": "v", "agents": []}, "bad_argument"),
        ("vdisk.present", {"name": "v", "agents": ["store"]}, "bad_argument"),
        ("vdisk.present", {"name": "v", "agents": ["a"], "hosts": ["x" * 224]}, "bad_argument"),
        ("vdisk.present", {"name": "v", "agents": ["a"], "read_only": True}, "exists"),
        ("vdisk.map", {"name": "v", "start": 256}, "bad_argument"),
        ("vdisk.explain", {"name": "v", "offset": 256 << 20}, "bad_argument"),
        ("vdisk.delete", {"name": "v"}, "busy"),
        ("agent.show", {"agent": "z"}, "not_found"),
        ("agent.entries", {"agent": "a", "vdisk": "v", "count": 65537}, "refused-or-cut"),
        ("agent.entries", {"agent": "store", "vdisk": "v"}, "not_found"),
        ("container.add", {"name": "d", "agent": "store", "export": "none"}, "not_found"),
        ("container.add", {"name": "c", "agent": "store", "export": "disk"}, "exists"),
        ("container.add", {"name": "d", "agent": "store", "export": "disk"}, "exists"),
        ("container.add", {"name": "d", "agent": "a", "export": "disk"}, "unavailable"),
        ("container.add", {"name": "d", "agent": "store", "export": "disk", "contents": "odd"}, "bad_argument"),
        ("container.show", {"name": "d"}, "not_found"),
    ],
)
def test_what_is_refused(operation: str, args: dict[str, Any], expected: str) -> None:
    rig = Rig()
    rig.disk_at("a")
    result = rig.ask(operation, **args)
    if expected == "refused-or-cut":
        assert len(result["entries"]) == 256, "cut to the vdisk's size"
    else:
        assert code(result) == expected


def test_a_request_id_has_a_form_and_one_meaning() -> None:
    rig = Rig()
    assert code(rig.ask("vdisk.create", "a b", name="v", size_bytes=1)) == "bad_argument"
    assert code(rig.ask("vdisk.create", "x" * 65, name="v", size_bytes=1)) == "bad_argument"
    first = rig.ask("vdisk.create", "x" * 64, name="v", size_bytes=1)
    assert rig.ask("vdisk.create", "x" * 64, name="v", size_bytes=1) == first
    assert code(rig.ask("vdisk.create", "x" * 64, name="w", size_bytes=1)) == "bad_argument"
    assert code(rig.ask("vdisk.delete", "x" * 64, name="v")) == "bad_argument"
    rig.restart()
    assert rig.ask("vdisk.create", "x" * 64, name="v", size_bytes=1) == first
    assert len(rig.ask("vdisk.list")["vdisks"]) == 1


def test_a_repeated_request_joins_the_one_that_runs() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.auto = False
    assert rig.ask("vdisk.withdraw", "r", name="v") is None
    assert rig.ask("vdisk.withdraw", "r", name="v") is None
    agent.respond(which=m.Withdraw)
    agent.respond(which=m.DeleteTable)
    assert rig.replies[rig.tokens] == rig.replies[rig.tokens - 1] == {"name": "v", "presentations": []}
    assert len(agent.ordered(m.Withdraw)) == 1


def test_request_ids_are_kept_up_to_a_limit() -> None:
    rig = Rig(limits=Limits(requests_kept=2))
    for number in range(3):
        rig.ask("vdisk.create", f"r{number}", name=f"v{number}", size_bytes=1)
    assert set(rig.store.load().objects["request"]) == {"r1", "r2"}
    assert code(rig.ask("vdisk.create", "r0", name="v0", size_bytes=1)) == "exists"


def test_operations_that_wait_are_bounded() -> None:
    rig = Rig(limits=Limits(operations_waiting=2))
    (agent,) = rig.disk_at("a")
    agent.auto = False
    rig.ask("vdisk.withdraw", name="v")
    rig.ask("vdisk.withdraw", name="v")
    assert code(rig.ask("vdisk.list")) == "limit"


def test_nothing_is_replied_before_it_is_durable() -> None:
    rig = Rig()
    rig.hold_commits = True
    assert rig.ask("vdisk.create", "r", name="v", size_bytes=1) is None
    rig.restart()
    assert rig.ask("vdisk.list") == {"vdisks": []}


# --- containers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected"), [(Status.FOREIGN_DATA, "foreign_data"), (Status.LABEL_MISMATCH, "foreign_data")]
)
def test_foreign_data_is_refused_and_forced(status: Status, expected: str) -> None:
    rig = Rig()
    rig.exporter()
    agent = rig.agent("a")
    agent.refusing[m.AttachContainer] = status
    assert code(rig.ask("container.add", name="c", agent="store", export="disk")) == expected
    assert rig.ask("container.list") == {"containers": []}
    agent.refusing.clear()
    lie = rig.ask("container.add", name="c", agent="store", export="disk", force=True, contents="zeroed")
    assert code(lie) == "bad_argument", "another tenant's data would be read"
    assert rig.ask("container.add", name="c", agent="store", export="disk", force=True)["state"] == "ready"
    assert [command.flags for command in agent.ordered(m.AttachContainer)] == [1, 3]


def test_a_container_without_an_agent_to_label_it() -> None:
    rig = Rig()
    rig.exporter()
    assert code(rig.ask("container.add", name="c", agent="store", export="disk")) == "unavailable"


def test_adding_goes_on_where_it_was_cut_short() -> None:
    rig = Rig()
    store = rig.exporter()
    agent = rig.agent("a")
    agent.auto = False
    assert rig.ask("container.add", "r", name="c", agent="store", export="disk") is None
    assert rig.ask("container.show", name="c")["state"] == "adding"
    rig.restart()
    store.hello()
    rig.announce(store, {"disk": 1024})
    agent.auto = True
    agent.hello()
    added = rig.ask("container.add", "r", name="c", agent="store", export="disk")
    assert (added["state"], added["slot"]) == ("ready", 0)


def test_adding_that_takes_too_long_says_what_is_missing() -> None:
    rig = Rig()
    store = rig.exporter()
    rig.agent("a")
    store.auto = False
    rig.ask("container.add", name="c", agent="store", export="disk")
    rig.advance(31)
    assert code(result_of(rig)) == "timeout"
    assert "exporter store" in result_of(rig).text


def test_a_later_container_reaches_the_tables() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.announce(rig.agents["store"], {"disk": 1024, "more": 64})
    rig.ask("container.add", name="d", agent="store", export="more", contents="zeroed")
    assert list(agent.ordered(m.TableSlots)[-1].slots) == [0, 1]


# --- vdisks ----------------------------------------------------------------------------------------------------------


def test_a_vdisk_is_as_large_as_asked_in_whole_segments() -> None:
    rig = Rig()
    vdisk = rig.ask("vdisk.create", name="v", size_bytes=SEGMENT_SIZE + 1)
    assert (vdisk["segment_count"], vdisk["size_bytes"]) == (2, 2 * SEGMENT_SIZE)


def test_one_identity_and_disjoint_controller_ids_at_all_agents() -> None:
    rig = Rig()
    one, two = rig.disk_at("a", "b")
    first, second = one.ordered(m.Present)[0], two.ordered(m.Present)[0]
    assert (first.subnqn, first.nsid, first.vdisk, first.serial) == (
        second.subnqn,
        second.nsid,
        second.vdisk,
        second.serial,
    )
    assert first.cntlid_max < second.cntlid_min or second.cntlid_max < first.cntlid_min


def test_presenting_again_changes_nothing_and_other_hosts_replace() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.ask("vdisk.present", name="v", agents=["a"], any_host=True)
    assert len(agent.ordered(m.Present)) == 1
    host = "nqn.2026-11.example:host"
    rig.ask("vdisk.present", name="v", agents=["a"], hosts=[host])
    assert [command.hosts for command in agent.ordered(m.Present)] == ["", host]
    assert len(agent.ordered(m.Withdraw)) == 1


@pytest.mark.parametrize(
    "host",
    ["", "x", "nqn.host", "nqn.2014-08.org.nvmexpress:uuid:x", "nqn.2026-11.a:b\nc", "nqn.2026-11.a:" + "x" * 300],
)
def test_what_is_no_hosts_nqn_is_refused_before_an_agent_hears_of_it(host: str) -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    refused = rig.ask("vdisk.present", name="v", agents=["a"], hosts=[host])
    assert (refused.code, "no NQN" in refused.text) == ("bad_argument", True)
    assert len(agent.ordered(m.Present)) == 1


def test_presenting_at_an_absent_agent_is_pending_until_it_comes() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.ask("vdisk.create", name="w", size_bytes=1)
    agent.drop()
    shown = rig.ask("vdisk.present", name="w", agents=["a"])
    assert shown["presentations"][0]["state"] == "pending"
    agent.hello([(agent.table(), 0)])
    assert rig.ask("vdisk.show", name="w")["presentations"][0]["state"] == "presented"


def test_a_restarted_controller_brings_up_what_is_recorded() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.restart()
    rig.agents["store"].hello()
    agent.refusing = dict.fromkeys((m.AttachContainer, m.CreateTable, m.Present), Status.EXISTS)
    agent.hello([(agent.table(), 3)])
    assert rig.ask("vdisk.show", name="v")["presentations"][0]["state"] == "presented"
    agent.fault(5)
    assert agent.answers[-1][0].sequence == 4


def test_withdraw_waits_for_the_table_to_be_gone() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.auto = False
    rig.ask("vdisk.withdraw", name="v")
    agent.respond(which=m.Withdraw)
    assert rig.ask("vdisk.show", name="v")["presentations"][0]["state"] == "withdrawing"
    agent.respond(which=m.DeleteTable)
    assert rig.ask("vdisk.show", name="v")["presentations"] == []
    assert "1:2" not in rig.store.load().objects.get("presentation", {})


def test_delete_frees_what_was_allocated_after_the_tables_are_gone() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    for segment in (3, 77, 200):
        agent.fault(segment)
    agent.auto = False
    assert rig.ask("vdisk.delete", name="v", force=True) is None
    agent.respond(which=m.Withdraw)
    assert rig.ask("container.show", name="c")["segments"]["mapped"] == 3
    agent.respond(which=m.DeleteTable)
    assert {"name": "v", "freed_segments": 3} in rig.replies.values()
    segments = rig.ask("container.show", name="c")["segments"]
    assert (segments["mapped"], segments["free"]) == (0, 3)
    assert rig.store.load().objects.get("vdisk", {}) == {}


def test_deleting_goes_on_after_a_restart() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.fault(3)
    agent.auto = False
    rig.ask("vdisk.delete", name="v", force=True)
    rig.restart()
    rig.agents["store"].hello()
    agent.auto = True
    agent.hello([(agent.table(), 1)])
    assert rig.ask("vdisk.list") == {"vdisks": []}
    assert rig.ask("container.show", name="c")["segments"]["free"] == 1


def test_deleting_at_a_fenced_agent_goes_on_after_a_restart() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.drop()
    rig.ask("agent.fence", agent="a")
    rig.advance(30)
    rig.hold_commits = True
    rig.ask("vdisk.delete", name="v", force=True)
    for _ in ("deleting", "withdrawing"):
        held, rig.held = rig.held, []
        for effect in held:
            rig.store.commit([effect.batch], rig.store.term)
            rig.step(fx.BatchCommitted(effect.token))
    rig.hold_commits = False
    rig.restart()
    assert rig.ask("vdisk.list") == {"vdisks": []}


def test_a_table_that_nobody_wants_is_deleted_when_its_agent_comes_back() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.drop()
    agent.hello([(agent.table(), 0), (agent.table(9), 0)])
    assert len(agent.ordered(m.DeleteTable)) == 1


def test_a_read_only_presentation_never_writes() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.fault(5)
    rig.agent("b")
    rig.ask("vdisk.present", name="v", agents=["b"], read_only=True)
    reader = rig.agents["b"]
    assert reader.ordered(m.CreateTable)[0].table_flags & 1
    reader.fault(5, FaultKind.READ, 0, operation=Operation.READ)
    assert reader.last_answer()[1][0] == rig.vdisk.entry(5) | NO_WRITE
    reader.fault(6, FaultKind.WRITE, ZERO_ENTRY)
    assert reader.last_answer()[0][4] == Status.WRITE_PROTECTED


# --- looking ---------------------------------------------------------------------------------------------------------


def test_the_map_is_drawn_in_runs() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a", size=10_000)
    for segment in (5000, 5001, 5002, 7000):
        agent.fault(segment)
    runs = rig.ask("vdisk.map", name="v")["runs"]
    assert [(run["start"], run["count"], run["state"]) for run in runs] == [
        (0, 5000, "zero"),
        (5000, 5, "mapped"),
        (5005, 1995, "zero"),
        (7000, 1, "mapped"),
        (7001, 2999, "zero"),
    ]
    part = rig.ask("vdisk.map", name="v", start=5001, count=2)
    assert [(run["start"], run["count"], run["segment"]) for run in part["runs"]] == [(5001, 2, runs[1]["segment"] + 1)]


def test_the_map_is_cut_at_its_limit() -> None:
    rig = Rig(limits=Limits(map_runs=2, zeroed_pool_segments=0))
    (agent,) = rig.disk_at("a")
    agent.fault(5)
    shown = rig.ask("vdisk.map", name="v")
    assert (len(shown["runs"]), shown["truncated"], shown["count"]) == (2, True, 6)


def test_explain_goes_from_a_virtual_byte_to_a_container_byte() -> None:
    rig = Rig()
    one, two = rig.disk_at("a", "b")
    one.fault(5)
    shown = rig.ask("vdisk.explain", name="v", offset=5 * SEGMENT_SIZE + 17)
    physical = rig.vdisk.entry(5) >> 16
    assert (shown["segment"], shown["offset_in_segment"], shown["container"]) == (5, 17, "c")
    assert shown["container_offset"] == physical * SEGMENT_SIZE + 17
    assert {item["agent"]: item["holds"] for item in shown["holders"]} == {"a": "unknown", "b": "no"}
    two.drop()


def test_entries_are_asked_of_the_agent() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    shown = rig.ask("agent.entries", agent="a", vdisk="v", start=250, count=64)
    assert [row["segment"] for row in shown["entries"]] == [250, 251, 252, 253, 254, 255]
    agent.refusing[m.GetEntries] = Status.NO_TABLE
    assert code(rig.ask("agent.entries", agent="a", vdisk="v")) == "refused"
    agent.drop()
    assert code(rig.ask("agent.entries", agent="a", vdisk="v")) == "unavailable"


def test_parked_io_says_why() -> None:
    rig = Rig()
    one, two = rig.disk_at("a", "b")
    two.fault(5, FaultKind.READ, 0, operation=Operation.READ)
    two.auto = one.auto = False
    one.fault(5)
    two.drop()
    assert rig.ask("io.parked") is None
    parked = [ParkedRecord(one.table(), 5, 2_000_000_000, 3, 1, int(FaultKind.WRITE), 2)]
    one.respond(m.ParkedRead(Status.OK, "", parked), m.GetParked)
    (row,) = result_of(rig)["parked"]
    assert (row["vdisk"], row["segment"], row["operation"], row["count"], row["since_s"]) == ("v", 5, "write", 3, 2.0)
    assert "waiting for agent b" in row["why"]


def test_every_reading_operation_answers_json() -> None:
    rig = Rig()
    rig.disk_at("a")
    for name, args in {
        "cluster.status": {},
        "container.list": {},
        "vdisk.list": {},
        "agent.list": {},
        "agent.show": {"agent": "a"},
        "events.list": {"limit": 3},
        "io.parked": {},
    }.items():
        assert json.loads(json.dumps(rig.ask(name, **args))) == result_of(rig)
    assert len(rig.ask("events.list", limit=2)["events"]) == 2


def test_the_table_of_operations_is_complete() -> None:
    assert set(OPERATIONS) | SHELL_OPERATIONS == set(BY_NAME)
    for name, spec in OPERATIONS.items():
        assert BY_NAME[name].mutating == spec.mutating


@pytest.mark.parametrize(
    "wrong",
    [
        {"renew_interval_s": 5.0},
        {"space_deadline_s": 30.0},
        {"drift": 0.5},
        {"block_size": 1000},
        {"segment_size": 1000},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, Any], tmp_path: Any) -> None:
    with pytest.raises(ConfigError):
        ControllerConfig(tmp_path, tmp_path, tmp_path, tmp_path, **wrong)


def test_while_the_store_is_full_what_has_to_be_durable_shares_one_commit() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    store = rig.agents["store"]
    rig.hold_commits = True
    rig.ask("vdisk.create", name="w", size_bytes=1 << 20)
    rig.step(fx.StoreSpaceChanged("no space"))
    nqn = "nqn.2026-11.io.segmap:container:disk"
    for port in range(1000, 1100):
        store.say(m.Export(1, 512, 1 << 21, bytes(16), True, "disk", "127.0.0.1", str(port), "TCP", nqn))
        agent.machine = port.to_bytes(16, "little")
        agent.hello([(agent.table(), 1)])
        agent.say(m.LeaseRenew(1))
    assert len(rig.held) == 1 and agent.grants
    rig.step(fx.StoreSpaceChanged(""))
    assert len(rig.held) == 2, "what was held back goes as one batch"
    rig.hold_commits = False
    rig.commit()
    records = rig.store.load().objects
    assert records["container"]["0"]["trsvcid"] == "1099"  # type: ignore[index,call-overload]
    assert records["agent"][str(agent.number)]["machine"] == agent.machine.hex()  # type: ignore[index,call-overload]


def test_hints_name_what_can_be_typed() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    busy = rig.ask("vdisk.delete", name="v")
    assert (busy.code, busy.hint) == ("busy", "`segmap vdisk withdraw v` first, or delete it with --force")
    agent.refusing[m.AttachContainer] = Status.FOREIGN_DATA
    rig.announce(rig.agent("other", 2), {"spare": 64})
    foreign = rig.ask("container.add", name="c2", agent="other", export="spare")
    assert (foreign.code, "--force" in foreign.hint) == ("foreign_data", True)
