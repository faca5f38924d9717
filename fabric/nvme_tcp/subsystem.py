"""What a target offers: listeners, namespaces (geometry and identity only) and subsystems.

The owner of a namespace does its I/O. `read_now` and `write_now` let it answer inside the parse loop, with neither a
command object nor a completion; everything they decline becomes a Command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fabric.nvme_tcp.spec import CNTLID_MAX, DISCOVERY_NQN, NQN_BYTES_MAX, NSID_ALL

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from fabric.nvme_tcp.controller import Controller

BLOCK_SIZES = (512, 1024, 2048, 4096)


class TargetError(ValueError):
    """A request about the target's configuration that cannot be granted; the text says why."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Where hosts connect."""

    traddr: str
    trsvcid: str
    adrfam: str = "IPv4"
    trtype: str = "TCP"


@dataclass(slots=True, eq=False)
class Namespace:
    """One namespace: geometry, identity, abilities. Sizes in blocks of `block_size` bytes; ids as on the wire."""

    nsid: int
    block_size: int
    block_count: int
    uuid: bytes = bytes(16)
    nguid: bytes = bytes(16)
    eui64: bytes = bytes(8)
    read_only: bool = False
    volatile_cache: bool = False
    deallocate: bool = True
    write_zeroes: bool = True
    thin: bool = False
    boundary_blocks: int = 0
    owner: object = None
    read_now: Callable[[int, int], Buffer | None] | None = None
    write_now: Callable[[int, memoryview], bool] | None = None
    block_shift: int = field(init=False)

    def __post_init__(self) -> None:
        if not 0 < self.nsid < NSID_ALL - 1:
            raise TargetError(f"namespace id {self.nsid} is not possible")
        if self.block_size not in BLOCK_SIZES or self.block_count < 1:
            raise TargetError(f"a namespace of {self.block_count} blocks of {self.block_size} bytes is not possible")
        if (len(self.uuid), len(self.nguid), len(self.eui64)) != (16, 16, 8):
            raise TargetError("UUID and NGUID have 16 bytes, EUI64 has 8")
        self.block_shift = self.block_size.bit_length() - 1


class Subsystem:
    """An NVM subsystem: namespaces, who may connect, where, and its controllers. Change it through NvmeTarget."""

    def __init__(
        self,
        nqn: str,
        *,
        serial: str = "0" * 20,
        model: str = "segmap",
        allow_any_host: bool = False,
        cntlid_min: int = 1,
        cntlid_max: int = CNTLID_MAX,
        namespaces_max: int = 32,
    ) -> None:
        check_nqn(nqn)
        if not 1 <= cntlid_min <= cntlid_max <= CNTLID_MAX:
            raise TargetError(f"controller ids {cntlid_min} to {cntlid_max} are not possible")
        if not serial.isascii() or len(serial) > 20 or not model.isascii() or len(model) > 40:
            raise TargetError("the serial number has at most 20 ASCII characters, the model 40")
        self.nqn = nqn
        self.serial = serial
        self.model = model
        self.allow_any_host = allow_any_host
        self.cntlid_min = cntlid_min
        self.cntlid_max = cntlid_max
        self.namespaces_max = namespaces_max
        self.namespaces: dict[int, Namespace] = {}
        self.hosts: set[str] = set()
        self.listeners: list[Listener] = []
        self.controllers: dict[int, Controller] = {}
        self._cntlid_next = cntlid_min

    @property
    def is_discovery(self) -> bool:
        return self.nqn == DISCOVERY_NQN

    def allows(self, hostnqn: str) -> bool:
        """This host may connect."""
        return self.allow_any_host or hostnqn in self.hosts

    def take_cntlid(self) -> int | None:
        """A controller id that is not in use, as late as possible one used before; None if all are."""
        for _ in range(self.cntlid_max - self.cntlid_min + 1):
            cntlid = self._cntlid_next
            self._cntlid_next = self.cntlid_min if cntlid == self.cntlid_max else cntlid + 1
            if cntlid not in self.controllers:
                return cntlid
        return None


def check_nqn(nqn: str) -> None:
    """Raise TargetError unless `nqn` can be a qualified name."""
    if not 11 < len(nqn.encode()) <= NQN_BYTES_MAX or not nqn.startswith("nqn.") or "\0" in nqn:
        raise TargetError(f"{nqn[:80]!r} is no NVMe qualified name")
