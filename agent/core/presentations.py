"""How hosts reach a vdisk or a container: subsystems with namespace, allow-list and listener, step by step.

A subsystem gets its listener last, so a host that can connect sees everything. DENY_HOST is answered OK only when the
host is off the list and, looked at afterwards, none of its queue pairs is left (design: a lease does not prove that old
I/O has ended).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agent.core import calls
from agent.core.calls import CallRefused, CallUnknown, Listener, NamespaceState, SubsystemState
from agent.core.procedures import Part, call, converge
from agent.core.work import Pause, Procedure
from channel.messages import AllowHost, DenyHost, Done, Present, Presented, Withdraw, short
from mapping.status import Status

ALLOW_ANY_HOST: Final = 2
POLL_MIN_NS: Final = 20_000_000
POLL_MAX_NS: Final = 500_000_000
VDISK_MODEL: Final = "segmap vdisk"
CONTAINER_MODEL: Final = "segmap container"
NO_PROBLEM: Final = ""


@dataclass(frozen=True, slots=True)
class Export:
    """A subsystem as it is wanted. `hosts` None: the allow-list is left as it is (a container's: the controller's)."""

    nqn: str
    serial: str
    model: str
    namespace: NamespaceState
    listener: Listener
    cntlid_min: int = 1
    cntlid_max: int = 65519
    allow_any_host: bool = False
    hosts: frozenset[str] | None = None
    nguid: bytes = b""
    uuid: bytes = b""

    def same_identity(self, seen: SubsystemState) -> bool:
        """True if what cannot be changed afterwards is as wanted."""
        mine = (self.serial, self.cntlid_min, self.cntlid_max)
        return mine == (seen.serial, seen.cntlid_min, seen.cntlid_max)

    def reached(self, seen: SubsystemState | None) -> bool:
        return (
            seen is not None
            and self.same_identity(seen)
            and seen.allow_any_host == self.allow_any_host
            and (self.hosts is None or seen.hosts == self.hosts)
            and seen.namespaces == (self.namespace,)
            and self.listener in seen.listeners
        )


def export(wanted: Export) -> Part:
    """Make the subsystem as wanted."""

    def act(seen: SubsystemState | None) -> Part:
        if seen is not None and not wanted.same_identity(seen):
            yield calls.DeleteSubsystem(wanted.nqn)
            seen = None
        if seen is None:
            yield calls.CreateSubsystem(
                wanted.nqn, wanted.serial, wanted.model, wanted.cntlid_min, wanted.cntlid_max, wanted.allow_any_host
            )
            seen = SubsystemState(
                wanted.nqn,
                wanted.serial,
                wanted.cntlid_min,
                wanted.cntlid_max,
                wanted.allow_any_host,
                frozenset(),
                (),
                (),
            )
        yield from _hosts(wanted, seen)
        yield from _namespace(wanted, seen)
        if wanted.listener not in seen.listeners:
            yield calls.AddListener(wanted.nqn, wanted.listener)

    yield from converge(lambda: call(calls.FindSubsystem(wanted.nqn)), wanted.reached, act)


def _hosts(wanted: Export, seen: SubsystemState) -> Part:
    if seen.allow_any_host != wanted.allow_any_host:
        yield calls.AllowAnyHost(wanted.nqn, wanted.allow_any_host)
    if wanted.hosts is None:
        return
    for host in sorted(seen.hosts - wanted.hosts):
        yield calls.RemoveHost(wanted.nqn, host)
    for host in sorted(wanted.hosts - seen.hosts):
        yield calls.AddHost(wanted.nqn, host)


def _namespace(wanted: Export, seen: SubsystemState) -> Part:
    for namespace in seen.namespaces:
        if namespace != wanted.namespace:
            yield calls.RemoveNamespace(wanted.nqn, namespace.nsid)
    if wanted.namespace not in seen.namespaces:
        yield calls.AddNamespace(wanted.nqn, wanted.namespace.nsid, wanted.namespace.bdev, wanted.nguid, wanted.uuid)


def present(table: int, message: Present, listener: Listener) -> Procedure:
    """Show the vdisk of `table` to its hosts, with the identity that the controller gives it at all agents."""
    tables: dict[int, str] = yield calls.ListTables()
    if table not in tables:
        return Presented(Status.NO_TABLE, f"table {table:#x} is not here")
    wanted = Export(
        nqn=message.subnqn,
        serial=message.serial,
        model=VDISK_MODEL,
        namespace=NamespaceState(message.nsid, tables[table]),
        listener=listener,
        cntlid_min=message.cntlid_min,
        cntlid_max=message.cntlid_max,
        allow_any_host=bool(message.flags & ALLOW_ANY_HOST),
        hosts=frozenset(message.hosts.split()),
        nguid=message.vdisk,
        uuid=message.vdisk,
    )
    yield from export(wanted)
    return Presented(Status.OK, "", listener.traddr, listener.trsvcid, listener.trtype)


def withdraw(message: Withdraw) -> Procedure:
    """Afterwards no host reaches it here; that it was not there is fine."""
    yield from converge(
        lambda: call(calls.FindSubsystem(message.subnqn)),
        lambda seen: seen is None,
        lambda seen: call(calls.DeleteSubsystem(message.subnqn)),
    )
    return Done()


def allow_host(message: AllowHost) -> Procedure:
    """Put the host on the allow-list."""
    seen: SubsystemState | None = yield calls.FindSubsystem(message.subnqn)
    if seen is None:
        return Done(Status.NOT_FOUND, short(f"no subsystem {message.subnqn} here"))
    yield from converge(
        lambda: call(calls.FindSubsystem(message.subnqn)),
        lambda found: found is not None and message.hostnqn in found.hosts,
        lambda _: call(calls.AddHost(message.subnqn, message.hostnqn)),
    )
    return Done()


def deny_host(message: DenyHost, clock: Callable[[], int], patience_ns: int) -> Procedure:
    """Take the host off the allow-list, and confirm that none of its queue pairs is left; else NOT_FENCED."""
    deadline_ns = clock() + patience_ns
    poll_ns = POLL_MIN_NS
    while True:
        problem = yield from _deny_round(message)
        if problem == NO_PROBLEM:
            return Done()
        if clock() >= deadline_ns:
            return Done(Status.NOT_FENCED, short(problem))
        yield Pause(poll_ns)
        poll_ns = min(2 * poll_ns, POLL_MAX_NS)


def _deny_round(message: DenyHost) -> Part:
    """One look, and what it takes; -> what is left of the host, or NO_PROBLEM if this round saw nothing of it."""
    try:
        seen: SubsystemState | None = yield calls.FindSubsystem(message.subnqn)
        if seen is None:
            return NO_PROBLEM
        if seen.allow_any_host:
            yield calls.AllowAnyHost(message.subnqn, False)
            return "the subsystem let any host in"
        if message.hostnqn in seen.hosts:
            yield calls.RemoveHost(message.subnqn, message.hostnqn)
            return "the host was on the list"
        pairs: list[str] = yield calls.ListQueuePairs(message.subnqn)
    except CallRefused as failure:
        return f"the target refused: {failure}"
    except CallUnknown as failure:
        return f"the target did not answer: {failure}"
    left = pairs.count(message.hostnqn)
    return f"{left} queue pairs of {message.hostnqn} are left" if left else NO_PROBLEM
