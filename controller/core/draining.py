"""Emptying an agent in order: its disks withdrawn, its tables deleted, its containers detached (design: 5, 7, 8).

Each of these is answered only when the I/O begun before has ended, so a drained agent holds nothing, and no fence is
needed when it is stopped. What is wanted of it (its presentations) stays recorded, and is brought about again by
`undrain`. Draining outlasts restarts of agent and controller.
"""

from __future__ import annotations

from typing import Any, Final

from channel.messages import DetachContainer
from controller.core.agents import Agent, AttachState, TableState
from controller.core.cluster import Cluster
from mapping.status import Status

GONE: Final = frozenset((Status.OK, Status.NO_CONTAINER))


class Draining:
    """Begins, goes on, and tells what it waits for."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._recording: set[int] = set()
        self._detaching: set[tuple[int, int]] = set()
        self._detached: set[tuple[int, int, int]] = set()
        self._retrying: set[int] = set()
        self._answers: dict[tuple[int, int], str] = {}

    def begin(self, agent: Agent, now_ns: int) -> None:
        """Record that the agent is to hold nothing, then make it so."""
        if agent.draining:
            return
        agent.draining = True
        self._record(agent)

        def recorded(now_ns: int) -> None:
            self._recording.discard(agent.number)
            self._cluster.changed = True
            self._cluster.log.add(now_ns, "info", "drain", f"agent {agent.name} is being drained")
            self._cluster.bringup.reconcile(agent, now_ns)

        self._cluster.journal.then(recorded)

    def end(self, agent: Agent, now_ns: int) -> None:
        """Record that it may hold what is wanted of it, then bring that about."""
        if not agent.draining:
            return
        agent.draining = agent.drained = False
        self._detached = {one for one in self._detached if one[0] != agent.number}
        self._record(agent)

        def recorded(now_ns: int) -> None:
            self._recording.discard(agent.number)
            self._cluster.changed = True
            self._cluster.log.add(now_ns, "info", "drain", f"agent {agent.name} is in use again")
            self._cluster.bringup.reconcile(agent, now_ns)

        self._cluster.journal.then(recorded)

    def _record(self, agent: Agent) -> None:
        """What is wanted of it changes now; nothing is done about it before that is durable. So a store that says
        `drained` is right, whatever crashes: nothing has been brought up since."""
        self._recording.add(agent.number)
        self._cluster.journal.put("agent", str(agent.number), agent.record())

    def keeps_out(self, agent: Agent) -> bool:
        """True if nothing may be brought up at the agent."""
        return agent.draining or agent.number in self._recording

    def proceed(self, agent: Agent, now_ns: int) -> None:
        """Order the next missing thing; as often as one likes."""
        if not agent.draining or not agent.admitted or agent.number in self._recording:
            return
        for table in list(agent.tables.values()):
            if table.present:
                self._cluster.bringup.take_away(table, now_ns)
            elif table.presentation.withdrawing:
                self._cluster.volumes.withdrawn(table, now_ns)
        if agent.drained or self._tables(agent) or self._cluster.zeroing.held_by(agent):
            return
        slots = self._slots(agent)
        for slot in slots:
            attachment = agent.attachments.get(slot)
            if attachment is None or attachment.state is not AttachState.ATTACHING:
                self._detach(agent, slot, now_ns)
        if not slots:
            self._drained(agent)

    def _slots(self, agent: Agent) -> list[int]:
        """What it may have attached: also in an earlier reign, which only the records of who was let in know of."""
        allowed = {allow.slot for allow in self._cluster.fencing.allows_of(agent)}
        known = {slot for number, incarnation, slot in self._detached if (number, incarnation) == _life(agent)}
        return sorted({*agent.attachments, *(allowed - known)})

    def _tables(self, agent: Agent) -> list[str]:
        return [table.vdisk.name for table in agent.tables.values() if table.state is not TableState.ABSENT]

    def _detach(self, agent: Agent, slot: int, now_ns: int) -> None:
        key, incarnation = (agent.number, slot), agent.incarnation
        if key in self._detaching:
            return
        self._detaching.add(key)

        def done(status: int, response: Any, now_ns: int) -> None:
            self._detaching.discard(key)
            if response is None or agent.incarnation != incarnation:
                return
            if status in GONE:
                self._answers.pop(key, None)
                self._gone(agent, slot, now_ns)
                return
            self._answers[key] = f"{Status(status).name} {response.detail}".strip()
            self._later(agent, now_ns)

        self._cluster.commands.order(agent, lambda: (DetachContainer(slot), 0, False), done, now_ns)

    def _gone(self, agent: Agent, slot: int, now_ns: int) -> None:
        """Detached, unless it has been wanted again meanwhile: then it is being attached behind this."""
        attachment = agent.attachments.get(slot)
        if attachment is None or attachment.state is not AttachState.ATTACHING:
            agent.attachments.pop(slot, None)
            if agent.draining:
                self._detached.add((*_life(agent), slot))
        self._cluster.bringup.reconcile(agent, now_ns)

    def _later(self, agent: Agent, now_ns: int) -> None:
        if agent.number in self._retrying:
            return
        self._retrying.add(agent.number)

        def again(now_ns: int) -> None:
            self._retrying.discard(agent.number)
            self.proceed(agent, now_ns)

        self._cluster.timers.at(now_ns + self._cluster.timing.retry_ns, again)

    def _drained(self, agent: Agent) -> None:
        """All is answered: from the commit on, nothing of this incarnation has to be fenced."""
        incarnation = agent.incarnation
        self._cluster.journal.put("agent", str(agent.number), {**agent.record(), "drained": True})

        def recorded(now_ns: int) -> None:
            if agent.incarnation == incarnation and agent.draining and not agent.drained:
                agent.drained = True
                self._cluster.changed = True
                self._cluster.log.add(now_ns, "info", "drain", f"agent {agent.name} is drained: it holds nothing")

        self._cluster.journal.then(recorded)

    def waiting_for(self, agent: Agent) -> list[str]:
        """For operators: what has not been answered yet."""
        if not agent.draining or agent.drained:
            return []
        if not agent.admitted:
            text = f"agent {agent.name} to connect; if it is lost, `segmap agent fence {agent.name}` ends what it holds"
            return [text]
        texts = [f"its table of vdisk {name} to be deleted" for name in self._tables(agent)]
        failed, running = self._cluster.zeroing.held_by(agent, failed=True), self._cluster.zeroing.held_by(agent)
        if failed:
            hint = f"`segmap agent fence {agent.name}`"
            texts.append(
                f"{failed} segments whose zeroing has failed and may still be under way: only a fence ends it, {hint}"
            )
        elif running:
            texts.append(f"{running} segments that it is zeroing")
        for slot in self._slots(agent):
            container = self._cluster.containers.get(slot)
            name = container.name if container is not None else f"slot {slot}"
            answer = self._answers.get((agent.number, slot), "")
            texts.append(f"container {name} to be detached" + (f": {answer}" if answer else ""))
        return texts


def _life(agent: Agent) -> tuple[int, int]:
    return agent.number, agent.incarnation
