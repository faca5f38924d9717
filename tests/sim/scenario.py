"""Simulated runs: a cluster with shared and private vdisks, tenants that come and go, full containers and new ones,
under a seeded schedule of failures; then the failures stop, and everything has to come to rest.

Workloads: `DENSE`: some 250 host I/Os a second, a failure every three seconds. `SPARSE`: a cluster that does
little, 1.5 host I/Os a second, a failure every two minutes and a tenant every five; it is for many simulated hours.
`STORM`: a failure every 1.2 s under some 100 host I/Os a second: what breaks breaks soon. `AIMED`: hosts are at work,
and one failure at a time is aimed at what they do (`aimed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from controller.core.effects import RefuseOperation
from tests.sim.aimed import Aimed
from tests.sim.failures import Failures
from tests.sim.hosts import Disk, Load
from tests.sim.timeline import MS, SECOND
from tests.sim.world import World

SETTLED_S: Final = 400
QUIET_IOS: Final = 60


@dataclass(frozen=True)
class Workload:
    """`tenant_ns`: between two new vdisks of tenants; `growth_ns`: until a full cluster gets another container."""

    name: str
    shared: Load
    private: Load
    tenant: Load
    failure_ns: int
    tenant_ns: int
    tenant_life_ns: int
    audit_ns: int
    shared_segments: int = 24
    private_segments: int = 16
    aimed: bool = False


DENSE: Final = Workload(
    "dense",
    Load(4, 22 * MS),
    Load(3, 22 * MS),
    Load(2, 30 * MS, writes=0.7, reclaims=0.02),
    failure_ns=3 * SECOND,
    tenant_ns=5 * SECOND,
    tenant_life_ns=8 * SECOND,
    audit_ns=5 * SECOND,
)
SPARSE: Final = Workload(
    "sparse",
    Load(1, 1250 * MS),
    Load(1, 1250 * MS),
    Load(1, 500 * MS, writes=0.7, reclaims=0.02),
    failure_ns=120 * SECOND,
    tenant_ns=300 * SECOND,
    tenant_life_ns=40 * SECOND,
    audit_ns=120 * SECOND,
)
STORM: Final = Workload(
    "storm",
    Load(4, 40 * MS, reclaims=0.12),
    Load(1, 40 * MS, reclaims=0.12),
    Load(2, 40 * MS, writes=0.7, reclaims=0.1),
    failure_ns=1200 * MS,
    tenant_ns=5 * SECOND,
    tenant_life_ns=5 * SECOND,
    audit_ns=5 * SECOND,
    shared_segments=8,
    private_segments=6,
)
AIMED: Final = Workload(
    "aimed",
    Load(6, 40 * MS, reclaims=0.12),
    Load(1, 80 * MS, reclaims=0.12),
    Load(1, 80 * MS, writes=0.7, reclaims=0.1),
    failure_ns=SECOND,
    tenant_ns=15 * SECOND,
    tenant_life_ns=10 * SECOND,
    audit_ns=5 * SECOND,
    shared_segments=8,
    private_segments=6,
    aimed=True,
)
WORKLOADS: Final = {workload.name: workload for workload in (DENSE, SPARSE, STORM, AIMED)}


class Run:
    """One cluster and its life."""

    def __init__(self, seed: int, workload: Workload = DENSE) -> None:
        self.workload = workload
        self.world = World(
            seed,
            {
                "store-1": {"disk-a": (48, "unknown"), "disk-b": (36, "zeroed")},
                "store-2": {"disk-c": (36, "unknown"), "disk-d": (24, "unknown"), "disk-e": (24, "zeroed")},
                "both-1": {"disk-f": (24, "unknown")},
            },
            mappers=3,
            both=("both-1",),
        )
        self.timeline = self.world.timeline
        self.failures: Failures | Aimed | None = None
        self.tenants = 0
        self.tenants_gone = 0
        self.audits = 0
        self.grown: list[str] = []

    # --- building ----------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """`shared` at all four mappers, one of which exports a container, `private` at one; four of six containers."""
        world = self.world
        world.run(3)
        for exporter, name in (
            ("store-1", "disk-a"),
            ("store-1", "disk-b"),
            ("store-2", "disk-c"),
            ("both-1", "disk-f"),
        ):
            self._must(self.add_container(exporter, name))
        self.create("shared", self.workload.shared_segments, sorted(world.mappers), self.workload.shared)
        self.create("private", self.workload.private_segments, ["map-2"], self.workload.private)
        self.timeline.later(self.workload.audit_ns, self._audit)

    def add_container(self, exporter: str, name: str) -> Any:
        contents = self.world.exporters[exporter].containers[name].contents
        force = contents == "unknown"
        return self.world.call("container.add", name=name, agent=exporter, export=name, contents=contents, force=force)

    def create(self, name: str, segments: int, agents: list[str], load: Load) -> None:
        world = self.world
        vdisk = self._must(world.call("vdisk.create", name=name, size_bytes=segments * 16384))
        self._must(world.call("vdisk.present", name=name, agents=agents, any_host=True))
        world.hosts.add(Disk(vdisk["number"], segments, [world.mappers[agent] for agent in agents], load))

    def _must(self, result: Any) -> Any:
        if isinstance(result, RefuseOperation):
            raise self.timeline.violated(f"refused: {result.code} {result.text}")
        return result

    # --- tenants -----------------------------------------------------------------------------------------------------

    def begin_trouble(self) -> None:
        """From now on everything may fail, tenants come and go, and the cluster grows when it is full."""
        self.failures = (Aimed if self.workload.aimed else Failures)(self.world, self.workload.failure_ns)
        self.timeline.later(self.workload.tenant_ns, self._tenant)

    @property
    def _in_trouble(self) -> bool:
        return self.failures is not None and not self.failures.stopped

    def _tenant(self) -> None:
        """A tenant's vdisk: asked for, used, deleted. Operators ask again until they are told that it is done."""
        if not self._in_trouble:
            return
        self.tenants += 1
        self.timeline.later(
            self.timeline.between(self.workload.tenant_ns // 2, 2 * self.workload.tenant_ns), self._tenant
        )
        random = self.timeline.random
        agents = random.sample(sorted(self.world.mappers), 1 + int(random.random() * 2))
        _Tenant(self, f"tenant-{self.tenants}", 4 + int(random.random() * 24), agents).create()
        if self.tenants % 4 == 0 and len(self.grown) < 2:
            name = ("disk-d", "disk-e")[len(self.grown)]
            self.grown.append(name)
            self._grow(name)

    def _grow(self, name: str) -> None:
        contents = self.world.exporters["store-2"].containers[name].contents
        args = {"name": name, "agent": "store-2", "export": name, "contents": contents, "force": contents == "unknown"}
        Persistent(self.world, "container.add", args, f"add-{name}", lambda result: None).ask()

    # --- checking ----------------------------------------------------------------------------------------------------

    def _audit(self) -> None:
        if self.world.audit():
            self.audits += 1
            self.timeline.later(self.workload.audit_ns, self._audit)
        else:
            self.timeline.later(50 * MS, self._audit)

    def settle(self) -> None:
        """The failures stop: everything has to go on, and then to come to rest."""
        world, failures = self.world, self.failures
        assert failures is not None
        failures.stop()
        world.run(45)
        goal = world.hosts.acknowledged + QUIET_IOS
        if not world.run(SETTLED_S, lambda: world.hosts.acknowledged >= goal):
            raise self.timeline.violated(f"I/O does not go on after the failures have stopped: {world.unsettled()}")
        if not world.run(SETTLED_S, lambda: self.tenants_gone == self.tenants):
            raise self.timeline.violated(f"of {self.tenants} tenants only {self.tenants_gone} are gone in the end")
        world.hosts.stopped = True
        if not world.run(SETTLED_S, world.quiet):
            raise self.timeline.violated(f"not quiet: {world.unsettled()}")
        if not world.audit():
            raise self.timeline.violated("the last audit could not be made")
        world.audit_space()
        world.audit_tables()

    def summary(self) -> str:
        hosts, world = self.world.hosts, self.world
        failures = sum(self.failures.counts.values()) if self.failures is not None else 0
        return (
            f"{self.timeline.steps} steps, {hosts.acknowledged} host I/Os done, {hosts.failed} failed, "
            f"{hosts.flushes_failed} losses told, {failures} failures, {world.controller_starts} reigns, "
            f"{self.tenants} tenants, {world.checks.count} checks, {self.audits} audits"
        )


class Persistent:
    """A request of an operator who asks again, with the same request id, until it is answered."""

    def __init__(self, world: World, operation: str, args: dict[str, Any], request_id: str, done: Any) -> None:
        self.world = world
        self.operation = operation
        self.args = args
        self.request_id = request_id
        self.done = done
        self._token = 0
        self._asked_ns = 0

    def ask(self) -> None:
        self._token = self.world.ask(self.operation, self.request_id, **self.args)
        self._asked_ns = self.world.timeline.now_ns
        self.world.timeline.later(100 * MS, self._look)

    def _look(self) -> None:
        timeline = self.world.timeline
        result = self.world.results.pop(self._token, None)
        if result is None and timeline.now_ns - self._asked_ns < 35 * SECOND and self.world.core is not None:
            timeline.later(200 * MS, self._look)
        elif result is None or (
            isinstance(result, RefuseOperation) and result.code in ("timeout", "unavailable", "limit", "busy")
        ):
            timeline.later(timeline.between(SECOND // 2, 2 * SECOND), self.ask)
        else:
            timeline.note(
                f"{self.operation} {self.request_id}: {'refused' if isinstance(result, RefuseOperation) else 'done'}"
            )
            self.done(result)


class _Tenant:
    """One vdisk from its creation to its end."""

    def __init__(self, run: Run, name: str, segments: int, agents: list[str]) -> None:
        self.run = run
        self.name = name
        self.segments = segments
        self.agents = agents
        self.number = 0

    def _ask(self, operation: str, args: dict[str, Any], then: Any) -> None:
        Persistent(self.run.world, operation, args, f"{operation}-{self.name}", then).ask()

    def create(self) -> None:
        self._ask("vdisk.create", {"name": self.name, "size_bytes": self.segments * 16384}, self._created)

    def _created(self, result: Any) -> None:
        self.number = self.run._must(result)["number"]
        args = {"name": self.name, "agents": self.agents, "any_host": True}
        self._ask("vdisk.present", args, self._presented)

    def _presented(self, result: Any) -> None:
        self.run._must(result)
        world = self.run.world
        machines = [world.mappers[agent] for agent in self.agents]
        world.hosts.add(Disk(self.number, self.segments, machines, self.run.workload.tenant))
        life = self.run.workload.tenant_life_ns
        world.timeline.later(world.timeline.between(life // 4, 2 * life), self._leave)

    def _leave(self) -> None:
        self.run.world.hosts.remove(self.number)
        self._ask("vdisk.delete", {"name": self.name, "force": True}, self._gone)

    def _gone(self, result: Any) -> None:
        if isinstance(result, RefuseOperation) and result.code != "not_found":
            self.run._must(result)
        self.run.tenants_gone += 1


def trouble(seed: int, seconds: float, workload: Workload = DENSE) -> Run:
    """A cluster under failures for `seconds` of simulated time; raises Violation."""
    run = Run(seed, workload)
    run.build()
    run.begin_trouble()
    run.world.run(seconds)
    return run


def run(seed: int, seconds: float, workload: Workload = DENSE) -> Run:
    """The same, then peace and rest; raises Violation."""
    done = trouble(seed, seconds, workload)
    done.settle()
    return done
