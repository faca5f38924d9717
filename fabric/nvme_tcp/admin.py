"""Admin commands at the target (Base Specification, admin command set): one table from opcode to handler.

A handler answers its command by `connection.complete`, at once, except Asynchronous Event Request and Abort.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fabric.nvme_tcp import identify_target, log_pages
from fabric.nvme_tcp.capsule import Sqe
from fabric.nvme_tcp.controller import ABORTS_MAX, Controller
from fabric.nvme_tcp.spec import DNR, IDENTIFY_BYTES, NSID_ALL, AdminOpcode, Feature, Status

if TYPE_CHECKING:
    from fabric.nvme_tcp.command import Command
    from fabric.nvme_tcp.target_connection import TargetConnection

_NAMESPACE_FEATURES: Final = frozenset({Feature.ERROR_RECOVERY})
_DISCOVERY_OPCODES: Final = frozenset(set(AdminOpcode) - {AdminOpcode.ABORT})


def execute(connection: TargetConnection, command: Command, sqe: Sqe) -> None:
    """Answer an admin command, or refuse it."""
    controller = connection.controller
    if controller is None or not controller.ready:
        connection.complete(command, Status.COMMAND_SEQUENCE_ERROR | DNR)
        return
    handler = HANDLERS.get(sqe.opcode)
    if handler is None or (controller.subsystem.is_discovery and sqe.opcode not in _DISCOVERY_OPCODES):
        connection.complete(command, Status.INVALID_OPCODE | DNR)
        return
    handler(connection, controller, command, sqe)


def _identify(connection: TargetConnection, controller: Controller, command: Command, sqe: Sqe) -> None:
    answer = identify_target.identify(controller, sqe)
    if isinstance(answer, int):
        connection.complete(command, answer | DNR)
    elif sqe.sgl_length < IDENTIFY_BYTES:
        connection.complete(command, Status.DATA_SGL_LENGTH_INVALID | DNR)
    else:
        connection.complete(command, 0, answer)


def _get_log_page(connection: TargetConnection, controller: Controller, command: Command, sqe: Sqe) -> None:
    length = ((sqe.cdw10 >> 16 | (sqe.cdw11 & 0xFFFF) << 16) + 1) * 4
    offset = sqe.cdw12 | sqe.cdw13 << 32
    page = log_pages.page(controller, connection.target, sqe.cdw10 & 0xFF, retain=bool(sqe.cdw10 >> 15 & 1))
    if page is None:
        connection.complete(command, Status.INVALID_LOG_PAGE | DNR)
    elif sqe.sgl_length < length or length > connection.limits.max_io_size:
        connection.complete(command, Status.DATA_SGL_LENGTH_INVALID | DNR)
    elif offset % 4 or offset > len(page):
        connection.complete(command, Status.INVALID_FIELD | DNR)
    else:
        connection.complete(command, 0, page[offset : offset + length].ljust(length, b"\0"))


def _abort(connection: TargetConnection, controller: Controller, command: Command, sqe: Sqe) -> None:
    if len(connection.aborts) >= ABORTS_MAX:
        connection.complete(command, Status.ABORT_LIMIT_EXCEEDED | DNR)
        return
    queue = controller.queues.get(sqe.cdw10 & 0xFFFF)
    victim = queue.find(sqe.cdw10 >> 16) if queue is not None else None
    if queue is None or victim is None or victim is command:
        connection.complete(command, 0, result=1)
    elif victim in controller.event_requests:
        controller.event_requests.remove(victim)
        queue.complete(victim, Status.ABORTED_BY_REQUEST | DNR)
        connection.complete(command, 0, result=0)
    else:
        queue.abort(victim, command)


def _set_features(connection: TargetConnection, controller: Controller, command: Command, sqe: Sqe) -> None:
    feature = sqe.cdw10 & 0xFF
    if sqe.cdw10 >> 31:
        connection.complete(command, Status.FEATURE_NOT_SAVEABLE | DNR)
        return
    if feature in _NAMESPACE_FEATURES and sqe.nsid not in (*controller.subsystem.namespaces, NSID_ALL):
        connection.complete(command, Status.INVALID_NAMESPACE | DNR)
        return
    data = b"" if command.data is None else bytes(command.data)
    status, result = controller.set_feature(feature, sqe.cdw11, data, connection.now_ns)
    connection.complete(command, status, result=result)


def _get_features(connection: TargetConnection, controller: Controller, command: Command, sqe: Sqe) -> None:
    if sqe.cdw10 >> 8 & 7 > 2:  # select: current, default and saved are the same here; no supported capabilities
        connection.complete(command, Status.INVALID_FIELD | DNR)
        return
    status, result, data = controller.get_feature(sqe.cdw10 & 0xFF, sqe.cdw11)
    connection.complete(command, status, data, result)


def _event_request(connection: TargetConnection, controller: Controller, command: Command, _sqe: Sqe) -> None:
    if not controller.request_event(command):
        connection.complete(command, Status.ASYNC_EVENT_LIMIT_EXCEEDED | DNR)


def _keep_alive(connection: TargetConnection, controller: Controller, command: Command, _sqe: Sqe) -> None:
    controller.kept_alive(connection.now_ns)
    connection.complete(command, 0)


HANDLERS: Final[dict[int, Callable[[TargetConnection, Controller, Command, Sqe], None]]] = {
    AdminOpcode.IDENTIFY: _identify,
    AdminOpcode.GET_LOG_PAGE: _get_log_page,
    AdminOpcode.ABORT: _abort,
    AdminOpcode.SET_FEATURES: _set_features,
    AdminOpcode.GET_FEATURES: _get_features,
    AdminOpcode.ASYNC_EVENT_REQUEST: _event_request,
    AdminOpcode.KEEP_ALIVE: _keep_alive,
}
