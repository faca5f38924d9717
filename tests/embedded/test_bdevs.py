"""malloc, null and aio bdevs, the layer that knows them, and the pool that does file calls."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
import uuid
from pathlib import Path

import pytest

from dataplane.embedded import file_calls
from dataplane.embedded.bdev import Bdev, BdevError, BdevEvent, BdevIo, BdevLayer, transfer
from dataplane.embedded.bdev_aio import AioBdev
from dataplane.embedded.bdev_malloc import MallocBdev
from dataplane.embedded.bdev_null import NullBdev
from dataplane.embedded.file_pool import FilePool
from mapping.rules import Operation
from mapping.status import Status
from tests.embedded.scripted_daemon import Io, flush, on_loop, read, settle

IDENTITY = uuid.UUID("00000000-0000-4000-8000-000000000001")


def refused(number: int, call: object, *arguments: object, **named: object) -> None:
    """The call raises BdevError with this errno."""
    with pytest.raises(BdevError) as caught:
        call(*arguments, **named)  # type: ignore[operator]
    assert caught.value.errno == number


def test_malloc_keeps_what_is_written_and_forgets_what_is_unmapped() -> None:
    bdev = MallocBdev("m", 512, 4096)
    model = bytearray(bdev.size)
    dice = random.Random(7)
    for _ in range(300):
        offset = dice.randrange(4096) * 512
        length = min(dice.choice((512, 4096, 12800, 1 << 17)), bdev.size - offset)
        action = dice.randrange(4)
        if action == 0:
            data = dice.randbytes(length)
            assert bdev.write_now(offset, data)
            model[offset : offset + length] = data
        elif action == 1:
            operation = dice.choice((Operation.UNMAP, Operation.WRITE_ZEROES))
            assert Io(bdev, operation, offset, length).status is Status.OK
            model[offset : offset + length] = bytes(length)
        else:
            assert bdev.read_now(offset, length) == model[offset : offset + length]
            assert read(bdev, offset, length).data == model[offset : offset + length]


def test_malloc_costs_nothing_until_it_is_used_and_refuses_what_cannot_be() -> None:
    bdev = MallocBdev("m", 4096, 1 << 30)
    assert bdev.read_now(bdev.size - 4096, 4096) == bytes(4096)
    asyncio.run(bdev.close())
    refused(errno.EINVAL, MallocBdev, "m", 512, 0)
    refused(errno.EINVAL, MallocBdev, "m", 500, 8)
    refused(errno.ENOMEM, MallocBdev, "m", 0, 8)
    refused(errno.ENOMEM, MallocBdev, "m", 4096, 1 << 52)


def test_what_a_read_gave_does_not_change_afterwards() -> None:
    bdev = MallocBdev("m", 512, 64)
    bdev.write_now(0, b"a" * 512)
    before = bdev.read_now(0, 512)
    bdev.write_now(0, b"b" * 512)
    assert before == b"a" * 512


def test_null_forgets_and_does_not_unmap() -> None:
    bdev = NullBdev("n", 512, 1 << 20)
    assert bdev.write_now(0, b"a" * 512)
    assert bdev.read_now(0, 4096) == bytes(4096)
    assert read(bdev, 0, 4 << 20).data == bytes(4 << 20)
    assert Io(bdev, Operation.UNMAP, 0, 512).status is Status.UNSUPPORTED
    assert flush(bdev).status is Status.OK
    refused(errno.EINVAL, NullBdev, "n", 0, 8)


@pytest.mark.parametrize(
    ("offset", "length"), [(-512, 512), (64 * 512, 512), (0, 65 * 512), (1, 512), (0, 100), (512, -512)]
)
def test_io_outside_or_between_blocks_is_refused(offset: int, length: int) -> None:
    bdev = MallocBdev("m", 512, 64)
    assert read(bdev, offset, length).status is Status.OUT_OF_RANGE


# --- the layer -------------------------------------------------------------------------------------------------------


@on_loop
async def test_names_and_aliases_are_used_once_and_found() -> None:
    layer = BdevLayer()
    bdev = MallocBdev("m", 512, 8, IDENTITY)
    layer.register(bdev)
    assert layer.get("m") is layer.get(str(IDENTITY)) is bdev
    refused(errno.EEXIST, layer.register, MallocBdev("m", 512, 8))
    refused(errno.EEXIST, layer.register, MallocBdev("other", 512, 8, IDENTITY))
    refused(errno.EINVAL, layer.register, MallocBdev("", 512, 8))
    refused(errno.ENODEV, layer.find, "m", NullBdev)
    refused(errno.ENODEV, layer.find, "x")
    await layer.unregister(bdev)
    assert layer.get("m") is layer.get(str(IDENTITY)) is None
    assert [kind for _, kind, _ in layer.notifications] == ["bdev_register", "bdev_unregister"]


@on_loop
async def test_removal_waits_until_everyone_has_closed() -> None:
    layer, events = BdevLayer(), list[BdevEvent]()
    bdev = NullBdev("n", 512, 8)
    layer.register(bdev)
    close = bdev.open(events.append)
    task = asyncio.ensure_future(layer.unregister(bdev))
    await settle()
    assert (events, task.done()) == ([BdevEvent.REMOVE], False)
    refused(errno.ENODEV, bdev.open, events.append)
    close()
    await task


def test_a_claim_keeps_others_out() -> None:
    layer, bdev, mine, other = BdevLayer(), NullBdev("n", 512, 8), object(), object()
    layer.claim(bdev, mine, "exclusive_write")
    refused(errno.EPERM, layer.claim, bdev, other, "exclusive_write")
    layer.release(bdev, other)
    assert bdev.claim is not None
    layer.release(bdev, mine)
    layer.claim(bdev, other, "exclusive_write")


@on_loop
async def test_a_name_can_be_waited_for() -> None:
    layer = BdevLayer()
    task = asyncio.ensure_future(layer.wait_for("n", 5000))
    await settle()
    bdev = NullBdev("n", 512, 8)
    layer.register(bdev)
    assert await task is bdev
    with pytest.raises(BdevError) as caught:
        await layer.wait_for("x", 1)
    assert caught.value.errno == errno.ETIMEDOUT
    with pytest.raises(BdevError) as caught:
        await layer.wait_for("x", 0)
    assert caught.value.errno == errno.ENODEV


class LosingBdev(MallocBdev):
    may_lose = True


def test_the_flush_after_a_loss_fails_once_for_whoever_does_not_watch() -> None:
    bdev = LosingBdev("m", 512, 8)
    assert flush(bdev).status is Status.OK
    bdev.losses += 1
    assert flush(bdev, watched=True).status is Status.OK
    assert [flush(bdev).status for _ in range(2)] == [Status.IO_ERROR, Status.OK]


# --- aio -------------------------------------------------------------------------------------------------------------


class AioRig:
    """A pool and one aio bdev on a file of 64 blocks."""

    def __init__(self, path: Path, **named: object) -> None:
        self.path = path
        self.named = named

    async def __aenter__(self) -> AioRig:
        if not self.path.exists():
            self.path.write_bytes(bytes(64 * 512))
        self.pool = FilePool(asyncio.get_running_loop())
        self.bdev = AioBdev(self.pool, "a", str(self.path), 512, **self.named)  # type: ignore[arg-type]
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.bdev.close()
        self.pool.close()


@on_loop
async def test_aio_reads_what_is_written_and_in_the_file(tmp_path: Path) -> None:
    async with AioRig(tmp_path / "f", fallocate=True) as rig:
        bdev = rig.bdev
        assert bdev.read_now(0, 512) is None
        assert not bdev.write_now(0, bytes(512))
        assert (await transfer(bdev, Operation.WRITE, 1024, 1024, b"x" * 1024))[0] is Status.OK
        assert await transfer(bdev, Operation.READ, 512, 2048) == (Status.OK, bytes(512) + b"x" * 1024 + bytes(512))
        assert (await transfer(bdev, Operation.WRITE_ZEROES, 1536, 512))[0] is Status.OK
        assert (await transfer(bdev, Operation.UNMAP, 0, 512))[0] is Status.OK
        assert (await transfer(bdev, Operation.FLUSH))[0] is Status.OK
        assert rig.path.read_bytes()[1024:2048] == b"x" * 512 + bytes(512)
        assert bdev.volatile_cache


@on_loop
async def test_fua_flushes_and_a_failed_flush_is_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AioRig(tmp_path / "f") as rig:
        synced: list[int] = []
        real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", lambda descriptor: (synced.append(descriptor), real(descriptor))[1])
        done = asyncio.Event()
        rig.bdev.submit(BdevIo(Operation.WRITE, 0, 512, lambda io: done.set(), data=b"f" * 512, fua=True))
        await done.wait()
        assert len(synced) == 1

        def fail(descriptor: int) -> None:
            raise OSError(errno.EIO, "lost")

        monkeypatch.setattr(os, "fdatasync", fail)
        assert (await transfer(rig.bdev, Operation.FLUSH))[0] is Status.IO_ERROR
        assert rig.bdev.losses == 1


@on_loop
async def test_zeroes_are_written_where_the_file_system_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_calls, "_fallocate", lambda *_: False)
    path = tmp_path / "f"
    path.write_bytes(b"x" * (5 << 19))
    async with AioRig(path) as rig:
        assert (await transfer(rig.bdev, Operation.WRITE_ZEROES, 512, (5 << 19) - 1024))[0] is Status.OK
    data = path.read_bytes()
    assert data == b"x" * 512 + bytes((5 << 19) - 1024) + b"x" * 512


@on_loop
async def test_errors_of_the_file_are_statuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AioRig(tmp_path / "f") as rig:
        rig.path.write_bytes(bytes(512))
        assert (await transfer(rig.bdev, Operation.READ, 512, 512))[0] is Status.IO_ERROR
        for number, status in ((errno.ENOSPC, Status.NO_SPACE), (errno.EROFS, Status.WRITE_PROTECTED)):

            def fail(*_: object, number: int = number) -> int:
                raise OSError(number, "no")

            monkeypatch.setattr(os, "pwrite", fail)
            assert (await transfer(rig.bdev, Operation.WRITE, 0, 512, bytes(512)))[0] is status


@on_loop
async def test_a_read_only_file_is_not_written(tmp_path: Path) -> None:
    async with AioRig(tmp_path / "f", read_only=True) as rig:
        assert (await transfer(rig.bdev, Operation.WRITE, 0, 512, bytes(512)))[0] is Status.WRITE_PROTECTED
        assert not rig.bdev.supports(Operation.UNMAP)


@on_loop
async def test_what_no_aio_bdev_can_be_made_of(tmp_path: Path) -> None:
    pool = FilePool(asyncio.get_running_loop())
    (tmp_path / "odd").write_bytes(bytes(1000))
    (tmp_path / "good").write_bytes(bytes(4096))
    for number, name, block_size in (
        (errno.ENOENT, "none", 512),
        (errno.EISDIR, ".", 512),
        (errno.EINVAL, "odd", 512),
        (errno.EINVAL, "good", 0),
        (errno.EINVAL, "good", 256),
        (errno.EINVAL, "good", 768),
    ):
        refused(number, AioBdev, pool, "a", str(tmp_path / name), block_size)


@on_loop
async def test_the_pool_refuses_beyond_its_queue_and_drains(tmp_path: Path) -> None:
    gate, answers = threading.Event(), list[object]()
    pool = FilePool(asyncio.get_running_loop(), threads=1, queue_max=3)
    finished = asyncio.Event()

    def done(answer: object) -> None:
        answers.append(answer)
        if len(answers) == 3:
            finished.set()

    accepted = [pool.submit(done, lambda number: (gate.wait(), number)[1], number) for number in range(4)]
    assert accepted == [True, True, True, False]
    gate.set()
    await finished.wait()
    assert answers == [0, 1, 2]
    pool.close()


@on_loop
async def test_a_full_pool_ends_io_as_busy(tmp_path: Path) -> None:
    async with AioRig(tmp_path / "f") as rig:
        rig.pool._queue_max = 0
        assert read(rig.bdev, 0).status is Status.BUSY


def test_every_bdev_reports_the_io_types_that_it_has() -> None:
    bdev: Bdev = MallocBdev("m", 512, 8)
    types = bdev.supported_io_types()
    assert types["read"] and types["unmap"] and types["reset"]
    assert not types["nvme_io"] and not types["compare_and_write"]
