"""NVMe-oF subsystems as SPDK's RPCs see them, on top of fabric.nvme_tcp's target.

It keeps what the RPCs report and the protocol does not need (order of hosts, strings as they were given), opens and
claims the bdevs of namespaces, and shares one listening socket among the subsystems that listen at an address. A bdev
that is taken away takes its namespaces with it.
"""

from __future__ import annotations

import asyncio
import errno
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from dataplane.embedded.bdev import Bdev, BdevError, BdevEvent, BdevLayer
from dataplane.embedded.json_rpc import INTERNAL_ERROR, INVALID_PARAMS, RpcError
from dataplane.embedded.nqn import is_agent
from dataplane.embedded.nvmf_backend import BdevBackend
from dataplane.embedded.nvmf_server import NvmfServer
from dataplane.embedded.nvmf_transport import TransportOptions
from fabric.nvme_tcp.nqn import nqn_is_valid
from fabric.nvme_tcp.spec import DISCOVERY_NQN
from fabric.nvme_tcp.subsystem import Listener, Subsystem, TargetError
from fabric.nvme_tcp.target import NvmeTarget
from fabric.nvme_tcp.target_connection import TargetConnection

MODEL: Final = "segmap bdev Controller"
SERIAL: Final = "0" * 20
NAMESPACES_MAX: Final = 32
CNTLID_MAX: Final = 65519
SUBSYSTEMS_MAX: Final = 1024
HOSTS_MAX: Final = 4096
_POLL_S: Final = 0.002
_REMOVE_HOST_MS: Final = 10000
_INVALID: Final = (INVALID_PARAMS, "Invalid parameters")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_ADRFAM: Final = {"ipv4": "IPv4", "ipv6": "IPv6"}


@dataclass(slots=True, eq=False)
class ExportedNamespace:
    """A namespace and the bdev it has open."""

    nsid: int
    bdev: Bdev
    close: Callable[[], None]
    uuid: uuid.UUID
    nguid: bytes
    eui64: bytes
    anagrpid: int
    no_auto_visible: bool


@dataclass(slots=True, eq=False)
class NvmfSubsystem:
    """What nvmf_get_subsystems reports."""

    nqn: str
    serial: str = SERIAL
    model: str = MODEL
    admin_label: str = ""
    max_namespaces: int = NAMESPACES_MAX
    min_cntlid: int = 1
    max_cntlid: int = CNTLID_MAX
    ana_reporting: bool = False
    dmrsl: int = 2097152
    wzsl: int = 12
    passthrough: bool = False
    enable_nssr: bool = False
    allow_any_host: bool = False
    hosts: dict[str, None] = field(default_factory=dict)
    listeners: dict[Listener, None] = field(default_factory=dict)
    namespaces: dict[int, ExportedNamespace] = field(default_factory=dict)

    @property
    def discovery(self) -> bool:
        return self.nqn == DISCOVERY_NQN


class NvmfSubsystems:
    """All of one target. Methods raise RpcError as SPDK would answer."""

    def __init__(self, layer: BdevLayer) -> None:
        self._layer = layer
        self.target = NvmeTarget()
        self.target.single = is_agent
        self.backend = BdevBackend()
        self.server = NvmfServer(self.target, self.backend)
        self.transport: TransportOptions | None = None
        self.subsystems: dict[str, NvmfSubsystem] = {}
        self._sockets: dict[Listener, int] = {}
        self._listening = asyncio.Lock()
        self.subsystems[DISCOVERY_NQN] = NvmfSubsystem(DISCOVERY_NQN, allow_any_host=True)

    def find(self, nqn: str) -> NvmfSubsystem:
        """The subsystem, or SPDK's refusal."""
        subsystem = self.subsystems.get(nqn)
        if subsystem is None:
            raise RpcError(INVALID_PARAMS, f"Subsystem with NQN '{nqn}' not found")
        return subsystem

    def create_transport(self, options: TransportOptions) -> None:
        """nvmf_create_transport."""
        self.transport = options
        self.target.limits = options.limits()

    def create(self, subsystem: NvmfSubsystem) -> None:
        """nvmf_create_subsystem."""
        nqn = subsystem.nqn
        refusal = RpcError(INTERNAL_ERROR, f"Unable to create subsystem {nqn}")
        if nqn in self.subsystems or not nqn_is_valid(nqn) or len(self.subsystems) >= SUBSYSTEMS_MAX:
            raise refusal
        low, high = subsystem.min_cntlid, subsystem.max_cntlid
        if not 1 <= low <= high <= CNTLID_MAX:
            raise RpcError(INVALID_PARAMS, f"Invalid cntlid range [{low}-{high}]")
        try:
            self.target.add_subsystem(
                Subsystem(
                    nqn,
                    serial=subsystem.serial,
                    model=subsystem.model,
                    allow_any_host=subsystem.allow_any_host,
                    cntlid_min=low,
                    cntlid_max=high,
                    namespaces_max=subsystem.max_namespaces,
                )
            )
        except TargetError:
            raise refusal from None
        self.subsystems[nqn] = subsystem

    async def delete(self, nqn: str) -> None:
        """nvmf_delete_subsystem; its connections are being closed then."""
        subsystem = self.find(nqn)
        del self.subsystems[nqn]
        for listener in list(subsystem.listeners):
            await self._unlisten(subsystem, listener)
        for nsid in list(subsystem.namespaces):
            self._forget_namespace(subsystem, nsid)
        if not subsystem.discovery:
            self.target.remove_subsystem(nqn)

    # --- namespaces --------------------------------------------------------------------------------------------------

    def add_namespace(self, nqn: str, bdev_name: str, wanted: dict[str, Any]) -> int:
        """nvmf_subsystem_add_ns; the namespace id."""
        subsystem = self.find(nqn)
        nguid = _hex(wanted["nguid"], 16, "nguid")
        eui64 = _hex(wanted["eui64"], 8, "eui64")
        bdev = self._layer.get(bdev_name)
        nsid = wanted["nsid"] or _free_nsid(subsystem)
        taken = nsid in subsystem.namespaces or nsid > subsystem.max_namespaces
        if bdev is None or taken or subsystem.discovery:
            raise RpcError(*_INVALID)
        nguid = nguid if any(nguid) else bdev.uuid.bytes  # as SPDK: lib/nvmf/subsystem.c
        namespace = self._open(subsystem, nsid, bdev)
        namespace.uuid = wanted["uuid"] or bdev.uuid
        namespace.nguid, namespace.eui64 = nguid, eui64
        namespace.anagrpid = wanted["anagrpid"] or nsid
        namespace.no_auto_visible = wanted["no_auto_visible"]
        try:
            self.target.add_namespace(
                nqn,
                self.backend.bdev_namespace(nsid, bdev, uuid=namespace.uuid.bytes, nguid=nguid, eui64=eui64),
            )
        except TargetError:
            namespace.close()
            raise RpcError(*_INVALID) from None
        subsystem.namespaces[nsid] = namespace
        subsystem.namespaces = dict(sorted(subsystem.namespaces.items()))
        return nsid

    def _open(self, subsystem: NvmfSubsystem, nsid: int, bdev: Bdev) -> ExportedNamespace:
        owner = object()

        def on_event(event: BdevEvent) -> None:
            if event is BdevEvent.REMOVE:
                self._forget_namespace(subsystem, nsid)
            elif subsystem.namespaces.get(nsid) is not None:
                self.target.resize_namespace(subsystem.nqn, nsid, bdev.block_count)

        def close() -> None:
            self._layer.release(bdev, owner)
            close_bdev()

        try:
            self._layer.claim(bdev, owner, "exclusive_write")
        except BdevError:
            raise RpcError(*_INVALID) from None
        try:
            close_bdev = bdev.open(on_event)
        except BdevError:
            self._layer.release(bdev, owner)
            raise RpcError(*_INVALID) from None
        return ExportedNamespace(nsid, bdev, close, bdev.uuid, b"", b"", 0, False)

    def remove_namespace(self, nqn: str, nsid: int) -> None:
        """nvmf_subsystem_remove_ns."""
        subsystem = self.find(nqn)
        if nsid not in subsystem.namespaces:
            raise RpcError(*_INVALID)
        self._forget_namespace(subsystem, nsid)

    def _forget_namespace(self, subsystem: NvmfSubsystem, nsid: int) -> None:
        namespace = subsystem.namespaces.pop(nsid, None)
        if namespace is not None:
            self.target.remove_namespace(subsystem.nqn, nsid)
            namespace.close()

    # --- listeners ---------------------------------------------------------------------------------------------------

    async def add_listener(self, nqn: str, address: dict[str, Any]) -> None:
        """nvmf_subsystem_add_listener. Service id "0" (ours): one that is free, and it is listed."""
        subsystem = self.find(nqn)
        listener = _listener(address)
        async with self._listening:
            if self.transport is None or listener in subsystem.listeners or not listener.trsvcid:
                raise RpcError(*_INVALID)
            if listener not in self._sockets:
                try:
                    listener = await self.server.listen(listener)
                except (OSError, TargetError, ValueError):
                    raise RpcError(*_INVALID) from None
                self._sockets[listener] = 0
            self._sockets[listener] += 1
            subsystem.listeners[listener] = None
            if not subsystem.discovery:
                self.target.add_listener(nqn, listener)

    async def remove_listener(self, nqn: str, address: dict[str, Any]) -> None:
        """nvmf_subsystem_remove_listener."""
        subsystem = self.find(nqn)
        listener = _listener(address)
        if self.transport is None or listener not in subsystem.listeners:
            raise RpcError(*_INVALID)
        await self._unlisten(subsystem, listener)

    async def _unlisten(self, subsystem: NvmfSubsystem, listener: Listener) -> None:
        async with self._listening:
            if listener not in subsystem.listeners:
                return
            del subsystem.listeners[listener]
            if not subsystem.discovery:
                self.target.remove_listener(subsystem.nqn, listener)
            self._sockets[listener] -= 1
            if not self._sockets[listener]:
                del self._sockets[listener]
                await self.server.unlisten(listener)

    # --- hosts -------------------------------------------------------------------------------------------------------

    def add_host(self, nqn: str, host: str) -> None:
        """nvmf_subsystem_add_host."""
        subsystem = self.find(nqn)
        if host in subsystem.hosts or not nqn_is_valid(host) or len(subsystem.hosts) >= HOSTS_MAX:
            raise RpcError(INTERNAL_ERROR, "Internal error")
        subsystem.hosts[host] = None
        if not subsystem.discovery:
            self.target.allow_host(nqn, host)

    async def remove_host(self, nqn: str, host: str, timeout_ms: int) -> None:
        """nvmf_subsystem_remove_host: answers once none of the host's queue pairs is left."""
        subsystem = self.find(nqn)
        if host not in subsystem.hosts:
            raise RpcError(INTERNAL_ERROR, "Internal error")
        del subsystem.hosts[host]
        if subsystem.discovery:
            return
        self.target.deny_host(nqn, host)
        deadline = asyncio.get_running_loop().time() + (timeout_ms or _REMOVE_HOST_MS) / 1000
        while self.target.queue_pairs(nqn, host):
            if asyncio.get_running_loop().time() >= deadline:
                raise RpcError(INTERNAL_ERROR, "Timeout reached during host removal")
            await asyncio.sleep(_POLL_S)

    def queue_pairs(self, nqn: str) -> list[tuple[int, TargetConnection]]:
        """(controller id, queue pair), also of one whose connection is gone while a command of it still runs."""
        pairs = self.target.queue_pairs(nqn)
        return [(pair.controller.cntlid, pair) for pair in pairs if pair.controller is not None]

    def allow_any_host(self, nqn: str, allowed: bool) -> None:
        """nvmf_subsystem_allow_any_host."""
        subsystem = self.find(nqn)
        subsystem.allow_any_host = allowed
        if not subsystem.discovery:
            self.target.allow_any_host(nqn, allowed)

    async def close(self) -> None:
        """End all connections and close everything."""
        for nqn in list(self.subsystems):
            await self.delete(nqn)
        await self.server.close()


def _free_nsid(subsystem: NvmfSubsystem) -> int:
    nsid = 1
    while nsid in subsystem.namespaces:
        nsid += 1
    return nsid


def _hex(text: str | None, length: int, name: str) -> bytes:
    """Bytes of a namespace identifier; zeroes if there is none."""
    if text is None:
        return bytes(length)
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != length or len(text) != 2 * length:
        raise RpcError(INVALID_PARAMS, f"Invalid {name}")
    return value


def _listener(address: dict[str, Any]) -> Listener:
    """The address that the RPC means, in one spelling."""
    adrfam = _ADRFAM.get((address["adrfam"] or "ipv4").lower())
    if address["trtype"].upper() != "TCP" or adrfam is None:
        raise RpcError(*_INVALID)
    traddr, trsvcid = address["traddr"], address["trsvcid"] or ""
    if len(traddr) > 256 or (trsvcid and not _PORT.fullmatch(trsvcid)) or int(trsvcid or 0) > 65535:
        raise RpcError(*_INVALID)
    return Listener(traddr, trsvcid, adrfam)


def no_such_transport() -> RpcError:
    """SPDK's answer about a transport that was not created."""
    return RpcError(-errno.ENODEV, "No such device")
