"""Methods about the target itself: version, methods, start, subsystems, configuration, notifications, end."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dataplane.embedded import rpc_nvmf
from dataplane.embedded.json_rpc import INVALID_PARAMS, RpcError
from dataplane.embedded.parameters import boolean, one_of, optional, required, string, uint64
from dataplane.embedded.rpc_table import ALWAYS, INVALID, STARTUP, MethodTable, Parameters

if TYPE_CHECKING:
    from dataplane.embedded.target import Target

TABLE: Final = MethodTable()
SPDK_MAJOR: Final = 26
SPDK_MINOR: Final = 9
_SIGNALS: Final = {
    name: number
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGKILL, signal.SIGUSR1)
    for name in (number.name, number.name[3:], str(int(number)))
}


@functools.cache
def segmap_version() -> str:
    """The version of the installed package."""
    from importlib.metadata import PackageNotFoundError, version  # takes long to import: not in the way of a restart

    try:
        return version("segmap")
    except PackageNotFoundError:
        return "0"


@TABLE.plain("spdk_get_version", "spdk_get_version method requires no parameters", ALWAYS)
def spdk_get_version(target: Target, _: Parameters) -> dict[str, Any]:
    """The SPDK release whose methods this target speaks, and who it really is."""
    return {
        "version": f"SPDK v{SPDK_MAJOR}.{SPDK_MINOR:02} compatible, segmap embedded target {segmap_version()}",
        "fields": {"major": SPDK_MAJOR, "minor": SPDK_MINOR, "patch": 0, "suffix": "-segmap"},
    }


@TABLE.method(
    "rpc_get_methods",
    optional("current", boolean, False),
    optional("include_aliases", boolean, False),
    refusal=INVALID,
    states=ALWAYS,
    bare=True,
)
def rpc_get_methods(target: Target, parameters: Parameters) -> list[str]:
    """All, or those that may be called now. There are no aliases."""
    return target.methods.names(target.state if parameters["current"] else None)


@TABLE.plain("framework_start_init", "framework_start_init requires no parameters", STARTUP)
def framework_start_init(target: Target, _: Parameters) -> bool:
    """Leave the state in which --wait-for-rpc began."""
    target.start()
    return True


async def _wait_init(target: Target) -> bool:
    await target.wait_started()
    return True


@TABLE.method("framework_wait_init", states=ALWAYS, deaf=True)
def framework_wait_init(target: Target, _: Parameters) -> Any:
    """Answer once the target is started."""
    return _wait_init(target)


def _bdev_config(target: Target) -> list[dict[str, Any]]:
    controllers = [controller.config() for controller in target.controllers.all()]
    configs = [bdev.config() for bdev in target.layer.bdevs.values() if not bdev.removing]
    bdevs = [config for config in configs if config is not None]
    return [*controllers, *bdevs, {"method": "bdev_wait_for_examine"}]


SUBSYSTEMS: Final[dict[str, tuple[list[str], Callable[[Target], list[dict[str, Any]]]]]] = {
    "bdev": ([], _bdev_config),
    "nvmf": (["bdev"], lambda target: rpc_nvmf.config(target.nvmf)),
}


@TABLE.plain("framework_get_subsystems", "'framework_get_subsystems' requires no arguments")
def framework_get_subsystems(target: Target, _: Parameters) -> list[dict[str, Any]]:
    """The two that this target has."""
    return [{"subsystem": name, "depends_on": needs} for name, (needs, _) in SUBSYSTEMS.items()]


@TABLE.method(
    "framework_get_config",
    required("name", string),
    optional("with_batches", boolean, False),
    refusal=(INVALID_PARAMS, "Invalid arguments"),
)
def framework_get_config(target: Target, parameters: Parameters) -> list[dict[str, Any]]:
    """The calls that make the present configuration again."""
    name = parameters["name"]
    if name not in SUBSYSTEMS:
        raise RpcError(INVALID_PARAMS, f"Subsystem '{name}' not found")
    return SUBSYSTEMS[name][1](target)


@TABLE.plain("notify_get_types", "No parameters required")
def notify_get_types(target: Target, _: Parameters) -> list[str]:
    """Kinds of notifications."""
    return ["bdev_register", "bdev_unregister", "bdev_resize"]


@TABLE.method(
    "notify_get_notifications",
    optional("id", uint64, 0),
    optional("max", uint64, (1 << 64) - 1),
    refusal=(INVALID_PARAMS, "Invalid argument"),
    bare=True,
)
def notify_get_notifications(target: Target, parameters: Parameters) -> list[dict[str, Any]]:
    """Those that are still kept, from `id`."""
    found = [item for item in target.layer.notifications if item[0] >= parameters["id"]]
    return [{"type": kind, "ctx": name, "id": number} for number, kind, name in found[: parameters["max"]]]


@TABLE.method("spdk_kill_instance", required("sig_name", one_of(*_SIGNALS)), refusal=INVALID)
def spdk_kill_instance(target: Target, parameters: Parameters) -> bool:
    """End this target; it answers first."""
    target.kill(_SIGNALS[parameters["sig_name"]])
    return True
