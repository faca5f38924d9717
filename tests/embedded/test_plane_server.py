"""The data plane's socket: one peer, standing, peers that do not read, and junk."""

from __future__ import annotations

import random

from channel.messages import Admit, GetEntries, GetParked, LeaseGrant, SetEntries, Suspend, TableStatus
from channel.values import ENTRIES_MAX, FAULTS_MAX, Header
from dataplane.embedded.plane_server import _bits
from mapping.entry import ZERO_ENTRY
from mapping.status import Status
from tests.embedded.scripted_daemon import (
    CLUSTER,
    INCARNATION,
    SECOND,
    TABLE,
    TERM,
    Rig,
    at,
    loop_pair,
    on_loop,
    read,
    settle,
)


@on_loop
async def test_the_newest_connection_wins() -> None:
    async with Rig() as rig:
        first = rig.daemon
        second = rig.connect()
        await first.until(lambda: first.ended)
        assert first.ended is not None
        assert first.ended.by_peer
        assert (await second.admit()).status is Status.OK
        assert (await second.ask(TableStatus())).status is Status.OK


@on_loop
async def test_nothing_is_changed_before_admission() -> None:
    async with Rig() as rig:
        await rig.ready()
        daemon = rig.connect()
        await daemon.until(lambda: daemon.hello)
        header = Header(TERM, INCARNATION, 1, TABLE, 1)
        assert (await daemon.ask(SetEntries(0, 1, [at(1)]), header)).status is Status.NOT_ADMITTED
        assert (await daemon.ask(Suspend(), header)).status is Status.NOT_ADMITTED
        assert (await daemon.ask(GetParked(), header)).status is Status.OK
        assert (await daemon.ask(TableStatus(), header)).status is Status.OK


@on_loop
async def test_who_is_admitted() -> None:
    async with Rig() as rig:
        message = Admit(CLUSTER, SECOND, SECOND, SECOND)
        for header, status in (
            (Header(TERM - 1, INCARNATION), Status.STALE_TERM),
            (Header(TERM, INCARNATION + 1), Status.STALE_INCARNATION),
            (Header(TERM + 1, INCARNATION), Status.OK),
            (Header(TERM, INCARNATION), Status.STALE_TERM),
        ):
            assert (await rig.daemon.ask(message, header)).status is status
        other = Admit(b"O" * 16, SECOND, SECOND, SECOND)
        assert (await rig.daemon.ask(other, Header(TERM + 1, INCARNATION))).status is Status.BAD_MESSAGE


@on_loop
async def test_hello_tells_who_and_what() -> None:
    async with Rig() as rig:
        await rig.ready()
        daemon = rig.connect()
        hello = await daemon.until(lambda: daemon.hello)
        assert hello.message.instance == b"I" * 16
        assert (hello.header.term, hello.header.incarnation, hello.header.epoch) == (TERM, INCARNATION, 1)
        assert list(hello.message.tables) == [(TABLE, 0)]


@on_loop
async def test_faults_wait_for_a_peer_that_does_not_read_and_nothing_is_lost() -> None:
    async with Rig() as rig:
        disk = await rig.ready(segments=3 * FAULTS_MAX)
        rig.host.plane.limits.parked_max = 4 * FAULTS_MAX
        _mine, theirs = rig.ends
        theirs.block(True)
        ios = [read(disk, segment << 16, 512) for segment in range(3 * FAULTS_MAX)]
        await settle()
        assert rig.daemon.faults() == []
        theirs.block(False)
        faults = await rig.daemon.fault(len(ios))
        assert sorted(fault.segment for fault in faults) == list(range(3 * FAULTS_MAX))
        await rig.daemon.set(0, [ZERO_ENTRY], count=3 * FAULTS_MAX)
        assert all(io.status is Status.OK for io in ios)


@on_loop
async def test_a_peer_that_takes_no_answers_is_not_read_from_for_ever() -> None:
    async with Rig() as rig:
        await rig.ready(segments=ENTRIES_MAX)
        _mine, theirs = rig.ends
        theirs.block(True)
        for _ in range(64):
            if rig.daemon.session.requests_free:
                rig.daemon.begin(GetEntries(0, ENTRIES_MAX)).add_done_callback(lambda answer: answer.cancelled())
        await settle()
        assert theirs._paused
        theirs.block(False)
        await settle()
        assert (await rig.daemon.ask(TableStatus())).status is Status.OK


@on_loop
async def test_junk_ends_the_connection_and_nothing_else() -> None:
    dice = random.Random(20261122)
    async with Rig() as rig:
        disk = await rig.ready()
        await rig.daemon.set(0, [at(1)])
        for round_number in range(60):
            mine, theirs = loop_pair()
            rig.server.accept(theirs)
            sent = dice.randbytes(dice.randrange(1, 200))
            if round_number % 2:
                sent = (56).to_bytes(4, "little") + dice.randbytes(52)
            mine.start(lambda data: None, lambda error: None)
            mine.write([sent])
            await settle()
            assert disk.read_now(0, 512) == bytes(512)
        daemon = rig.connect()
        rig.daemon = daemon
        assert (await daemon.admit()).status is Status.OK
        daemon.sequence = 1
        assert (await daemon.set(1, [at(2)])).status is Status.OK


@on_loop
async def test_a_grant_from_the_future_or_too_long_is_refused() -> None:
    async with Rig() as rig:
        await rig.bind()
        disk = rig.disk()
        await rig.daemon.set(0, [at(1)])
        for sent_ns, duration_ns in ((rig.now + 1, SECOND), (rig.now, 11 * SECOND), (rig.now, 0)):
            rig.daemon.tell(LeaseGrant(sent_ns, duration_ns), rig.daemon.header(table=0))
            await settle()
            assert disk.read_now(0, 512) is None
        rig.grant()
        await settle()
        assert disk.read_now(0, 512) is not None


def test_bits_are_packed_lowest_first() -> None:
    assert _bits(bytes([1, 0, 0, 1, 0, 0, 0, 0, 1])) == bytes([0b1001, 1])
    assert _bits(bytes(16)) == bytes(2)
