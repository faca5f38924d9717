"""Containers over NVMe/TCP: a container host and a mapper in one loop; loss, return, fencing, hot removal."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from channel.messages import Admit, BindSlot, LeaseGrant, SetEntries
from channel.values import AttachFlags, Header
from dataplane.embedded.bdev import Bdev, BdevIo, transfer
from dataplane.embedded.bdev_nvme import NvmeBdev
from dataplane.embedded.nvme_host import NvmeStatusError, NvmeTcpHost
from mapping.rules import Operation
from mapping.status import Status
from tests.embedded.embedded_target import RpcRefused, RunningTarget
from tests.embedded.scripted_daemon import CLUSTER, INCARNATION, SECOND, TERM, Daemon, at, flush, on_loop, read, write
from transport import unix

NQN = "nqn.2026-11.io.segmap:container"
HOST = "nqn.2026-11.io.segmap:agent:a:1"
SEGMENT = 1 << 20


class Fabric:
    """A container host with malloc `m` and aio `a` exported, and a mapper."""

    def __init__(self, directory: Path, *, port: str = "") -> None:
        self.directory = directory
        self.port = port
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Fabric:
        self.mapper = await self.stack.enter_async_context(RunningTarget(self.directory))
        self.host = await self.stack.enter_async_context(RunningTarget(self.directory))
        self.host.port = self.port
        with open(self.directory / "image", "wb") as file:  # noqa: ASYNC230
            file.truncate(8 * SEGMENT)
        await self.host.call("bdev_malloc_create", name="m", block_size=512, num_blocks=16 * SEGMENT // 512)
        await self.host.call(
            "bdev_aio_create", name="a", filename=str(self.directory / "image"), block_size=512, fallocate=True
        )
        self.address = await self.host.export(NQN, "m", "a", hosts=(HOST,))
        return self

    async def attach(self, name: str = "c", **changes: Any) -> list[str]:
        params = {"name": name, **self.address, "hostnqn": HOST}
        found: list[str] = await self.mapper.call("bdev_nvme_attach_controller", **(params | changes))
        return found

    def bdev(self, name: str = "cn1") -> Bdev:
        return self.mapper.target.layer.find(name)

    async def __aexit__(self, *failure: object) -> None:
        await self.stack.aclose()


@on_loop
async def test_namespaces_are_bdevs_and_move_data(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric:
        assert await fabric.attach() == ["cn1", "cn2"]
        dice = random.Random(9)
        for name, size in (("cn1", 16 * SEGMENT), ("cn2", 8 * SEGMENT)):
            bdev = fabric.bdev(name)
            assert (bdev.size, bdev.volatile_cache, bdev.block_size) == (size, True, 512)
            model = bytearray(size)
            for _ in range(20):
                offset = dice.randrange(size // 512) * 512
                length = min(dice.choice((512, 4096, 700 * 512, 2 * SEGMENT)), size - offset)
                operation = dice.choice((Operation.WRITE, Operation.WRITE, Operation.WRITE_ZEROES))
                data = dice.randbytes(length)
                assert (await transfer(bdev, operation, offset, length, data))[0] is Status.OK
                model[offset : offset + length] = data if operation is Operation.WRITE else bytes(length)
            assert (await transfer(bdev, Operation.FLUSH))[0] is Status.OK
            assert await transfer(bdev, Operation.READ, 0, size) == (Status.OK, model)
            assert (await transfer(bdev, Operation.UNMAP, 0, size))[0] is Status.OK


@on_loop
async def test_attaching_and_detaching_twice(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric:
        await fabric.attach()
        for changes, code in (
            ({}, -114),
            ({"multipath": "disable"}, -114),
            ({"trsvcid": "1", "subnqn": NQN + "x"}, -22),
            ({"trsvcid": "1", "hostnqn": HOST + "x"}, -22),
        ):
            with pytest.raises(RpcRefused) as caught:
                await fabric.attach(**changes)
            assert caught.value.code == code
        for params, code in (({"name": "x"}, -19), ({"name": "c", "traddr": "127.0.0.2"}, -6)):
            with pytest.raises(RpcRefused) as caught:
                await fabric.mapper.call("bdev_nvme_detach_controller", **params)
            assert caught.value.code == code
        assert await fabric.mapper.call("bdev_nvme_detach_controller", name="c", trtype="tcp") is True
        assert await fabric.mapper.call("bdev_get_bdevs") == []
        assert await fabric.attach() == ["cn1", "cn2"]


@on_loop
async def test_a_removed_host_is_fenced_when_the_answer_comes(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric:
        await fabric.attach()
        pairs = await fabric.host.call("nvmf_subsystem_get_qpairs", nqn=NQN)
        assert {pair["qid"] for pair in pairs} == {0, 1, 2}
        assert {pair["hostnqn"] for pair in pairs} == {HOST}
        await fabric.host.call("nvmf_subsystem_remove_host", nqn=NQN, host=HOST)
        assert await fabric.host.call("nvmf_subsystem_get_qpairs", nqn=NQN) == []
        with pytest.raises(RpcRefused) as caught:
            await fabric.attach("d")
        assert caught.value.code == -5


@on_loop
async def test_io_waits_for_a_lost_connection_and_the_next_flush_fails(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric:
        await fabric.attach()
        bdev = fabric.bdev()
        listener = {key: value for key, value in fabric.address.items() if key != "subnqn"}
        written = write(bdev, 0, b"w" * 512)
        while not written.ended:
            await asyncio.sleep(0)
        assert bdev.losses == 0
        await fabric.host.call("nvmf_subsystem_remove_listener", nqn=NQN, listen_address=listener)
        while not bdev.losses:
            await asyncio.sleep(0)
        reading = asyncio.ensure_future(transfer(bdev, Operation.READ, 0, 512))
        await asyncio.sleep(0)
        assert not reading.done()
        await fabric.host.call("nvmf_subsystem_add_listener", nqn=NQN, listen_address=listener)
        assert await reading == (Status.OK, b"w" * 512)
        (report,) = await fabric.mapper.call("bdev_nvme_get_controllers")
        assert report["ctrlrs"][0]["state"] == "enabled"
        for status in (Status.IO_ERROR, Status.OK):
            flushing = flush(bdev)
            while not flushing.ended:
                await asyncio.sleep(0)
            assert flushing.status is status


@on_loop
async def test_io_does_not_wait_for_ever_and_is_dropped_with_its_host(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric:
        await fabric.attach()
        bdev = fabric.bdev()
        assert isinstance(bdev, NvmeBdev)
        await fabric.host.call("nvmf_subsystem_remove_host", nqn=NQN, host=HOST)
        while not bdev.losses:
            await asyncio.sleep(0)
        owner = object()
        ios = [read(bdev, 0, 512, owner=owner), read(bdev, 0, 512), read(bdev, 0, 512)]
        bdev.host_lost(owner)
        bdev.abort(ios[1].io)
        assert [io.status for io in ios] == [Status.CANCELLED, Status.CANCELLED, None]
        bdev._waiting[0][1].deadline = 0.0
        bdev._waiting[0] = (0.0, bdev._waiting[0][1])
        bdev._expire()
        assert ios[2].status is Status.IO_ERROR


@on_loop
async def test_a_bdev_that_goes_takes_its_namespace_and_the_remote_bdev_along(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric:
        await fabric.attach()
        await fabric.host.call("bdev_malloc_delete", name="m")
        (subsystem,) = await fabric.host.call("nvmf_get_subsystems", nqn=NQN)
        assert [namespace["bdev_name"] for namespace in subsystem["namespaces"]] == ["a"]
        while fabric.mapper.target.layer.get("cn1") is not None:
            await asyncio.sleep(0)
        await fabric.host.call("bdev_null_create", name="n", block_size=512, num_blocks=8)
        await fabric.host.call("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "n"})
        assert (await fabric.mapper.call("bdev_get_bdevs", name="cn1", timeout=5000))[0]["num_blocks"] == 8


@on_loop
async def test_a_virtual_disk_on_remote_containers_end_to_end(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric:
        await fabric.attach()
        daemon = Daemon(await unix.connect(fabric.mapper.dataplane))
        await daemon.until(lambda: daemon.hello)
        _, header = await daemon.begin(Admit(CLUSTER, 60 * SECOND, 20 * SECOND, 5 * SECOND), Header(TERM, INCARNATION))
        daemon.epoch = header.epoch
        for slot, name in enumerate(("cn1", "cn2")):
            response = await daemon.ask(
                BindSlot(slot, AttachFlags.INITIALIZE, bytes([slot + 1]) * 16, CLUSTER, 1, SEGMENT, 0, name)
            )
            assert response.status is Status.OK, response
        (claimed,) = await fabric.mapper.call("bdev_get_bdevs", name="cn1")
        assert (claimed["claimed"], claimed["claim_type"]) == (True, "read_many_write_one")
        table = (5 << 32) | 2
        await fabric.mapper.call(
            "bdev_segmap_create", name="v", table=table, segment_count=8, segment_size=SEGMENT, slots=[0, 1]
        )
        daemon.tell(LeaseGrant(fabric.mapper.target.clock(), 60 * SECOND), daemon.header(table=0))
        entries = [at(1 + number // 2, number % 2) for number in range(8)]
        assert (await daemon.ask(SetEntries(0, 8, entries), daemon.next(table=table))).status is Status.OK
        await fabric.mapper.export(NQN + ":v", "v")
        disk = fabric.mapper.target.layer.find("v")
        data = random.Random(2).randbytes(8 * SEGMENT)
        assert (await transfer(disk, Operation.WRITE, 0, len(data), data))[0] is Status.OK
        assert (await transfer(disk, Operation.FLUSH))[0] is Status.OK
        assert await transfer(disk, Operation.READ, 0, len(data)) == (Status.OK, data)
        there = fabric.host.target.layer.find("m")
        assert there.read_now(2 * SEGMENT, SEGMENT) == data[2 * SEGMENT : 3 * SEGMENT]
        stats = await fabric.mapper.call("bdev_segmap_get_stats", name="v")
        assert stats["lease_valid"] and stats["connected"]
        assert stats["bdevs"][0]["entries"]["mapped"] == 8
        (info,) = await fabric.mapper.call("bdev_segmap_get")
        assert (info["slots"], info["sequence"]) == ([0, 1], 1)
        listed = await fabric.mapper.call("bdev_segmap_get_entries", name="v", start=6, count=10)
        assert listed["entries"] == entries[6:]
        await fabric.mapper.call("bdev_segmap_resize", name="v", segment_count=4)
        await fabric.mapper.call("bdev_segmap_delete", name="v")
        daemon.session.goodbye(Status.OK, "done")
        daemon.flush()
        daemon.connection.close()


@on_loop
async def test_parked_writes_of_a_host_that_goes_away_are_dropped_and_its_queue_pairs_end(tmp_path: Path) -> None:
    async with RunningTarget(tmp_path) as target:
        await target.call("bdev_segmap_create", name="v", table=9, segment_count=8, segment_size=SEGMENT)
        address = await target.export(NQN, "v")
        host = await NvmeTcpHost.connect(address["traddr"], address["trsvcid"], NQN, io_queues=1)
        writing = asyncio.ensure_future(host.write(1, 0, b"x" * 4096))
        engine = target.target.plane_host.plane.tables[9]
        while not engine.parked_count:
            await asyncio.sleep(0)
        assert len(await target.call("nvmf_subsystem_get_qpairs", nqn=NQN)) == 2
        await host.close()
        with pytest.raises(NvmeStatusError):
            await writing
        while engine.parked_count:
            await asyncio.sleep(0)
        while await target.call("nvmf_subsystem_get_qpairs", nqn=NQN):
            pass
        stats = await target.call("bdev_segmap_get_stats", name="v")
        assert stats["bdevs"][0]["dropped"] == 1


@on_loop
async def test_a_controller_whose_io_hangs_is_detached_all_the_same(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric:
        await fabric.attach()
        there = fabric.host.target.layer.find("a")
        hanging: list[BdevIo] = []
        there._start = hanging.append  # type: ignore[method-assign]
        io = read(fabric.bdev("cn2"), 0)
        while not hanging:
            await asyncio.sleep(0)
        await fabric.mapper.call("bdev_nvme_detach_controller", name="c")
        assert io.status is Status.IO_ERROR
        hanging[0].end(Status.IO_ERROR)
