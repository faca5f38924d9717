"""One simulated run: a cluster of three mappers and two vdisks, one shared, under a seeded schedule of failures; then
the failures stop, and everything has to go on."""

from __future__ import annotations

from tests.sim.timeline import MS, SECOND
from tests.sim.world import World

SHARED_SEGMENTS = 24
PRIVATE_SEGMENTS = 16
SETTLED_S = 240
QUIET_IOS = 400


def build(seed: int) -> World:
    """A working cluster: `shared` at all three mappers, `private` at one."""
    world = World(seed, {"disk-a": (40, "unknown"), "disk-b": (48, "zeroed")}, mappers=3)
    world.run(2)
    for name, contents in (("disk-a", "unknown"), ("disk-b", "zeroed")):
        world.call("container.add", name=name, agent="store-1", export=name, contents=contents)
    for name, segments, agents in (
        ("shared", SHARED_SEGMENTS, ["map-1", "map-2", "map-3"]),
        ("private", PRIVATE_SEGMENTS, ["map-2"]),
    ):
        vdisk = world.call("vdisk.create", name=name, size_bytes=segments * world.segment_size)
        world.call("vdisk.present", name=name, agents=agents, any_host=True)
        world.hosts.add(vdisk["number"], segments, [world.mappers[agent] for agent in agents], workers=4)
    return world


class Failures:
    """What goes wrong, and when it is put right again. `stop` ends it; what is broken is put right."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stopped = False
        self.counts: dict[str, int] = {}
        self._kinds = [
            (self._lose_session, 6),
            (self._kill_data_plane, 3),
            (self._silence, 3),
            (self._kill_controller, 3),
            (self._slow_network, 2),
            (self._slow_storage, 2),
            (self._exporter_away, 1),
            (self._restart_exporter, 1),
            (self._fence, 1),
        ]
        self._later()

    def _later(self) -> None:
        random = self.world.timeline.random
        self.world.timeline.later(random.randrange(200 * MS, 6 * SECOND), self._something)

    def _something(self) -> None:
        if self.stopped:
            return
        kinds, weights = zip(*self._kinds, strict=True)
        kind = self.world.timeline.random.choices(kinds, weights)[0]
        self.counts[kind.__name__] = self.counts.get(kind.__name__, 0) + 1
        self.world.timeline.note(f"failure: {kind.__name__}")
        kind()
        self._later()

    def _mapper(self):  # type: ignore[no-untyped-def]
        return self.world.timeline.random.choice(list(self.world.mappers.values()))

    def _lose_session(self) -> None:
        self._mapper().lose_session()

    def _kill_data_plane(self) -> None:
        self._mapper().crash()

    def _silence(self) -> None:
        """The daemon hangs, with its connection open: shorter or longer than its lease."""
        mapper = self._mapper()
        mapper.silent = True
        random = self.world.timeline.random

        def wake() -> None:
            mapper.silent = False

        self.world.timeline.later(random.randrange(SECOND, 25 * SECOND), wake)

    def _kill_controller(self) -> None:
        if self.world.core is None:
            return
        self.world.crash_controller()
        self.world.timeline.later(self.world.timeline.random.randrange(12 * SECOND), self.world.start_controller)

    def _slow_network(self) -> None:
        self.world.slow_network = True
        self.world.timeline.later(5 * SECOND, self._network_back)

    def _network_back(self) -> None:
        self.world.slow_network = False

    def _slow_storage(self) -> None:
        self.world.storage.slow = True
        self.world.timeline.later(5 * SECOND, self._storage_back)

    def _storage_back(self) -> None:
        self.world.storage.slow = False

    def _exporter_away(self) -> None:
        exporter = self.world.exporter
        exporter.away = True
        exporter.lose_session()

        def back() -> None:
            exporter.away = False

        self.world.timeline.later(self.world.timeline.random.randrange(20 * SECOND), back)

    def _restart_exporter(self) -> None:
        self.world.exporter.restart()

    def _fence(self) -> None:
        if self.world.core is not None:
            self.world.ask("agent.fence", agent=self._mapper().name)

    def stop(self) -> None:
        self.stopped = True


def trouble(seed: int, seconds: float) -> World:
    """Failures for `seconds` of simulated time; raises Violation."""
    world = build(seed)
    failures = Failures(world)
    world.run(seconds)
    failures.stop()
    return world


def run(seed: int, seconds: float) -> World:
    """Trouble for `seconds` of simulated time, then peace; raises Violation."""
    world = trouble(seed, seconds)
    world.run(30)
    for mapper in world.mappers.values():
        mapper.silent = False
    goal = world.hosts.acknowledged + QUIET_IOS
    if not world.run(SETTLED_S, lambda: world.hosts.acknowledged >= goal):
        raise world.timeline.violated("I/O does not go on after the failures have stopped")
    world.hosts.stopped = True
    if not world.run(SETTLED_S, world.quiet):
        raise world.timeline.violated(f"not quiet: {world.unsettled()}")
    world.audit()
    return world
