"""The blocking calls that a file-backed bdev makes, each to be run in a thread; every one raises OSError.

Zeroes are written by fallocate where that guarantees them (ZERO_RANGE, else PUNCH_HOLE: after either, the range reads
as zeroes, on files and on block devices), else block by block.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from typing import Final

from dataplane.embedded.bdev import Buffer

KEEP_SIZE: Final = 1
PUNCH_HOLE: Final = 2
ZERO_RANGE: Final = 16
_BLKGETSIZE64: Final = 0x80081272
_BLKSSZGET: Final = 0x1268
_CHUNK: Final = bytes(1 << 20)
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)


def size_and_block(descriptor: int) -> tuple[int, int]:
    """(bytes, block size) of a file or block device; 0 for the block size that a plain file does not have."""
    status = os.fstat(descriptor)
    if not stat.S_ISBLK(status.st_mode):
        return status.st_size, 0
    size = struct.unpack("Q", fcntl.ioctl(descriptor, _BLKGETSIZE64, bytes(8)))[0]
    return size, struct.unpack("i", fcntl.ioctl(descriptor, _BLKSSZGET, bytes(4)))[0]


def read(descriptor: int, offset: int, length: int) -> bytes:
    """Exactly `length` bytes."""
    data = os.pread(descriptor, length, offset)
    if len(data) == length:
        return data
    pieces = [data]
    got = len(data)
    while got < length:
        piece = os.pread(descriptor, length - got, offset + got)
        if not piece:
            raise OSError(errno.EIO, "the file has become shorter")
        pieces.append(piece)
        got += len(piece)
    return b"".join(pieces)


def write(descriptor: int, offset: int, data: Buffer, flush: bool) -> None:
    """All of `data`, and to stable storage if `flush`."""
    written = os.pwrite(descriptor, data, offset)
    while written < len(data):
        written += os.pwrite(descriptor, memoryview(data)[written:], offset + written)
    if flush:
        os.fdatasync(descriptor)


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> bool:
    """False if the file system cannot do that."""
    if _libc.fallocate(descriptor, mode, offset, length) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number))


def write_zeroes(descriptor: int, offset: int, length: int, flush: bool) -> None:
    """The range reads as zeroes afterwards."""
    for mode in (ZERO_RANGE | KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE):
        if _fallocate(descriptor, mode, offset, length):
            break
    else:
        for at in range(0, length, len(_CHUNK)):
            write(descriptor, offset + at, memoryview(_CHUNK)[: length - at], False)
    if flush:
        os.fdatasync(descriptor)


def unmap(descriptor: int, offset: int, length: int) -> None:
    """Give the space back where that is possible; the content is undefined afterwards."""
    _fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, offset, length)
