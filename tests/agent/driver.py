"""Drives an agent's core by hand: events in, effects noted, calls answered by a PretendTarget, time under control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.config import AgentConfig, ContainerConfig
from agent.core import Agent, Phase
from agent.core import effects as e
from channel.events import NoticeReceived, RequestReceived, ResponseReceived
from channel.messages import (
    ROW_OF,
    Admit,
    Attached,
    BindSlot,
    Done,
    Message,
    Response,
    TableSlots,
    TablesRead,
    TableStatus,
    UnbindSlot,
    Welcome,
)
from channel.values import Header, MessageType
from mapping.plane import numbered
from mapping.status import Status
from spdk_rpc.exports import NvmeTcpFrontEnd
from tests.spdk_rpc.pretend_target import PretendTarget

SECOND = 1_000_000_000
INSTANCE = b"i" * 16
CLUSTER = b"c" * 16
FRONT_END = NvmeTcpFrontEnd("127.0.0.1", 61234)
LISTENER = FRONT_END.address
MACHINE = b"the machine, up."


def config(*roles: str, containers: tuple[ContainerConfig, ...] = (), **more: Any) -> AgentConfig:
    there = Path("/nowhere")
    return AgentConfig(
        "a", frozenset(roles), (("127.0.0.1", 1),), there, there, there, there, containers=containers, **more
    )


class Driver:
    """`plane_answers` False: requests of ours to the data plane stay in `asked` until a test answers them."""

    def __init__(self, settings: AgentConfig | None = None) -> None:
        self.core = Agent(settings or config("mapper"), FRONT_END, MACHINE)
        self.target = PretendTarget()
        self.now = 1_000 * SECOND
        self.effects: list[e.Effect] = []
        self.held: list[e.CallTarget] = []
        self.asked: list[e.SendDataPlane] = []
        self.hold_calls = False
        self.disk_full = False
        self.plane_answers = True
        self.plane_header = Header(0, 0, 1)
        self.plane_session = 0
        self.plane_tables: list[tuple[int, int]] = []
        self.plane_statuses: dict[type, Status] = {}
        self.request_ids = 0

    # --- events ------------------------------------------------------------------------------------------------------

    def step(self, event: e.Event) -> list[e.Effect]:
        """What follows; calls and requests to the data plane are answered at once unless they are held."""
        pending, made = [event], []
        while pending:
            for effect in self.core.step(pending.pop(0), self.now):
                made.append(effect)
                if isinstance(effect, e.CallTarget):
                    if self.hold_calls:
                        self.held.append(effect)
                    else:
                        pending.append(self.done(effect))
                elif isinstance(effect, e.CreateFile):
                    pending.append(self.file_done(effect))
                elif isinstance(effect, e.SendDataPlane):
                    if self.plane_answers:
                        pending.append(self.plane_answer(effect))
                    else:
                        self.asked.append(effect)
        self.effects += made
        return made

    def done(self, effect: e.CallTarget) -> e.CallDone:
        value, failure = self.target.done(effect.call)
        return e.CallDone(effect.token, value, failure)

    def file_done(self, effect: e.CreateFile) -> e.CallDone:
        if self.disk_full:
            return e.CallDone(effect.token, None, OSError(28, "No space left on device"))
        self.target.files.setdefault(effect.path, effect.size_bytes)
        return e.CallDone(effect.token)

    def finish_calls(self) -> list[e.Effect]:
        """Answer what was held, and what follows from it."""
        made: list[e.Effect] = []
        while self.held:
            made += self.step(self.done(self.held.pop(0)))
        return made

    def plane_answer(self, effect: e.SendDataPlane) -> e.FromDataPlane:
        message = effect.message
        status = self.plane_statuses.get(type(message), Status.OK)
        detail = "" if status is Status.OK else "because"
        response: Response = Done(status, detail)
        if isinstance(message, TableStatus):
            response = TablesRead(status, detail, self.plane_tables)
        elif isinstance(message, BindSlot):
            response = Attached(status, detail, 100, 512, True) if not status else Attached(status, detail)
        else:
            assert isinstance(message, Admit | TableSlots | UnbindSlot)
        if isinstance(message, Admit) and not status:
            self.plane_header = effect.header._replace(epoch=self.plane_header.epoch, sequence=0)
        kind, header = ROW_OF[type(message)].kind, self.plane_header
        if isinstance(message, TableStatus) and effect.header.sequence:
            header = header._replace(epoch=numbered(header.epoch, self.plane_session))
        return e.FromDataPlane(ResponseReceived(header, kind, response, b"", effect.token))

    def advance(self, seconds: float) -> list[e.Effect]:
        """Let time pass, with a tick at each deadline."""
        end = self.now + int(seconds * SECOND)
        made: list[e.Effect] = []
        for _ in range(10_000):
            deadline = self.core.next_deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            made += self.step(e.Tick())
        else:
            raise AssertionError(f"the deadline {self.core.next_deadline()} does not move on")
        self.now = end
        return made

    # --- the way up --------------------------------------------------------------------------------------------------

    def start(self) -> list[e.Effect]:
        made = self.step(e.Started())
        return made + self.step(e.TargetStarted(b"t" * 16, False))

    def plane_up(self, instance: bytes = INSTANCE) -> list[e.Effect]:
        return self.step(e.DataPlaneUp(instance, self.plane_header))

    def welcome(self, term: int = 5, incarnation: int = 7, session: int = 0) -> list[e.Effect]:
        body = Welcome(Status.OK, "", CLUSTER, 1, 10 * SECOND, 3 * SECOND, 30 * SECOND, 20 * SECOND)
        return self.step(e.Welcomed(body, Header(term, incarnation, sequence=session)))

    def open(self) -> Driver:
        """All the way to an open session."""
        self.start()
        if self.core.config.maps:
            self.plane_up()
        self.step(e.SessionUp())
        self.welcome()
        assert self.core.phase is Phase.OPEN
        self.effects.clear()
        return self

    # --- messages ----------------------------------------------------------------------------------------------------

    def request(self, message: Message, table: int = 0, **header: Any) -> RequestReceived:
        self.request_ids += 1
        stamps = Header(5, 7, 1, table, request_id=self.request_ids, **header)
        return RequestReceived(stamps, ROW_OF[type(message)].kind, message, b"frame")

    def command(self, message: Message, table: int = 0) -> list[e.Effect]:
        return self.step(e.FromController(self.request(message, table)))

    def responses(self, made: list[e.Effect]) -> list[Response]:
        return [effect.response for effect in made if isinstance(effect, e.RespondController)]

    def response_to(self, message: Message, table: int = 0) -> Any:
        """The one response to a command, time passing as needed."""
        found = self.responses(self.command(message, table) + self.advance(30))
        assert len(found) == 1, found
        return found[0]


STANDING = Header(5, 7, 1)


def notice(message: Message, header: Header = STANDING) -> NoticeReceived:
    return NoticeReceived(header, ROW_OF[type(message)].kind, message, b"frame")


def of(kind: type, made: list[e.Effect]) -> list[Any]:
    return [effect for effect in made if isinstance(effect, kind)]


def sent(kind: type, made: list[e.Effect]) -> list[Any]:
    """Messages of that class that went to the controller."""
    return [effect.message for effect in of(e.SendController, made) if isinstance(effect.message, kind)]


__all__ = ["INSTANCE", "LISTENER", "MACHINE", "SECOND", "Driver", "MessageType", "config", "notice", "of", "sent"]
