"""A simulated target process: answers the agent's JSON-RPC calls, exports subsystems, attaches containers.

The calls are SPDK's methods as spdk_rpc describes them, so the real agent core runs against it, with all that it does
step by step. A call may be slow, refused as a target would refuse it, or end without anybody knowing whether it was
done.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mapping.engine import Geometry
from spdk_rpc.call import Call
from spdk_rpc.errors import RpcError, RpcFailure, RpcTimeout
from spdk_rpc.methods.bdev_nvme import Path
from tests.sim.storage import BLOCK_SIZE, SEGMENT_SIZE, Pair, SimContainer
from tests.sim.timeline import MS, SECOND

if TYPE_CHECKING:
    from tests.sim.machine import Machine

ENODEV, EEXIST, EBUSY, EIO, ENOENT = -19, -17, -16, -5, -2
Done = Callable[[Any, RpcFailure | None], None]


def refused(code: int, text: str) -> RpcError:
    return RpcError("simulated", code, text)


@dataclass
class Subsystem:
    """As nvmf_create_subsystem makes it; `more` is what else it was told."""

    nqn: str
    any_host: bool
    more: dict[str, Any]
    hosts: set[str] = field(default_factory=set)
    namespaces: dict[int, str] = field(default_factory=dict)
    identities: dict[int, dict[str, Any]] = field(default_factory=dict)
    listeners: list[dict[str, str]] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """As nvmf_get_subsystems does."""
        return {
            "nqn": self.nqn,
            "subtype": "NVMe",
            "listen_addresses": list(self.listeners),
            "allow_any_host": self.any_host,
            "hosts": [{"nqn": nqn} for nqn in sorted(self.hosts)],
            "namespaces": [
                {"nsid": nsid, "bdev_name": name, **self.identities[nsid]} for nsid, name in self.namespaces.items()
            ],
            **self.more,
        }


class NvmeController:
    """A container as attached by a mapper's target: connects again by itself. `losses` counts the broken pairs."""

    def __init__(self, target: Target, name: str, path: Path, pair: Pair) -> None:
        self.target = target
        self.name = name
        self.path = path
        self.pair = pair
        self.losses = 0
        self.gone = False

    @property
    def usable(self) -> bool:
        return self.pair.alive and not self.pair.doomed

    def notice(self) -> None:
        """The pair is dead: count the loss, and try to connect until it works."""
        if not self.usable and not self.gone and not self.target.dead:
            self.target.timeline.later(200 * MS, self._again, self.pair)

    def _again(self, pair: Pair) -> None:
        if self.gone or self.target.dead or self.pair is not pair:
            return
        fresh = self.target.machine.world.connect_container(self.path)
        if fresh is None:
            self.target.timeline.later(SECOND // 2, self._again, pair)
        else:
            self.losses += 1
            self.pair = fresh


class Target:
    """One process. `identity` is its own; data planes are made by the machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.timeline = machine.world.timeline
        self.identity = self.timeline.random.getrandbits(128).to_bytes(16, "little")
        self.dead = False
        self.subsystems: dict[str, Subsystem] = {}
        self.controllers: dict[str, NvmeController] = {}
        self.bdevs: dict[str, SimContainer] = {}
        self.tables: dict[int, str] = {}
        self.disks: dict[str, dict[str, Any]] = {}
        self.transports: list[str] = []
        self._answers: dict[str, tuple[Any, Any]] = {}

    # --- calls -------------------------------------------------------------------------------------------------------

    def perform(self, call: Call[Any], done: Done) -> None:
        """Carry out a call; `done` comes later, or never if the target dies."""
        chaos = self.machine.world.chaos
        if chaos and self.timeline.chance(0.01):
            executed = self.timeline.chance(0.5)
            if executed:
                self.timeline.later(self.timeline.between(0, 2 * SECOND), self._execute, call, lambda *_: None)
            self.timeline.later(3 * SECOND, self._answer, done, None, RpcTimeout(call.method, "simulated"))
            return
        self.timeline.later(self.timeline.between(MS // 10, 2 * MS), self._execute, call, done)

    def _answer(self, done: Done, value: Any, failure: RpcFailure | None) -> None:
        if not self.dead:
            done(value, failure)

    def _execute(self, call: Call[Any], done: Done) -> None:
        """Now, or when the process goes on; then nobody waits for the answer any more."""
        dataplane = self.machine.dataplane
        if not self.dead and dataplane.is_stopped:
            self.timeline.later(3 * SECOND, self._answer, done, None, RpcTimeout(call.method, "simulated"))
            dataplane.running("call", self._execute, call, lambda *_: None)
            return
        if self.dead:
            return
        if call.method == "bdev_segmap_delete":
            self._delete_table(call.params["name"], done)
            return
        handler = getattr(self, "_do_" + call.method)
        try:
            value = self._parsed(call, handler(**call.params))
        except RpcFailure as failure:
            done(None, failure)
        else:
            done(value, None)

    def _parsed(self, call: Call[Any], result: Any) -> Any:
        """What the caller makes of it; daemons ask for the same lists again and again."""
        known = self._answers.get(call.method)
        if known is not None and not call.params and known[0] == result:
            return known[1]
        value = call.parse(result)
        if not call.params:
            self._answers[call.method] = (copy.deepcopy(result), value)
        return value

    # --- containers at a mapper --------------------------------------------------------------------------------------

    def _do_framework_get_config(self, name: str) -> list[Any]:
        return []

    def _do_bdev_nvme_get_controllers(self) -> list[Any]:
        for controller in self.controllers.values():
            controller.notice()
        return [
            {"name": name, "ctrlrs": [_path(controller.path, controller.usable)]}
            for name, controller in self.controllers.items()
        ]

    def _do_bdev_nvme_attach_controller(
        self, name: str, traddr: str, trsvcid: str, subnqn: str, hostnqn: str, **_: Any
    ) -> list[str]:
        if name in self.controllers:
            raise refused(EEXIST, "there is such a controller")
        path = Path("enabled", "TCP", "IPv4", traddr, trsvcid, subnqn, hostnqn, 1)
        pair = self.machine.world.connect_container(path)
        if pair is None:
            raise refused(EIO, "cannot connect")
        self.controllers[name] = NvmeController(self, name, path, pair)
        return [f"{name}n1"]

    def _do_bdev_nvme_detach_controller(self, name: str) -> bool:
        found = self.controllers.pop(name, None)
        if found is None:
            raise refused(ENODEV, "no such controller")
        found.gone = True
        self.machine.world.storage.end(found.pair)
        return True

    # --- tables ------------------------------------------------------------------------------------------------------

    def _do_bdev_segmap_get(self) -> list[Any]:
        state = {"slots": [], "sequence": 0, "suspended": False}
        return [{**state, **self.disks[name]} for name in self.tables.values()]

    def _do_bdev_segmap_create(self, **disk: Any) -> str:
        sizes = (disk["segment_count"], disk["segment_size"], disk["block_size"])
        geometry = Geometry(*sizes, disk["reclaim"], disk["read_only"])
        status = self.machine.dataplane.plane.create_table(disk["table"], geometry)
        if status:
            raise refused(EEXIST, status.name)
        name: str = disk["name"]
        self.tables[disk["table"]] = name
        self.disks[name] = disk
        return name

    def _delete_table(self, name: str, done: Done) -> None:
        table = next((table for table, known in self.tables.items() if known == name), None)
        if table is None:
            done(None, refused(ENODEV, f"no bdev {name}"))
            return
        for subsystem in self.subsystems.values():
            for nsid in [nsid for nsid, bdev in subsystem.namespaces.items() if bdev == name]:
                del subsystem.namespaces[nsid]

        def dropped() -> None:
            self.tables.pop(table, None)
            done(True, None)

        self.machine.dataplane.delete_table(table, dropped)

    # --- subsystems --------------------------------------------------------------------------------------------------

    def _subsystem(self, nqn: str) -> Subsystem:
        found = self.subsystems.get(nqn)
        if found is None:
            raise refused(ENODEV, f"no subsystem {nqn}")
        return found

    def _do_nvmf_get_subsystems(self) -> list[Any]:
        return [found.describe() for found in self.subsystems.values()]

    def _do_nvmf_create_subsystem(self, nqn: str, allow_any_host: bool = False, **more: Any) -> bool:
        if nqn in self.subsystems:
            raise refused(EEXIST, "there is such a subsystem")
        self.subsystems[nqn] = Subsystem(nqn, allow_any_host, more)
        return True

    def _do_nvmf_delete_subsystem(self, nqn: str) -> bool:
        for pair in self._subsystem(nqn).pairs:
            self.machine.world.storage.end(pair)
        del self.subsystems[nqn]
        return True

    def _do_nvmf_subsystem_add_ns(self, nqn: str, namespace: dict[str, Any]) -> int:
        name, nsid = namespace["bdev_name"], int(namespace["nsid"])
        if name not in self.bdevs and name not in self.tables.values():
            raise refused(ENODEV, f"no bdev {name}")
        subsystem = self._subsystem(nqn)
        subsystem.namespaces[nsid] = name
        subsystem.identities[nsid] = {part: namespace[part] for part in ("uuid", "nguid") if part in namespace}
        return nsid

    def _do_nvmf_subsystem_remove_ns(self, nqn: str, nsid: int) -> bool:
        self._subsystem(nqn).namespaces.pop(nsid, None)
        return True

    def _do_nvmf_subsystem_add_listener(self, nqn: str, listen_address: dict[str, str]) -> bool:
        self._subsystem(nqn).listeners.append(listen_address)
        return True

    def _do_nvmf_subsystem_add_host(self, nqn: str, host: str) -> bool:
        self._subsystem(nqn).hosts.add(host)
        return True

    def _do_nvmf_subsystem_remove_host(self, nqn: str, host: str) -> bool:
        """Off the list at once; its queue pairs end a little later."""
        subsystem = self._subsystem(nqn)
        subsystem.hosts.discard(host)
        for pair in subsystem.pairs:
            if pair.hostnqn == host:
                self.machine.world.storage.end(pair, 0, 2 * SECOND)
        return True

    def _do_nvmf_subsystem_allow_any_host(self, nqn: str, allow_any_host: bool) -> bool:
        self._subsystem(nqn).any_host = allow_any_host
        return True

    def _do_nvmf_subsystem_get_qpairs(self, nqn: str) -> list[Any]:
        subsystem = self._subsystem(nqn)
        subsystem.pairs = [pair for pair in subsystem.pairs if pair.alive]
        peer = {"trtype": "TCP", "traddr": "simulated", "trsvcid": "1"}
        return [
            {"cntlid": 1, "qid": 1, "state": "active", "hostnqn": pair.hostnqn, "peer_address": peer}
            for pair in subsystem.pairs
        ]

    def _do_nvmf_get_transports(self) -> list[Any]:
        options = {"max_queue_depth": 1, "max_io_qpairs_per_ctrlr": 1, "in_capsule_data_size": 1, "max_io_size": 1}
        return [{"trtype": name, **options} for name in self.transports]

    def _do_nvmf_create_transport(self, trtype: str, **masked: list[str]) -> bool:
        self.transports.append(trtype)
        return True

    # --- an exporter's bdevs -----------------------------------------------------------------------------------------

    def _do_bdev_get_bdevs(self, name: str) -> list[Any]:
        if name not in self.bdevs:
            raise refused(ENODEV, f"no bdev {name}")
        return [{"name": name, **self.disks[name]}]

    def _do_bdev_malloc_create(self, name: str, block_size: int, num_blocks: int, uuid: str) -> str:
        return self._create(name, "Malloc disk", block_size, uuid, {})

    def _do_bdev_aio_create(self, name: str, filename: str, block_size: int, uuid: str) -> str:
        return self._create(name, "AIO disk", block_size, uuid, {"aio": {"filename": filename}})

    def _create(self, name: str, product: str, block_size: int, uuid: str, specific: dict[str, Any]) -> str:
        if name in self.bdevs:
            raise refused(EEXIST, "there is such a bdev")
        container = self.machine.containers.get(name)
        if container is None:
            raise refused(ENOENT, "no such file")
        self.bdevs[name] = container
        num_blocks = container.segment_count * SEGMENT_SIZE // BLOCK_SIZE
        identity = {"product_name": product, "uuid": uuid, "driver_specific": specific}
        self.disks[name] = {**identity, "block_size": block_size, "num_blocks": num_blocks}
        return name

    # --- its end -----------------------------------------------------------------------------------------------------

    def die(self) -> None:
        """SIGKILL; what it had queued at containers lands until they notice. As an exporter: all its pairs end."""
        self.dead = True
        storage = self.machine.world.storage
        for controller in self.controllers.values():
            controller.gone = True
            if self.timeline.chance(0.4):
                storage.abandon(controller.pair)
            else:
                storage.end(controller.pair)
        for subsystem in self.subsystems.values():
            for pair in subsystem.pairs:
                pair.alive = False


def _path(path: Path, usable: bool) -> dict[str, Any]:
    where = {"trtype": "TCP", "traddr": path.traddr, "trsvcid": path.trsvcid, "subnqn": path.subnqn}
    state = "enabled" if usable else "reconnect_is_delayed"
    return {"state": state, "trid": where, "host": {"nqn": path.hostnqn}}
