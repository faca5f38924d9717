"""Sessions, HELLO, incarnations, epochs and leases (design: 3, 7, 9; [0026] [0027]).

A new data-plane instance is admitted in a transaction, after the one before it has been fenced. A known one goes on:
its sequences are taken from its HELLO, and unanswered commands are sent again. Leases are granted only while we reign.
HELLO also brings the number that the data plane has given this session. Every stamp of ours bears it, so that what is
still on its way from an earlier session is refused there.
"""

from __future__ import annotations

from array import array
from typing import Any, Final

from channel.fields import plain
from channel.messages import AgentEvent, Epoch, Export, LeaseGrant, LeaseRenew, MapFault, Refused
from channel.messages import Hello as HelloMessage
from channel.messages import Welcome as WelcomeMessage
from channel.values import EventKind, Header
from controller.config import AGENTS_MAX, SECOND_NS
from controller.core.agents import EXPORTER, MAPPER, Agent, AgentTable, Hello, Standing, TableState
from controller.core.cluster import Cluster
from controller.core.drift import DriftWatch
from controller.core.effects import Close, Depose, Send, Welcome
from controller.core.holdings import NOTHING, UNKNOWN
from mapping.plane import SESSIONS_MAX
from mapping.status import Status

MACHINE_BYTES: Final = 8
"""Of HELLO.machine: which machine; the rest says which boot of it."""
DOUBLE_NS: Final = 60 * SECOND_NS


class Admission:
    """Who is who, and whether it may go on."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._peers: dict[int, str] = {}
        self._doubles: dict[str, int] = {}
        self._drift = DriftWatch(cluster.timing.drift_between, cluster.log)

    # --- sessions ----------------------------------------------------------------------------------------------------

    def opened(self, session: int, peer: str) -> None:
        self._peers[session] = peer

    def ended(self, session: int, now_ns: int) -> None:
        """The session is gone: its faults and answers are void, its commands wait."""
        self._peers.pop(session, None)
        agent = self._cluster.sessions.pop(session, None)
        if agent is None or agent.session != session:
            return
        self._forget_session(agent, now_ns)

    def _forget_session(self, agent: Agent, now_ns: int) -> None:
        was_admitted = agent.admitted
        agent.session, agent.admitted, agent.granted, agent.hello = 0, False, False, None
        self._cluster.changed = True
        if was_admitted:
            self._cluster.commands.session_ended(agent, now_ns)
            self._cluster.fencing.needed(agent, now_ns)
            self._cluster.log.add(now_ns, "warning", "agent", f"agent {agent.name} is disconnected")

    def _refuse(self, session: int, status: Status, detail: str) -> None:
        self._cluster.effects.append(Welcome(session, WelcomeMessage(status, detail), Header(self._cluster.term)))
        self._cluster.effects.append(Close(session, status, detail))

    # --- HELLO -------------------------------------------------------------------------------------------------------

    def hello(self, session: int, header: Header, message: HelloMessage, now_ns: int) -> None:
        """An agent introduces itself."""
        cluster = self._cluster
        peer = self._peers.get(session)
        if peer is None:
            return
        if message.name != peer:
            self._refuse(session, Status.UNAUTHORIZED, f"the certificate says {peer!r}, HELLO says {message.name!r}")
            return
        if not message.roles & (MAPPER | EXPORTER):
            self._refuse(session, Status.BAD_MESSAGE, "an agent is a mapper, an exporter or both")
            return
        if header.sequence > SESSIONS_MAX:
            self._refuse(session, Status.BAD_MESSAGE, f"{header.sequence} is no number of a session")
            return
        if header.term > cluster.term:
            self._refuse(session, Status.STALE_TERM, self._later_term(peer, header.term, now_ns))
            return
        agent = cluster.agents_by_name.get(peer)
        if agent is not None and self._is_a_double(agent, message, now_ns):
            self._refuse(session, Status.BUSY, self._said_of_double(peer, now_ns))
            return
        if agent is None:
            if len(cluster.agents) >= AGENTS_MAX:
                self._refuse(session, Status.LIMIT, f"the cluster has {AGENTS_MAX} agents already")
                return
            agent = Agent(max(cluster.agents, default=0) + 1, peer)
            cluster.add_agent(agent)
        self._replace_session(agent, session, now_ns)
        agent.hello = Hello(session, header, message)
        agent.software = message.software
        self._consider(agent, now_ns)

    def _later_term(self, name: str, term: int, now_ns: int) -> str:
        """An agent says that somebody else reigns. It may be wrong, or lie: the store alone is the judge of that."""
        text = f"agent {name} says that it has served term {term}, ours is {self._cluster.term}"
        self._cluster.log.alarm(now_ns, "term", name, text)
        return text

    def _is_a_double(self, agent: Agent, message: HelloMessage, now_ns: int) -> bool:
        """Another machine bears the name of one that is connected and may have a lease: that one stays."""
        if not agent.admitted or message.instance == agent.instance or now_ns >= agent.lease_until_ns:
            return False
        return not _is_at(agent, message.machine)

    def _said_of_double(self, name: str, now_ns: int) -> str:
        """An alarm until nobody has tried for a while."""
        text = f"agent {name} is connected from another machine already: two have one name and one certificate"
        self._cluster.log.alarm(now_ns, "double", name, text)
        known = self._doubles.get(name)
        self._doubles[name] = now_ns
        if known is None:
            self._cluster.timers.at(now_ns + DOUBLE_NS, lambda now: self._look_for_double(name, now))
        return text

    def _look_for_double(self, name: str, now_ns: int) -> None:
        if now_ns < self._doubles[name] + DOUBLE_NS:
            self._cluster.timers.at(self._doubles[name] + DOUBLE_NS, lambda now: self._look_for_double(name, now))
            return
        del self._doubles[name]
        self._cluster.log.clear(now_ns, "double", name, f"agent {name} is one machine again")

    def _replace_session(self, agent: Agent, session: int, now_ns: int) -> None:
        """The newest connection wins."""
        cluster = self._cluster
        if agent.session:
            cluster.sessions.pop(agent.session, None)
            cluster.effects.append(Close(agent.session, Status.CANCELLED, "a newer session of this agent has begun"))
            self._forget_session(agent, now_ns)
        agent.session = session
        cluster.sessions[session] = agent

    def _consider(self, agent: Agent, now_ns: int) -> None:
        """Admit the HELLO that waits, or say what has to happen first."""
        hello = agent.hello
        if hello is None or agent.admitting or self._cluster.deposed:
            return
        if hello.header.incarnation > agent.incarnation and hello.roles & MAPPER:
            self._unknown_incarnation(agent, hello, now_ns)
            return
        same = hello.instance == agent.instance and agent.standing is not Standing.NONE
        if agent.standing is Standing.ALIVE and same:
            if hello.header.incarnation not in (0, agent.incarnation):
                self._turn_away(agent, Status.STALE_INCARNATION, "this data plane was another incarnation")
                return
            self._welcome(agent, hello, now_ns)
        elif same:
            self._turn_away(agent, Status.STALE_INCARNATION, f"incarnation {agent.incarnation} has been fenced")
        elif agent.standing is Standing.ALIVE:
            self._replaced(agent, hello, now_ns)
            self._cluster.fencing.fence(agent, "a new data plane has started", now_ns)
        elif agent.standing is Standing.FENCING:
            self._replaced(agent, hello, now_ns)
            self._cluster.fencing.proceed(agent, now_ns)
        else:
            self._admit(agent, hello, now_ns)

    def _unknown_incarnation(self, agent: Agent, hello: Hello, now_ns: int) -> None:
        """A lost store admitted it, after the backup that ours is: whoever let it in has to deny it, then it is over.

        The incarnations before it were fenced then, or it would not have been admitted. What is believed of them
        (fenced, drained, an operator's word) says nothing of this one: it may hold any entry.
        """
        cluster = self._cluster
        for allow in [allow for allow in cluster.allows.values() if allow.agent == agent.number]:
            cluster.fencing.denied(allow)
        agent.incarnation, agent.instance, agent.roles = hello.header.incarnation, hello.instance, hello.roles
        agent.machine = hello.machine
        agent.standing = Standing.ALIVE
        agent.vouched = agent.drained = False
        for table in agent.tables.values():
            table.state = TableState.UNKNOWN
            table.holdings.reset(UNKNOWN)
        agent.lease_until_ns = max(agent.lease_until_ns, now_ns + cluster.timing.surely_expired_ns)
        cluster.incarnation_max = max(cluster.incarnation_max, agent.incarnation)
        cluster.bringup.presume_allowed(agent)
        self._turn_away(agent, Status.STALE_INCARNATION, "a store that is lost admitted this incarnation")
        cluster.fencing.fence(agent, "a store that is lost admitted it; ours was restored", now_ns)

    def _turn_away(self, agent: Agent, status: Status, detail: str) -> None:
        session, agent.session, agent.hello = agent.session, 0, None
        self._cluster.sessions.pop(session, None)
        self._refuse(session, status, detail)

    def _replaced(self, agent: Agent, hello: Hello, now_ns: int) -> None:
        """A new instance has taken the place of the one before.

        In the same boot of the same machine that one is over, and what it exported, too. So it is after another boot;
        but images of machines are copied with their names, so its lease has to expire first. On another machine it may
        still run, and no time ends its I/O (design: a lease does not prove that): where nobody else can deny it, which
        is at its own exports, somebody has to say that its machine is off.
        """
        if _is_at(agent, hello.machine):
            agent.replaced = True
            self._restarted_exports(agent, hello, now_ns)
            return

        def passed(now_ns: int) -> None:
            if agent.hello is hello and agent.standing is Standing.FENCING:
                self._restarted_exports(agent, hello, now_ns)
                self._cluster.fencing.proceed(agent, now_ns)

        if _is_rebooted(agent, hello.machine):
            self._cluster.timers.at(max(agent.lease_until_ns, now_ns), passed)

    def _restarted_exports(self, agent: Agent, hello: Hello, now_ns: int) -> None:
        """One process is both data plane and exporter: its new instance has no queue pair of anybody.

        Without this, an agent that is its own exporter could never be fenced: it would have to be admitted first.
        """
        if hello.roles == MAPPER | EXPORTER:
            for allow in self._cluster.fencing.allows_of(agent):
                if allow.exporter == agent.number and self._cluster.bringup.withdraw_allow(allow):
                    self._cluster.fencing.denied(allow)

    def fenced(self, agent: Agent, now_ns: int) -> None:
        """The incarnation before is over."""
        self._consider(agent, now_ns)

    def _admit(self, agent: Agent, hello: Hello, now_ns: int) -> None:
        """A transaction: from its commit on, this instance is the agent's incarnation."""
        cluster = self._cluster
        cluster.incarnation_max += 1
        incarnation = cluster.incarnation_max
        agent.vouched = False
        agent.coming = {
            "roles": hello.roles,
            "instance": hello.instance.hex(),
            "machine": hello.machine.hex(),
            "incarnation": incarnation,
            "standing": Standing.ALIVE.value,
        }

        def admitted(now_ns: int) -> None:
            agent.admitting = agent.replaced = agent.vouched = False
            agent.coming = {}
            agent.roles, agent.instance, agent.incarnation = hello.roles, hello.instance, incarnation
            agent.machine = hello.machine
            agent.standing, agent.epoch = Standing.ALIVE, hello.header.epoch
            agent.detail = ""
            for table in agent.tables.values():
                table.state = TableState.ABSENT
                table.holdings.reset(NOTHING)
            if agent.hello is hello:
                self._welcome(agent, hello, now_ns)
            else:
                agent.lease_until_ns = now_ns
                self._consider(agent, now_ns)

        agent.admitting = True
        cluster.journal.put("agent", str(agent.number), agent.record())
        cluster.journal.then(admitted)

    def _welcome(self, agent: Agent, hello: Hello, now_ns: int) -> None:
        """It is admitted: say so, take over its sequences, and bring it up."""
        cluster, timing = self._cluster, self._cluster.timing
        agent.hello = None
        agent.admitted = True
        agent.granted = False
        agent.exports_known = False
        agent.exports_arriving = {}
        agent.lease_until_ns = max(agent.lease_until_ns, now_ns + timing.surely_expired_ns)
        message = WelcomeMessage(
            Status.OK,
            "",
            cluster.uuid.bytes,
            agent.number,
            timing.lease_ns,
            timing.renew_ns,
            timing.park_limit_ns,
            timing.io_deadline_ns,
        )
        agent.plane_session = hello.header.sequence
        stamps = Header(cluster.term, agent.incarnation, sequence=agent.plane_session)
        cluster.effects.append(Welcome(agent.session, message, stamps))
        cluster.log.clear(now_ns, "term", agent.name, f"agent {agent.name} serves our term")
        if (agent.roles, agent.machine) != (hello.roles, hello.machine):
            agent.roles, agent.machine = hello.roles, hello.machine
            cluster.journal.put("agent", str(agent.number), agent.record())
        cluster.log.add(now_ns, "info", "agent", f"agent {agent.name} is connected, incarnation {agent.incarnation}")
        cluster.changed = True
        self._take_over(agent, hello, now_ns)
        cluster.fencing.returned(agent, now_ns)
        cluster.bringup.exporter_returned(agent, now_ns)
        cluster.bringup.reconcile(agent, now_ns)
        cluster.commands.pump(agent, now_ns)

    def _take_over(self, agent: Agent, hello: Hello, now_ns: int) -> None:
        """The data plane's own word on its epoch and its tables' sequences."""
        cluster = self._cluster
        fresh_epoch = agent.epoch not in (0, hello.header.epoch)
        agent.epoch = hello.header.epoch
        reported = {item.table: item.sequence for item in hello.message.tables}
        for table in list(agent.tables.values()):
            sequence = reported.pop(table.table_id, None)
            if fresh_epoch:
                table.holdings.reset(NOTHING)
            if sequence is None:
                self._missing(table, now_ns)
                continue
            table.sequence = sequence
            table.answers, table.entries = [], array("Q")
            if table.state in (TableState.UNKNOWN, TableState.ABSENT, TableState.CREATING):
                table.state = TableState.CREATED
        for table_id in reported:
            cluster.bringup.delete_stray(agent, table_id, now_ns)

    def _missing(self, table: AgentTable, now_ns: int) -> None:
        """The data plane has no such table, and so no I/O of it."""
        table.state = TableState.ABSENT
        table.holdings.reset(NOTHING)
        table.forget_slots()
        table.presentation.exported = False
        self._cluster.faults.dropped(table)
        self._cluster.commands.end_table(table, now_ns)
        self._cluster.bringup.table_gone(table, now_ns)

    # --- while it is admitted ----------------------------------------------------------------------------------------

    def notice(self, agent: Agent, header: Header, message: Any, now_ns: int) -> None:
        """Everything that is neither HELLO nor a response."""
        if header.term > self._cluster.term:
            text = self._later_term(agent.name, header.term, now_ns)
            self._cluster.effects.append(Close(agent.session, Status.STALE_TERM, text))
            return
        if isinstance(message, Export):
            self._export(agent, message, now_ns)
            return
        if isinstance(message, AgentEvent):
            self._event(agent, message, now_ns)
            return
        if header.term != self._cluster.term or header.incarnation != agent.incarnation:
            return
        if isinstance(message, Refused):
            if header.epoch == agent.stamped_epoch:  # the refused message's: else it is of another session or epoch
                self._refused(agent, message, now_ns)
            return
        if header.epoch > agent.epoch:
            self._epoch(agent, header.epoch, now_ns)
        if header.epoch != agent.epoch:
            return
        if isinstance(message, MapFault):
            self._cluster.faults.receive(agent, plain(message.faults), now_ns)
        elif isinstance(message, LeaseRenew):
            self._renew(agent, message, now_ns)
        elif not isinstance(message, Epoch):
            self._cluster.effects.append(
                Close(agent.session, Status.BAD_MESSAGE, f"{type(message).__name__} is not for a controller")
            )

    def _epoch(self, agent: Agent, epoch: int, now_ns: int) -> None:
        """Its lease had expired: every entry is forgotten [0027]. I/O begun before may still be in flight, so barriers
        are asked for again."""
        agent.epoch = epoch
        agent.granted = False
        for table in agent.tables.values():
            if table.state is not TableState.UNKNOWN:
                table.holdings.reset(NOTHING)
                table.sequence = 0
                table.answers, table.entries = [], array("Q")
        self._cluster.log.add(now_ns, "warning", "lease", f"agent {agent.name} has begun epoch {epoch}")
        self._cluster.commands.epoch_began(agent, now_ns)

    def _renew(self, agent: Agent, message: LeaseRenew, now_ns: int) -> None:
        """Extend the lease, counted by the data plane from `sent_ns`."""
        cluster = self._cluster
        if cluster.commands.late(agent, now_ns):
            cluster.effects.append(Close(agent.session, Status.TIMEOUT, "a command was not answered in time"))
            return
        self._drift.renewed(agent, message.sent_ns, now_ns)
        agent.lease_until_ns = now_ns + cluster.timing.surely_expired_ns
        grant = LeaseGrant(message.sent_ns, cluster.timing.lease_ns)
        cluster.effects.append(Send(agent.session, grant, cluster.header(agent)))
        if not agent.granted:
            agent.granted = True
            cluster.zeroing.consider(now_ns)

    def _refused(self, agent: Agent, message: Refused, now_ns: int) -> None:
        """A notice of ours was not accepted. A refused answer leaves its fault waiting: begin the session anew."""
        if message.status in (Status.STALE_EPOCH, Status.LEASE_EXPIRED):
            return
        self._cluster.log.add(
            now_ns, "warning", "agent", f"agent {agent.name} refused message {message.refused_type}: {message.detail}"
        )
        self._cluster.effects.append(Close(agent.session, Status(message.status), "what it refused is settled anew"))

    def _export(self, agent: Agent, message: Export, now_ns: int) -> None:
        if not agent.exporter or len(agent.exports_arriving) >= 4096:
            return
        if message.name:
            agent.exports_arriving[message.name] = message
        if message.last:
            agent.exports, agent.exports_arriving = agent.exports_arriving, {}
            agent.exports_known = True
            self._cluster.changed = True
            self._cluster.bringup.exports_changed(agent, now_ns)

    def _event(self, agent: Agent, message: AgentEvent, now_ns: int) -> None:
        text = f"agent {agent.name}: {EventKind(message.kind).name.lower().replace('_', ' ')}"
        if message.kind in (EventKind.CONTAINER_LOST, EventKind.CONTAINER_BACK):
            container = self._cluster.containers.get(message.slot)
            text += f" {container.name if container else message.slot}"
        severity = "warning" if message.kind == EventKind.CONTAINER_LOST else "info"
        self._cluster.log.add(now_ns, severity, "agent", f"{text}: {message.detail}" if message.detail else text)
        if message.kind == EventKind.TARGET_RESTARTED:
            self._cluster.bringup.exporter_returned(agent, now_ns)

    def depose(self, why: str, now_ns: int) -> None:
        """Somebody else reigns: nothing is granted or answered from here on."""
        cluster = self._cluster
        if not cluster.deposed:
            cluster.deposed = True
            cluster.log.add(now_ns, "alarm", "leadership", f"this controller is deposed: {why}")
            cluster.effects.append(Depose(why))


def _is_at(agent: Agent, machine: bytes) -> bool:
    """Whether this is the machine, and the boot, in which the agent's present incarnation runs."""
    return any(machine) and machine == agent.machine


def _is_rebooted(agent: Agent, machine: bytes) -> bool:
    """Whether this is another boot of the machine in which the agent's present incarnation began (HELLO.machine)."""
    known = machine[:MACHINE_BYTES]
    return any(known) and known == agent.machine[:MACHINE_BYTES] and machine != agent.machine
