"""Ending an incarnation for certain: its host NQN denied at every exporter that had let it in (design: 7, 8, 9).

A lease only stops new I/O. What a lost incarnation could still write is touched again only after each exporter has
confirmed that none of its queue pairs is left; an unreachable exporter, or NOT_FENCED, means *not fenced*, and we keep
trying. Denied at its containers, a data plane still answers reads of ZERO entries by itself, so its lease has to have
expired, too, unless another has started in its place on the same machine. FENCING and FENCED are persisted, so a
restarted controller neither re-admits nor forgets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from channel.messages import DenyHost
from controller.core.agents import Agent, Standing, TableState
from controller.core.cluster import Allow, Cluster
from controller.core.effects import Close
from controller.core.holdings import NOTHING
from mapping.status import Status


class Fencing:
    """Decides when to fence, and carries it out."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._waiting: dict[int, list[Callable[[int], None]]] = {}
        self._denying: set[str] = set()
        self._watched: set[int] = set()
        self._expiring: set[int] = set()
        self._answers: dict[str, str] = {}

    # --- when --------------------------------------------------------------------------------------------------------

    def needed(self, agent: Agent, now_ns: int) -> None:
        """Something waits for this agent: if it stays silent until its lease has surely expired, fence it."""
        if agent.standing is Standing.ALIVE and agent.number not in self._watched:
            self._watched.add(agent.number)
            self._cluster.timers.at(max(agent.lease_until_ns, now_ns), lambda now: self._check(agent, now))

    def _check(self, agent: Agent, now_ns: int) -> None:
        self._watched.discard(agent.number)
        if agent.standing is not Standing.ALIVE or not self._waited_for(agent):
            return
        if now_ns < agent.lease_until_ns:
            self.needed(agent, now_ns)
            return
        self.fence(agent, "its lease has expired, and others wait for it", now_ns)

    def _waited_for(self, agent: Agent) -> bool:
        if any(command.table is not None for command in (*agent.sent.values(), *agent.queue)):
            return True
        return any(table.gone for table in agent.tables.values())

    def when_over(self, agent: Agent, then: Callable[[int], None], now_ns: int) -> None:
        """Call `then` once the present incarnation is over for certain."""
        if agent.standing in (Standing.FENCED, Standing.NONE):
            then(now_ns)
        else:
            self._waiting.setdefault(agent.number, []).append(then)

    # --- how ---------------------------------------------------------------------------------------------------------

    def fence(self, agent: Agent, why: str, now_ns: int) -> None:
        """End the agent's incarnation. It is never admitted again; its daemon has to start a new data plane."""
        if agent.standing is not Standing.ALIVE:
            return
        cluster = self._cluster
        agent.standing = Standing.FENCING
        agent.detail = why
        cluster.journal.put("agent", str(agent.number), agent.record())
        cluster.journal.then(lambda now: self.proceed(agent, now))
        cluster.log.add(
            now_ns, "warning", "fence", f"fencing agent {agent.name} incarnation {agent.incarnation}: {why}"
        )
        cluster.changed = True
        if agent.admitted:
            cluster.effects.append(Close(agent.session, Status.STALE_INCARNATION, f"fenced: {why}"))
            cluster.sessions.pop(agent.session, None)
            agent.session, agent.admitted = 0, False
            cluster.commands.session_ended(agent, now_ns)

    def resume(self, now_ns: int) -> None:
        """After a restart: go on with what was begun."""
        for agent in self._cluster.agents.values():
            if agent.standing is Standing.FENCING:
                self.proceed(agent, now_ns)

    def allows_of(self, agent: Agent) -> list[Allow]:
        """What still lets the agent's incarnation in."""
        return [
            allow
            for allow in self._cluster.allows.values()
            if allow.agent == agent.number and allow.incarnation == agent.incarnation
        ]

    def proceed(self, agent: Agent, now_ns: int) -> None:
        """Deny what is not denied yet; nothing left: it is over."""
        if agent.standing is not Standing.FENCING:
            return
        allows = self.allows_of(agent)
        for allow in allows:
            if not self._cluster.bringup.withdraw_allow(allow):
                continue
            if allow.key not in self._denying:
                self._deny(agent, allow, now_ns)
        if allows:
            return
        if agent.mapper and now_ns < agent.lease_until_ns and not agent.replaced:
            if agent.number not in self._expiring:
                self._expiring.add(agent.number)
                self._cluster.timers.at(agent.lease_until_ns, lambda now: self._expired(agent, now))
        else:
            self._cluster.journal.put("agent", str(agent.number), {**agent.record(), "standing": Standing.FENCED.value})
            self._cluster.journal.then(lambda now: self._over(agent, now))

    def _expired(self, agent: Agent, now_ns: int) -> None:
        self._expiring.discard(agent.number)
        self.proceed(agent, now_ns)

    def _deny(self, agent: Agent, allow: Allow, now_ns: int) -> None:
        cluster = self._cluster
        self._denying.add(allow.key)

        def done(status: int, response: Any, now_ns: int) -> None:
            self._denying.discard(allow.key)
            if allow.key not in cluster.allows:
                return
            if status == Status.OK:
                self.denied(allow)
                self.proceed(agent, now_ns)
                return
            detail = response.detail if response is not None else ""
            self._answers[allow.key] = f"{Status(status).name} {detail}".strip()
            cluster.timers.at(now_ns + cluster.timing.retry_ns, lambda now: self.proceed(agent, now))

        cluster.commands.order(
            cluster.agents[allow.exporter],
            lambda: (DenyHost(allow.subnqn, allow.hostnqn), 0, False),
            done,
            now_ns,
            exporting=True,
        )

    def denied(self, allow: Allow) -> None:
        """An exporter has confirmed it, or its restart has."""
        if self._cluster.allows.pop(allow.key, None) is not None:
            self._cluster.journal.delete("allow", allow.key)
            self._answers.pop(allow.key, None)

    def waiting_for(self, agent: Agent) -> list[str]:
        """For operators: which confirmations are missing."""
        texts = []
        for allow in self.allows_of(agent) if agent.standing is Standing.FENCING else ():
            exporter = self._cluster.agents[allow.exporter]
            why = self._answers.get(allow.key) or ("asked" if exporter.admitted else "not connected")
            texts.append(f"exporter {exporter.name} to confirm deny-host for {allow.subnqn}: {why}")
        if agent.number in self._expiring:
            texts.append(f"the lease of agent {agent.name} to expire, or its machine to start a new data plane")
        return texts

    def _over(self, agent: Agent, now_ns: int) -> None:
        if agent.standing is not Standing.FENCING:
            return
        cluster = self._cluster
        agent.standing = Standing.FENCED
        cluster.log.add(now_ns, "info", "fence", f"agent {agent.name} incarnation {agent.incarnation} is fenced")
        cluster.changed = True
        agent.attachments.clear()
        agent.lease_until_ns = now_ns
        for table in list(agent.tables.values()):
            table.state = TableState.ABSENT
            table.holdings.reset(NOTHING)
            table.presentation.exported = table.presentation.exporting = False
            table.slots, table.slots_asked = frozenset(), None
            cluster.faults.dropped(table)
        cluster.commands.incarnation_over(agent, now_ns)
        for table in list(agent.tables.values()):
            cluster.bringup.table_gone(table, now_ns)
        for then in self._waiting.pop(agent.number, []):
            then(now_ns)
        cluster.zeroing.incarnation_over(agent.number, agent.incarnation, now_ns)
        cluster.admission.fenced(agent, now_ns)
