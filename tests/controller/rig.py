"""A controller core on a memory store, driven by hand: what it wants is collected, what it waits for is given.

`auto` agents answer every command with OK at once; the others' commands wait in `asked`. Commits happen at once unless
`hold_commits` is set. The clock only moves by `advance`.
"""

from __future__ import annotations

from array import array
from typing import Any
from uuid import UUID

from channel import messages as m
from channel.codec import encode
from channel.values import FaultRecord, Header, TableSequence
from controller.config import SECOND_NS, Limits, Timing
from controller.core import effects as fx
from controller.core.machine import Controller
from controller.store.audit import Finding
from controller.store.memory import MemoryDisk, MemoryStore
from mapping.entry import ZERO_ENTRY
from mapping.rules import FaultKind, Operation
from mapping.status import Status

SEGMENT_SIZE = 1 << 20


class RigAgent:
    """One end of a session, with what came over it."""

    def __init__(self, rig: Rig, name: str, roles: int, instance: bytes) -> None:
        self.rig = rig
        self.name = name
        self.roles = roles
        self.instance = instance
        self.machine = name.encode().rjust(16, b"m")
        self.session = 0
        self.incarnation = 0
        self.epoch = 1
        self.auto = True
        self.refusing: dict[type, Status] = {}
        self.welcome: Any = None
        self.asked: list[tuple[int, Header, Any]] = []
        self.commands: list[Any] = []
        self.answers: list[tuple[Header, Any]] = []
        self.grants: list[Any] = []
        self.closed: fx.Close | None = None
        self.fault_id = 0
        self.holds: dict[int, int] = {}
        self.otherwise = ZERO_ENTRY

    @property
    def number(self) -> int:
        return self.rig.core.cluster.agents_by_name[self.name].number

    def table(self, vdisk: int = 1) -> int:
        return vdisk << 32 | self.number

    def hello(self, tables: list[tuple[int, int]] | None = None, **header: int) -> None:
        """Connect anew."""
        self.rig.sessions += 1
        self.session = self.rig.sessions
        self.rig.ends[self.session] = self
        self.welcome, self.closed = None, None
        self.asked.clear()
        self.rig.step(fx.SessionOpened(self.session, self.name))
        stamps = Header(**{"incarnation": self.incarnation, "epoch": self.epoch, **header})
        reported = [TableSequence(*item) for item in tables or []]
        message = m.Hello(1, 1, self.roles, self.instance, self.name, "rig", reported, self.machine)
        self.rig.step(fx.MessageReceived(self.session, stamps, message))

    def drop(self) -> None:
        """The connection ends."""
        session, self.session = self.session, 0
        self.rig.ends.pop(session, None)
        self.rig.step(fx.SessionEnded(session))

    def say(self, message: Any, **header: int) -> None:
        """Send a notice."""
        stamps = {"term": self.rig.core.term, "incarnation": self.incarnation, "epoch": self.epoch, **header}
        self.rig.step(fx.MessageReceived(self.session, Header(**stamps), message))

    def fault(
        self,
        segment: int,
        kind: FaultKind = FaultKind.WRITE,
        entry: int = ZERO_ENTRY,
        *,
        operation: Operation = Operation.WRITE,
        vdisk: int = 1,
        length: int = 8,
        **header: int,
    ) -> int:
        """One MAP_FAULT; its id."""
        self.fault_id += 1
        record = FaultRecord(self.fault_id, self.table(vdisk), segment, entry, int(operation), int(kind), 0, 0, length)
        self.say(m.MapFault([record]), **header)
        return self.fault_id

    def respond(self, response: Any | None = None, which: type | None = None) -> Any:
        """Answer the oldest waiting command (of a type); returns the command."""
        for index, (attempt, _, message) in enumerate(self.asked):
            if which is None or type(message) is which:
                del self.asked[index]
                self.rig.step(fx.ResponseReceived(self.session, attempt, response or self.reply(message)))
                return message
        raise AssertionError(f"{self.name} was not asked for {which}")

    def reply(self, message: Any) -> Any:
        status = self.refusing.get(type(message), Status.OK)
        if isinstance(message, m.AttachContainer):
            return m.Attached(status, "", message.segment_count, 512, False)
        if isinstance(message, m.Present):
            return m.Presented(status, "", "127.0.0.1", "4420", "TCP")
        if isinstance(message, m.GetEntries):
            held = [self.holds.get(message.start + index, self.otherwise) for index in range(message.count)]
            return m.EntriesRead(status, "", array("Q", held))
        if isinstance(message, m.GetParked):
            return m.ParkedRead(status, "", [])
        return m.Done(status, "")

    def took(self, header: Header, message: Any, attempt: int) -> None:
        if isinstance(message, m.LeaseGrant):
            self.grants.append(message)
        elif isinstance(message, m.FaultAnswer):
            self.answers.append((header, message))
        else:
            self.commands.append(message)
            self.asked.append((attempt, header, message))

    def last_answer(self) -> tuple[tuple[int, int, int, int, int], list[int]]:
        """The newest answer message's last answer, with its entries."""
        _, message = self.answers[-1]
        answer = message.answers[-1]
        return tuple(answer), list(message.entries)[len(message.entries) - answer[2] :]

    def ordered(self, kind: type) -> list[Any]:
        """Commands of a type that have come, answered or not."""
        return [message for message in self.commands if type(message) is kind]


class Rig:
    """The core, its store, and the agents."""

    def __init__(self, timing: Timing | None = None, limits: Limits | None = None) -> None:
        self.timing = timing or Timing()
        self.limits = limits or Limits(zeroed_pool_segments=0, read_ahead_segments=8, allocate_ahead_segments=4)
        self.disk = MemoryDisk(cluster=UUID(int=7))
        self.now_ns = 10**15
        self.ids = 100
        self.sessions = 0
        self.ends: dict[int, RigAgent] = {}
        self.agents: dict[str, RigAgent] = {}
        self.hold_commits = False
        self.damage: tuple[Finding, ...] = ()
        self.held: list[fx.Persist] = []
        self.replies: dict[int, Any] = {}
        self.logs: list[fx.Log] = []
        self.deposed = ""
        self.tokens = 0
        self._busy = False
        self._events: list[fx.Event] = []
        self.open()

    def open(self) -> None:
        self.store = MemoryStore.open(self.disk)
        self.store.new_term()
        self.core = Controller(self.store.load(), self.timing, self.limits, self._uuid, self.now_ns)
        self.step(fx.TimePassed())

    def restart(self) -> None:
        """Crash: what was not committed is gone; all sessions end."""
        self.store.close()
        self.disk.crash()
        self.held.clear()
        self.ends.clear()
        for agent in self.agents.values():
            agent.session = 0
            agent.asked.clear()
        self.open()

    def _uuid(self) -> UUID:
        self.ids += 1
        return UUID(int=self.ids)

    # --- stepping ----------------------------------------------------------------------------------------------------

    def step(self, event: fx.Event) -> None:
        """Step, and whatever follows from it at once."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        while self._events:
            for effect in self.core.step(self._events.pop(0), self.now_ns):
                self._execute(effect)
        self._busy = False

    def _execute(self, effect: fx.Effect) -> None:
        if isinstance(effect, fx.Persist):
            self.held.append(effect)
            if not self.hold_commits:
                self.commit()
        elif isinstance(effect, fx.Send):
            self._send(effect)
        elif isinstance(effect, fx.Welcome):
            agent = self.ends.get(effect.session)
            if agent is not None:
                agent.welcome = effect.message
                agent.incarnation = effect.header.incarnation or agent.incarnation
        elif isinstance(effect, fx.Close):
            agent = self.ends.pop(effect.session, None)
            if agent is not None:
                agent.closed = effect
                agent.session = 0 if agent.session == effect.session else agent.session
                self._events.append(fx.SessionEnded(effect.session))
        elif isinstance(effect, fx.Reply):
            self.replies[effect.token] = effect.result
        elif isinstance(effect, fx.RefuseOperation):
            self.replies[effect.token] = effect
        elif isinstance(effect, fx.ReadStore):
            state = None if self.damage else self.store.load()
            self._events.append(fx.StoreWasRead(effect.token, state, self.damage))
        elif isinstance(effect, fx.Depose):
            self.deposed = effect.reason
        elif isinstance(effect, fx.Log):
            self.logs.append(effect)

    def _send(self, effect: fx.Send) -> None:
        encode(effect.message, effect.header._replace(request_id=effect.attempt))
        agent = self.ends.get(effect.session)
        if agent is None:
            return
        agent.took(effect.header, effect.message, effect.attempt)
        if agent.auto and effect.attempt:
            attempt, _, message = agent.asked.pop()
            self._events.append(fx.ResponseReceived(effect.session, attempt, agent.reply(message)))

    def commit(self) -> None:
        """Commit everything held."""
        held, self.held = self.held, []
        for effect in held:
            self.store.commit([effect.batch], self.store.term)
            self.step(fx.BatchCommitted(effect.token))

    def advance(self, seconds: float) -> None:
        """Let time pass, firing every deadline on the way at its time."""
        end = self.now_ns + int(seconds * SECOND_NS)
        while True:
            deadline = self.core.next_deadline()
            if deadline is None or deadline > end:
                break
            self.now_ns = max(self.now_ns, deadline)
            self.step(fx.TimePassed())
        self.now_ns = end
        self.step(fx.TimePassed())

    # --- set-up ------------------------------------------------------------------------------------------------------

    def agent(self, name: str, roles: int = 1, instance: bytes = b"") -> RigAgent:
        """A connected agent."""
        agent = self.agents[name] = RigAgent(self, name, roles, instance or name.encode().ljust(16, b"."))
        agent.hello()
        return agent

    def exporter(self, name: str = "store", exports: dict[str, int] | None = None) -> RigAgent:
        """A connected exporter of containers: segments by name."""
        agent = self.agent(name, 2)
        self.announce(agent, exports or {"disk": 1024})
        return agent

    def announce(self, agent: RigAgent, exports: dict[str, int]) -> None:
        for index, (name, segments) in enumerate(exports.items()):
            nqn = f"nqn.2026-11.io.segmap:container:{name}"
            blocks = segments * SEGMENT_SIZE // 512
            last = index == len(exports) - 1
            agent.say(m.Export(1, 512, blocks, bytes(16), last, name, "127.0.0.1", "4420", "TCP", nqn))

    def ask(self, operation: str, request_id: str = "", **args: Any) -> Any:
        """Ask; the result, the refusal, or None while it is not answered (see `replies[tokens]`)."""
        self.tokens += 1
        self.step(fx.OperationRequested(self.tokens, operation, args, request_id))
        return self.replies.get(self.tokens)

    def disk_at(self, *mappers: str, segments: int = 1024, contents: str = "zeroed", size: int = 256) -> list[RigAgent]:
        """A cluster with one container and one vdisk `v` of `size` segments, presented at these mappers."""
        self.exporter(exports={"disk": segments})
        agents = [self.agent(name) for name in mappers]
        for agent in agents:
            agent.say(m.LeaseRenew(1))
        assert self.ask("container.add", name="c", agent="store", export="disk", contents=contents)["state"] == "ready"
        self.ask("vdisk.create", name="v", size_bytes=size * SEGMENT_SIZE)
        shown = self.ask("vdisk.present", name="v", agents=list(mappers), any_host=True)
        assert [item["state"] for item in shown["presentations"]] == ["presented"] * len(mappers)
        return agents

    @property
    def vdisk(self) -> Any:
        return self.core.cluster.vdisks[1]
