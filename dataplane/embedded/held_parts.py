"""I/O of a container whose bdev has been taken away: it waits a while for another, as it would for a lost connection.

A container that has moved (its container host answers at another address) is detached and attached again. Parts that
come in between, and parts that the old bdev failed as it went, are held here, still begun for the engine: barriers wait
for them. With the new bdev, its label verified, they are done there. A write that was *sent* to the old one may still
be done there: it is repeated only if that is known to be over, and fails unsettled if not. What nobody waits for any
more is dropped. Limits: HELD_MAX parts a container, HOLD_S.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from mapping.status import Status

if TYPE_CHECKING:
    from mapping.effects import Part

HELD_MAX: Final = 4096
HOLD_S: Final = 10.0


class Holder(Protocol):
    """Whose parts are held."""

    def again(self, part: Part) -> None:
        """Do the part on its container's new bdev."""

    def give_up(self, part: Part, status: Status, sent: bool) -> None:
        """The part fails; if it was sent, its old container may still do it."""


class HeldParts:
    """The held parts of one container."""

    __slots__ = ("_held", "_timer")

    def __init__(self) -> None:
        self._held: deque[tuple[Holder, Part, bool]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._held)

    def expect(self) -> None:
        """The bdev has gone; another may come within HOLD_S."""
        loop = asyncio.get_running_loop()
        self._disarm()
        self._timer = loop.call_later(HOLD_S, self.fail)

    def add(self, holder: Holder, part: Part, sent: bool) -> bool:
        """Hold a part. False: nothing is expected (any more), or too many are held; it has to fail."""
        if self._timer is None or len(self._held) >= HELD_MAX:
            return False
        self._held.append((holder, part, sent))
        return True

    def arrived(self, ended: bool) -> None:
        """There is a bdev again. `ended`: nothing that was sent to the one before is being done any more."""
        self._disarm()
        for holder, part, sent in self._take():
            if sent and not ended:
                holder.give_up(part, Status.IO_ERROR, True)
            else:
                holder.again(part)

    def fail(self) -> None:
        """No other bdev comes."""
        self._disarm()
        for holder, part, sent in self._take():
            holder.give_up(part, Status.IO_ERROR, sent)

    def drop(self, unwanted: Callable[[Holder], bool]) -> None:
        """Some of them have nobody who waits for them any more."""
        dropped = [item for item in self._held if unwanted(item[0])]
        self._held = deque(item for item in self._held if not unwanted(item[0]))
        for holder, part, sent in dropped:
            holder.give_up(part, Status.CANCELLED, sent)

    def _take(self) -> deque[tuple[Holder, Part, bool]]:
        held, self._held = self._held, deque()
        return held

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
