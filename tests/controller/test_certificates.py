"""The controller's certificates while sessions go on: rotation, revocation, expiry alarms."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from ci.fault_load import Agent
from controller.shell import ControllerShell
from tests.controller.test_shell import certificates, configuration, in_loop, running
from transport import pki


async def alarms(shell: ControllerShell) -> list[tuple[str, str]]:
    status = await shell.call("cluster.status", {})
    return [(alarm["severity"], alarm["text"]) for alarm in status["alarms"]]


async def sessions(shell: ControllerShell) -> dict[str, bool]:
    return {agent["name"]: agent["connected"] for agent in (await shell.call("agent.list", {}))["agents"]}


async def connect(shell: ControllerShell, directory: Path, name: str) -> Agent:
    agent = Agent(name, 2)
    await agent.connect(shell.port, directory / "pki", name.encode().ljust(16))
    return agent


def test_rotation_drops_no_session_and_new_ones_use_the_new_certificate(tmp_path: Path) -> None:
    certificates(tmp_path / "pki")

    async def work() -> None:
        async with running(configuration(tmp_path)) as shell:
            await connect(shell, tmp_path, "map")
            pki.rotate(tmp_path / "pki", "controller", "controller")
            shell.look_at_certificates()
            await connect(shell, tmp_path, "other")
            assert await sessions(shell) == {"map": True, "other": True}
            assert await alarms(shell) == []

    in_loop(work)


def test_a_revoked_agent_loses_its_session_and_does_not_come_back(tmp_path: Path) -> None:
    certificates(tmp_path / "pki")

    async def work() -> None:
        async with running(configuration(tmp_path)) as shell:
            await connect(shell, tmp_path, "map")
            await connect(shell, tmp_path, "other")
            pki.revoke(tmp_path / "pki", "other", "agent")
            shell.look_at_certificates()
            while (await sessions(shell))["other"]:
                await asyncio.sleep(0)
            assert (await sessions(shell))["map"]
            again = Agent("other", 2)
            connecting = asyncio.ensure_future(again.connect(shell.port, tmp_path / "pki", b"o" * 16))
            assert "the peer refused us" in await again.ended
            connecting.cancel()
            assert not (await sessions(shell))["other"]
            pki.rotate(tmp_path / "pki", "other", "agent")
            await connect(shell, tmp_path, "other")

    in_loop(work)


def test_expiry_and_files_that_cannot_be_used_are_alarms_until_they_are_right(tmp_path: Path) -> None:
    directory = certificates(tmp_path / "pki")
    os.unlink(directory / "agent-map.key")
    os.unlink(directory / "agent-map.pem")
    pki.issue(directory, "map", "agent", days=20)
    pki.rotate(directory, "controller", "controller", days=5)

    async def work() -> None:
        async with running(configuration(tmp_path)) as shell:
            agent: Any = await connect(shell, tmp_path, "map")
            shell.look_at_certificates()
            found = sorted(await alarms(shell))
            assert [severity for severity, _ in found] == ["alarm", "warning"]
            assert "segmap:controller expires on" in found[0][1]
            assert "segmap:agent:map expires on" in found[1][1]
            pki.rotate(directory, "controller", "controller")
            (directory / "controller.key").chmod(0o644)
            shell.look_at_certificates(force=True)
            assert any("chmod 600" in text for _, text in await alarms(shell))
            (directory / "controller.key").chmod(0o600)
            pki.rotate(directory, "map", "agent")
            agent = await connect(shell, tmp_path, "map")
            assert agent is not None
            shell.look_at_certificates()
            assert await alarms(shell) == []

    in_loop(work)


def test_sighup_does_not_end_a_controller(tmp_path: Path) -> None:
    """It loads the certificates; without a handler the signal would kill."""
    certificates(tmp_path / "pki")

    async def work() -> None:
        from controller.main import serve

        serving = asyncio.ensure_future(serve(configuration(tmp_path)))
        while signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not serving.done()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await serving == 0

    in_loop(work)
