"""NVMe commands onto bdevs: the backend of the NVMe/TCP server, and namespaces that are wired to a bdev.

A read that ends with anything but OK returns no data. Statuses that a host may get over by waiting or by another path
are without the do-not-retry bit; the others have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dataplane.embedded.bdev import Bdev, BdevIo
from fabric.nvme_tcp import spec
from fabric.nvme_tcp.command import Command
from fabric.nvme_tcp.spec import DNR, Opcode
from fabric.nvme_tcp.subsystem import Namespace
from fabric.nvme_tcp.target_connection import TargetConnection
from mapping.rules import Operation
from mapping.status import Status

STATUSES: Final[dict[Status, int]] = {
    Status.OK: spec.Status.SUCCESS,
    Status.NO_SPACE: spec.Status.CAPACITY_EXCEEDED | DNR,
    Status.WRITE_PROTECTED: spec.Status.NAMESPACE_WRITE_PROTECTED | DNR,
    Status.OUT_OF_RANGE: spec.Status.LBA_OUT_OF_RANGE | DNR,
    Status.UNSUPPORTED: spec.Status.INVALID_OPCODE | DNR,
    Status.CANCELLED: spec.Status.ABORTED_BY_REQUEST | DNR,
    Status.LEASE_EXPIRED: spec.Status.INTERNAL_PATH_ERROR,
    Status.NO_TABLE: spec.Status.INTERNAL_PATH_ERROR,
    Status.NO_CONTAINER: spec.Status.INTERNAL_PATH_ERROR,
    Status.TIMEOUT: spec.Status.NAMESPACE_NOT_READY,
    Status.BUSY: spec.Status.NAMESPACE_NOT_READY,
    Status.LIMIT: spec.Status.NAMESPACE_NOT_READY,
}
OPERATIONS: Final[dict[int, Operation]] = {
    Opcode.READ: Operation.READ,
    Opcode.WRITE: Operation.WRITE,
    Opcode.FLUSH: Operation.FLUSH,
    Opcode.WRITE_ZEROES: Operation.WRITE_ZEROES,
    Opcode.DATASET_MANAGEMENT: Operation.UNMAP,
}


def nvme_status(status: Status, operation: Operation) -> int:
    """What the host is told."""
    known = STATUSES.get(status)
    if known is not None:
        return known
    if status is Status.IO_ERROR:
        return spec.Status.UNRECOVERED_READ_ERROR if operation is Operation.READ else spec.Status.WRITE_FAULT
    return spec.Status.INTERNAL_ERROR


class _Unmap:
    """The ranges of one Dataset Management command: one I/O each, the first bad status counts."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.left = len(command.ranges)
        self.status = Status.OK
        shift = command.namespace.block_shift
        self.ios = [
            BdevIo(Operation.UNMAP, start << shift, count << shift, self.done, owner=command.connection)
            for start, count in command.ranges
        ]

    def done(self, io: BdevIo) -> None:
        self.left -= 1
        if self.status is Status.OK:
            self.status = io.status
        if not self.left:
            self.command.connection.complete(self.command, nvme_status(self.status, Operation.UNMAP))


class BdevBackend:
    """Executes commands of namespaces whose owner is a Bdev. `command.context` is the BdevIo, or the list of them."""

    def bdev_namespace(
        self, nsid: int, bdev: Bdev, *, uuid: bytes = b"", nguid: bytes = bytes(16), eui64: bytes = bytes(8)
    ) -> Namespace:
        """A namespace of the same geometry, with what the bdev can do."""
        boundary = getattr(bdev, "optimal_io_boundary", 0)
        return Namespace(
            nsid,
            bdev.block_size,
            bdev.block_count,
            uuid=uuid or bdev.uuid.bytes,
            nguid=nguid,
            eui64=eui64,
            read_only=bdev.read_only,
            volatile_cache=bdev.volatile_cache,
            deallocate=bdev.supports(Operation.UNMAP),
            write_zeroes=bdev.supports(Operation.WRITE_ZEROES),
            boundary_blocks=boundary,
            owner=bdev,
            read_now=bdev.read_now,
            write_now=bdev.write_now,
        )

    def execute(self, connection: TargetConnection, commands: list[Command]) -> None:
        for command in commands:
            bdev = command.namespace.owner
            assert isinstance(bdev, Bdev)
            opcode = command.opcode
            if opcode == Opcode.WRITE and not command.fua:
                assert command.data is not None
                if bdev.write_now(command.offset, command.data):
                    connection.complete(command)
                    continue
            elif opcode == Opcode.DATASET_MANAGEMENT:
                unmap = _Unmap(command)
                command.context = unmap.ios
                for io in unmap.ios:
                    bdev.submit(io)
                continue
            self._submit(connection, command, bdev)

    def _submit(self, connection: TargetConnection, command: Command, bdev: Bdev) -> None:
        io = BdevIo(
            OPERATIONS[command.opcode],
            command.offset,
            command.length,
            _completer(command),
            data=command.data,
            owner=connection,
            fua=command.fua,
        )
        command.context = io
        bdev.submit(io)

    def abort(self, command: Command) -> None:
        bdev = command.namespace.owner
        assert isinstance(bdev, Bdev)
        for io in list(command.context) if isinstance(command.context, list) else [command.context]:
            if isinstance(io, BdevIo):
                bdev.abort(io)

    def connection_lost(self, connection: TargetConnection, commands: list[Command]) -> None:
        for bdev in dict.fromkeys(command.namespace.owner for command in commands):
            assert isinstance(bdev, Bdev)
            bdev.host_lost(connection)


def _completer(command: Command) -> Callable[[BdevIo], None]:
    def done(io: BdevIo) -> None:
        if io.status is Status.OK:
            command.connection.complete(command, 0, io.data if io.operation is Operation.READ else None)
        else:
            command.connection.complete(command, nvme_status(io.status, io.operation))

    return done
