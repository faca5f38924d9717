"""Methods about faults put under a container: SPDK's error and delay bdevs."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from dataplane.embedded.bdev import Bdev, BdevError
from dataplane.embedded.bdev_delay import LATENCIES, DelayBdev
from dataplane.embedded.bdev_error import TOUCHED, ErrorBdev, Injection
from dataplane.embedded.json_rpc import INVALID_PARAMS, RpcError
from dataplane.embedded.parameters import identity, one_of, optional, required, string, uint8, uint32, uint64
from dataplane.embedded.rpc_table import MethodTable, Parameters
from mapping.rules import Operation

if TYPE_CHECKING:
    from dataplane.embedded.target import Target

TABLE: Final = MethodTable()
_UNDECODED: Final = (INVALID_PARAMS, "spdk_json_decode_object failed")
_NOT_NVME: Final = "nvme_sct or nvme_sc should be specified for NVMe error injection"
_OPERATIONS: Final = {operation.name.lower(): (operation,) for operation in TOUCHED} | {"all": TOUCHED, "clear": ()}
_KINDS: Final = ("failure", "pending", "corrupt_data", "nomem", "nvme_failure")


@TABLE.method("bdev_error_create", required("base_name", string), optional("uuid", identity), refusal=_UNDECODED)
def bdev_error_create(target: Target, parameters: Parameters) -> bool:
    """EE_<base>; if there is no such base, when there is."""
    base, uuid = parameters["base_name"], parameters["uuid"]
    target.stacks.create(f"error {base}", base, lambda found: ErrorBdev(target.layer, found, uuid))
    return True


@TABLE.method("bdev_error_delete", required("name", string), refusal=_UNDECODED)
async def bdev_error_delete(target: Target, parameters: Parameters) -> bool:
    """The base stays."""
    bdev = target.layer.find(parameters["name"], ErrorBdev)
    assert isinstance(bdev, ErrorBdev)
    target.stacks.forget(f"error {bdev.base.name}")
    await target.layer.unregister(bdev)
    return True


@TABLE.method(
    "bdev_error_inject_error",
    required("name", string),
    required("io_type", one_of(*_OPERATIONS)),
    required("error_type", one_of(*_KINDS)),
    optional("num", uint32, 1),
    optional("queue_depth", uint64, 0),
    optional("corrupt_offset", uint64, 0),
    optional("corrupt_value", uint8, 0),
    optional("nvme_sct", uint32, 0),
    optional("nvme_sc", uint32, 0),
    refusal=_UNDECODED,
)
def bdev_error_inject_error(target: Target, parameters: Parameters) -> bool:
    """The next `num` I/Os of a type; `clear` ends it for all types."""
    kind, nvme = parameters["error_type"], (parameters["nvme_sct"], parameters["nvme_sc"])
    if (kind == "nvme_failure") != any(nvme):
        raise BdevError(errno.EINVAL, _NOT_NVME)
    if kind == "corrupt_data" and not parameters["corrupt_value"]:
        raise BdevError(errno.EINVAL)
    bdev = _error_bdev(target, parameters["name"])
    if parameters["io_type"] == "clear":
        bdev.clear()
        return True
    operations: tuple[Operation, ...] = _OPERATIONS[parameters["io_type"]]
    injection = Injection(
        kind,
        parameters["num"],
        parameters["queue_depth"],
        parameters["corrupt_offset"],
        parameters["corrupt_value"],
        nvme,
    )
    bdev.inject(operations, injection)
    return True


@TABLE.method("bdev_error_resume_pending", required("name", string), refusal=_UNDECODED)
def bdev_error_resume_pending(target: Target, parameters: Parameters) -> bool:
    """What is pending goes on, and nothing more becomes pending."""
    _error_bdev(target, parameters["name"]).resume()
    return True


def _error_bdev(target: Target, name: str) -> ErrorBdev:
    bdev = target.layer.find(name, ErrorBdev)
    assert isinstance(bdev, ErrorBdev)
    return bdev


@TABLE.method(
    "bdev_delay_create",
    required("name", string),
    required("base_bdev_name", string),
    *(required(f"{name}_latency", uint64) for name in LATENCIES),
    optional("uuid", identity),
)
def bdev_delay_create(target: Target, parameters: Parameters) -> str:
    """Latencies in microseconds; if there is no such base, when there is."""
    name, base, uuid = (str(parameters["name"]), parameters["base_bdev_name"], parameters["uuid"])
    latencies = {kind: int(parameters[f"{kind}_latency"]) for kind in LATENCIES}
    if latencies["p99_read"] < latencies["avg_read"] or latencies["p99_write"] < latencies["avg_write"]:
        raise BdevError(errno.EINVAL)
    target.stacks.create(f"delay {name}", base, lambda found: DelayBdev(target.layer, found, name, latencies, uuid))
    return name


@TABLE.method("bdev_delay_delete", required("name", string))
async def bdev_delay_delete(target: Target, parameters: Parameters) -> bool:
    """The base stays."""
    bdev = target.layer.find(parameters["name"], DelayBdev)
    target.stacks.forget(f"delay {bdev.name}")
    await target.layer.unregister(bdev)
    return True


@TABLE.method(
    "bdev_delay_update_latency",
    required("delay_bdev_name", string),
    required("latency_type", one_of(*LATENCIES)),
    required("latency_us", uint64),
)
def bdev_delay_update_latency(target: Target, parameters: Parameters) -> bool:
    """For I/O that ends from now on."""
    bdev: Bdev | None = target.layer.get(parameters["delay_bdev_name"])
    if not isinstance(bdev, DelayBdev):
        raise RpcError(INVALID_PARAMS, "The requested bdev does not exist.")
    bdev.latencies[parameters["latency_type"]] = parameters["latency_us"]
    return True
