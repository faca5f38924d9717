"""BIND_SLOT and UNBIND_SLOT: a bdev becomes a container, once its label says so (design: containers are who they say).

INITIALIZE writes the label, and refuses a bdev that holds something: another container's label, or bytes in its first
or last segment. FORCE writes over it. Binding is serialised per slot; a slot whose bdev was lost may be bound again to
the same container. A bdev that comes back from a lost connection is verified again before any I/O goes on; if it is
not the container any more, the slot has lost its bdev. RENEW writes a verified label anew, with the store's newer
generation. ENDED says that the processes are over which the slot's former bdevs led to, and with them what they still
did.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from channel.messages import Attached, BindSlot
from channel.values import AttachFlags
from dataplane.embedded.bdev import Bdev, BdevError, BdevEvent, BdevLayer, transfer
from dataplane.embedded.plane_host import Container, PlaneHost
from mapping.label import LABEL_BYTES, Label, LabelError, decode
from mapping.rules import Operation
from mapping.status import Status

CLAIM: Final = "read_many_write_one"
_CHUNK: Final = 1 << 20
_SEGMENT_SIZE_MIN: Final = 4096
_SEGMENT_SIZE_MAX: Final = 1 << 30
_log = logging.getLogger("segmap.target")


class BindFailed(Exception):
    """Why a slot was not bound."""

    def __init__(self, status: Status, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class ContainerBinder:
    """Binds slots of one plane to bdevs of one layer."""

    def __init__(self, layer: BdevLayer, host: PlaneHost) -> None:
        self._layer = layer
        self._host = host
        self._binding: set[int] = set()

    async def bind(self, request: BindSlot) -> Attached:
        """The answer to BIND_SLOT."""
        if request.slot in self._binding:
            return Attached(Status.BUSY, f"slot {request.slot} is being bound")
        self._binding.add(request.slot)
        try:
            container = await self._bind(request)
        except BindFailed as failure:
            self._refused(request.slot, failure.status)
            return Attached(failure.status, str(failure))
        except BdevError as error:
            return Attached(Status.NOT_FOUND, f"bdev {request.bdev_name}: {error}")
        finally:
            self._binding.discard(request.slot)
        assert container.bdev is not None
        return Attached(
            Status.OK,
            "",
            container.label.segment_count,
            container.bdev.block_size,
            container.bdev.volatile_cache,
        )

    def _refused(self, slot: int, status: Status) -> None:
        """What is there is something else: what waits for the container need not wait any longer."""
        known = self._host.containers.get(slot)
        if known is not None and known.bdev is None and status in (Status.LABEL_MISMATCH, Status.OUT_OF_RANGE):
            known.held.fail()

    async def _bind(self, request: BindSlot) -> Container:
        known = self._host.containers.get(request.slot)
        if known is not None and known.label.container != request.container:
            raise BindFailed(Status.EXISTS, f"slot {request.slot} is bound to another container")
        bdev = self._layer.get(request.bdev_name)
        if bdev is None:
            raise BindFailed(Status.NOT_FOUND, f"there is no bdev {request.bdev_name}")
        if known is not None and known.bdev is bdev:
            known.label = await _verified(request, bdev, known.label)
            return known
        if known is not None and known.bdev is not None:
            raise BindFailed(Status.EXISTS, f"slot {request.slot} is bound to bdev {known.bdev.name}")
        return await self._open(request, bdev, known)

    async def _open(self, request: BindSlot, bdev: Bdev, known: Container | None) -> Container:
        owner = object()
        try:
            self._layer.claim(bdev, owner, CLAIM)
        except BdevError:
            raise BindFailed(Status.BUSY, f"bdev {bdev.name} is claimed already") from None
        container = known
        lost = False

        def on_event(event: BdevEvent) -> None:
            nonlocal lost
            if event is BdevEvent.REMOVE:
                lost = True
                if container is not None and container.bdev is bdev:
                    container.lost()

        async def verify() -> bool | None:
            if container is None or container.bdev is not bdev:
                return True
            return await _is_still(container, bdev)

        close = self._opened(bdev, owner, on_event)
        bdev.verify = verify
        try:
            attachments = bdev.attachments
            label = await self._label(request, bdev)
            if lost:
                raise BindFailed(Status.NOT_FOUND, f"bdev {bdev.name} was removed meanwhile")
            if bdev.attachments != attachments:
                raise BindFailed(Status.IO_ERROR, f"the connection of bdev {bdev.name} was lost meanwhile")
            status = self._host.plane.bind_slot(request.slot, request.container)
            if status is not Status.OK:
                raise BindFailed(status, f"slot {request.slot} is bound to another container")
        except BaseException:
            close()
            raise
        bdev.refused = False
        if container is None:
            container = self._host.containers[request.slot] = Container(
                request.slot, label, bdev, close, self._host.disarm
            )
        else:
            container.label, container.close = label, close
            again = bdev.origin is not None and bdev.origin == container.origin
            container.origin = bdev.origin
            container.found(bdev, again, bool(request.flags & AttachFlags.ENDED))
        container.origin = bdev.origin
        return container

    def _opened(self, bdev: Bdev, owner: object, on_event: Callable[[BdevEvent], None]) -> Callable[[], None]:
        try:
            close_bdev = bdev.open(on_event)
        except BdevError:
            self._layer.release(bdev, owner)
            raise

        def close() -> None:
            bdev.verify = None
            self._layer.release(bdev, owner)
            close_bdev()

        return close

    async def _label(self, request: BindSlot, bdev: Bdev) -> Label:
        """The label that the bdev has in the end. Raises BindFailed."""
        wanted = _wanted(request, bdev)
        why = ""
        data = await _read(bdev, 0, LABEL_BYTES)
        try:
            found: Label | None = decode(bytes(data))
        except LabelError as error:
            found, why = None, str(error)
        if not request.flags & AttachFlags.INITIALIZE:
            if found is None:
                raise BindFailed(Status.LABEL_MISMATCH, why)
            return await _verified(request, bdev, found)
        if not request.flags & AttachFlags.FORCE:
            await _refuse_foreign(bdev, wanted, found)
        await _write_label(bdev, wanted)
        return wanted

    def unbind(self, slot: int) -> tuple[Status, str]:
        """The answer to UNBIND_SLOT."""
        if slot in self._binding:
            return Status.BUSY, f"slot {slot} is being bound"
        known = self._host.containers.get(slot)
        pending = known is not None and (known.unsettled or known.stranded or known.held)
        status = Status.BUSY if pending else self._host.plane.unbind_slot(slot)
        if status is not Status.OK:
            return status, f"slot {slot} is " + ("in use" if status is Status.BUSY else "not bound")
        container = self._host.containers.pop(slot)
        container.lost()
        container.held.fail()
        return Status.OK, ""


def _wanted(request: BindSlot, bdev: Bdev) -> Label:
    """The label that the request describes; a segment count of 0 means: as many as there are."""
    size = request.segment_size
    if not _SEGMENT_SIZE_MIN <= size <= _SEGMENT_SIZE_MAX or size % bdev.block_size:
        raise BindFailed(Status.BAD_MESSAGE, f"segments of {size} bytes on blocks of {bdev.block_size}")
    whole = bdev.size // size
    count = request.segment_count or whole
    if not 2 <= count <= whole:
        raise BindFailed(Status.OUT_OF_RANGE, f"bdev {bdev.name} has {whole} segments, {count} wanted, at least 2")
    return Label(request.cluster, request.container, request.generation, size, count)


async def _verified(request: BindSlot, bdev: Bdev, found: Label) -> Label:
    """The label, if it is the right one; with RENEW, one of an older store generation is written anew."""
    wanted = _wanted(request, bdev)
    _verify(found, wanted)
    if not request.flags & AttachFlags.RENEW or found.generation >= wanted.generation:
        return found
    await _write_label(bdev, wanted)
    return wanted


async def _is_still(container: Container, bdev: Bdev) -> bool | None:
    """Whether the bdev, attached anew, is what the container was; if not, the container is lost. None: unknown."""
    try:
        data = await _read(bdev, 0, LABEL_BYTES, probe=True)
    except BindFailed:
        return None
    try:
        found = decode(data)
        replace(container.label, generation=found.generation).verify(found)  # another agent may have renewed it
    except LabelError as error:
        _log.error("slot %d: bdev %s has come back as something else: %s", container.slot, bdev.name, error)
        container.lost()
        container.held.fail()
        container.origin = None
        return False
    container.settle()
    return True


def _verify(found: Label, wanted: Label) -> None:
    try:
        wanted.verify(found)
    except LabelError as error:
        raise BindFailed(Status.LABEL_MISMATCH, str(error)) from None


async def _read(bdev: Bdev, offset: int, length: int, probe: bool = False) -> bytes:
    status, data = await transfer(bdev, Operation.READ, offset, length, probe=probe)
    if status is not Status.OK:
        raise BindFailed(Status.IO_ERROR, f"reading bdev {bdev.name} at {offset}: {status.name}")
    return bytes(data)


async def _refuse_foreign(bdev: Bdev, wanted: Label, found: Label | None) -> None:
    """Raise BindFailed if the bdev holds what is not this container's."""
    if found is not None:
        if (found.cluster, found.container) == (wanted.cluster, wanted.container):
            return
        raise BindFailed(Status.FOREIGN_DATA, f"bdev {bdev.name} is container {found.container.hex()}")
    for segment in (0, wanted.segment_count - 1):
        start = segment * wanted.segment_size
        for offset in range(start, start + wanted.segment_size, _CHUNK):
            data = await _read(bdev, offset, min(_CHUNK, start + wanted.segment_size - offset))
            if data.count(0) != len(data):
                raise BindFailed(Status.FOREIGN_DATA, f"bdev {bdev.name} holds data in segment {segment}")


async def _write_label(bdev: Bdev, label: Label) -> None:
    status, _ = await transfer(bdev, Operation.WRITE, 0, LABEL_BYTES, label.encode())
    if status is Status.OK and bdev.supports(Operation.FLUSH):
        status, _ = await transfer(bdev, Operation.FLUSH)
    if status is not Status.OK:
        raise BindFailed(Status.IO_ERROR, f"writing the label of bdev {bdev.name}: {status.name}")
