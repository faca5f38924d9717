"""Where bytes come from and go to: one interface for files, block devices, streams and NVMe/TCP namespaces.

Offsets and lengths are bytes. A source's `read` may be called for several ranges at once, except for streams, which
are read in order. A destination is written at any offset; what it must do about its own block size is its business.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import sys
import urllib.parse
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cli.command import CommandError
from cli.exit_codes import ExitCode

FILE_THREADS = 4
Chunk = bytes | bytearray | memoryview


class EndpointError(CommandError):
    """An endpoint that cannot be opened, read or written; the text says what to do."""


class Source(ABC):
    """``size``: bytes it has, None for a stream."""

    size: int | None = None

    @abstractmethod
    async def read(self, offset: int, length: int) -> Chunk:
        """Up to ``length`` bytes; fewer only at the end."""

    @abstractmethod
    async def close(self) -> None:
        """Releases what it holds."""


class Destination(ABC):
    """``capacity``: bytes it can take, None if it grows."""

    capacity: int | None = None

    @abstractmethod
    async def write(self, offset: int, data: Chunk) -> None:
        """All of ``data`` at ``offset``."""

    @abstractmethod
    async def flush(self) -> None:
        """Everything written so far is durable when it returns."""

    @abstractmethod
    async def close(self) -> None:
        """Releases what it holds."""

    async def reader(self) -> Source:
        """The same bytes, to be read again for `--verify`."""
        raise EndpointError("this destination cannot be read back; leave out --verify", ExitCode.USAGE)


class FileEndpoint(Source, Destination):
    """A regular file or a block device; its calls run in threads of their own."""

    def __init__(self, path: Path, writable: bool) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT if writable and not path.exists() else os.O_RDWR if writable else os.O_RDONLY
        try:
            self._fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise EndpointError(f"{path}: {error.strerror}") from None
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            os.close(self._fd)
            raise EndpointError(f"{path} is neither a file nor a block device; use - for a pipe", ExitCode.USAGE)
        self.size = os.lseek(self._fd, 0, os.SEEK_END)
        self.capacity = self.size if stat.S_ISBLK(mode) else None
        self._pool = ThreadPoolExecutor(FILE_THREADS, "segmap-file")

    async def read(self, offset: int, length: int) -> Chunk:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, offset, length)

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        while data and len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    async def write(self, offset: int, data: Chunk) -> None:
        await asyncio.get_running_loop().run_in_executor(self._pool, self._write, offset, data)

    def _write(self, offset: int, data: Chunk) -> None:
        view = memoryview(data)
        while view:
            try:
                done = os.pwrite(self._fd, view, offset)
            except OSError as error:
                code = ExitCode.NO_SPACE if error.errno == 28 else ExitCode.FAILED
                raise EndpointError(f"{self.path}: {error.strerror}", code) from None
            view, offset = view[done:], offset + done

    async def flush(self) -> None:
        """A device is flushed; a regular file is left to the page cache, as cp does."""
        if self.capacity is not None:
            await asyncio.get_running_loop().run_in_executor(self._pool, os.fsync, self._fd)

    async def reader(self) -> Source:
        return FileEndpoint(self.path, writable=False)

    async def close(self) -> None:
        self._pool.shutdown(wait=True)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class InputStream(Source):
    """Standard input, or any pipe: read in order, its length unknown."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0
        self._pool = ThreadPoolExecutor(1, "segmap-stdin")

    async def read(self, offset: int, length: int) -> Chunk:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, offset, length)

    def _read(self, offset: int, length: int) -> bytes:
        while self._position < offset:
            skipped = len(self._stream.read(min(1 << 20, offset - self._position)))
            if not skipped:
                return b""
            self._position += skipped
        data = self._stream.read(length)
        self._position += len(data)
        return data

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class OutputStream(Destination):
    """Standard output, or any pipe: chunks that arrive early wait for those before them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position: int | None = None
        self._early: dict[int, Chunk] = {}
        self._pool = ThreadPoolExecutor(1, "segmap-stdout")

    async def write(self, offset: int, data: Chunk) -> None:
        if self._position is None:
            self._position = 0
        self._early[offset] = data
        ready = []
        while self._position in self._early:
            chunk = self._early.pop(self._position)
            self._position += len(chunk)
            ready.append(chunk)
        if ready:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._stream.writelines, ready)

    async def flush(self) -> None:
        if self._early:
            raise EndpointError("a part of the data is missing: --to-offset is not for a pipe", ExitCode.USAGE)
        await asyncio.get_running_loop().run_in_executor(self._pool, self._stream.flush)

    async def close(self) -> None:
        self._pool.shutdown(wait=True)


class Discard(Destination):
    """/dev/null: only the checksum counts."""

    async def write(self, offset: int, data: Chunk) -> None:
        return

    async def flush(self) -> None:
        return

    async def close(self) -> None:
        return


@dataclass(frozen=True, slots=True)
class NvmeAddress:
    """A namespace: nvme-tcp://HOST:PORT/NQN?nsid=1&hostnqn=NQN."""

    host: str
    port: str
    subnqn: str
    nsid: int
    hostnqn: str | None

    @classmethod
    def parse(cls, text: str) -> NvmeAddress:
        usage = "expected nvme-tcp://HOST:PORT/NQN?nsid=1 (and &hostnqn=NQN)"
        try:
            parts = urllib.parse.urlsplit(text)
            port = parts.port or 4420
        except ValueError:
            raise EndpointError(f"{text!r}: {usage}", ExitCode.USAGE) from None
        options = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
        nsid = options.pop("nsid", ["1"])
        hostnqn = options.pop("hostnqn", [None])
        subnqn = urllib.parse.unquote(parts.path.lstrip("/"))
        good = parts.hostname and subnqn.startswith("nqn.") and len(subnqn) <= 223 and not options
        if not good or len(nsid) != 1 or len(hostnqn) != 1 or not re.fullmatch(r"[1-9]\d{0,8}", nsid[0]):
            raise EndpointError(f"{text!r}: {usage}", ExitCode.USAGE)
        return cls(str(parts.hostname), str(port), subnqn, int(nsid[0]), hostnqn[0])


def is_nvme(text: str) -> bool:
    return text.startswith("nvme-tcp:")


def check_apart(source: str, destination: str, source_offset: int, destination_offset: int, length: int | None) -> None:
    """Refuses a copy that could read what it has written itself."""
    if "-" in (source, destination) or not is_same(source, destination):
        return
    if length is None or abs(source_offset - destination_offset) < length:
        text = f"{source} and {destination} are the same: what is written would be read again"
        raise EndpointError(text, ExitCode.USAGE, "--length and the offsets can keep the ranges apart")


def is_same(one: str, other: str) -> bool:
    """A namespace is the same on all paths to it: at each agent of a vdisk, and however the address is written."""
    if is_nvme(one) and is_nvme(other):
        namespaces = [NvmeAddress.parse(text) for text in (one, other)]
        return len({(namespace.subnqn, namespace.nsid) for namespace in namespaces}) == 1
    if is_nvme(one) or is_nvme(other):
        return False
    return Path(one).exists() and Path(other).exists() and os.path.samefile(one, other)


def file_path(text: str) -> Path:
    """A file's path; what looks like another kind of address is none."""
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", text)
    if scheme:
        raise EndpointError(f"{text!r}: only nvme-tcp:// is known, not {scheme[1]}://", ExitCode.USAGE)
    return Path(text)


async def open_source(text: str) -> Source:
    """The source that ``text`` names."""
    if text == "-":
        return InputStream(sys.stdin.buffer)
    if is_nvme(text):
        from cli.copying.nvme import NvmeEndpoint

        return await NvmeEndpoint.open(NvmeAddress.parse(text), writable=False)
    return FileEndpoint(file_path(text), writable=False)


async def open_destination(text: str) -> Destination:
    """The destination that ``text`` names; a missing file is made."""
    if text == "-":
        return OutputStream(sys.stdout.buffer)
    if text == os.devnull:
        return Discard()
    if is_nvme(text):
        from cli.copying.nvme import NvmeEndpoint

        return await NvmeEndpoint.open(NvmeAddress.parse(text), writable=True)
    return FileEndpoint(file_path(text), writable=True)
