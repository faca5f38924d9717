"""What happens while something else is on its way to the store, or between two slices of a check (design: 1, 6-8)."""

from __future__ import annotations

from typing import Any

from channel import messages as m
from channel.values import AttachFlags
from controller.config import Limits
from controller.core import effects as fx
from controller.core.agents import Standing, host_nqn
from mapping.entry import INVALID_ENTRY, State, has_location, state_of
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from tests.controller.rig import SEGMENT_SIZE, Rig, RigAgent

NQN = "nqn.2026-11.io.segmap:container:disk"


def export(exporter: RigAgent, port: str) -> None:
    exporter.say(m.Export(1, 512, 1024 * SEGMENT_SIZE // 512, bytes(16), True, "disk", "127.0.0.1", port, "TCP", NQN))


def restarted(rig: Rig, exporter: RigAgent, instance: bytes, machine: bytes = b"") -> None:
    """Another process of the exporter."""
    exporter.drop()
    exporter.instance = instance.ljust(16, b"!")
    exporter.machine = machine.ljust(16, b"!") if machine else exporter.machine
    rig.advance(20)
    exporter.hello()
    rig.advance(20)


def committed(rig: Rig) -> None:
    while rig.held:
        rig.commit()
    rig.hold_commits = False


# --- records ---------------------------------------------------------------------------------------------------------


def test_an_agent_that_is_drained_while_it_is_admitted_keeps_its_new_incarnation() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.drop()
    agent.instance = b"another instance"
    rig.ask("agent.fence", agent="a", wait_s=0)
    rig.advance(60)
    assert rig.core.cluster.agents_by_name["a"].standing is Standing.FENCED
    rig.hold_commits = True
    agent.hello()
    rig.ask("agent.drain", agent="a", wait_s=0)
    rig.commit()
    admitted = agent.incarnation
    assert agent.welcome.status is Status.OK and rig.held, "the crash comes before it is recorded as drained"
    rig.hold_commits = False
    rig.restart()
    known = rig.core.cluster.agents_by_name["a"]
    assert (known.incarnation, known.standing, known.draining) == (admitted, Standing.ALIVE, True)


def test_a_container_that_moves_while_it_becomes_ready_stays_ready() -> None:
    rig = Rig()
    exporter = rig.exporter()
    agent = rig.agent("a")
    agent.say(m.LeaseRenew(1))
    agent.auto = False
    rig.ask("container.add", name="c", agent="store", export="disk", contents="zeroed")
    rig.hold_commits = True
    agent.respond(which=m.AttachContainer)
    export(exporter, "4421")
    committed(rig)
    rig.restart()
    (container,) = rig.core.cluster.containers.values()
    assert (container.ready, container.trsvcid) == (True, "4421")


def test_a_container_that_moves_while_it_is_failed_stays_failed() -> None:
    rig = Rig()
    rig.disk_at("a")
    rig.hold_commits = True
    rig.ask("container.fail", name="c")
    export(rig.agents["store"], "4421")
    committed(rig)
    rig.restart()
    (container,) = rig.core.cluster.containers.values()
    assert (container.failed, container.trsvcid) == (True, "4421")
    rig.hold_commits = True
    rig.ask("container.restore", name="c")
    rig.agents["store"].hello()
    export(rig.agents["store"], "4422")
    committed(rig)
    rig.restart()
    (container,) = rig.core.cluster.containers.values()
    assert (container.failed, container.trsvcid) == (False, "4422")


def test_an_agent_that_is_back_before_the_word_that_it_is_dead_is_durable_is_asked() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    store = rig.agents["store"]
    store.drop()
    rig.hold_commits = True
    rig.ask("agent.confirm_dead", agent="store", confirm="store", wait_s=0)
    store.hello()
    committed(rig)
    assert not rig.core.cluster.agents_by_name["store"].vouched
    agent.drop()
    rig.ask("agent.fence", agent="a", wait_s=0)
    rig.advance(60)
    assert [order.hostnqn for order in store.ordered(m.DenyHost)] == [host_nqn("a", agent.incarnation)]
    rig.restart()
    assert not rig.core.cluster.agents_by_name["store"].vouched


def test_an_agent_that_is_back_before_its_removal_is_durable_is_a_new_one() -> None:
    rig = Rig()
    rig.disk_at("a")
    other = rig.exporter("other", {"more": 1024})
    other.drop()
    rig.hold_commits = True
    rig.ask("agent.remove", agent="other")
    other.hello()
    committed(rig)
    assert other.welcome.status is Status.OK
    rig.announce(other, {"more": 1024})
    assert rig.ask("container.add", name="d", agent="other", export="more", contents="zeroed")["state"] == "ready"
    rig.restart()
    containers = rig.core.cluster.containers.values()
    exporters = {one.name: rig.core.cluster.agents[one.exporter].name for one in containers}
    assert exporters == {"c": "store", "d": "other"}


# --- places ----------------------------------------------------------------------------------------------------------


def test_a_process_that_came_at_the_same_address_is_not_over_when_it_exports_elsewhere() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    store = rig.agents["store"]
    restarted(rig, store, b"second")
    export(store, "4420")
    export(store, "4421")
    order = agent.ordered(m.AttachContainer)[-1]
    assert (order.trsvcid, order.flags) == ("4421", 0), "the data plane may have connected to it anew at 4420"
    restarted(rig, store, b"third")
    export(store, "4422")
    order = agent.ordered(m.AttachContainer)[-1]
    assert (order.trsvcid, order.flags) == ("4422", AttachFlags.ENDED)


def test_a_process_of_another_machine_at_the_first_address_is_not_forgotten() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    store = rig.agents["store"]
    agent.refusing[m.AttachContainer] = Status.IO_ERROR
    restarted(rig, store, b"second", b"elsewhere")
    export(store, "4421")
    store.auto = False
    restarted(rig, store, b"third")
    export(store, "4420")
    store.respond(which=m.AllowHost)
    rig.advance(5)
    order = agent.ordered(m.AttachContainer)[-1]
    assert (order.trsvcid, order.flags) == ("4420", 0), "what was sent to the first process may still be done"


# --- others ----------------------------------------------------------------------------------------------------------


def test_a_container_that_fails_behind_a_barrier_is_answered_with_errors() -> None:
    rig = Rig()
    first, second = rig.disk_at("a", "b")
    read: dict[str, Any] = {"kind": FaultKind.READ, "entry": INVALID_ENTRY, "operation": Operation.READ}
    second.fault(7, **read)
    second.auto = False
    first.fault(7)
    assert has_location(rig.vdisk.entry(7)), "committed; the other agent has to give up ZERO first"
    rig.ask("container.fail", name="c")
    rig.advance(5)
    second.respond(which=m.SetEntries)
    assert state_of(first.last_answer()[1][0]) is State.ERROR


def test_a_container_that_fails_between_two_slices_of_a_check() -> None:
    rig = Rig()
    rig.disk_at("a")
    rig.exporter("other", {"more": 1024})
    rig.ask("container.add", name="d", agent="other", export="more", contents="zeroed")
    for pause in range(60):
        run = rig.ask("cluster.check")["run"]
        for _ in range(pause):
            rig.now_ns = max(rig.now_ns, rig.core.next_deadline() or 0)
            rig.step(fx.TimePassed())
        rig.ask("container.fail", name="d")
        rig.advance(2)
        assert rig.ask("cluster.check", run=run)["state"] == "done"
        rig.ask("container.restore", name="d")
        rig.advance(2)


def test_an_agent_that_is_drained_over_a_restart_ends_its_zeroing_first() -> None:
    rig = Rig(limits=Limits(zeroed_pool_segments=0, zero_batch_segments=8))
    rig.exporter(exports={"disk": 64})
    agent = rig.agent("a")
    agent.say(m.LeaseRenew(1))
    rig.ask("container.add", name="c", agent="store", export="disk", contents="unknown")
    agent.auto = False
    rig.core.cluster.limits = Limits(zeroed_pool_segments=16, zero_batch_segments=8)
    rig.core.cluster.zeroing.taken()
    rig.advance(0)
    assert len(agent.ordered(m.ZeroSegments)) == 1
    rig.ask("agent.drain", agent="a", wait_s=0)
    rig.restart()
    agent.auto = True
    rig.agents["store"].hello()
    agent.hello()
    agent.say(m.LeaseRenew(2))
    rig.advance(10)
    agent.say(m.LeaseRenew(3))
    rig.advance(10)
    assert rig.core.cluster.agents_by_name["a"].drained, rig.ask("agent.drain", agent="a", wait_s=0)["waiting_for"]
    assert type(agent.commands[-1]) is m.DetachContainer


def test_a_vdisk_is_withdrawn_from_a_drained_agent_that_is_connected() -> None:
    rig = Rig()
    rig.disk_at("a", "b")
    rig.ask("agent.drain", agent="a")
    assert rig.ask("vdisk.withdraw", name="v", agents=["a"]) is not None
    assert [row["agent"] for row in rig.ask("vdisk.show", name="v")["presentations"]] == ["b"]
    rig.ask("agent.drain", agent="b")
    assert rig.ask("vdisk.delete", name="v", force=True) == {"name": "v", "freed_segments": 0}


def test_a_vdisk_is_withdrawn_from_an_agent_that_is_being_drained() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    agent.auto = False
    rig.ask("agent.drain", agent="a", wait_s=0)
    rig.ask("vdisk.withdraw", name="v")
    while agent.asked:
        agent.respond()
    assert rig.core.cluster.agents_by_name["a"].drained
    assert not rig.vdisk.presentations


def test_a_container_host_is_removed_before_it_is_asked_once_more() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    other = rig.exporter("other", {"more": 1024})
    agent.refusing[m.AttachContainer] = Status.FOREIGN_DATA
    assert rig.ask("container.add", name="d", agent="other", export="more").code == "foreign_data"
    other.refusing[m.DenyHost] = Status.NOT_FENCED
    rig.ask("agent.drain", agent="a", wait_s=0)
    rig.ask("agent.fence", agent="a", wait_s=0)
    if not other.ordered(m.DenyHost):
        rig.advance(20)
    other.refusing.clear()
    other.drop()
    other.hello()
    other.drop()
    assert rig.ask("agent.remove", agent="other") == {"agent": "other"}
    rig.advance(20)
    assert {row["exporter"] for row in rig.ask("agent.show", agent="a")["fence"]["containers"]} <= {"store"}


def test_what_is_believed_of_an_agent_is_not_believed_of_a_later_incarnation() -> None:
    rig = Rig()
    (agent,) = rig.disk_at("a")
    rig.ask("agent.drain", agent="a")
    assert rig.core.cluster.agents_by_name["a"].drained
    agent.drop()
    store = rig.agents["store"]
    store.auto = False
    agent.instance, agent.incarnation, agent.machine = b"later".ljust(16), 70_000, b"another machine."
    agent.hello([(agent.table(), 9)])
    rig.advance(60)
    assert rig.core.cluster.agents_by_name["a"].standing is Standing.FENCING, "nobody has denied it yet"
    assert rig.vdisk.sharing, "and it may hold entries"
    while store.asked:
        store.respond()
    rig.advance(60)
    assert rig.core.cluster.agents_by_name["a"].standing is Standing.FENCED
