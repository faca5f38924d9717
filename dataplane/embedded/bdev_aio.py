"""A file or block device as a bdev: buffered I/O in threads, never in the loop.

The page cache makes it a volatile cache: Flush is fdatasync, and a write with FUA is followed by one. After a failed
fdatasync the kernel may have dropped dirty pages, and says so only once: that counts as a loss (design: a flush that
could have lost something fails, for every virtual disk that may have written here).
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import uuid
from typing import Any, ClassVar, Final

from dataplane.embedded import file_calls
from dataplane.embedded.bdev import Bdev, BdevError, BdevIo
from dataplane.embedded.file_pool import FilePool
from mapping.rules import Operation
from mapping.status import Status

_STATUS: Final = {
    errno.ENOSPC: Status.NO_SPACE,
    errno.EDQUOT: Status.NO_SPACE,
    errno.EROFS: Status.WRITE_PROTECTED,
    errno.EBADF: Status.WRITE_PROTECTED,
}
_OPERATIONS: Final = frozenset({Operation.READ, Operation.WRITE, Operation.WRITE_ZEROES, Operation.FLUSH})


class AioBdev(Bdev):
    """`block_size` 0: that of the device; a plain file has none. `fallocate`: offer unmap."""

    product_name: ClassVar[str] = "AIO disk"
    may_lose: ClassVar[bool] = True
    volatile_cache = True

    def __init__(
        self,
        pool: FilePool,
        name: str,
        filename: str,
        block_size: int = 0,
        read_only: bool = False,
        fallocate: bool = False,
        identity: uuid.UUID | None = None,
    ) -> None:
        self._descriptor = _open(filename, read_only)
        try:
            size, detected = file_calls.size_and_block(self._descriptor)
            self.overridden = bool(block_size)
            block_size = block_size or detected
            if block_size < max(512, detected) or block_size & (block_size - 1) or size % block_size:
                raise BdevError(errno.EINVAL)
        except BaseException:
            os.close(self._descriptor)
            raise
        super().__init__(name, block_size, size // block_size, identity)
        self.filename = filename
        self.read_only = read_only
        self.fallocate = fallocate
        self._operations = _OPERATIONS | {Operation.UNMAP} if fallocate else _OPERATIONS
        self._pool = pool
        self._running = 0
        self._idle: asyncio.Future[None] | None = None

    def supports(self, operation: Operation) -> bool:
        return operation in self._operations

    def _start(self, io: BdevIo) -> None:
        descriptor, offset, length = self._descriptor, io.offset, io.length
        submit, operation = self._pool.submit, io.operation

        def done(answer: Any) -> None:
            self._done(io, answer)

        if operation is Operation.READ:
            accepted = submit(done, file_calls.read, descriptor, offset, length)
        elif operation is Operation.WRITE:
            accepted = submit(done, file_calls.write, descriptor, offset, io.data, io.fua)
        elif operation is Operation.WRITE_ZEROES:
            accepted = submit(done, file_calls.write_zeroes, descriptor, offset, length, io.fua)
        elif operation is Operation.UNMAP:
            accepted = submit(done, file_calls.unmap, descriptor, offset, length)
        else:
            accepted = submit(done, os.fdatasync, descriptor)
        if accepted:
            self._running += 1
        else:
            io.end(Status.BUSY)

    def _done(self, io: BdevIo, answer: Any) -> None:
        self._running -= 1
        status = Status.OK
        if isinstance(answer, OSError):
            status = _STATUS.get(answer.errno or errno.EIO, Status.IO_ERROR)
            if io.operation is Operation.FLUSH or io.fua:
                self.losses += 1
        elif io.operation is Operation.READ:
            io.data = answer
        io.end(status)
        if not self._running and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    async def close(self) -> None:
        if self._running:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        os.close(self._descriptor)

    def describe(self) -> dict[str, Any]:
        return {
            "aio": {
                "filename": self.filename,
                "block_size_override": self.overridden,
                "readonly": self.read_only,
                "fallocate": self.fallocate,
                "nowait": False,
            }
        }

    def config(self) -> dict[str, Any]:
        params: dict[str, Any] = {"name": self.name}
        if self.overridden:
            params["block_size"] = self.block_size
        params |= {
            "filename": self.filename,
            "readonly": self.read_only,
            "fallocate": self.fallocate,
            "uuid": str(self.uuid),
            "nowait": False,
        }
        return {"method": "bdev_aio_create", "params": params}


def _open(filename: str, read_only: bool) -> int:
    try:
        descriptor = os.open(filename, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BdevError(error.errno or errno.EIO) from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return descriptor
    os.close(descriptor)
    raise BdevError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL)
