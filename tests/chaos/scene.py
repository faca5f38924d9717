"""One run: a cluster on its machines, the load, the faults, and the verdict.

Two container hosts with two containers each; three mapping agents; three hosts. One disk is shared by all of them at
all agents, one at two agents, and one is a single host's at a single agent. Mapping agents have the embedded data
plane, or SPDK's where it is asked for: then one disk is on both.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from agent.config import ContainerConfig, SpdkOptions
from cli.client import UnreachableError
from controller.api.errors import ApiError
from tests.chaos.blocks import BLOCK
from tests.chaos.breaker import TARGET, Breaker
from tests.chaos.load import Disk, Load, Violation
from tests.chaos.load import Path as HostPath
from tests.chaos.machines import HOSTS, Machines, SmallDisk
from tests.chaos.schedule import Fault, Sight, plan
from tests.chaos.tenants import Tenant
from tests.chaos.weather import Weather
from tests.chaos.wires import Wires
from tests.cluster.cluster import LEASE_S, MIB, Cluster, pause

MAPPERS: Final = ("a", "b", "c")
EXPORTERS: Final = ("x", "y")
AGENTS: Final = (*EXPORTERS, *MAPPERS)
SHOWN: Final = (("shared", MAPPERS, (1, 2, 3)), ("pair", ("b", "c"), (2, 3)), ("private", ("a",), (1,)))
SPAN: Final = 24 * MIB
DISK_BYTES: Final = 1 << 36
CONTAINER_BYTES: Final = 48 * MIB
STORE_DISK_BYTES: Final = 96 * MIB
CONTAINER_DISK_BYTES: Final = 2 * CONTAINER_BYTES + 24 * MIB
WORKERS: Final = 4
TENANTS: Final = 2
AUDIT_S: Final = 3.0
THREADS: Final = 64
PAUSE_S: Final = 0.04
CONVERGED_S: Final = 90.0
TIMES: Final[dict[str, Any]] = {"park_limit_s": 6.0, "space_deadline_s": 4.0, "io_deadline_s": 5.0}
SPDK: Final[dict[str, Any]] = {"target": "spdk", "spdk": SpdkOptions(core_locks=False)}
HOST: Final[dict[str, Any]] = {"io_queues": 1, "keep_alive_ms": 4000, "io_timeout": 8.0, "connect_timeout": 2.0}


class Scene:
    """`story`: every fault, as it happened. `report` is filled in by `play`, which does not raise. `spdk`: the mapping
    agents whose data plane is segmap_tgt."""

    def __init__(
        self,
        directory: Path,
        seed: int,
        seconds: float,
        enclosed: bool,
        say: Callable[[str], None],
        spdk: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.seed = seed
        self.seconds = seconds
        self._enclosed = enclosed
        self._say = say
        self._spdk = spdk
        self.violations: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._disks: dict[str, SmallDisk] = {}
        self._answered = 0
        self._answered_before = 0
        self._converged_s = 0.0
        self._audits = 0
        self._tenants: list[Tenant] = []
        self._load: Load
        self._breaker: Breaker

    def clock(self) -> float:
        return time.monotonic() - self._began

    def story(self, text: str) -> None:
        line = f"{self.clock():9.3f} {text}"
        with (self.directory / "story").open("a") as file:
            file.write(line + "\n")
        self._say(line)

    def violated(self, text: str, history: list[str] | None = None) -> None:
        self.story(f"VIOLATION {text}")
        self.violations.append({"text": text, "history": history or []})

    # --- the machines ------------------------------------------------------------------------------------------------

    def sight(self, network: Machines | Wires) -> Sight:
        """What there is to break."""
        links = [("controller", name) for name in AGENTS]
        links += [(mapper, exporter) for mapper in MAPPERS for exporter in EXPORTERS]
        links += [(HOSTS, mapper) for mapper in MAPPERS]
        return Sight(
            processes=("controller", *AGENTS, *(name + TARGET for name in AGENTS)),
            machines=AGENTS,
            links=network.links if isinstance(network, Wires) else tuple(links),
            disks=tuple(self._disks),
            containers=tuple(f"{name}{number}" for name in EXPORTERS for number in range(2)),
            mappers=MAPPERS,
            freezes=all(disk.freezes for disk in self._disks.values()),
            lease_s=LEASE_S,
        )

    def _disk(self, name: str, size_bytes: int) -> Path:
        """A directory; a small file system of its own if that can be had."""
        place = self.directory / f"disk-{name}"
        if self._enclosed:
            self._disks[name] = SmallDisk(place, self.directory / f"disk-{name}.img", size_bytes)
        else:
            place.mkdir()
        return place

    def _cluster(self, network: Machines | Wires) -> Cluster:
        exporters = {}
        for name in EXPORTERS:
            place = self._disk(name, CONTAINER_DISK_BYTES)
            exporters[name] = tuple(
                ContainerConfig(f"{name}{number}", "aio", place / f"{name}{number}.img", CONTAINER_BYTES, faults=True)
                for number in range(2)
            )
        store = self._disk("store", STORE_DISK_BYTES) / "store.db"
        planes = dict.fromkeys(self._spdk, SPDK)
        return Cluster(
            self.directory, exporters, MAPPERS, mapper_settings=planes, network=network, store_path=store, **TIMES
        )

    # --- the play ----------------------------------------------------------------------------------------------------

    async def play(self) -> None:
        """All of it; what went wrong is in `violations`."""
        # Calls to a stopped controller must not keep faults from being undone.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        network = Machines(("controller", *AGENTS)) if self._enclosed else Wires(AGENTS, MAPPERS)
        try:
            if isinstance(network, Wires):
                await network.open()
            cluster = self._cluster(network)
            faults = plan(self.seed, self.seconds, self.sight(network))
            (self.directory / "schedule").write_text("".join(f"{fault.at_s:9.3f} {fault}\n" for fault in faults))
            async with cluster:
                try:
                    await self._play(cluster, network, faults)
                except Violation as violation:
                    self.violated(str(violation), violation.history)
        finally:
            if isinstance(network, Wires):
                await network.close()
            else:
                network.close()
            for disk in self._disks.values():
                disk.close()

    async def _play(self, cluster: Cluster, network: Machines | Wires, faults: list[Fault]) -> None:
        disks = await self._make_disks(cluster)
        self._began = time.monotonic()
        weather = Weather(self.clock, frozenset(EXPORTERS))
        self._load = load = Load(self.seed, disks, weather, WORKERS, PAUSE_S)
        self._breaker = Breaker(cluster, network, self._disks, weather, self.story)
        self._tenants = [Tenant(number, self.seed, cluster, load, weather, HOST) for number in range(1, TENANTS + 1)]
        watching = asyncio.create_task(self._count_faults(cluster))
        doing = asyncio.create_task(self._work(cluster, load))
        breaking = asyncio.create_task(self._break(faults))
        try:
            await asyncio.wait({doing, breaking}, return_when=asyncio.FIRST_EXCEPTION)
            for task in (doing, breaking):
                if task.done():
                    task.result()
            await self._converge(cluster, load, doing)
        finally:
            for task in (watching, doing, breaking):
                task.cancel()
            await asyncio.gather(watching, doing, breaking, return_exceptions=True)

    async def _work(self, cluster: Cluster, load: Load) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(load.run())
                group.create_task(self._keep_auditing(cluster, load))
                for tenant in self._tenants:
                    group.create_task(tenant.run(MAPPERS))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _break(self, faults: list[Fault]) -> None:
        await self._breaker.run(faults)
        await pause(max(0.0, self.seconds - self.clock()))
        self._load.stop()

    async def _make_disks(self, cluster: Cluster) -> list[Disk]:
        made = []
        for number, (name, agents, hosts) in enumerate(SHOWN, 1):
            await cluster.disk(name, DISK_BYTES, list(agents))
            disk = Disk(number, name, agents, SPAN // BLOCK)
            for host in hosts:
                nqn = f"nqn.2026-11.io.segmap:chaos:host{host}"
                paths = [
                    HostPath(host, agent, await cluster.connect(name, agent, hostnqn=nqn, **HOST)) for agent in agents
                ]
                disk.paths[host] = paths
            made.append(disk)
        return made

    async def _count_faults(self, cluster: Cluster) -> None:
        """The controller counts from its start: add up what each of them has said last."""
        while True:
            await pause(0.5)
            try:
                answered = (await cluster.call("cluster.status"))["faults"]["answered"]
            except (UnreachableError, ApiError):
                continue
            if answered < self._answered:
                self._answered_before += self._answered
            self._answered = answered

    # --- the verdict -------------------------------------------------------------------------------------------------

    async def _converge(self, cluster: Cluster, load: Load, doing: asyncio.Task[None]) -> None:
        """Nothing is wrong any more: everything has to come back, and every block to read as it must."""
        began = self.clock()
        self.story("calm")
        try:
            async with asyncio.timeout(CONVERGED_S):
                await doing
                await cluster.until(cluster.all_admitted, CONVERGED_S)
                await cluster.until(cluster.all_exported, CONVERGED_S)
                self.story("all admitted")
                await load.check_all()
        except TimeoutError:
            raise Violation(f"not everything works {CONVERGED_S:.0f} s after the last fault") from None
        self._converged_s = self.clock() - began
        self.story("every block is as it must be")
        await self._audit(cluster, "after the faults")
        for disk in load.disks:
            await cluster.call("vdisk.delete", name=disk.name, force=True)
        try:
            await cluster.until(lambda: self._nothing_mapped(cluster), CONVERGED_S)
        except TimeoutError:
            raise Violation("segments are still mapped after all disks were deleted") from None
        await self._audit(cluster, "with all disks deleted")

    async def _nothing_mapped(self, cluster: Cluster) -> bool:
        containers = (await cluster.call("container.list"))["containers"]
        return not any(container["segments"]["mapped"] for container in containers)

    async def _keep_auditing(self, cluster: Cluster, load: Load) -> None:
        """A check is never wrong, whatever goes on; what it could not look at it says."""
        while load.going:
            await pause(AUDIT_S)
            try:
                await self._audit(cluster, "meanwhile")
                self._audits += 1
            except (UnreachableError, ApiError):
                continue  # the controller is down, or another one since

    async def _audit(self, cluster: Cluster, when: str) -> None:
        """`segmap check`."""
        answer = await cluster.call("cluster.check", run=0)
        while answer["state"] == "running":
            await pause(0.05)
            answer = await cluster.call("cluster.check", run=answer["run"])
        self.story(f"segmap check {when}: {'good' if answer['good'] else 'WRONG'}, {answer['counts']}")
        if not answer["good"]:
            lines = [f"{one['severity']} {one['kind']}: {one['text']}" for one in answer["findings"]]
            raise Violation(f"segmap check {when} finds {len(lines)} things wrong", lines)

    def _sandbox(self) -> str:
        """What could be broken, and what could not."""
        if not self._enclosed:
            return "loopback with fault proxies; no links to containers, no file systems of their own"
        kind = "ext4" if all(disk.freezes for disk in self._disks.values()) else "tmpfs, which cannot be frozen"
        return f"network namespaces, small file systems: {kind}"

    def report(self) -> dict[str, Any]:
        """What there is to tell, also of a run that went wrong early."""
        load = self._load.counts.document() if hasattr(self, "_load") else {}
        breaker = getattr(self, "_breaker", None)
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "converged_s": round(self._converged_s, 3),
            "sandbox": self._sandbox(),
            "planes": {name: "spdk" if name in self._spdk else "embedded" for name in MAPPERS},
            "load": load,
            "faults": {
                "kinds": dict(breaker.kinds) if breaker else {},
                "victims": dict(breaker.victims) if breaker else {},
            },
            "tenants": dict(sum((tenant.done for tenant in self._tenants), Counter[str]())),
            "audits": self._audits,
            "map_faults_answered": self._answered_before + self._answered,
            "violations": self.violations,
        }
