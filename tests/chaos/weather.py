"""Which faults hold now, and since when a path has had nothing that could hold an I/O up on its way to a container.

After a cut, what lay in a sender's socket comes at the kernel's next attempt, which may take as long again as the cut
has taken (its attempts double their distance); so a fault's shadow is as long as itself, and QUIET_S more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.chaos.schedule import Fault, Kind

QUIET_S: Final = 1.5
CUTS: Final = frozenset({Kind.CUT, Kind.ONE_WAY, Kind.ISOLATE})


class Weather:
    """`clock`: seconds since the load began. `exporters`: machines on whose faults every path depends."""

    def __init__(self, clock: Callable[[], float], exporters: frozenset[str]) -> None:
        self.now = clock
        self._exporters = exporters
        self._holding: dict[int, tuple[Fault, float]] = {}
        self._shadows: list[tuple[Fault, float, float]] = []
        self._fair_from = 0.0

    def begins(self, fault: Fault) -> None:
        """It is about to be done."""
        self._holding[fault.number] = (fault, self.now())

    def ends(self, fault: Fault) -> None:
        """It has been undone."""
        _, began = self._holding.pop(fault.number)
        now = self.now()
        shadow = now + (now - began if fault.kind in CUTS else 0.0)
        self._shadows = [item for item in self._shadows if item[2] + QUIET_S > now - 60]
        self._shadows.append((fault, began, shadow))
        self._fair_from = max(self._fair_from, shadow)

    def fair_from(self) -> float:
        """Since when nothing at all is wrong; now, if something is."""
        return self.now() if self._holding else self._fair_from

    def fair_since(self, agent: str, moment: float) -> bool:
        """Whether nothing has held I/O up on the way by `agent` for QUIET_S at some time after `moment`, until now."""
        now = self.now()
        if now - moment < QUIET_S or any(self._touches(fault, agent) for fault, _ in self._holding.values()):
            return False
        return all(shadow + QUIET_S <= now for fault, _, shadow in self._shadows if self._touches(fault, agent))

    def _touches(self, fault: Fault, agent: str) -> bool:
        machines = {fault.victim.split(".")[0], fault.other.split(".")[0]}
        return agent in machines or bool(machines & self._exporters) or fault.kind in (Kind.FREEZE, Kind.SLOW)
