"""A namespace behind NVMe/TCP as an endpoint, over the embedded data plane's initiator.

Ranges that do not begin and end at blocks are widened for reading; for writing, the blocks at their edges are read,
changed and written back, one at a time, so that two edges in one block do not lose each other's bytes. A connection
that is lost is waited for, and what was under way is submitted again (PatientHost).
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Final

from cli.copying.endpoint import Chunk, Destination, EndpointError, NvmeAddress, Source
from cli.exit_codes import ExitCode
from dataplane.embedded.nvme_host import NvmeHostError, NvmeStatusError, NvmeTcpHost
from dataplane.embedded.patient_host import PatientHost
from fabric.nvme_tcp import spec

IO_QUEUES = 2
QUEUE_DEPTH = 64
IO_TIMEOUT_S = 60.0
HINTS: Final = {
    spec.Status.CONNECT_INVALID_PARAMETERS: "there is no such subsystem; `segmap vdisk show` tells where a vdisk is",
    spec.Status.CONNECT_INVALID_HOST: "not let in: `segmap vdisk present --host NQN` does that; or give &hostnqn=NQN",
}


def own_hostnqn() -> str:
    """This machine and program as a host: a UUID NQN (NVM Express Base, 4.7), new for each run."""
    return f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid4()}"


class NvmeEndpoint(Source, Destination):
    """One namespace, for reading and (if told so) writing."""

    def __init__(self, host: NvmeTcpHost, address: NvmeAddress) -> None:
        namespace = host.namespaces[address.nsid]
        self._host = host
        self._address = address
        self._nsid = address.nsid
        self._block = namespace.block_size
        self._edges = asyncio.Lock()
        self.size = self.capacity = namespace.block_size * namespace.block_count

    @classmethod
    async def open(cls, address: NvmeAddress, writable: bool) -> NvmeEndpoint:
        where = f"{address.host}:{address.port}"
        try:
            host = await PatientHost.connect(
                address.host,
                address.port,
                address.subnqn,
                address.hostnqn or own_hostnqn(),
                io_queues=IO_QUEUES,
                queue_depth=QUEUE_DEPTH,
                io_timeout=IO_TIMEOUT_S,
            )
        except (NvmeHostError, OSError, TimeoutError) as error:
            raise _unreachable(where, error) from None
        try:
            return cls(host, address).checked(writable)
        except (EndpointError, KeyError) as error:
            known = ", ".join(str(nsid) for nsid in sorted(host.namespaces)) or "none"
            await host.close()
            if isinstance(error, KeyError):
                text = f"{where} has no namespace {address.nsid}; it has: {known}"
                raise EndpointError(text, ExitCode.NOT_FOUND) from None
            raise

    def checked(self, writable: bool) -> NvmeEndpoint:
        if writable and self._host.namespaces[self._nsid].read_only:
            raise EndpointError(f"namespace {self._nsid} of {self._address.subnqn} is read-only")
        return self

    async def read(self, offset: int, length: int) -> Chunk:
        assert self.size is not None
        length = max(0, min(length, self.size - offset))
        first = offset - offset % self._block
        last = -(-(offset + length) // self._block) * self._block
        if not length:
            return b""
        data = await self._read_blocks(first, last - first)
        return data if last - first == length else memoryview(data)[offset - first : offset - first + length]

    async def write(self, offset: int, data: Chunk) -> None:
        assert self.capacity is not None
        if offset + len(data) > self.capacity:
            raise EndpointError(f"the namespace has {self.capacity} bytes; the data does not fit", ExitCode.NO_SPACE)
        if offset % self._block == 0 and len(data) % self._block == 0:
            await self._write_blocks(offset, data)
            return
        first = offset - offset % self._block
        last = -(-(offset + len(data)) // self._block) * self._block
        async with self._edges:
            merged = bytearray(await self._read_blocks(first, last - first))
            merged[offset - first : offset - first + len(data)] = data
            await self._write_blocks(first, merged)

    async def flush(self) -> None:
        try:
            await self._host.flush(self._nsid)
        except NvmeStatusError as error:
            raise self._failed("flush", 0, error) from None

    async def reader(self) -> Source:
        return await NvmeEndpoint.open(self._address, writable=False)

    async def close(self) -> None:
        await self._host.close()

    async def _read_blocks(self, offset: int, length: int) -> Chunk:
        try:
            data: Chunk = await self._host.read(self._nsid, offset, length)
        except NvmeStatusError as error:
            raise self._failed("read", offset, error) from None
        return data

    async def _write_blocks(self, offset: int, data: Chunk) -> None:
        try:
            await self._host.write(self._nsid, offset, data)
        except NvmeStatusError as error:
            raise self._failed("write", offset, error) from None

    def _failed(self, what: str, offset: int, error: NvmeStatusError) -> EndpointError:
        full = (error.status & ~spec.DNR) == spec.Status.CAPACITY_EXCEEDED
        return EndpointError(f"{what} at byte {offset}: {error}", ExitCode.NO_SPACE if full else ExitCode.FAILED)


def _unreachable(where: str, error: Exception) -> EndpointError:
    """What went wrong, once, and what to do."""
    text = str(error).removeprefix(f"{where}: ")
    status = error.status & spec.STATUS_MASK if isinstance(error, NvmeHostError) else 0
    if not status:
        return EndpointError(f"{where}: {text}", ExitCode.UNREACHABLE, "is the vdisk presented there?")
    known = next((hint for code, hint in HINTS.items() if code == status), "")
    return EndpointError(f"{where}: {text}", ExitCode.UNREACHABLE, known)
