"""Commands to agents: in order, a bounded number at a time, each answered once whatever happens on the way [0034].

A command outlives the session: unanswered ones are sent again, with new sequences, when the incarnation is back, and
those that bear an epoch when a new one begins. When the incarnation is over, they end without a response.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from channel.values import Header
from controller.core.agents import Agent, AgentTable, Command
from controller.core.cluster import Cluster
from controller.core.effects import Close, Send
from mapping.status import Status

RESYNCHRONISE: Final = frozenset(
    (Status.SEQUENCE_OLD, Status.SEQUENCE_GAP, Status.NOT_ADMITTED, Status.STALE_INCARNATION)
)
"""Refusals that mean: we and the data plane disagree on where we are. A new session settles it."""


class Commands:
    """Sends, re-sends and matches. Attempts are numbered once for the whole reign."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._attempts = 0

    def order(
        self,
        agent: Agent,
        build: Callable[[], Any],
        done: Callable[[int, Any, int], None],
        now_ns: int,
        *,
        table: AgentTable | None = None,
        stamped: bool = False,
        exporting: bool = False,
        once: bool = False,
    ) -> Command:
        """Queue a command. `table`: its messages are in that table's sequence, and blocking. `stamped`: bears the
        epoch. `exporting`: belongs to the exporter, not to its incarnation."""
        command = Command(agent, build, done, table=table, stamped=stamped, exporting=exporting, once=once)
        agent.queue.append(command)
        self.pump(agent, now_ns)
        return command

    def recall(self, command: Command) -> bool:
        """Give up a command that is not on its way; False if it is."""
        if command not in command.agent.queue:
            return False
        command.agent.queue.remove(command)
        return True

    def pump(self, agent: Agent, now_ns: int) -> None:
        """Send what may be sent."""
        limit = self._cluster.limits.commands_in_flight
        while agent.admitted and agent.queue and len(agent.sent) < limit:
            self._send(agent.queue.popleft(), now_ns)

    def _send(self, command: Command, now_ns: int) -> None:
        agent = command.agent
        cluster = self._cluster
        self._attempts += 1
        command.attempt = self._attempts
        command.sent_ns = now_ns
        command.sent_epoch = agent.epoch
        agent.sent[command.attempt] = command
        message, table_id, blocking = command.build()
        sequence = 0
        if command.table is not None:
            cluster.flush(command.table)
            command.table.sequence += 1
            sequence = command.table.sequence
        header = Header(cluster.term, agent.incarnation, agent.stamped_epoch, table_id, sequence, blocking=blocking)
        cluster.effects.append(Send(agent.session, message, header, command.attempt))

    def responded(self, agent: Agent, attempt: int, response: Any, now_ns: int) -> None:
        """A response came. Those of attempts that were given up are ignored."""
        command = agent.sent.get(attempt)
        if command is None:
            return
        status = response.status
        bears_epoch = command.stamped or command.table is not None
        if not command.once and bears_epoch and status == Status.STALE_EPOCH:
            return  # the EPOCH message that explains it is on its way, and sends the command again
        if not command.once and status in RESYNCHRONISE:
            self._cluster.effects.append(
                Close(agent.session, Status(status), f"refused {type(response).__name__}: {response.detail}")
            )
            return
        del agent.sent[attempt]
        command.done(status, response, now_ns)
        self.pump(agent, now_ns)

    def session_ended(self, agent: Agent, now_ns: int) -> None:
        """Everything sent goes back to the queue's front, in order; what may go out only once ends."""
        self._take_back(agent, lambda command: True, now_ns)

    def epoch_began(self, agent: Agent, now_ns: int) -> None:
        """Send again what bore the old epoch."""
        self._take_back(agent, lambda c: (c.stamped or c.table is not None) and not c.once, now_ns)
        self.pump(agent, now_ns)

    def _take_back(self, agent: Agent, chosen: Callable[[Command], bool], now_ns: int) -> None:
        taken = [command for command in agent.sent.values() if chosen(command)]
        for command in taken:
            del agent.sent[command.attempt]
        agent.queue.extendleft(command for command in reversed(taken) if not command.once)
        for command in taken:
            if command.once:
                command.done(Status.CANCELLED, None, now_ns)

    def incarnation_over(self, agent: Agent, now_ns: int) -> None:
        """It is fenced: what it was told, and whatever it did of it, has ended. Exporting goes on."""
        commands = [*agent.sent.values(), *agent.queue]
        agent.sent.clear()
        agent.queue.clear()
        agent.queue.extend(command for command in commands if command.exporting)
        for command in commands:
            if not command.exporting:
                command.done(Status.STALE_INCARNATION, None, now_ns)

    def end_table(self, table: AgentTable, now_ns: int) -> None:
        """The table is gone: what was to change its entries has nothing left to change."""
        agent = table.agent
        ended = [command for command in (*agent.sent.values(), *agent.queue) if command.table is table]
        for command in ended:
            agent.sent.pop(command.attempt, None)
        agent.queue = type(agent.queue)(command for command in agent.queue if command.table is not table)
        for command in ended:
            command.done(Status.NO_TABLE, None, now_ns)

    def late(self, agent: Agent, now_ns: int) -> bool:
        """True if a command has been unanswered for too long on this session."""
        oldest = min((command.sent_ns for command in agent.sent.values()), default=now_ns)
        return now_ns - oldest >= self._cluster.timing.command_ns
