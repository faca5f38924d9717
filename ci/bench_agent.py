"""What the daemon adds to a fault and to its answer: both sessions and the core, on one core, without sockets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import monotonic_ns, process_time

from agent.config import MAPPER, AgentConfig
from agent.core import Agent, Phase
from agent.core import effects as e
from channel.events import NoticeReceived, RequestReceived, ResponseReceived
from channel.handshake import Role
from channel.messages import ROW_OF, Admit, DataPlaneHello, Done, FaultAnswer, Hello, MapFault, TablesRead, Welcome
from channel.session import Session
from channel.values import AnswerRecord, FaultRecord, Header
from mapping.status import Status
from spdk_rpc.exports import NvmeTcpFrontEnd

TITLE = "the agent daemon as a relay, us of processor time per message"
GOALS = {"fault_us": ("<=", 15), "answer_us": ("<=", 15)}
MESSAGES = 5000
RUNS = 5
TABLE = 1 << 32 | 1
STANDING = Header(5, 7, 1)
SECOND = 1_000_000_000


class Relay:
    """Both sessions of a daemon, open, with the core between them; `plane` and `controller` are the far ends."""

    def __init__(self) -> None:
        there = Path("/")
        config = AgentConfig("a", frozenset({MAPPER}), (("localhost", 1),), there, there, there, there)
        self.core = Agent(config, NvmeTcpFrontEnd("127.0.0.1", 1))
        self.plane, self.down = Session(Role.DATA_PLANE), Session(Role.DAEMON)
        self.controller, self.up = Session(Role.CONTROLLER), Session(Role.AGENT)
        self._open_sessions()
        self._open_core()

    def _open_sessions(self) -> None:
        self.plane.send(DataPlaneHello(1, 1, bytes(16), "bench"))
        _move(self.plane, self.down)
        self.up.send(Hello(1, 1, 1, bytes(16), "a", "bench"))
        _move(self.up, self.controller)
        (hello,) = self.controller.events()
        assert isinstance(hello, RequestReceived)
        self.controller.respond(hello, Welcome(cluster=bytes(16)), Header(5, 7))
        _move(self.controller, self.up)
        for session in (self.down, self.up):
            list(session.events())

    def _open_core(self) -> None:
        welcome = Welcome(Status.OK, "", bytes(16), 1, 10 * SECOND, 3 * SECOND, SECOND, SECOND)
        self._step(e.Started())
        self._step(e.TargetStarted(bytes(16), False))
        self._step(e.DataPlaneUp(bytes(16), Header(0, 0, 1)))
        self._step(e.SessionUp())
        self._step(e.Welcomed(welcome, Header(5, 7)))
        assert self.core.phase is Phase.OPEN

    def _step(self, event: e.Event) -> None:
        for effect in self.core.step(event, monotonic_ns()):
            if isinstance(effect, e.CallTarget):
                self._step(e.CallDone(effect.token))
            elif isinstance(effect, e.SendDataPlane):
                answer = Done() if isinstance(effect.message, Admit) else TablesRead()
                kind = ROW_OF[type(effect.message)].kind
                self._step(e.FromDataPlane(ResponseReceived(STANDING, kind, answer, b"", effect.token)))

    def carry(
        self, frames: list[bytes], near: Session, far: Session, wrap: Callable[[NoticeReceived], e.Event]
    ) -> float:
        """Frames in at one session, out at the other; us each."""
        began = process_time()
        for frame in frames:
            near.receive_data(frame)
            for received in near.events():
                assert isinstance(received, NoticeReceived)
                for effect in self.core.step(wrap(received), monotonic_ns()):
                    assert isinstance(effect, e.RelayController | e.RelayDataPlane)
                    far.relay(effect.received)
            far.data_to_send()
        return (process_time() - began) / len(frames) * 1e6


def _move(source: Session, sink: Session) -> None:
    for data in source.data_to_send():
        sink.receive_data(data)


def run() -> dict[str, float]:
    """Medians of RUNS, us."""
    relay = Relay()
    faults: list[float] = []
    answers: list[float] = []
    for _ in range(RUNS):
        for number in range(MESSAGES):
            fault = FaultRecord(number + 1, TABLE, number, 0, 1, 1, 2, 0, 8)
            relay.plane.send(MapFault([fault]), STANDING)
            answer = AnswerRecord(number + 1, number, 1, 0, 0)
            relay.controller.send(FaultAnswer([answer], [1]), STANDING._replace(table=TABLE, sequence=number))
        up, down = relay.plane.data_to_send(), relay.controller.data_to_send()
        faults.append(relay.carry(up, relay.down, relay.up, e.FromDataPlane))
        answers.append(relay.carry(down, relay.up, relay.down, e.FromController))
    return {"fault_us": median(faults), "answer_us": median(answers)}
