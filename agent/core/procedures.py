"""Commands about containers and tables: what is done at the target, what at its data plane, and in which order.

What is done at the target converges (spdk_rpc.converge). So each command may be begun again by a later controller
session, whatever an earlier one left half done.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final
from uuid import UUID

from agent.core.work import Ask, Procedure, Step, Unanswered
from channel.messages import (
    AttachContainer,
    Attached,
    BindSlot,
    CreateTable,
    DetachContainer,
    Done,
    TableSlots,
    TableStatus,
    UnbindSlot,
    response_to,
    short,
)
from channel.values import MessageType, TableFlags
from mapping.status import Status
from spdk_rpc import containers, disks
from spdk_rpc.containers import NvmeTcpContainer
from spdk_rpc.converge import TargetConflict, TargetError
from spdk_rpc.errors import RpcError, RpcFailure
from spdk_rpc.methods import bdev_nvme
from spdk_rpc.methods.bdev_nvme import Reconnection
from spdk_rpc.methods.bdev_segmap import SegmapBdev
from spdk_rpc.steps import make

ATTEMPTS_MAX: Final = 4
RECONNECTION: Final = Reconnection(ctrlr_loss_timeout_sec=-1, reconnect_delay_sec=1, fast_io_fail_timeout_sec=10)
NOT_OURS: Final = frozenset({Status.LABEL_MISMATCH, Status.FOREIGN_DATA, Status.OUT_OF_RANGE})
USABLE_STATES: Final = frozenset({"enabled"})
NQN_PREFIX: Final = "nqn.2026-11.io.segmap"

Part = Generator[Step, Any, Any]


def host_nqn(agent: str, incarnation: int) -> str:
    """As whom this incarnation connects to containers: what the container host fences by."""
    return f"{NQN_PREFIX}:agent:{agent}:{incarnation}"


def controller_name(slot: int) -> str:
    """The NVMe controller of a container slot at the target."""
    return f"container{slot}"


def table_name(table: int) -> str:
    """The bdev of a table: named by the vdisk's number."""
    return f"vdisk{table >> 32}"


def answered(kind: MessageType, procedure: Procedure) -> Procedure:
    """The procedure's response; a failure beyond its means becomes a failed response."""
    try:
        return (yield from procedure)
    except (RpcError, TargetConflict) as failure:
        return response_to(kind, Status.IO_ERROR, short(f"the target refused: {failure}"))
    except (RpcFailure, TargetError, Unanswered) as failure:
        return response_to(kind, Status.TIMEOUT, short(f"the target did not answer: {failure}"))


# --- containers ------------------------------------------------------------------------------------------------------


def attach(message: AttachContainer, agent: str, incarnation: int) -> Procedure:
    """Connect to the container, and let the data plane open it and verify its label."""
    container = NvmeTcpContainer(
        controller_name(message.slot),
        message.traddr,
        message.trsvcid,
        message.subnqn,
        host_nqn(agent, incarnation),
        reconnection=RECONNECTION,
    )
    if message.trtype.upper() != "TCP":
        return Attached(Status.UNSUPPORTED, short(f"transport {message.trtype!r}: only TCP is known"))
    yield from _close_elsewhere(container, message.slot)
    yield from containers.attach(container)
    attached = (yield Ask(_bind(message, f"{container.name}n{message.nsid}"))).message
    if attached.status != Status.OK:
        yield from _let_go(message.slot, attached.status in NOT_OURS)
    return Attached(
        attached.status, attached.detail, attached.segment_count, attached.block_size, attached.volatile_cache
    )


def _close_elsewhere(container: NvmeTcpContainer, slot: int) -> Part:
    """A connection of the slot that leads elsewhere, or is an older incarnation's, is replaced: the bdev goes first.

    A slot that tables list stays bound (BUSY): it loses its bdev when its controller is detached, and gets the new one.
    """
    for seen in (yield from make(bdev_nvme.get_controllers())):
        if seen.name == container.name and not any(container.is_at(path) for path in seen.paths):
            yield from _unbind(slot)


def usable_controllers() -> Part:
    """-> dict[str, bool]: name of each attached NVMe controller, and whether it is connected now."""
    found = yield from make(bdev_nvme.get_controllers())
    return {one.name: any(path.state in USABLE_STATES for path in one.paths) for one in found}


def _bind(message: AttachContainer, bdev: str) -> BindSlot:
    return BindSlot(
        slot=message.slot,
        flags=message.flags,
        container=message.container,
        cluster=message.cluster,
        generation=message.generation,
        segment_size=message.segment_size,
        segment_count=message.segment_count,
        bdev_name=bdev,
    )


def _unbind(slot: int) -> Part:
    """Let the data plane close the slot's bdev; a slot it does not know is fine. BUSY is the caller's."""
    response = (yield Ask(UnbindSlot(slot))).message
    return Status.OK if response.status == Status.NO_CONTAINER else response.status


def _let_go(slot: int, stranger: bool) -> Part:
    """After a refused attach: do not stay connected to what is not ours, even if a table still lists the slot (then its
    I/O fails, until the container is found again). Best effort; a later attach looks again."""
    try:
        if (yield from _unbind(slot)) == Status.OK or stranger:
            yield from containers.detach_controller(controller_name(slot))
    except (RpcFailure, TargetError, Unanswered):
        return


def detach(message: DetachContainer) -> Procedure:
    """Close the container and disconnect. Refused with BUSY while a table lists it."""
    status = yield from _unbind(message.slot)
    if status != Status.OK:
        return Done(status, f"slot {message.slot}: the data plane still uses it")
    yield from containers.detach_controller(controller_name(message.slot))
    return Done()


# --- tables ----------------------------------------------------------------------------------------------------------


def create_table(table: int, message: CreateTable) -> Procedure:
    """A new table, every entry invalid [0034]. EXISTS if there is one already: its entries would not be new."""
    if disks.table_of(table, (yield from disks.read_disks())) is not None:
        return Done(Status.EXISTS, f"table {table:#x} is here already")
    disk = SegmapBdev(
        name=table_name(table),
        uuid=str(UUID(bytes=message.vdisk)),
        table=table,
        segment_count=message.segment_count,
        segment_size=message.segment_size,
        block_size=message.block_size,
        read_only=bool(message.table_flags & TableFlags.READ_ONLY),
        reclaim=bool(message.table_flags & TableFlags.RECLAIM),
    )
    yield from disks.create(disk)
    status, detail = yield from _list_slots(table, TableSlots(list(message.slots), list(message.absent)))
    if status != Status.OK:
        yield from delete_table(table)
    return Done(status, detail)


def _list_slots(table: int, message: TableSlots) -> Part:
    """Tell the new table its containers. An epoch that began meanwhile is known by the time of the refusal."""
    if not message.slots and not message.absent:
        return Status.OK, ""
    for _ in range(ATTEMPTS_MAX):
        response = (yield Ask(message, table)).message
        if response.status != Status.STALE_EPOCH:
            break
    return response.status, response.detail


def delete_table(table: int) -> Procedure:
    """Afterwards there is no such table; that it was not there is fine."""
    yield from disks.delete_table(table)
    left = (yield Ask(TableStatus())).message
    if left.status != Status.OK or any(known == table for known, _ in left.tables):
        return Done(Status.BUSY, f"table {table:#x}: its I/O has not ended")
    return Done()
