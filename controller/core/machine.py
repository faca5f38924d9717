"""The controller's core: step(event, now) -> effects, next_deadline(). Pure; the shell and the simulation drive it.

It is built from what the store has, and presumes the worst of everything else: every recorded agent alive and holding
every entry of its tables (design: controllers too have leases). What a step wants durable is one `Persist`; what
depends on it comes out of step(BatchCommitted).
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from channel.messages import Hello
from controller.config import Limits, Timing
from controller.core.admission import Admission
from controller.core.bringup import BringUp
from controller.core.changes import Changes
from controller.core.checking import Checking
from controller.core.cluster import Cluster
from controller.core.commands import Commands
from controller.core.containers import Containers
from controller.core.draining import Draining
from controller.core.effects import (
    BatchCommitted,
    ConditionChanged,
    Effect,
    Event,
    LeadershipLost,
    MessageReceived,
    OperationRequested,
    ResponseReceived,
    SessionEnded,
    SessionOpened,
    StoreSpaceChanged,
    StoreWasRead,
)
from controller.core.failed_containers import FailedContainers
from controller.core.faults import Faults
from controller.core.fencing import Fencing
from controller.core.operations import Operations
from controller.core.reports import Reports
from controller.core.volumes import Volumes
from controller.core.zeroing import Zeroing
from controller.store.interface import StoreState


class Controller:
    """One reign. A new term is a new Controller."""

    def __init__(
        self, state: StoreState, timing: Timing, limits: Limits, make_uuid: Callable[[], UUID], now_ns: int
    ) -> None:
        cluster = self.cluster = Cluster(state, timing, limits, make_uuid, now_ns)
        cluster.commands = Commands(cluster)
        cluster.bringup = BringUp(cluster)
        cluster.changes = Changes(cluster)
        cluster.fencing = Fencing(cluster)
        cluster.draining = Draining(cluster)
        cluster.failures = FailedContainers(cluster)
        cluster.admission = Admission(cluster)
        cluster.zeroing = Zeroing(cluster, state.jobs)
        cluster.faults = Faults(cluster)
        cluster.volumes = Volumes(cluster)
        cluster.checking = Checking(cluster)
        self._operations = Operations(cluster, cluster.volumes, Containers(cluster), Reports(cluster))
        self._begun = False

    @property
    def term(self) -> int:
        return self.cluster.term

    def next_deadline(self) -> int | None:
        """When step(TimePassed()) has something to do."""
        return self.cluster.timers.next_deadline()

    def step(self, event: Event, now_ns: int) -> list[Effect]:
        """What follows from the event. Effects are executed in order."""
        cluster = self.cluster
        if not self._begun:
            self._begun = True
            cluster.fencing.resume(now_ns)
            cluster.zeroing.resume(now_ns)
            cluster.volumes.resume(now_ns)
        cluster.timers.fire(now_ns)
        self._dispatch(event, now_ns)
        cluster.faults.drain(now_ns)
        cluster.zeroing.settle(now_ns)
        if cluster.changed:
            cluster.changed = False
            self._operations.look(now_ns)
        cluster.flush_all()
        return self._effects()

    def _dispatch(self, event: Event, now_ns: int) -> None:
        cluster = self.cluster
        if isinstance(event, MessageReceived):
            self._message(event, now_ns)
        elif isinstance(event, BatchCommitted):
            for continuation in cluster.journal.committed(event.token):
                continuation(now_ns)
        elif isinstance(event, ResponseReceived):
            agent = cluster.sessions.get(event.session)
            if agent is not None and agent.session == event.session:
                cluster.commands.responded(agent, event.attempt, event.message, now_ns)
        elif isinstance(event, SessionOpened):
            cluster.admission.opened(event.session, event.peer)
        elif isinstance(event, SessionEnded):
            cluster.admission.ended(event.session, now_ns)
        elif isinstance(event, OperationRequested):
            self._operations.requested(event.token, event.operation, event.args, event.request_id, now_ns)
        elif isinstance(event, ConditionChanged):
            if event.severity == "info":
                cluster.log.clear(now_ns, event.kind, event.subject, event.text)
            else:
                cluster.log.alarm(now_ns, event.kind, event.subject, event.text, event.severity)
        elif isinstance(event, StoreWasRead):
            cluster.checking.store_was_read(event.token, event.state, event.findings)
        elif isinstance(event, StoreSpaceChanged):
            cluster.store_space(event.full, now_ns)
        elif isinstance(event, LeadershipLost):
            cluster.admission.depose(event.reason, now_ns)

    def _message(self, event: MessageReceived, now_ns: int) -> None:
        cluster = self.cluster
        if cluster.deposed:
            return
        if isinstance(event.message, Hello):
            cluster.admission.hello(event.session, event.header, event.message, now_ns)
            return
        agent = cluster.sessions.get(event.session)
        if agent is not None and agent.admitted:
            cluster.admission.notice(agent, event.header, event.message, now_ns)

    def _effects(self) -> list[Effect]:
        """This step's effects; its Persist comes first, and nothing in the same step depends on it."""
        cluster = self.cluster
        effects: list[Effect] = list(cluster.log.fresh)
        cluster.log.fresh.clear()
        persist = cluster.journal.take()
        if persist is not None and not cluster.deposed:
            effects.append(persist)
        effects += cluster.effects
        cluster.effects = []
        return effects
