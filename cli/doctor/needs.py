"""What the agents of a configuration need of the machine that they run on."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from agent.config import AgentConfig
from cli.config.daemons import agent_config, agent_dir, pki_dir
from cli.config.document import Document


@dataclass(frozen=True, slots=True)
class Poller:
    """A SPDK target that an agent starts: the cores that it polls on, and its memory in MiB."""

    agent: str
    cores: frozenset[int]
    core_locks: bool
    memory_mib: int
    huge_pages: bool


@dataclass(frozen=True, slots=True)
class Storage:
    """An AIO export: its file, and the bytes to make it with if it is missing (0: it has to be there)."""

    export: str
    file: Path
    make_bytes: int


@dataclass(frozen=True, slots=True)
class Needs:
    """`stock`, `module`: SPDK's own target, and ours. `pci`, `listens`: addresses, by export and by process."""

    stock: bool = False
    module: bool = False
    pollers: tuple[Poller, ...] = ()
    storage: tuple[Storage, ...] = ()
    pci: dict[str, str] = field(default_factory=dict)
    listens: dict[str, str] = field(default_factory=dict)
    private_dirs: tuple[Path, ...] = ()
    pki: Path | None = None

    @property
    def spdk(self) -> bool:
        return self.stock or self.module

    @property
    def huge_mib(self) -> int:
        """Memory in huge pages, of all targets together."""
        return sum(poller.memory_mib for poller in self.pollers if poller.huge_pages)


def needs_of(document: Document, names: Collection[str] = ()) -> Needs:
    """Of the agents called `names`; of all of them and the controller if there are none. Raises ConfigError."""
    agents = [document.agent(name) for name in names] or document.agents
    started = [agent for agent in agents if agent["target"] == "spdk"]
    own = [agent for agent in started if not agent["target_command"]]
    exports = [(agent, export) for agent in agents for export in agent["exports"]]
    listens = {f"agent {agent['name']}": agent["listen"][0] for agent in agents}
    if not names:
        listens["controller"] = document.controller["listen"][0]
    return Needs(
        stock=any("mapper" not in agent["roles"] for agent in own),
        module=any("mapper" in agent["roles"] for agent in own),
        pollers=tuple(poller_of(agent_config(document, agent["name"])) for agent in own),
        storage=tuple(
            Storage(f"{agent['name']}/{export['name']}", document.path(export["file"]), export["size"] or 0)
            for agent, export in exports
            if export["kind"] == "aio"
        ),
        pci={f"{a['name']}/{export['name']}": export["traddr"] for a, export in exports if export["kind"] == "nvme"},
        listens=listens,
        private_dirs=(document.runtime_dir, *(agent_dir(document, agent["name"]) for agent in agents)),
        pki=pki_dir(document),
    )


def poller_of(config: AgentConfig) -> Poller:
    options = config.spdk
    cores = cores_of(options.core_mask)
    return Poller(config.name, cores, options.core_locks, config.spdk_memory_mib, options.huge_pages)


def cores_of(mask: str) -> frozenset[int]:
    """The cores of a mask (``0x6``) or a list (``[1,2]``, ``[1-3]``), as SPDK reads them."""
    if mask.startswith("0x"):
        bits = int(mask, 16)
        return frozenset(core for core in range(bits.bit_length()) if bits >> core & 1)
    cores: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", mask):
        cores |= set(range(int(first), int(last or first) + 1))
    return frozenset(cores)
