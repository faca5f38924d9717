"""The target itself: version, methods, start of the subsystems, saved configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spdk_rpc.call import Call, Node, read_object, read_texts, read_true, without_none


@dataclass(frozen=True, slots=True)
class Version:
    """``text`` as people read it; the numbers for comparisons."""

    text: str
    major: int
    minor: int
    patch: int
    suffix: str


@dataclass(frozen=True, slots=True)
class Subsystem:
    """A subsystem of the framework, and which ones start before it."""

    name: str
    depends_on: tuple[str, ...]


def get_version() -> Call[Version]:
    """``spdk_get_version``"""
    return Call("spdk_get_version", {}, _read_version)


def get_methods(current: bool = False, include_aliases: bool = False) -> Call[tuple[str, ...]]:
    """``rpc_get_methods``: all, or only those that may be called in the present state."""
    params = without_none(current=current or None, include_aliases=include_aliases or None)
    return Call("rpc_get_methods", params, read_texts)


def start_init() -> Call[bool]:
    """``framework_start_init``: goes on after ``--wait-for-rpc``; answers when all subsystems have started."""
    return Call("framework_start_init", {}, read_true)


def wait_init() -> Call[bool]:
    """``framework_wait_init``: answers when all subsystems have started."""
    return Call("framework_wait_init", {}, read_true)


def get_subsystems() -> Call[tuple[Subsystem, ...]]:
    """``framework_get_subsystems``, in the order of their start"""
    return Call("framework_get_subsystems", {}, lambda node: node.list(_read_subsystem))


def get_config(name: str) -> Call[tuple[dict[str, Any], ...]]:
    """``framework_get_config``: the calls ({method, params}) that would make the present state again."""
    return Call("framework_get_config", {"name": name}, _read_config)


def _read_version(node: Node) -> Version:
    fields = node.member("fields")
    return Version(
        node.text("version"),
        fields.number("major"),
        fields.number("minor"),
        fields.number("patch"),
        fields.text("suffix", ""),
    )


def _read_subsystem(node: Node) -> Subsystem:
    return Subsystem(node.text("subsystem"), read_texts(node.member("depends_on")))


def _read_config(node: Node) -> tuple[dict[str, Any], ...]:
    return () if node.value is None else node.list(read_object)
