"""Fabrics commands at the target: Connect, Property Get, Property Set (Base Specification, fabrics command set).

A refused Connect says which field was wrong: offset, and whether it is in the data (IATTR 1) or in the command (0).

A Connect waits while commands of connections that the same host has lost are still being executed: a host that is in
again knows that what it sends now is not overtaken by what it sent before. (The standard does not ask for this, and
other targets let a host in at once.) A connection that its host has lost may still look alive here, if the host's FIN
was lost, and commands may still be on it. Where a host has one controller only (`NvmeTarget.single`), its next one says
so: the one before is ended, and waited for like any other. For the rest there is keep alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fabric.nvme_tcp.capsule import Sqe, nqn_of, parse_connect_data
from fabric.nvme_tcp.spec import (
    CNTLID_DYNAMIC,
    CNTLID_STATIC_ANY,
    CONNECT_DATA_BYTES,
    CONNECT_DISABLE_SQ_FLOW,
    DNR,
    FabricsType,
    Property,
    Status,
)

if TYPE_CHECKING:
    from fabric.nvme_tcp.command import Command
    from fabric.nvme_tcp.controller import Controller
    from fabric.nvme_tcp.target_connection import TargetConnection

# Places of Connect's fields, for the refusal.
_IN_DATA: Final = 1 << 16
AT_CNTLID: Final = _IN_DATA | 16
AT_SUBNQN: Final = _IN_DATA | 256
AT_HOSTNQN: Final = _IN_DATA | 512
AT_QID: Final = 42
AT_SQSIZE: Final = 44


class ConnectRefusedError(Exception):
    """Connect cannot succeed: status, and the place of the wrong field.

    `later`: it may when the host tries again. A target that has just started knows its subsystems, their listeners and
    their hosts one after the other, and a kernel that reads "do not retry" then gives up its disk for good.
    """

    def __init__(self, status: int, place: int = 0, *, later: bool = False) -> None:
        super().__init__(f"status {status:x}h at {place:x}h")
        self.status = status if later else status | DNR
        self.place = place


def _invalid(place: int) -> ConnectRefusedError:
    return ConnectRefusedError(Status.CONNECT_INVALID_PARAMETERS, place)


def execute(connection: TargetConnection, command: Command, sqe: Sqe) -> None:
    """Answer a fabrics command; a Connect maybe later."""
    kind = sqe.fabrics_type
    if kind == FabricsType.CONNECT:
        connect(connection, command, sqe)
    elif connection.controller is None:
        connection.complete(command, Status.COMMAND_SEQUENCE_ERROR | DNR)
    elif connection.qid == 0 and kind == FabricsType.PROPERTY_GET:
        value = connection.controller.get_property(sqe.cdw11, bool(sqe.cdw10 & 7))
        if value is None:
            connection.complete(command, Status.INVALID_FIELD | DNR)
        else:
            connection.complete(command, 0, result=value)
    elif connection.qid == 0 and kind == FabricsType.PROPERTY_SET:
        _set_property(connection, connection.controller, command, sqe)
    else:
        connection.complete(command, Status.INVALID_OPCODE | DNR)


def _set_property(connection: TargetConnection, controller: Controller, command: Command, sqe: Sqe) -> None:
    if sqe.cdw11 != Property.CC or sqe.cdw10 & 7:
        connection.complete(command, Status.INVALID_FIELD | DNR)
        return
    if controller.set_cc(sqe.cdw12):
        for qid, queue in list(controller.queues.items()):
            if qid:
                queue.close("the host reset or shut down the controller")
    connection.complete(command, 0)


def connect(connection: TargetConnection, command: Command, sqe: Sqe) -> None:
    """Answer a Connect, or let it wait; the target calls this again when a lost connection has drained."""
    try:
        cntlid = _connect(connection, command, sqe)
    except ConnectRefusedError as refused:
        connection.complete(command, refused.status, result=refused.place)
    else:
        if cntlid is None:
            connection.target.let_wait(command)
        else:
            connection.complete(command, 0, result=cntlid)


def _connect(connection: TargetConnection, command: Command, sqe: Sqe) -> int | None:
    """Connect this queue pair. Returns the controller id, None if it has to wait; raises ConnectRefusedError."""
    data = command.data
    if data is None or len(data) < CONNECT_DATA_BYTES:
        raise ConnectRefusedError(Status.INVALID_FIELD)
    if connection.controller is not None or connection.connecting not in (None, command):
        raise ConnectRefusedError(Status.COMMAND_SEQUENCE_ERROR)
    if sqe.cdw10 & 0xFFFF:
        raise ConnectRefusedError(Status.CONNECT_INCOMPATIBLE_FORMAT)
    hostid, cntlid, subnqn_field, hostnqn_field = parse_connect_data(data)
    subnqn, hostnqn = nqn_of(subnqn_field), nqn_of(hostnqn_field)
    if hostnqn is None:
        raise _invalid(AT_HOSTNQN)
    subsystem = connection.target.subsystems.get(subnqn or "")
    if subsystem is None:
        raise ConnectRefusedError(Status.CONNECT_INVALID_PARAMETERS, AT_SUBNQN, later=True)
    at_listener = subsystem.is_discovery or connection.listener in subsystem.listeners
    if not subsystem.allows(hostnqn) or not at_listener:
        raise ConnectRefusedError(Status.CONNECT_INVALID_HOST, later=True)
    qid, entries = sqe.cdw10 >> 16, (sqe.cdw11 & 0xFFFF) + 1
    limits = connection.limits
    if not 2 <= entries <= (limits.max_queue_depth if qid else limits.max_admin_depth):
        raise _invalid(AT_SQSIZE)
    flow_control = not sqe.cdw11 >> 16 & CONNECT_DISABLE_SQ_FLOW
    if qid == 0 and connection.target.single(hostnqn):
        connection.target.supersede(subsystem, hostnqn)
    if connection.target.has_lost(subsystem, hostnqn, hostid):
        return None
    if qid == 0:
        if cntlid not in (CNTLID_DYNAMIC, CNTLID_STATIC_ANY):
            raise _invalid(AT_CNTLID)
        controller = connection.target.new_controller(subsystem, hostnqn, hostid)
        if controller is None:
            raise ConnectRefusedError(Status.CONNECT_CONTROLLER_BUSY, later=True)
        # One that has waited counts from the last moment at which it could have waited: nobody here knows the time.
        waited = connection.connecting is command and connection.deadline_ns is not None
        controller.set_keep_alive(sqe.cdw12, (waited and connection.deadline_ns) or connection.now_ns)
    else:
        found = subsystem.controllers.get(cntlid)
        if found is None or (found.hostnqn, found.hostid) != (hostnqn, hostid):
            raise _invalid(AT_CNTLID)
        controller = found
        if not controller.ready or qid > controller.io_queues or qid in controller.queues or subsystem.is_discovery:
            raise _invalid(AT_QID)
    connection.connected(controller, qid, entries, flow_control)
    return controller.cntlid
