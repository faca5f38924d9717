"""A host that comes back is let in once nothing of its lost connections is being executed any more."""

from __future__ import annotations

import pytest

from fabric.nvme_tcp.spec import DISCOVERY_NQN, Status
from tests.fabric.nvme_tcp.rig import (
    BLOCK,
    FABRICS,
    HOST,
    HOSTID,
    KEEP_ALIVE,
    NQN,
    RawHost,
    Rig,
    admin,
    capsule,
    connect_capsule,
    property_get,
    property_set,
    sqe,
    write,
)

SECOND = 1_000_000_000
OTHER = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000002"


def lost_while_writing(rig: Rig) -> RawHost:
    """A host whose write is being executed when both its connections are lost; its I/O queue."""
    host = rig.controller()
    queue = rig.queue(host)
    assert queue.send(write(1, 0, b"1" * BLOCK)) == []
    assert queue.connection.connection_lost() == rig.parked
    host.connection.connection_lost()
    return queue


def test_connect_waits_for_the_last_command_of_a_lost_connection() -> None:
    rig = Rig(fast=False, park=True)
    lost_while_writing(rig)
    host = rig.host()
    assert host.send(connect_capsule(0)) == []
    assert host.send(property_get(0x1C, cid=5))[0].status == Status.COMMAND_SEQUENCE_ERROR
    assert host.answers() == []
    rig.finish(rig.parked.pop())
    (answer,) = host.answers()
    assert (answer.status, answer.cid) == (0, 0)
    assert host.connection in rig.target.take_attention()
    assert host.send(property_get(0x1C))[0].status == 0
    assert rig.target.queue_pairs(NQN, HOST) == [host.connection]


def test_only_the_same_host_waits_and_only_at_the_same_subsystem() -> None:
    rig = Rig(fast=False, park=True)
    rig.target.allow_host(NQN, OTHER)
    lost_while_writing(rig)
    rig.controller(hostnqn=OTHER)
    rig.controller(hostid=bytes(16))
    (answer,) = rig.host().send(connect_capsule(0, subnqn=DISCOVERY_NQN))
    assert answer.status == 0
    assert rig.host().send(connect_capsule(0, hostid=HOSTID)) == []


def test_a_connection_that_is_not_lost_is_not_waited_for() -> None:
    rig = Rig(fast=False, park=True)
    queue = rig.queue(rig.controller())
    assert queue.send(write(1, 0, b"1" * BLOCK)) == []
    rig.controller()
    queue.connection.close("the host is not wanted")
    second = rig.host()
    assert second.send(connect_capsule(0)) == []
    rig.finish(rig.parked.pop())
    assert second.answers()[0].status == 0


def test_a_single_hosts_next_controller_ends_the_one_before_although_that_looks_alive() -> None:
    rig = Rig(fast=False, park=True)
    rig.target.single = lambda hostnqn: hostnqn == HOST
    rig.target.allow_host(NQN, OTHER)
    other = rig.controller(hostnqn=OTHER)
    first = rig.controller()
    queue = rig.queue(first)
    assert queue.send(write(1, 0, b"1" * BLOCK)) == []
    second = rig.host()
    assert second.send(connect_capsule(0, hostid=bytes(16))) == []
    assert first.connection.closing and queue.connection.closing and not other.connection.closing
    assert queue.send(write(2, 0, b"2" * BLOCK)) == [] and len(rig.parked) == 1, "nothing more is received there"
    assert rig.target.queue_pairs(NQN, HOST) == [first.connection, queue.connection]
    rig.finish(rig.parked.pop())
    (answer,) = second.answers()
    assert answer.status == 0
    assert [one.hostnqn for one in rig.target.subsystems[NQN].controllers.values()] == [OTHER, HOST]
    queue.connection.connection_lost()
    first.connection.connection_lost()
    assert rig.target.queue_pairs(NQN, HOST) == [second.connection]


def test_what_a_single_host_connects_elsewhere_ends_nothing() -> None:
    rig = Rig(fast=False, park=True)
    rig.target.single = lambda hostnqn: True
    host = rig.controller()
    (answer,) = rig.host().send(connect_capsule(0, subnqn=DISCOVERY_NQN))
    assert answer.status == 0 and not host.connection.closing
    rig.queue(host)
    assert not host.connection.closing, "an I/O queue is of the controller that is there"


def test_every_lost_connection_is_waited_for_and_all_that_wait_are_let_in() -> None:
    rig = Rig(fast=False, park=True)
    lost_while_writing(rig)
    rig.parked, first = [], rig.parked
    lost = rig.host()
    waiting = [rig.host(), rig.host()]
    for host in (lost, *waiting):
        assert host.send(connect_capsule(0)) == []
    assert lost.connection.connection_lost() == []
    rig.finish(first.pop())
    assert [host.answers()[0].status for host in waiting] == [0, 0]
    assert lost.answers() == []
    assert len(rig.target.subsystems[NQN].controllers) == 2


def test_a_second_connect_meanwhile_is_out_of_order() -> None:
    rig = Rig(fast=False, park=True)
    lost_while_writing(rig)
    host = rig.host()
    assert host.send(connect_capsule(0)) == []
    (answer,) = host.send(connect_capsule(0, cid=1))
    assert (answer.status, answer.cid) == (Status.COMMAND_SEQUENCE_ERROR, 1)
    rig.finish(rig.parked.pop())
    assert [(answer.status, answer.cid) for answer in host.answers()] == [(0, 0)]


def test_a_host_that_was_denied_meanwhile_is_refused() -> None:
    rig = Rig(fast=False, park=True)
    lost_while_writing(rig)
    host = rig.host()
    assert host.send(connect_capsule(0)) == []
    rig.target.deny_host(NQN, HOST)
    assert rig.target.queue_pairs(NQN, HOST) != []
    rig.finish(rig.parked.pop())
    assert host.answers()[0].status == Status.CONNECT_INVALID_HOST
    assert rig.target.queue_pairs(NQN, HOST) == []


def test_one_that_waits_too_long_is_cut_off_and_never_let_in() -> None:
    rig = Rig(fast=False, park=True)
    lost_while_writing(rig)
    host = rig.host()
    assert host.send(connect_capsule(0)) == []
    rig.target.tick(rig.limits.setup_timeout_ns)
    assert host.connection.closing
    rig.finish(rig.parked.pop())
    assert host.answers() == []
    assert rig.target.subsystems[NQN].controllers == {}
    host.connection.connection_lost()
    assert rig.target.connections == {}


def test_keep_alive_of_one_that_waited_does_not_run_out_at_once() -> None:
    rig = Rig(fast=False, park=True)
    lost_while_writing(rig)
    host = rig.host()
    assert host.send(connect_capsule(0, keep_alive_ms=1000)) == []
    rig.now_ns = 20 * SECOND
    rig.target.tick(rig.now_ns)
    rig.finish(rig.parked.pop())
    assert host.answers()[0].status == 0
    rig.target.tick(rig.now_ns)
    assert not host.connection.closing
    host.send(property_set(0x14, 0x460001))
    assert host.send(admin(KEEP_ALIVE, 1, length=0))[0].status == 0
    rig.target.tick(rig.now_ns + 2 * SECOND)
    assert host.connection.closing


@pytest.mark.parametrize("digests", [0, 3])
def test_what_a_waiting_connect_says_survives_what_comes_after_it(digests: int) -> None:
    rig = Rig(fast=False, park=True)
    lost_while_writing(rig)
    host = rig.host(digests)
    assert host.send(connect_capsule(0, digests=digests)) == []
    junk = capsule(sqe(FABRICS, 7, 9, sgl=(0, 1024, 1)), b"\xff" * 1024, digests=digests)
    for _ in range(40):
        assert host.send(junk)[0].status == Status.COMMAND_SEQUENCE_ERROR
    rig.finish(rig.parked.pop())
    assert host.answers()[0].status == 0
    assert host.connection.hostnqn == HOST


def test_io_queues_of_a_reset_controller_wait_too() -> None:
    rig = Rig(fast=False, park=True)
    host = rig.controller()
    queue = rig.queue(host)
    assert queue.send(write(1, 0, b"1" * BLOCK)) == []
    host.send(property_set(0x14, 0x460000))
    queue.connection.connection_lost()
    host.send(property_set(0x14, 0x460001))
    again = rig.host()
    assert again.send(connect_capsule(1, host.cntlid)) == []
    rig.finish(rig.parked.pop())
    assert again.answers()[0].status == 0
