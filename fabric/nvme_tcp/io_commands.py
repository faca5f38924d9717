"""I/O commands as a controller checks them (NVM Command Set Specification): fields to a Command, or a refusal.

Order of checks: transfer method, opcode, namespace, protection and write protection, range, length, data pointer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from fabric.nvme_tcp.capsule import unpack_ranges
from fabric.nvme_tcp.command import Command
from fabric.nvme_tcp.spec import (
    CDW12_DEALLOCATE,
    CDW12_FUA,
    CDW12_PROTECTION,
    DATASET_RANGE_BYTES,
    DNR,
    DSM_DEALLOCATE,
    FUSE_MASK,
    PSDT_MASK,
    PSDT_SGL,
    SGL_IN_CAPSULE,
    SGL_TRANSPORT,
    Opcode,
    Status,
)
from fabric.nvme_tcp.subsystem import Namespace

# Behind the common header: opcode, flags, cid, nsid; SGL address, length, type; SLBA (or dwords 10, 11), dword 12.
IO_CAPSULE: Final = Struct("<8xBBHI16xQI3xBQI12x")


@dataclass(slots=True)
class IoFields:
    """What an I/O capsule says beyond opcode, command and namespace."""

    flags: int
    sgl_address: int
    sgl_length: int
    sgl_type: int
    slba: int
    cdw12: int
    capsule_data: memoryview | None


def take_host_data(command: Command, fields: IoFields, need: int) -> int:
    """Where the `need` bytes of host data are: in the capsule, or to be requested. A status."""
    if fields.sgl_type == SGL_IN_CAPSULE:
        carried = 0 if fields.capsule_data is None else len(fields.capsule_data)
        if fields.sgl_address:
            return Status.INVALID_SGL_OFFSET | DNR
        if fields.sgl_length != carried or need > carried:
            return Status.DATA_SGL_LENGTH_INVALID | DNR
        command.data = None if fields.capsule_data is None else fields.capsule_data[:need]
        return 0
    if fields.sgl_type != SGL_TRANSPORT:
        return Status.SGL_TYPE_INVALID | DNR
    if fields.sgl_length < need:
        return Status.DATA_SGL_LENGTH_INVALID | DNR
    command.requested = need
    return 0


def _range(command: Command, fields: IoFields, namespace: Namespace) -> int:
    command.slba = fields.slba
    command.nlb = (fields.cdw12 & 0xFFFF) + 1
    command.offset = fields.slba << namespace.block_shift
    command.length = command.nlb << namespace.block_shift
    if fields.cdw12 & CDW12_PROTECTION:
        return Status.INVALID_FIELD | DNR
    if fields.slba + command.nlb > namespace.block_count:
        return Status.LBA_OUT_OF_RANGE | DNR
    command.fua = bool(fields.cdw12 & CDW12_FUA)
    return 0


def _read(command: Command, fields: IoFields, namespace: Namespace, max_bytes: int) -> int:
    status = _range(command, fields, namespace)
    if status:
        return status
    if command.length > max_bytes:
        return Status.INVALID_FIELD | DNR
    if fields.sgl_type != SGL_TRANSPORT:
        return Status.SGL_TYPE_INVALID | DNR
    return Status.DATA_SGL_LENGTH_INVALID | DNR if fields.sgl_length < command.length else 0


def _write(command: Command, fields: IoFields, namespace: Namespace, max_bytes: int) -> int:
    if namespace.read_only:
        return Status.NAMESPACE_WRITE_PROTECTED | DNR
    status = _range(command, fields, namespace)
    if status:
        return status
    if command.length > max_bytes:
        return Status.INVALID_FIELD | DNR
    return take_host_data(command, fields, command.length)


def _write_zeroes(command: Command, fields: IoFields, namespace: Namespace, _max_bytes: int) -> int:
    if not namespace.write_zeroes:
        return Status.INVALID_OPCODE | DNR
    if namespace.read_only:
        return Status.NAMESPACE_WRITE_PROTECTED | DNR
    command.deallocate = bool(fields.cdw12 & CDW12_DEALLOCATE)
    return _range(command, fields, namespace)


def _flush(_command: Command, _fields: IoFields, _namespace: Namespace, _max_bytes: int) -> int:
    return 0


def _dataset_management(command: Command, fields: IoFields, namespace: Namespace, _max_bytes: int) -> int:
    if not namespace.deallocate:
        return Status.INVALID_OPCODE | DNR
    if namespace.read_only:
        return Status.NAMESPACE_WRITE_PROTECTED | DNR
    command.nlb = (fields.slba & 0xFF) + 1  # number of ranges, until they have been read
    command.deallocate = bool(fields.slba >> 32 & DSM_DEALLOCATE)
    return take_host_data(command, fields, command.nlb * DATASET_RANGE_BYTES)


CHECKS: Final[dict[int, Callable[[Command, IoFields, Namespace, int], int]]] = {
    Opcode.READ: _read,
    Opcode.WRITE: _write,
    Opcode.FLUSH: _flush,
    Opcode.WRITE_ZEROES: _write_zeroes,
    Opcode.DATASET_MANAGEMENT: _dataset_management,
}


def check(command: Command, fields: IoFields, namespaces: dict[int, Namespace], max_bytes: int) -> int:
    """Fill in the command. Returns the status that refuses it, or 0."""
    if fields.flags & FUSE_MASK or fields.flags & PSDT_MASK != PSDT_SGL:
        return Status.INVALID_FIELD | DNR
    checked = CHECKS.get(command.opcode)
    if checked is None:
        return Status.INVALID_OPCODE | DNR
    namespace = namespaces.get(command.nsid)
    if namespace is None:
        return Status.INVALID_NAMESPACE | DNR
    command.namespace = namespace
    return checked(command, fields, namespace, max_bytes)


def read_ranges(command: Command) -> int:
    """Host data of Dataset Management has arrived: ranges from bytes. A status; empty ranges are left out."""
    assert command.data is not None
    ranges = [item for item in unpack_ranges(command.data, command.nlb) if item[1]]
    if any(start + count > command.namespace.block_count for start, count in ranges):
        return Status.LBA_OUT_OF_RANGE | DNR
    command.ranges = ranges if command.deallocate else ()
    return 0
