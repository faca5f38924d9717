"""I/O without a lease: it waits, goes on when the controller is back, and ends with a retryable status at a limit."""

from __future__ import annotations

from channel.messages import Epoch
from channel.values import AnswerAction
from dataplane.embedded.nvmf_backend import nvme_status
from fabric.nvme_tcp.spec import DNR
from mapping.rules import Operation
from mapping.status import Status
from tests.embedded.scripted_daemon import SEGMENT, Rig, at, on_loop, settle, write

REPLACE = AnswerAction.REPLACE


@on_loop
async def test_what_waits_for_a_lease_goes_on_without_an_error_up_to_the_park_limit() -> None:
    async with Rig() as rig:
        disk = await rig.ready()
        await rig.daemon.set(0, [at(2), at(3)])
        rig.now += 10 * 10**9
        rig.host.tick()
        await rig.daemon.until(lambda: any(isinstance(notice, Epoch) for notice in rig.daemon.notices))
        early, late = write(disk, 0, b"e" * 512), None
        rig.now += 15 * 10**9
        late = write(disk, SEGMENT, b"l" * 512)
        rig.host.tick()
        assert (early.status, late.status) == (None, None) and not rig.daemon.faults(), "nothing is begun or asked"
        rig.now += 5 * 10**9
        rig.host.tick()
        assert (early.status, late.status) == (Status.TIMEOUT, None)
        assert not nvme_status(Status.TIMEOUT, Operation.WRITE) & DNR, "its host may try again"
        rig.daemon.epoch, rig.daemon.sequence = 2, 0
        rig.grant()
        await settle()
        rig.daemon.answer(rig.daemon.faults()[-1], REPLACE, [at(3)])
        await settle()
        assert late.status is Status.OK
        assert rig.fast.read_now(3 * SEGMENT, 512) == b"l" * 512
        assert rig.fast.read_now(2 * SEGMENT, 512) == bytes(512), "what its host has given up never lands"
