"""A simulated machine: the real agent core as its daemon, a target, and for a mapper the data plane in it.

The daemon may hang (nothing is read, no timer rings; it goes on where it was) or die (a new one adopts the target); the
target may hang as well, or die with everything in it; the machine may. Each of them comes back by itself, as the agent
core decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config import AgentConfig, ContainerConfig
from agent.core import Agent
from agent.core import effects as e
from agent.core.work import Unanswered
from channel import messages as m
from channel.events import NoticeReceived, RequestReceived, ResponseReceived
from channel.messages import ROW_OF
from channel.values import Header
from mapping.plane import numbered
from mapping.status import Status
from spdk_rpc.exports import NvmeTcpFrontEnd
from tests.sim.dataplane import DataPlane, PlaneLink
from tests.sim.network import END, Wire
from tests.sim.storage import BLOCK_SIZE, SEGMENT_SIZE, Pair, SimContainer
from tests.sim.target import Target
from tests.sim.timeline import MS, SECOND, Alarm, Clock

if TYPE_CHECKING:
    from tests.sim.world import World

DRIFT_PPM = 9_900
PAST_MAX = 400


class Machine:
    """`name` is the agent's; `maps`: a mapper; with `containers`, an exporter of them."""

    def __init__(self, world: World, name: str, maps: bool, containers: list[SimContainer]) -> None:
        self.world = world
        self.name = name
        self.maps = maps
        self.timeline = world.timeline
        self.clock = Clock(world.timeline, DRIFT_PPM)
        self.containers = {container.name: container for container in containers}
        self.lives = 0
        self.past: deque[tuple[bool, Any]] = deque(maxlen=PAST_MAX)
        self.alive = True
        self._new_target()
        self.daemon = Daemon(self)

    def _new_target(self) -> None:
        self.lives += 1
        self.target = Target(self)
        self.dataplane = DataPlane(self)

    def obtain_target(self) -> tuple[bytes, bool]:
        """Adopt the running target, or start one."""
        adopted = not self.target.dead and self.lives > 1
        if self.target.dead:
            self._new_target()
        return self.target.identity, adopted

    def kill_target(self, reason: str) -> None:
        """SIGKILL of the target, and so of the data plane in it."""
        if self.target.dead:
            return
        self.timeline.note(f"{self.name} target ends: {reason}")
        self.target.die()
        self.dataplane.die()
        self.world.hosts.path_died(self)
        self.daemon.target_died(reason)

    def stop_target(self, lasting_ns: int) -> None:
        """SIGSTOP of the target, SIGCONT later. Containers may find out that it is silent, and end its queue pairs."""
        if self.target.dead or self.dataplane.is_stopped:
            return
        self.timeline.note(f"{self.name} target is stopped")
        self.dataplane.stop()
        for controller in self.target.controllers.values():
            pair = controller.pair
            if self.timeline.chance(0.6):  # what it has begun is in its own queues yet
                pair.stuck_until_ns = self.timeline.now_ns + lasting_ns
            if self.timeline.chance(0.4):
                self.timeline.later(self.timeline.between(5 * SECOND, 15 * SECOND), self._miss_keep_alive, pair)
        for subsystem in self.target.subsystems.values():
            for pair in subsystem.pairs:  # as a container host it answers nothing
                pair.stuck_until_ns = max(pair.stuck_until_ns, self.timeline.now_ns + lasting_ns)
        self.timeline.later(lasting_ns, self._continue_target, self.dataplane)

    def _miss_keep_alive(self, pair: Pair) -> None:
        if self.dataplane.is_stopped:
            self.world.storage.end(pair)

    def _continue_target(self, dataplane: DataPlane) -> None:
        if dataplane.is_stopped and not dataplane.dead:
            self.timeline.note(f"{self.name} target goes on")
            dataplane.go_on()

    def kill_daemon(self) -> None:
        """SIGKILL of the daemon; its target lives on, and a new daemon adopts it."""
        self.timeline.note(f"{self.name} daemon is killed")
        self.daemon.die()
        self.daemon = Daemon(self, self.timeline.between(100 * MS, 3 * SECOND))

    def fail(self, lasting_ns: int) -> None:
        """The machine fails: everything on it, and what its disks had not flushed."""
        if not self.alive:
            return
        self.timeline.note(f"{self.name} machine fails")
        self.alive = False
        self.daemon.die()
        self.target.die()
        self.dataplane.die()
        self.world.hosts.path_died(self)
        for container in self.containers.values():
            self.world.hosts.lost(container, container.lose_cache())
        self.timeline.later(lasting_ns, self._boot)

    def _boot(self) -> None:
        self.alive = True
        self._new_target()
        self.daemon = Daemon(self)

    def remember(self, delivered: bool, event: Any) -> None:
        """For messages that come a second time, or far too late."""
        self.past.append((delivered, event))

    def past_returns(self) -> None:
        """A message of the past reaches the data plane once more: whatever sent it was stopped, and resumes."""
        if not self.past or self.dataplane.dead:
            return
        plane = self.dataplane.plane
        standing = (plane.term, plane.incarnation, numbered(plane.epoch, plane.session))
        sequences = {table: engine.sequence + 1 for table, engine in plane.tables.items()}
        past, first = list(self.past), int(self.timeline.random.random() * len(self.past))
        turned = past[first:] + past[:first]
        delivered, event = next((one for one in turned if self._would_fit(one[1], standing, sequences)), turned[0])
        if not delivered and event.header[:3] == standing:
            return
        if isinstance(event.message, m.ZeroSegments):
            self.timeline.note(f"{self.name} is told of an earlier time to zero")
        nowhere = PlaneLink(self.dataplane, lambda *_: None)
        nowhere.close()
        self.dataplane.message(nowhere, event)

    def _would_fit(self, event: Any, standing: tuple[int, int, int], sequences: dict[int, int]) -> bool:
        """In sequence, and of another time: only term, incarnation, epoch and session give it away."""
        header = event.header
        in_sequence = isinstance(event.message, m.ZeroSegments) or sequences.get(header.table) == header.sequence
        return in_sequence and header[:3] != standing


class Daemon:
    """Executes what the agent core wants, as agent.shell does."""

    def __init__(self, machine: Machine, delay_ns: int = 0) -> None:
        self.machine = machine
        self.world = machine.world
        self.timeline = machine.timeline
        containers = tuple(
            ContainerConfig(name, "aio", Path(name), one.segment_count * SEGMENT_SIZE, BLOCK_SIZE)
            for name, one in machine.containers.items()
        )
        nothing = Path("nothing")
        config = AgentConfig(
            machine.name,
            frozenset({"mapper"} if machine.maps else ()) | frozenset({"exporter"} if machine.containers else ()),
            (("controller", 1),),
            nothing,
            nothing,
            nothing,
            nothing,
            containers=containers,
        )
        self.core = Agent(config, NvmeTcpFrontEnd(machine.name, 4420), machine.name.encode().ljust(16, b"-"))
        self.wire: Wire | None = None
        self.link: PlaneLink | None = None
        self.dead = False
        self.hung = False
        self._waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._queue: deque[e.Event] = deque()
        self._stepping = False
        self._attempt = 0
        self._plane_attempt = 0
        self._alarm = Alarm(self.timeline, machine.clock, lambda: self.tell(e.Tick()))
        self._handlers: dict[type, Callable[[Any], None]] = {
            e.SendController: self._send_controller,
            e.RespondController: self._respond_controller,
            e.RelayController: self._relay_controller,
            e.SendDataPlane: self._send_data_plane,
            e.RelayDataPlane: self._relay_data_plane,
            e.CallTarget: self._call_target,
            e.CreateFile: lambda effect: self.timeline.later(MS, self.tell, e.CallDone(effect.token)),
            e.StartTarget: lambda _: self.timeline.later(self._start_ns(), self._obtain),
            e.StopTarget: lambda effect: self.timeline.later(10 * MS, self._stop, effect.reason),
            e.ConnectDataPlane: self._connect_data_plane,
            e.CloseDataPlane: lambda _: self._close_data_plane(),
            e.ConnectController: self._connect_controller,
            e.CloseController: lambda _: self._close_controller(),
            e.Alarm: lambda alarm: self.timeline.note(f"{machine.name}: {alarm.text}"),
            e.Note: lambda note: None,
            e.Ready: lambda _: None,
            e.GiveUp: lambda effect: self._give_up(effect.reason),
        }
        self.timeline.later(delay_ns, self.tell, e.Started())

    # --- the core ----------------------------------------------------------------------------------------------------

    def tell(self, event: e.Event) -> None:
        """An event from outside; a hung daemon finds it when it goes on."""
        if self.dead:
            return
        if self.hung:
            if not isinstance(event, e.Tick):
                self._waiting.append((self.tell, (event,)))
            return
        self._step(event)
        self._alarm.set(self.core.next_deadline())

    def _step(self, event: e.Event) -> None:
        self._queue.append(event)
        if self._stepping:
            return
        self._stepping = True
        while self._queue:
            for effect in self.core.step(self._queue.popleft(), self.machine.clock()):
                self._handlers[type(effect)](effect)
        self._stepping = False

    def hang(self) -> None:
        self.hung = True

    def go_on(self) -> None:
        """SIGCONT: what has come meanwhile is dealt with in order."""
        if self.hung and not self.dead:
            self.hung = False
            waiting, self._waiting = self._waiting, deque()
            for action, args in waiting:
                action(*args)
            self.tell(e.Tick())

    def die(self) -> None:
        self.dead = True
        self._close_controller()
        self._close_data_plane()

    def _give_up(self, reason: str) -> None:
        """The process ends with an error; its service manager starts it again."""
        self.timeline.note(f"{self.machine.name} gives up: {reason}")
        self.timeline.later(0, self.machine.kill_daemon)

    # --- the controller ----------------------------------------------------------------------------------------------

    def _connect_controller(self, effect: e.ConnectController) -> None:
        self._attempt += 1
        delay_ns = effect.delay_ns * self.timeline.between(500, 1500) // 1000 + self.timeline.between(0, 20 * MS)
        self.timeline.later(delay_ns, self._reach_controller, self._attempt)

    def _reach_controller(self, attempt: int) -> None:
        if attempt != self._attempt or self.dead:
            return
        wire = self.world.connect(self.machine, self._from_wire)
        if wire is None:
            self.timeline.later(self.timeline.between(MS, SECOND // 2), self._unreached, attempt)
            return
        self.wire = wire
        self.tell(e.SessionUp())

    def _unreached(self, attempt: int) -> None:
        if attempt == self._attempt:
            self.tell(e.SessionDown("cannot connect"))

    def _close_controller(self) -> None:
        self._attempt += 1
        wire, self.wire = self.wire, None
        if wire is not None:
            wire.agent_closes()
            self._lost(wire)

    def _lost(self, wire: Wire) -> None:
        """What the controller had sent and nobody has received: it may turn up yet."""
        for item in wire.lost_down:
            if item is not END and isinstance(item[1], m.SetEntries | m.FaultAnswer | m.LeaseGrant | m.ZeroSegments):
                self.machine.remember(False, _received(*item))
        wire.lost_down.clear()

    def _from_wire(self, wire: Wire, item: Any) -> None:
        if wire is not self.wire or self.dead:
            return
        if self.hung:
            self._waiting.append((self._from_wire, (wire, item)))
            return
        if item is END:
            self.wire = None
            self._lost(wire)
            self.tell(e.SessionDown("the connection is lost"))
            return
        header, message, attempt = item
        if isinstance(message, m.Welcome):
            if message.status is Status.OK:
                self.tell(e.Welcomed(message, header))
            else:
                self.wire = None
                self.tell(e.SessionDown(message.detail or message.status.name, message.status))
        elif isinstance(message, m.Goodbye):
            self.wire = None
            self.tell(e.SessionDown(message.detail or message.status.name, message.status))
        else:
            self.tell(e.FromController(_received(header, message, attempt)))

    def _send_controller(self, effect: e.SendController) -> None:
        message = effect.message
        if isinstance(message, m.LeaseRenew):
            self.world.checks.renewed(self.machine, message.sent_ns)
        if self.wire is not None:
            self.wire.up.send((effect.header, self.world.network.as_sent(message, effect.header), 0))

    def _respond_controller(self, effect: e.RespondController) -> None:
        if self.wire is not None:
            self.wire.up.send((effect.request.header, effect.response, effect.request.header.request_id))

    def _relay_controller(self, effect: e.RelayController) -> None:
        received = effect.received
        if self.wire is None:
            return
        if isinstance(received, ResponseReceived):
            self.wire.up.send((received.header, received.message, received.context.header.request_id))
        else:
            message = self.world.network.as_sent(received.message, received.header)
            self.wire.up.send((received.header, message, 0))

    # --- the data plane ----------------------------------------------------------------------------------------------

    def _connect_data_plane(self, effect: e.ConnectDataPlane) -> None:
        self._plane_attempt += 1
        self.timeline.later(effect.delay_ns + MS, self._reach_data_plane, self._plane_attempt)

    def _reach_data_plane(self, attempt: int) -> None:
        if attempt != self._plane_attempt or self.dead:
            return
        dataplane = self.machine.dataplane
        if dataplane.dead:
            self.tell(e.DataPlaneDown("cannot connect"))
            return
        if dataplane.is_stopped:  # connected, but it says nothing
            self.timeline.later(SECOND // 2, self._reach_data_plane, attempt)
            return
        self.link = dataplane.connect(self._from_data_plane)
        self.tell(e.DataPlaneUp(dataplane.plane.instance, dataplane.header()))

    def _from_data_plane(self, link: PlaneLink, event: Any) -> None:
        if link is not self.link or self.dead:
            return
        if self.hung:
            self._waiting.append((self._from_data_plane, (link, event)))
        else:
            self.tell(e.FromDataPlane(event))

    def _close_data_plane(self) -> None:
        self._plane_attempt += 1
        link, self.link = self.link, None
        if link is not None:
            link.close()

    def lose_data_plane(self) -> None:
        """The Unix socket breaks."""
        if self.link is not None:
            self._close_data_plane()
            self.tell(e.DataPlaneDown("the connection broke"))

    def _send_data_plane(self, effect: e.SendDataPlane) -> None:
        link = self.link
        if link is None or not link.open:
            self._step(e.CallDone(effect.token, None, Unanswered("no data plane")))
            return
        request = RequestReceived(effect.header, ROW_OF[type(effect.message)].kind, effect.message, b"")
        link.send(request, effect.token)

    def _relay_data_plane(self, effect: e.RelayDataPlane) -> None:
        received = effect.received
        kind = received.message
        if isinstance(kind, m.SetEntries | m.FaultAnswer) or (
            isinstance(kind, m.LeaseGrant) and self.timeline.chance(0.1)
        ):
            self.machine.remember(True, received)
        elif isinstance(kind, m.ZeroSegments):
            self.machine.remember(False, received)  # it is in no sequence: a second time within its epoch must not be
        if self.link is not None:
            self.link.send(received)

    # --- the target --------------------------------------------------------------------------------------------------

    def _start_ns(self) -> int:
        return 5 * MS if not self.machine.target.dead else self.timeline.between(200 * MS, 900 * MS)

    def _obtain(self) -> None:
        if not self.dead:
            identity, adopted = self.machine.obtain_target()
            self.tell(e.TargetStarted(identity, adopted))

    def _stop(self, reason: str) -> None:
        if not self.dead and not self.machine.target.dead:
            self.machine.kill_target(reason)

    def target_died(self, reason: str) -> None:
        """The socket ends, and the process has been waited for."""
        if self.link is not None:
            self._close_data_plane()
            self.tell(e.DataPlaneDown(reason))
        self.timeline.later(self.timeline.between(MS, 50 * MS), self._target_exited, self.machine.target, reason)

    def _target_exited(self, target: Target, reason: str) -> None:
        if self.machine.target is target:
            self.tell(e.TargetExited(reason))

    def _call_target(self, effect: e.CallTarget) -> None:
        target = self.machine.target

        def done(value: Any, failure: Any) -> None:
            if target is self.machine.target:
                self.tell(e.CallDone(effect.token, value, failure))

        target.perform(effect.call, done)


def _received(header: Header, message: Any, attempt: int) -> RequestReceived | NoticeReceived:
    kind = ROW_OF[type(message)].kind
    if attempt:
        return RequestReceived(header._replace(request_id=attempt), kind, message, b"")
    return NoticeReceived(header, kind, message, b"")
