"""Which messages go through the daemon untouched, which it carries out itself, and by which procedure.

Commands of one object (slot, table, subsystem) are carried out in order, others side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from agent.core import presentations, procedures
from agent.core.procedures import answered
from agent.core.work import Procedure
from channel.events import RequestReceived
from channel.messages import (
    AllowHost,
    AttachContainer,
    CreateTable,
    DeleteTable,
    DenyHost,
    DetachContainer,
    Present,
    Withdraw,
)
from channel.values import MessageType
from spdk_rpc.exports import FrontEnd

RELAYED_DOWN: Final = frozenset(
    {
        MessageType.LEASE_GRANT,
        MessageType.GET_ENTRIES,
        MessageType.SET_ENTRIES,
        MessageType.GET_STATE,
        MessageType.SET_STATE,
        MessageType.TABLE_SLOTS,
        MessageType.SUSPEND,
        MessageType.RESUME,
        MessageType.GET_PARKED,
        MessageType.COPY_SEGMENTS,
        MessageType.ZERO_SEGMENTS,
        MessageType.FAULT_ANSWER,
    }
)
RELAYED_UP: Final = frozenset({MessageType.MAP_FAULT, MessageType.EPOCH, MessageType.REFUSED})


@dataclass(frozen=True, slots=True)
class Context:
    """What procedures need to know besides their message."""

    agent: str
    incarnation: int
    front_end: FrontEnd
    clock: Callable[[], int]
    deny_ns: int


@dataclass(frozen=True, slots=True)
class Command:
    """A command that the daemon carries out: on which object, and how."""

    key: Hashable
    procedure: Procedure


def mapper_command(request: RequestReceived, context: Context) -> Command | None:
    """The command for an agent in role mapper, or None if it is none of them."""
    command = _mapper_command(request, context)
    return None if command is None else Command(command.key, answered(request.type, command.procedure))


def _mapper_command(request: RequestReceived, context: Context) -> Command | None:
    message, table = request.message, request.header.table
    if isinstance(message, AttachContainer):
        return Command(("slot", message.slot), procedures.attach(message, context.agent, context.incarnation))
    if isinstance(message, DetachContainer):
        return Command(("slot", message.slot), procedures.detach(message))
    if isinstance(message, CreateTable):
        return Command(("table", table), procedures.create_table(table, message))
    if isinstance(message, DeleteTable):
        return Command(("table", table), procedures.delete_table(table))
    if isinstance(message, Present):
        return Command(("subsystem", message.subnqn), presentations.present(table, message, context.front_end))
    if isinstance(message, Withdraw):
        return Command(("subsystem", message.subnqn), presentations.withdraw(message))
    return None


def exporter_command(request: RequestReceived, context: Context) -> Command | None:
    """The command for an agent in role exporter, or None if it is none of them."""
    message = request.message
    if isinstance(message, AllowHost):
        procedure = presentations.allow_host(message)
    elif isinstance(message, DenyHost):
        procedure = presentations.deny_host(message, context.clock, context.deny_ns)
    else:
        return None
    return Command(("subsystem", message.subnqn), answered(request.type, procedure))
