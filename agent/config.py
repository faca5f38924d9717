"""What one mapping agent is told at its start: who it is, its controllers, its target, and what it exports.

Plain data: reading and explaining the YAML file is the command line's business. `check` names every contradiction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MAPPER: Final = "mapper"
EXPORTER: Final = "exporter"
ROLES: Final = (MAPPER, EXPORTER)
TARGETS: Final = ("embedded", "spdk", "adopt")
LIFETIMES: Final = ("host", "daemon")
KINDS: Final = ("aio", "malloc", "null", "bdev", "nvme")
CONTAINERS_MAX: Final = 256
UNIX_PATH_BYTES_MAX: Final = 107
BYTES_PER_MIB: Final = 1 << 20
SPDK_MEMORY_MIB_MIN: Final = 512
CORE_MASK: Final = re.compile(r"0x[0-9a-fA-F]{1,64}|\[\d+([-,]\d+)*\]")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """One container that an exporter exports. Sizes in bytes; which fields count depends on `kind`.

    aio: `path`, `size_bytes` (a missing file is created sparse; 0: the file must exist), `block_size`.
    malloc, null: `size_bytes`, `block_size`. bdev: `bdev`, the name of a bdev the target has already.
    nvme: `traddr`, the PCIe address of a local NVMe controller (SPDK only); `nsid` is its namespace.
    `faults`: what is exported is a delay bdev on an error bdev on it, which do nothing until they are told to.
    """

    name: str
    kind: str
    path: Path | None = None
    size_bytes: int = 0
    block_size: int = 512
    bdev: str = ""
    traddr: str = ""
    nsid: int = 1
    subnqn: str = ""
    faults: bool = False


@dataclass(frozen=True, slots=True)
class SpdkOptions:
    """How a SPDK target is started. `core_mask`: the cores that poll, as SPDK writes it (``0x6``, ``[1,2]``).

    `memory_mib` is what it may use beside what its containers of kind malloc need. `core_locks` refuse a core on which
    another SPDK application polls. Without `huge_pages` it has no PCIe devices.
    """

    core_mask: str = "0x1"
    memory_mib: int = 1024
    huge_pages: bool = False
    core_locks: bool = True


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One agent. Unix socket paths default to files in `runtime_dir`; times in seconds.

    `target`: embedded (`segmap target`), spdk (a mapper needs `segmap_tgt`, an exporter any target of SPDK; started as
    `spdk` says, or by `target_command` with ``-r rpc_socket`` added, and ``--dataplane-socket`` for a mapper), or adopt
    (somebody else starts it). `target_lifetime`: "host" lets the
    target survive the daemon and be adopted by the next one; "daemon" ends it with the daemon. `listen_port` 0: a free
    port is chosen once and kept in `runtime_dir`.
    """

    name: str
    roles: frozenset[str]
    controllers: tuple[tuple[str, int], ...]
    tls_ca: Path
    tls_certificate: Path
    tls_key: Path
    runtime_dir: Path
    target: str = "embedded"
    target_command: tuple[str, ...] = ()
    spdk: SpdkOptions = SpdkOptions()
    target_lifetime: str = "host"
    rpc_socket: Path | None = None
    dataplane_socket: Path | None = None
    listen_host: str = "127.0.0.1"
    listen_port: int = 0
    containers: tuple[ContainerConfig, ...] = field(default=())
    rpc_timeout_s: float = 10.0
    target_ready_s: float = 20.0
    deny_deadline_s: float = 10.0
    reconnect_min_s: float = 0.1
    reconnect_max_s: float = 0.5
    ready_file: Path | None = None
    verbose: bool = False

    @property
    def rpc_path(self) -> Path:
        """Where the target's JSON-RPC socket is."""
        return self.rpc_socket or self.runtime_dir / f"{self.name}-rpc.sock"

    @property
    def dataplane_path(self) -> Path:
        """Where the data plane's own socket is."""
        return self.dataplane_socket or self.runtime_dir / f"{self.name}-dp.sock"

    @property
    def log_path(self) -> Path:
        """Where the target's stdout and stderr go."""
        return self.runtime_dir / f"{self.name}-target.log"

    @property
    def lock_path(self) -> Path:
        """Locked by the one daemon that is this agent."""
        return self.runtime_dir / f"{self.name}-agent.lock"

    @property
    def pid_path(self) -> Path:
        """The running target's process id, for people and scripts."""
        return self.runtime_dir / "target.pid"

    @property
    def state_path(self) -> Path:
        """What the daemon must find again after its own restart: the target's process and the listener's port."""
        return self.runtime_dir / f"{self.name}-agent.json"

    @property
    def spdk_memory_mib(self) -> int:
        """What a SPDK target that we start may use: its own, and what its containers of kind malloc need."""
        malloc_bytes = sum(container.size_bytes for container in self.containers if container.kind == "malloc")
        return self.spdk.memory_mib + -(-malloc_bytes // BYTES_PER_MIB)

    @property
    def maps(self) -> bool:
        return MAPPER in self.roles

    @property
    def exports(self) -> bool:
        return EXPORTER in self.roles

    def check(self) -> None:
        """Raise ConfigError that lists everything wrong."""
        wrong = list(_agent_faults(self))
        for container in self.containers:
            wrong += _container_faults(container)
        if wrong:
            raise ConfigError(f"agent {self.name!r}: " + "; ".join(wrong))


class ConfigError(ValueError):
    """The configuration contradicts itself; the text says where."""


def _agent_faults(config: AgentConfig) -> Iterator[str]:
    if not NAME.fullmatch(config.name):
        yield "name: 1 to 63 letters, digits, '.', '_' or '-'"
    if not config.roles or not config.roles <= set(ROLES):
        yield f"roles: some of {', '.join(ROLES)}"
    if not config.controllers:
        yield "controllers: at least one address"
    if config.target not in TARGETS:
        yield f"target: one of {', '.join(TARGETS)}"
    if config.target == "spdk" and not config.target_command:
        yield from _spdk_faults(config)
    if config.target_lifetime not in LIFETIMES:
        yield f"target_lifetime: one of {', '.join(LIFETIMES)}"
    if config.containers and not config.exports:
        yield "containers: only an exporter has them"
    if len(config.containers) > CONTAINERS_MAX:
        yield f"containers: at most {CONTAINERS_MAX}"
    names = [container.name for container in config.containers]
    if len(set(names)) != len(names):
        yield "containers: names must differ"
    if not 0 <= config.listen_port <= 65535:
        yield "listen_port: 0 to 65535"
    for path in (config.rpc_path, config.dataplane_path):
        if len(str(path).encode()) > UNIX_PATH_BYTES_MAX:
            yield f"{path}: a Unix socket path has at most {UNIX_PATH_BYTES_MAX} bytes"


def _spdk_faults(config: AgentConfig) -> Iterator[str]:
    if not CORE_MASK.fullmatch(config.spdk.core_mask):
        yield "spdk.core_mask: a mask like 0x3, or a list of cores like [0,1]"
    if config.spdk.memory_mib < SPDK_MEMORY_MIB_MIN:
        yield f"spdk.memory_mib: at least {SPDK_MEMORY_MIB_MIN}"
    if not config.spdk.huge_pages and any(container.kind == "nvme" for container in config.containers):
        yield "spdk.huge_pages: needed for containers of kind nvme"


def _container_faults(container: ContainerConfig) -> Iterator[str]:
    where = f"container {container.name!r}: "
    if not NAME.fullmatch(container.name):
        yield where + "name: 1 to 63 letters, digits, '.', '_' or '-'"
    if container.kind not in KINDS:
        yield where + f"kind: one of {', '.join(KINDS)}"
    if container.block_size not in (512, 4096):
        yield where + "block_size: 512 or 4096"
    if container.size_bytes < 0 or container.size_bytes % container.block_size:
        yield where + "size_bytes: a multiple of block_size"
    if container.kind == "aio" and container.path is None:
        yield where + "path: needed for kind aio"
    if container.kind in ("malloc", "null") and not container.size_bytes:
        yield where + f"size_bytes: needed for kind {container.kind}"
    if container.kind == "bdev" and not container.bdev:
        yield where + "bdev: needed for kind bdev"
    if container.kind == "nvme" and not container.traddr:
        yield where + "traddr: needed for kind nvme"
