"""The agent daemon's decisions: `step(event, now_ns) -> effects`, `next_deadline()`.

Invariants:
* A controller session spans one target and one connection to its data plane: when either ends, so does the session, and
  the next HELLO says what the data plane has then. What was queued of an ended session is dropped; its answers never
  reach anybody.
* What carries entries goes between controller and data plane as it is: the data plane itself checks term, incarnation,
  epoch and sequence. A daemon that was stopped cannot replay an old entry, nor keep a lease alive: a grant counts from
  when its renewal was sent (design: in order; the lease stops new I/O, in the data plane).
* One HELLO, one ADMIT a session; nothing but the lease is decided here. Before HELLO the data plane numbers the session
  (TABLE_STATUS), and refuses what was sent in an earlier one; HELLO tells the controller the number, WELCOME says that
  its stamps will bear it, and so does ADMIT. An older data plane or controller gives none: 0, and stamps bear none.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final

from agent.config import AgentConfig
from agent.core import effects as e
from agent.core.commands import RELAYED_DOWN, RELAYED_UP, Context, exporter_command, mapper_command
from agent.core.effects import Effect, Event
from agent.core.exports import Built, build
from agent.core.procedures import usable_controllers
from agent.core.supply import SECOND_NS, Supply
from agent.core.watch import Watch
from agent.core.work import Ask, Procedure, Unanswered, Work
from channel.events import NoticeReceived, RequestReceived, ResponseReceived
from channel.messages import (
    Admit,
    AgentEvent,
    Epoch,
    Export,
    Hello,
    LeaseRenew,
    TablesRead,
    TableStatus,
    Welcome,
    response_to,
    short,
)
from channel.values import VERSION, VERSION_MIN, EventKind, Header, MessageType, Roles, TableSequence
from mapping.plane import SESSION_SHIFT, numbered
from mapping.status import Status
from spdk_rpc.errors import RpcFailure
from spdk_rpc.exports import FrontEnd

SOFTWARE: Final = "segmap"
REBUILD_NS: Final = 5 * SECOND_NS
PHASE_NS: Final = 15 * SECOND_NS
GREETING_NS: Final = 120 * SECOND_NS
RENEW_MIN_NS: Final = SECOND_NS // 100
BACKOFF_SHIFT_MAX: Final = 16


class Phase(Enum):
    """Where the controller session stands."""

    DOWN = auto()
    CONNECTING = auto()
    LEARNING = auto()
    GREETING = auto()
    ADMITTING = auto()
    OPEN = auto()


class Agent:
    """The machine. `front_end`: how hosts reach this agent's target; `machine`: what HELLO says of the host."""

    def __init__(self, config: AgentConfig, front_end: FrontEnd, machine: bytes = bytes(16)) -> None:
        self.config = config
        self.machine = machine
        self.front_end = front_end
        self.supply = Supply()
        self.work = Work(self._stamps)
        self.built: Built | None = None
        self.phase = Phase.DOWN
        self.standing = Header()
        self._now = 0
        self._plane_up = False
        self._plane_failures = 0
        self._instance = b""
        self._relayed: dict[int, RequestReceived] = {}
        self._session_number = 0
        self._plane_session = 0
        self._session_failures = 0
        self._greeted_epoch = 0
        self._phase_deadline: int | None = None
        self._rebuild_at: int | None = None
        self._renew_at: int | None = None
        self._renew_ns = 0
        self._silence_ns = 0
        self._heard_ns = 0
        self._restarted = ""
        self._watch = Watch()
        self._handlers: dict[type, Callable[[Any], list[Effect]]] = {
            e.FromDataPlane: self._from_data_plane,
            e.FromController: self._from_controller,
            e.CallDone: self._call_done,
            e.NotRelayed: self._not_relayed,
            e.Started: self._started,
            e.TargetStarted: self._target_started,
            e.TargetExited: self._target_exited,
            e.TargetSilent: self._target_silent,
            e.DataPlaneUp: self._data_plane_up,
            e.DataPlaneDown: self._data_plane_down,
            e.SessionUp: self._session_up,
            e.Welcomed: self._welcomed,
            e.SessionDown: self._session_down,
            e.Tick: self._tick,
        }

    def step(self, event: Event, now_ns: int) -> list[Effect]:
        """What follows from an event, to be executed in order."""
        self._now = now_ns
        return self._handlers[type(event)](event)

    def next_deadline(self) -> int | None:
        """When a Tick has something to do, or None."""
        deadlines = [
            self.supply.wake_ns,
            self.work.next_deadline(),
            self._phase_deadline,
            self._rebuild_at,
            self._renew_at,
            self._watch.next_ns,
            self._heard_ns + self._silence_ns if self.phase is Phase.OPEN else None,
        ]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    @property
    def ready(self) -> bool:
        """True when there is something to tell a controller."""
        return self.supply.running and self.built is not None and (self._plane_up or not self.config.maps)

    # --- the target --------------------------------------------------------------------------------------------------

    def _started(self, _: e.Started) -> list[Effect]:
        return list(self.supply.start(self._now))

    def _target_started(self, event: e.TargetStarted) -> list[Effect]:
        effects = self.supply.started(event.identity, self._now)
        if self.config.maps:
            effects = [*effects, e.ConnectDataPlane(0)]
        return [*effects, *self._build()]

    def _build(self) -> list[Effect]:
        procedure = build(self.config.name, self.config.containers, self.front_end)
        return self.work.submit(("exports",), 0, procedure, self._have_built, self._now)

    def _have_built(self, built: Built) -> list[Effect]:
        changed = self.built is None or self.built != built
        first, self.built = self.built is None, built
        self._rebuild_at = self._now + REBUILD_NS if built.failed else None
        effects: list[Effect] = []
        if changed:
            effects += [e.Alarm(f"container {name} is not exported: {why}") for name, why in built.failed.items()]
        if first:
            return effects + self._became_ready()
        return effects + (self._tell_exports() if changed and self.phase is Phase.OPEN else [])

    def _target_exited(self, event: e.TargetExited) -> list[Effect]:
        effects: list[Effect] = []
        if self.supply.running:
            self._restarted = event.reason
        if self.config.maps:
            effects.append(e.CloseDataPlane("the target is gone"))
        self.work.drop_all()
        self.built, self._plane_up, self._rebuild_at = None, False, None
        self._watch.reset()
        return [*effects, *self._hang_up("the target is gone"), *self.supply.exited(event.reason, self._now)]

    def _target_silent(self, event: e.TargetSilent) -> list[Effect]:
        """A target that cannot be commanded cannot be fenced by, either: it is replaced like a dead one."""
        if not self.supply.running:
            return []
        self._restarted = reason = f"the target does not answer: {event.reason}"
        return [*self._hang_up(reason), *self.supply.restart(reason)]

    # --- the data plane ----------------------------------------------------------------------------------------------

    def _data_plane_up(self, event: e.DataPlaneUp) -> list[Effect]:
        self._plane_up, self._plane_failures = True, 0
        self._instance = event.instance
        self.standing = _standing(event.header)
        return self._became_ready()

    def _data_plane_down(self, event: e.DataPlaneDown) -> list[Effect]:
        if not self.supply.running:
            self._plane_up = False
            return []
        effects = self._hang_up(f"the data plane's connection has ended: {event.reason}")
        if self._plane_up or event.status == Status.BAD_VERSION:
            effects.append(e.Alarm(f"the data plane's connection has ended: {event.reason}"))
        self._plane_up = False
        delay_ns = self._backoff_ns(self._plane_failures)
        self._plane_failures += 1
        effects += self.work.data_plane_lost(event.reason, self._now)
        return [*effects, e.ConnectDataPlane(delay_ns)]

    def _from_data_plane(self, event: e.FromDataPlane) -> list[Effect]:
        received = event.received
        if isinstance(received, ResponseReceived):
            return self._plane_responded(received)
        effects: list[Effect] = []
        if received.type in RELAYED_UP and self.phase in (Phase.ADMITTING, Phase.OPEN):
            effects.append(e.RelayController(received))
        if received.type is MessageType.EPOCH:
            self.standing = self.standing._replace(epoch=received.header.epoch)
            if self._renew_at is not None:
                self._renew_at = self._now
                effects += self._renew()
        return effects

    def _plane_responded(self, received: ResponseReceived) -> list[Effect]:
        """To a request of ours, or to a relayed one: that is passed on if its session is still the present one."""
        context = received.context
        if isinstance(context, RequestReceived):
            return [] if self._relayed.pop(id(context), None) is None else [e.RelayController(received)]
        return self.work.resolve(context, received, None, self._now)

    # --- the controller ----------------------------------------------------------------------------------------------

    def _became_ready(self) -> list[Effect]:
        if not self.ready:
            return []
        effects: list[Effect] = [e.Ready()]
        if self.phase is Phase.DOWN:
            effects += self._connect()
        return effects

    def _connect(self) -> list[Effect]:
        self._enter(Phase.CONNECTING, None)
        delay_ns = self._backoff_ns(self._session_failures)
        self._session_failures += 1
        return [e.ConnectController(delay_ns)]

    def _backoff_ns(self, failures: int) -> int:
        if failures == 0:
            return 0
        least, most = (int(s * SECOND_NS) for s in (self.config.reconnect_min_s, self.config.reconnect_max_s))
        return min(least << min(failures - 1, BACKOFF_SHIFT_MAX), most)

    def _stamps(self) -> Header:
        """What our own requests to the data plane bear."""
        return self.standing._replace(epoch=numbered(self.standing.epoch, self._plane_session))

    def _enter(self, phase: Phase, patience_ns: int | None) -> None:
        self.phase = phase
        self._phase_deadline = None if patience_ns is None else self._now + patience_ns

    def _session_up(self, _: e.SessionUp) -> list[Effect]:
        """First of all the data plane says where it stands: behind everything that it was sent before."""
        if not self.ready:
            self._forget_session()
            return [e.CloseController("there is nothing to tell a controller yet")]
        self._session_number += 1
        self._heard_ns = self._now
        if not self.config.maps:
            return self._greet(self.supply.identity, Header(), ())
        self._enter(Phase.LEARNING, PHASE_NS)
        return self._own(("standing",), self._learn(), lambda effects: effects)

    def _learn(self) -> Procedure:
        try:
            received = yield Ask(TableStatus(), sequence=1)
        except Unanswered as failure:
            return self._fail_session(f"the data plane does not say where it stands: {failure}")
        self._plane_session = received.header.epoch >> SESSION_SHIFT
        message = received.message
        if not isinstance(message, TablesRead) or message.status != Status.OK:
            return self._fail_session(f"the data plane does not say where it stands: {message.detail}")
        return self._greet(self._instance, self.standing._replace(sequence=self._plane_session), message.tables)

    def _greet(self, instance: bytes, header: Header, tables: Any) -> list[Effect]:
        self._enter(Phase.GREETING, GREETING_NS)
        self._greeted_epoch = header.epoch
        roles = (Roles.MAPPER if self.config.maps else 0) | (Roles.EXPORTER if self.config.exports else 0)
        sequences = [TableSequence(*table) for table in tables]
        hello = Hello(VERSION_MIN, VERSION, int(roles), instance, self.config.name, SOFTWARE, sequences, self.machine)
        return [e.SendController(hello, header)]

    def _welcomed(self, event: e.Welcomed) -> list[Effect]:
        welcome = event.welcome
        self._heard_ns = self._now
        self._renew_ns = max(welcome.renew_interval_ns, RENEW_MIN_NS)
        self._silence_ns = max(welcome.lease_duration_ns, 3 * self._renew_ns)
        epoch = self.standing.epoch
        self.standing = Header(event.header.term, event.header.incarnation, epoch)
        self._plane_session = event.header.sequence
        if not self.config.maps:
            return self._open()
        effects: list[Effect] = []
        if epoch != self._greeted_epoch:
            effects.append(e.SendController(Epoch(Status.LEASE_EXPIRED), self.standing))
        self._enter(Phase.ADMITTING, PHASE_NS)
        return effects + self._own(("standing",), self._admit(welcome), lambda more: more)

    def _admit(self, welcome: Welcome) -> Procedure:
        message = Admit(welcome.cluster, welcome.lease_duration_ns, welcome.park_limit_ns, welcome.io_deadline_ns)
        try:
            received = yield Ask(message, sequence=self._plane_session)
        except Unanswered as failure:
            return self._fail_session(f"the data plane does not answer ADMIT: {failure}")
        response = received.message
        if response.status == Status.STALE_INCARNATION:
            return self._fenced(f"the data plane is of another incarnation: {response.detail}")
        if response.status != Status.OK:
            return self._fail_session(f"the data plane refuses ADMIT: {response.status.name} {response.detail}")
        self.standing = self.standing._replace(epoch=max(self.standing.epoch, received.header.epoch))
        return self._open()

    def _open(self) -> list[Effect]:
        self._enter(Phase.OPEN, None)
        self._session_failures = 1
        self._renew_at = self._now
        effects = self._renew()
        if self.config.exports:
            effects += self._tell_exports()
        if self._restarted:
            event = AgentEvent(EventKind.TARGET_RESTARTED, 0, short(self._restarted))
            effects.append(e.SendController(event, self.standing))
            self._restarted = ""
        if self.config.maps:
            self._watch.begin(self._now)
        return effects

    def _tell_exports(self) -> list[Effect]:
        assert self.built is not None
        at, exported = self.front_end.address, self.built.exported
        address = (at.traddr, at.trsvcid, at.trtype)
        messages = [
            Export(
                one.nsid,
                one.block_size,
                one.block_count,
                one.uuid,
                one is exported[-1],
                one.name,
                *address,
                one.subnqn,
            )
            for one in exported
        ]
        nothing = Export(0, 0, 0, bytes(16), True, "", *address, "")
        return [e.SendController(message, self.standing) for message in messages or [nothing]]

    def _from_controller(self, event: e.FromController) -> list[Effect]:
        received = event.received
        self._heard_ns = self._now
        if received.type in RELAYED_DOWN:
            if self.config.maps:
                if isinstance(received, RequestReceived):
                    self._relayed[id(received)] = received
                return [e.RelayDataPlane(received)]
            return [] if isinstance(received, NoticeReceived) else [self._refuse(received, Status.UNSUPPORTED)]
        if isinstance(received, NoticeReceived):
            return [e.Note(f"controller: {received.message}")]
        return self._command(received)

    def _not_relayed(self, event: e.NotRelayed) -> list[Effect]:
        """The data plane has too much to do already: a limit's defined refusal."""
        received = event.received
        if self._relayed.pop(id(received), None) is None:
            return []
        return [e.RespondController(received, response_to(received.type, Status.LIMIT, short(event.reason)))]

    def _command(self, received: Any) -> list[Effect]:
        if self.work.full():
            return [self._refuse(received, Status.LIMIT)]
        context = Context(
            self.config.name,
            self.standing.incarnation,
            self.front_end,
            lambda: self._now,
            int(self.config.deny_deadline_s * SECOND_NS),
        )
        command = mapper_command(received, context) if self.config.maps else None
        if command is None and self.config.exports:
            command = exporter_command(received, context)
        if command is None:
            return [self._refuse(received, Status.UNSUPPORTED)]
        return self.work.submit(
            command.key,
            self._session_number,
            command.procedure,
            lambda response: [e.RespondController(received, response)],
            self._now,
        )

    def _refuse(self, received: Any, status: Status) -> Effect:
        text = "too many commands at once" if status is Status.LIMIT else "not in the roles of this agent"
        return e.RespondController(received, response_to(received.type, status, text))

    def _session_down(self, event: e.SessionDown) -> list[Effect]:
        greeting = self.phase is Phase.GREETING
        self._forget_session()
        if event.status == Status.STALE_INCARNATION and greeting and self.config.maps:
            return self._fenced(f"the controller does not admit this incarnation any more: {event.reason}")
        says = e.Alarm if event.status == Status.BAD_VERSION else e.Note
        effects: list[Effect] = [says(f"controller: {event.reason}")]
        return effects + (self._connect() if self.ready else [])

    def _forget_session(self) -> None:
        if self._session_number:
            self.work.end_session(self._session_number)
        self._relayed.clear()
        self._renew_at = None
        self._watch.end()
        self._enter(Phase.DOWN, None)

    def _hang_up(self, reason: str) -> list[Effect]:
        """End the session from our side, or the attempt at one."""
        if self.phase is Phase.DOWN:
            return []
        self._forget_session()
        return [e.CloseController(short(reason))]

    def _fail_session(self, reason: str) -> list[Effect]:
        effects = [*self._hang_up(reason), e.Alarm(reason)]
        return effects + (self._connect() if self.ready else [])

    def _fenced(self, reason: str) -> list[Effect]:
        """This data plane is never admitted again: a new one has to come (design: incarnation)."""
        return [*self._hang_up(reason), *self.supply.restart(reason)]

    # --- time and calls ----------------------------------------------------------------------------------------------

    def _call_done(self, event: e.CallDone) -> list[Effect]:
        return self.work.resolve(event.token, event.value, event.failure, self._now)

    def _own(self, key: Any, procedure: Procedure, finish: Callable[[Any], list[Effect]]) -> list[Effect]:
        return self.work.submit(key, self._session_number, procedure, finish, self._now)

    def _tick(self, _: e.Tick) -> list[Effect]:
        effects = [*self.supply.tick(self._now), *self.work.tick(self._now)]
        if self._rebuild_at is not None and self._now >= self._rebuild_at:
            self._rebuild_at = None
            effects += self._build()
        if self._phase_deadline is not None and self._now >= self._phase_deadline:
            effects += self._fail_session(f"no answer while {self.phase.name.lower()}")
        if self.phase is Phase.OPEN and self._now >= self._heard_ns + self._silence_ns:
            effects += self._fail_session("the controller is silent")
        effects += self._renew()
        if self._watch.due(self._now):
            effects += self._own(("watch",), self._look_at_containers(), lambda more: more)
        return effects

    def _renew(self) -> list[Effect]:
        """Ask for the lease; the grant counts from now, the moment of asking."""
        if self._renew_at is None or self._now < self._renew_at:
            return []
        self._renew_at = self._now + self._renew_ns
        return [e.SendController(LeaseRenew(self._now), self.standing)]

    def _look_at_containers(self) -> Procedure:
        try:
            usable: dict[str, bool] = yield from usable_controllers()
        except RpcFailure:
            self._watch.looked(self._now)
            return []
        return [
            e.SendController(AgentEvent(kind, slot, detail), self.standing)
            for kind, slot, detail in self._watch.compare(usable, self._now)
        ]


def _standing(header: Header) -> Header:
    """What our own messages say of the data plane: nothing about a table or a request."""
    return Header(header.term, header.incarnation, header.epoch)
