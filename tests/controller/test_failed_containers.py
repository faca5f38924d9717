"""A container that is given up: ERROR in truth and at agents, nothing allocated there; back as it was (design: 8)."""

from __future__ import annotations

from typing import Any

from channel import messages as m
from controller.core import effects as fx
from mapping.entry import (
    ERROR,
    INVALID_ENTRY,
    MAPPED,
    NO_WRITE,
    ZERO,
    ZERO_ENTRY,
    State,
    has_location,
    pack,
    slot_of,
    state_of,
)
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from tests.controller.rig import SEGMENT_SIZE, Rig, RigAgent

READ: dict[str, Any] = {"kind": FaultKind.READ, "entry": INVALID_ENTRY, "operation": Operation.READ}


def two_containers() -> tuple[Rig, RigAgent, dict[int, list[int]]]:
    """A vdisk with segments in two containers: the segments by slot."""
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.exporter("other", {"more": 1024})
    assert rig.ask("container.add", name="d", agent="other", export="more", contents="zeroed")["state"] == "ready"
    for segment in range(0, 256, 3):
        agent.fault(segment)
    where: dict[int, list[int]] = {}
    for segment in range(256):
        entry = rig.vdisk.entry(segment)
        if has_location(entry):
            where.setdefault(slot_of(entry), []).append(segment)
    assert sorted(where) == [0, 1]
    agent.otherwise = INVALID_ENTRY
    return rig, agent, where


def findings(rig: Rig) -> list[str]:
    run = rig.ask("cluster.check")["run"]
    for _ in range(200):
        rig.advance(0.2)
        row = rig.ask("cluster.check", run=run)
        if row["state"] == "done":
            return [item["text"] for item in row["findings"] if item["severity"] == "error"]
    raise AssertionError("the check does not end")


def test_what_lies_in_a_container_is_found_by_its_whole_slot() -> None:
    rig = Rig()
    rig.disk_at("a", size=3 << 12)
    image, cluster = rig.core.cluster.image, rig.core.cluster
    slots = (0, 1, 15, 16, 17, 0x0FF, 0x10F, 0xF01, 0xFFF)
    flags = (MAPPED, MAPPED | NO_WRITE, MAPPED | ERROR, MAPPED | ZERO)
    entries = [pack(slot, 5, flag) for slot in slots for flag in flags] * 3
    places = [4090 + index for index in range(len(entries))]
    for segment, entry in zip(places, entries, strict=True):
        image.set_entry(1, segment, entry)
    for slot in (*slots, 2, 0x100):
        found = [start + index for start, count in cluster.failures.uses(rig.vdisk, slot) for index in range(count)]
        expected = [
            segment
            for segment, entry in zip(places, entries, strict=True)
            if has_location(entry) and slot_of(entry) == slot
        ]
        assert found == expected


def test_what_lies_in_it_reads_as_errors_and_the_rest_goes_on() -> None:
    rig, agent, where = two_containers()
    result = rig.ask("container.fail", name="d")
    assert (result["state"], result["vdisks"]) == ("failed", [{"vdisk": "v", "segments": len(where[1])}])
    lost, kept = where[1][0], where[0][0]
    forgotten = agent.ordered(m.SetEntries)
    assert forgotten and all(list(message.entries) == [INVALID_ENTRY] for message in forgotten)
    covered = {message.start + index for message in forgotten for index in range(message.count)}
    assert covered == set(where[1]), "agents are told to forget what lies in it, and no more"
    for kind in (READ, {}):
        agent.fault(lost, **kind)
        assert state_of(agent.last_answer()[1][0]) is State.ERROR
        agent.fault(kept, **kind)
        assert has_location(agent.last_answer()[1][0])
    states = {row["state"] for row in rig.ask("vdisk.map", name="v")["runs"] if row["start"] in where[1]}
    assert states == {"error"}
    assert rig.ask("vdisk.explain", name="v", offset=lost * SEGMENT_SIZE)["state"] == "error"
    assert [alarm["kind"] for alarm in rig.ask("cluster.status")["alarms"]] == ["container"]


def test_nothing_is_allocated_there_until_it_is_restored_as_it_was() -> None:
    rig, agent, where = two_containers()
    truth = {segment: rig.vdisk.recorded(segment) for segment in where[1]}
    rig.ask("container.fail", name="d")
    for segment in range(1, 256, 3):
        agent.fault(segment)
        assert slot_of(agent.last_answer()[1][0]) == 0
    rig.restart()
    agent.hello([(agent.table(), 1)])
    for name in ("store", "other"):
        rig.agents[name].hello()
    agent.say(m.LeaseRenew(2))
    assert rig.ask("container.show", name="d")["state"] == "failed"
    assert state_of(rig.vdisk.entry(where[1][0])) is State.ERROR, "also for the next controller"
    assert [alarm["kind"] for alarm in rig.ask("cluster.status")["alarms"]] == ["container"]
    assert rig.ask("container.restore", name="d")["state"] == "ready"
    assert {segment: rig.vdisk.entry(segment) for segment in where[1]} == truth
    assert not rig.ask("cluster.status")["alarms"]
    agent.fault(where[1][0], kind=FaultKind.WRITE, entry=MAPPED | ERROR, operation=Operation.WRITE)
    assert agent.last_answer()[1][0] == truth[where[1][0]]
    agent.auto = True
    for segment in range(2, 256, 3):
        agent.fault(segment)
    assert 1 in {slot_of(rig.vdisk.entry(segment)) for segment in range(2, 256, 3)}
    assert not findings(rig)


def test_a_failed_container_is_in_order_for_check() -> None:
    rig, agent, where = two_containers()
    agent.holds = {segment: rig.vdisk.entry(segment) for segments in where.values() for segment in segments}
    rig.ask("container.fail", name="d")
    for segment in where[1]:
        agent.holds[segment] = INVALID_ENTRY
    agent.fault(where[1][0], **READ)
    agent.holds[where[1][0]] = rig.vdisk.entry(where[1][0])
    assert not findings(rig)


def test_only_disks_that_use_it_keep_it_in_their_list() -> None:
    rig, agent, _ = two_containers()
    rig.ask("container.fail", name="d")
    rig.ask("vdisk.create", name="w", size_bytes=1 << 24)
    rig.ask("vdisk.present", name="w", agents=["a"], any_host=True)
    created = agent.ordered(m.CreateTable)[-1]
    assert (created.name, list(created.slots)) == ("w", [0])
    assert agent.ordered(m.TableSlots)[-1].slots == [0, 1], "the flushes of v fail: they may have lost something"
    rig.ask("container.restore", name="d")
    assert agent.ordered(m.TableSlots)[-1].slots == [0, 1]


def test_a_disk_with_segments_there_can_be_deleted_and_what_is_freed_is_zeroed_later() -> None:
    rig, _, where = two_containers()
    rig.ask("container.fail", name="d")
    freed = rig.ask("vdisk.delete", name="v", force=True)["freed_segments"]
    assert freed == sum(map(len, where.values()))
    states = rig.ask("container.show", name="d")["segments"]
    assert states["free"] >= len(where[1]) and states["mapped"] == 0
    rig.ask("container.restore", name="d")
    assert not findings(rig)


def test_a_change_under_way_as_it_fails_is_swept_afterwards() -> None:
    rig, agent, _ = two_containers()
    rig.hold_commits = True
    agent.fault(250)
    rig.ask("container.fail", name="d")
    rig.hold_commits = False
    rig.commit()
    rig.commit()
    count = len(agent.ordered(m.SetEntries))
    rig.advance(3)
    assert len(agent.ordered(m.SetEntries)) > count
    assert rig.vdisk.recorded(250) != ZERO_ENTRY and not findings(rig)


def test_reclaiming_frees_what_is_recorded() -> None:
    rig, agent, where = two_containers()
    segment = where[1][0]
    rig.hold_commits = True
    agent.auto = False
    entry = rig.vdisk.entry(segment)
    blocks = SEGMENT_SIZE // 512
    unmap: dict[str, Any] = {"kind": FaultKind.RECLAIM, "entry": entry, "operation": Operation.UNMAP, "length": blocks}
    agent.fault(segment, **unmap)
    rig.ask("container.fail", name="d")
    rig.hold_commits = False
    rig.commit()
    agent.fault(segment, **{**unmap, "kind": FaultKind.WRITE, "entry": INVALID_ENTRY})
    agent.auto = True
    while agent.asked:
        agent.respond()
    rig.advance(3)
    assert rig.vdisk.recorded(segment) == ZERO_ENTRY
    rig.ask("container.restore", name="d")
    assert not findings(rig)


def test_one_that_is_being_added_or_is_not_there_is_refused() -> None:
    rig = Rig()
    rig.exporter(exports={"disk": 64})
    agent = rig.agent("a")
    agent.refusing[m.AttachContainer] = Status.BUSY
    rig.ask("container.add", name="c", agent="store", export="disk", contents="zeroed")
    assert rig.ask("container.fail", name="c").code == "busy"
    missing = rig.ask("container.fail", name="nothing")
    assert isinstance(missing, fx.RefuseOperation) and missing.code == "not_found"
    assert rig.ask("container.restore", name="c")["state"] == "adding"
