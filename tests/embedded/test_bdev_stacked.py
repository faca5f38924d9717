"""What the error and the delay bdev do with I/O that is aborted, whose host is gone, or that is there at the end; and
what stands on what."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable

import pytest

from dataplane.embedded.bdev import Bdev, BdevError, BdevIo, BdevLayer
from dataplane.embedded.bdev_delay import LATENCIES, DelayBdev
from dataplane.embedded.bdev_error import TOUCHED, ErrorBdev, Injection
from dataplane.embedded.bdev_malloc import MallocBdev
from dataplane.embedded.bdev_stacked import STACKS_MAX, Stacks
from mapping.rules import Operation
from mapping.status import Status

SIZE = 4096
LATE_US = 3_600_000_000


class Stack:
    """A malloc bdev, and what is to stand on it."""

    def __init__(self) -> None:
        self.layer = BdevLayer()
        self.stacks = Stacks(self.layer)
        self.base = MallocBdev("m", 512, 64)
        self.layer.register(self.base)
        self.ended: list[BdevIo] = []

    def error(self) -> ErrorBdev:
        self.stacks.create("error m", "m", lambda base: ErrorBdev(self.layer, base))
        found = self.layer.find("EE_m", ErrorBdev)
        assert isinstance(found, ErrorBdev)
        return found

    def delay(self, **latencies: int) -> DelayBdev:
        times = dict.fromkeys(LATENCIES, 0) | latencies
        self.stacks.create("delay d", "m", lambda base: DelayBdev(self.layer, base, "d", times, chance=lambda: 0.5))
        found = self.layer.find("d", DelayBdev)
        assert isinstance(found, DelayBdev)
        return found

    def submit(self, bdev: Bdev, operation: Operation = Operation.WRITE, owner: object = None) -> BdevIo:
        data = bytes([7]) * SIZE if operation is Operation.WRITE else None
        io = BdevIo(operation, 0, SIZE, self.ended.append, data=data, owner=owner)
        bdev.submit(io)
        return io

    def in_base(self) -> bytes:
        data = self.base.read_now(0, SIZE)
        assert data is not None
        return bytes(data)


def play(story: Callable[[Stack], Awaitable[None]]) -> None:
    async def run() -> None:
        stack = Stack()
        await story(stack)
        for bdev in reversed(list(stack.layer.bdevs.values())):
            await stack.layer.unregister(bdev)
        assert stack.base.claim is None

    asyncio.run(run())


def test_what_is_pending_and_aborted_is_never_done() -> None:
    async def story(stack: Stack) -> None:
        bdev = stack.error()
        bdev.inject(TOUCHED, Injection("pending", 10))
        ours, theirs = object(), object()
        aborted, left, gone = (stack.submit(bdev, owner=owner) for owner in (ours, ours, theirs))
        assert not stack.ended
        bdev.abort(aborted)
        bdev.host_lost(theirs)
        assert [(io, io.status) for io in stack.ended] == [(aborted, Status.CANCELLED), (gone, Status.CANCELLED)]
        assert stack.in_base() == bytes(SIZE)
        bdev.resume()
        assert stack.ended[-1] is left and left.status is Status.OK
        assert stack.in_base() == bytes([7]) * SIZE
        stack.submit(bdev)
        assert len(stack.ended) == 4, "resume ends the injection too"

    play(story)


@pytest.mark.parametrize("kind", ["pending", "nomem"])
def test_what_waits_ends_with_the_bdev(kind: str) -> None:
    async def story(stack: Stack) -> None:
        bdev = stack.error()
        bdev.inject(TOUCHED, Injection(kind, 1000))
        io = stack.submit(bdev)
        await stack.layer.unregister(bdev)
        assert stack.ended == [io] and io.status is Status.CANCELLED
        assert stack.layer.get("EE_m") is None and stack.base.claim is None

    play(story)


def test_injections_count_by_kind_and_from_a_depth_on() -> None:
    async def story(stack: Stack) -> None:
        bdev = stack.error()
        bdev.inject((Operation.READ,), Injection("failure", 1, queue_depth=1))
        assert stack.submit(bdev, Operation.READ).status is Status.OK, "nothing else is under way"
        bdev.inject((Operation.READ,), Injection("failure", 2))
        statuses = [stack.submit(bdev, Operation.READ).status for _ in range(3)]
        assert statuses == [Status.IO_ERROR, Status.IO_ERROR, Status.OK]
        bdev.inject(TOUCHED, Injection("failure", 1))
        assert stack.submit(bdev, Operation.WRITE_ZEROES).status is Status.OK, "never touched"
        assert stack.submit(bdev).status is Status.IO_ERROR
        assert bdev.stat.failed == 3

    play(story)


def test_what_is_late_has_been_done() -> None:
    async def story(stack: Stack) -> None:
        bdev = stack.delay(avg_write=LATE_US)
        aborted, left = stack.submit(bdev), stack.submit(bdev, owner=stack)
        assert stack.in_base() == bytes([7]) * SIZE and not stack.ended
        bdev.abort(aborted)
        bdev.host_lost(stack)
        assert [(io, io.status) for io in stack.ended] == [(aborted, Status.CANCELLED), (left, Status.OK)]
        stack.submit(bdev)
        await stack.layer.unregister(bdev)
        assert stack.ended[-1].status is Status.OK

    play(story)


def test_the_late_keep_their_order() -> None:
    async def story(stack: Stack) -> None:
        bdev = stack.delay(avg_read=20_000)
        first = stack.submit(bdev, Operation.READ)
        bdev.latencies["avg_read"] = 0
        second = stack.submit(bdev, Operation.READ)
        while len(stack.ended) < 2:
            await asyncio.sleep(0.001)
        assert stack.ended == [first, second]

    play(story)


def test_it_goes_with_its_base_and_comes_back() -> None:
    async def story(stack: Stack) -> None:
        bdev = stack.error()
        bdev.inject(TOUCHED, Injection("pending", 1))
        io = stack.submit(bdev)
        await stack.layer.unregister(stack.base)
        assert io.status is Status.CANCELLED and not stack.layer.bdevs
        stack.base = MallocBdev("m", 512, 128)
        stack.layer.register(stack.base)
        assert stack.layer.find("EE_m").block_count == 128
        stack.layer.resized(stack.base, 256)
        assert stack.layer.find("EE_m").block_count == 256

    play(story)


def test_refused_ones_leave_the_base_alone_and_are_not_remembered() -> None:
    async def story(stack: Stack) -> None:
        stack.layer.register(MallocBdev("EE_m", 512, 64))
        with pytest.raises(BdevError) as caught:
            stack.error()
        assert caught.value.errno == errno.EEXIST and stack.base.claim is None
        await stack.layer.unregister(stack.layer.find("EE_m"))
        stack.error()

    play(story)


def test_no_more_than_so_many_are_remembered() -> None:
    stack = Stack()
    for number in range(STACKS_MAX):
        stack.stacks.create(f"error {number}", f"nosuch{number}", lambda base: ErrorBdev(stack.layer, base))
    with pytest.raises(BdevError) as caught:
        stack.error()
    assert caught.value.errno == errno.ENOMEM and stack.base.claim is None


def test_one_that_is_refused_leaves_the_verification_of_the_base_to_its_holder() -> None:
    async def verify() -> bool:
        return True

    async def story(stack: Stack) -> None:
        stack.layer.claim(stack.base, stack, "read_many_write_one")
        stack.base.verify, stack.base.refused = verify, True
        with pytest.raises(BdevError) as caught:
            stack.error()
        assert caught.value.errno == errno.EPERM
        assert stack.base.verify is verify and stack.base.refused
        stack.layer.release(stack.base, stack)

    play(story)
