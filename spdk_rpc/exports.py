"""How a target shows bdevs to hosts: what is wanted, and the calls that are missing (pure but for its front ends).

One front end per way that hosts reach a target; NVMe/TCP is the first. An export starts with an empty list of hosts,
and on a change hosts are taken away before anything is added: at no moment can a host reach what it must not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from spdk_rpc.call import Call
from spdk_rpc.converge import Converger, read_subsystem
from spdk_rpc.errors import RpcError
from spdk_rpc.methods import nvmf
from spdk_rpc.methods.nvmf import Address, Namespace, Subsystem, Transport

CNTLID_MIN = 1
CNTLID_MAX = 0xFFEF  # NVMe base specification 2.1, 3.1.2: FFF0h and up are reserved
PORTS = range(61000, 65536)  # above what Linux gives to outgoing connections
PORT_TRIES = 16


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
    """A subsystem as hosts shall see it. Without ``allow_any_host`` only ``hosts`` (host NQNs) may connect."""

    nqn: str
    namespaces: tuple[ExportNamespace, ...] = ()
    hosts: frozenset[str] = frozenset()
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
    calls.extend(nvmf.subsystem_add_host(export.nqn, host) for host in sorted(export.hosts - found.hosts))
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
    for host in sorted(found.hosts - export.hosts):
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

    async def export(self, export: Export, target: Converger) -> Address:
        """Makes the export what it shall be; returns where hosts find it."""
        ...


class NvmeTcpFrontEnd:
    """All exports of a target on one address, and the discovery subsystem there too.

    With ``trsvcid`` 0 the port is the one where the target's subsystems already listen, else a free one.
    """

    def __init__(
        self, traddr: str = "127.0.0.1", trsvcid: int = 0, adrfam: str = "IPv4", rng: random.Random | None = None
    ) -> None:
        self._traddr = traddr
        self._adrfam = adrfam
        self._rng = rng or random.Random()
        self._address = self._at(trsvcid) if trsvcid else None

    async def export(self, export: Export, target: Converger) -> Address:
        await target.converge(lambda client: client.run(nvmf.get_transports()), plan_tcp)
        if self._address is None:
            subsystems = await target.client.run(nvmf.get_subsystems())
            self._address = find_address(subsystems, self._traddr)
        if self._address is None:
            self._address = await self._export_somewhere(export, target)
        else:
            await self._export_at(self._address, export, target)
        await self._listen_for_discovery(self._address, target)
        return self._address

    def _at(self, port: int) -> Address:
        return Address("TCP", self._adrfam, self._traddr, str(port))

    async def _export_at(self, address: Address, export: Export, target: Converger) -> None:
        await target.converge(
            lambda client: read_subsystem(client, export.nqn), lambda found: plan_export(export, address, found)
        )

    async def _export_somewhere(self, export: Export, target: Converger) -> Address:
        """Tries ports until one is free: the target says only that it could not listen."""
        for port in self._rng.sample(PORTS, PORT_TRIES - 1):
            try:
                await self._export_at(self._at(port), export, target)
            except RpcError as error:
                if error.method != "nvmf_subsystem_add_listener":
                    raise
            else:
                return self._at(port)
        last = self._at(self._rng.choice(PORTS))
        await self._export_at(last, export, target)
        return last

    async def _listen_for_discovery(self, address: Address, target: Converger) -> None:
        await target.converge(
            lambda client: read_subsystem(client, nvmf.DISCOVERY_NQN), lambda found: plan_discovery(address, found)
        )


def plan_tcp(found: Sequence[Transport]) -> Sequence[Call[Any]]:
    """The TCP transport, once."""
    return [] if any(transport.trtype.upper() == "TCP" for transport in found) else [nvmf.create_transport("TCP")]


def plan_discovery(address: Address, found: Subsystem | None) -> Sequence[Call[Any]]:
    """The discovery subsystem answers where the others do; a target without one has none."""
    if found is None or address in found.addresses:
        return []
    return [nvmf.subsystem_add_listener(nvmf.DISCOVERY_NQN, address)]


def find_address(subsystems: Sequence[Subsystem], traddr: str) -> Address | None:
    """Where the subsystems of a running target listen on that address."""
    for subsystem in subsystems:
        for address in subsystem.addresses:
            if address.trtype.upper() == "TCP" and address.traddr == traddr:
                return address
    return None
