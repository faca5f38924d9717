"""NVMe/TCP exports and fences against a target in memory: ports that are taken, queue pairs that stay."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from spdk_rpc import exports
from spdk_rpc.client import AsyncRpcClient
from spdk_rpc.converge import Converger
from spdk_rpc.errors import RpcError
from spdk_rpc.exports import Export, NvmeTcpFrontEnd
from spdk_rpc.methods.nvmf import DISCOVERY_NQN, Address
from spdk_rpc.target import Target, TargetError

NQN = "nqn.2026-11.io.segmap:c:1"
HOST = "nqn.2026-11.io.segmap:agent:a:1"


class MemoryTarget(AsyncRpcClient):
    """As much of a target's NVMe-oF as an export needs, with SPDK's shapes and codes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.transports: list[str] = []
        self.subsystems: dict[str, dict[str, Any]] = {DISCOVERY_NQN: self._new({"nqn": DISCOVERY_NQN}, "Discovery")}
        self.refused_ports = 0
        self.queue_pairs: list[dict[str, Any]] = []
        self.queue_pairs_leave_after = 0

    @staticmethod
    def _new(params: dict[str, Any], subtype: str = "NVMe") -> dict[str, Any]:
        return {"subtype": subtype, "listen_addresses": [], "allow_any_host": False, "hosts": [], **params}

    async def call(self, method: str, params: Any = None, timeout_s: float | None = None) -> Any:
        return getattr(self, method)(**(params or {}))

    def nvmf_get_transports(self) -> Any:
        options = {"max_queue_depth": 1, "max_io_qpairs_per_ctrlr": 1, "in_capsule_data_size": 1, "max_io_size": 1}
        return [{"trtype": name, **options} for name in self.transports]

    def nvmf_create_transport(self, trtype: str) -> Any:
        self.transports.append(trtype)
        return True

    def nvmf_get_subsystems(self, nqn: str | None = None) -> Any:
        if nqn is None:
            return list(self.subsystems.values())
        if nqn not in self.subsystems:
            raise RpcError("nvmf_get_subsystems", -32602, "not found")
        return [self.subsystems[nqn]]

    def nvmf_create_subsystem(self, **params: Any) -> Any:
        self.subsystems[params["nqn"]] = self._new(params)
        return True

    def nvmf_subsystem_add_listener(self, nqn: str, listen_address: dict[str, str]) -> Any:
        if self.refused_ports:
            self.refused_ports -= 1
            raise RpcError("nvmf_subsystem_add_listener", -32602, "Invalid parameters")
        self.subsystems[nqn]["listen_addresses"].append(listen_address)
        return True

    def nvmf_subsystem_add_host(self, nqn: str, host: str) -> Any:
        self.subsystems[nqn]["hosts"].append({"nqn": host})
        return True

    def nvmf_subsystem_remove_host(self, nqn: str, host: str) -> Any:
        self.subsystems[nqn]["hosts"].remove({"nqn": host})
        return True

    def nvmf_subsystem_get_qpairs(self, nqn: str) -> Any:
        if self.queue_pairs_leave_after == 0:
            self.queue_pairs = []
        self.queue_pairs_leave_after -= 1
        return self.queue_pairs


@pytest.fixture
def memory(runtime_dir: Path) -> MemoryTarget:
    return MemoryTarget(runtime_dir / "none.sock")


def test_port_that_is_free_is_kept(memory: MemoryTarget) -> None:
    memory.refused_ports = 3

    async def run() -> tuple[Address, Address]:
        front_end, target = NvmeTcpFrontEnd(rng=random.Random(1)), Converger(memory)
        return await front_end.export(Export(NQN), target), await front_end.export(Export(NQN + "2"), target)

    first, second = asyncio.run(run())
    assert first == second
    assert int(first.trsvcid) in exports.PORTS
    assert all(found["listen_addresses"] == [first.params()] for found in memory.subsystems.values())
    assert memory.transports == ["TCP"]


def test_no_port_is_free(memory: MemoryTarget) -> None:
    memory.refused_ports = 1000
    with pytest.raises(RpcError):
        asyncio.run(NvmeTcpFrontEnd().export(Export(NQN), Converger(memory)))
    assert 1000 - memory.refused_ports == exports.PORT_TRIES


def test_running_target_keeps_its_port(memory: MemoryTarget) -> None:
    there = Address("TCP", "IPv4", "127.0.0.1", "4420")
    memory.subsystems[NQN + "2"] = memory._new({"nqn": NQN + "2", "listen_addresses": [there.params()]})
    assert asyncio.run(NvmeTcpFrontEnd().export(Export(NQN), Converger(memory))) == there


def test_port_that_was_told_is_not_left_for_another(memory: MemoryTarget) -> None:
    memory.refused_ports = 1
    with pytest.raises(RpcError):
        asyncio.run(NvmeTcpFrontEnd(trsvcid=4420).export(Export(NQN), Converger(memory)))


def deny(memory: MemoryTarget, deadline_s: float) -> bool:
    async def run() -> bool:
        target = Target(memory, None, NvmeTcpFrontEnd())
        await target.export(Export(NQN, hosts=frozenset({HOST})))
        try:
            return await target.deny_host(NQN, HOST, deadline_s)
        finally:
            await target.close()

    return asyncio.run(run())


def queue_pair(hostnqn: str) -> dict[str, Any]:
    peer = {"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": "1", "adrfam": "IPv4"}
    return {"cntlid": 1, "qid": 1, "state": "enabled", "hostnqn": hostnqn, "peer_address": peer}


@pytest.mark.parametrize(("leave_after", "fenced"), [(0, True), (2, True), (10**9, False)])
def test_fenced_only_when_no_queue_pair_is_left(memory: MemoryTarget, leave_after: int, fenced: bool) -> None:
    memory.queue_pairs, memory.queue_pairs_leave_after = [queue_pair(HOST)], leave_after
    assert deny(memory, 0.3 if fenced is False else 5) is fenced
    assert memory.subsystems[NQN]["hosts"] == []


def test_queue_pairs_of_others_do_not_count(memory: MemoryTarget) -> None:
    memory.queue_pairs, memory.queue_pairs_leave_after = [queue_pair(HOST + "2")], 10**9
    assert deny(memory, 5) is True


def test_target_that_does_not_answer_is_not_fenced(runtime_dir: Path) -> None:
    async def run() -> bool:
        target = Target(AsyncRpcClient(runtime_dir / "none.sock"), None, NvmeTcpFrontEnd())
        try:
            return await target.deny_host(NQN, HOST, 0.3)
        finally:
            await target.close()

    assert asyncio.run(run()) is False


def test_allow_needs_the_export(memory: MemoryTarget) -> None:
    async def run() -> None:
        target = Target(memory, None, NvmeTcpFrontEnd())
        try:
            with pytest.raises(TargetError, match="it must exist before a host is allowed"):
                await target.allow_host(NQN, HOST)
        finally:
            await target.close()

    asyncio.run(run())
