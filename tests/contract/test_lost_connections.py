"""A container whose connection is lost and comes back: what hosts, barriers and flushes of virtual disks see of it.

The container host is an embedded target in the test's own loop, so that its I/O ends when the test says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from channel.messages import Admit, BindSlot, SetEntries, TableSlots, TableStatus, UnbindSlot
from channel.values import AttachFlags, Header
from dataplane.embedded.nvme_host import NvmeStatusError, NvmeTcpHost
from mapping.entry import pack
from mapping.status import Status
from spdk_rpc.client import RpcClient
from spdk_rpc.errors import RpcError
from spdk_rpc.methods import bdev_segmap
from spdk_rpc.methods.bdev_segmap import SegmapBdev
from spdk_rpc.target import Target
from tests.contract.conftest import DISK_PLANES, NQN, READY_S, Plane, command_of
from tests.contract.test_disk_data import free_port
from tests.embedded.embedded_target import RunningTarget
from tests.embedded.scripted_daemon import CLUSTER, INCARNATION, SECOND, TERM, Daemon, SlowBdev
from transport import unix

pytestmark = pytest.mark.parametrize("name", DISK_PLANES)

SEGMENT = 64 << 10
SEGMENTS = 8
CONTAINER = NQN + "container"
MAPPER = NQN + "mapper"
HOST = NQN + "host"
WAIT_S = 45
_NUMBERS = itertools.count(1)


class Scene:
    """One disk at the target under test; segment 0 lies in segment 3 of slot 5, a namespace of the container host."""

    def __init__(self, plane: Plane, container_host: RunningTarget) -> None:
        self.plane = plane
        self.container_host = container_host
        self.number = next(_NUMBERS)
        self.table = self.number << 32 | 9
        self.container_id = uuid.uuid4().bytes
        self.daemon: Daemon
        self.host: NvmeTcpHost
        self.slow: SlowBdev
        self.finishing = True
        self.deleted = False
        self.address: dict[str, str] = {}

    async def rpc(self, method: str, **params: Any) -> Any:
        """A call of the target under test; the loop, which serves the container, goes on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(None, self.plane.client.call, method, params)

    async def finish(self) -> None:
        """The container's bdev does what it is told, unless the test wants it to wait."""
        while True:
            if self.finishing:
                self.slow.finish(len(self.slow.waiting))
            await asyncio.sleep(0.001)

    async def export(self) -> None:
        self.slow = SlowBdev("m", 32 * SEGMENT // 512)
        self.container_host.target.layer.register(self.slow)
        self.address = await self.container_host.export(CONTAINER, "m", hosts=(MAPPER,))

    async def attach(self) -> None:
        with contextlib.suppress(RpcError):  # only the first time, and not at all with the embedded target
            await self.rpc("bdev_nvme_set_options", enable_flush=True)
        await self.rpc(
            "bdev_nvme_attach_controller",
            name="far",
            **self.address,
            hostnqn=MAPPER,
            ctrlr_loss_timeout_sec=-1,
            reconnect_delay_sec=1,
            fast_io_fail_timeout_sec=1,
        )

    async def bind(self, flags: int) -> Any:
        message = BindSlot(5, flags, self.container_id, CLUSTER, 1, SEGMENT, 0, "farn1")
        return await self.daemon.ask(message, self.daemon.header(table=0))

    async def build(self) -> None:
        await self.export()
        await self.attach()
        self.daemon = daemon = Daemon(await unix.connect(self.plane.dataplane_socket))
        await daemon.until(lambda: daemon.hello)
        admit = Admit(CLUSTER, 60 * SECOND, 20 * SECOND, 20 * SECOND)
        daemon.epoch = (await daemon.begin(admit, Header(TERM, INCARNATION)))[1].epoch
        daemon.grant(time.monotonic_ns(), 60 * SECOND)
        answer = await self.bind(AttachFlags.INITIALIZE)
        assert answer.status is Status.OK, answer
        nqn, port = f"{NQN}far{self.number}", free_port()
        shape = SegmapBdev("v", str(uuid.uuid4()), self.table, SEGMENTS, SEGMENT, 512)
        call = bdev_segmap.create(shape)
        await self.rpc(call.method, **call.params)
        await self.rpc("nvmf_create_transport", trtype="TCP")
        await self.rpc("nvmf_create_subsystem", nqn=nqn, allow_any_host=True)
        await self.rpc("nvmf_subsystem_add_ns", nqn=nqn, namespace={"bdev_name": "v"})
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port}
        await self.rpc("nvmf_subsystem_add_listener", nqn=nqn, listen_address=address)
        assert (await daemon.ask(TableSlots([5]), daemon.header(table=self.table))).status is Status.OK
        tables = (await daemon.ask(TableStatus(), daemon.header(table=0))).tables
        daemon.sequence = dict(tables)[self.table]
        assert await self.set(0, pack(5, 3)) is Status.OK
        self.host = await NvmeTcpHost.connect("127.0.0.1", int(port), nqn, HOST, io_queues=1, queue_depth=32)

    async def set(self, start: int, *entries: int) -> Status:
        header = self.daemon.next(table=self.table)
        return Status((await self.daemon.ask(SetEntries(start, len(entries), list(entries)), header)).status)

    def barrier(self) -> asyncio.Future[Any]:
        """A blocking change that begins now."""
        return self.daemon.begin(SetEntries(7, 1, [0]), self.daemon.next(blocking=True, table=self.table))

    async def state(self) -> str:
        (report,) = await self.rpc("bdev_nvme_get_controllers", name="far")
        return str(report["ctrlrs"][0]["state"])

    async def until_state(self, usable: bool) -> None:
        while (await self.state() == "enabled") is not usable:
            await asyncio.sleep(0.01)

    async def interrupt(self) -> None:
        """The connection is lost, and cannot be made again for now."""
        listener = {key: value for key, value in self.address.items() if key != "subnqn"}
        await self.container_host.call("nvmf_subsystem_remove_listener", nqn=CONTAINER, listen_address=listener)

    async def listen(self) -> None:
        listener = {key: value for key, value in self.address.items() if key != "subnqn"}
        await self.container_host.call("nvmf_subsystem_add_listener", nqn=CONTAINER, listen_address=listener)

    async def reconnect(self) -> None:
        """Lost, and back."""
        await self.interrupt()
        await self.until_state(False)
        await self.listen()
        await self.until_state(True)

    async def close(self) -> None:
        self.finishing = True
        await self.listen_again()
        await self.host.close()
        self.daemon.connection.close()
        while not self.daemon.ended:
            await asyncio.sleep(0)

    async def listen_again(self) -> None:
        with contextlib.suppress(Exception):
            await self.listen()


@asynccontextmanager
async def scene_of(name: str, directory: Path) -> AsyncIterator[Scene]:
    """Both targets, and what a test needs of them."""
    rpc_socket, dataplane_socket = directory / "rpc.sock", directory / "plane.sock"
    command = command_of(name, rpc_socket, dataplane_socket=dataplane_socket)
    target = await Target.start(command, rpc_socket, log_path=directory / "log", ready_s=READY_S)
    try:
        with RpcClient(rpc_socket, timeout_s=20) as client:
            async with RunningTarget(directory) as container_host:
                scene = Scene(Plane(name, client, rpc_socket, dataplane_socket, command_of), container_host)
                finishing = asyncio.ensure_future(scene.finish())
                try:
                    await scene.build()
                    yield scene
                    await scene.close()
                    if not scene.deleted:
                        await scene.rpc("bdev_segmap_delete", name="v")
                    await scene.rpc("bdev_nvme_detach_controller", name="far")
                finally:
                    finishing.cancel()
                    scene.slow.finish(len(scene.slow.waiting))
    finally:
        status = await target.stop()
        log = (directory / "log").read_text()
        if os.environ.get("SHOW_LOG"):
            print(log[-6000:])
    assert status == 0, log[-2000:]


def play(name: str, directory: Path, act: Callable[[Scene], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(WAIT_S), scene_of(name, directory) as scene:
            await act(scene)

    asyncio.run(limited())


def test_the_flush_after_a_lost_connection_fails_once(name: str, runtime_dir: Path) -> None:
    async def act(scene: Scene) -> None:
        data = random.Random(1).randbytes(4096)
        await scene.host.flush(1)
        await scene.host.write(1, 4096, data)
        await scene.reconnect()
        assert await scene.host.read(1, 4096, 4096) == data
        with pytest.raises(NvmeStatusError):
            await scene.host.flush(1)
        await scene.host.flush(1)
        (info,) = await scene.rpc("bdev_segmap_get")
        assert info["present"] is True

    play(name, runtime_dir, act)


def test_a_write_that_a_lost_connection_broke_holds_up_barriers(name: str, runtime_dir: Path) -> None:
    async def act(scene: Scene) -> None:
        await leave_a_write(scene)
        assert (await scene.rpc("bdev_segmap_get_stats"))["bdevs"][0]["unsettled"] == 1
        waiting = scene.barrier()
        assert await scene.set(1, 0) is Status.OK, "what comes later is answered"
        assert not waiting.done()
        scene.finishing = True
        await scene.listen()
        assert (await waiting)[0].status is Status.OK
        await scene.until_state(True)
        assert (await scene.rpc("bdev_segmap_get_stats"))["bdevs"][0]["unsettled"] == 0
        await scene.host.read(1, 0, 512)

    play(name, runtime_dir, act)


async def leave_a_write(scene: Scene) -> None:
    """A write that has failed for its host and still runs at the container, which cannot be reached."""
    scene.finishing = False
    writing = asyncio.ensure_future(scene.host.write(1, 0, b"w" * 4096))
    while not scene.slow.waiting:
        await asyncio.sleep(0.001)
    await scene.interrupt()
    with pytest.raises(NvmeStatusError):
        await writing


def test_a_disk_is_listed_until_what_was_lost_has_ended(name: str, runtime_dir: Path) -> None:
    async def act(scene: Scene) -> None:
        await leave_a_write(scene)
        deleting = asyncio.ensure_future(scene.rpc("bdev_segmap_delete", name="v"))
        loop = asyncio.get_running_loop()
        with RpcClient(scene.plane.rpc_socket, timeout_s=20) as other:
            while (await loop.run_in_executor(None, other.call, "bdev_segmap_get"))[0]["present"]:
                await asyncio.sleep(0.01)
            assert not deleting.done()
            (stats,) = (await loop.run_in_executor(None, other.call, "bdev_segmap_get_stats"))["bdevs"]
            assert stats["unsettled"] == 1
            scene.finishing = True
            await scene.listen()
            assert await deleting is True
            assert await loop.run_in_executor(None, other.call, "bdev_segmap_get") == []
        scene.deleted = True

    play(name, runtime_dir, act)


def test_the_same_host_at_the_same_place_settles_what_was_lost(name: str, runtime_dir: Path) -> None:
    async def act(scene: Scene) -> None:
        await leave_a_write(scene)
        waiting = scene.barrier()
        assert (await scene.daemon.ask(UnbindSlot(5), scene.daemon.header(table=0))).status is Status.BUSY
        await scene.rpc("bdev_nvme_detach_controller", name="far")
        scene.finishing = True
        await scene.listen()
        await scene.attach()
        assert not waiting.done()
        assert (await scene.bind(0)).status is Status.OK
        assert (await waiting)[0].status is Status.OK
        await scene.host.read(1, 0, 512)

    play(name, runtime_dir, act)


async def unsettled(scene: Scene) -> Any:
    return (await scene.rpc("bdev_segmap_get_stats"))["bdevs"][0]["unsettled"]


def test_another_place_settles_nothing_of_the_one_before(name: str, runtime_dir: Path) -> None:
    async def move(scene: Scene, flags: int) -> None:
        await scene.rpc("bdev_nvme_detach_controller", name="far")
        scene.address = scene.address | {"trsvcid": str(free_port())}
        await scene.listen()
        await scene.attach()
        assert (await scene.bind(flags)).status is Status.OK

    async def act(scene: Scene) -> None:
        await leave_a_write(scene)
        waiting = scene.barrier()
        scene.finishing = True
        await move(scene, 0)
        await scene.reconnect()
        await scene.host.read(1, 0, 512)
        assert await unsettled(scene) == 1, "the process at the old address may still have it"
        assert not waiting.done()
        await scene.interrupt()
        await move(scene, AttachFlags.ENDED)
        assert (await waiting)[0].status is Status.OK
        assert await unsettled(scene) == 0

    play(name, runtime_dir, act)


def test_a_bdev_that_comes_back_as_something_else_is_not_used(name: str, runtime_dir: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.host.write(1, 0, b"mine" * 1024)
        await scene.interrupt()
        await scene.until_state(False)
        scene.slow._memory[0:4096] = bytes(4096)
        scene.slow._memory[3 * SEGMENT : 3 * SEGMENT + 4096] = b"else" * 1024
        await scene.listen()
        for transfer in (scene.host.read(1, 0, 4096), scene.host.write(1, 0, b"more" * 1024)):
            with pytest.raises(NvmeStatusError):
                await transfer
        assert scene.slow._memory[3 * SEGMENT : 3 * SEGMENT + 4096] == b"else" * 1024
        assert await scene.state() != "enabled"
        # Whoever wants it all the same has to say so.
        while (await scene.bind(AttachFlags.INITIALIZE | AttachFlags.FORCE)).status is Status.IO_ERROR:
            await asyncio.sleep(0.01)
        assert await scene.host.read(1, 0, 4096) == b"else" * 1024

    play(name, runtime_dir, act)


def test_a_label_is_renewed(name: str, runtime_dir: Path) -> None:
    async def act(scene: Scene) -> None:
        async def bind(flags: int, generation: int) -> Status:
            message = BindSlot(5, flags, scene.container_id, CLUSTER, generation, SEGMENT, 0, "farn1")
            return Status((await scene.daemon.ask(message, scene.daemon.header(table=0))).status)

        before = bytes(scene.slow._memory[:4096])
        assert await bind(0, 4) is Status.OK
        assert bytes(scene.slow._memory[:4096]) == before
        assert await bind(AttachFlags.RENEW, 4) is Status.OK
        assert bytes(scene.slow._memory[:4096]) != before
        assert await bind(AttachFlags.RENEW, 3) is Status.LABEL_MISMATCH
        await scene.reconnect()
        await scene.host.write(1, 0, b"z" * 512)

    play(name, runtime_dir, act)
