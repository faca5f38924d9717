"""A host for which the loss of its controller is a pause: what it submits again, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dataplane.embedded.nvme_host import NvmeStatusError, NvmeTcpHost, ReconnectPolicy, _Session
from dataplane.embedded.patient_host import PatientHost
from fabric.nvme_tcp.host_command import HostCommand
from fabric.nvme_tcp.spec import DNR, Opcode, Status
from tests.embedded.embedded_target import RunningTarget

NQN = "nqn.2026-11.io.segmap:patience"
UUID = "5e1f0000-0000-4000-8000-000000000002"
OTHER_UUID = "5e1f0000-0000-4000-8000-000000000003"
BLOCKS = 256
QUICK = ReconnectPolicy(0.005, 0.01)


class Machine:
    """A target with one namespace in memory that can go, and come back at the same place."""

    def __init__(self, directory: Path) -> None:
        self.target = RunningTarget(directory)
        self._directory = directory

    async def start(self, uuid: str = UUID, blocks: int = BLOCKS) -> None:
        port = self.target.port
        self.target = RunningTarget(self._directory)
        self.target.port = port
        await self.target.__aenter__()
        await self.target.call("bdev_malloc_create", name="m", block_size=512, num_blocks=blocks, uuid=uuid)
        await self.target.export(NQN, "m")

    async def stop(self) -> None:
        await self.target.__aexit__()


@asynccontextmanager
async def connected(directory: Path, reconnect: ReconnectPolicy = QUICK) -> AsyncIterator[tuple[Machine, PatientHost]]:
    machine = Machine(directory)
    await machine.start()
    host = await PatientHost.connect("127.0.0.1", machine.target.port, NQN, reconnect=reconnect)
    try:
        yield machine, host
    finally:
        await host.close()
        await machine.stop()


def cut(host: PatientHost) -> None:
    """The connection is lost now, with what is under way."""
    assert host._session is not None
    host._session.lost("cut")


async def lost(host: PatientHost) -> None:
    while host.connected:
        await asyncio.sleep(0)


def test_what_was_under_way_is_submitted_again(runtime_dir: Path) -> None:
    async def work() -> None:
        async with connected(runtime_dir) as (_, host):
            await host.write(1, 0, b"a" * 512)
            under_way = [
                asyncio.create_task(host.write(1, 512, b"b" * 1024)),
                asyncio.create_task(host.read(1, 0, 512)),
                asyncio.create_task(host.flush(1)),
                asyncio.create_task(host.write_zeroes(1, 4096, 512)),
                asyncio.create_task(host.deallocate(1, [(8192, 512)])),
            ]
            await asyncio.sleep(0)
            cut(host)
            assert not host.connected
            _, data, *_ = await asyncio.gather(*under_way)
            assert data == b"a" * 512
            assert await host.read(1, 0, 2048) == b"a" * 512 + b"b" * 1024 + bytes(512)

    asyncio.run(work())


def test_a_long_transfer_loses_its_connection_twice(runtime_dir: Path) -> None:
    async def work() -> None:
        async with connected(runtime_dir) as (_, host):
            data = bytes(range(256)) * (BLOCKS * 512 // 256)
            for _ in range(2):
                writing = asyncio.create_task(host.write(1, 0, data))
                await asyncio.sleep(0)
                cut(host)
                await writing
            reading = asyncio.create_task(host.read(1, 0, len(data)))
            await asyncio.sleep(0)
            cut(host)
            assert await reading == data

    asyncio.run(work())


def test_io_waits_for_a_target_that_is_away(runtime_dir: Path) -> None:
    async def work() -> None:
        async with connected(runtime_dir) as (machine, host):
            await machine.stop()
            await lost(host)
            waiting = asyncio.create_task(host.write(1, 512, b"w" * 512))
            refused = 0
            while refused < 3:  # attempts to connect, while nothing listens
                await asyncio.sleep(0.005)
                refused += host.lost_reason is not None
            assert not waiting.done()
            await machine.start()
            await waiting
            assert await host.read(1, 512, 512) == b"w" * 512

    asyncio.run(work())


def test_patience_ends(runtime_dir: Path) -> None:
    async def work() -> None:
        async with connected(runtime_dir) as (machine, host):
            host.patience_s = 0.02
            await machine.stop()
            await lost(host)
            with pytest.raises(NvmeStatusError) as caught:
                await host.read(1, 0, 512)
            assert caught.value.status == Status.HOST_PATH_ERROR
            await machine.start()

    asyncio.run(work())


def test_a_host_that_gives_up_ends_what_waits(runtime_dir: Path) -> None:
    async def work() -> None:
        async with connected(runtime_dir, ReconnectPolicy(0.002, 0.002, give_up_after=0.0)) as (machine, host):
            await machine.stop()
            await lost(host)
            with pytest.raises(NvmeStatusError) as caught:
                await host.read(1, 0, 512)
            assert caught.value.status == Status.HOST_PATH_ERROR
            await machine.start()

    asyncio.run(work())


def test_closing_ends_what_waits(runtime_dir: Path) -> None:
    async def work() -> None:
        async with connected(runtime_dir) as (machine, host):
            await machine.stop()
            await lost(host)
            waiting = asyncio.create_task(host.read(1, 0, 512))
            await asyncio.sleep(0)
            await host.close()
            with pytest.raises(NvmeStatusError):
                await waiting
            await machine.start()

    asyncio.run(work())


def test_another_namespace_gets_nothing(runtime_dir: Path) -> None:
    async def work() -> None:
        async with connected(runtime_dir) as (machine, host):
            await machine.stop()
            await lost(host)
            waiting = asyncio.create_task(host.write(1, 0, b"x" * 512))
            await asyncio.sleep(0)
            await machine.start(OTHER_UUID)
            with pytest.raises(NvmeStatusError) as caught:
                await waiting
            assert caught.value.status == Status.INVALID_NAMESPACE | DNR
            assert await host.read(1, 0, 512) == bytes(512)

    asyncio.run(work())


def test_what_the_controller_refuses_is_final(runtime_dir: Path) -> None:
    async def work() -> None:
        async with connected(runtime_dir) as (_, host):
            with pytest.raises(NvmeStatusError) as caught:
                await host.read(1, BLOCKS * 512, 512)
            assert caught.value.status == Status.LBA_OUT_OF_RANGE | DNR

    asyncio.run(work())


@pytest.mark.parametrize(
    "status", [Status.INTERNAL_PATH_ERROR, Status.INTERNAL_PATH_ERROR | DNR, Status.INTERNAL_ERROR]
)
def test_only_what_concerns_the_path_is_tried_again(
    runtime_dir: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data plane whose lease expires says INTERNAL_PATH_ERROR of what it had begun."""

    async def work() -> None:
        async with connected(runtime_dir) as (_, host):
            answers = [status, 0]
            submit = NvmeTcpHost.submit

            def refused_once(self: NvmeTcpHost, command: HostCommand) -> None:
                answer = answers.pop(0)
                if not answer:
                    submit(self, command)
                    return
                command.status = answer
                assert command.done is not None
                command.done(command)

            monkeypatch.setattr(NvmeTcpHost, "submit", refused_once)
            monkeypatch.setattr("dataplane.embedded.patient_host.AGAIN_S", 0.001)
            if status == Status.INTERNAL_PATH_ERROR:
                assert await host.read(1, 0, 512) == bytes(512)
            else:
                with pytest.raises(NvmeStatusError) as caught:
                    await host.read(1, 0, 512)
                assert caught.value.status == status

    asyncio.run(work())


def test_a_connection_that_is_lost_as_soon_as_it_is_there_is_made_anew(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fates = ["lost at once"]
    start = _Session.start

    def start_doomed(session: _Session) -> None:
        start(session)
        if fates:
            fate = fates.pop()
            session.ready.add_done_callback(lambda _: session.lost(fate))

    async def run() -> None:
        async with connected(runtime_dir) as (_, host):
            monkeypatch.setattr(_Session, "start", start_doomed)
            cut(host)
            async with asyncio.timeout(5):
                await host.write(1, 0, b"1" * 512)
            assert not fates and host.connected

    asyncio.run(run())


def test_what_has_ended_unsent_is_not_sent_any_more(runtime_dir: Path) -> None:
    async def run() -> None:
        async with connected(runtime_dir) as (_, host):
            data = bytearray(b"1" * 512)
            command = HostCommand(Opcode.WRITE, 1, 0, 1, data)
            host.submit(command)
            cut(host)
            assert command.status == Status.HOST_PATH_ERROR
            data[:] = b"2" * 512  # it is the caller's again
            assert await host.read(1, 0, 512) == bytes(512)

    asyncio.run(run())
