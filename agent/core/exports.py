"""An exporter's own work on a fresh or adopted target: its containers' bdevs, and a subsystem for each.

A container's allow-list begins empty, and only the controller fills it (design: hard fence); at an adopted target it is
left as it is. A container that cannot be built does not keep the others from being exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

from agent.config import ContainerConfig
from agent.core.procedures import NQN_PREFIX, Part
from agent.core.work import EnsureFile, Procedure
from spdk_rpc.containers import (
    AioContainer,
    Container,
    DelayContainer,
    ErrorContainer,
    MallocContainer,
    NullContainer,
    NvmePcieContainer,
    attach,
)
from spdk_rpc.converge import TargetError, read_bdev
from spdk_rpc.errors import RpcFailure
from spdk_rpc.exports import Export, ExportNamespace, FrontEnd
from spdk_rpc.methods.bdev import Bdev

CONTAINER_MODEL: Final = "segmap container"
NSID: Final = 1
SERIAL_LENGTH: Final = 20


@dataclass(frozen=True, slots=True)
class Exported:
    """One container as it is exported; what EXPORTS tells of it."""

    name: str
    subnqn: str
    nsid: int
    uuid: bytes
    block_size: int
    block_count: int


@dataclass(frozen=True, slots=True)
class Built:
    """How building ended: what is exported, and container name -> why it is not."""

    exported: tuple[Exported, ...]
    failed: dict[str, str]


def container_nqn(agent: str, container: ContainerConfig) -> str:
    return container.subnqn or f"{NQN_PREFIX}:container:{agent}:{container.name}"


def container_uuid(agent: str, container: ContainerConfig) -> bytes:
    """The namespace's UUID, the same at each start. Not the bdev's: a target that is also a mapping agent attaches
    the namespace as a bdev of its own, beside the exported one, and bdevs must differ."""
    return uuid5(NAMESPACE_URL, container_nqn(agent, container)).bytes


def bdev_uuid(agent: str, container: ContainerConfig) -> bytes:
    """The exported bdev's UUID, the same at each start."""
    return uuid5(NAMESPACE_URL, container_nqn(agent, container) + ":bdev").bytes


def build(agent: str, wanted: tuple[ContainerConfig, ...], front_end: FrontEnd) -> Procedure:
    """-> Built. Without a transport nothing is exported, and everything has failed."""
    exported: list[Exported] = []
    failed: dict[str, str] = {}
    try:
        yield from front_end.prepare()
    except (RpcFailure, TargetError) as failure:
        return Built((), {"(transport)": str(failure)})
    for container in wanted:
        try:
            exported.append((yield from _build(agent, container, front_end)))
        except (RpcFailure, TargetError) as failure:
            failed[container.name] = str(failure)
        except OSError as failure:
            failed[container.name] = f"{container.path}: {failure.strerror or failure}"
    return Built(tuple(exported), failed)


def _build(agent: str, container: ContainerConfig, front_end: FrontEnd) -> Part:
    uuid = UUID(bytes=container_uuid(agent, container))
    bdev: Bdev = yield from _bdev(container, str(UUID(bytes=bdev_uuid(agent, container))))
    nqn = container_nqn(agent, container)
    wanted = Export(
        nqn=nqn,
        namespaces=(ExportNamespace(NSID, bdev.name, str(uuid), uuid.hex),),
        hosts=None,
        serial_number=uuid.hex[:SERIAL_LENGTH],
        model_number=CONTAINER_MODEL,
    )
    yield from front_end.export(wanted)
    return Exported(container.name, nqn, NSID, uuid.bytes, bdev.block_size, bdev.num_blocks)


def _bdev(container: ContainerConfig, uuid: str) -> Part:
    """The container's bdev, created unless it is there."""
    name = container.name
    if container.kind == "bdev":
        name = container.bdev
    elif container.kind == "nvme":
        name = f"{container.name}n{container.nsid}"
        yield from attach(NvmePcieContainer(container.name, container.traddr))
    else:
        if container.kind == "aio" and container.size_bytes:
            yield EnsureFile(str(container.path), container.size_bytes)
        yield from attach(_created(container, uuid))
    if container.faults:
        error = ErrorContainer(name)
        delay = DelayContainer(DelayContainer.faulty(name), error.name)
        yield from attach(error)
        yield from attach(delay)
        name = delay.name
    found = yield from read_bdev(name)
    if found is None:
        raise TargetError(f"the target has no bdev {name}")
    return found


def _created(container: ContainerConfig, uuid: str) -> Container:
    num_blocks = container.size_bytes // container.block_size
    if container.kind == "aio":
        return AioContainer(container.name, str(container.path), container.block_size, uuid)
    kind = MallocContainer if container.kind == "malloc" else NullContainer
    return kind(container.name, container.block_size, num_blocks, uuid)
