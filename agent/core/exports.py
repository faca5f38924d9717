"""An exporter's own work on a fresh or adopted target: its containers' bdevs, and a subsystem for each.

A container's allow-list begins empty, and only the controller fills it (design: hard fence); at an adopted target it is
left as it is. A container that cannot be built does not keep the others from being exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from agent.config import ContainerConfig
from agent.core import calls
from agent.core.calls import BdevState, CallFailed, Listener, NamespaceState
from agent.core.presentations import CONTAINER_MODEL, Export, export
from agent.core.procedures import NQN_PREFIX, Part, call, converge
from agent.core.work import Procedure

NSID: Final = 1
SERIAL_LENGTH: Final = 20


@dataclass(frozen=True, slots=True)
class Exported:
    """One container as it is exported; what EXPORTS tells of it."""

    name: str
    subnqn: str
    nsid: int
    uuid: bytes
    bdev: BdevState


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


def build(agent: str, containers: tuple[ContainerConfig, ...], listener: Listener) -> Procedure:
    """-> Built. Without a transport nothing is exported, and everything has failed."""
    exported: list[Exported] = []
    failed: dict[str, str] = {}
    try:
        yield calls.EnsureTransport()
    except CallFailed as failure:
        return Built((), {"(transport)": str(failure)})
    for container in containers:
        try:
            exported.append((yield from _build(agent, container, listener)))
        except CallFailed as failure:
            failed[container.name] = str(failure)
    return Built(tuple(exported), failed)


def _build(agent: str, container: ContainerConfig, listener: Listener) -> Part:
    uuid = container_uuid(agent, container)
    bdev: BdevState = yield from _bdev(container, bdev_uuid(agent, container))
    nqn = container_nqn(agent, container)
    wanted = Export(
        nqn=nqn,
        serial=uuid.hex()[:SERIAL_LENGTH],
        model=CONTAINER_MODEL,
        namespace=NamespaceState(NSID, bdev.name),
        listener=listener,
        nguid=uuid,
        uuid=uuid,
    )
    yield from export(wanted)
    return Exported(container.name, nqn, NSID, uuid, bdev)


def _bdev(container: ContainerConfig, uuid: bytes) -> Part:
    """The container's bdev, created unless it is there."""
    name = container.name
    if container.kind == "bdev":
        name = container.bdev
    elif container.kind == "nvme":
        name = f"{container.name}n{container.nsid}"

    def act(_: BdevState | None) -> Part:
        if container.kind == "nvme":
            yield calls.AttachLocal(container.name, container.traddr)
        elif container.kind == "bdev":
            raise calls.CallRefused(-19, f"the target has no bdev {name}")
        else:
            if container.kind == "aio":
                yield calls.EnsureFile(str(container.path), container.size_bytes)
            yield calls.CreateBdev(
                container.kind, name, str(container.path or ""), container.size_bytes, container.block_size, uuid
            )

    return (yield from converge(lambda: call(calls.FindBdev(name)), lambda seen: seen is not None, act))
