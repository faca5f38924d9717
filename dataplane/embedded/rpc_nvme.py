"""Methods about remote NVMe/TCP controllers: bdev_nvme_{attach,detach}_controller, bdev_nvme_get_controllers."""

from __future__ import annotations

import errno
import uuid
from typing import TYPE_CHECKING, Any, Final

from dataplane.embedded.bdev import BdevError
from dataplane.embedded.bdev_nvme import AttachParameters
from dataplane.embedded.parameters import (
    boolean,
    int32,
    object_of,
    one_of,
    optional,
    required,
    string,
    uint32,
    uint64,
)
from dataplane.embedded.rpc_table import MethodTable, Parameters

if TYPE_CHECKING:
    from dataplane.embedded.target import Target

TABLE: Final = MethodTable()
HOST_NQN: Final = "nqn.2014-08.org.nvmexpress:uuid:" + str(uuid.uuid4())
_IO_QUEUES_DEFAULT: Final = 2
_IO_QUEUES_MAX: Final = 65536
_ADRFAM: Final = {"ipv4": "IPv4", "ipv6": "IPv6"}
_LENGTHS: Final = {"traddr": 256, "trsvcid": 32, "subnqn": 223, "hostnqn": 223}


@TABLE.method(
    "bdev_nvme_attach_controller",
    required("name", string),
    required("trtype", string),
    required("traddr", string),
    optional("adrfam", string),
    optional("trsvcid", string),
    optional("priority", string),
    optional("subnqn", string),
    optional("hostnqn", string),
    optional("hostaddr", string),
    optional("hostsvcid", string),
    optional("prchk_reftag", boolean, False),
    optional("prchk_guard", boolean, False),
    optional("hdgst", boolean, False),
    optional("ddgst", boolean, False),
    optional("fabrics_connect_timeout_us", uint64, 500000),
    optional("multipath", one_of("failover", "multipath", "disable"), "multipath"),
    optional("num_io_queues", uint32, _IO_QUEUES_DEFAULT),
    optional("ctrlr_loss_timeout_sec", int32, 0),
    optional("reconnect_delay_sec", uint32, 0),
    optional("fast_io_fail_timeout_sec", uint32, 0),
    optional("psk", string),
    optional("max_bdevs", uint32, 128),
    optional("dhchap_key", string),
    optional("dhchap_ctrlr_key", string),
    optional("allow_unrecognized_csi", boolean, False),
    optional(
        "multipath_opts",
        object_of(
            optional("policy", one_of("active_passive", "active_active")),
            optional("selector", one_of("round_robin", "queue_depth")),
            optional("min_io", uint32),
        ),
    ),
    optional("disable_sq_flow_control", boolean, False),
)
async def bdev_nvme_attach_controller(target: Target, parameters: Parameters) -> list[str]:
    """Connect to a subsystem over TCP; the names of its namespaces' bdevs."""
    if not parameters["max_bdevs"]:
        raise BdevError(errno.EINVAL, "max_bdevs cannot be zero")
    adrfam = _check_path(parameters)
    if not _patience_is_sound(
        parameters["ctrlr_loss_timeout_sec"],
        parameters["reconnect_delay_sec"],
        parameters["fast_io_fail_timeout_sec"],
    ):
        raise BdevError(errno.EINVAL)
    if any(parameters[name] is not None for name in ("psk", "dhchap_key", "dhchap_ctrlr_key")):
        raise BdevError(errno.ENOKEY)
    if not 1 <= parameters["num_io_queues"] <= _IO_QUEUES_MAX:
        raise BdevError(errno.EINVAL, f"num_io_queues out of bounds, min: 1 max: {_IO_QUEUES_MAX}")
    if parameters["trtype"].upper() != "TCP":
        raise BdevError(errno.ENODEV)
    if not parameters["subnqn"] or not (parameters["trsvcid"] or "").isdecimal():
        raise BdevError(errno.EIO)
    names = (
        "name",
        "traddr",
        "trsvcid",
        "subnqn",
        "hdgst",
        "ddgst",
        "num_io_queues",
        "ctrlr_loss_timeout_sec",
        "reconnect_delay_sec",
        "fast_io_fail_timeout_sec",
        "fabrics_connect_timeout_us",
        "multipath",
    )
    wanted = {name: parameters[name] for name in names}
    wanted |= {"adrfam": adrfam, "hostnqn": parameters["hostnqn"] or HOST_NQN}
    return await target.controllers.attach(AttachParameters(**wanted))


def _patience_is_sound(loss_s: int, delay_s: int, fail_s: int) -> bool:
    """SPDK's rules for the three times: no loss timeout, no other; else delay <= fail <= loss (-1: for ever)."""
    if loss_s == 0:
        return delay_s == 0 and fail_s == 0
    if loss_s < -1 or delay_s == 0 or (fail_s and fail_s < delay_s):
        return False
    return loss_s == -1 or max(delay_s, fail_s) <= loss_s


def _check_path(parameters: Parameters) -> str:
    """Raise BdevError(EINVAL) for what SPDK calls unparsable or too long; the address family."""
    for name, limit in _LENGTHS.items():
        value = parameters.get(name)
        if value is not None and len(value) > limit:
            raise BdevError(errno.EINVAL, f"{name} too long: {value}")
    adrfam = parameters["adrfam"]
    if adrfam is not None and adrfam.lower() not in _ADRFAM:
        raise BdevError(errno.EINVAL, f"Failed to parse adrfam: {adrfam}")
    return _ADRFAM[(adrfam or "ipv4").lower()]


@TABLE.method(
    "bdev_nvme_detach_controller",
    required("name", string),
    optional("trtype", string),
    optional("traddr", string),
    optional("adrfam", string),
    optional("trsvcid", string),
    optional("subnqn", string),
    optional("hostaddr", string),
    optional("hostsvcid", string),
)
async def bdev_nvme_detach_controller(target: Target, parameters: Parameters) -> bool:
    """Its bdevs go first, then the connection."""
    _check_path(parameters)
    path = {
        name: parameters[name]
        for name in ("trtype", "traddr", "adrfam", "trsvcid", "subnqn")
        if parameters[name] is not None
    }
    await target.controllers.detach(parameters["name"], path)
    return True


@TABLE.method("bdev_nvme_get_controllers", optional("name", string), bare=True)
def bdev_nvme_get_controllers(target: Target, parameters: Parameters) -> list[dict[str, Any]]:
    """All, or one."""
    name = parameters["name"]
    if name is None:
        return [controller.report() for controller in target.controllers.all()]
    controller = target.controllers.get(name)
    if controller is None:
        raise BdevError(errno.EINVAL, f"Controller {name} does not exist")
    return [controller.report()]
