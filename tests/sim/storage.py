"""Simulated containers: blocks behind a volatile cache, reached through queue pairs of host NQNs.

An I/O lands at some time after it was queued, if its queue pair still lives then; its answer is lost if the queue pair
has died meanwhile. What a dead data plane has queued may still land: that is why fencing exists. When the container
host's machine fails, each block written since the last flush keeps any of the values it had since then: lost or torn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tests.sim.timeline import MS, SECOND, Timeline

BLOCKS: Final = 4
BLOCK_SIZE: Final = 4096
SEGMENT_SIZE: Final = BLOCK_SIZE * BLOCKS
FOREIGN: Final = "foreign"
ZEROES: Final = "zeroes"
CACHE_BLOCKS_MAX: Final = 4096
VERSIONS_MAX: Final = 8
SLOW_SHARE: Final = 0.15
Block = Any
Place = tuple[int, int]


class SimContainer:
    """A bdev of a container host. `segments[n]` is a list of BLOCKS values, made when first touched."""

    def __init__(self, timeline: Timeline, name: str, segment_count: int, contents: str) -> None:
        self.timeline = timeline
        self.name = name
        self.segment_count = segment_count
        self.contents = contents
        self.fresh: Block = ZEROES if contents == "zeroed" else FOREIGN
        self.segments: dict[int, list[Block]] = {}
        self.label: Any = None
        self.slot = -1
        self.unflushed: dict[Place, list[Block]] = {}

    def blocks(self, segment: int) -> list[Block]:
        """What a read returns now."""
        found = self.segments.get(segment)
        if found is None:
            found = self.segments[segment] = [self.fresh] * BLOCKS
        return found

    def write(self, segment: int, first: int, data: list[Block]) -> None:
        """Into the cache."""
        blocks = self.blocks(segment)
        for index, value in enumerate(data, first):
            versions = self.unflushed.get((segment, index))
            if versions is None:
                if len(self.unflushed) >= CACHE_BLOCKS_MAX:
                    del self.unflushed[next(iter(self.unflushed))]
                versions = self.unflushed[segment, index] = [blocks[index]]
            versions.append(value)
            del versions[:-VERSIONS_MAX]
            blocks[index] = value

    def flush(self) -> None:
        self.unflushed.clear()

    def is_zeroes(self, segment: int) -> bool:
        """True if it holds zeroes, whatever happens to the cache."""
        if any(block != ZEROES for block in self.blocks(segment)):
            return False
        caches = (self.unflushed.get((segment, index), ()) for index in range(BLOCKS))
        return all(version == ZEROES for versions in caches for version in versions)

    def lose_cache(self) -> list[Place]:
        """The machine fails. Which blocks may have changed."""
        places = list(self.unflushed)
        for (segment, index), versions in self.unflushed.items():
            self.blocks(segment)[index] = versions[int(self.timeline.random.random() * len(versions))]
        self.unflushed.clear()
        return places


class Pair:
    """The queue pairs of one host NQN at one container."""

    def __init__(self, container: SimContainer, hostnqn: str) -> None:
        self.container = container
        self.hostnqn = hostnqn
        self.alive = True
        self.doomed = False
        self.stuck_until_ns = 0


class Storage:
    """How long container I/O takes, and the I/O itself."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.slow = False
        self.frozen_until_ns = 0

    def submit(self, pair: Pair, land: Callable[[SimContainer], Any], ended: Callable[[Any], None]) -> None:
        """Queue an I/O; `ended(result of land)`, or `ended(None)` if nobody knows whether it landed."""
        limit = 3 * SECOND if self.slow and self.timeline.chance(SLOW_SHARE) else 2 * MS
        self.timeline.later(self.timeline.between(MS // 50, limit), self._arrive, pair, land, ended)

    def _arrive(self, pair: Pair, land: Callable[[SimContainer], Any], ended: Callable[[Any], None]) -> None:
        blocked_ns = max(self.frozen_until_ns, pair.stuck_until_ns)
        if blocked_ns > self.timeline.now_ns:
            wait = blocked_ns - self.timeline.now_ns + self.timeline.between(0, MS)
            self.timeline.later(wait, self._arrive, pair, land, ended)
            return
        result = land(pair.container) if pair.alive else None
        self.timeline.later(self.timeline.between(MS // 50, MS // 2), self._answer, pair, ended, result)

    def _answer(self, pair: Pair, ended: Callable[[Any], None], result: Any) -> None:
        ended(result if pair.alive else None)

    def abandon(self, pair: Pair) -> None:
        """Its peer is gone without a word: what was queued may be carried out late, until keep-alive finds out."""
        lasting = self.timeline.between(SECOND, 20 * SECOND)
        pair.stuck_until_ns = self.timeline.now_ns + self.timeline.between(0, lasting)
        self.end(pair, lasting, lasting)

    def end(self, pair: Pair, least_ns: int = 0, most_ns: int = 50 * MS) -> None:
        """The container host ends a queue pair, or notices that its peer is gone: soon, not at once."""
        if not pair.doomed:
            pair.doomed = True
            self.timeline.later(self.timeline.between(least_ns, most_ns), self._ended, pair)

    def _ended(self, pair: Pair) -> None:
        pair.alive = False
