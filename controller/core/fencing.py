"""Ending an incarnation for certain: its host NQN denied at every exporter that had let it in (design: 7, 8, 9).

A lease only stops new I/O. What a lost incarnation could still write is touched again only after each exporter has
confirmed that none of its queue pairs is left; an unreachable exporter, or NOT_FENCED, means *not fenced*, and we keep
trying. Denied at its containers, a data plane still answers reads of ZERO entries by itself, so its lease has to have
expired, too, unless another has started in its place on the same machine. FENCING and FENCED are persisted, so a
restarted controller neither re-admits nor forgets.

Two things stand for a confirmation: an operator's word that a machine is off (`vouch`), for what cannot be asked; and
an agent's own blocking answers that it holds nothing (draining.py). What was not denied then is *owed*: the record
stays, and the exporter is told to deny as soon as it can be asked, before anything else is ordered there.
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
        self._denied: dict[int, list[Allow]] = {}

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
        if agent.over:
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
        self._denied[agent.number] = []
        self._remind(agent, now_ns)
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
                self._remind(agent, now_ns)
        self._proceed_all(now_ns)

    def _remind(self, agent: Agent, now_ns: int) -> None:
        """An alarm as long as it takes longer than it should."""
        incarnation = agent.incarnation

        def look(now_ns: int) -> None:
            if agent.standing is not Standing.FENCING or agent.incarnation != incarnation:
                return
            text = f"agent {agent.name} is not fenced, and what it could reach stays quarantined. It waits for: "
            waiting = "; ".join(self.waiting_for(agent)) or "the store"
            self._cluster.log.alarm(now_ns, "fence", agent.name, f"{text}{waiting} (`segmap agent show {agent.name}`)")
            self._cluster.timers.at(now_ns + self._cluster.timing.wait_ns, look)

        self._cluster.timers.at(now_ns + self._cluster.timing.wait_ns, look)

    def _proceed_all(self, now_ns: int) -> None:
        for agent in list(self._cluster.agents.values()):
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
        waits = False
        for allow in self.allows_of(agent):
            if not self._cluster.bringup.withdraw_allow(allow):
                waits = True
            elif not self._stands_for(agent, allow):
                waits = True
                self._deny(agent, allow, now_ns)
        if waits:
            return
        if agent.mapper and now_ns < agent.lease_until_ns and not self._lease_is_over(agent):
            if agent.number not in self._expiring:
                self._expiring.add(agent.number)
                self._cluster.timers.at(agent.lease_until_ns, lambda now: self._expired(agent, now))
        else:
            self._cluster.journal.put("agent", str(agent.number), {**agent.record(), "standing": Standing.FENCED.value})
            self._cluster.journal.then(lambda now: self._over(agent, now))

    def _stands_for(self, agent: Agent, allow: Allow) -> bool:
        """Whether something else than the exporter's answer says that the agent does nothing there any more."""
        exporter = self._cluster.agents[allow.exporter]
        unasked = exporter is agent or not exporter.admitted
        return agent.drained or exporter.vouched or (agent.vouched and unasked)

    def _lease_is_over(self, agent: Agent) -> bool:
        return agent.replaced or agent.vouched or agent.drained

    def _expired(self, agent: Agent, now_ns: int) -> None:
        self._expiring.discard(agent.number)
        self.proceed(agent, now_ns)

    def _deny(self, agent: Agent, allow: Allow, now_ns: int) -> None:
        cluster = self._cluster
        if allow.key in self._denying:
            return
        self._denying.add(allow.key)

        def again(now_ns: int) -> None:
            self.proceed(agent, now_ns)
            if allow.key in cluster.allows:  # else it is settled, and its exporter may be removed
                self._settle(cluster.agents[allow.exporter], now_ns)

        def done(status: int, response: Any, now_ns: int) -> None:
            self._denying.discard(allow.key)
            if allow.key not in cluster.allows:
                return
            if status == Status.OK:
                self.denied(allow)
                cluster.changed = True
                self.proceed(agent, now_ns)
                return
            detail = response.detail if response is not None else ""
            self._answers[allow.key] = f"{Status(status).name} {detail}".strip()
            cluster.timers.at(now_ns + cluster.timing.retry_ns, again)

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
            self._denied.setdefault(allow.agent, []).append(allow)

    # --- what an operator says ---------------------------------------------------------------------------------------

    def vouch(self, agent: Agent, now_ns: int) -> None:
        """An operator says that the agent's machine is off: once that is durable, it counts, and is told for good."""
        cluster = self._cluster
        cluster.journal.put("agent", str(agent.number), {**agent.record(), "vouched": True})

        def recorded(now_ns: int) -> None:
            if agent.admitted:  # it has been heard of since: nothing is assumed of it
                cluster.journal.put("agent", str(agent.number), agent.record())
                return
            agent.vouched = True
            cluster.log.add(
                now_ns, "warning", "fence", f"an operator says that the machine of agent {agent.name} is off"
            )
            if agent.mapper:
                self.fence(agent, "an operator says that its machine is off", now_ns)
            self._proceed_all(now_ns)

        cluster.journal.then(recorded)

    def unaskable(self, agent: Agent) -> list[Allow]:
        """Where the agent's present incarnation may still do I/O and nobody can be asked to deny it."""
        agents = self._cluster.agents
        return [
            allow
            for allow in self.allows_of(agent)
            if agent.standing in (Standing.ALIVE, Standing.FENCING)
            and (agents[allow.exporter] is agent or not agents[allow.exporter].admitted)
        ]

    def let_in_by(self, exporter: Agent) -> list[Allow]:
        """Incarnations that are being fenced, and have to be denied by this exporter."""
        agents = self._cluster.agents
        return [
            allow
            for allow in self._cluster.allows.values()
            if allow.exporter == exporter.number
            and agents[allow.agent].incarnation == allow.incarnation
            and agents[allow.agent].standing is Standing.FENCING
        ]

    def returned(self, agent: Agent, now_ns: int) -> None:
        """It is admitted: it is not dead, and if it is an exporter, what is owed there is ordered first."""
        cluster = self._cluster
        if agent.vouched:
            agent.vouched = False
            cluster.journal.put("agent", str(agent.number), agent.record())
            text = f"agent {agent.name} is alive, although an operator said that its machine is off: `segmap check`"
            cluster.log.add(now_ns, "alarm", "fence", text)
        self._settle(agent, now_ns)

    def _settle(self, exporter: Agent, now_ns: int) -> None:
        for allow in self.owed():
            if allow.exporter == exporter.number and self._cluster.bringup.withdraw_allow(allow):
                self._deny(self._cluster.agents[allow.agent], allow, now_ns)

    def forget(self, agent: Agent) -> None:
        """It is removed; its number may be another's."""
        self._denied.pop(agent.number, None)
        for number, allows in self._denied.items():
            self._denied[number] = [allow for allow in allows if allow.exporter != agent.number]
        self._watched.discard(agent.number)
        self._expiring.discard(agent.number)

    def owed(self) -> list[Allow]:
        """Permissions of incarnations that are over, which nobody has confirmed to be taken back."""
        return [allow for allow in self._cluster.allows.values() if self._is_over(allow)]

    def _is_over(self, allow: Allow) -> bool:
        agent = self._cluster.agents[allow.agent]
        return agent.incarnation != allow.incarnation or agent.standing is Standing.FENCED

    # --- what operators are told -------------------------------------------------------------------------------------

    def waiting_for(self, agent: Agent) -> list[str]:
        """Which confirmations are missing, and what can be done about each."""
        if agent.standing is not Standing.FENCING:
            return []
        texts = []
        for allow in self.allows_of(agent):
            if not self._stands_for(agent, allow):
                exporter = self._cluster.agents[allow.exporter]
                texts.append(
                    f"exporter {exporter.name} to confirm deny-host for {allow.subnqn}: {self._said_of(agent, allow)}"
                )
        if agent.number in self._expiring:
            seconds = "the lease of agent {} to expire, or its machine to start a new data plane"
            texts.append(seconds.format(agent.name))
        return texts

    def _said_of(self, agent: Agent, allow: Allow) -> str:
        exporter = self._cluster.agents[allow.exporter]
        if exporter is agent:
            return f"not connected; if its machine is off, say `segmap agent confirm-dead {agent.name}`"
        if not exporter.admitted:
            return f"not connected; if its machine is off, say `segmap agent confirm-dead {exporter.name}`"
        return self._answers.get(allow.key) or "asked"

    def places(self, agent: Agent) -> list[tuple[Allow, str, str]]:
        """Every container that the agent's incarnation was let in to: (permission, state, detail)."""
        gone = [one for one in self._denied.get(agent.number, ()) if one.incarnation == agent.incarnation]
        rows = [(allow, "denied", "none of its queue pairs is left") for allow in gone]
        for allow in self.allows_of(agent):
            exporter = self._cluster.agents[allow.exporter]
            if agent.standing is Standing.ALIVE:
                rows.append((allow, "let in" if allow.confirmed or allow.inherited else "not let in yet", ""))
            elif self._stands_for(agent, allow) or self._is_over(allow):
                rows.append((allow, "assumed", "nobody has confirmed it; it is denied when its exporter can be asked"))
            elif not exporter.admitted:
                rows.append((allow, "unreachable", self._said_of(agent, allow)))
            else:
                state = "not fenced" if allow.key in self._answers else "asked"
                rows.append((allow, state, self._answers.get(allow.key, "")))
        return rows

    def _over(self, agent: Agent, now_ns: int) -> None:
        if agent.standing is not Standing.FENCING:
            return
        cluster = self._cluster
        agent.standing = Standing.FENCED
        cluster.log.clear(now_ns, "fence", agent.name, f"agent {agent.name} is fenced: nothing waits for it any more")
        cluster.log.add(now_ns, "info", "fence", f"agent {agent.name} incarnation {agent.incarnation} is fenced")
        cluster.changed = True
        agent.attachments.clear()
        agent.lease_until_ns = now_ns
        for table in list(agent.tables.values()):
            table.state = TableState.ABSENT
            table.holdings.reset(NOTHING)
            table.presentation.exported = table.presentation.exporting = False
            table.forget_slots()
            cluster.faults.dropped(table)
        cluster.commands.incarnation_over(agent, now_ns)
        for table in list(agent.tables.values()):
            cluster.bringup.table_gone(table, now_ns)
        for then in self._waiting.pop(agent.number, []):
            then(now_ns)
        cluster.zeroing.incarnation_over(agent.number, agent.incarnation, now_ns)
        for exporter in sorted({allow.exporter for allow in self.owed()}):
            self._settle(cluster.agents[exporter], now_ns)
        cluster.admission.fenced(agent, now_ns)
