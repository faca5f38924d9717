"""A whole cluster of processes on loopback, for tests: a controller, container hosts and mapping agents.

Everything is real: certificates, store, TLS, targets, NVMe/TCP. Times are short (a lease of 2 s). `Cluster` ends all of
it, also after a failed test, and then shows the daemons' logs.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from agent.config import AgentConfig, ContainerConfig
from agent.main import stop_target
from cli.client import Client, UnreachableError
from controller.api.errors import ApiError
from controller.config import ControllerConfig
from dataplane.embedded.nvme_host import NvmeTcpHost, ReconnectPolicy
from transport import pki

TOP = Path(__file__).resolve().parents[2]
MIB = 1 << 20
LEASE_S = 2.0
POLL_S = 0.02
STOP_S = 15.0
STARTING_S = 10.0


@dataclass(slots=True)
class Daemon:
    """A daemon's process; `log` is its stderr."""

    name: str
    config: AgentConfig | ControllerConfig
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    program: str = "tests.cluster.daemon"
    prefix: tuple[str, ...] = ()

    @property
    def starting(self) -> bool:
        """It was started just now, and lives."""
        young = time.monotonic() < self.started_s + STARTING_S
        return young and self.process is not None and self.process.poll() is None

    def start(self) -> None:
        assert self.process is None or self.process.poll() is not None
        self.started_s = time.monotonic()
        command = [*self.prefix, sys.executable, "-m", self.program]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=TOP, stdin=subprocess.PIPE, stdout=log, stderr=log)
        assert self.process.stdin is not None
        self.process.stdin.write(pickle.dumps(self.config))
        self.process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and gone."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(STOP_S)

    def stop(self) -> int:
        """SIGTERM; its exit code. SIGKILL if that does not help."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode


class Network:
    """Where the daemons are: all on loopback, unless a subclass says otherwise. `prefix` starts a program there."""

    def address(self, name: str) -> str:
        return "127.0.0.1"

    def prefix(self, name: str) -> tuple[str, ...]:
        return ()

    def way(self, name: str, to: str, host: str, port: int) -> tuple[str, int]:
        """Address and port by which `name` reaches `to`, which listens at `host` and `port`."""
        return host, port


class Cluster:
    """`exporters`: name -> containers; `mappers`: names. Use as an async context manager."""

    def __init__(
        self,
        directory: Path,
        exporters: dict[str, tuple[ContainerConfig, ...]],
        mappers: tuple[str, ...],
        lifetime: str = "host",
        exporter_settings: dict[str, Any] | None = None,
        mapper_settings: dict[str, dict[str, Any]] | None = None,
        network: Network | None = None,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.network = network or Network()
        self._pki = directory / "pki"
        pki.init(self._pki)
        self.controller = self._controller(settings)
        self.exporters = exporters
        self.roles = {
            name: frozenset({"exporter"} if name in exporters else ())
            | frozenset({"mapper"} if name in mappers else ())
            for name in dict.fromkeys((*exporters, *mappers))
        }
        self._lifetime = lifetime
        self._exporter_settings = exporter_settings or {}
        self._mapper_settings = mapper_settings or {}
        self.agents: dict[str, Daemon] = {}
        self._hosts: list[NvmeTcpHost] = []

    def _controller(self, settings: dict[str, Any]) -> Daemon:
        files = pki.issue(self._pki, "controller", "controller")
        config = ControllerConfig(
            tls_ca=files.ca,
            tls_certificate=files.certificate,
            tls_key=files.key,
            listen_host=self.network.address("controller"),
            api_socket=self.directory / "api.sock",
            port_file=self.directory / "port",
            **{
                "store_path": self.directory / "store.db",
                "lease_duration_s": LEASE_S,
                "renew_interval_s": LEASE_S / 4,
                **settings,
            },
        )
        log = self.directory / "controller.log"
        return Daemon("controller", config, log, prefix=self.network.prefix("controller"))

    def _agent(self, name: str, port: int) -> Daemon:
        files = pki.issue(self._pki, name, "agent")
        runtime = self.directory / name
        runtime.mkdir(mode=0o700)
        config = AgentConfig(
            name,
            self.roles[name],
            (self.network.way(name, "controller", self.network.address("controller"), port),),
            files.ca,
            files.certificate,
            files.key,
            runtime,
            listen_host=self.network.address(name),
            containers=self.exporters.get(name, ()),
            reconnect_max_s=0.5,
            ready_file=runtime / "ready",
            **{
                "target_lifetime": self._lifetime,
                **(self._exporter_settings if name in self.exporters else {}),
                **self._mapper_settings.get(name, {}),
            },
        )
        return Daemon(name, config, self.directory / f"{name}.log", prefix=self.network.prefix(name))

    # --- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            self.controller.start()
            port = await self.controller_port()
            config = self.controller.config
            assert isinstance(config, ControllerConfig)
            self.controller.config = replace(config, listen_port=port)
            for name in self.roles:
                self.agents[name] = self._agent(name, port)
                self.agents[name].start()
            await self.until(self.all_admitted)
            await self.until(self.all_exported)
        except BaseException:
            await self._end()
            self.show_logs()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self._end()
        if kind is not None:
            self.show_logs()

    async def _end(self) -> None:
        for host in self._hosts:
            await host.close()
        daemons = [daemon for daemon in (*self.agents.values(), self.controller) if daemon.process is not None]
        await asyncio.gather(*(asyncio.to_thread(daemon.stop) for daemon in daemons))
        for daemon in self.agents.values():
            assert isinstance(daemon.config, AgentConfig)
            await asyncio.to_thread(stop_target, daemon.config)

    def show_logs(self) -> None:
        """For a failed test's output."""
        for path in sorted(self.directory.glob("**/*.log")):
            print(f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}")

    async def controller_port(self) -> int:
        path = self.directory / "port"
        await self.until(lambda: path.exists() and path.read_text().strip() != "")
        return int(path.read_text())

    # --- the controller ----------------------------------------------------------------------------------------------

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """The operation's result. A controller serves agents a little before its API: one that starts is waited for."""
        while True:
            try:
                return await asyncio.to_thread(Client(self.directory / "api.sock").call, operation, **arguments)
            except UnreachableError:
                if not self.controller.starting:
                    raise
            await pause(POLL_S)

    async def until(self, condition: Callable[[], Any], patience_s: float = 30.0) -> Any:
        """Poll until the condition (a function, or one that gives an awaitable) holds; its value."""
        async with asyncio.timeout(patience_s):
            while True:
                try:
                    value = condition()
                    if hasattr(value, "__await__"):
                        value = await value
                    if value:
                        return value
                except (UnreachableError, ApiError):
                    pass
                await pause(POLL_S)

    async def all_admitted(self) -> bool:
        agents = (await self.call("agent.list"))["agents"]
        return len(agents) == len(self.roles) and all(agent["admitted"] for agent in agents)

    async def all_exported(self) -> bool:
        agents = {agent["name"]: agent for agent in (await self.call("agent.list"))["agents"]}
        return all(
            {export["name"] for export in agents[name]["exports"]} == {container.name for container in containers}
            for name, containers in self.exporters.items()
        )

    async def agent(self, name: str) -> dict[str, Any]:
        return await self.call("agent.show", agent=name)

    # --- hosts -------------------------------------------------------------------------------------------------------

    async def disk(self, name: str, size_bytes: int, agents: list[str]) -> None:
        """A vdisk on all containers, presented at the agents."""
        known = {container["name"] for container in (await self.call("container.list"))["containers"]}
        for exporter, containers in self.exporters.items():
            for container in containers:
                if container.name not in known:
                    await self.call("container.add", name=container.name, agent=exporter, export=container.name)
        await self.call("vdisk.create", name=name, size_bytes=size_bytes)
        await self.call("vdisk.present", name=name, agents=agents, any_host=True)

    async def connect(
        self, vdisk: str, agent: str, kind: type[NvmeTcpHost] = NvmeTcpHost, **options: Any
    ) -> NvmeTcpHost:
        """A host's connection to a vdisk at one agent; closed at the end."""

        async def presented() -> Any:
            found = await self.call("vdisk.show", name=vdisk)
            return next(
                (one for one in found["presentations"] if (one["agent"], one["state"]) == (agent, "presented")), None
            )

        where = await self.until(presented)
        options = {"reconnect": ReconnectPolicy(0.05, 0.2), **options}
        traddr, trsvcid = self.network.way("hosts", agent, where["traddr"], int(where["trsvcid"]))
        host = await kind.connect(traddr, trsvcid, where["subnqn"], **options)
        self._hosts.append(host)
        return host

    def target_pid(self, name: str) -> int:
        config = self.agents[name].config
        assert isinstance(config, AgentConfig)
        return int(config.pid_path.read_text())

    async def kill_target(self, name: str) -> None:
        """SIGKILL to an agent's data plane (or a container host's target)."""
        os.kill(self.target_pid(name), signal.SIGKILL)


async def pause(seconds: float) -> None:
    """Wait on the clock: these are real processes."""
    done = asyncio.get_running_loop().create_future()
    timer = asyncio.get_running_loop().call_later(seconds, done.set_result, None)
    try:
        await done
    finally:
        timer.cancel()


@asynccontextmanager
async def cluster(directory: Path, containers_in_memory: bool = True, **settings: Any) -> AsyncIterator[Cluster]:
    """One container host with a file container, and one in memory unless told otherwise; mapping agents a and b."""
    file = ContainerConfig("c0", "aio", directory / "c0.img", 96 * MIB)
    other = ContainerConfig("c1", "aio", directory / "c1.img", 64 * MIB)
    if containers_in_memory:
        other = ContainerConfig("c1", "malloc", size_bytes=64 * MIB)
    async with Cluster(directory, {"x": (file, other)}, ("a", "b"), **settings) as made:
        yield made
