"""The configuration that running processes read: ports picked, paths absolute.

`segmap up` writes it into the runtime directory. Ports that were picked once are kept, so that a cluster that is
started again is found where it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cli.config.document import DOCUMENT, Document, load
from cli.config.schema import ConfigError, ListOf, Section

RESOLVED_NAME = "cluster.yaml"
PickPort = Callable[[str, int], int]


def resolved_path(document: Document) -> Path:
    return document.runtime_dir / RESOLVED_NAME


def resolve(document: Document, pick: PickPort) -> Document:
    """The document with real ports, written to the runtime directory and read back. ``pick(host, preferred)``."""
    path = resolved_path(document)
    earlier = _earlier_ports(path)
    values = {**document.values, "runtime_dir": document.runtime_dir}
    values["controller"] = _with_port(document.controller, "controller", earlier, pick)
    values["agents"] = [_with_port(agent, agent["name"], earlier, pick) for agent in document.agents]
    text = "# Made by `segmap up`; what its processes read.\n" + yaml.safe_dump(
        to_plain(values, DOCUMENT), sort_keys=False
    )
    path.write_text(text, encoding="utf-8")
    return load(path)


def _earlier_ports(path: Path) -> dict[str, int]:
    """Ports of the last run, by process name; nothing if there was none or its file is not readable."""
    with contextlib.suppress(ConfigError):
        earlier = load(path)
        ports = {agent["name"]: agent["listen"][1] for agent in earlier.agents}
        return {"controller": earlier.controller["listen"][1], **ports}
    return {}


def _with_port(part: dict[str, Any], name: str, earlier: dict[str, int], pick: PickPort) -> dict[str, Any]:
    host, port = part["listen"]
    return {**part, "listen": (host, port or pick(host, earlier.get(name, 0)))}


def to_plain(values: dict[str, Any], section: Section) -> dict[str, Any]:
    """Checked values as a document says them: what the schema reads back to the same values."""
    plain: dict[str, Any] = {}
    for key in section.keys:
        value = values[key.name]
        if value is None:
            continue
        if isinstance(key.kind, Section):
            plain[key.name] = to_plain(value, key.kind)
        elif isinstance(key.kind, ListOf):
            item = key.kind.item
            plain[key.name] = [to_plain(one, item) if isinstance(item, Section) else str(one) for one in value]
        else:
            plain[key.name] = scalar_text(value, key.kind.name)
    return plain


def scalar_text(value: Any, kind: str) -> Any:
    """A scalar as its kind's parser takes it."""
    if kind == "a duration":
        return f"{value}ns"
    if kind == "an address HOST:PORT":
        host, port = value
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(value, bool | int):
        return value
    return str(value)
