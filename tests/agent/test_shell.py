"""The daemon with a real target, real sockets and TLS, and a controller that follows a script."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from agent.config import AgentConfig, ContainerConfig
from agent.main import stop_target
from agent.shell import AgentFailed, AgentShell
from agent.target_process import this_machine
from channel.events import SessionEnded
from channel.messages import AgentEvent, AllowHost, DenyHost, Done, Export, GetParked, ParkedRead
from channel.values import EventKind
from mapping.status import Status
from spdk_rpc.client import RpcClient
from spdk_rpc.process import read_start_time
from tests.agent.scripted_controller import ScriptedController
from transport import pki

MIB = 1 << 20
MEMORY = ContainerConfig("ram0", "malloc", size_bytes=16 * MIB)


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


class Place:
    """A directory with everything an agent needs, and what runs there."""

    def __init__(self, directory: Path, controller: ScriptedController) -> None:
        self.directory = directory
        self.controller = controller
        self.files = pki.issue(controller.directory, "a", "agent")

    def config(self, *roles: str, containers: tuple[ContainerConfig, ...] = (), **more: Any) -> AgentConfig:
        return AgentConfig(
            "a",
            frozenset(roles),
            (("127.0.0.1", self.controller.port),),
            self.files.ca,
            self.files.certificate,
            self.files.key,
            self.directory,
            containers=containers,
            reconnect_max_s=0.2,
            ready_file=self.directory / "ready",
            **more,
        )

    @asynccontextmanager
    async def agent(self, config: AgentConfig) -> AsyncIterator[AgentShell]:
        """A running daemon; stopped at the end."""
        shell = AgentShell(config)
        task = asyncio.create_task(shell.run())
        ready = asyncio.create_task(shell.ready())
        try:
            await asyncio.wait({task, ready}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
            assert ready.done(), f"not ready: {config.log_path.read_text() if config.log_path.exists() else ''}"
            yield shell
        finally:
            ready.cancel()
            shell.stop()
            await task


@asynccontextmanager
async def place(directory: Path) -> AsyncIterator[Place]:
    controller = ScriptedController(directory / "pki")
    await controller.start()
    made = Place(directory, controller)
    try:
        yield made
    finally:
        await controller.stop()
        await asyncio.to_thread(stop_target, made.config("mapper"))


def alive(pid: int) -> bool:
    return read_start_time(pid) is not None


def test_an_exporter_from_start_to_fence(runtime_dir: Path) -> None:
    async def work() -> None:
        async with place(runtime_dir) as here:
            image = ContainerConfig("disk0", "aio", runtime_dir / "disk0.img", 8 * MIB)
            config = here.config("exporter", containers=(image, MEMORY))
            async with here.agent(config) as shell:
                session = await here.controller.session()
                exports = [(await session.hear(Export)).message for _ in range(2)]
                assert [(one.name, one.block_count * one.block_size) for one in exports] == [
                    ("disk0", 8 * MIB),
                    ("ram0", 16 * MIB),
                ]
                assert (runtime_dir / "disk0.img").stat().st_size == 8 * MIB
                facts = json.loads((runtime_dir / "ready").read_text())
                assert facts["target_pid"] == shell.target_pid == int(config.pid_path.read_text())
                assert exports[0].trsvcid == str(facts["listen_port"])
                host = "nqn.2026-11.io.segmap:agent:b:1"
                assert await session.order(AllowHost(exports[0].subnqn, host)) == Done()
                with RpcClient(config.rpc_path) as client:
                    seen = client.call("nvmf_get_subsystems", {"nqn": exports[0].subnqn})
                assert [one["nqn"] for one in seen[0]["hosts"]] == [host]
                assert await session.order(DenyHost(exports[0].subnqn, host)) == Done()
                assert (await session.order(AllowHost("nqn.2026-11.io.segmap:none", host))).status == Status.NOT_FOUND

    run(work())


def test_a_target_outlives_its_daemon_and_is_adopted(runtime_dir: Path) -> None:
    async def work() -> None:
        async with place(runtime_dir) as here:
            config = here.config("exporter", containers=(MEMORY,))
            async with here.agent(config) as shell:
                pid = shell.target_pid
                first = await here.controller.session()
                export = (await first.hear(Export)).message
                await first.order(AllowHost(export.subnqn, "nqn.2026-11.io.segmap:agent:b:1"))
            ended = await first.hear(SessionEnded)
            assert ended.by_peer and alive(pid)
            async with here.agent(config) as shell:
                assert shell.target_pid == pid
                second = await here.controller.session()
                assert second.hello is not None and first.hello is not None
                assert second.hello.instance == first.hello.instance
                again = (await second.hear(Export)).message
                assert again == export
                with RpcClient(config.rpc_path) as client:
                    seen = client.call("nvmf_get_subsystems", {"nqn": export.subnqn})
                assert len(seen[0]["hosts"]) == 1, "an adopted target keeps its allow-list"

    run(work())


def test_a_bound_target_ends_with_its_daemon(runtime_dir: Path) -> None:
    async def work() -> None:
        async with place(runtime_dir) as here:
            config = here.config("exporter", containers=(MEMORY,), target_lifetime="daemon")
            async with here.agent(config) as shell:
                pid = shell.target_pid
                assert alive(pid)
            assert not alive(pid) and not config.pid_path.exists()

    run(work())


def test_a_killed_target_comes_back_as_another(runtime_dir: Path) -> None:
    async def work() -> None:
        async with place(runtime_dir) as here, here.agent(here.config("exporter", containers=(MEMORY,))) as shell:
            first = await here.controller.session()
            export = (await first.hear(Export)).message
            await first.order(AllowHost(export.subnqn, "nqn.2026-11.io.segmap:agent:b:1"))
            pid = shell.target_pid
            os.kill(pid, signal.SIGKILL)
            second = await here.controller.session()
            assert second.hello is not None and first.hello is not None
            assert second.hello.instance != first.hello.instance
            assert second.hello.machine == first.hello.machine == this_machine() != bytes(16)
            assert (await second.hear(Export)).message.trsvcid == export.trsvcid, "the same port as before"
            assert (await second.hear(AgentEvent)).message.kind is EventKind.TARGET_RESTARTED
            with RpcClient(shell.config.rpc_path) as client:
                seen = client.call("nvmf_get_subsystems", {"nqn": export.subnqn})
            assert seen[0]["hosts"] == [] and shell.target_pid not in (0, pid)

    run(work())


def test_a_controller_that_goes_away_is_found_again(runtime_dir: Path) -> None:
    async def work() -> None:
        async with place(runtime_dir) as here, here.agent(here.config("exporter", containers=(MEMORY,))):
            first = await here.controller.session()
            await here.controller.stop()
            await here.controller.start()
            second = await here.controller.session()
            assert first.hello == second.hello
            await second.hear(Export)

    run(work())


def test_a_mapper_relays_to_its_data_plane(runtime_dir: Path) -> None:
    async def work() -> None:
        async with place(runtime_dir) as here, here.agent(here.config("mapper")):
            session = await here.controller.session()
            assert session.hello is not None and session.hello.instance != bytes(16)
            response = await session.order(GetParked())
            assert isinstance(response, ParkedRead) and list(response.parked) == []

    run(work())


def test_a_fenced_data_plane_is_replaced(runtime_dir: Path) -> None:
    async def work() -> None:
        async with place(runtime_dir) as here:
            here.controller.refusal = Status.STALE_INCARNATION
            async with here.agent(here.config("mapper")) as shell:
                pid = shell.target_pid
                first = await here.controller.session()
                here.controller.refusal = Status.OK
                second = await here.controller.session()
                assert first.hello is not None and second.hello is not None
                assert first.hello.instance != second.hello.instance
                assert not alive(pid) and shell.target_pid != pid

    run(work())


def test_a_target_that_hangs_but_lives_is_replaced(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections (the kernel does) and never answers: nothing could be denied there any more."""
    monkeypatch.setattr("spdk_rpc.target.PROBE_S", 0.05)
    monkeypatch.setattr("agent.target_process.STOP_S", 0.2)

    async def work() -> None:
        async with (
            place(runtime_dir) as here,
            here.agent(here.config("exporter", containers=(MEMORY,), rpc_timeout_s=0.5)) as shell,
        ):
            first = await here.controller.session()
            await first.hear(Export)
            pid = shell.target_pid
            os.kill(pid, signal.SIGSTOP)
            denied = asyncio.create_task(first.order(DenyHost("nqn.x", "nqn.y")))
            second = await here.controller.session()
            assert (await second.hear(AgentEvent)).message.kind is EventKind.TARGET_RESTARTED
            assert not alive(pid) and shell.target_pid != pid
            denied.cancel()
            assert (await second.order(DenyHost("nqn.x", "nqn.y"))).status == Status.OK

    run(work())


def test_a_target_that_cannot_start_makes_the_daemon_give_up(
    runtime_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with place(runtime_dir) as here:
            config = here.config("exporter", target="spdk", target_command=("/bin/false",))
            with pytest.raises(AgentFailed, match="failed 12 times"):
                await AgentShell(config).run()

    monkeypatch.setattr("agent.core.supply.BACKOFF_MAX_NS", 1_000_000)
    with caplog.at_level(logging.WARNING, logger="segmap.agent"):
        run(work())
    assert "is started again" in caplog.text


def test_an_agent_has_one_daemon(runtime_dir: Path) -> None:
    async def work() -> None:
        async with place(runtime_dir) as here:
            config = here.config("exporter", containers=(MEMORY,))
            async with here.agent(config):
                with pytest.raises(AgentFailed, match="another daemon"):
                    await AgentShell(config).run()
            async with here.agent(config):
                pass

    run(work())


def test_nothing_to_adopt(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with place(runtime_dir) as here:
            with pytest.raises(AgentFailed, match="nothing listens"):
                await AgentShell(here.config("exporter", target="adopt")).run()

    monkeypatch.setattr("agent.core.supply.BACKOFF_MAX_NS", 1_000_000)
    run(work())
