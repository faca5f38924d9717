"""NVMe-oF export: transports, subsystems, their namespaces, listeners and hosts, and who is connected.

Refused parameters are -32602; what exists already (subsystem, transport, host) -32603 with only a text to tell, so
callers read first what is there (:mod:`spdk_rpc.exports`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spdk_rpc.call import Call, Node, read_number, read_true, without_none

DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a subsystem can be reached. ``trtype`` in capitals as SPDK answers it; ``adrfam`` IPv4 or IPv6."""

    trtype: str
    adrfam: str
    traddr: str
    trsvcid: str

    def params(self) -> dict[str, str]:
        return {"trtype": self.trtype, "adrfam": self.adrfam, "traddr": self.traddr, "trsvcid": self.trsvcid}


@dataclass(frozen=True, slots=True)
class Transport:
    trtype: str
    max_queue_depth: int
    max_io_qpairs_per_ctrlr: int
    in_capsule_data_size: int
    max_io_size: int


@dataclass(frozen=True, slots=True)
class Namespace:
    """A bdev under a namespace number. ``nguid`` is 32 hex digits, in capitals as SPDK answers it."""

    nsid: int
    bdev_name: str
    nguid: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Subsystem:
    nqn: str
    subtype: str
    addresses: tuple[Address, ...]
    allow_any_host: bool
    hosts: frozenset[str]
    serial_number: str
    model_number: str
    max_namespaces: int
    min_cntlid: int
    max_cntlid: int
    namespaces: tuple[Namespace, ...]

    @property
    def is_discovery(self) -> bool:
        return self.subtype.lower() == "discovery"


@dataclass(frozen=True, slots=True)
class QueuePair:
    """One connection of a host; ``qid`` 0 is its admin queue."""

    cntlid: int
    qid: int
    state: str
    hostnqn: str
    peer: Address


def create_transport(trtype: str, **options: Any) -> Call[bool]:
    """``nvmf_create_transport``; SPDK ignores options that it does not know"""
    return Call("nvmf_create_transport", {"trtype": trtype, **options}, read_true)


def get_transports(trtype: str | None = None) -> Call[tuple[Transport, ...]]:
    """``nvmf_get_transports``: all, or the one of that type (``-ENODEV`` if there is none)"""
    return Call("nvmf_get_transports", without_none(trtype=trtype), lambda node: node.list(_read_transport))


def create_subsystem(
    nqn: str,
    *,
    serial_number: str | None = None,
    model_number: str | None = None,
    max_namespaces: int | None = None,
    min_cntlid: int | None = None,
    max_cntlid: int | None = None,
    allow_any_host: bool = False,
) -> Call[bool]:
    """``nvmf_create_subsystem``, with an empty list of hosts"""
    params = without_none(
        nqn=nqn,
        serial_number=serial_number,
        model_number=model_number,
        max_namespaces=max_namespaces,
        min_cntlid=min_cntlid,
        max_cntlid=max_cntlid,
        allow_any_host=allow_any_host or None,
    )
    return Call("nvmf_create_subsystem", params, read_true)


def delete_subsystem(nqn: str) -> Call[bool]:
    """``nvmf_delete_subsystem``: its hosts are disconnected"""
    return Call("nvmf_delete_subsystem", {"nqn": nqn}, read_true)


def get_subsystems(nqn: str | None = None) -> Call[tuple[Subsystem, ...]]:
    """``nvmf_get_subsystems``: all (the discovery subsystem too), or the one of that name (-32602 if there is none)"""
    return Call("nvmf_get_subsystems", without_none(nqn=nqn), lambda node: node.list(_read_subsystem))


def subsystem_add_ns(
    nqn: str, bdev_name: str, nsid: int | None = None, *, nguid: str | None = None, uuid: str | None = None
) -> Call[int]:
    """``nvmf_subsystem_add_ns``: the namespace's number (the first free one if none is given)"""
    namespace = without_none(bdev_name=bdev_name, nsid=nsid, nguid=nguid, uuid=uuid)
    return Call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": namespace}, read_number)


def subsystem_remove_ns(nqn: str, nsid: int) -> Call[bool]:
    """``nvmf_subsystem_remove_ns``"""
    return Call("nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": nsid}, read_true)


def subsystem_add_listener(nqn: str, address: Address) -> Call[bool]:
    """``nvmf_subsystem_add_listener``; -32602 also when the port cannot be bound"""
    return Call("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address.params()}, read_true)


def subsystem_remove_listener(nqn: str, address: Address) -> Call[bool]:
    """``nvmf_subsystem_remove_listener``: hosts connected there are disconnected"""
    return Call("nvmf_subsystem_remove_listener", {"nqn": nqn, "listen_address": address.params()}, read_true)


def subsystem_add_host(nqn: str, hostnqn: str) -> Call[bool]:
    """``nvmf_subsystem_add_host``"""
    return Call("nvmf_subsystem_add_host", {"nqn": nqn, "host": hostnqn}, read_true)


def subsystem_remove_host(nqn: str, hostnqn: str) -> Call[bool]:
    """``nvmf_subsystem_remove_host``: its connections are ended before the answer"""
    return Call("nvmf_subsystem_remove_host", {"nqn": nqn, "host": hostnqn}, read_true)


def subsystem_allow_any_host(nqn: str, allow: bool) -> Call[bool]:
    """``nvmf_subsystem_allow_any_host``"""
    return Call("nvmf_subsystem_allow_any_host", {"nqn": nqn, "allow_any_host": allow}, read_true)


def subsystem_get_qpairs(nqn: str) -> Call[tuple[QueuePair, ...]]:
    """``nvmf_subsystem_get_qpairs``: every connection that there is"""
    return Call("nvmf_subsystem_get_qpairs", {"nqn": nqn}, lambda node: node.list(_read_queue_pair))


def discovery_get_referrals() -> Call[tuple[dict[str, Any], ...]]:
    """``nvmf_discovery_get_referrals``"""
    return Call("nvmf_discovery_get_referrals", {}, lambda node: node.list(lambda item: dict(item.value)))


def _read_address(node: Node) -> Address:
    return Address(node.text("trtype"), node.text("adrfam", ""), node.text("traddr"), node.text("trsvcid", ""))


def _read_transport(node: Node) -> Transport:
    return Transport(
        node.text("trtype"),
        node.number("max_queue_depth"),
        node.number("max_io_qpairs_per_ctrlr"),
        node.number("in_capsule_data_size"),
        node.number("max_io_size"),
    )


def _read_namespace(node: Node) -> Namespace:
    return Namespace(node.number("nsid"), node.text("bdev_name"), node.text("nguid", ""), node.text("uuid", ""))


def _read_subsystem(node: Node) -> Subsystem:
    return Subsystem(
        nqn=node.text("nqn"),
        subtype=node.text("subtype"),
        addresses=node.member("listen_addresses", []).list(_read_address),
        allow_any_host=node.truth("allow_any_host"),
        hosts=frozenset(node.member("hosts", []).list(lambda host: host.text("nqn"))),
        serial_number=node.text("serial_number", ""),
        model_number=node.text("model_number", ""),
        max_namespaces=node.number("max_namespaces", 0),
        min_cntlid=node.number("min_cntlid", 0),
        max_cntlid=node.number("max_cntlid", 0),
        namespaces=node.member("namespaces", []).list(_read_namespace),
    )


def _read_queue_pair(node: Node) -> QueuePair:
    return QueuePair(
        cntlid=node.number("cntlid"),
        qid=node.number("qid"),
        state=node.text("state"),
        hostnqn=node.text("hostnqn", ""),
        peer=_read_address(node.member("peer_address")),
    )
