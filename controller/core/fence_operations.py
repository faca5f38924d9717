"""What operators order about an agent that is to end: fence, drain, undrain, confirm-dead, remove (design: 7, 8).

Each says what it knows, container by container, and what it waits for; asked again it says how far it has come. Who
says that a machine is off has to give its name twice, and may say it only of what cannot be asked: what is taken on
their word is in the answer, in the events and in the audit log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from controller.config import SECOND_NS
from controller.core.agents import Agent, Standing
from controller.core.cluster import Allow, Cluster
from controller.core.refusals import Refusal
from controller.core.reports import Reports


class Request(Protocol):
    """One asked operation."""

    @property
    def args(self) -> dict[str, Any]: ...


class Desk(Protocol):
    """Who remembers requests, replies to them, and waits."""

    def agent(self, name: str) -> Agent: ...
    def accept(self, request: Any) -> None: ...
    def reply(self, request: Any, result: dict[str, Any]) -> None: ...
    def wait(
        self,
        met: Callable[[], bool],
        done: Callable[[int], None],
        late: Callable[[int], None],
        now_ns: int,
        limit_ns: int | None = None,
    ) -> None: ...


class FenceOperations:
    """Carries them out."""

    def __init__(self, cluster: Cluster, reports: Reports, desk: Desk) -> None:
        self._cluster = cluster
        self._reports = reports
        self._desk = desk

    def _finish(self, request: Request, agent: Agent, over: Callable[[], bool], now_ns: int, **more: Any) -> None:
        """Reply once it is over, or with how far it is at the limit."""
        incarnation, limit_ns = agent.incarnation, request.args["wait_s"] * SECOND_NS

        def finish(now_ns: int) -> None:
            row = self._reports.fence(agent, now_ns)
            done = over() or agent.incarnation != incarnation
            result = {"agent": agent.name, "done": done, **row, "incarnation": incarnation, **more}
            if agent.incarnation != incarnation:
                result["state"] = Standing.FENCED.value
            self._desk.reply(request, result)

        def met() -> bool:
            return over() or agent.incarnation != incarnation

        self._cluster.journal.then(lambda now: self._desk.wait(met, finish, finish, now, limit_ns))

    def fence(self, request: Request, now_ns: int) -> None:
        """End the incarnation."""
        agent = self._desk.agent(request.args["agent"])
        if agent.standing is Standing.NONE:
            raise Refusal("not_found", f"agent {agent.name} has never been admitted")
        if not agent.mapper:
            text = f"agent {agent.name} is a container host only: it does no I/O that could be fenced"
            hint = f"if its machine is off for good, `segmap agent confirm-dead {agent.name}` ends what waits for it"
            raise Refusal("bad_argument", text, hint)
        self._desk.accept(request)
        self._cluster.fencing.fence(agent, "an operator ordered it", now_ns)
        self._finish(request, agent, lambda: agent.standing is Standing.FENCED, now_ns)

    def drain(self, request: Request, now_ns: int) -> None:
        """Take everything away from it, by answered blocking commands."""
        agent = self._mapper(request)
        self._desk.accept(request)
        self._cluster.draining.begin(agent, now_ns)
        self._finish(request, agent, lambda: agent.holds_nothing, now_ns)

    def undrain(self, request: Request, now_ns: int) -> None:
        """Let it hold again what is wanted of it."""
        agent = self._mapper(request)
        self._desk.accept(request)
        self._cluster.draining.end(agent, now_ns)
        self._finish(request, agent, lambda: not agent.draining, now_ns)

    def _mapper(self, request: Request) -> Agent:
        agent = self._desk.agent(request.args["agent"])
        if not agent.mapper:
            text = f"agent {agent.name} is a container host only: it has no tables that could be taken away"
            raise Refusal("bad_argument", text, "containers cannot be moved to other hosts yet")
        return agent

    def confirm_dead(self, request: Request, now_ns: int) -> None:
        """Believe that its machine is off."""
        agent = self._desk.agent(request.args["agent"])
        if request.args["confirm"] != agent.name:
            hint = "confirm repeats the agent's name: if its machine still runs, data will be lost"
            raise Refusal("bad_argument", f"nobody has confirmed that the machine of {agent.name} is off", hint)
        if agent.admitted:
            hint = f"`segmap agent fence {agent.name}`" if agent.mapper else ""
            raise Refusal("busy", f"agent {agent.name} is connected: it is not dead", hint)
        assumed = self._assumed(agent)
        if not agent.vouched and not assumed and not (agent.exporter and agent.standing is not Standing.NONE):
            raise Refusal("refused", f"nothing of agent {agent.name} has to be believed: {self._why(agent)}")
        self._desk.accept(request)
        if not agent.vouched:
            self._cluster.fencing.vouch(agent, now_ns)
        self._finish(request, agent, lambda: agent.over if agent.mapper else agent.vouched, now_ns, assumed=assumed)

    def remove(self, request: Request, now_ns: int) -> None:
        """Forget an agent of which nothing is left. Its certificate, if it is good, makes it a new one."""
        cluster, agent = self._cluster, self._desk.agent(request.args["agent"])
        reason, hint = self._kept_by(agent)
        if reason:
            raise Refusal("busy", f"agent {agent.name} {reason}", hint)
        self._desk.accept(request)
        cluster.journal.delete("agent", str(agent.number))
        cluster.journal.put("counter", "incarnation", cluster.incarnation_max)  # none of its own is used again

        cluster.forget_agent(agent)  # now: who connects under its name meanwhile is a new one, with a record of its own

        def forgotten(now_ns: int) -> None:
            cluster.log.add(now_ns, "info", "agent", f"agent {agent.name} is removed")
            self._desk.reply(request, {"agent": agent.name})

        cluster.journal.then(forgotten)

    def _kept_by(self, agent: Agent) -> tuple[str, str]:
        """Why it cannot be forgotten, and what would help; empty texts: it can."""
        cluster, name = self._cluster, agent.name
        exported = [one.name for one in cluster.containers.values() if one.exporter == agent.number]
        owed = [one for one in cluster.allows.values() if agent.number in (one.agent, one.exporter)]
        if agent.session:
            return "is connected", "stop it, and revoke its certificate"
        if agent.tables or any(agent.number in vdisk.presentations for vdisk in cluster.vdisks.values()):
            return "has vdisks presented", "`segmap vdisk withdraw` takes them away"
        if exported:
            return f"exports container {exported[0]}", "containers cannot be moved to other hosts yet"
        if agent.mapper and agent.standing in (Standing.ALIVE, Standing.FENCING):
            return "is not fenced", f"`segmap agent fence {name} --wait`"
        if owed or cluster.zeroing.owns_jobs(agent):
            return "is still in the list of a container host", f"`segmap agent show {name}` says which"
        return "", ""

    def _why(self, agent: Agent) -> str:
        if agent.over:
            return "it is fenced"
        return f"every container host concerned is connected; `segmap agent fence {agent.name}` asks them"

    def _assumed(self, agent: Agent) -> list[str]:
        """What follows from the operator's word alone."""
        fencing, agents = self._cluster.fencing, self._cluster.agents
        texts = [
            f"agent {agent.name} incarnation {allow.incarnation} does nothing to container {self._name(allow)} any "
            f"more; container host {agents[allow.exporter].name} was not asked"
            for allow in fencing.unaskable(agent)
        ]
        if agent.exporter:
            texts += [
                f"container host {agent.name} carries out nothing more of agent {agents[allow.agent].name} "
                f"incarnation {allow.incarnation} on container {self._name(allow)}"
                for allow in fencing.let_in_by(agent)
                if allow.agent != agent.number
            ]
        return texts

    def _name(self, allow: Allow) -> str:
        container = self._cluster.containers.get(allow.slot)
        return container.name if container is not None else allow.subnqn
