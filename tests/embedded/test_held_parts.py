"""A container that moves: detached, attached at another address and bound again, under I/O."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from channel.messages import BindSlot, Response, SetEntries, TableSlots, UnbindSlot
from channel.values import AttachFlags
from dataplane.embedded import held_parts
from dataplane.embedded.bdev import transfer
from mapping.rules import Operation
from mapping.status import Status
from tests.embedded.scripted_daemon import CLUSTER, on_loop, read, settle, write
from tests.embedded.test_bdev_nvme import HOST, SEGMENT
from tests.embedded.test_reconnect import NQN, TABLE, SlowRemote, until


class MovingRemote(SlowRemote):
    """The container host can be had at a second address."""

    async def detach(self) -> None:
        """What the mapper's agent does first; the connection was lost before."""
        await self.mapper.call("bdev_nvme_detach_controller", name="c")

    async def attach_elsewhere(self) -> None:
        where = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": "0"}
        await self.host.call("nvmf_subsystem_add_listener", nqn=NQN, listen_address=where)
        (subsystem,) = await self.host.call("nvmf_get_subsystems", nqn=NQN)
        (listener,) = subsystem["listen_addresses"]
        assert listener["trsvcid"] != self.address["trsvcid"]
        self.address = {**listener, "subnqn": NQN}
        attach = asyncio.ensure_future(
            self.mapper.call("bdev_nvme_attach_controller", name="c", **self.address, hostnqn=HOST)
        )
        await self.finish_until(attach.done)
        assert attach.result() == ["cn1"]

    async def bound(self, flags: int = 0, container: bytes = b"\1" * 16) -> Response:
        request = BindSlot(0, flags, container, CLUSTER, 1, SEGMENT, 0, "cn1")
        binding: Any = asyncio.ensure_future(self.daemon.ask(request, self.daemon.header(table=0)))
        await self.finish_until(binding.done)
        response: Response = binding.result()
        return response

    async def leave(self) -> Any:
        """A write that was sent to the old address, which is gone then."""
        writing = write(self.disk, 0, b"1" * 512)
        await until(lambda: self.slow.waiting)
        await self.interrupt()
        await self.detach()
        assert writing.status is None, "it is held"
        return writing


@on_loop
async def test_io_that_comes_while_a_container_moves_waits_for_it(tmp_path: Path) -> None:
    async with MovingRemote(tmp_path) as rig:
        await rig.interrupt()
        early = read(rig.disk, 0)
        await rig.detach()
        reading, writing = read(rig.disk, 4096), write(rig.disk, 8192, b"7" * 512)
        await settle()
        assert (early.status, reading.status, writing.status) == (None, None, None)
        await rig.attach_elsewhere()
        assert not writing.ended, "not before the label has been verified"
        assert (await rig.bound()).status is Status.OK
        await rig.finish_until(lambda: early.ended and reading.ended and writing.ended)
        assert (early.status, reading.status, writing.status) == (Status.OK,) * 3
        assert rig.slow._memory[3 * SEGMENT + 8192 : 3 * SEGMENT + 8192 + 512] == b"7" * 512


@on_loop
async def test_a_write_that_was_sent_is_repeated_if_the_old_process_is_over(tmp_path: Path) -> None:
    async with MovingRemote(tmp_path) as rig:
        writing = await rig.leave()
        await rig.attach_elsewhere()
        assert (await rig.bound(AttachFlags.ENDED)).status is Status.OK
        await rig.finish_until(lambda: writing.ended)
        assert writing.status is Status.OK
        assert rig.disk.engine.generations.begun == 0


@on_loop
async def test_a_write_that_was_sent_fails_unsettled_if_that_is_not_known(tmp_path: Path) -> None:
    async with MovingRemote(tmp_path) as rig:
        writing = await rig.leave()
        await rig.attach_elsewhere()
        assert (await rig.bound()).status is Status.OK
        assert writing.status is Status.IO_ERROR
        assert rig.disk.engine.generations.begun == 1, "barriers go on waiting for it"
        reading = read(rig.disk, 0)
        await rig.finish_until(lambda: reading.ended)
        assert reading.status is Status.OK


@on_loop
async def test_something_else_at_the_new_address_gets_nothing(tmp_path: Path) -> None:
    async with MovingRemote(tmp_path) as rig:
        await rig.interrupt()
        waiting = write(rig.disk, 0, b"5" * 512)
        await rig.detach()
        rig.slow._memory[: 8 * 512] = bytes(8 * 512)
        await rig.attach_elsewhere()
        before = bytes(rig.slow._memory)
        assert (await rig.bound()).status is Status.LABEL_MISMATCH
        assert waiting.status is Status.IO_ERROR, "there is nothing to wait for"
        assert (await transfer(rig.disk, Operation.READ, 0, 512))[0] is Status.IO_ERROR
        assert bytes(rig.slow._memory) == before


@on_loop
async def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_parts, "HOLD_S", 0.01)
    async with MovingRemote(tmp_path) as rig:
        sent = await rig.leave()
        fresh = write(rig.disk, 4096, b"2" * 512)
        await until(lambda: sent.ended and fresh.ended)
        assert (sent.status, fresh.status) == (Status.IO_ERROR, Status.IO_ERROR)
        assert rig.disk.engine.generations.begun == 1, "the one that was sent is unsettled"
        assert (await transfer(rig.disk, Operation.READ, 0, 512))[0] is Status.IO_ERROR


@on_loop
async def test_only_so_many_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_parts, "HELD_MAX", 2)
    async with MovingRemote(tmp_path) as rig:
        await rig.interrupt()
        await rig.detach()
        ios = [read(rig.disk, 512 * index) for index in range(3)]
        await settle()
        assert [io.status for io in ios] == [None, None, Status.IO_ERROR]


@on_loop
async def test_what_nobody_waits_for_any_more_is_dropped(tmp_path: Path) -> None:
    async with MovingRemote(tmp_path) as rig:
        await rig.interrupt()
        await rig.detach()
        owner = object()
        gone = write(rig.disk, 512, b"1" * 512, owner=owner)
        kept, aborted = write(rig.disk, 1024, b"\2" * 512), write(rig.disk, 1536, b"3" * 512)
        rig.disk.host_lost(owner)
        rig.disk.abort(aborted.io)
        await settle()
        assert (gone.status, kept.status, aborted.status) == (Status.CANCELLED, None, Status.CANCELLED)
        await rig.attach_elsewhere()
        assert (await rig.bound()).status is Status.OK
        await rig.finish_until(lambda: kept.ended)
        assert rig.slow._memory[3 * SEGMENT + 512 : 3 * SEGMENT + 2048] == bytes(512) + b"\2" * 512 + bytes(512)


@on_loop
async def test_what_outlived_its_lease_is_not_begun_at_the_new_address(tmp_path: Path) -> None:
    async with MovingRemote(tmp_path) as rig:
        await rig.interrupt()
        await rig.detach()
        waiting = write(rig.disk, 0, b"9" * 512)
        rig.mapper.target.plane_host.plane.lease.expire()
        await rig.attach_elsewhere()
        assert (await rig.bound()).status is Status.OK
        assert waiting.status is Status.LEASE_EXPIRED
        assert rig.slow._memory[3 * SEGMENT : 3 * SEGMENT + 512] == bytes(512)


@on_loop
async def test_a_disk_is_deleted_while_io_is_held(tmp_path: Path) -> None:
    async with MovingRemote(tmp_path) as rig:
        await rig.interrupt()
        await rig.detach()
        waiting = read(rig.disk, 0)
        await rig.mapper.call("bdev_segmap_delete", name="v")
        assert waiting.status is Status.CANCELLED


@on_loop
async def test_what_was_sent_to_the_old_address_is_not_settled_by_the_new_one(tmp_path: Path) -> None:
    async with MovingRemote(tmp_path) as rig:
        await rig.leave()
        await rig.attach_elsewhere()
        assert (await rig.bound()).status is Status.OK
        begun = rig.disk.engine.generations
        await rig.interrupt()
        await rig.listen()
        reading = read(rig.disk, 0)
        await rig.finish_until(lambda: reading.ended)
        assert (reading.status, begun.begun) == (Status.OK, 1), "another process has let us in"
        await rig.interrupt()
        await rig.detach()
        await rig.attach_elsewhere()
        assert (await rig.bound(AttachFlags.ENDED)).status is Status.OK
        assert begun.begun == 0, "all former ones are over"


@on_loop
async def test_a_slot_is_not_unbound_under_held_io(tmp_path: Path) -> None:
    async with MovingRemote(tmp_path) as rig:
        writing = await rig.leave()
        daemon = rig.daemon
        answer = await daemon.ask(SetEntries(0, 1, [0]), daemon.next(table=TABLE))
        assert answer.status is Status.OK
        assert (await daemon.ask(TableSlots([]), daemon.header(table=TABLE))).status is Status.OK
        assert (await daemon.ask(UnbindSlot(0), daemon.header(table=0))).status is Status.BUSY
        await rig.attach_elsewhere()
        assert (await rig.bound(AttachFlags.ENDED)).status is Status.OK
        await rig.finish_until(lambda: writing.ended)
        assert (await daemon.ask(UnbindSlot(0), daemon.header(table=0))).status is Status.OK
