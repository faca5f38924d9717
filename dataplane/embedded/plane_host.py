"""The shell around mapping.plane: executes effects in order, keeps its deadlines, and knows the bound containers.

Everything that the plane decides comes back as effects; they are executed first in, first out, even those that arise
while others are executed, so that nothing recurses. Faults of one loop turn leave together.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from dataplane.embedded.bdev import Bdev
from dataplane.embedded.direct_path import DirectPath
from dataplane.embedded.held_parts import HeldParts
from mapping.effects import BarrierReached, Complete, Effect, EpochBegan, Fault, Forward, Part, ReturnZeroes, SendFault
from mapping.label import Label
from mapping.plane import Plane
from mapping.status import Status

_TICK_MIN_S: Final = 0.001


class PartOwner(Protocol):
    """What `Part.io` is: the host I/O that the part belongs to."""

    def forward(self, part: Part) -> None:
        """Do the part on its container."""

    def zeroes(self, part: Part) -> None:
        """The part, a read, ends well with zeroes."""

    def ended(self, part: Part, status: Status) -> None:
        """The part has ended."""


class FaultLink(Protocol):
    """Where faults and epochs go: the data plane's socket."""

    def send_faults(self, faults: list[Fault]) -> None:
        """Tell the controller, if there is a session."""

    def send_epoch(self, epoch: int) -> None:
        """Tell it that a new epoch has begun."""


BarrierToken = Callable[[Status], None]


@dataclass(slots=True, eq=False)
class Container:
    """A bound slot. `segment_count` counts the label's segment 0. Without a bdev its I/O is `held` for a while if the
    bdev was a remote one, which may have moved; else it fails.

    `unsettled`: what to do about parts that have ended for their hosts, but may still be written here, once they
    cannot: the container was attached anew as `origin` (see Bdev), or its former host's process is known to be over.
    `stranded`: the same, of parts that were sent elsewhere: only the end of all former processes ends them.
    """

    slot: int
    label: Label
    bdev: Bdev | None
    close: Callable[[], None]
    changed: Callable[[], None]
    losses_before: int = 0
    origin: tuple[object, ...] | None = None
    unsettled: list[Callable[[], None]] = field(default_factory=list)
    stranded: list[Callable[[], None]] = field(default_factory=list)
    held: HeldParts = field(default_factory=HeldParts)

    @property
    def losses(self) -> int:
        """How often unflushed writes may have been lost, over all bdevs that this container has been."""
        return self.losses_before + (self.bdev.losses if self.bdev is not None else 0)

    @property
    def volatile(self) -> bool:
        """True if a write is safe only after a flush."""
        return self.bdev is None or self.bdev.volatile_cache

    def lost(self) -> None:
        """The bdev has been taken away."""
        if self.bdev is not None:
            if self.bdev.origin is not None:
                self.held.expect()
            self.losses_before += self.bdev.losses + self.bdev.volatile_cache
            self.bdev = None
            self.changed()
            self.close()

    def found(self, bdev: Bdev, again: bool, ended: bool) -> None:
        """There is a bdev again, verified. Nothing from before is being done at the one before, if it is that one
        `again`, or at any, if all former processes have `ended`."""
        self.losses_before -= bdev.losses
        self.bdev = bdev
        if again or ended:
            self.settle(everywhere=ended)
        self.held.arrived(again or ended)
        if not again and not ended:
            self.stranded += self.unsettled
            self.unsettled = []

    def settle(self, everywhere: bool = False) -> None:
        """Nothing from before is being done there any more; or where it was before that, either."""
        over, self.unsettled = self.unsettled, []
        if everywhere:
            over, self.stranded = over + self.stranded, []
        for settled in over:
            settled()

    def keep_unsettled(self, settled: Callable[[], None], bdev: Bdev | None) -> None:
        """A part has failed that was sent to `bdev`, which may be a former one."""
        (self.unsettled if self.bdev in (None, bdev) else self.stranded).append(settled)


class PlaneHost:
    """One per target. `clock` is CLOCK_MONOTONIC in nanoseconds. `slots_changed`: whom to tell, by table."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int] = time.monotonic_ns,
        instance: bytes | None = None,
    ) -> None:
        self.clock = clock
        self.plane = Plane(instance or uuid.uuid4().bytes)
        self.containers: dict[int, Container] = {}
        self.link: FaultLink | None = None
        self.paths: set[DirectPath] = set()
        self.slots_changed: dict[int, Callable[[], None]] = {}
        self._loop = loop
        self._queue: deque[Effect] = deque()
        self._running = False
        self._faults: list[Fault] = []
        self._timer: asyncio.TimerHandle | None = None
        self._rearming = False
        self._execute: dict[type[Any], Callable[[Any], None]] = {
            Forward: self._forward,
            ReturnZeroes: self._return_zeroes,
            Complete: self._complete,
            SendFault: self._send_fault,
            BarrierReached: self._barrier_reached,
            EpochBegan: self._epoch_began,
        }

    def run(self, effects: Iterable[Effect]) -> None:
        """Execute effects after those that already wait."""
        queue = self._queue
        queue.extend(effects)
        if self._running:
            return
        self._running = True
        try:
            while queue:
                effect = queue.popleft()
                self._execute[type(effect)](effect)
        finally:
            self._running = False

    def _forward(self, effect: Forward) -> None:
        effect.part.io.forward(effect.part)

    def _return_zeroes(self, effect: ReturnZeroes) -> None:
        effect.part.io.zeroes(effect.part)

    def _complete(self, effect: Complete) -> None:
        effect.part.io.ended(effect.part, effect.status)

    def _send_fault(self, effect: SendFault) -> None:
        if not self._faults:
            self._loop.call_soon(self._flush_faults)
        self._faults.append(effect.fault)

    def _flush_faults(self) -> None:
        faults = [fault for fault in self._faults if fault.parts]
        self._faults = []
        if faults and self.link is not None:
            self.link.send_faults(faults)

    def _barrier_reached(self, effect: BarrierReached) -> None:
        effect.token(effect.status)

    def _epoch_began(self, effect: EpochBegan) -> None:
        if self.link is not None:
            self.link.send_epoch(effect.epoch)

    # --- time --------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let the plane see the time."""
        self.run(self.plane.tick(self.clock()))
        self.deadlines_changed()

    def deadlines_changed(self) -> None:
        """Something was parked, granted or begun: look at the plane's deadlines at the end of this loop turn."""
        if not self._rearming:
            self._rearming = True
            self._loop.call_soon(self._rearm)

    def _rearm(self) -> None:
        self._rearming = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.plane.next_deadline()
        if deadline is not None:
            delay = max((deadline - self.clock()) / 1e9, _TICK_MIN_S)
            self._timer = self._loop.call_later(delay, self.tick)

    def disarm(self) -> None:
        """A container is no longer what it was: nobody goes straight to its memory."""
        for path in self.paths:
            path.disarm()

    def abandon(self) -> None:
        """The process ends: nobody asks any more whether its I/O has ended."""
        for container in self.containers.values():
            container.held.fail()
            container.settle(everywhere=True)

    def close(self) -> None:
        """No more ticks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
