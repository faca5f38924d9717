"""Bdevs that stand on another one, which they claim: what the error and the delay bdev have in common.

`Stacks` remembers what was asked for: one whose base is not there yet is made when it comes, and again when it comes
back; one that is deleted is forgotten. When the base goes, what stands on it goes first.
"""

from __future__ import annotations

import asyncio
import errno
import uuid
from collections.abc import Awaitable, Callable
from typing import Final

from dataplane.embedded.bdev import Bdev, BdevError, BdevEvent, BdevIo, BdevLayer
from mapping.rules import Operation

STACKS_MAX: Final = 4096
CLAIM: Final = "exclusive_write"
_NAMES: Final = uuid.UUID("3c1e8a36-5d0f-4c39-9f0c-6b8f8a3a7a11")


class StackedBdev(Bdev):
    """Passes everything on to `base`. What is told of losses and of what is behind it is the base's."""

    def __init__(self, layer: BdevLayer, base: Bdev, name: str, identity: uuid.UUID | None = None) -> None:
        if base.claim is not None:
            raise BdevError(errno.EPERM)  # before anything of the base's holder is touched
        self.base = base
        super().__init__(name, base.block_size, base.block_count, identity or uuid.uuid5(_NAMES, f"{name} {base.uuid}"))
        self.read_only = base.read_only
        self.volatile_cache = base.volatile_cache
        self.numa_id = base.numa_id
        self._layer = layer
        self._leaving: asyncio.Task[None] | None = None
        self._under_way: dict[BdevIo, BdevIo] = {}
        self._idle: asyncio.Future[None] | None = None
        self._close_base = base.open(self._told)
        try:
            layer.claim(base, self, CLAIM)
        except BdevError:
            self._close_base()
            raise

    @property
    def losses(self) -> int:
        return self.base.losses

    @losses.setter
    def losses(self, _: int) -> None:
        """The base counts."""

    @property
    def attachments(self) -> int:
        return self.base.attachments

    @attachments.setter
    def attachments(self, _: int) -> None:
        """The base counts."""

    @property
    def verify(self) -> Callable[[], Awaitable[bool | None]] | None:
        return self.base.verify

    @verify.setter
    def verify(self, verify: Callable[[], Awaitable[bool | None]] | None) -> None:
        self.base.verify = verify

    @property
    def refused(self) -> bool:
        return self.base.refused

    @refused.setter
    def refused(self, refused: bool) -> None:
        self.base.refused = refused

    @property
    def origin(self) -> tuple[object, ...] | None:  # type: ignore[override]
        return self.base.origin

    def supports(self, operation: Operation) -> bool:
        return self.base.supports(operation)

    @property
    def under_way(self) -> int:
        """How many of our I/Os the base has."""
        return len(self._under_way)

    def pass_on(self, io: BdevIo, then: Callable[[BdevIo, BdevIo], None]) -> None:
        """Let the base do it; `then(io, what the base made of it)` ends ours."""

        def done(inner: BdevIo) -> None:
            io.data, io.settled = inner.data, inner.settled
            del self._under_way[io]
            then(io, inner)
            if not self._under_way and self._idle is not None:
                self._idle.set_result(None)
                self._idle = None

        inner = BdevIo(
            io.operation,
            io.offset,
            io.length,
            done,
            data=io.data,
            owner=io.owner,
            fua=io.fua,
            watched=io.watched,
            probe=io.probe,
        )
        self._under_way[io] = inner
        self.base.submit(inner)

    def abort(self, io: BdevIo) -> None:
        inner = self._under_way.get(io)
        if inner is not None:
            self.base.abort(inner)

    def host_lost(self, owner: object) -> None:
        self.base.host_lost(owner)

    async def close(self) -> None:
        if self._under_way:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        self.give_up()

    def give_up(self) -> None:
        """Leave the base to others."""
        self._layer.release(self.base, self)
        self._close_base()

    def _told(self, event: BdevEvent) -> None:
        if event is BdevEvent.RESIZE:
            self._layer.resized(self, self.base.block_count)
        elif not self.removing:
            self._leaving = asyncio.get_running_loop().create_task(self._layer.unregister(self))


class Stacks:
    """What is to stand on which base, by key: the name of a base or of what stands on it, as the kind has it."""

    def __init__(self, layer: BdevLayer) -> None:
        self._layer = layer
        self._wanted: dict[str, tuple[str, Callable[[Bdev], StackedBdev]]] = {}
        layer.on_registered = self._registered

    def create(self, key: str, base: str, make: Callable[[Bdev], StackedBdev]) -> None:
        """Make it, now or when the base is there. Raises BdevError: EEXIST if the key is known."""
        if key in self._wanted:
            raise BdevError(errno.EEXIST)
        if len(self._wanted) >= STACKS_MAX:
            raise BdevError(errno.ENOMEM)
        found = self._layer.bdevs.get(base)
        if found is not None:
            self._make(found, make)
        self._wanted[key] = (base, make)

    def forget(self, key: str) -> None:
        """It has been deleted."""
        self._wanted.pop(key, None)

    def _make(self, base: Bdev, make: Callable[[Bdev], StackedBdev]) -> None:
        bdev = make(base)
        try:
            self._layer.register(bdev)
        except BdevError:
            bdev.give_up()
            raise

    def _registered(self, bdev: Bdev) -> None:
        for base, make in list(self._wanted.values()):
            if base == bdev.name:
                try:
                    self._make(bdev, make)
                except BdevError:
                    continue  # its name is taken meanwhile, or the base is: nobody is there to be told
