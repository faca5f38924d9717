"""Block devices of the embedded target: what every one of them is, and the layer that knows them by name.

Everything here belongs to the loop's thread. I/O takes one of two ways: `read_now`/`write_now` do it at once or refuse,
and cost next to nothing; `submit` takes a BdevIo and ends it later, exactly once. Bytes that a read returns are a
private copy: nothing that happens to the device afterwards changes them.

Names, aliases, claims and errors are as SPDK's bdev layer has them.
"""

from __future__ import annotations

import asyncio
import errno
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from enum import Enum
from mmap import mmap
from typing import Any, ClassVar, Final

from dataplane.embedded.losses import Begun, LossWatch
from mapping.rules import Operation, is_write
from mapping.status import Status

Buffer = bytes | bytearray | memoryview
NOTIFICATIONS_MAX: Final = 1024
BDEVS_MAX: Final = 65536
IO_TYPES: Final = (
    "read",
    "write",
    "unmap",
    "flush",
    "reset",
    "nvme_admin",
    "nvme_io",
    "nvme_io_md",
    "write_zeroes",
    "zcopy",
    "get_zone_info",
    "zone_management",
    "zone_append",
    "compare",
    "compare_and_write",
    "abort",
    "seek_hole",
    "seek_data",
    "copy",
    "nvme_iov_md",
    "nvme_nssr",
    "write_uncorrectable",
)


class BdevError(Exception):
    """A refusal with a (positive) errno; `message` replaces the system's text for it if it is not empty."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(number, message)
        self.errno = number
        self.message = message


class BdevEvent(Enum):
    """What those who opened a bdev are told. After REMOVE they close it."""

    REMOVE = "remove"
    RESIZE = "resize"


class BdevIo:
    """One request: `offset` and `length` in bytes. A READ has its bytes in `data` when it ends well.

    `watched`: whoever submits it looks at `Bdev.losses` itself; else the bdev fails the flush that follows a loss.
    `probe`: it goes ahead of what waits for `Bdev.verify`, and fails rather than wait. Not `settled`: it has failed,
    but what it was to write may still be written, until the bdev is attached anew.
    """

    __slots__ = (
        "bdev",
        "begun_ns",
        "context",
        "data",
        "done",
        "fua",
        "length",
        "offset",
        "operation",
        "owner",
        "probe",
        "settled",
        "status",
        "watch",
        "watched",
    )

    def __init__(
        self,
        operation: Operation,
        offset: int,
        length: int,
        done: Callable[[BdevIo], None],
        *,
        data: Buffer | None = None,
        owner: object = None,
        fua: bool = False,
        watched: bool = False,
        probe: bool = False,
    ) -> None:
        self.operation = operation
        self.offset = offset
        self.length = length
        self.done = done
        self.data = data
        self.owner = owner
        self.fua = fua
        self.status = Status.OK
        self.settled = True
        self.bdev: Bdev | None = None
        self.context: Any = None
        self.watched = watched
        self.probe = probe
        self.watch: Begun | None = None
        self.begun_ns = 0

    def end(self, status: Status) -> None:
        """For the bdev that has it: it has ended."""
        if self.watch is not None and self.bdev is not None and self.bdev.has_lost(self.watch):
            status = Status.IO_ERROR
        self.status = status
        done, self.done = self.done, _ended_twice
        if status is not Status.OK and self.bdev is not None:
            self.bdev.stat.failed += 1
        done(self)
        self.context = None  # it may refer back to us: the data's memory must not wait for the garbage collector

    def __repr__(self) -> str:
        return f"BdevIo({self.operation.name} {self.offset}+{self.length})"


def _ended_twice(io: BdevIo) -> None:
    raise AssertionError(f"{io!r} ended twice")


class DirectCount:
    """Counters of I/O that goes past a bdev's methods; shared by the two bdevs that it belongs to."""

    __slots__ = ("bytes_read", "bytes_written", "reads", "writes")

    def __init__(self) -> None:
        self.bytes_read = self.reads = self.bytes_written = self.writes = 0


class IoStat:
    """Counters for bdev_get_iostat. `direct`: more of them, kept elsewhere."""

    __slots__ = (
        "_since",
        "bytes_read",
        "bytes_unmapped",
        "bytes_written",
        "direct",
        "failed",
        "reads",
        "unmaps",
        "writes",
    )

    def __init__(self) -> None:
        self.bytes_read = self.reads = self.bytes_written = self.writes = 0
        self.bytes_unmapped = self.unmaps = self.failed = 0
        self.direct: list[DirectCount] = []
        self._since = Counter[str]()

    def _all(self) -> Counter[str]:
        names = ("bytes_read", "reads", "bytes_written", "writes", "bytes_unmapped", "unmaps")
        totals = Counter({name: getattr(self, name) for name in names})
        for count in self.direct:
            for name in names[:4]:
                totals[name] += getattr(count, name)
        return totals

    def settle(self, count: DirectCount) -> None:
        """This count will not grow any more: keep what it says, and forget it."""
        self.direct.remove(count)
        self.bytes_read += count.bytes_read
        self.reads += count.reads
        self.bytes_written += count.bytes_written
        self.writes += count.writes

    def totals(self) -> Counter[str]:
        """Everything since the last reset."""
        totals = self._all()
        totals.subtract(self._since)
        return totals

    def reset(self, errors_only: bool = False) -> None:
        """Count from 0 again."""
        self.failed = 0
        if not errors_only:
            self._since = self._all()


class Bdev:
    """Base of all. `losses` counts the times that unflushed writes may have been lost here.

    `direct`: the memory that is the whole device, if it is one; whoever uses it counts in a DirectCount.
    `attachments` counts the times that what is behind the bdev was attached anew. Before any I/O goes on then,
    `verify`, which the holder of the claim sets, says whether it is still the same: None if that could not be told.
    `refused`: it was not, and nobody has claimed it since. `origin` says where a remote one leads, and as whom: an
    attach to the same origin succeeds only when I/O from before has ended. `listed_until_closed`: it keeps its name
    while its I/O drains, so that it can be seen that this has not ended yet.
    """

    product_name: ClassVar[str] = ""
    operations: ClassVar[frozenset[Operation]] = frozenset({Operation.READ, Operation.WRITE})
    extra_io_types: ClassVar[frozenset[str]] = frozenset({"reset"})
    may_lose: ClassVar[bool] = False
    listed_until_closed: ClassVar[bool] = False
    origin: tuple[object, ...] | None = None
    direct: mmap | None = None
    volatile_cache = False
    read_only = False
    numa_id: int | None = None

    def __init__(self, name: str, block_size: int, block_count: int, identity: uuid.UUID | None = None) -> None:
        self.name = name
        self.block_size = block_size
        self.block_count = block_count
        self.uuid = identity if identity and identity.int else uuid.uuid4()
        self.aliases: list[str] = []
        self.claim: tuple[object, str] | None = None
        self.stat = IoStat()
        self.losses = 0
        self.attachments = 0
        self.verify: Callable[[], Awaitable[bool | None]] | None = None
        self.refused = False
        self.removing = False
        self.gone = False
        self._watch = LossWatch(0)
        self._opens: dict[int, Callable[[BdevEvent], None]] = {}
        self._closed: asyncio.Future[None] | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.block_size * self.block_count

    def supports(self, operation: Operation) -> bool:
        """Whether `submit` takes it. WRITE_ZEROES is always possible where WRITE is."""
        return operation in self.operations

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """The bytes, or None: then `submit`. The caller has checked the range."""
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        """True if it is done (not flushed, if the cache is volatile); False: then `submit`."""
        return False

    def submit(self, io: BdevIo) -> None:
        """Begin an I/O; it may end before this returns."""
        io.bdev = self
        operation = io.operation
        if self.gone:
            io.end(Status.IO_ERROR)
        elif not self.supports(operation):
            io.end(Status.OK if operation is Operation.FLUSH else Status.UNSUPPORTED)
        elif self.read_only and is_write(operation):
            io.end(Status.WRITE_PROTECTED)
        elif (
            io.offset < 0
            or io.length < 0
            or io.offset + io.length > self.size
            or (io.offset | io.length) % self.block_size
        ):
            io.end(Status.OUT_OF_RANGE)
        else:
            self._account(operation, io.length)
            if self.may_lose and operation is Operation.FLUSH and not io.watched:
                io.watch = self._watch.begin(self.losses)
            self._start(io)

    def has_lost(self, flush: Begun) -> bool:
        """A flush has ended: whether writes before it may have been lost."""
        return self._watch.ended(flush, self.losses)

    def _account(self, operation: Operation, length: int) -> None:
        stat = self.stat
        if operation is Operation.READ:
            stat.reads += 1
            stat.bytes_read += length
        elif operation is Operation.WRITE:
            stat.writes += 1
            stat.bytes_written += length
        elif operation is Operation.UNMAP:
            stat.unmaps += 1
            stat.bytes_unmapped += length

    def _start(self, io: BdevIo) -> None:
        raise NotImplementedError

    def abort(self, io: BdevIo) -> None:
        """End the I/O with CANCELLED if it only waits; one that runs ends by itself."""

    def host_lost(self, owner: object) -> None:
        """A host connection is gone: what waits for it is dropped and never executed."""

    async def close(self) -> None:
        """Give everything back; nobody uses the bdev any more."""

    def open(self, on_event: Callable[[BdevEvent], None]) -> Callable[[], None]:
        """Use the bdev; returns what closes it again."""
        if self.removing:
            raise BdevError(errno.ENODEV)
        token = id(on_event) ^ id(self) ^ len(self._opens)
        while token in self._opens:
            token += 1
        self._opens[token] = on_event

        def close() -> None:
            self._opens.pop(token, None)
            if not self._opens and self._closed is not None and not self._closed.done():
                self._closed.set_result(None)

        return close

    def tell(self, event: BdevEvent) -> None:
        """Tell everyone who opened the bdev."""
        for on_event in list(self._opens.values()):
            on_event(event)

    async def removed(self) -> None:
        """Tell everyone to close, and wait until they have."""
        self.removing = True
        self.tell(BdevEvent.REMOVE)
        if self._opens:
            self._closed = asyncio.get_running_loop().create_future()
            await self._closed

    def resized(self, block_count: int) -> None:
        """The size has changed."""
        self.block_count = block_count
        self.tell(BdevEvent.RESIZE)

    def describe(self) -> dict[str, Any]:
        """The `driver_specific` object of bdev_get_bdevs."""
        return {}

    def config(self) -> dict[str, Any] | None:
        """The call that makes this bdev again, for save_config; None if something else does."""
        return None

    def supported_io_types(self) -> dict[str, bool]:
        """By SPDK's names, in SPDK's order."""
        supported = {operation.name.lower() for operation in Operation if self.supports(operation)}
        supported |= self.extra_io_types
        return {name: name in supported for name in IO_TYPES}


async def transfer(
    bdev: Bdev,
    operation: Operation,
    offset: int = 0,
    length: int = 0,
    data: Buffer | None = None,
    *,
    probe: bool = False,
) -> tuple[Status, Buffer]:
    """One I/O, awaited: its status, and what a read has read."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(io: BdevIo) -> None:
        if not ended.done():
            ended.set_result(None)

    io = BdevIo(operation, offset, length, done, data=data, watched=True, probe=probe)
    bdev.submit(io)
    await ended
    return io.status, io.data if operation is Operation.READ and io.data is not None else b""


class BdevLayer:
    """Bdevs by name and alias, in the order of their registration."""

    def __init__(self) -> None:
        self.bdevs: dict[str, Bdev] = {}
        self._names: dict[str, Bdev] = {}
        self._numbers: Counter[str] = Counter()
        self._notified = 0
        self.notifications: deque[tuple[int, str, str]] = deque(maxlen=NOTIFICATIONS_MAX)
        self._waiting: list[tuple[str, asyncio.Future[Bdev]]] = []
        self.on_registered: Callable[[Bdev], None] | None = None

    def get(self, name: str) -> Bdev | None:
        """The bdev of this name or alias."""
        return self._names.get(name)

    def find(self, name: str, kind: type[Bdev] = Bdev) -> Bdev:
        """Like `get`, but raises BdevError(ENODEV), also if the bdev is of another kind."""
        bdev = self._names.get(name)
        if bdev is None or not isinstance(bdev, kind):
            raise BdevError(errno.ENODEV)
        return bdev

    def check(self, name: str, identity: uuid.UUID | None = None) -> None:
        """Raise BdevError if a bdev so named cannot be registered."""
        if not name:
            raise BdevError(errno.EINVAL)
        if name in self._names or (identity and identity.int and str(identity) in self._names):
            raise BdevError(errno.EEXIST)
        if len(self.bdevs) >= BDEVS_MAX:
            raise BdevError(errno.ENOMEM)

    def free_name(self, prefix: str) -> str:
        """`prefix` and a number that was not used before."""
        while True:
            name = f"{prefix}{self._numbers[prefix]}"
            self._numbers[prefix] += 1
            if name not in self._names:
                return name

    def register(self, bdev: Bdev) -> None:
        """Make the bdev known."""
        self.check(bdev.name, bdev.uuid)
        alias = str(bdev.uuid)
        if alias != bdev.name:
            bdev.aliases = [alias]
        for name in (bdev.name, *bdev.aliases):
            self._names[name] = bdev
        self.bdevs[bdev.name] = bdev
        self._notify("bdev_register", bdev.name)
        for name, waiter in self._waiting:
            if name in self._names and not waiter.done():
                waiter.set_result(bdev)
        if self.on_registered is not None:
            self.on_registered(bdev)

    async def unregister(self, bdev: Bdev) -> None:
        """Take the bdev away: from its users, from the names, then for good."""
        if bdev.removing:
            raise BdevError(errno.EBUSY)
        if not bdev.listed_until_closed:
            self._forget(bdev)
        await bdev.removed()
        bdev.gone = True
        await bdev.close()
        if bdev.listed_until_closed:
            self._forget(bdev)

    def _forget(self, bdev: Bdev) -> None:
        for name in (bdev.name, *bdev.aliases):
            self._names.pop(name, None)
        self.bdevs.pop(bdev.name, None)
        self._notify("bdev_unregister", bdev.name)

    async def wait_for(self, name: str, timeout_ms: int) -> Bdev:
        """The bdev, as soon as it is registered. Raises BdevError: ENODEV without a timeout, else ETIMEDOUT."""
        bdev = self.get(name)
        if bdev is not None or not timeout_ms:
            return self.find(name)
        waiter: asyncio.Future[Bdev] = asyncio.get_running_loop().create_future()
        self._waiting.append((name, waiter))
        try:
            return await asyncio.wait_for(waiter, timeout_ms / 1000)
        except TimeoutError:
            raise BdevError(errno.ETIMEDOUT) from None
        finally:
            self._waiting = [item for item in self._waiting if item[1] is not waiter]

    def resized(self, bdev: Bdev, block_count: int) -> None:
        """Change the size and tell everyone."""
        self._notify("bdev_resize", bdev.name)
        bdev.resized(block_count)

    def claim(self, bdev: Bdev, owner: object, kind: str) -> None:
        """Take the bdev for `owner`, against other writers. Raises BdevError(EPERM)."""
        if bdev.claim is not None:
            raise BdevError(errno.EPERM)
        bdev.claim = (owner, kind)

    def release(self, bdev: Bdev, owner: object) -> None:
        """Undo `claim`; nothing if it is not the owner's."""
        if bdev.claim is not None and bdev.claim[0] is owner:
            bdev.claim = None

    def _notify(self, kind: str, name: str) -> None:
        self.notifications.append((self._notified, kind, name))
        self._notified += 1
