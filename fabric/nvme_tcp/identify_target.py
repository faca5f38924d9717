"""Identify, as the target answers it: what it can do, and what its namespaces are.

Nothing is claimed that is not there: no Compare, no reservations, no fused operations, no zeroes after deallocation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fabric.nvme_tcp import identify as identify_fields
from fabric.nvme_tcp.controller import ABORTS_MAX, ASYNC_EVENTS_MAX, ERROR_ENTRIES_MAX
from fabric.nvme_tcp.spec import (
    EVENT_CONFIG_DISCOVERY,
    EVENT_CONFIG_NAMESPACES,
    IDENTIFY_BYTES,
    NSID_ALL,
    PAGE_BYTES,
    SQE_BYTES,
    VERSION,
    Cns,
    Status,
)

if TYPE_CHECKING:
    from fabric.nvme_tcp.capsule import Sqe
    from fabric.nvme_tcp.controller import Controller
    from fabric.nvme_tcp.subsystem import Namespace

FIRMWARE: Final = "1.0"
_NVM_COMMAND_SET: Final = 0
_IO_CONTROLLER, _DISCOVERY_CONTROLLER = 1, 2
_ONCS_DEALLOCATE, _ONCS_WRITE_ZEROES = 1 << 2, 1 << 3
_SGLS: Final = 1 | 1 << 20 | 1 << 21  # SGLs; offset in the address; transport data blocks
_VWC_PRESENT_NO_BROADCAST: Final = 1 | 2 << 1
_LPA: Final = 1 << 1 | 1 << 2  # command effects, extended data of Get Log Page
_SHARED_NAMESPACE: Final = 1


def identify(controller: Controller, sqe: Sqe) -> bytes | int:
    """4096 bytes, or the status of a refusal."""
    answer = _ANSWERS.get(sqe.cdw10 & 0xFF)
    return Status.INVALID_FIELD if answer is None else answer(controller, sqe)


def _controller(controller: Controller, _sqe: Sqe) -> bytes:
    subsystem, limits = controller.subsystem, controller.limits
    shared: dict[str, int | bytes] = {
        "fr": identify_fields.text(FIRMWARE, 8),
        "mdts": limits.mdts,
        "cntlid": controller.cntlid,
        "ver": VERSION,
        "aerl": ASYNC_EVENTS_MAX - 1,
        "elpe": ERROR_ENTRIES_MAX - 1,
        "lpa": _LPA,
        "sgls": _SGLS,
        "maxcmd": limits.max_queue_depth,
        "kas": max(1, limits.keep_alive_grain_ms // 100),
        "subnqn": subsystem.nqn.encode(),
        "sn": identify_fields.text(subsystem.serial, 20),
        "mn": identify_fields.text(subsystem.model, 40),
    }
    if subsystem.is_discovery:
        return identify_fields.CONTROLLER.build(oaes=EVENT_CONFIG_DISCOVERY, cntrltype=_DISCOVERY_CONTROLLER, **shared)
    namespaces = subsystem.namespaces.values()
    oncs = _ONCS_DEALLOCATE if any(namespace.deallocate for namespace in namespaces) else 0
    oncs |= _ONCS_WRITE_ZEROES if any(namespace.write_zeroes for namespace in namespaces) else 0
    return identify_fields.CONTROLLER.build(
        cmic=3,  # several ports, several controllers
        oaes=EVENT_CONFIG_NAMESPACES,
        ctratt=1,  # 128-bit host identifier
        cntrltype=_IO_CONTROLLER,
        acl=ABORTS_MAX - 1,
        frmw=3,  # one read-only slot
        wctemp=0x0157,
        cctemp=0x0175,
        sqes=0x66,
        cqes=0x44,
        nn=subsystem.namespaces_max,
        mnan=subsystem.namespaces_max,
        oncs=oncs,
        vwc=_VWC_PRESENT_NO_BROADCAST if controller.has_write_cache else 0,
        ioccsz=(SQE_BYTES + limits.in_capsule_data_size) // 16,
        iorcsz=1,
        msdbd=1,
        **shared,
    )


def _namespace(controller: Controller, sqe: Sqe) -> bytes | int:
    namespace = _find(controller, sqe.nsid)
    if isinstance(namespace, int):
        return namespace
    if namespace is None:
        return bytes(IDENTIFY_BYTES)
    io_blocks_max = controller.limits.max_io_size >> namespace.block_shift
    return identify_fields.NAMESPACE.build(
        nsze=namespace.block_count,
        ncap=namespace.block_count,
        nuse=namespace.block_count,
        nsfeat=int(namespace.thin),
        nmic=_SHARED_NAMESPACE,
        noiob=min(namespace.boundary_blocks, io_blocks_max, 0xFFFF),
        nsattr=int(namespace.read_only),
        nguid=namespace.nguid,
        eui64=namespace.eui64,
        lbaf0=namespace.block_shift << 16,
    )


def _find(controller: Controller, nsid: int) -> Namespace | int | None:
    """The active namespace; None for a valid id that is not active; a status."""
    if nsid == NSID_ALL or not 0 < nsid <= controller.subsystem.namespaces_max:
        return Status.INVALID_NAMESPACE
    return controller.subsystem.namespaces.get(nsid)


def _active(controller: Controller, sqe: Sqe) -> bytes | int:
    if sqe.nsid >= NSID_ALL - 1:
        return Status.INVALID_NAMESPACE
    return identify_fields.identifier_list(controller.subsystem.namespaces, sqe.nsid)


def _descriptors(controller: Controller, sqe: Sqe) -> bytes | int:
    namespace = _find(controller, sqe.nsid)
    if namespace is None or isinstance(namespace, int):
        return Status.INVALID_NAMESPACE
    return identify_fields.descriptors(namespace.eui64, namespace.nguid, namespace.uuid)


def _independent(controller: Controller, sqe: Sqe) -> bytes | int:
    namespace = _find(controller, sqe.nsid)
    if namespace is None or isinstance(namespace, int):
        return Status.INVALID_NAMESPACE
    return identify_fields.NAMESPACE_INDEPENDENT.build(nmic=_SHARED_NAMESPACE, nsattr=int(namespace.read_only), nstat=1)


def _of_nvm_command_set(answer: Callable[[Controller, Sqe], bytes | int]) -> Callable[[Controller, Sqe], bytes | int]:
    def checked(controller: Controller, sqe: Sqe) -> bytes | int:
        return Status.INVALID_FIELD if sqe.cdw11 >> 24 != _NVM_COMMAND_SET else answer(controller, sqe)

    return checked


def _zeroes(_controller: Controller, _sqe: Sqe) -> bytes:
    """No limits of its own beyond MDTS, no protection information, no extended formats."""
    return bytes(IDENTIFY_BYTES)


def _namespace_zeroes(controller: Controller, sqe: Sqe) -> bytes | int:
    namespace = _find(controller, sqe.nsid)
    return namespace if isinstance(namespace, int) else bytes(IDENTIFY_BYTES)


def _command_sets(_controller: Controller, _sqe: Sqe) -> bytes:
    return (1 << _NVM_COMMAND_SET).to_bytes(8, "little").ljust(PAGE_BYTES, b"\0")


_ANSWERS: Final[dict[int, Callable[[Controller, Sqe], bytes | int]]] = {
    Cns.NAMESPACE: _namespace,
    Cns.CONTROLLER: _controller,
    Cns.ACTIVE_NAMESPACES: _active,
    Cns.NAMESPACE_DESCRIPTORS: _descriptors,
    Cns.NAMESPACE_COMMAND_SET: _of_nvm_command_set(_namespace_zeroes),
    Cns.CONTROLLER_COMMAND_SET: _of_nvm_command_set(_zeroes),
    Cns.ACTIVE_NAMESPACES_COMMAND_SET: _of_nvm_command_set(_active),
    Cns.NAMESPACE_INDEPENDENT: _independent,
    Cns.COMMAND_SETS: _command_sets,
}
