"""Simulated connections between agent daemons and the controller.

Each direction delivers in order, every message after a delay of its own (TCP). One direction may be held, or both: what
is sent waits, and arrives when the partition heals, though the session may be long over at the other end.
When a connection breaks, some of what was under way still arrives, and each end notices by itself. Messages go through
the codec now and then: what is sent is what can be sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from channel.codec import decode, encode
from channel.messages import ROW_OF, Message
from channel.values import Header
from tests.sim.timeline import MS, SECOND, Timeline

END = object()
CODEC_SHARE = 1 / 16


class Pipe:
    """One direction. `deliver(item)`; END is the last item."""

    def __init__(self, timeline: Timeline, deliver: Callable[[Any], None], delay: Callable[[], int]) -> None:
        self._timeline = timeline
        self._deliver = deliver
        self._delay = delay
        self._free_ns = 0
        self._waiting: deque[Any] = deque()
        self.held = False
        self.is_over = False

    def send(self, item: Any) -> None:
        if self.is_over:
            return
        self._free_ns = max(self._free_ns, self._timeline.now_ns + self._delay())
        self._waiting.append(item)
        self._timeline.at(self._free_ns, self._arrive)

    def _arrive(self) -> None:
        if self.held or not self._waiting:
            return
        item = self._waiting.popleft()
        if item is END:
            self.is_over = True
            self._waiting.clear()
        self._deliver(item)

    def release(self) -> None:
        """The partition has healed: what waited arrives now, in order."""
        if self.held:
            self.held = False
            for _ in range(len(self._waiting)):
                self._timeline.later(0, self._arrive)

    def abandon(self) -> list[Any]:
        """Nothing arrives any more; what was under way."""
        lost, self._waiting = list(self._waiting), deque()
        self.is_over = True
        return lost


class Network:
    """What is wrong with the network now."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.slow = False
        self.wires: dict[int, Wire] = {}

    def delay(self) -> int:
        if self.slow and self.timeline.chance(0.03):
            return self.timeline.between(0, 4 * SECOND)
        return self.timeline.between(MS // 20, 2 * MS)

    def as_sent(self, message: Any, header: Header) -> Any:
        """The message as it would arrive: now and then it really is encoded and decoded."""
        if self.timeline.chance(CODEC_SHARE) and isinstance(message, Message):
            request_id = 0 if ROW_OF[type(message)].response is None else 1
            return decode(encode(message, header._replace(request_id=request_id))).message
        return message


class Wire:
    """One session: `number` is never used twice. The daemon's end is `end`, the controller's the world's step."""

    def __init__(
        self,
        network: Network,
        number: int,
        peer: str,
        to_agent: Callable[[Wire, Any], None],
        to_controller: Callable[[Wire, Any], None],
    ) -> None:
        self.network = network
        self.number = number
        self.peer = peer
        self.lost_down: list[Any] = []
        self.down = Pipe(network.timeline, lambda item: to_agent(self, item), network.delay)
        self.up = Pipe(network.timeline, lambda item: to_controller(self, item), network.delay)
        network.wires[number] = self

    def break_off(self) -> None:
        """The connection is gone, without a word: some of what was under way arrives, then each end notices."""
        for pipe in (self.up, self.down):
            if self.network.timeline.chance(0.5):
                lost = pipe.abandon()
                pipe.is_over = False
                if pipe is self.down:
                    self.lost_down += lost
            pipe.send(END)
            pipe.release()

    def agent_closes(self) -> None:
        """The daemon closes: what it sent arrives before the end does; what comes its way is lost."""
        self.up.send(END)
        self.lost_down += self.down.abandon()

    def controller_closes(self, last_words: Any) -> None:
        """The controller says goodbye and closes."""
        self.down.send(last_words)
        self.up.abandon()

    def controller_dies(self) -> None:
        """SIGKILL: the kernel closes; what had been written may still arrive."""
        self.up.abandon()
        if self.network.timeline.chance(0.5):
            self.lost_down += self.down.abandon()
            self.down.is_over = False
        self.down.send(END)
        self.down.release()
