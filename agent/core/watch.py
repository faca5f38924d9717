"""Whether the containers are reachable, told to the controller when it changes (EVENT).

What matters for I/O the data plane notices by itself; this is for people and for the controller's decisions.
"""

from __future__ import annotations

import re
from typing import Final

from channel.values import EventKind

PERIOD_NS: Final = 1_000_000_000
CONTROLLER: Final = re.compile(r"container(\d{1,4})")


class Watch:
    """What was told last, by slot, and when to look again. `next_ns` None: no session to tell, or a look under way."""

    def __init__(self) -> None:
        self.next_ns: int | None = None
        self._lost: set[int] = set()
        self._open = False

    def begin(self, now_ns: int) -> None:
        """A session is open: it knows of nothing lost."""
        self._open, self.next_ns = True, now_ns + PERIOD_NS
        self._lost.clear()

    def end(self) -> None:
        self._open, self.next_ns = False, None

    def reset(self) -> None:
        """The target is gone, and what it was attached to."""
        self.end()
        self._lost.clear()

    def due(self, now_ns: int) -> bool:
        """True once for each look."""
        if self.next_ns is None or now_ns < self.next_ns:
            return False
        self.next_ns = None
        return True

    def looked(self, now_ns: int) -> None:
        """A look has ended, whatever it gave."""
        self.next_ns = now_ns + PERIOD_NS if self._open else None

    def compare(self, usable: dict[str, bool], now_ns: int) -> list[tuple[EventKind, int, str]]:
        """What has changed since the last look."""
        self.looked(now_ns)
        found = {int(match[1]): up for name, up in usable.items() if (match := CONTROLLER.fullmatch(name))}
        events = []
        for slot, up in sorted(found.items()):
            if up and slot in self._lost:
                self._lost.discard(slot)
                events.append((EventKind.CONTAINER_BACK, slot, "connected again"))
            elif not up and slot not in self._lost:
                self._lost.add(slot)
                events.append((EventKind.CONTAINER_LOST, slot, "not connected"))
        self._lost &= found.keys()
        return events
