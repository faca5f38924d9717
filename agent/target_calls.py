"""The core's calls as JSON-RPC of a target, SPDK's or the embedded one: the only place that knows method names.

A few connections, taken in turn; connecting to containers, which may take long, has its own, so that it never delays a
DENY_HOST. Everything but a plain refusal is an unknown outcome: the core reads back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

from agent.core import calls
from agent.core.calls import CallFailed, CallRefused, CallUnknown, ControllerPath, Listener
from spdk_rpc.call import Call
from spdk_rpc.client import AsyncRpcClient
from spdk_rpc.errors import RpcError, RpcFailure
from spdk_rpc.methods import bdev, bdev_nvme, bdev_segmap, nvmf

T = TypeVar("T")
CONNECTIONS: Final = 3
SLOW_CONNECTIONS: Final = 2
ENODEV: Final = -19
RECONNECTION: Final = bdev_nvme.Reconnection(-1, 1, 10)
USABLE_STATES: Final = frozenset({"enabled"})
NAMESPACES_MAX: Final = 32
FILE_MODE: Final = 0o600


class TargetCalls:
    """Carries out calls at the target that listens on `rpc_socket`."""

    def __init__(self, rpc_socket: Path, timeout_s: float) -> None:
        self._clients = [AsyncRpcClient(rpc_socket, timeout_s) for _ in range(CONNECTIONS + SLOW_CONNECTIONS)]
        self._idle: asyncio.Queue[AsyncRpcClient] = asyncio.Queue()
        self._idle_slow: asyncio.Queue[AsyncRpcClient] = asyncio.Queue()
        for index, client in enumerate(self._clients):
            (self._idle if index < CONNECTIONS else self._idle_slow).put_nowait(client)
        self._handlers: dict[type, Callable[[Any], Awaitable[Any]]] = {
            calls.FindController: self._find_controller,
            calls.AttachController: self._attach,
            calls.DetachController: self._detach,
            calls.ListControllers: self._list_controllers,
            calls.CreateTable: self._create_table,
            calls.DeleteTable: lambda call: self._run(bdev_segmap.delete(call.name)),
            calls.ListTables: self._list_tables,
            calls.FindSubsystem: self._find_subsystem,
            calls.CreateSubsystem: self._create_subsystem,
            calls.DeleteSubsystem: lambda call: self._run(nvmf.delete_subsystem(call.nqn)),
            calls.AddNamespace: self._add_namespace,
            calls.RemoveNamespace: lambda call: self._run(nvmf.subsystem_remove_ns(call.nqn, call.nsid)),
            calls.AddListener: lambda call: self._run(nvmf.subsystem_add_listener(call.nqn, _address(call.listener))),
            calls.AddHost: lambda call: self._run(nvmf.subsystem_add_host(call.nqn, call.host)),
            calls.RemoveHost: lambda call: self._run(nvmf.subsystem_remove_host(call.nqn, call.host)),
            calls.AllowAnyHost: lambda call: self._run(nvmf.subsystem_allow_any_host(call.nqn, call.allow)),
            calls.ListQueuePairs: self._list_queue_pairs,
            calls.EnsureTransport: self._ensure_transport,
            calls.FindBdev: self._find_bdev,
            calls.CreateBdev: self._create_bdev,
            calls.AttachLocal: self._attach_local,
            calls.EnsureFile: _ensure_file,
        }

    async def perform(self, call: calls.TargetCall) -> object:
        """The call's value; raises CallRefused or CallUnknown."""
        try:
            return await self._handlers[type(call)](call)
        except RpcError as error:
            raise CallRefused(error.code, f"{error.method}: {error.message}") from error
        except RpcFailure as error:
            raise CallUnknown(str(error)) from error

    async def close(self) -> None:
        """Ends the connections; calls under way end with an unknown outcome."""
        await asyncio.gather(*(client.close() for client in self._clients))

    async def _run(self, call: Call[T], *, slow: bool = False) -> T:
        idle = self._idle_slow if slow else self._idle
        client = await idle.get()
        try:
            return await client.run(call)
        finally:
            idle.put_nowait(client)

    async def _run_or_none(self, call: Call[T], absent: int) -> T | None:
        try:
            return await self._run(call)
        except RpcError as error:
            if error.code == absent:
                return None
            raise

    # --- containers at a mapper --------------------------------------------------------------------------------------

    async def _find_controller(self, call: calls.FindController) -> ControllerPath | None:
        for controller in await self._run(bdev_nvme.get_controllers()):
            if controller.name == call.name and controller.paths:
                path = controller.paths[0]
                return ControllerPath(path.trtype.upper(), path.traddr, path.trsvcid, path.subnqn, path.hostnqn)
        return None

    async def _attach(self, call: calls.AttachController) -> object:
        path = call.path
        attach = bdev_nvme.attach_controller(
            call.name,
            path.trtype,
            path.traddr,
            adrfam=_family(path.traddr),
            trsvcid=path.trsvcid,
            subnqn=path.subnqn,
            hostnqn=path.hostnqn,
            reconnection=RECONNECTION,
        )
        return await self._run(attach, slow=True)

    async def _detach(self, call: calls.DetachController) -> object:
        return await self._run(bdev_nvme.detach_controller(call.name), slow=True)

    async def _list_controllers(self, _: calls.ListControllers) -> dict[str, bool]:
        found = await self._run(bdev_nvme.get_controllers())
        return {one.name: any(path.state in USABLE_STATES for path in one.paths) for one in found}

    # --- tables ------------------------------------------------------------------------------------------------------

    async def _create_table(self, call: calls.CreateTable) -> object:
        disk = bdev_segmap.SegmapBdev(
            name=call.name,
            uuid=str(UUID(bytes=call.uuid)),
            table=call.table,
            segment_count=call.segment_count,
            segment_size=call.segment_size,
            block_size=call.block_size,
            read_only=call.read_only,
            reclaim=call.reclaim,
        )
        return await self._run(bdev_segmap.create(disk))

    async def _list_tables(self, _: calls.ListTables) -> dict[int, str]:
        return {state.table: state.name for state in await self._run(bdev_segmap.get())}

    # --- subsystems --------------------------------------------------------------------------------------------------

    async def _find_subsystem(self, call: calls.FindSubsystem) -> calls.SubsystemState | None:
        for found in await self._run(nvmf.get_subsystems()):
            if found.nqn == call.nqn:
                return calls.SubsystemState(
                    nqn=found.nqn,
                    serial=found.serial_number,
                    cntlid_min=found.min_cntlid,
                    cntlid_max=found.max_cntlid,
                    allow_any_host=found.allow_any_host,
                    hosts=found.hosts,
                    namespaces=tuple(calls.NamespaceState(ns.nsid, ns.bdev_name) for ns in found.namespaces),
                    listeners=tuple(Listener(at.trtype.upper(), at.traddr, at.trsvcid) for at in found.addresses),
                )
        return None

    async def _create_subsystem(self, call: calls.CreateSubsystem) -> object:
        create = nvmf.create_subsystem(
            call.nqn,
            serial_number=call.serial,
            model_number=call.model,
            max_namespaces=NAMESPACES_MAX,
            min_cntlid=call.cntlid_min,
            max_cntlid=call.cntlid_max,
            allow_any_host=call.allow_any_host,
        )
        return await self._run(create)

    async def _add_namespace(self, call: calls.AddNamespace) -> object:
        add = nvmf.subsystem_add_ns(
            call.nqn,
            call.bdev,
            call.nsid,
            nguid=call.nguid.hex().upper() or None,
            uuid=str(UUID(bytes=call.uuid)) if call.uuid else None,
        )
        return await self._run(add)

    async def _list_queue_pairs(self, call: calls.ListQueuePairs) -> list[str]:
        return [pair.hostnqn for pair in await self._run(nvmf.subsystem_get_qpairs(call.nqn))]

    async def _ensure_transport(self, _: calls.EnsureTransport) -> None:
        if not await self._run_or_none(nvmf.get_transports("TCP"), ENODEV):
            await self._run(nvmf.create_transport("TCP"))

    # --- bdevs of an exporter ----------------------------------------------------------------------------------------

    async def _find_bdev(self, call: calls.FindBdev) -> calls.BdevState | None:
        for found in await self._run_or_none(bdev.get_bdevs(call.name), ENODEV) or ():
            return calls.BdevState(call.name, found.block_size, found.num_blocks, UUID(found.uuid).bytes)
        return None

    async def _create_bdev(self, call: calls.CreateBdev) -> object:
        uuid = str(UUID(bytes=call.uuid))
        blocks = call.size_bytes // call.block_size
        if call.kind == "aio":
            return await self._run(bdev.aio_create(call.name, call.path, call.block_size, uuid=uuid))
        if call.kind == "malloc":
            return await self._run(bdev.malloc_create(call.name, call.block_size, blocks, uuid))
        return await self._run(bdev.null_create(call.name, call.block_size, blocks, uuid))

    async def _attach_local(self, call: calls.AttachLocal) -> object:
        return await self._run(bdev_nvme.attach_controller(call.name, "PCIe", call.traddr), slow=True)


async def _ensure_file(call: calls.EnsureFile) -> None:
    try:
        await asyncio.to_thread(_create_sparse, call.path, call.size_bytes)
    except OSError as error:
        raise CallRefused(-(error.errno or 5), f"{call.path}: {error.strerror}") from error


def _create_sparse(path: str, size_bytes: int) -> None:
    """Whole or not at all: a file that is there is left as it is."""
    if not size_bytes or os.path.exists(path):
        return
    started = f"{path}.new"
    descriptor = os.open(started, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    try:
        os.ftruncate(descriptor, size_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(started, path)


def _address(listener: Listener) -> nvmf.Address:
    return nvmf.Address(listener.trtype, _family(listener.traddr), listener.traddr, listener.trsvcid)


def _family(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


__all__ = ["CallFailed", "TargetCalls"]
