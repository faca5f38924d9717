"""Target's operations against a target in memory: exports at the told address, fences that are confirmed or not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from spdk_rpc.client import AsyncRpcClient
from spdk_rpc.converge import TargetError
from spdk_rpc.errors import RpcError
from spdk_rpc.exports import Export, NoExport, NvmeTcpFrontEnd
from spdk_rpc.methods.nvmf import DISCOVERY_NQN, Address
from spdk_rpc.target import Client, Target
from tests.spdk_rpc.pretend_target import PretendTarget

NQN = "nqn.2026-11.io.segmap:c:1"
HOST = "nqn.2026-11.io.segmap:agent:a:1"
FRONT_END = NvmeTcpFrontEnd("127.0.0.1", 4420)
REFUSAL = RpcError("nvmf_subsystem_add_listener", -32602, "Invalid parameters")


class LeavingTarget(PretendTarget):
    """Its queue pairs are gone after so many looks, whatever happens to their hosts."""

    leave_after = 0

    def nvmf_subsystem_get_qpairs(self, nqn: str) -> object:
        if self.leave_after == 0:
            self.queue_pairs[nqn] = []
        self.leave_after -= 1
        return super().nvmf_subsystem_get_qpairs(nqn)


@pytest.fixture
def memory() -> LeavingTarget:
    target = LeavingTarget()
    target.nvmf_create_subsystem(DISCOVERY_NQN, subtype="Discovery")
    target.sticky_pairs = True
    return target


def export_two(memory: PretendTarget) -> tuple[Address, Address]:
    async def run() -> tuple[Address, Address]:
        target = Target(memory, front_end=FRONT_END)
        try:
            return await target.export(Export(NQN)), await target.export(Export(NQN + "2"))
        finally:
            await target.close()

    return asyncio.run(run())


def test_all_exports_are_at_one_address(memory: PretendTarget) -> None:
    first, second = export_two(memory)
    assert first == second == FRONT_END.address
    assert all(found.addresses == (first,) for found in memory.subsystems.values())
    assert set(memory.subsystems) == {DISCOVERY_NQN, NQN, NQN + "2"}
    assert memory.transports == ["TCP"]


def test_port_that_was_told_is_not_left_for_another(memory: PretendTarget) -> None:
    memory.fault("nvmf_subsystem_add_listener", REFUSAL)
    with pytest.raises(RpcError):
        export_two(memory)


def test_target_without_a_front_end_exports_nothing(memory: PretendTarget) -> None:
    async def run() -> None:
        target = Target(memory)
        with pytest.raises(TargetError, match="without a front end"):
            await target.export(Export(NQN))
        await target.close()

    asyncio.run(run())


def deny(client: Client, deadline_s: float) -> bool:
    async def run() -> bool:
        target = Target(client, front_end=FRONT_END)
        try:
            return await target.deny_host(NQN, HOST, deadline_s)
        finally:
            await target.close()

    return asyncio.run(run())


@pytest.mark.parametrize(("leave_after", "fenced"), [(0, True), (2, True), (10**9, False)])
def test_fenced_only_when_no_queue_pair_is_left(memory: LeavingTarget, leave_after: int, fenced: bool) -> None:
    memory.nvmf_create_subsystem(NQN)
    memory.nvmf_subsystem_add_host(NQN, HOST)
    memory.queue_pairs[NQN], memory.leave_after = [HOST], leave_after
    assert deny(memory, 0.3 if fenced is False else 5) is fenced
    assert memory.subsystems[NQN].hosts == frozenset()


def test_queue_pairs_of_others_do_not_count(memory: LeavingTarget) -> None:
    memory.nvmf_create_subsystem(NQN)
    memory.queue_pairs[NQN], memory.leave_after = [HOST + "2"], 10**9
    assert deny(memory, 5) is True


def test_target_that_does_not_answer_is_not_fenced(runtime_dir: Path) -> None:
    assert deny(AsyncRpcClient(runtime_dir / "none.sock"), 0.3) is False


def test_allow_needs_the_export(memory: PretendTarget) -> None:
    async def run() -> None:
        target = Target(memory)
        try:
            with pytest.raises(NoExport, match="it must exist before a host is allowed"):
                await target.allow_host(NQN, HOST)
        finally:
            await target.close()

    asyncio.run(run())
