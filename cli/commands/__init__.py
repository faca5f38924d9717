"""The command table: every `segmap` command, one module for each group."""

from __future__ import annotations

from cli.command import Command
from cli.commands import (
    access,
    agents,
    cluster,
    configuration,
    containers,
    daemons,
    doctor,
    fault_proxy,
    fault_storage,
    io,
    maps,
    pki,
    store,
    vdisks,
)

GROUPS: dict[str, str] = {
    "container": "Storage that vdisks are made of.",
    "vdisk": "Virtual disks.",
    "agent": "Mapping agents and container hosts; with --config, the daemon itself.",
    "io": "Data in and out of vdisks, and I/O that waits.",
    "config": "The configuration file.",
    "store": "The controller's store: backups, verification, restoring.",
    "token": "Clients of the API that are not the controller's own user.",
    "pki": "Certificates of the controller and the agents.",
    "fault-proxy": "A bad network on demand, for test systems.",
    "fault-storage": "Bad storage on demand, for test systems.",
}

COMMANDS: tuple[Command, ...] = (
    *daemons.COMMANDS,
    *doctor.COMMANDS,
    *cluster.COMMANDS,
    *containers.COMMANDS,
    *vdisks.COMMANDS,
    *maps.COMMANDS,
    *agents.COMMANDS,
    *io.COMMANDS,
    *configuration.COMMANDS,
    *store.COMMANDS,
    *pki.COMMANDS,
    *access.COMMANDS,
    *fault_proxy.COMMANDS,
    *fault_storage.COMMANDS,
)
