"""What the agent asks of its target by JSON-RPC: one typed call for each, and how a call can end.

A call ends with a value, as CallRefused (the target said no: nothing was changed), or as CallUnknown (it timed out or
the connection broke: it may have been done or may yet be done; whoever asked must read back).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NOT_FOUND_CODES: Final = frozenset({-19, -2})  # ENODEV, ENOENT


class CallFailed(Exception):
    """A call to the target did not give a value."""


class CallRefused(CallFailed):
    """The target refused; `code` is its JSON-RPC error code, often a negative errno."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code

    @property
    def not_found(self) -> bool:
        return self.code in NOT_FOUND_CODES


class CallUnknown(CallFailed):
    """Nobody knows whether the call was done."""


# --- containers at a mapper ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ControllerPath:
    """Where a container's NVMe controller leads, and as whom we connect. `usable`: connected at this moment."""

    trtype: str
    traddr: str
    trsvcid: str
    subnqn: str
    hostnqn: str


@dataclass(frozen=True, slots=True)
class FindController:
    """-> ControllerPath | None"""

    name: str


@dataclass(frozen=True, slots=True)
class AttachController:
    """-> list[str], the bdevs that appeared"""

    name: str
    path: ControllerPath


@dataclass(frozen=True, slots=True)
class DetachController:
    """-> None"""

    name: str


@dataclass(frozen=True, slots=True)
class ListControllers:
    """-> dict[str, bool]: name of each attached NVMe controller, and whether it is usable now"""


# --- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateTable:
    """-> None. Sizes in bytes; `uuid` and `nguid` are 16 bytes."""

    table: int
    name: str
    uuid: bytes
    nguid: bytes
    segment_count: int
    segment_size: int
    block_size: int
    read_only: bool
    reclaim: bool


@dataclass(frozen=True, slots=True)
class DeleteTable:
    """-> None"""

    name: str


@dataclass(frozen=True, slots=True)
class ListTables:
    """-> dict[int, str]: table id -> bdev name"""


# --- subsystems ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listener:
    """A NVMe/TCP portal."""

    trtype: str
    traddr: str
    trsvcid: str


@dataclass(frozen=True, slots=True)
class NamespaceState:
    """One namespace of a subsystem."""

    nsid: int
    bdev: str


@dataclass(frozen=True, slots=True)
class SubsystemState:
    """A subsystem as the target describes it."""

    nqn: str
    serial: str
    cntlid_min: int
    cntlid_max: int
    allow_any_host: bool
    hosts: frozenset[str]
    namespaces: tuple[NamespaceState, ...]
    listeners: tuple[Listener, ...]


@dataclass(frozen=True, slots=True)
class FindSubsystem:
    """-> SubsystemState | None"""

    nqn: str


@dataclass(frozen=True, slots=True)
class CreateSubsystem:
    """-> None. With an empty allow-list unless `allow_any_host`."""

    nqn: str
    serial: str
    model: str
    cntlid_min: int
    cntlid_max: int
    allow_any_host: bool


@dataclass(frozen=True, slots=True)
class DeleteSubsystem:
    """-> None"""

    nqn: str


@dataclass(frozen=True, slots=True)
class AddNamespace:
    """-> None. `nguid` and `uuid`: 16 bytes, or empty for the bdev's own."""

    nqn: str
    nsid: int
    bdev: str
    nguid: bytes = b""
    uuid: bytes = b""


@dataclass(frozen=True, slots=True)
class RemoveNamespace:
    """-> None"""

    nqn: str
    nsid: int


@dataclass(frozen=True, slots=True)
class AddListener:
    """-> None"""

    nqn: str
    listener: Listener


@dataclass(frozen=True, slots=True)
class AddHost:
    """-> None"""

    nqn: str
    host: str


@dataclass(frozen=True, slots=True)
class RemoveHost:
    """-> None. The target also ends the host's connections."""

    nqn: str
    host: str


@dataclass(frozen=True, slots=True)
class AllowAnyHost:
    """-> None"""

    nqn: str
    allow: bool


@dataclass(frozen=True, slots=True)
class ListQueuePairs:
    """-> list[str]: the host NQN of every queue pair of the subsystem"""

    nqn: str


@dataclass(frozen=True, slots=True)
class EnsureTransport:
    """-> None. NVMe/TCP is ready to listen."""


# --- bdevs of an exporter --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BdevState:
    """A bdev as the target describes it."""

    name: str
    block_size: int
    block_count: int
    uuid: bytes


@dataclass(frozen=True, slots=True)
class FindBdev:
    """-> BdevState | None"""

    name: str


@dataclass(frozen=True, slots=True)
class CreateBdev:
    """-> None. `kind`: aio, malloc or null; `path`: the file of an aio bdev."""

    kind: str
    name: str
    path: str
    size_bytes: int
    block_size: int
    uuid: bytes


@dataclass(frozen=True, slots=True)
class AttachLocal:
    """-> list[str]: the bdevs of a local PCIe NVMe controller"""

    name: str
    traddr: str


@dataclass(frozen=True, slots=True)
class EnsureFile:
    """-> None. Not the target's work: a missing file is created sparse, an existing one is left as it is."""

    path: str
    size_bytes: int


TargetCall = (
    FindController
    | AttachController
    | DetachController
    | ListControllers
    | CreateTable
    | DeleteTable
    | ListTables
    | FindSubsystem
    | CreateSubsystem
    | DeleteSubsystem
    | AddNamespace
    | RemoveNamespace
    | AddListener
    | AddHost
    | RemoveHost
    | AllowAnyHost
    | ListQueuePairs
    | EnsureTransport
    | FindBdev
    | CreateBdev
    | AttachLocal
    | EnsureFile
)
