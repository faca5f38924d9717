"""Log pages of the target (Base Specification, Get Log Page): each whole, the caller cuts out what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from fabric.nvme_tcp import identify
from fabric.nvme_tcp.identify_target import FIRMWARE
from fabric.nvme_tcp.spec import (
    EVENT_DISCOVERY_CHANGED,
    EVENT_NAMESPACES_CHANGED,
    AdminOpcode,
    Feature,
    LogPage,
    Opcode,
)

if TYPE_CHECKING:
    from fabric.nvme_tcp.controller import Controller
    from fabric.nvme_tcp.target import NvmeTarget

_SUPPORTED: Final = 1  # LSUPP, CSUPP, FSUPP
_CHANGES_CONTENT: Final = 1 << 1
_NAMESPACE_SCOPE: Final = 1 << 20
_CONTROLLER_SCOPE: Final = 1 << 21
_UNIT_BYTES: Final = 512_000
_ROOM_TEMPERATURE_KELVIN: Final = 300


def page(controller: Controller, target: NvmeTarget, number: int, *, retain: bool) -> bytes | None:
    """The whole log page, or None if there is none of this number. Not `retain`: its event may be raised again."""
    if number == LogPage.DISCOVERY:
        return _discovery(controller, target, retain) if controller.subsystem.is_discovery else None
    build = _PAGES.get(number)
    if build is None or (controller.subsystem.is_discovery and number not in _OF_DISCOVERY):
        return None
    return build(controller, retain)


def _discovery(controller: Controller, target: NvmeTarget, retain: bool) -> bytes:
    if not retain:
        controller.event_read(EVENT_DISCOVERY_CHANGED)
    entries = target.discovery_entries(controller.hostnqn, controller.queues[0].listener)
    return identify.discovery_log(target.generation, entries, target.limits.max_admin_depth)


def _table(entries: Mapping[Any, int], count: int) -> bytes:
    return Struct(f"<{count}I").pack(*(entries.get(number, 0) for number in range(count)))


def _supported(controller: Controller, _retain: bool) -> bytes:
    discovery = controller.subsystem.is_discovery
    numbers = {*_OF_DISCOVERY, LogPage.DISCOVERY} if discovery else set(_PAGES)
    return _table(dict.fromkeys(numbers, _SUPPORTED), 256)


def _errors(controller: Controller, _retain: bool) -> bytes:
    return b"".join(controller.errors).ljust(64 * (controller.errors.maxlen or 0), b"\0")


def _smart(controller: Controller, _retain: bool) -> bytes:
    return identify.SMART.build(
        temperature=_ROOM_TEMPERATURE_KELVIN,
        spare=100,
        spare_threshold=10,
        units_read=-(-controller.bytes_read // _UNIT_BYTES),
        units_written=-(-controller.bytes_written // _UNIT_BYTES),
        reads=controller.reads,
        writes=controller.writes,
        errors=controller.error_count,
    )


def _firmware(_controller: Controller, _retain: bool) -> bytes:
    return (b"\x01".ljust(8, b"\0") + identify.text(FIRMWARE, 8)).ljust(512, b"\0")


def _changed(controller: Controller, retain: bool) -> bytes:
    answer = identify.changed_namespaces(controller.changed)
    if not retain:
        controller.changed.clear()
        controller.event_read(EVENT_NAMESPACES_CHANGED)
    return answer


def _effects(_controller: Controller, _retain: bool) -> bytes:
    admin = dict.fromkeys(AdminOpcode, _SUPPORTED)
    io = {
        Opcode.READ: _SUPPORTED,
        Opcode.FLUSH: _SUPPORTED,
        Opcode.WRITE: _SUPPORTED | _CHANGES_CONTENT,
        Opcode.WRITE_ZEROES: _SUPPORTED | _CHANGES_CONTENT,
        Opcode.DATASET_MANAGEMENT: _SUPPORTED | _CHANGES_CONTENT,
    }
    return (_table(admin, 256) + _table(io, 256)).ljust(4096, b"\0")


def _feature_effects(_controller: Controller, _retain: bool) -> bytes:
    scopes = dict.fromkeys(Feature, _SUPPORTED | _CONTROLLER_SCOPE)
    scopes[Feature.ERROR_RECOVERY] = _SUPPORTED | _NAMESPACE_SCOPE
    return _table(scopes, 256)


_PAGES: Final[dict[int, Callable[[Controller, bool], bytes]]] = {
    LogPage.SUPPORTED: _supported,
    LogPage.ERROR: _errors,
    LogPage.SMART: _smart,
    LogPage.FIRMWARE_SLOT: _firmware,
    LogPage.CHANGED_NAMESPACES: _changed,
    LogPage.COMMAND_EFFECTS: _effects,
    LogPage.FEATURE_EFFECTS: _feature_effects,
}
_OF_DISCOVERY: Final = frozenset({LogPage.SUPPORTED, LogPage.ERROR, LogPage.FEATURE_EFFECTS})
