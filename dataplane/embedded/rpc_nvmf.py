"""Methods about NVMe-oF: transport, subsystems, namespaces, listeners, hosts, queue pairs."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final

from dataplane.embedded.json_rpc import INTERNAL_ERROR, INVALID_PARAMS, RpcError
from dataplane.embedded.nvmf_subsystems import (
    CNTLID_MAX,
    MODEL,
    NAMESPACES_MAX,
    SERIAL,
    ExportedNamespace,
    NvmfSubsystem,
    NvmfSubsystems,
    no_such_transport,
)
from dataplane.embedded.nvmf_transport import SOCK_PRIORITY_MAX, TransportOptions
from dataplane.embedded.parameters import (
    Parameter,
    boolean,
    identity,
    int32,
    object_of,
    one_of,
    optional,
    required,
    string,
    uint8,
    uint16,
    uint32,
    uint64,
)
from dataplane.embedded.rpc_table import INVALID, MethodTable, Parameters

if TYPE_CHECKING:
    from dataplane.embedded.target import Target
    from fabric.nvme_tcp.subsystem import Listener
    from fabric.nvme_tcp.target_connection import TargetConnection

TABLE: Final = MethodTable()
TARGET_NAME: Final = "nvmf_tgt"
THREAD: Final = "nvmf_tgt_poll_group_000"
_TARGET: Final = optional("tgt_name", string)
_NQN: Final = required("nqn", string)
_ADDRESS: Final = object_of(
    required("trtype", string),
    optional("adrfam", string),
    required("traddr", string),
    optional("trsvcid", string),
)
_LISTEN_ADDRESS: Final = required("listen_address", _ADDRESS)
_NAMESPACE: Final = object_of(
    optional("nsid", uint32, 0),
    required("bdev_name", string),
    optional("nguid", string),
    optional("eui64", string),
    optional("uuid", identity),
    optional("ptpl_file", string),
    optional("anagrpid", uint32, 0),
    optional("no_auto_visible", boolean, False),
    optional("hide_metadata", boolean, False),
)
_OPTION_TYPES: Final = {
    "max_queue_depth": uint16,
    "max_io_qpairs_per_ctrlr": uint16,
    "kas": uint16,
    "c2h_success": boolean,
    "dif_insert_or_strip": boolean,
    "zcopy": boolean,
    "disable_command_passthru": boolean,
}
_REPORTED: Final = tuple(name for name in TransportOptions().report() if name != "trtype")
_IGNORED: Final = (
    optional("io_unit_size", uint32),
    optional("num_shared_buffers", uint32),
    optional("buf_cache_size", uint32),
    optional("num_cqe", int32),
    optional("max_srq_depth", uint32),
    optional("no_srq", boolean),
    optional("acceptor_backlog", int32),
    optional("no_wr_batching", boolean),
    optional("control_msg_num", uint16),
    optional("acceptor_poll_rate", uint32),
)


def _check_target(name: str | None, code: int, text: str) -> None:
    if name is not None and name != TARGET_NAME:
        raise RpcError(code, text.format(name))


def _found(target: Target, parameters: Parameters) -> NvmfSubsystem:
    """The subsystem that the call is about."""
    _check_target(parameters["tgt_name"], INVALID_PARAMS, "NVMf target '{}' not found")
    return target.nvmf.find(parameters["nqn"])


# --- transport -------------------------------------------------------------------------------------------------------


@TABLE.method(
    "nvmf_create_transport",
    required("trtype", string),
    _TARGET,
    *(Parameter(name, _OPTION_TYPES.get(name, uint32)) for name in _REPORTED),
    *_IGNORED,
    refusal=INVALID,
    relaxed=True,
)
def nvmf_create_transport(target: Target, parameters: Parameters) -> bool:
    """TCP is the only one there is."""
    _check_target(parameters["tgt_name"], INTERNAL_ERROR, "Unable to find a target.")
    trtype = parameters["trtype"]
    if trtype.upper() != "TCP":
        raise RpcError(INVALID_PARAMS, f"Invalid transport type '{trtype}'")
    if target.nvmf.transport is not None:
        raise RpcError(INTERNAL_ERROR, f"Transport type '{trtype}' already exists")
    options = TransportOptions()
    for name in _REPORTED:
        if parameters[name] is not None:
            setattr(options, name, parameters[name])
    if options.max_io_qpairs_per_ctrlr == 0xFFFF:
        raise RpcError(INVALID_PARAMS, "max_io_qpairs_per_ctrlr too large")
    if not options.settle():
        raise RpcError(INTERNAL_ERROR, f"Transport type '{trtype}' create failed")
    if options.sock_priority > SOCK_PRIORITY_MAX or not options.max_io_qpairs_per_ctrlr:
        raise RpcError(INTERNAL_ERROR, "Failed to create transport.")
    target.nvmf.create_transport(options)
    return True


@TABLE.method("nvmf_get_transports", _TARGET, optional("trtype", string), refusal=INVALID, bare=True)
def nvmf_get_transports(target: Target, parameters: Parameters) -> list[dict[str, Any]]:
    """None or one."""
    _check_target(parameters["tgt_name"], INTERNAL_ERROR, "Unable to find a target.")
    options, trtype = target.nvmf.transport, parameters["trtype"]
    if trtype is not None and (options is None or trtype.upper() != options.trtype):
        raise no_such_transport()
    return [] if options is None else [options.report()]


# --- subsystems ------------------------------------------------------------------------------------------------------


def _address(listener: Listener) -> dict[str, str]:
    return {
        "trtype": listener.trtype,
        "adrfam": listener.adrfam,
        "traddr": listener.traddr,
        "trsvcid": listener.trsvcid,
    }


def _namespace(namespace: ExportedNamespace, ana: bool) -> dict[str, Any]:
    report: dict[str, Any] = {
        "nsid": namespace.nsid,
        "bdev_name": namespace.bdev.name,
        "name": namespace.bdev.name,
    }
    report |= _identifiers(namespace)
    if ana:
        report["anagrpid"] = namespace.anagrpid
    return report


def _identifiers(namespace: ExportedNamespace) -> dict[str, str]:
    identifiers = {}
    if any(namespace.nguid):
        identifiers["nguid"] = namespace.nguid.hex().upper()
    if any(namespace.eui64):
        identifiers["eui64"] = namespace.eui64.hex().upper()
    identifiers["uuid"] = str(namespace.uuid)
    return identifiers


def _report(subsystem: NvmfSubsystem) -> dict[str, Any]:
    report: dict[str, Any] = {
        "nqn": subsystem.nqn,
        "subtype": "Discovery" if subsystem.discovery else "NVMe",
        "listen_addresses": [_address(listener) for listener in subsystem.listeners],
        "allow_any_host": subsystem.allow_any_host,
        "hosts": [{"nqn": host} for host in subsystem.hosts],
    }
    if subsystem.discovery:
        return report
    report |= {"serial_number": subsystem.serial, "model_number": subsystem.model}
    if subsystem.admin_label:
        report["admin_label"] = subsystem.admin_label
    return report | {
        "max_namespaces": subsystem.max_namespaces,
        "passthrough": subsystem.passthrough,
        "min_cntlid": subsystem.min_cntlid,
        "max_cntlid": subsystem.max_cntlid,
        "dmrsl": subsystem.dmrsl,
        "wzsl": subsystem.wzsl,
        "namespaces": [_namespace(item, subsystem.ana_reporting) for item in subsystem.namespaces.values()],
    }


@TABLE.method("nvmf_get_subsystems", optional("nqn", string), _TARGET, refusal=INVALID, bare=True)
def nvmf_get_subsystems(target: Target, parameters: Parameters) -> list[dict[str, Any]]:
    """All, or one."""
    _check_target(parameters["tgt_name"], INVALID_PARAMS, "NVMf target '{}' not found")
    if parameters["nqn"] is not None:
        return [_report(target.nvmf.find(parameters["nqn"]))]
    return [_report(subsystem) for subsystem in target.nvmf.subsystems.values()]


def _text(value: str | None, default: str, limit: int) -> str:
    """A serial or model number: printable ASCII, as the Base Specification wants it."""
    if value is None:
        return default
    if len(value) > limit or not all(" " <= character <= "~" for character in value):
        raise RpcError(*INVALID)
    return value


@TABLE.method(
    "nvmf_create_subsystem",
    _NQN,
    _TARGET,
    optional("serial_number", string),
    optional("model_number", string),
    optional("admin_label", string),
    optional("max_namespaces", uint32, NAMESPACES_MAX),
    optional("allow_any_host", boolean, False),
    optional("ana_reporting", boolean, False),
    optional("min_cntlid", uint16, 1),
    optional("max_cntlid", uint16, CNTLID_MAX),
    optional("dmrsl", uint32, 2097152),
    optional("wzsl", uint8, 12),
    optional("passthrough", boolean, False),
    optional("enable_nssr", boolean, False),
    refusal=INVALID,
)
def nvmf_create_subsystem(target: Target, parameters: Parameters) -> bool:
    """An NVM subsystem without namespaces, listeners and hosts."""
    _check_target(parameters["tgt_name"], INTERNAL_ERROR, "Unable to find target {}")
    wanted = {name: value for name, value in parameters.items() if name != "tgt_name"}
    serial = _text(wanted.pop("serial_number"), SERIAL, 20)
    model = _text(wanted.pop("model_number"), MODEL, 40)
    wanted["max_namespaces"] = wanted["max_namespaces"] or NAMESPACES_MAX
    wanted["admin_label"] = wanted["admin_label"] or ""
    target.nvmf.create(NvmfSubsystem(serial=serial, model=model, **wanted))
    return True


@TABLE.method("nvmf_delete_subsystem", _NQN, _TARGET, refusal=INVALID)
async def nvmf_delete_subsystem(target: Target, parameters: Parameters) -> bool:
    """With everything it has; its connections end."""
    await target.nvmf.delete(_found(target, parameters).nqn)
    return True


@TABLE.method(
    "nvmf_subsystem_add_ns",
    _NQN,
    required("namespace", _NAMESPACE),
    _TARGET,
    refusal=INVALID,
    relaxed=True,
)
def nvmf_subsystem_add_ns(target: Target, parameters: Parameters) -> int:
    """A bdev as a namespace; it is claimed."""
    namespace = parameters["namespace"]
    return target.nvmf.add_namespace(_found(target, parameters).nqn, namespace["bdev_name"], namespace)


@TABLE.method("nvmf_subsystem_remove_ns", _NQN, required("nsid", uint32), _TARGET, refusal=INVALID)
def nvmf_subsystem_remove_ns(target: Target, parameters: Parameters) -> bool:
    """Hosts are told."""
    target.nvmf.remove_namespace(_found(target, parameters).nqn, parameters["nsid"])
    return True


@TABLE.method(
    "nvmf_subsystem_add_listener",
    _NQN,
    _TARGET,
    _LISTEN_ADDRESS,
    optional("secure_channel", boolean, False),
    optional("ana_state", one_of("optimized", "non_optimized", "inaccessible")),
    optional("sock_impl", string),
    optional("numa_id", int32),
    refusal=INVALID,
    relaxed=True,
)
async def nvmf_subsystem_add_listener(target: Target, parameters: Parameters) -> bool:
    """Where hosts connect. Secure channels are not supported."""
    subsystem = _found(target, parameters)
    if parameters["secure_channel"]:
        raise RpcError(*INVALID)
    await target.nvmf.add_listener(subsystem.nqn, parameters["listen_address"])
    return True


@TABLE.method("nvmf_subsystem_remove_listener", _NQN, _TARGET, _LISTEN_ADDRESS, refusal=INVALID)
async def nvmf_subsystem_remove_listener(target: Target, parameters: Parameters) -> bool:
    """Connections that came through it end."""
    await target.nvmf.remove_listener(_found(target, parameters).nqn, parameters["listen_address"])
    return True


@TABLE.method(
    "nvmf_subsystem_add_host",
    _NQN,
    required("host", string),
    _TARGET,
    optional("psk", string),
    optional("dhchap_key", string),
    optional("dhchap_ctrlr_key", string),
    refusal=INVALID,
    relaxed=True,
)
def nvmf_subsystem_add_host(target: Target, parameters: Parameters) -> bool:
    """Let a host connect. There are no keys here."""
    subsystem = _found(target, parameters)
    if any(parameters[name] is not None for name in ("psk", "dhchap_key", "dhchap_ctrlr_key")):
        raise RpcError(*INVALID)
    target.nvmf.add_host(subsystem.nqn, parameters["host"])
    return True


@TABLE.method(
    "nvmf_subsystem_remove_host",
    _NQN,
    required("host", string),
    _TARGET,
    optional("timeout_ms", uint64, 0),
    refusal=INVALID,
)
async def nvmf_subsystem_remove_host(target: Target, parameters: Parameters) -> bool:
    """Its queue pairs are gone when this answers well."""
    subsystem = _found(target, parameters)
    await target.nvmf.remove_host(subsystem.nqn, parameters["host"], parameters["timeout_ms"])
    return True


@TABLE.method("nvmf_subsystem_allow_any_host", _NQN, required("allow_any_host", boolean), _TARGET, refusal=INVALID)
def nvmf_subsystem_allow_any_host(target: Target, parameters: Parameters) -> bool:
    """Hosts that are connected stay."""
    target.nvmf.allow_any_host(_found(target, parameters).nqn, parameters["allow_any_host"])
    return True


# --- what is connected -----------------------------------------------------------------------------------------------


@TABLE.method("nvmf_subsystem_get_qpairs", _NQN, _TARGET, refusal=INVALID)
def nvmf_subsystem_get_qpairs(target: Target, parameters: Parameters) -> list[dict[str, Any]]:
    """Every queue pair: also one whose connection is gone while a command of it still runs."""
    subsystem = _found(target, parameters)
    return [] if subsystem.discovery else [_queue_pair(*item) for item in target.nvmf.queue_pairs(subsystem.nqn)]


def _queue_pair(cntlid: int, pair: TargetConnection) -> dict[str, Any]:
    report: dict[str, Any] = {
        "cntlid": cntlid,
        "qid": pair.qid,
        "state": "deactivating" if pair.closing else "enabled",
        "thread": THREAD,
        "hostnqn": pair.hostnqn,
    }
    host, _, port = pair.peer.rpartition(":")
    report["listen_address"] = _address(pair.listener)
    report["peer_address"] = _address(pair.listener) | {"traddr": host, "trsvcid": port}
    return report


@TABLE.method("nvmf_subsystem_get_controllers", _NQN, _TARGET, refusal=INVALID)
def nvmf_subsystem_get_controllers(target: Target, parameters: Parameters) -> list[dict[str, Any]]:
    """Every controller, from its queue pairs."""
    subsystem = _found(target, parameters)
    found: dict[int, dict[str, Any]] = {}
    for cntlid, pair in [] if subsystem.discovery else target.nvmf.queue_pairs(subsystem.nqn):
        report = found.setdefault(
            cntlid,
            {
                "cntlid": cntlid,
                "cntrltype": "io",
                "hostnqn": pair.hostnqn,
                "hostid": str(uuid.UUID(bytes=pair.hostid)),
                "num_io_qpairs": 0,
            },
        )
        report["num_io_qpairs"] += pair.qid > 0
    return list(found.values())


@TABLE.method("nvmf_subsystem_get_listeners", _NQN, _TARGET, refusal=INVALID)
def nvmf_subsystem_get_listeners(target: Target, parameters: Parameters) -> list[dict[str, Any]]:
    """Where hosts can connect."""
    return [{"address": _address(listener)} for listener in _found(target, parameters).listeners]


@TABLE.method("nvmf_discovery_get_referrals", _TARGET, refusal=INVALID, bare=True)
def nvmf_discovery_get_referrals(target: Target, parameters: Parameters) -> list[dict[str, Any]]:
    """There are none."""
    _check_target(parameters["tgt_name"], INTERNAL_ERROR, "Unable to find a target")
    return []


# --- configuration ---------------------------------------------------------------------------------------------------


def config(nvmf: NvmfSubsystems) -> list[dict[str, Any]]:
    """The calls that make all this again: transport, subsystems, hosts, namespaces, listeners."""
    calls: list[dict[str, Any]] = []
    if nvmf.transport is not None:
        calls.append({"method": "nvmf_create_transport", "params": nvmf.transport.report()})
    subsystems = [item for item in nvmf.subsystems.values() if not item.discovery]
    calls += [_create_call(item) for item in subsystems]
    for item in subsystems:
        calls += [_call("nvmf_subsystem_add_host", item, host=host) for host in item.hosts]
        calls += [
            _call("nvmf_subsystem_add_ns", item, namespace=_namespace_config(namespace, item.ana_reporting))
            for namespace in item.namespaces.values()
        ]
    for item in nvmf.subsystems.values():
        calls += [
            _call("nvmf_subsystem_add_listener", item, listen_address=_address(listener), secure_channel=False)
            for listener in item.listeners
        ]
    return calls


def _call(method: str, subsystem: NvmfSubsystem, **params: Any) -> dict[str, Any]:
    return {"method": method, "params": {"nqn": subsystem.nqn, **params}}


def _create_call(subsystem: NvmfSubsystem) -> dict[str, Any]:
    params: dict[str, Any] = {
        "allow_any_host": subsystem.allow_any_host,
        "serial_number": subsystem.serial,
        "model_number": subsystem.model,
    }
    if subsystem.admin_label:
        params["admin_label"] = subsystem.admin_label
    names = (
        "max_namespaces",
        "min_cntlid",
        "max_cntlid",
        "ana_reporting",
        "dmrsl",
        "wzsl",
        "passthrough",
        "enable_nssr",
    )
    return _call("nvmf_create_subsystem", subsystem, **params, **{name: getattr(subsystem, name) for name in names})


def _namespace_config(namespace: ExportedNamespace, ana: bool) -> dict[str, Any]:
    report: dict[str, Any] = {"nsid": namespace.nsid, "bdev_name": namespace.bdev.name}
    report |= _identifiers(namespace)
    report["no_auto_visible"] = namespace.no_auto_visible
    if ana:
        report["anagrpid"] = namespace.anagrpid
    return report
