"""Commands about containers and tables, step by step. Each looks first, acts, and looks again after an unknown outcome.

So each may be begun again by a later controller session, whatever an earlier one left half done.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final

from agent.core import calls
from agent.core.calls import CallFailed, CallRefused, CallUnknown, ControllerPath
from agent.core.work import Ask, Procedure, Step
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
from channel.values import MessageType
from mapping.status import Status

ATTEMPTS_MAX: Final = 4
READ_ONLY: Final = 1
RECLAIM: Final = 2
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
    """The procedure's response; a call that failed beyond its means becomes a failed response."""
    try:
        return (yield from procedure)
    except CallUnknown as failure:
        return response_to(kind, Status.TIMEOUT, short(f"the target did not answer: {failure}"))
    except CallRefused as failure:
        return response_to(kind, Status.IO_ERROR, short(f"the target refused: {failure}"))


def converge(look: Callable[[], Part], reached: Callable[[Any], bool], act: Callable[[Any], Part]) -> Part:
    """Look, and act until it is as wanted; -> what was seen. A refusal after an unknown outcome is looked at again."""
    seen = yield from look()
    last: CallFailed | None = None
    for _ in range(ATTEMPTS_MAX):
        if reached(seen):
            return seen
        before = last
        try:
            last = None
            yield from act(seen)
        except CallUnknown as failure:
            last = failure
        except CallRefused as failure:
            if before is None:
                raise
            last = failure
        seen = yield from _look_again(look)
    if reached(seen):
        return seen
    raise last or CallUnknown("the target's state did not become what was asked for")


def _look_again(look: Callable[[], Part]) -> Part:
    for _ in range(ATTEMPTS_MAX - 1):
        try:
            return (yield from look())
        except CallUnknown:
            continue
    return (yield from look())


def call(what: calls.TargetCall) -> Part:
    """One call, as a part of a procedure."""
    return (yield what)


# --- containers ------------------------------------------------------------------------------------------------------


def attach(message: AttachContainer, agent: str, incarnation: int) -> Procedure:
    """Connect to the container, and let the data plane open it and verify its label."""
    name = controller_name(message.slot)
    path = ControllerPath(message.trtype, message.traddr, message.trsvcid, message.subnqn, host_nqn(agent, incarnation))

    def act(seen: ControllerPath | None) -> Part:
        if seen is not None:
            yield from _unbind(message.slot)
            yield calls.DetachController(name)
        yield calls.AttachController(name, path)

    yield from converge(lambda: call(calls.FindController(name)), lambda seen: seen == path, act)
    attached = (yield Ask(_bind(message, f"{name}n{message.nsid}"))).message
    if attached.status != Status.OK:
        yield from _let_go(message.slot)
    return Attached(
        attached.status, attached.detail, attached.segment_count, attached.block_size, attached.volatile_cache
    )


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


def _let_go(slot: int) -> Part:
    """After a refused label: do not stay connected to what is not ours. Best effort; a later attach looks again."""
    try:
        if (yield from _unbind(slot)) == Status.OK:
            yield calls.DetachController(controller_name(slot))
    except CallFailed:
        return


def detach(message: DetachContainer) -> Procedure:
    """Close the container and disconnect. Refused with BUSY while a table lists it."""
    status = yield from _unbind(message.slot)
    if status != Status.OK:
        return Done(status, f"slot {message.slot}: the data plane still uses it")
    name = controller_name(message.slot)
    yield from converge(
        lambda: call(calls.FindController(name)),
        lambda seen: seen is None,
        lambda seen: call(calls.DetachController(name)),
    )
    return Done()


# --- tables ----------------------------------------------------------------------------------------------------------


def create_table(table: int, message: CreateTable) -> Procedure:
    """A new table, every entry invalid [0034]. EXISTS if there is one already: its entries would not be new."""
    name = table_name(table)
    seen: dict[int, str] = yield calls.ListTables()
    if table in seen:
        return Done(Status.EXISTS, f"table {table:#x} is here already")
    wanted = calls.CreateTable(
        table=table,
        name=name,
        uuid=message.vdisk,
        nguid=message.nguid,
        segment_count=message.segment_count,
        segment_size=message.segment_size,
        block_size=message.block_size,
        read_only=bool(message.table_flags & READ_ONLY),
        reclaim=bool(message.table_flags & RECLAIM),
    )
    yield from converge(lambda: call(calls.ListTables()), lambda found: table in found, lambda _: call(wanted))
    status, detail = yield from _list_slots(table, list(message.slots))
    if status != Status.OK:
        yield from delete_table(table)
    return Done(status, detail)


def _list_slots(table: int, slots: list[int]) -> Part:
    """Tell the new table its containers. An epoch that began meanwhile is known by the time of the refusal."""
    if not slots:
        return Status.OK, ""
    for _ in range(ATTEMPTS_MAX):
        response = (yield Ask(TableSlots(slots), table)).message
        if response.status != Status.STALE_EPOCH:
            break
    return response.status, response.detail


def delete_table(table: int) -> Procedure:
    """Afterwards there is no such table; that it was not there is fine."""

    def act(seen: dict[int, str]) -> Part:
        yield calls.DeleteTable(seen[table])

    yield from converge(lambda: call(calls.ListTables()), lambda seen: table not in seen, act)
    left = (yield Ask(TableStatus())).message
    if left.status != Status.OK or any(known == table for known, _ in left.tables):
        return Done(Status.BUSY, f"table {table:#x}: its I/O has not ended")
    return Done()
