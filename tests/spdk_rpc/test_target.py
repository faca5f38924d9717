"""Target's processes: start, refuse, adopt, stop, kill, exit events; with a small JSON-RPC server as the target."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from spdk_rpc import connections
from spdk_rpc import target as target_module
from spdk_rpc.call import Call
from spdk_rpc.converge import TargetError
from spdk_rpc.errors import RpcFailure, RpcTimeout
from spdk_rpc.methods import bdev_nvme, framework
from spdk_rpc.process import (
    ProcessGone,
    ProcessIdentity,
    TargetProcess,
    end_process,
    listener_of,
    read_log_tail,
    read_start_time,
)
from spdk_rpc.target import (
    Target,
    TargetBack,
    TargetExited,
    TargetLost,
    TargetNotRunning,
    TargetStartError,
)
from tests.spdk_rpc.pretend_target import PretendTarget

T = TypeVar("T")
TARGET = Path(__file__).with_name("small_target.py")


def command(rpc_socket: Path, *more: str) -> list[str]:
    return [sys.executable, "-S", str(TARGET), str(rpc_socket), *more]


@pytest.fixture
def rpc_socket(runtime_dir: Path) -> Path:
    return runtime_dir / "rpc.sock"


async def start(rpc_socket: Path, *more: str) -> Target:
    return await Target.start(
        command(rpc_socket, *more), rpc_socket, log_path=rpc_socket.with_suffix(".log"), ready_s=20
    )


def test_start_and_stop(rpc_socket: Path) -> None:
    async def run() -> None:
        target = await start(rpc_socket)
        assert target.identity is not None
        assert os.getsid(target.identity.pid) == target.identity.pid  # our terminal's signals do not reach it
        assert await target.stop() == 0
        assert read_start_time(target.identity.pid) is None

    asyncio.run(run())


def test_stop_kills_what_does_not_obey(rpc_socket: Path) -> None:
    async def run() -> None:
        target = await start(rpc_socket, "stubborn")
        assert await target.stop(deadline_s=0.1) == -signal.SIGKILL

    asyncio.run(run())


def test_exit_is_an_event(rpc_socket: Path) -> None:
    async def run() -> None:
        target = await start(rpc_socket)
        target.kill()
        assert [event async for event in target.events()][-1] == TargetExited(-signal.SIGKILL)
        assert await target.stop() == -signal.SIGKILL

    asyncio.run(run())


def test_start_where_a_target_runs(rpc_socket: Path) -> None:
    async def run() -> None:
        target = await start(rpc_socket)
        with pytest.raises(TargetStartError, match=r"runs already at .*adopt it, or stop it first"):
            await start(rpc_socket)
        await target.stop()

    asyncio.run(run())


def test_start_that_fails_tells_the_end_of_the_log(rpc_socket: Path) -> None:
    async def run() -> None:
        with pytest.raises(TargetStartError, match=r"ended with status 3; the end of its log:\nno memory left"):
            await start(rpc_socket, "broken")

    asyncio.run(run())


def test_start_that_never_answers_leaves_no_process(rpc_socket: Path) -> None:
    async def run() -> None:
        with pytest.raises(TargetStartError, match=r"did not answer within 0\.2 s"):
            await Target.start(command(rpc_socket, "silent"), rpc_socket, ready_s=0.2)

    asyncio.run(run())


def test_start_of_no_program(rpc_socket: Path) -> None:
    async def run() -> None:
        with pytest.raises(TargetStartError, match="cannot start /nonexistent/spdk_tgt"):
            await Target.start(["/nonexistent/spdk_tgt"], rpc_socket)

    asyncio.run(run())


def test_target_outlives_its_starter_and_is_adopted(rpc_socket: Path) -> None:
    async def run() -> None:
        first = await start(rpc_socket)
        identity = first.identity
        assert identity is not None
        await first.close()
        second = await Target.adopt(rpc_socket, identity)
        assert second.identity == identity
        await second.stop()
        await asyncio.to_thread(os.waitpid, identity.pid, 0)  # still our child, which that handle did not know
        with pytest.raises(TargetNotRunning, match="no target to adopt"):
            await Target.adopt(rpc_socket, identity)
        with pytest.raises(TargetNotRunning, match=r"is the target running|nobody listens"):
            await Target.adopt(rpc_socket)

    asyncio.run(run())


def test_adopted_without_its_process_cannot_be_stopped(rpc_socket: Path) -> None:
    async def run() -> None:
        first = await start(rpc_socket)
        second = await Target.adopt(rpc_socket)
        with pytest.raises(TargetError, match="adopted without its process"):
            await second.stop()
        await second.close()
        await first.stop()

    asyncio.run(run())


def test_reused_pid_is_not_adopted() -> None:
    with pytest.raises(ProcessGone, match="is not the one that was started"):
        TargetProcess.adopt(ProcessIdentity(os.getpid(), 1))


def test_lost_and_back(rpc_socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "PROBE_S", 0.02)

    async def run() -> None:
        first = await start(rpc_socket)
        watched = await Target.adopt(rpc_socket)
        events = watched.events()
        await first.stop()
        assert isinstance(await anext(events), TargetLost)
        second = await start(rpc_socket)
        assert await anext(events) == TargetBack()
        await watched.close()
        await second.stop()

    asyncio.run(run())


def test_process_that_lives_but_does_not_answer_is_lost(rpc_socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the first missed deadline, which a busy target may miss, too."""
    monkeypatch.setattr(target_module, "PROBE_S", 0.02)

    async def run() -> None:
        target = await start(rpc_socket)
        assert target.identity is not None
        await target.close()
        watched = await Target.adopt(rpc_socket, target.identity, timeout_s=0.05)
        watched.kill(signal.SIGSTOP)
        events = watched.events()
        event = await anext(events)
        assert isinstance(event, TargetLost) and "no answer in time" in event.reason
        watched.kill(signal.SIGCONT)
        assert await anext(events) == TargetBack()
        await watched.stop()
        await asyncio.to_thread(os.waitpid, target.identity.pid, 0)

    asyncio.run(run())


def test_one_missed_probe_is_not_the_end(rpc_socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "PROBE_S", 0.0)

    class Probed(PretendTarget):
        probes = 0

        async def run(self, call: Call[T], timeout_s: float | None = None) -> T:
            self.probes += 1
            if self.probes <= 2 * target_module.MISSES_MAX and self.probes % target_module.MISSES_MAX:
                raise RpcTimeout(call.method, "no answer in time")
            if self.probes > 3 * target_module.MISSES_MAX:
                raise RpcTimeout(call.method, "silent for good")
            return None  # type: ignore[return-value]  # nobody looks at a probe's answer

    async def run() -> None:
        target = Target(PretendTarget())
        target._probe = probe = Probed()  # type: ignore[assignment]
        target._watch()
        event = await anext(target.events())
        assert event == TargetLost("spdk_get_version: outcome unknown: silent for good")
        assert probe.probes >= 4 * target_module.MISSES_MAX
        await target.close()

    asyncio.run(run())


def test_who_listens_is_asked_from_the_kernel(rpc_socket: Path) -> None:
    async def run() -> None:
        assert listener_of(rpc_socket) is None
        target = await start(rpc_socket)
        assert await asyncio.to_thread(listener_of, rpc_socket) == target.identity
        await target.stop()
        assert await asyncio.to_thread(listener_of, rpc_socket) is None

    asyncio.run(run())


def test_a_left_over_process_is_ended(rpc_socket: Path) -> None:
    async def run() -> None:
        target = await start(rpc_socket, "stubborn")
        identity = target.identity
        assert identity is not None
        await target.close()
        assert await end_process(identity, 0.1) is True
        await asyncio.to_thread(os.waitpid, identity.pid, 0)
        assert await end_process(identity, 0.1) is False

    asyncio.run(run())


def test_a_slow_attach_holds_nothing_else_up(rpc_socket: Path) -> None:
    """Containers whose hosts are silent wait on connections of their own; a call beyond those waits for one."""

    async def run() -> None:
        target = await start(rpc_socket, "slow-attach")
        attaches = [
            asyncio.create_task(target.client.run(bdev_nvme.attach_controller(f"c{number}", "TCP", "127.0.0.1")))
            for number in range(2 * connections.SLOW_CONNECTIONS)
        ]
        for _ in range(2 * connections.CONNECTIONS):
            assert (await target.client.run(framework.get_version())).major == 0
        assert not any(attach.done() for attach in attaches)
        assert await target.stop() == 0
        ends = await asyncio.gather(*attaches, return_exceptions=True)
        assert all(isinstance(end, RpcFailure) for end in ends)

    asyncio.run(run())


def test_events_are_bounded(rpc_socket: Path) -> None:
    async def run() -> None:
        target = await start(rpc_socket)
        for number in range(target_module.EVENTS_MAX + 5):
            target._tell(TargetLost(str(number)))
        events = target.events()
        assert await anext(events) == TargetLost("5")
        await target.stop()

    asyncio.run(run())


def within(seconds: float, make: Callable[[], Awaitable[object]]) -> object:
    async def run() -> object:
        async with asyncio.timeout(seconds):
            return await make()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("program", "status"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9), ("", 0)]
)
def test_exit_status(program: str, status: int) -> None:
    async def run() -> object:
        process = TargetProcess.spawn([sys.executable, "-S", "-c", program], None)
        try:
            assert await process.wait() == status
            process.signal(signal.SIGTERM)  # too late: nothing happens
            return await process.wait()
        finally:
            process.close()

    assert within(10, run) == status


def test_log_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert read_log_tail(log) == read_log_tail(None) == ""
    log.write_text("".join(f"line {number}\n" for number in range(5000)))
    tail = read_log_tail(log).splitlines()
    assert (len(tail), tail[-1]) == (20, "line 4999")
