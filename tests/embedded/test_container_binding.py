"""BIND_SLOT and UNBIND_SLOT: labels written, verified, refused; claims; foreign data; containers that are absent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from channel.messages import UnbindSlot
from channel.values import AttachFlags
from mapping.label import LABEL_BYTES, Label, decode
from mapping.status import Status
from tests.embedded.scripted_daemon import CLUSTER, SEGMENT, Rig, at, flush, on_loop, read

INITIALIZE, FORCE = AttachFlags.INITIALIZE, AttachFlags.FORCE


@on_loop
async def test_a_label_is_written_once_and_then_verified() -> None:
    async with Rig() as rig:
        response = await rig.bind()
        assert (response.status, response.segment_count, response.block_size) == (Status.OK, 64, 512)
        assert response.volatile_cache
        label = decode(bytes(rig.fast.read_now(0, LABEL_BYTES) or b""))
        assert label == Label(CLUSTER, b"\1" * 16, 1, SEGMENT, 64)
        assert (await rig.daemon.ask(UnbindSlot(0))).status is Status.OK
        assert rig.fast.claim is None
        assert (await rig.bind(flags=0)).status is Status.OK
        assert (await rig.bind(flags=0)).status is Status.OK
        assert rig.fast.claim is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster": b"X" * 16},
        {"container": b"Y" * 16},
        {"segment_size": 2 * SEGMENT},
        {"segment_count": 32},
        {"generation": 0},
    ],
)
@on_loop
async def test_another_label_is_a_mismatch(changes: dict[str, Any]) -> None:
    async with Rig() as rig:
        await rig.bind()
        await rig.daemon.ask(UnbindSlot(0))
        response = await rig.bind(flags=0, **changes)
        assert response.status is Status.LABEL_MISMATCH
        assert response.detail
        assert rig.fast.claim is None


@pytest.mark.parametrize("offset", [0, SEGMENT - 1, 63 * SEGMENT, 64 * SEGMENT - 1])
@on_loop
async def test_foreign_data_is_refused_without_force(offset: int) -> None:
    async with Rig() as rig:
        start = offset // 512 * 512
        rig.fast.write_now(start, bytes(offset - start) + b"!" + bytes(511 - offset + start))
        assert (await rig.bind()).status is Status.FOREIGN_DATA
        assert (await rig.bind(flags=0)).status is Status.LABEL_MISMATCH
        assert (await rig.bind(flags=INITIALIZE | FORCE)).status is Status.OK


@on_loop
async def test_another_containers_label_is_foreign_data_and_ones_own_is_not() -> None:
    async with Rig() as rig:
        await rig.bind()
        await rig.daemon.ask(UnbindSlot(0))
        assert (await rig.bind(container=b"Z" * 16)).status is Status.FOREIGN_DATA
        assert (await rig.bind()).status is Status.OK


@on_loop
async def test_what_cannot_be_bound() -> None:
    async with Rig() as rig:
        assert (await rig.bind(bdev="none")).status is Status.NOT_FOUND
        assert (await rig.bind(segment_size=4095)).status is Status.BAD_MESSAGE
        assert (await rig.bind(segment_size=0)).status is Status.BAD_MESSAGE
        assert (await rig.bind(segment_count=65)).status is Status.OUT_OF_RANGE
        assert (await rig.bind(segment_size=64 * SEGMENT)).status is Status.OUT_OF_RANGE
        assert (await rig.bind()).status is Status.OK
        assert (await rig.bind(slot=2)).status is Status.BUSY
        assert (await rig.bind(slot=0, bdev="c1")).status is Status.EXISTS
        assert (await rig.bind(slot=0, container=b"Q" * 16)).status is Status.EXISTS


@on_loop
async def test_a_slot_in_use_is_not_unbound() -> None:
    async with Rig() as rig:
        assert (await rig.daemon.ask(UnbindSlot(0))).status is Status.NO_CONTAINER
        disk = await rig.ready()
        assert (await rig.daemon.ask(UnbindSlot(0))).status is Status.BUSY
        assert (await rig.replace_slots([])).status is Status.OK
        assert (await rig.daemon.ask(UnbindSlot(0))).status is Status.OK
        assert disk.engine.slots == frozenset()


@on_loop
async def test_a_table_takes_only_containers_cut_like_it() -> None:
    async with Rig() as rig:
        await rig.bind()
        await rig.bind(1, "c1", segment_size=2 * SEGMENT)
        rig.disk()
        assert (await rig.replace_slots([0, 1])).status is Status.FORBIDDEN
        assert (await rig.replace_slots([0, 5])).status is Status.NO_CONTAINER


@on_loop
async def test_a_flush_fails_until_every_container_with_data_is_attached() -> None:
    """What another data plane left in the cache of an absent container is not durable (design: 6, 12)."""
    async with Rig() as rig:
        disk = await rig.ready()
        await rig.daemon.set(0, [at(1)])
        disk.write_now(0, b"w" * 512)
        assert (await rig.replace_slots([0], absent=[1])).status is Status.OK
        assert flush(disk).status is Status.NO_CONTAINER
        assert read(disk, 0).status is Status.OK, "nothing else is held up"
        await rig.bind(1, "c1")
        assert flush(disk).status is Status.NO_CONTAINER, "the controller has not listed it yet"
        rig.fast.losses += 1
        assert flush(disk).status is Status.NO_CONTAINER
        assert (await rig.replace_slots([0, 1])).status is Status.OK
        for status in (Status.IO_ERROR, Status.OK):
            io = flush(disk)
            rig.slow.finish()
            assert io.status is status, "a flush that did not begin has told nobody of a loss"


@on_loop
async def test_a_bdev_removed_while_it_is_bound_is_not_bound() -> None:
    async with Rig() as rig:
        answer = rig.daemon.begin(rig.bind_request(1, "c1"))
        await rig.daemon.until(lambda: True)
        while not rig.slow.waiting:
            await asyncio.sleep(0)
        removal = asyncio.ensure_future(rig.layer.unregister(rig.slow))
        while not answer.done():
            await asyncio.sleep(0)
            rig.slow.finish(len(rig.slow.waiting))
        assert answer.result()[0].status is Status.NOT_FOUND
        await removal
        assert rig.host.containers == {}


@on_loop
async def test_a_label_is_renewed_with_a_newer_generation_and_then_refuses_older_stores() -> None:
    renew = AttachFlags.RENEW
    async with Rig() as rig:
        assert (await rig.bind(flags=renew)).status is Status.LABEL_MISMATCH, "nothing is renewed where no label is"
        await rig.bind()
        assert (await rig.bind(flags=0, generation=3)).status is Status.OK
        assert decode(bytes(rig.fast.read_now(0, LABEL_BYTES) or b"")).generation == 1
        assert (await rig.bind(flags=renew, generation=3)).status is Status.OK
        assert decode(bytes(rig.fast.read_now(0, LABEL_BYTES) or b"")).generation == 3
        assert (await rig.bind(flags=renew, generation=2)).status is Status.LABEL_MISMATCH
        await rig.daemon.ask(UnbindSlot(0))
        assert (await rig.bind(flags=0, generation=2)).status is Status.LABEL_MISMATCH
        assert (await rig.bind(flags=renew, generation=4)).status is Status.OK
        assert decode(bytes(rig.fast.read_now(0, LABEL_BYTES) or b"")).generation == 4
