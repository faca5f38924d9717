"""Containers whose connection was lost and is back: is it still the container, and has the old I/O ended?"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from channel.messages import Admit, BindSlot, LeaseGrant, Response, SetEntries, TableSlots, UnbindSlot
from channel.values import AttachFlags, Header
from dataplane.embedded.bdev import Bdev, transfer
from dataplane.embedded.bdev_nvme import NvmeBdev
from dataplane.embedded.bdev_segmap import SegmapBdev
from mapping.rules import Operation
from mapping.status import Status
from tests.embedded.embedded_target import RunningTarget
from tests.embedded.scripted_daemon import (
    CLUSTER,
    INCARNATION,
    SECOND,
    TERM,
    Daemon,
    SlowBdev,
    at,
    on_loop,
    read,
    settle,
    write,
)
from tests.embedded.test_bdev_nvme import HOST, SEGMENT
from transport import unix

NQN = "nqn.2026-11.io.segmap:container"
UUID = "5e1f0000-0000-4000-8000-000000000001"
TABLE = (5 << 32) | 2


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0)


class Remote:
    """A virtual disk of one container, slot 0, that a container host exports; segment 0 is mapped to segment 3."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mapper = RunningTarget(directory)
        self.host = RunningTarget(directory)

    async def __aenter__(self) -> Self:
        await self.mapper.__aenter__()
        await self.host.__aenter__()
        self.address = await self.export()
        await self.mapper.call("bdev_nvme_attach_controller", name="c", **self.address, hostnqn=HOST)
        self.daemon = Daemon(await unix.connect(self.mapper.dataplane))
        await self.daemon.until(lambda: self.daemon.hello)
        admit = Admit(CLUSTER, 60 * SECOND, 20 * SECOND, 5 * SECOND)
        self.daemon.epoch = (await self.daemon.begin(admit, Header(TERM, INCARNATION)))[1].epoch
        bound = asyncio.ensure_future(self.bind(AttachFlags.INITIALIZE))
        await self.finish_until(bound.done)
        assert bound.result().status is Status.OK
        await self.mapper.call(
            "bdev_segmap_create", name="v", table=TABLE, segment_count=8, segment_size=SEGMENT, slots=[0]
        )
        self.daemon.tell(LeaseGrant(self.mapper.target.clock(), 60 * SECOND), self.daemon.header(table=0))
        answer = await self.daemon.ask(SetEntries(0, 1, [at(3)]), self.daemon.next(table=TABLE))
        assert answer.status is Status.OK
        found = self.mapper.target.layer.find("v", SegmapBdev)
        assert isinstance(found, SegmapBdev)
        self.disk = found
        return self

    async def export(self) -> dict[str, str]:
        """The container host's part, from nothing: an empty bdev, always of the same name, size and UUID."""
        await self.host.call("bdev_malloc_create", name="m", block_size=512, num_blocks=16 * SEGMENT // 512, uuid=UUID)
        return await self.host.export(NQN, "m", hosts=(HOST,))

    async def bind(self, flags: int = 0) -> Response:
        response: Response = await self.daemon.ask(
            BindSlot(0, flags, b"\1" * 16, CLUSTER, 1, SEGMENT, 0, "cn1"), self.daemon.header(table=0)
        )
        return response

    async def finish_until(self, condition: Callable[[], Any]) -> None:
        await until(condition)

    async def rebuild(self) -> None:
        """The container host's target dies and is built up again at the same place."""
        port, host = self.host.port, self.host
        await host.__aexit__()
        self.host = RunningTarget(self.directory)
        self.host.port = port
        await self.host.__aenter__()
        await self.export()

    async def interrupt(self) -> None:
        """The connection is lost."""
        listener = {key: value for key, value in self.address.items() if key != "subnqn"}
        losses = self.remote.losses
        await self.host.call("nvmf_subsystem_remove_listener", nqn=NQN, listen_address=listener)
        await until(lambda: self.remote.losses > losses)

    async def listen(self) -> None:
        """The container host can be reached again."""
        listener = {key: value for key, value in self.address.items() if key != "subnqn"}
        await self.host.call("nvmf_subsystem_add_listener", nqn=NQN, listen_address=listener)

    @property
    def remote(self) -> Bdev:
        return self.mapper.target.layer.find("cn1")

    async def state(self) -> str:
        (report,) = await self.mapper.call("bdev_nvme_get_controllers")
        return str(report["ctrlrs"][0]["state"])

    async def __aexit__(self, *failure: object) -> None:
        self.daemon.connection.close()
        await self.mapper.__aexit__()
        await self.host.__aexit__()


class SlowRemote(Remote):
    """The container host's bdev ends its I/O when the test says so."""

    async def export(self) -> dict[str, str]:
        self.slow = SlowBdev("m", 16 * SEGMENT // 512)
        self.host.target.layer.register(self.slow)
        return await self.host.export(NQN, "m", hosts=(HOST,))

    async def finish_until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            await asyncio.sleep(0)
            self.slow.finish(len(self.slow.waiting))

    async def kept_waiting(self) -> None:
        """Until the container host has the mapper's Connect, which it does not answer."""
        await until(lambda: self.host.target.nvmf.target._connecting)
        await settle()

    async def leave_a_write(self) -> asyncio.Future[Any]:
        """A write that has failed for its host and still runs at the container; a barrier that begins after it."""
        writing = write(self.disk, 0, b"1" * 512)
        await until(lambda: self.slow.waiting)
        await self.interrupt()
        assert writing.status is None
        bdev = self.remote
        assert isinstance(bdev, NvmeBdev)
        bdev._waiting = deque((0.0, io) for _, io in bdev._waiting)
        bdev._expire()
        assert writing.status is Status.IO_ERROR
        return self.daemon.begin(SetEntries(0, 1, [0]), self.daemon.next(blocking=True, table=TABLE))

    async def host_waits_to_be_let_in(self) -> None:
        """The mapper has connected again, and the container host holds its Connect."""
        await until(lambda: self.host.target.nvmf.target._connecting)

    async def __aexit__(self, *failure: object) -> None:
        self.slow.finish(len(self.slow.waiting))
        await super().__aexit__(*failure)


class Between:
    """Forwards TCP connections; `lose` ends them for who connects, and their other halves stay open as if alive."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._near: list[asyncio.StreamWriter] = []
        self._pumps: list[asyncio.Task[None]] = []
        self.far: list[asyncio.StreamWriter] = []

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return str(self._server.sockets[0].getsockname()[1])

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far = await asyncio.open_connection("127.0.0.1", self._port)
        self._near.append(writer)
        self.far.append(far)
        for one, other in ((reader, far), (far_reader, writer)):
            self._pumps.append(asyncio.ensure_future(self._pump(one, other)))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)

    def lose(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        for writer in self._near:
            writer.transport.abort()
        self._near, self._pumps = [], []

    def close(self) -> None:
        self.lose()
        for writer in self.far:
            writer.transport.abort()
        self._server.close()


class HalfOpenRemote(SlowRemote):
    """The mapper's connection may be lost without the container host's knowing."""

    async def export(self) -> dict[str, str]:
        address = await super().export()
        self.between = Between(int(address["trsvcid"]))
        return {**address, "trsvcid": await self.between.start()}

    async def __aexit__(self, *failure: object) -> None:
        self.between.close()
        await super().__aexit__(*failure)


@on_loop
async def test_a_mapper_is_let_in_again_when_what_it_sent_on_a_half_open_connection_has_ended(tmp_path: Path) -> None:
    async with HalfOpenRemote(tmp_path) as rig:
        first = write(rig.disk, 0, b"1" * 512)
        await until(lambda: rig.slow.waiting)
        stale, losses = list(rig.between.far), rig.remote.losses
        rig.between.lose()
        await until(lambda: rig.remote.losses > losses)
        await rig.host_waits_to_be_let_in()
        assert (len(rig.slow.waiting), first.status, await rig.state()) == (1, None, "resetting")
        for writer in stale:
            writer.write(b"what a retransmission brings only now")
        await rig.finish_until(lambda: first.ended)
        assert first.status is Status.OK
        second = write(rig.disk, 0, b"2" * 512)
        await rig.finish_until(lambda: second.ended)
        assert rig.slow._memory[3 * SEGMENT : 3 * SEGMENT + 512] == b"2" * 512
        assert len(rig.host.target.nvmf.target.subsystem(NQN).controllers) == 1


@on_loop
async def test_a_container_that_comes_back_empty_is_not_used(tmp_path: Path) -> None:
    async with Remote(tmp_path) as rig:
        data = random.Random(2).randbytes(4096)
        assert (await transfer(rig.disk, Operation.WRITE, 0, 4096, data))[0] is Status.OK
        assert (await transfer(rig.disk, Operation.FLUSH))[0] is Status.OK
        await rig.rebuild()
        assert (await transfer(rig.disk, Operation.READ, 0, 4096))[0] is Status.IO_ERROR
        assert (await transfer(rig.disk, Operation.WRITE, 0, 4096, data))[0] is Status.IO_ERROR
        assert rig.mapper.target.plane_host.containers[0].bdev is None
        assert await rig.state() == "failed"
        there = rig.host.target.layer.find("m")
        assert there.read_now(0, 4 * SEGMENT) == bytes(4 * SEGMENT)
        assert (await rig.bind()).status is Status.LABEL_MISMATCH
        assert await rig.state() == "failed"
        assert (await rig.bind(AttachFlags.INITIALIZE)).status is Status.OK
        assert await rig.state() == "enabled"
        assert await transfer(rig.disk, Operation.READ, 0, 4096) == (Status.OK, bytes(4096))


@on_loop
async def test_a_container_of_another_size_of_blocks_is_another_bdev(tmp_path: Path) -> None:
    async with Remote(tmp_path) as rig:
        before = rig.remote
        await rig.host.call("nvmf_subsystem_remove_ns", nqn=NQN, nsid=1)
        await until(lambda: rig.mapper.target.layer.get("cn1") is None)
        await rig.host.call("bdev_malloc_create", name="m4", block_size=4096, num_blocks=4096)
        await rig.host.call("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m4"})
        await until(lambda: rig.mapper.target.layer.get("cn1") is not None)
        assert rig.remote is not before
        losses, there = before.losses, rig.remote
        assert losses == 0
        await rig.interrupt()
        await rig.host.call("nvmf_subsystem_remove_ns", nqn=NQN, nsid=1)
        await rig.host.call("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m"})
        await rig.listen()
        await until(lambda: rig.mapper.target.layer.get("cn1") not in (None, there))
        assert rig.remote.block_size == 512
        assert there.gone


@on_loop
async def test_io_waits_until_the_label_has_been_read(tmp_path: Path) -> None:
    async with SlowRemote(tmp_path) as rig:
        await rig.interrupt()
        reading = read(rig.disk, 0)
        await rig.listen()
        await until(lambda: rig.slow.waiting)
        assert [(io.operation, io.offset) for io in rig.slow.waiting] == [(Operation.READ, 0)]
        later = read(rig.disk, 4096)
        for _ in range(50):
            await asyncio.sleep(0)
        assert (len(rig.slow.waiting), reading.status, later.status) == (1, None, None)
        assert await rig.state() == "resetting"
        rig.slow.finish()
        await until(lambda: len(rig.slow.waiting) == 2)
        assert {io.offset for io in rig.slow.waiting} == {3 * SEGMENT, 3 * SEGMENT + 4096}
        rig.slow.finish(2)
        await until(lambda: reading.ended and later.ended)
        assert (reading.status, later.status) == (Status.OK, Status.OK)
        assert await rig.state() == "enabled"


@on_loop
async def test_a_connection_that_is_lost_again_is_verified_again(tmp_path: Path) -> None:
    async with SlowRemote(tmp_path) as rig:
        await rig.interrupt()
        reading = read(rig.disk, 0)
        for _ in range(2):
            await rig.listen()
            await until(lambda: rig.slow.waiting)
            assert (len(rig.slow.waiting), rig.slow.waiting[0].offset) == (1, 0)
            await rig.interrupt()
            rig.slow.finish()
        assert rig.mapper.target.plane_host.containers[0].bdev is rig.remote
        await rig.listen()
        await rig.finish_until(lambda: reading.ended)
        assert reading.status is Status.OK


@on_loop
async def test_a_label_that_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    async with SlowRemote(tmp_path) as rig:
        await rig.interrupt()
        reading = read(rig.disk, 0)
        await rig.listen()
        await until(lambda: rig.slow.waiting)
        rig.slow.finish(status=Status.IO_ERROR)
        await until(lambda: rig.slow.waiting)
        assert (rig.slow.waiting[0].offset, reading.status) == (0, None)
        await rig.finish_until(lambda: reading.ended)
        assert reading.status is Status.OK


@on_loop
async def test_a_connection_lost_while_a_slot_is_being_bound_binds_nothing(tmp_path: Path) -> None:
    async with SlowRemote(tmp_path) as rig:
        await rig.mapper.call("bdev_segmap_delete", name="v")
        container = rig.mapper.target.plane_host.containers[0]
        container.lost()
        binding = asyncio.ensure_future(rig.bind())
        await until(lambda: rig.slow.waiting)
        await rig.interrupt()
        rig.slow.finish()
        await rig.listen()
        await rig.finish_until(binding.done)
        assert binding.result().status is Status.IO_ERROR
        assert container.bdev is None
        again = asyncio.ensure_future(rig.bind())
        await rig.finish_until(again.done)
        assert again.result().status is Status.OK


@on_loop
async def test_a_barrier_waits_for_a_failed_write_until_the_connection_is_back(tmp_path: Path) -> None:
    async with SlowRemote(tmp_path) as rig:
        barrier = await rig.leave_a_write()
        await rig.listen()
        await rig.host_waits_to_be_let_in()
        assert (len(rig.slow.waiting), barrier.done(), await rig.state()) == (1, False, "resetting")
        rig.slow.finish()
        await until(lambda: rig.slow.waiting)
        assert (rig.slow.waiting[0].operation, barrier.done()) == (Operation.READ, False)
        rig.slow.finish()
        assert (await barrier)[0].status is Status.OK
        assert rig.disk.engine.generations.begun == 0


@on_loop
async def test_a_write_is_not_done_twice_at_the_same_time(tmp_path: Path) -> None:
    async with SlowRemote(tmp_path) as rig:
        first = write(rig.disk, 0, b"1" * 512)
        await until(lambda: rig.slow.waiting)
        await rig.interrupt()
        await rig.listen()
        await rig.host_waits_to_be_let_in()
        assert (len(rig.slow.waiting), first.status) == (1, None)
        await rig.finish_until(lambda: first.ended)
        assert first.status is Status.OK
        second = write(rig.disk, 0, b"2" * 512)
        await rig.finish_until(lambda: second.ended)
        assert rig.slow._memory[3 * SEGMENT : 3 * SEGMENT + 512] == b"2" * 512


@on_loop
async def test_a_failed_write_is_counted_until_its_container_is_attached_and_bound_again(tmp_path: Path) -> None:
    async with SlowRemote(tmp_path) as rig:
        barrier = await rig.leave_a_write()
        await rig.mapper.call("bdev_nvme_detach_controller", name="c")
        await rig.listen()
        attach = asyncio.ensure_future(
            rig.mapper.call("bdev_nvme_attach_controller", name="c", **rig.address, hostnqn=HOST)
        )
        await rig.host_waits_to_be_let_in()
        assert not attach.done()
        await rig.finish_until(attach.done)
        assert not barrier.done()
        assert (await rig.daemon.ask(UnbindSlot(0), rig.daemon.header(table=0))).status is Status.BUSY
        bound = asyncio.ensure_future(rig.bind())
        await rig.finish_until(bound.done)
        assert bound.result().status is Status.OK
        assert (await barrier)[0].status is Status.OK


@on_loop
async def test_a_disk_with_a_failed_write_is_deleted_when_that_has_ended(tmp_path: Path) -> None:
    async with SlowRemote(tmp_path) as rig:
        await rig.leave_a_write()
        target = rig.mapper.target
        deleting = asyncio.ensure_future(target.layer.unregister(rig.disk))
        await until(lambda: not rig.disk.engine.present)
        (listed,) = await rig.mapper.call("bdev_segmap_get")
        assert (listed["table"], listed["present"], deleting.done()) == (TABLE, False, False)
        assert "bdev_segmap_create" not in str(await rig.mapper.call("framework_get_config", name="bdev"))
        await rig.listen()
        await rig.finish_until(deleting.done)
        assert await rig.mapper.call("bdev_segmap_get") == []


@on_loop
async def test_a_target_ends_although_a_write_hangs(tmp_path: Path) -> None:
    async with SlowRemote(tmp_path) as rig:
        barrier = await rig.leave_a_write()
        await rig.mapper.target.close()
        assert rig.mapper.target.plane_host.plane.tables == {}
        assert barrier.cancelled() or not barrier.done()


@on_loop
async def test_a_failed_write_to_what_is_something_else_now_stays_counted(tmp_path: Path) -> None:
    async with SlowRemote(tmp_path) as rig:
        barrier = await rig.leave_a_write()
        rig.slow.finish()
        rig.slow._memory[:] = bytes(len(rig.slow._memory))
        await rig.listen()
        await rig.finish_until(lambda: rig.mapper.target.plane_host.containers[0].bdev is None)
        bound = asyncio.ensure_future(rig.bind(AttachFlags.INITIALIZE))
        await rig.finish_until(bound.done)
        assert bound.result().status is Status.OK
        assert not barrier.done()
        rig.mapper.target.plane_host.plane.tables[TABLE].limits.io_ns = 0
        late = rig.daemon.begin(SetEntries(0, 1, [0]), rig.daemon.next(blocking=True, table=TABLE))
        assert (await late)[0].status is Status.BARRIER_TIMEOUT
        assert (await rig.daemon.ask(TableSlots([]), rig.daemon.header(table=TABLE))).status is Status.OK
        assert (await rig.daemon.ask(UnbindSlot(0), rig.daemon.header(table=0))).status is Status.BUSY
