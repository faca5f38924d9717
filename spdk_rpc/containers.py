"""Containers as a target attaches them, and what it takes to get there from what the target has (pure).

``plan_attach`` and ``plan_detach`` compare what is wanted with what was read and give the calls that are missing; none
when all is as wanted. So an attach can be repeated at any time, and one whose outcome is unknown is read back.

Before an NVMe container is attached, the target is told to send flushes to it: SPDK answers them by itself otherwise,
and what a host was told to be durable would be lost with the container's power.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spdk_rpc.call import Call
from spdk_rpc.converge import TargetConflict, converge, read_bdev
from spdk_rpc.methods import bdev, bdev_nvme, framework
from spdk_rpc.methods.bdev import Bdev
from spdk_rpc.methods.bdev_nvme import Controller, Path, Reconnection
from spdk_rpc.steps import Steps, make

MALLOC_PRODUCT = "Malloc disk"
AIO_PRODUCT = "AIO disk"
NULL_PRODUCT = "Null disk"
ERROR_PRODUCT = "Error Injection Disk"
DELAY_PRODUCT = "delay"
SET_OPTIONS = "bdev_nvme_set_options"


@dataclass(frozen=True, slots=True)
class NvmeTcpContainer:
    """A container that a container host exports: controller ``name``, bdevs ``<name>n<nsid>``."""

    name: str
    traddr: str
    trsvcid: str
    subnqn: str
    hostnqn: str
    adrfam: str | None = None
    hdgst: bool = False
    ddgst: bool = False
    num_io_queues: int | None = None
    reconnection: Reconnection | None = None

    @property
    def family(self) -> str:
        """``adrfam``, or what the address looks like."""
        return self.adrfam or address_family(self.traddr)

    def is_at(self, path: Path) -> bool:
        """Whether an attached path is this container, and we are there as the host that we want to be."""
        return (path.trtype.upper(), path.traddr, path.trsvcid, path.subnqn, path.hostnqn) == (
            "TCP",
            self.traddr,
            self.trsvcid,
            self.subnqn,
            self.hostnqn,
        )


@dataclass(frozen=True, slots=True)
class NvmePcieContainer:
    """A NVMe controller in the target's machine; its bdevs are ``<name>n<nsid>``."""

    name: str
    traddr: str


@dataclass(frozen=True, slots=True)
class AioContainer:
    """A file or block device of the target's machine."""

    name: str
    filename: str
    block_size: int = 512
    uuid: str | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class MallocContainer:
    """The target's own memory: gone with its process."""

    name: str
    block_size: int
    num_blocks: int
    uuid: str | None = None


@dataclass(frozen=True, slots=True)
class NullContainer:
    """Takes writes and forgets them; for measurements."""

    name: str
    block_size: int
    num_blocks: int
    uuid: str | None = None


@dataclass(frozen=True, slots=True)
class ErrorContainer:
    """What fails I/O on another bdev as it is told; for tests."""

    base: str

    @property
    def name(self) -> str:
        """SPDK's choice."""
        return f"EE_{self.base}"


@dataclass(frozen=True, slots=True)
class DelayContainer:
    """What delays I/O on another bdev as it is told, at first not at all; for tests."""

    name: str
    base: str

    @staticmethod
    def faulty(storage: str) -> str:
        """The name of the one that is exported instead of a bdev that can be made to fail."""
        return f"faults-{storage}"


NvmeContainer = NvmeTcpContainer | NvmePcieContainer
BdevContainer = AioContainer | MallocContainer | NullContainer | ErrorContainer | DelayContainer
Container = NvmeContainer | BdevContainer


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the target has, as far as was looked: bdevs and NVMe controllers."""

    bdevs: tuple[Bdev, ...] = ()
    controllers: tuple[Controller, ...] = ()

    def bdev(self, name: str) -> Bdev | None:
        return next((found for found in self.bdevs if found.name == name), None)

    def controller(self, name: str) -> Controller | None:
        return next((found for found in self.controllers if found.name == name), None)


def bdevs_of(container: Container, inventory: Inventory) -> tuple[Bdev, ...]:
    """The container's bdevs, as far as they are there."""
    if isinstance(container, NvmeContainer):
        names = re.compile(re.escape(container.name) + r"n\d+")
        return tuple(found for found in inventory.bdevs if names.fullmatch(found.name))
    found = inventory.bdev(container.name)
    return () if found is None else (found,)


def plan_attach(container: Container, inventory: Inventory) -> Sequence[Call[Any]]:
    """The calls that attach it; none if it is attached. Raises TargetConflict for another bdev of its name."""
    if isinstance(container, NvmeContainer):
        return _plan_nvme(container, inventory.controller(container.name))
    found = inventory.bdev(container.name)
    if found is None:
        return [_create(container)]
    difference = _difference(container, found)
    if difference:
        raise TargetConflict(f"bdev {container.name} exists and differs: {difference}; delete it or choose a new name")
    return []


def plan_detach(container: Container, inventory: Inventory) -> Sequence[Call[Any]]:
    """The calls that detach it; none if it is not attached. Never deletes a bdev of another kind."""
    if isinstance(container, NvmeContainer):
        known = inventory.controller(container.name)
        return [] if known is None else [bdev_nvme.detach_controller(container.name)]
    found = inventory.bdev(container.name)
    if found is None or found.product_name != _product(container):
        return []
    return [_delete(container)]


def attach(container: Container) -> Steps[None]:
    """Attaches the container. Nothing changes if it is attached. Raises TargetConflict, RpcError."""
    if isinstance(container, NvmeContainer):
        yield from converge(reads_flush, plan_flush)
    yield from converge(lambda: read_inventory(container), lambda found: plan_attach(container, found))


def detach(container: Container) -> Steps[None]:
    """Detaches the container; nothing happens if it is not attached."""
    yield from converge(lambda: read_inventory(container), lambda found: plan_detach(container, found))


def detach_controller(name: str) -> Steps[None]:
    """Detaches the NVMe controller of that name, wherever it leads; nothing happens if there is none."""

    def plan(found: Inventory) -> Sequence[Call[Any]]:
        return [] if found.controller(name) is None else [bdev_nvme.detach_controller(name)]

    yield from converge(_read_controllers, plan)


def read_bdevs(container: Container) -> Steps[tuple[Bdev, ...]]:
    """The container's bdevs, as far as they are there."""
    if isinstance(container, NvmeContainer):
        return bdevs_of(container, Inventory((yield from make(bdev.get_bdevs()))))
    return bdevs_of(container, (yield from read_inventory(container)))


def read_inventory(container: Container) -> Steps[Inventory]:
    """As much of what the target has as the container's plans look at."""
    if isinstance(container, NvmeContainer):
        return (yield from _read_controllers())
    found = yield from read_bdev(container.name)
    return Inventory(() if found is None else (found,))


def _read_controllers() -> Steps[Inventory]:
    return Inventory((), (yield from make(bdev_nvme.get_controllers())))


def reads_flush() -> Steps[bool]:
    """Whether a flush of an NVMe bdev goes to its controller."""
    for call in (yield from make(framework.get_config("bdev"))):
        if call["method"] == SET_OPTIONS:
            return call["params"].get("enable_flush", True) is True
    return True  # the embedded target has no such option: it always sends it


def plan_flush(enabled: bool) -> Sequence[Call[Any]]:
    """Lets flushes go to the controllers. Refused (-EPERM) while one is attached: detach all first."""
    return [] if enabled else [bdev_nvme.set_options(enable_flush=True)]


def address_family(traddr: str) -> str:
    """SPDK's word for what kind of address it is."""
    return "IPv6" if ":" in traddr else "IPv4"


def _plan_nvme(container: NvmeContainer, known: Controller | None) -> Sequence[Call[Any]]:
    if isinstance(container, NvmePcieContainer):
        return [] if known else [bdev_nvme.attach_controller(container.name, "PCIe", container.traddr)]
    if known is not None and [path for path in known.paths if container.is_at(path)]:
        return []
    attach = bdev_nvme.attach_controller(
        container.name,
        "TCP",
        container.traddr,
        adrfam=container.family,
        trsvcid=container.trsvcid,
        subnqn=container.subnqn,
        hostnqn=container.hostnqn,
        hdgst=container.hdgst,
        ddgst=container.ddgst,
        num_io_queues=container.num_io_queues,
        reconnection=container.reconnection,
    )
    return [attach] if known is None else [bdev_nvme.detach_controller(container.name), attach]


def _create(container: BdevContainer) -> Call[str] | Call[bool]:
    match container:
        case AioContainer(name, filename, block_size, uuid, read_only):
            return bdev.aio_create(name, filename, block_size, uuid=uuid, read_only=read_only)
        case MallocContainer(name, block_size, num_blocks, uuid):
            return bdev.malloc_create(name, block_size, num_blocks, uuid)
        case NullContainer(name, block_size, num_blocks, uuid):
            return bdev.null_create(name, block_size, num_blocks, uuid)
        case ErrorContainer(base):
            return bdev.error_create(base)
        case DelayContainer(name, base):
            return bdev.delay_create(name, base)


def _delete(container: BdevContainer) -> Call[bool]:
    match container:
        case AioContainer(name):
            return bdev.aio_delete(name)
        case MallocContainer(name):
            return bdev.malloc_delete(name)
        case NullContainer(name):
            return bdev.null_delete(name)
        case ErrorContainer():
            return bdev.error_delete(container.name)
        case DelayContainer(name):
            return bdev.delay_delete(name)


def _product(container: BdevContainer) -> str:
    match container:
        case AioContainer():
            return AIO_PRODUCT
        case MallocContainer():
            return MALLOC_PRODUCT
        case NullContainer():
            return NULL_PRODUCT
        case ErrorContainer():
            return ERROR_PRODUCT
        case DelayContainer():
            return DELAY_PRODUCT


def _difference(container: BdevContainer, found: Bdev) -> str | None:
    """What about the bdev is not as wanted."""
    if found.product_name != _product(container):
        return f"it is a {found.product_name}, not a {_product(container)}"
    if isinstance(container, ErrorContainer | DelayContainer):
        return _other_base(container.base, found)
    wanted: list[tuple[str, object, object]] = [("block_size", container.block_size, found.block_size)]
    if isinstance(container, AioContainer):
        wanted.append(("filename", container.filename, found.driver_specific.get("aio", {}).get("filename")))
    else:
        wanted.append(("num_blocks", container.num_blocks, found.num_blocks))
    if container.uuid is not None:
        wanted.append(("uuid", container.uuid.lower(), found.uuid.lower()))
    return next((f"{name} is {there!r}, not {want!r}" for name, want, there in wanted if want != there), None)


def _other_base(base: str, found: Bdev) -> str | None:
    kinds = (("error_disk", "base_bdev"), ("delay", "base_bdev_name"))
    there = [found.driver_specific.get(kind, {}).get(name) for kind, name in kinds]
    return None if base in there else f"it stands on {next(filter(None, there), None)!r}, not on {base!r}"
