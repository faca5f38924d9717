"""What the operator should know: events, and the alarms among them that are still true."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from controller.core.effects import Log


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One event. `severity`: info, warning or alarm; `at_ns` on the core's clock."""

    id: int
    at_ns: int
    severity: str
    kind: str
    text: str


class EventLog:
    """The newest events, and `alarms` by kind and subject. Each also becomes a Log effect, collected in `fresh`."""

    def __init__(self, kept: int) -> None:
        self.events: deque[LoggedEvent] = deque(maxlen=kept)
        self.alarms: dict[tuple[str, str], LoggedEvent] = {}
        self.fresh: list[Log] = []
        self._count = 0

    def add(self, now_ns: int, severity: str, kind: str, text: str) -> LoggedEvent:
        """Something happened."""
        self._count += 1
        event = LoggedEvent(self._count, now_ns, severity, kind, text)
        self.events.append(event)
        self.fresh.append(Log(severity, text))
        return event

    def alarm(self, now_ns: int, kind: str, subject: str, text: str, severity: str = "alarm") -> None:
        """Something is wrong until `clear` is called; said again only if the text changes."""
        known = self.alarms.get((kind, subject))
        if known is None or known.text != text:
            self.alarms[kind, subject] = self.add(now_ns, severity, kind, text)

    def clear(self, now_ns: int, kind: str, subject: str, text: str) -> None:
        """It is right again."""
        if self.alarms.pop((kind, subject), None) is not None:
            self.add(now_ns, "info", kind, text)
