"""The delay bdev: I/O on its base ends later (SPDK's bdev_delay_* methods). Reads and writes only; one in a hundred
takes the p99 latency. The base has done it by then: what is late is the answer.

Answers of one kind keep their order, so one that has to wait longer holds up those behind it, as in SPDK.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Final

from dataplane.embedded.bdev import Bdev, BdevIo, BdevLayer
from dataplane.embedded.bdev_stacked import StackedBdev
from mapping.rules import Operation
from mapping.status import Status

LATENCIES: Final = ("avg_read", "p99_read", "avg_write", "p99_write")
_MICROSECOND: Final = 1e-6
_KIND: Final = {Operation.READ: "read", Operation.WRITE: "write"}


class DelayBdev(StackedBdev):
    """`latencies` in microseconds, by the names in LATENCIES."""

    product_name: ClassVar[str] = "delay"

    def __init__(
        self,
        layer: BdevLayer,
        base: Bdev,
        name: str,
        latencies: dict[str, int],
        identity: uuid.UUID | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(layer, base, name, identity)
        self.latencies = dict(latencies)
        self._chance = chance
        self._late: dict[str, deque[tuple[float, BdevIo, Status]]] = {kind: deque() for kind in LATENCIES}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def _start(self, io: BdevIo) -> None:
        self.pass_on(io, self._done)

    def _done(self, io: BdevIo, inner: BdevIo) -> None:
        kind = _KIND.get(io.operation)
        if kind is None:
            io.end(inner.status)
            return
        bucket = ("p99_" if self._chance() < 0.01 else "avg_") + kind
        at = asyncio.get_running_loop().time() + self.latencies[bucket] * _MICROSECOND
        self._late[bucket].append((at, io, inner.status))
        if bucket not in self._timers:
            self._arm(bucket)

    def _arm(self, bucket: str) -> None:
        at = self._late[bucket][0][0]
        self._timers[bucket] = asyncio.get_running_loop().call_at(at, self._due, bucket)

    def _due(self, bucket: str) -> None:
        del self._timers[bucket]
        late, now = self._late[bucket], asyncio.get_running_loop().time()
        while late and late[0][0] <= now:
            _, io, status = late.popleft()
            io.end(status)
        if late and bucket not in self._timers:
            self._arm(bucket)

    def abort(self, io: BdevIo) -> None:
        if not self._take(lambda late: late is io, Status.CANCELLED):
            super().abort(io)

    def host_lost(self, owner: object) -> None:
        self._take(lambda late: late.owner is owner, None)
        super().host_lost(owner)

    async def close(self) -> None:
        await super().close()
        self._take(lambda _: True, None)
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _take(self, wanted: Callable[[BdevIo], bool], status: Status | None) -> int:
        """End some of those that are late now; with the status that they had, if none is given."""
        count = 0
        for bucket, late in self._late.items():
            taken = [item for item in late if wanted(item[1])]
            self._late[bucket] = deque(item for item in late if not wanted(item[1]))
            for _, io, had in taken:
                io.end(had if status is None else status)
            count += len(taken)
        return count

    def describe(self) -> dict[str, Any]:
        return {"delay": self._values()}

    def config(self) -> dict[str, Any]:
        return {"method": "bdev_delay_create", "params": self._values()}

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {"name": self.name, "base_bdev_name": self.base.name, "uuid": str(self.uuid)}
        return values | {f"{name}_latency": microseconds for name, microseconds in self.latencies.items()}
