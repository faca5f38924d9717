"""Supervised processes: started, restarted, killed, ended; ports; and what a child does when its parent dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cli.supervisor import child as child_module
from cli.supervisor.child import Child, process_exists

READY_S = 20.0


def program(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(text))


STEADY = program("import signal; print('up', flush=True); signal.pause()")
STUBBORN = program(
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
)


async def until(condition: Callable[[], bool]) -> None:
    """Yields to the loop until the condition holds."""
    async with asyncio.timeout(READY_S):
        while not condition():
            await asyncio.sleep(0)


def supervise(tmp_path: Path, command: tuple[str, ...], body: Callable[[Child, list[str]], Awaitable[None]]) -> None:
    async def run() -> None:
        said: list[str] = []
        child = Child("x", command, tmp_path / "x.log", said.append)
        child.start()
        try:
            await body(child, said)
        finally:
            await child.stop()
        assert child.pid == 0

    asyncio.run(run())


def ups(child: Child) -> int:
    return child.log.read_text().count("up") if child.log.exists() else 0


def test_it_is_ended_by_sigterm(tmp_path: Path) -> None:
    async def body(child: Child, said: list[str]) -> None:
        await until(lambda: ups(child) == 1)
        pid = child.pid
        assert process_exists(pid)
        await child.stop()
        assert not process_exists(pid)
        assert said == []

    supervise(tmp_path, STEADY, body)


def test_it_is_killed_if_it_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "TERMINATE_S", 0.05)

    async def body(child: Child, said: list[str]) -> None:
        await until(lambda: ups(child) == 1)
        pid = child.pid
        await child.stop()
        assert not process_exists(pid)
        assert said == ["x does not end; killing it"]

    supervise(tmp_path, STUBBORN, body)


def test_it_is_started_again_when_it_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "RESTART_MIN_S", 0.001)

    async def body(child: Child, said: list[str]) -> None:
        await until(lambda: ups(child) == 1)
        first = child.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: ups(child) == 2)
        assert child.pid not in (0, first)
        assert child.restarts == 1
        assert "by SIGKILL" in said[0]

    supervise(tmp_path, STEADY, body)


def test_pauses_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "RESTART_MIN_S", 0.001)
    monkeypatch.setattr(child_module, "RESTART_MAX_S", 0.004)

    async def body(child: Child, said: list[str]) -> None:
        await until(lambda: len(said) == 4)
        assert [line.split(" in ")[1].split(" s;")[0] for line in said[:4]] == ["0.001", "0.002", "0.004", "0.004"]
        assert "exit status 3" in said[0]

    supervise(tmp_path, program("raise SystemExit(3)"), body)


def test_killed_it_stays_dead_until_revived(tmp_path: Path) -> None:
    async def body(child: Child, said: list[str]) -> None:
        await until(lambda: ups(child) == 1)
        await child.kill()
        for _ in range(100):
            await asyncio.sleep(0)
        assert child.pid == 0
        child.revive()
        await until(lambda: ups(child) == 2)
        assert said == []

    supervise(tmp_path, STEADY, body)


def test_its_own_children_go_with_it(tmp_path: Path) -> None:
    nested = program(
        """
        import signal, subprocess, sys
        inner = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        print("up", inner.pid, flush=True)
        signal.pause()
        """
    )

    async def body(child: Child, said: list[str]) -> None:
        await until(lambda: child.log.exists() and child.log.read_text().endswith("\n"))
        inner = int(child.log.read_text().split()[1])
        assert process_exists(inner)
        await child.stop()
        await until(lambda: not process_exists(inner))

    supervise(tmp_path, nested, body)


def test_the_end_of_the_log_is_at_hand(tmp_path: Path) -> None:
    child = Child("x", STEADY, tmp_path / "x.log", print)
    assert child.log_tail() == ""
    child.log.write_text("a" * 5000 + "\nthe reason\n")
    assert child.log_tail().endswith("the reason")
    assert len(child.log_tail()) <= child_module.TAIL_BYTES


def test_a_child_dies_with_its_parent() -> None:
    """A parent that is killed without a chance to do anything: the kernel ends the child."""
    tied = "from spdk_rpc.bound import die_with_parent; die_with_parent()"
    inner = f"{tied}; import signal; print(1, flush=True); signal.pause()"
    outer = f"""
        import os, subprocess, sys
        environment = dict(os.environ, SEGMAP_PARENT=str(os.getpid()))
        inner = subprocess.Popen([sys.executable, "-c", {inner!r}], env=environment, stdout=subprocess.PIPE)
        inner.stdout.read(1)
        print(inner.pid, flush=True)
        sys.stdin.read()
        """
    parent = subprocess.Popen(program(outer), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin and parent.stdout
    with parent:
        pid = int(parent.stdout.readline())
        assert process_exists(pid)
        parent.kill()
        parent.wait()
        asyncio.run(until(lambda: not process_exists(pid)))


def test_a_parent_that_is_gone_already_ends_the_child_at_once() -> None:
    text = "from spdk_rpc.bound import die_with_parent; die_with_parent(); print('alive')"
    environment = os.environ | {"SEGMAP_PARENT": "1"}
    answer = subprocess.run(
        program(text), env=environment, capture_output=True, text=True, check=False, timeout=READY_S
    )
    assert (answer.returncode, answer.stdout) == (1, "")
