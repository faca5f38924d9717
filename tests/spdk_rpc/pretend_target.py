"""A target in memory: what SPDK does with our calls, with its shapes and codes, and with faults on demand.

`fault(method, outcome)` makes the next call of that method end badly: "lost" (not done, outcome unknown), "late"
(done, outcome unknown), or an RpcError to raise.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar

from spdk_rpc.call import Call
from spdk_rpc.errors import RpcError, RpcFailure, RpcTimeout
from spdk_rpc.methods.bdev import Bdev
from spdk_rpc.methods.bdev_nvme import Path
from spdk_rpc.methods.bdev_segmap import SegmapState
from spdk_rpc.methods.nvmf import Address, Namespace, Subsystem
from spdk_rpc.steps import Steps

T = TypeVar("T")
EPERM, ENOENT, EEXIST, ENODEV, EALREADY = -1, -2, -17, -19, -114
INVALID, INTERNAL = -32602, -32603
READS = {"bdev_get_bdevs", "bdev_nvme_get_controllers", "bdev_segmap_get", "framework_get_config"}
READS |= {"nvmf_get_subsystems", "nvmf_get_transports", "nvmf_subsystem_get_qpairs"}
PRODUCTS = {"malloc": "Malloc disk", "aio": "AIO disk", "null": "Null disk"}


def carry_out(steps: Steps[T], perform: Callable[[Call[Any]], Any]) -> T:
    """The value of an operation that makes no pause."""
    value: Any = None
    failure: RpcFailure | None = None
    while True:
        try:
            step = steps.send(value) if failure is None else steps.throw(failure)
        except StopIteration as stop:
            ended: T = stop.value
            return ended
        value = failure = None
        assert isinstance(step, Call)
        try:
            value = perform(step)
        except RpcFailure as error:
            failure = error


class PretendTarget:
    """State is plain and public: tests look at it and change it. It is also a client of itself (`run`)."""

    socket_path = "/nowhere/rpc.sock"

    def __init__(self) -> None:
        self.controllers: dict[str, Path] = {}
        self.disks: dict[str, SegmapState] = {}
        self.subsystems: dict[str, Subsystem] = {}
        self.queue_pairs: dict[str, list[str]] = defaultdict(list)
        self.sticky_pairs = False
        self.bdevs: dict[str, Bdev] = {}
        self.files: dict[str, int] = {}
        self.transports: list[str] = []
        self.flush: bool | None = None  # None: a target without that option
        self.faults: dict[str, deque[str | RpcError]] = defaultdict(deque)
        self.seen: list[Call[Any]] = []

    def fault(self, method: str, *outcomes: str | RpcError) -> None:
        self.faults[method].extend(outcomes)

    @property
    def methods(self) -> list[str]:
        """Of all calls, in their order."""
        return [call.method for call in self.seen]

    @property
    def changes(self) -> list[str]:
        """The methods that were to change something."""
        return [method for method in self.methods if method not in READS]

    def called(self, method: str) -> list[dict[str, Any]]:
        """The parameters of each call of that method."""
        return [call.params for call in self.seen if call.method == method]

    def add_table(self, table: int, name: str) -> None:
        self.disks[name] = SegmapState(name, "", table, 1, 1 << 20, 512, False, False, (), 0, False)

    def perform(self, call: Call[T]) -> T:
        """The call's value, or its failure."""
        self.seen.append(call)
        outcome = self.faults[call.method].popleft() if self.faults[call.method] else ""
        if isinstance(outcome, RpcError):
            raise outcome
        if outcome == "lost":
            raise RpcTimeout(call.method, "no answer in time")
        value = call.parse(getattr(self, call.method)(**call.params))
        if outcome == "late":
            raise RpcTimeout(call.method, "no answer in time")
        return value

    def done(self, call: Call[Any]) -> tuple[object, RpcFailure | None]:
        """(value, failure), as a CallDone has them."""
        try:
            return self.perform(call), None
        except RpcFailure as failure:
            return None, failure

    async def run(self, call: Call[T], timeout_s: float | None = None) -> T:
        return self.perform(call)

    async def close(self) -> None:
        """There is nothing to close."""

    # --- NVMe containers ---------------------------------------------------------------------------------------------

    def framework_get_config(self, name: str) -> Any:
        assert name == "bdev"
        options = {"method": "bdev_nvme_set_options", "params": {"enable_flush": self.flush}}
        return [] if self.flush is None else [options]

    def bdev_nvme_set_options(self, enable_flush: bool) -> bool:
        if self.controllers:
            raise RpcError("bdev_nvme_set_options", EPERM, "RPC not permitted with nvme controllers already attached")
        self.flush = enable_flush
        return True

    def bdev_nvme_get_controllers(self) -> Any:
        return [
            {
                "name": name,
                "ctrlrs": [
                    {
                        "state": path.state,
                        "trid": {part: getattr(path, part) for part in ("trtype", "traddr", "trsvcid", "subnqn")},
                        "host": {"nqn": path.hostnqn},
                    }
                ],
            }
            for name, path in self.controllers.items()
        ]

    def bdev_nvme_attach_controller(self, name: str, trtype: str, traddr: str, **more: Any) -> list[str]:
        if name in self.controllers:
            raise RpcError("bdev_nvme_attach_controller", EALREADY, "Operation already in progress")
        where = (more.get(part, "") for part in ("adrfam", "trsvcid"))
        family, port = where
        nqns = (more.get("subnqn", ""), more.get("hostnqn", ""))
        self.controllers[name] = Path("enabled", trtype, family, traddr, port, *nqns, 1)
        self.bdevs[f"{name}n1"] = Bdev(f"{name}n1", (), "NVMe disk", 512, 1 << 20, "", False, frozenset())
        return [f"{name}n1"]

    def bdev_nvme_detach_controller(self, name: str) -> bool:
        if self.controllers.pop(name, None) is None:
            raise RpcError("bdev_nvme_detach_controller", ENODEV, "No such device")
        self.bdevs.pop(f"{name}n1", None)
        return True

    # --- other bdevs -------------------------------------------------------------------------------------------------

    def bdev_get_bdevs(self, name: str | None = None) -> Any:
        if name is not None and name not in self.bdevs:
            raise RpcError("bdev_get_bdevs", ENODEV, "No such device")
        found = self.bdevs.values() if name is None else [self.bdevs[name]]
        fields = ("name", "product_name", "block_size", "num_blocks", "uuid", "driver_specific")
        return [{field: getattr(bdev, field) for field in fields} for bdev in found]

    def bdev_malloc_create(self, name: str, block_size: int, num_blocks: int, uuid: str) -> str:
        return self._create("malloc", name, block_size, num_blocks, uuid)

    def bdev_null_create(self, name: str, block_size: int, num_blocks: int, uuid: str) -> str:
        return self._create("null", name, block_size, num_blocks, uuid)

    def bdev_aio_create(self, name: str, filename: str, block_size: int, uuid: str) -> str:
        if not self.files.get(filename):
            raise RpcError("bdev_aio_create", ENOENT, "No such file or directory")
        return self._create("aio", name, block_size, self.files[filename] // block_size, uuid, filename=filename)

    def _create(self, kind: str, name: str, block_size: int, num_blocks: int, uuid: str, **driver: Any) -> str:
        if name in self.bdevs:
            raise RpcError(f"bdev_{kind}_create", EEXIST, "File exists")
        specific = {kind: driver} if driver else {}
        bdev = Bdev(name, (), PRODUCTS[kind], block_size, num_blocks, uuid, False, frozenset(), specific)
        self.bdevs[name] = bdev
        return name

    # --- disks -------------------------------------------------------------------------------------------------------

    def bdev_segmap_get(self) -> Any:
        return [asdict(disk) | {"slots": list(disk.slots)} for disk in self.disks.values()]

    def bdev_segmap_create(self, name: str, table: int, **more: Any) -> str:
        if name in self.disks or any(disk.table == table for disk in self.disks.values()):
            raise RpcError("bdev_segmap_create", EEXIST, "File exists")
        self.disks[name] = SegmapState(name=name, table=table, slots=(), sequence=0, suspended=False, **more)
        return name

    def bdev_segmap_delete(self, name: str) -> bool:
        if self.disks.pop(name, None) is None:
            raise RpcError("bdev_segmap_delete", ENODEV, "No such device")
        return True

    def bdev_segmap_resize(self, name: str, segment_count: int) -> bool:
        if name not in self.disks:
            raise RpcError("bdev_segmap_resize", ENODEV, "No such device")
        self.disks[name] = replace(self.disks[name], segment_count=segment_count)
        return True

    # --- exports -----------------------------------------------------------------------------------------------------

    def nvmf_get_transports(self) -> Any:
        options = {"max_queue_depth": 1, "max_io_qpairs_per_ctrlr": 1, "in_capsule_data_size": 1, "max_io_size": 1}
        return [{"trtype": name, **options} for name in self.transports]

    def nvmf_create_transport(self, trtype: str, **masked: list[str]) -> bool:
        self.transports.append(trtype)
        return True

    def nvmf_get_subsystems(self) -> Any:
        return [
            asdict(found)
            | {
                "listen_addresses": [address.params() for address in found.addresses],
                "hosts": [{"nqn": nqn} for nqn in sorted(found.hosts)],
                "namespaces": [asdict(one) for one in found.namespaces],
            }
            for found in self.subsystems.values()
        ]

    def nvmf_create_subsystem(
        self,
        nqn: str,
        serial_number: str = "",
        model_number: str = "",
        max_namespaces: int = 32,
        min_cntlid: int = 1,
        max_cntlid: int = 65519,
        allow_any_host: bool = False,
        subtype: str = "NVMe",
    ) -> bool:
        if nqn in self.subsystems:
            raise RpcError("nvmf_create_subsystem", INTERNAL, "Unable to create subsystem")
        who = (allow_any_host, frozenset[str]())
        numbers = (max_namespaces, min_cntlid, max_cntlid)
        self.subsystems[nqn] = Subsystem(nqn, subtype, (), *who, serial_number, model_number, *numbers, ())
        return True

    def nvmf_delete_subsystem(self, nqn: str) -> bool:
        self._subsystem(nqn)
        del self.subsystems[nqn]
        return True

    def _subsystem(self, nqn: str) -> Subsystem:
        if nqn not in self.subsystems:
            raise RpcError("nvmf", INVALID, f"Subsystem with NQN '{nqn}' not found")
        return self.subsystems[nqn]

    def _change(self, nqn: str, **changes: Any) -> bool:
        self.subsystems[nqn] = replace(self._subsystem(nqn), **changes)
        return True

    def nvmf_subsystem_add_ns(self, nqn: str, namespace: dict[str, Any]) -> int:
        nsid: int = namespace["nsid"]
        identity = (namespace.get("nguid") or "0" * 32, namespace.get("uuid") or "")
        added = Namespace(nsid, namespace["bdev_name"], *identity)
        self._change(nqn, namespaces=(*self._subsystem(nqn).namespaces, added))
        return nsid

    def nvmf_subsystem_remove_ns(self, nqn: str, nsid: int) -> bool:
        return self._change(nqn, namespaces=tuple(one for one in self._subsystem(nqn).namespaces if one.nsid != nsid))

    def nvmf_subsystem_add_listener(self, nqn: str, listen_address: dict[str, str]) -> bool:
        return self._change(nqn, addresses=(*self._subsystem(nqn).addresses, Address(**listen_address)))

    def nvmf_subsystem_add_host(self, nqn: str, host: str) -> bool:
        if host in self._subsystem(nqn).hosts:
            raise RpcError("nvmf_subsystem_add_host", INTERNAL, "Internal error")
        return self._change(nqn, hosts=self._subsystem(nqn).hosts | {host})

    def nvmf_subsystem_remove_host(self, nqn: str, host: str) -> bool:
        if host not in self._subsystem(nqn).hosts:
            raise RpcError("nvmf_subsystem_remove_host", INTERNAL, "Internal error")
        if not self.sticky_pairs:
            self.queue_pairs[nqn] = [one for one in self.queue_pairs[nqn] if one != host]
        return self._change(nqn, hosts=self._subsystem(nqn).hosts - {host})

    def nvmf_subsystem_allow_any_host(self, nqn: str, allow_any_host: bool) -> bool:
        return self._change(nqn, allow_any_host=allow_any_host)

    def nvmf_subsystem_get_qpairs(self, nqn: str) -> Any:
        self._subsystem(nqn)
        peer = {"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": "1", "adrfam": "IPv4"}
        return [
            {"cntlid": 1, "qid": qid, "state": "enabled", "hostnqn": host, "peer_address": peer}
            for qid, host in enumerate(self.queue_pairs[nqn])
        ]
