"""Simulated container hosts: containers as blocks, allow-lists, and I/O that lands when it lands.

A queued I/O of a host NQN lands only while that NQN is let in: denying it ends its queue pairs. What a dead data plane
had queued may still land until then: that is why fencing exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from tests.sim.timeline import MS, Timeline

BLOCKS = 4
SEGMENT_SIZE = 4096 * BLOCKS
FOREIGN = "foreign"
ZEROES = "zeroes"
Block = Any


class SimContainer:
    """`segments[n]` is a list of BLOCKS values, made when first touched."""

    def __init__(self, name: str, segment_count: int, uuid: UUID, contents: str) -> None:
        self.name = name
        self.segment_count = segment_count
        self.uuid = uuid
        self.fresh: Block = ZEROES if contents == "zeroed" else FOREIGN
        self.segments: dict[int, list[Block]] = {}
        self.label: Any = None
        self.subnqn = f"nqn.2026-11.io.segmap:container:{name}"
        self.allowed: set[str] = set()

    def blocks(self, segment: int) -> list[Block]:
        found = self.segments.get(segment)
        if found is None:
            found = self.segments[segment] = [self.fresh] * BLOCKS
        return found


class Storage:
    """All containers by NQN, and the I/O under way to them."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.containers: dict[str, SimContainer] = {}
        self.slow = False

    def submit(
        self, subnqn: str, hostnqn: str, land: Callable[[SimContainer], Any], ended: Callable[[Any], None]
    ) -> None:
        """Queue an I/O: `land` happens at some time, `ended(result)` some time later; None if it was not let in."""
        random = self.timeline.random
        container = self.containers[subnqn]
        limit = 3000 * MS if self.slow and random.random() < 0.02 else 2 * MS

        def arrive() -> None:
            result = land(container) if hostnqn in container.allowed else None
            self.timeline.later(random.randrange(MS), lambda: ended(result))

        self.timeline.later(random.randrange(limit), arrive)
