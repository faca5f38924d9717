"""What the document says, as the controller's and the agents' own configuration objects.

Files a process keeps live in its own private directory under the runtime directory: `controller/`, `agent-NAME/`,
`pki/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.config import BYTES_PER_MIB, AgentConfig, ContainerConfig, SpdkOptions
from cli.config.document import Document
from controller.config import ControllerConfig
from transport import pki

NS_PER_S = 10**9
PKI_DIRECTORY = "pki"
CONTROLLER_NAME = "controller"


def pki_dir(document: Document) -> Path:
    return document.runtime_dir / PKI_DIRECTORY


def agent_dir(document: Document, name: str) -> Path:
    return document.runtime_dir / f"agent-{name}"


def agent_ready_file(document: Document, name: str) -> Path:
    """Written by the agent once its target and exports are up."""
    return agent_dir(document, name) / "ready.json"


def controller_port_file(document: Document) -> Path:
    """Written by the controller once agents can connect."""
    return document.runtime_dir / "controller.port"


def controller_config(document: Document) -> ControllerConfig:
    """The controller's part."""
    part = document.controller
    host, port = part["listen"]
    tls = pki.files(pki_dir(document), CONTROLLER_NAME, "controller")
    return ControllerConfig(
        store_path=document.path(part["store"]),
        listen_host=host,
        listen_port=port,
        tls_ca=tls.ca,
        tls_certificate=tls.certificate,
        tls_key=tls.key,
        api_socket=document.api_socket,
        api_listen=part["api_listen"],
        api_tokens=document.path(part["api_tokens"]),
        cluster_name=document.values["cluster"],
        lease_duration_s=part["lease"] / NS_PER_S,
        renew_interval_s=part["renew"] / NS_PER_S,
        park_limit_s=part["park_limit"] / NS_PER_S,
        io_deadline_s=part["io_deadline"] / NS_PER_S,
        space_deadline_s=part["space_deadline"] / NS_PER_S,
        segment_size=document.values["segment_size"],
        block_size=int(document.values["block_size"]),
        port_file=controller_port_file(document),
    )


def agent_config(document: Document, name: str) -> AgentConfig:
    """The part of the agent called ``name``; ConfigError if there is none."""
    part = document.agent(name)
    host, port = part["listen"]
    tls = pki.files(pki_dir(document), name, "agent")
    return AgentConfig(
        name=name,
        roles=frozenset(part["roles"]),
        controllers=(document.controller["listen"],),
        tls_ca=tls.ca,
        tls_certificate=tls.certificate,
        tls_key=tls.key,
        runtime_dir=agent_dir(document, name),
        target=part["target"],
        target_command=tuple(part["target_command"]),
        spdk=_spdk_options(part["spdk"]),
        target_lifetime=part["target_lifetime"],
        rpc_socket=_optional_path(document, part["rpc_socket"]),
        dataplane_socket=_optional_path(document, part["dataplane_socket"]),
        listen_host=host,
        listen_port=port,
        containers=tuple(_container_config(document, export) for export in part["exports"]),
        ready_file=agent_ready_file(document, name),
        verbose=document.values["verbose"],
    )


def _spdk_options(part: dict[str, Any]) -> SpdkOptions:
    return SpdkOptions(
        core_mask=part["cores"],
        memory_mib=part["memory"] // BYTES_PER_MIB,
        huge_pages=part["huge_pages"],
        core_locks=part["core_locks"],
    )


def _container_config(document: Document, export: dict[str, Any]) -> ContainerConfig:
    return ContainerConfig(
        name=export["name"],
        kind=export["kind"],
        path=_optional_path(document, export["file"]),
        size_bytes=export["size"] or 0,
        block_size=int(export["block_size"]),
        bdev=export["bdev"] or "",
        traddr=export["traddr"] or "",
        nsid=export["nsid"],
        faults=export["faults"],
    )


def _optional_path(document: Document, path: Path | None) -> Path | None:
    return None if path is None else document.path(path)
