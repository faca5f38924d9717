"""The simulated world: the real controller core on a memory store, reference data planes, hosts, and what goes wrong.

Every step is driven by one seed. A controller that crashes keeps what its store has committed; commits under way may or
may not have happened. Connections break, messages are late, agents fall silent, data planes die, exporters are away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any
from uuid import UUID

from channel import messages as m
from channel.codec import decode, encode
from channel.values import Header
from controller.config import Limits, Timing
from controller.core import effects as fx
from controller.core.machine import Controller
from controller.store.interface import Batch
from controller.store.memory import MemoryDisk, MemoryStore
from mapping.status import Status
from tests.sim.checks import Checks
from tests.sim.hosts import Hosts
from tests.sim.mapper import SimMapper
from tests.sim.storage import SEGMENT_SIZE, SimContainer, Storage
from tests.sim.timeline import MS, SECOND, Pipe, Timeline

LIMITS = Limits(
    segment_size=SEGMENT_SIZE,
    block_size=4096,
    zeroed_pool_segments=16,
    zero_batch_segments=8,
    extent_segments=8,
    read_ahead_segments=8,
    allocate_ahead_segments=4,
)


class SimExporter:
    """Agent `name` in role exporter: the daemon of a container host."""

    roles = 2

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.session = 0
        self.away = False
        self.instance = world.timeline.random.getrandbits(128).to_bytes(16, "little")
        self._tick()

    def _tick(self) -> None:
        if not self.session and not self.away:
            self.session = self.world.connect(self)
            if self.session:
                hello = m.Hello(1, 1, self.roles, self.instance, self.name, "simulated", ())
                self.world.to_controller(self.session, Header(), hello, 0)
        self.world.timeline.later(100 * MS, self._tick)

    def session_lost(self, session: int) -> None:
        if session == self.session:
            self.session = 0

    def lose_session(self) -> None:
        if self.session:
            self.world.cut(self.session)
        self.session = 0

    def restart(self) -> None:
        """The container host's target is started anew: every allow-list is empty, every queue pair gone."""
        self.world.timeline.note(f"{self.name} restarts")
        self.lose_session()
        self.instance = self.world.timeline.random.getrandbits(128).to_bytes(16, "little")
        for container in self.world.storage.containers.values():
            container.allowed.clear()

    def received(self, session: int, header: Header, message: Any, attempt: int) -> None:
        if session != self.session or self.away:
            return
        if isinstance(message, m.Welcome):
            if message.status is Status.OK:
                self._say_exports()
            elif message.status is Status.STALE_INCARNATION:
                self.restart()
            return
        if isinstance(message, m.AllowHost | m.DenyHost):
            container = self.world.storage.containers[message.subnqn]
            status = Status.OK
            if isinstance(message, m.AllowHost):
                container.allowed.add(message.hostnqn)
            elif self.world.timeline.random.random() < 0.2:
                status = Status.NOT_FENCED
            else:
                container.allowed.discard(message.hostnqn)
            self.world.to_controller(session, Header(), m.Done(status, ""), attempt)

    def _say_exports(self) -> None:
        containers = list(self.world.storage.containers.values())
        for container in containers:
            export = m.Export(
                1,
                4096,
                container.segment_count * SEGMENT_SIZE // 4096,
                container.uuid.bytes,
                container is containers[-1],
                container.name,
                "127.0.0.1",
                "4420",
                "TCP",
                container.subnqn,
            )
            self.world.to_controller(self.session, Header(), export, 0)


class World:
    """One cluster. `calls` are operators' requests, answered in `results` by token."""

    def __init__(self, seed: int, containers: dict[str, tuple[int, str]], mappers: int) -> None:
        self.timeline = Timeline(seed)
        self.storage = Storage(self.timeline)
        for index, (name, (segments, contents)) in enumerate(containers.items()):
            self.storage.containers[f"nqn.2026-11.io.segmap:container:{name}"] = SimContainer(
                name, segments, UUID(int=1000 + index), contents
            )
        self.disk = MemoryDisk(cluster=UUID(int=seed + 1))
        self.core: Controller | None = None
        self.store: MemoryStore | None = None
        self.commits: deque[tuple[Batch, int]] = deque()
        self.reign = 0
        self.sessions = 0
        self.ends: dict[int, tuple[Any, Pipe, Pipe]] = {}
        self.results: dict[int, Any] = {}
        self.tokens = 0
        self.checks = Checks(self)
        self.hosts = Hosts(self.timeline)
        self.mappers: dict[str, SimMapper] = {}
        self.slow_network = False
        self._numbers: dict[str, int] = {}
        self._vdisks: dict[str, int] = {}
        self._slots: dict[int, str] = {}
        self.start_controller()
        self.exporter = SimExporter(self, "store-1")
        for index in range(mappers):
            name = f"map-{index + 1}"
            self.mappers[name] = SimMapper(self, name)

    # --- the controller ----------------------------------------------------------------------------------------------

    def start_controller(self) -> None:
        self.store = MemoryStore.open(self.disk)
        self.store.new_term()
        state = self.store.load()
        self.reign += 1
        random = self.timeline.random
        self.core = Controller(
            state, Timing(), LIMITS, lambda: UUID(int=random.getrandbits(128)), self.controller_clock()
        )
        self.timeline.note(f"controller starts, term {state.term}")
        self.step(fx.TimePassed())

    def controller_clock(self) -> int:
        return self.timeline.now_ns * 1001 // 1000

    def crash_controller(self) -> None:
        """SIGKILL: of the commits under way a prefix has happened."""
        self.timeline.note("controller is killed")
        assert self.store is not None
        done = self.timeline.random.randrange(len(self.commits) + 1)
        for _ in range(done):
            self._commit_one(tell=False)
        self.commits.clear()
        self.core = None
        self.store.close()
        self.store = None
        self.disk.crash()
        for session in list(self.ends):
            self.cut(session)

    def step(self, event: fx.Event) -> None:
        core = self.core
        if core is None:
            return
        for effect in core.step(event, self.controller_clock()):
            self._execute(effect)
        self._arm()

    def _arm(self) -> None:
        core, reign = self.core, self.reign
        if core is None:
            return
        deadline = core.next_deadline()
        if deadline is not None:
            when = -(-deadline * 1000 // 1001)
            self.timeline.at(max(when, self.timeline.now_ns + MS), lambda: self._timer(reign))

    def _timer(self, reign: int) -> None:
        core = self.core
        if core is None or reign != self.reign:
            return
        deadline = core.next_deadline()
        if deadline is not None and deadline <= self.controller_clock():
            self.step(fx.TimePassed())

    def _execute(self, effect: fx.Effect) -> None:
        if isinstance(effect, fx.Persist):
            self.commits.append((effect.batch, self.reign))
            self.timeline.later(self.timeline.random.randrange(2 * MS), self._commit_next)
        elif isinstance(effect, fx.Send | fx.Welcome):
            end = self.ends.get(effect.session)
            if end is not None:
                attempt = effect.attempt if isinstance(effect, fx.Send) else 0
                end[1].send((effect.header, effect.message, attempt))
        elif isinstance(effect, fx.Close):
            self.timeline.note(f"controller closes session {effect.session}: {effect.status.name} {effect.detail}")
            session = effect.session
            self.timeline.later(5 * MS, lambda: self.cut(session))
        elif isinstance(effect, fx.Reply):
            self.results[effect.token] = effect.result
        elif isinstance(effect, fx.RefuseOperation):
            self.results[effect.token] = effect
        elif isinstance(effect, fx.Log):
            self.timeline.note(f"log {effect.text}")
        elif isinstance(effect, fx.Depose):
            raise self.timeline.violated(f"deposed: {effect.reason}")

    def _commit_next(self) -> None:
        if self.commits and self.core is not None:
            self._commit_one(tell=True)

    def _commit_one(self, tell: bool) -> None:
        assert self.store is not None
        batch, reign = self.commits.popleft()
        self.store.commit([batch], self.store.term)
        self.checks.batch(batch)
        if tell and reign == self.reign:
            self.step(fx.BatchCommitted(batch.id))

    # --- the network -------------------------------------------------------------------------------------------------

    def _delay(self) -> int:
        random = self.timeline.random
        if self.slow_network and random.random() < 0.02:
            return random.randrange(4 * SECOND)
        return 50_000 + random.randrange(2 * MS)

    def connect(self, end: Any) -> int:
        """A new session of an agent, 0 if the controller is not there."""
        if self.core is None:
            return 0
        self.sessions += 1
        session = self.sessions
        down = Pipe(self.timeline, lambda item: self._deliver(end, session, item), self._delay)
        up = Pipe(self.timeline, lambda item: self.step(item), self._delay)  # type: ignore[arg-type]
        self.ends[session] = (end, down, up)
        up.send(fx.SessionOpened(session, end.name))
        return session

    def _deliver(self, end: Any, session: int, item: Any) -> None:
        header, message, attempt = item
        end.received(session, header, message, attempt)

    def to_controller(self, session: int, header: Header, message: Any, attempt: int) -> None:
        end = self.ends.get(session)
        if end is None:
            return
        if attempt:
            end[2].send(fx.ResponseReceived(session, attempt, message))
            return
        frame = decode(encode(message, header._replace(request_id=1 if isinstance(message, m.Hello) else 0)))
        end[2].send(fx.MessageReceived(session, header, frame.message))

    def cut(self, session: int) -> None:
        """Both ends notice that the connection is gone; what was under way is lost."""
        end = self.ends.pop(session, None)
        if end is None:
            return
        agent, down, up = end
        down.cut()
        up.cut()
        agent.session_lost(session)
        self.timeline.later(self.timeline.random.randrange(20 * MS), lambda: self.step(fx.SessionEnded(session)))

    # --- names -------------------------------------------------------------------------------------------------------

    def _agent_number(self, name: str) -> int:
        core = self.core
        if core is not None and name in core.cluster.agents_by_name:
            self._numbers[name] = core.cluster.agents_by_name[name].number
        return self._numbers.get(name, 0)

    def table_id(self, vdisk: int, mapper: SimMapper) -> int:
        return vdisk << 32 | self._agent_number(mapper.name)

    def vdisk_number(self, subnqn: str) -> int:
        for vdisk in self.core.cluster.vdisks.values() if self.core is not None else ():
            if vdisk.subnqn == subnqn:
                self._vdisks[subnqn] = vdisk.number
        return self._vdisks.get(subnqn, 0)

    def container_of(self, slot: int) -> SimContainer:
        core = self.core
        if core is not None and slot in core.cluster.containers:
            self._slots[slot] = core.cluster.containers[slot].subnqn
        return self.storage.containers[self._slots[slot]]

    # --- operators ---------------------------------------------------------------------------------------------------

    def ask(self, operation: str, request_id: str = "", **args: Any) -> int:
        """Ask now; the result comes in `results`."""
        self.tokens += 1
        self.step(fx.OperationRequested(self.tokens, operation, args, request_id))
        return self.tokens

    def call(self, operation: str, request_id: str = "", timeout_ns: int = 60 * SECOND, **args: Any) -> Any:
        """Ask, and run until it is answered; a refusal comes back as the RefuseOperation effect."""
        token = self.ask(operation, request_id, **args)
        met = self.timeline.run_until(self.timeline.now_ns + timeout_ns, lambda: token in self.results)
        if not met:
            raise self.timeline.violated(f"{operation} was never answered")
        return self.results.pop(token)

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def segment_size(self) -> int:
        return SEGMENT_SIZE

    def unsettled(self) -> list[str]:
        """What is still under way."""
        core = self.core
        if core is None:
            return ["the controller is down"]
        found = [f"{mapper.name} has I/O" for mapper in self.mappers.values() if mapper.ios]
        found += [f"{mapper.name} is not admitted" for mapper in self.mappers.values() if not mapper.admitted]
        for vdisk in core.cluster.vdisks.values():
            found += [f"{vdisk.name} segment {segment} is changing" for segment in vdisk.changing]
        found += ["commits" for _ in self.commits]
        return found

    def quiet(self) -> bool:
        return not self.unsettled()

    def audit(self) -> None:
        """The whole truth, compared: the core's, the checker's, and what the store would load."""
        assert self.core is not None and self.store is not None
        image, committed, stored = self.core.cluster.image, self.checks.committed, self.store.load().image
        owned: dict[tuple[int, int], tuple[int, int]] = {}
        for vdisk in self.core.cluster.vdisks.values():
            mine = image.entries(vdisk.number, 0, vdisk.segment_count)
            for other in (committed, stored):
                if other.entries(vdisk.number, 0, vdisk.segment_count) != mine:
                    raise self.timeline.violated(f"the tables of {vdisk.name} differ")
            for segment, entry in enumerate(mine):
                if entry & 13 == 1:
                    owned[entry >> 4 & 4095, entry >> 16] = (vdisk.number, segment)
        for container in self.core.cluster.containers.values():
            states = image.segments[container.slot]
            if bytes(stored.segments[container.slot]) != bytes(states)[: len(stored.segments[container.slot])]:
                raise self.timeline.violated(f"the segment states of {container.name} differ from the store's")
            for segment, state in enumerate(states):
                if (state == 2) != ((container.slot, segment) in owned):
                    raise self.timeline.violated(f"{container.name} segment {segment} has state {state}: leaked")
        if owned != self.checks.committed.owner:
            raise self.timeline.violated("locations and owners differ")

    def run(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> bool:
        return self.timeline.run_until(self.timeline.now_ns + int(seconds * SECOND), enough)
