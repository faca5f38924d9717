"""Of which losses the user of a device still has to be told (design: a flush that could have lost something fails).

A device counts its `losses`: the times that something written there and not flushed may have been lost. A flush fails
if the count is not the one that was told last, whoever has written: what another agent wrote may be what this user's
host flushes. A failure tells of what was lost before its flush began; a loss while it ran is told again by the next
flush, since writes that ended after its beginning may be among what was lost. So a flush may fail that need not have;
none succeeds that must not.
"""

from __future__ import annotations

Begun = tuple[int, int]


class LossWatch:
    """One user and one device. `losses`: the device's count when the user came."""

    __slots__ = ("_told",)

    def __init__(self, losses: int) -> None:
        self._told = losses

    def begin(self, losses: int) -> Begun:
        """A flush begins, at this count."""
        return self._told, losses

    def ended(self, begun: Begun, losses: int, heard: bool = True) -> bool:
        """It has ended, at this count: whether it has to fail. Not `heard`: nobody waits for its end any more."""
        told, at_begin = begun
        if heard:
            self._told = max(self._told, at_begin)
        return losses != told
