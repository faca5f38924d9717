"""Commands about how hosts reach a vdisk, and agents a container: present, withdraw, allow and deny a host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from agent.core.work import Procedure
from channel.messages import AllowHost, DenyHost, Done, Present, Presented, Withdraw, short
from channel.values import PresentFlags
from mapping.status import Status
from spdk_rpc import exports
from spdk_rpc.disks import read_disks, table_of
from spdk_rpc.exports import FENCED, Export, ExportNamespace, FrontEnd, NoExport

VDISK_MODEL: Final = "segmap vdisk"


def present(table: int, message: Present, front_end: FrontEnd) -> Procedure:
    """Show the vdisk of `table` to its hosts, with the identity that the controller gives it at all agents."""
    disk = table_of(table, (yield from read_disks()))
    if disk is None:
        return Presented(Status.NO_TABLE, f"table {table:#x} is not here")
    yield from front_end.export(_export(message, disk.name))
    address = front_end.address
    return Presented(Status.OK, "", address.traddr, address.trsvcid, address.trtype)


def _export(message: Present, bdev_name: str) -> Export:
    identity = UUID(bytes=message.vdisk)
    return Export(
        nqn=message.subnqn,
        namespaces=(ExportNamespace(message.nsid, bdev_name, str(identity), identity.hex),),
        hosts=frozenset(message.hosts.split()),
        allow_any_host=bool(message.flags & PresentFlags.ALLOW_ANY_HOST),
        serial_number=message.serial,
        model_number=VDISK_MODEL,
        min_cntlid=message.cntlid_min,
        max_cntlid=message.cntlid_max,
    )


def withdraw(message: Withdraw) -> Procedure:
    """Afterwards no host reaches it here; that it was not there is fine."""
    yield from exports.withdraw(message.subnqn)
    return Done()


def allow_host(message: AllowHost) -> Procedure:
    """Put the host on the allow-list."""
    try:
        yield from exports.allow_host(message.subnqn, message.hostnqn)
    except NoExport as error:
        return Done(Status.NOT_FOUND, short(str(error)))
    return Done()


def deny_host(message: DenyHost, clock: Callable[[], int], patience_ns: int) -> Procedure:
    """Take the host off the allow-list, and confirm that none of its queue pairs is left; else NOT_FENCED."""
    problem = yield from exports.deny_host(message.subnqn, message.hostnqn, clock, patience_ns)
    return Done() if problem == FENCED else Done(Status.NOT_FENCED, short(problem))
