"""How a target shows bdevs to hosts: what is wanted, and the calls that are missing (pure).

One front end per way that hosts reach a target; NVMe/TCP is the first. An export starts with an empty list of hosts,
and on a change hosts are taken away before anything is added: at no moment can a host reach what it must not. A host
counts as denied only when it is off the list and, looked at afterwards, none of its queue pairs is left (design: a
lease does not prove that old I/O has ended).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from spdk_rpc.call import Call
from spdk_rpc.containers import address_family
from spdk_rpc.converge import TargetError, converge, find_subsystem, read_subsystem
from spdk_rpc.errors import RpcError, RpcFailure
from spdk_rpc.methods import nvmf
from spdk_rpc.methods.nvmf import Address, Namespace, Subsystem, Transport
from spdk_rpc.steps import Pause, Steps, make

CNTLID_MIN = 1
CNTLID_MAX = 0xFFEF  # NVMe base specification 2.1, 3.1.2: FFF0h and up are reserved
POLL_MIN_NS = 20_000_000
POLL_MAX_NS = 500_000_000
FENCED = ""
# What a target would do by itself, while other agents know nothing of it: refused to all hosts. SPDK knows these
# parameters from 26.01 on; before that it ignores them.
MASKED_COMMANDS = ("nvmcmps", "reservs", "nvmcpys")
MASKED_FUSED = ("fcws",)


@dataclass(frozen=True, slots=True)
class ExportNamespace:
    """A bdev under a number; ``uuid`` and ``nguid`` are the bdev's own unless given (nguid: 32 hex digits)."""

    nsid: int
    bdev_name: str
    uuid: str | None = None
    nguid: str | None = None

    def is_shown_by(self, found: Namespace) -> bool:
        return (
            (self.nsid, self.bdev_name) == (found.nsid, found.bdev_name)
            and (self.uuid is None or self.uuid.lower() == found.uuid.lower())
            and (self.nguid is None or _hex(self.nguid) == _hex(found.nguid))
        )


@dataclass(frozen=True, slots=True)
class Export:
    """A subsystem as hosts shall see it. Without ``allow_any_host`` only ``hosts`` (host NQNs) may connect.

    ``hosts`` None: a new export lets nobody in, and the list of one that is there is left as it is.
    """

    nqn: str
    namespaces: tuple[ExportNamespace, ...] = ()
    hosts: frozenset[str] | None = frozenset()
    allow_any_host: bool = False
    serial_number: str | None = None
    model_number: str | None = None
    min_cntlid: int = CNTLID_MIN
    max_cntlid: int = CNTLID_MAX
    max_namespaces: int = 32

    def is_identity_of(self, found: Subsystem) -> bool:
        """Whether what cannot be changed on a living subsystem is as wanted."""
        return (
            (self.serial_number is None or self.serial_number == found.serial_number)
            and (self.model_number is None or self.model_number == found.model_number)
            and (self.min_cntlid, self.max_cntlid) == (found.min_cntlid, found.max_cntlid)
            and self.max_namespaces == found.max_namespaces
        )


def plan_export(export: Export, address: Address, found: Subsystem | None) -> Sequence[Call[Any]]:
    """The calls between the subsystem as it was read and as it is wanted; none when they are the same."""
    if found is not None and not export.is_identity_of(found):
        return [nvmf.delete_subsystem(export.nqn), *plan_export(export, address, None)]
    calls: list[Call[Any]] = []
    if found is None:
        calls.append(_create_subsystem(export))
        found = _empty(export)
    calls.extend(_plan_hosts_away(export, found))
    calls.extend(_plan_namespaces(export, found))
    new = (export.hosts or frozenset()) - found.hosts
    calls.extend(nvmf.subsystem_add_host(export.nqn, host) for host in sorted(new))
    if export.allow_any_host and not found.allow_any_host:
        calls.append(nvmf.subsystem_allow_any_host(export.nqn, True))
    if address not in found.addresses:
        calls.append(nvmf.subsystem_add_listener(export.nqn, address))
    calls.extend(nvmf.subsystem_remove_listener(export.nqn, other) for other in found.addresses if other != address)
    return calls


def plan_withdraw(nqn: str, found: Subsystem | None) -> Sequence[Call[Any]]:
    """Takes the subsystem away; its hosts are disconnected."""
    return [] if found is None else [nvmf.delete_subsystem(nqn)]


def plan_allow(nqn: str, hostnqn: str, found: Subsystem) -> Sequence[Call[Any]]:
    return [] if hostnqn in found.hosts else [nvmf.subsystem_add_host(nqn, hostnqn)]


def plan_deny(nqn: str, hostnqn: str, found: Subsystem | None) -> Sequence[Call[Any]]:
    """Nobody can be denied while any host is allowed, so that ends too."""
    if found is None:
        return []
    calls: list[Call[Any]] = []
    if found.allow_any_host:
        calls.append(nvmf.subsystem_allow_any_host(nqn, False))
    if hostnqn in found.hosts:
        calls.append(nvmf.subsystem_remove_host(nqn, hostnqn))
    return calls


class NoExport(TargetError):
    """There is no export of that name here."""


def withdraw(nqn: str) -> Steps[None]:
    """Takes an export away; its hosts are disconnected. Nothing happens if there is none."""
    yield from converge(lambda: read_subsystem(nqn), lambda found: plan_withdraw(nqn, found))


def allow_host(nqn: str, hostnqn: str) -> Steps[None]:
    """Lets one more host connect. Raises NoExport if there is no such export."""

    def plan(found: Subsystem | None) -> Sequence[Call[Any]]:
        if found is None:
            raise NoExport(f"no export {nqn}: it must exist before a host is allowed")
        return plan_allow(nqn, hostnqn, found)

    yield from converge(lambda: read_subsystem(nqn), plan)


def deny_host(nqn: str, hostnqn: str, clock: Callable[[], int], patience_ns: int) -> Steps[str]:
    """FENCED only when the host is not allowed any more and none of its queue pairs is left (read back).

    Else what is in the way when the patience is over: the host is then *not fenced*.
    """
    deadline_ns = clock() + patience_ns
    poll_ns = POLL_MIN_NS
    while True:
        problem = yield from _deny_round(nqn, hostnqn)
        if problem == FENCED or clock() >= deadline_ns:
            return problem
        yield Pause(poll_ns)
        poll_ns = min(2 * poll_ns, POLL_MAX_NS)


def _deny_round(nqn: str, hostnqn: str) -> Steps[str]:
    """One look, and what it takes; what is left of the host, or FENCED if this round saw nothing of it."""
    try:
        found = yield from read_subsystem(nqn)
        if found is None:
            return FENCED
        calls = plan_deny(nqn, hostnqn, found)
        for call in calls:
            yield from make(call)
        if calls:
            return "the host was allowed"
        pairs = yield from make(nvmf.subsystem_get_qpairs(nqn))
    except RpcError as failure:
        return f"the target refused: {failure}"
    except RpcFailure as failure:
        return f"the target did not answer: {failure}"
    left = sum(pair.hostnqn == hostnqn for pair in pairs)
    return f"{left} queue pairs of {hostnqn} are left" if left else FENCED


def _create_subsystem(export: Export) -> Call[bool]:
    return nvmf.create_subsystem(
        export.nqn,
        serial_number=export.serial_number,
        model_number=export.model_number,
        max_namespaces=export.max_namespaces,
        min_cntlid=export.min_cntlid,
        max_cntlid=export.max_cntlid,
    )


def _empty(export: Export) -> Subsystem:
    """The subsystem just after its creation."""
    return Subsystem(
        nqn=export.nqn,
        subtype="NVMe",
        addresses=(),
        allow_any_host=False,
        hosts=frozenset(),
        serial_number=export.serial_number or "",
        model_number=export.model_number or "",
        max_namespaces=export.max_namespaces,
        min_cntlid=export.min_cntlid,
        max_cntlid=export.max_cntlid,
        namespaces=(),
    )


def _plan_hosts_away(export: Export, found: Subsystem) -> Iterator[Call[Any]]:
    if found.allow_any_host and not export.allow_any_host:
        yield nvmf.subsystem_allow_any_host(export.nqn, False)
    for host in sorted(frozenset() if export.hosts is None else found.hosts - export.hosts):
        yield nvmf.subsystem_remove_host(export.nqn, host)


def _plan_namespaces(export: Export, found: Subsystem) -> Iterator[Call[Any]]:
    wanted = {namespace.nsid: namespace for namespace in export.namespaces}
    kept = set()
    for namespace in found.namespaces:
        want = wanted.get(namespace.nsid)
        if want is not None and want.is_shown_by(namespace):
            kept.add(namespace.nsid)
        else:
            yield nvmf.subsystem_remove_ns(export.nqn, namespace.nsid)
    for nsid, want in sorted(wanted.items()):
        if nsid not in kept:
            nguid = None if want.nguid is None else _hex(want.nguid)
            yield nvmf.subsystem_add_ns(export.nqn, want.bdev_name, nsid, nguid=nguid, uuid=want.uuid)


def _hex(text: str) -> str:
    return text.replace("-", "").upper()


class FrontEnd(Protocol):
    """One way of hosts to a target."""

    @property
    def address(self) -> Address:
        """Where hosts find the exports."""
        ...

    def prepare(self) -> Steps[None]:
        """Makes the target able to export; once, before the first export."""
        ...

    def export(self, export: Export) -> Steps[None]:
        """Makes the export what it shall be."""
        ...


@dataclass(frozen=True, slots=True)
class NvmeTcpFrontEnd:
    """All exports of a target on one address, and the discovery subsystem there too."""

    traddr: str
    trsvcid: int

    @property
    def address(self) -> Address:
        return Address("TCP", address_family(self.traddr), self.traddr, str(self.trsvcid))

    def prepare(self) -> Steps[None]:
        yield from converge(lambda: make(nvmf.get_transports()), plan_tcp)

    def export(self, export: Export) -> Steps[None]:
        yield from converge(lambda: make(nvmf.get_subsystems()), lambda found: self._plan(export, found))

    def _plan(self, export: Export, found: Sequence[Subsystem]) -> Sequence[Call[Any]]:
        """The port is opened by the export's own listener: whoever finds it open finds the export."""
        return [
            *plan_export(export, self.address, find_subsystem(export.nqn, found)),
            *plan_discovery(self.address, find_subsystem(nvmf.DISCOVERY_NQN, found)),
        ]


def plan_tcp(found: Sequence[Transport]) -> Sequence[Call[Any]]:
    """The TCP transport, once; without compare, copy and reservations."""
    if any(transport.trtype.upper() == "TCP" for transport in found):
        return []
    return [nvmf.create_transport("TCP", masked_oncs=list(MASKED_COMMANDS), masked_fuses=list(MASKED_FUSED))]


def plan_discovery(address: Address, found: Subsystem | None) -> Sequence[Call[Any]]:
    """The discovery subsystem answers where the others do; a target without one has none."""
    if found is None or address in found.addresses:
        return []
    return [nvmf.subsystem_add_listener(nvmf.DISCOVERY_NQN, address)]
