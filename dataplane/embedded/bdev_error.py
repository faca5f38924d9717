"""The error bdev: on its base, some I/Os fail, wait, or are corrupted, as it was told (SPDK's bdev_error_* methods).

Only reads, writes, unmaps and flushes are touched, as in SPDK; writing zeroes always goes through. `nomem` is tried
again, as SPDK's bdev layer does, until the count is used up. `pending` waits for `resume`, an abort, or the end.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from dataplane.embedded.bdev import Bdev, BdevIo, BdevLayer, Buffer
from dataplane.embedded.bdev_stacked import StackedBdev
from mapping.rules import Operation
from mapping.status import Status

PREFIX: Final = "EE_"
TOUCHED: Final = (Operation.READ, Operation.WRITE, Operation.UNMAP, Operation.FLUSH)
RETRY_S: Final = 0.001
_NVME: Final = {
    (0, 0x80): Status.OUT_OF_RANGE,
    (0, 0x81): Status.NO_SPACE,
    (0, 0x82): Status.BUSY,
    (0, 0x20): Status.WRITE_PROTECTED,
    (0, 0x01): Status.UNSUPPORTED,
}
"""What an NVMe status (type, code) is here; any other one is an I/O error."""


@dataclass(slots=True)
class Injection:
    """What happens to the next `left` I/Os of a kind while at least `queue_depth` are under way."""

    kind: str
    left: int
    queue_depth: int = 0
    corrupt_offset: int = 0
    corrupt_value: int = 0
    nvme: tuple[int, int] = (0, 0)


class ErrorBdev(StackedBdev):
    """`EE_<base>`."""

    product_name: ClassVar[str] = "Error Injection Disk"

    def __init__(self, layer: BdevLayer, base: Bdev, identity: uuid.UUID | None = None) -> None:
        super().__init__(layer, base, PREFIX + base.name, identity)
        self._given = identity
        self._armed: dict[Operation, Injection] = {}
        self._pending: list[BdevIo] = []
        self._again: dict[BdevIo, asyncio.TimerHandle] = {}

    def inject(self, operations: Iterable[Operation], injection: Injection) -> None:
        """From now on; replaces what was told before of these kinds of I/O."""
        for operation in operations:
            self._armed[operation] = Injection(
                injection.kind,
                injection.left,
                injection.queue_depth,
                injection.corrupt_offset,
                injection.corrupt_value,
                injection.nvme,
            )

    def clear(self) -> None:
        """Inject nothing any more."""
        self._armed.clear()

    def resume(self) -> None:
        """Stop keeping I/Os pending; those that are go on."""
        for operation, injection in list(self._armed.items()):
            if injection.kind == "pending":
                del self._armed[operation]
        pending, self._pending = self._pending, []
        for io in pending:
            self._start(io)

    def _start(self, io: BdevIo) -> None:
        injection = self._due(io.operation)
        kind = injection.kind if injection is not None else ""
        if injection is None or (kind == "corrupt_data" and io.operation not in (Operation.READ, Operation.WRITE)):
            self.pass_on(io, _end)
        elif kind == "failure":
            io.end(Status.IO_ERROR)
        elif kind == "nvme_failure":
            io.end(_NVME.get(injection.nvme, Status.IO_ERROR))
        elif kind == "pending":
            self._pending.append(io)
        elif kind == "nomem":
            self._again[io] = asyncio.get_running_loop().call_later(RETRY_S, self._retry, io)
        else:
            self._corrupt(io, injection)

    def _due(self, operation: Operation) -> Injection | None:
        """What has to happen to an I/O, counted down."""
        injection = self._armed.get(operation)
        if injection is None or not injection.left or self.under_way < injection.queue_depth:
            return None
        injection.left -= 1
        return injection

    def _retry(self, io: BdevIo) -> None:
        del self._again[io]
        self._start(io)

    def _corrupt(self, io: BdevIo, injection: Injection) -> None:
        if io.operation is Operation.WRITE:
            io.data = _corrupted(io.data, injection)
            self.pass_on(io, _end)
            return

        def then(io: BdevIo, inner: BdevIo) -> None:
            if inner.status is Status.OK:
                io.data = _corrupted(inner.data, injection)
            io.end(inner.status)

        self.pass_on(io, then)

    def abort(self, io: BdevIo) -> None:
        if not self._drop([io]):
            super().abort(io)

    def host_lost(self, owner: object) -> None:
        self._drop([io for io in (*self._pending, *self._again) if io.owner is owner])
        super().host_lost(owner)

    async def close(self) -> None:
        self._drop([*self._pending, *self._again])
        await super().close()

    def _drop(self, ios: list[BdevIo]) -> bool:
        """End those that wait here; whether there was one."""
        found = False
        for io in ios:
            if io in self._pending:
                self._pending.remove(io)
            elif io in self._again:
                self._again.pop(io).cancel()
            else:
                continue
            found = True
            io.end(Status.CANCELLED)
        return found

    def describe(self) -> dict[str, Any]:
        return {"error_disk": {"base_bdev": self.base.name}}

    def config(self) -> dict[str, Any]:
        params = {"base_name": self.base.name}
        if self._given is not None:
            params["uuid"] = str(self._given)
        return {"method": "bdev_error_create", "params": params}


def _end(io: BdevIo, inner: BdevIo) -> None:
    io.end(inner.status)


def _corrupted(data: Buffer | None, injection: Injection) -> Buffer | None:
    """A copy with one byte changed; as it is if that byte lies beyond its end."""
    if data is None or injection.corrupt_offset >= len(data):
        return data
    copy = bytearray(data)
    copy[injection.corrupt_offset] ^= injection.corrupt_value
    return copy
