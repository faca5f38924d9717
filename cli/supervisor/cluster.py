"""A whole cluster on this machine: certificates, ports, processes in order, readiness, containers, and the end.

Order: controller (ready when its API answers), then all agents (ready when each says so in its file and the controller
has admitted them), then the containers that the file names. Every wait has a deadline, and a wait that fails says whose
log to read. One runtime directory has one supervisor: a lock file sees to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

from agent.config import UNIX_PATH_BYTES_MAX
from cli.client import Client, UnreachableError
from cli.command import CommandError
from cli.config.daemons import (
    CONTROLLER_NAME,
    agent_config,
    agent_dir,
    agent_ready_file,
    controller_config,
    controller_port_file,
    pki_dir,
)
from cli.config.document import Document
from cli.config.resolve import resolve, resolved_path
from cli.exit_codes import ExitCode
from cli.supervisor.child import Child, segmap_command
from controller.api.errors import ApiError
from transport import pki
from transport.ports import pick

CONTROLLER_READY_S = 20.0
AGENT_READY_S = 40.0
CONTAINER_READY_S = 60.0
POLL_S = 0.05
RETRY_S = 0.5
NOT_YET = frozenset({"timeout", "unavailable"})
CONTROLLER = "controller"


class Cluster:
    """Starts and ends the processes of one document. Use `start`, then `stop` whatever happened."""

    def __init__(self, document: Document, tell: Callable[[str], None]) -> None:
        self.document = document
        self.tell = tell
        self.children: dict[str, Child] = {}
        self._lock: IO[str] | None = None

    @property
    def runtime_dir(self) -> Path:
        return self.document.runtime_dir

    @property
    def client(self) -> Client:
        return Client(self.document.api_socket)

    async def start(self) -> None:
        """Everything up, or CommandError."""
        self._take_directory()
        taken: set[int] = set()
        self.document = resolve(self.document, lambda host, preferred: pick(host, taken, preferred))
        check_configurations(self.document)
        make_certificates(self.document)
        self._make_children()
        await self._start_controller()
        await self._start_agents()
        await self._add_containers()

    def _take_directory(self) -> None:
        self.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.runtime_dir / "logs").mkdir(mode=0o700, exist_ok=True)
        self._lock = (self.runtime_dir / "up.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            hint = "another `segmap up` runs there; --runtime-dir names another place"
            raise CommandError(f"{self.runtime_dir} is in use", ExitCode.CONFLICT, hint) from None

    def _make_children(self) -> None:
        config = str(resolved_path(self.document))
        self._add_child(CONTROLLER, segmap_command("controller", "--config", config))
        for agent in self.document.agents:
            name = agent["name"]
            agent_dir(self.document, name).mkdir(mode=0o700, exist_ok=True)
            self._add_child(f"agent {name}", segmap_command("agent", "--config", config, "--name", name))

    def _add_child(self, name: str, command: tuple[str, ...]) -> None:
        log = self.runtime_dir / "logs" / f"{name.replace(' ', '-')}.log"
        self.children[name] = Child(name, command, log, self.tell)

    async def _start_controller(self) -> None:
        controller_port_file(self.document).unlink(missing_ok=True)
        self.children[CONTROLLER].start()
        await self.until(self.controller_answers, CONTROLLER_READY_S, CONTROLLER)

    async def _start_agents(self) -> None:
        for agent in self.document.agents:
            agent_ready_file(self.document, agent["name"]).unlink(missing_ok=True)
            self.children[f"agent {agent['name']}"].start()
        for agent in self.document.agents:
            await self.until(
                functools.partial(self.agent_ready, agent["name"]), AGENT_READY_S, f"agent {agent['name']}"
            )

    async def _add_containers(self) -> None:
        answer = await self.call("container.list")
        known = {container["name"] for container in answer["containers"]}
        for container in self.document.containers:
            if container["name"] not in known:
                await self._add_container(container)

    async def _add_container(self, container: dict[str, Any]) -> None:
        agent, _, export = container["export"].partition("/")
        await self.until(lambda: self.export_known(agent, export), CONTAINER_READY_S, f"agent {agent}")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CONTAINER_READY_S
        while True:
            try:
                await self.call(
                    "container.add", name=container["name"], agent=agent, export=export, contents=container["contents"]
                )
                return
            except ApiError as error:
                if error.code not in NOT_YET or loop.time() > deadline:
                    raise CommandError(f"container {container['name']}: {error.message}", hint=error.hint) from None
            await asyncio.sleep(RETRY_S)

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """An API call off the loop."""
        return await asyncio.to_thread(lambda: self.client.call(operation, **arguments))

    async def controller_answers(self) -> bool:
        with contextlib.suppress(UnreachableError, ApiError):
            await self.call("cluster.status")
            return True
        return False

    async def agent_ready(self, name: str) -> bool:
        """Its target and exports are up, and the controller has admitted it."""
        if self.ready_fact(name).get("pid") != self.children[f"agent {name}"].pid:
            return False
        with contextlib.suppress(UnreachableError, ApiError):
            state: str = (await self.call("agent.show", agent=name))["state"]
            return state == "admitted"
        return False

    async def export_known(self, agent: str, export: str) -> bool:
        with contextlib.suppress(UnreachableError, ApiError):
            answer = await self.call("agent.show", agent=agent)
            return any(item["name"] == export for item in answer["exports"])
        return False

    def ready_fact(self, name: str) -> dict[str, Any]:
        """What an agent wrote when it was ready: pid, target_pid, listen_host, listen_port; empty before."""
        with contextlib.suppress(OSError, ValueError):
            fact = json.loads(agent_ready_file(self.document, name).read_text())
            if isinstance(fact, dict):
                return fact
        return {}

    def target_pid(self, name: str) -> int:
        """The process id of an agent's target, 0 if it has none."""
        with contextlib.suppress(OSError, ValueError):
            return int((agent_dir(self.document, name) / "target.pid").read_text())
        return 0

    async def until(self, condition: Callable[[], Awaitable[bool]], seconds: float, child: str) -> None:
        """Polls until the condition holds; CommandError with the end of the child's log when time is up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not await condition():
            if loop.time() > deadline:
                log = self.children[child]
                raise CommandError(
                    f"{child} is not ready after {seconds:g} s; the end of {log.log}:\n{log.log_tail()}",
                    ExitCode.TIMEOUT,
                )
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """Ends all processes: agents first, so that they can say goodbye; then the controller."""
        agents = [child for name, child in self.children.items() if name != CONTROLLER]
        await asyncio.gather(*(child.stop() for child in agents))
        if CONTROLLER in self.children:
            await self.children[CONTROLLER].stop()
        if self._lock:
            self._lock.close()
            self._lock = None

    def rows(self) -> list[list[object]]:
        """What runs where: process, pid, address, what it is for."""
        host, port = self.document.controller["listen"]
        rows: list[list[object]] = [[CONTROLLER, self.children[CONTROLLER].pid, f"{host}:{port}", "channel (TLS)"]]
        rows.append(["", "", str(self.document.api_socket), "HTTP/JSON API"])
        for agent in self.document.agents:
            fact = self.ready_fact(agent["name"])
            where = f"{fact.get('listen_host', '?')}:{fact.get('listen_port', '?')}"
            roles = ", ".join(agent["roles"])
            rows.append([f"agent {agent['name']}", fact.get("pid"), "", roles])
            rows.append([f"target of {agent['name']}", fact.get("target_pid"), where, f"NVMe/TCP ({agent['target']})"])
        return rows


def check_configurations(document: Document) -> None:
    """What every process would refuse at its start, told now: paths that are too long for sockets, for one."""
    try:
        controller_config(document)
        for agent in document.agents:
            agent_config(document, agent["name"]).check()
        if len(os.fsencode(document.api_socket)) > UNIX_PATH_BYTES_MAX:
            raise ValueError(f"{document.api_socket}: a Unix socket path has at most {UNIX_PATH_BYTES_MAX} bytes")
    except ValueError as error:
        raise CommandError(str(error), ExitCode.USAGE, "--runtime-dir names another, shorter place") from None


def make_certificates(document: Document) -> None:
    """A CA, the controller's certificate and one for each agent, where they are missing."""
    directory = pki_dir(document)
    wanted = [(CONTROLLER_NAME, "controller"), *((agent["name"], "agent") for agent in document.agents)]
    if not pki.files(directory, CONTROLLER_NAME, "controller").ca.exists():
        pki.init(directory, cluster=document.values["cluster"])
    for name, role in wanted:
        if not pki.files(directory, name, role).certificate.exists():
            pki.issue(directory, name, role)
