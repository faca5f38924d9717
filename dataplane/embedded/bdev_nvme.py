"""Namespaces of remote NVMe/TCP controllers as bdevs, named `<controller>n<nsid>`.

The host code restores a lost connection. I/O that a lost connection broke, or that comes meanwhile, waits and is tried
again (every command here may be done twice), at most `wait_s` and at most WAITING_MAX of them; then it fails. A
connection that is back is an attach: I/O goes on waiting until whoever has claimed the bdev has verified what is there
now (design: containers are who they say); if that is something else, what waits fails. A write that fails after it was
sent is not `settled`: its command may still run there. Our target lets a host in again only when all of them have
ended (fabric.nvme_tcp.fabrics), so that a connection that is back settles them; other targets do not promise that, and
with them only the removal of the host settles anything. If the
remote cache is volatile, a lost connection is a loss: whoever has unflushed writes there must not believe the next
flush.
"""

from __future__ import annotations

import asyncio
import errno
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from dataplane.embedded.bdev import Bdev, BdevError, BdevIo, BdevLayer, Buffer
from dataplane.embedded.nvme_host import NvmeHostError, NvmeTcpHost, ReconnectPolicy
from fabric.nvme_tcp import host_command, spec
from fabric.nvme_tcp.capsule import Sqe, pack_ranges
from fabric.nvme_tcp.host_command import HostCommand
from fabric.nvme_tcp.host_controller import HostNamespace
from fabric.nvme_tcp.initiator import QueueFullError
from mapping.rules import Operation, is_write
from mapping.status import Status

WAITING_MAX: Final = 4096
WAIT_S: Final = 5.0
VERIFY_RETRY_S: Final = 0.2
BLOCKS_MAX: Final = 65536
UNMAP_BLOCKS_MAX: Final = 1 << 22
IO_QUEUES_MAX: Final = 4
CLOSE_S: Final = 1.0
_OPERATIONS: Final = frozenset({Operation.READ, Operation.WRITE, Operation.FLUSH})
_STATUS: Final = {
    spec.Status.LBA_OUT_OF_RANGE: Status.OUT_OF_RANGE,
    spec.Status.CAPACITY_EXCEEDED: Status.NO_SPACE,
    spec.Status.NAMESPACE_WRITE_PROTECTED: Status.WRITE_PROTECTED,
    spec.Status.INVALID_OPCODE: Status.UNSUPPORTED,
    spec.Status.NAMESPACE_NOT_READY: Status.BUSY,
}


@dataclass(frozen=True, slots=True)
class AttachParameters:
    """What bdev_nvme_attach_controller says, as it reports it later."""

    name: str
    traddr: str
    trsvcid: str
    subnqn: str
    adrfam: str
    hostnqn: str
    hdgst: bool
    ddgst: bool
    num_io_queues: int
    ctrlr_loss_timeout_sec: int
    reconnect_delay_sec: int
    fast_io_fail_timeout_sec: int
    fabrics_connect_timeout_us: int
    multipath: str

    @property
    def wait_s(self) -> float:
        """How long I/O waits for a lost connection."""
        return float(self.fast_io_fail_timeout_sec or max(self.ctrlr_loss_timeout_sec, 0) or WAIT_S)

    @property
    def give_up_s(self) -> float | None:
        """How long reconnecting is tried; None: for ever."""
        return float(self.ctrlr_loss_timeout_sec) if self.ctrlr_loss_timeout_sec > 0 else None

    def trid(self) -> dict[str, str]:
        """The transport id as SPDK prints it."""
        return {
            "trtype": "TCP",
            "adrfam": self.adrfam,
            "traddr": self.traddr,
            "trsvcid": self.trsvcid,
            "subnqn": self.subnqn,
        }


class NvmeBdev(Bdev):
    """One namespace."""

    product_name: ClassVar[str] = "NVMe disk"
    may_lose: ClassVar[bool] = True
    extra_io_types: ClassVar[frozenset[str]] = frozenset({"reset", "abort"})
    numa_id = -1

    def __init__(self, controller: NvmeController, namespace: HostNamespace) -> None:
        name = f"{controller.parameters.name}n{namespace.nsid}"
        identity = next((value for value in (namespace.nguid, namespace.uuid) if any(value)), None)
        super().__init__(
            name,
            namespace.block_size,
            namespace.block_count,
            uuid.UUID(bytes=bytes(identity)) if identity else None,
        )
        self.nsid = namespace.nsid
        self.origin = (*controller.parameters.trid().values(), controller.parameters.hostnqn, self.nsid)
        self.read_only = namespace.read_only
        self.volatile_cache = controller.host.volatile_cache
        self.controller = controller
        extra = {Operation.WRITE_ZEROES} if namespace.write_zeroes else set()
        extra |= {Operation.UNMAP} if namespace.deallocate else set()
        self._operations = _OPERATIONS | extra
        self.ready = True
        self._verifying: asyncio.Task[None] | None = None
        self._waiting: deque[tuple[float, NvmeIo]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._running = 0
        self._idle: asyncio.Future[None] | None = None

    def supports(self, operation: Operation) -> bool:
        return operation in self._operations

    def _start(self, io: BdevIo) -> None:
        self._running += 1
        NvmeIo(self, io).begin()

    def wait(self, io: NvmeIo) -> None:
        """The connection is lost, or not verified yet: (try) again when it is, if that is soon enough."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if io.deadline is None:
            io.deadline = now + self.controller.parameters.wait_s
        if now >= io.deadline or len(self._waiting) >= WAITING_MAX or self.removing or io.io.probe:
            io.fail(Status.IO_ERROR)
            return
        self._waiting.append((io.deadline, io))
        if self._timer is None:
            self._timer = loop.call_at(io.deadline, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        self._take(lambda deadline: deadline <= now, _fail)
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_at(min(item[0] for item in self._waiting), self._expire)

    def _take(self, wanted: Callable[[float], bool], use: Callable[[NvmeIo], None]) -> None:
        """Remove some of those that wait, in order, and do something with each."""
        taken = [io for deadline, io in self._waiting if wanted(deadline)]
        self._waiting = deque(item for item in self._waiting if not wanted(item[0]))
        for io in taken:
            use(io)

    def restored(self) -> None:
        """The connection is back; what is there has to be verified if somebody relies on it."""
        self.attachments += 1
        if self.verify is None:
            self._go_on(True)
        else:
            self._verifying = asyncio.get_running_loop().create_task(self._verify())

    async def _verify(self) -> None:
        verdict: bool | None = None
        while verdict is None and self.verify is not None:
            verdict = await self.verify()
            if verdict is None:
                await asyncio.sleep(VERIFY_RETRY_S)
        self._go_on(verdict is not False)

    def _go_on(self, same: bool) -> None:
        """I/O may go to the controller again; what was meant for something else fails."""
        self.ready, self.refused = True, not same
        self._take(lambda _: True, NvmeIo.begin if same else _fail)

    def _hold(self) -> None:
        """Nothing goes to the controller any more."""
        self.ready = False
        if self._verifying is not None:
            self._verifying.cancel()
            self._verifying = None

    def lost(self) -> None:
        """The connection is gone, and what was only in the remote cache may be too."""
        self._hold()
        if self.volatile_cache:
            self.losses += 1

    def abort(self, io: BdevIo) -> None:
        for _, waiting in list(self._waiting):
            if waiting.io is io:
                self._waiting = deque(item for item in self._waiting if item[1] is not waiting)
                waiting.fail(Status.CANCELLED)

    def host_lost(self, owner: object) -> None:
        gone = [waiting for _, waiting in self._waiting if waiting.io.owner is owner]
        self._waiting = deque(item for item in self._waiting if item[1] not in gone)
        for waiting in gone:
            waiting.fail(Status.CANCELLED)

    def ended(self, io: BdevIo, status: Status) -> None:
        """One I/O has ended."""
        self._running -= 1
        io.end(status)
        if not self._running and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    async def close(self) -> None:
        self._hold()
        self._take(lambda _: True, _fail)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def describe(self) -> dict[str, Any]:
        host = self.controller.host
        return {
            "nvme": [
                {
                    "trid": self.controller.parameters.trid(),
                    "ctrlr_data": {
                        "cntlid": host.controller.cntlid,
                        "model_number": host.model,
                        "serial_number": host.serial,
                        "subnqn": self.controller.parameters.subnqn,
                    },
                    "ns_data": {"id": self.nsid, "can_share": True},
                }
            ],
            "mp_policy": "active_passive",
        }


class NvmeIo:
    """One bdev I/O as NVMe commands of at most the controller's transfer size."""

    __slots__ = ("_buffer", "_left", "_lost", "_sent", "_status", "bdev", "deadline", "io")

    def __init__(self, bdev: NvmeBdev, io: BdevIo) -> None:
        self.bdev = bdev
        self.io = io
        self.deadline: float | None = None
        self._left = 0
        self._lost = False
        self._sent = False
        self._status = Status.OK
        self._buffer: bytearray | None = None

    def begin(self) -> None:
        """Send every command of it; also once more, when the connection is back."""
        io, bdev = self.io, self.bdev
        if not bdev.ready and not io.probe:
            bdev.wait(self)
            return
        self._lost, self._sent, self._status, self._left = False, False, Status.OK, 1
        if io.operation is Operation.READ:
            self._buffer = bytearray(io.length)
        step = self._step()
        for at in range(0, max(io.length, 1), step):
            self._left += 1
            try:
                bdev.controller.host.submit(self._command(at, min(step, io.length - at)))
            except QueueFullError:
                self._status = Status.BUSY
                self._ended()
        self._ended()

    def _step(self) -> int:
        """Bytes that one command may cover."""
        bdev, operation = self.bdev, self.io.operation
        if operation in (Operation.READ, Operation.WRITE):
            return bdev.controller.host.max_transfer_bytes
        return (UNMAP_BLOCKS_MAX if operation is Operation.UNMAP else BLOCKS_MAX) * bdev.block_size

    def _command(self, at: int, length: int) -> HostCommand:
        io, nsid, block = self.io, self.bdev.nsid, self.bdev.block_size
        slba, nlb, done = (io.offset + at) // block, length // block, self._command_done
        if io.operation is Operation.FLUSH:
            return host_command.flush(nsid, done)
        if io.operation is Operation.WRITE_ZEROES:
            return host_command.write_zeroes(nsid, slba, nlb, done, fua=io.fua)
        if io.operation is Operation.UNMAP:
            sqe = Sqe(spec.Opcode.DATASET_MANAGEMENT, nsid, 0, spec.DSM_DEALLOCATE)
            return HostCommand(sqe.opcode, nsid, data=pack_ranges([(slba, nlb)]), sqe=sqe, done=done)
        opcode = spec.Opcode.READ if io.operation is Operation.READ else spec.Opcode.WRITE
        return HostCommand(opcode, nsid, slba, nlb, self._data(at, length), fua=io.fua, done=done)

    def _data(self, at: int, length: int) -> Buffer:
        data = self._buffer if self._buffer is not None else self.io.data
        assert data is not None
        return data if length == len(data) else memoryview(data)[at : at + length]

    def _command_done(self, command: HostCommand) -> None:
        if command.status:
            code = command.status & spec.STATUS_MASK
            if code == spec.Status.HOST_PATH_ERROR:
                self._lost = True
            elif self._status is Status.OK:
                self._status = _STATUS.get(spec.Status(code), Status.IO_ERROR) if _known(code) else Status.IO_ERROR
        self._ended()

    def _ended(self) -> None:
        self._left -= 1
        if self._left:
            return
        if self._lost:
            self._sent = True
            self.bdev.wait(self)
            return
        if self._buffer is not None and self._status is Status.OK:
            self.io.data = self._buffer
        self.bdev.ended(self.io, self._status)

    def fail(self, status: Status) -> None:
        """It has waited in vain; what was sent of it may still be done."""
        self.io.settled = not (self._sent and is_write(self.io.operation))
        self.bdev.ended(self.io, status)


def _fail(io: NvmeIo) -> None:
    io.fail(Status.IO_ERROR)


def _known(code: int) -> bool:
    return code in spec.Status.__members__.values()


class NvmeController:
    """An attached controller and the bdevs of its namespaces."""

    def __init__(self, parameters: AttachParameters, layer: BdevLayer) -> None:
        self.parameters = parameters
        self.host: NvmeTcpHost
        self.bdevs: dict[int, NvmeBdev] = {}
        self._layer = layer
        self._changing: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Connect and register the namespaces. Raises BdevError."""
        parameters = self.parameters
        try:
            self.host = await NvmeTcpHost.connect(
                parameters.traddr,
                parameters.trsvcid,
                parameters.subnqn,
                parameters.hostnqn,
                io_queues=min(parameters.num_io_queues, IO_QUEUES_MAX),
                header_digest=parameters.hdgst,
                data_digest=parameters.ddgst,
                reconnect=ReconnectPolicy(give_up_after=parameters.give_up_s),
                on_lost=self._lost,
                on_restored=self._restored,
                on_namespaces=self._namespaces_changed,
            )
        except (NvmeHostError, OSError, ValueError):
            raise BdevError(errno.EIO) from None
        try:
            for namespace in self.host.namespaces.values():
                self._add(namespace)
        except BdevError:
            await self.close()
            raise

    def _add(self, namespace: HostNamespace) -> None:
        bdev = NvmeBdev(self, namespace)
        self._layer.register(bdev)
        self.bdevs[namespace.nsid] = bdev

    def _lost(self, *_: Any) -> None:
        for bdev in self.bdevs.values():
            bdev.lost()

    def _restored(self, *_: Any) -> None:
        for nsid, bdev in list(self.bdevs.items()):
            namespace = self.host.namespaces.get(nsid)
            if namespace is not None and namespace.block_size == bdev.block_size:
                bdev.restored()
        self._namespaces_changed()

    def _namespaces_changed(self, *_: Any) -> None:
        if self._changing is None or self._changing.done():
            self._changing = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        """Make the bdevs what the namespaces are."""
        now = self.host.namespaces
        for nsid, bdev in list(self.bdevs.items()):
            if nsid not in now or now[nsid].block_size != bdev.block_size:
                await self._layer.unregister(self.bdevs.pop(nsid))
        for nsid, namespace in now.items():
            known = self.bdevs.get(nsid)
            if known is None:
                self._add(namespace)
            elif known.block_count != namespace.block_count:
                self._layer.resized(known, namespace.block_count)

    async def close(self) -> None:
        """Take the bdevs away, then disconnect; I/O that does not end soon is broken off by that."""
        if self._changing is not None:
            self._changing.cancel()
        bdevs = [bdev for bdev in self.bdevs.values() if self._layer.get(bdev.name) is bdev]
        self.bdevs.clear()
        leaving = asyncio.gather(*(self._layer.unregister(bdev) for bdev in bdevs))
        try:
            async with asyncio.timeout(CLOSE_S):
                await asyncio.shield(leaving)
        except TimeoutError:
            pass
        await self.host.close()
        await leaving

    @property
    def state(self) -> str:
        """In SPDK's words; failed: it leads to something else than it did."""
        bdevs = self.bdevs.values()
        if any(bdev.refused for bdev in bdevs):
            return "failed"
        return "enabled" if self.host.connected and all(bdev.ready for bdev in bdevs) else "resetting"

    def report(self) -> dict[str, Any]:
        """One element of bdev_nvme_get_controllers."""
        return {
            "name": self.parameters.name,
            "ctrlrs": [
                {
                    "state": self.state,
                    "trid": self.parameters.trid(),
                    "cntlid": self.host.controller.cntlid,
                    "host": {
                        "nqn": self.parameters.hostnqn,
                        "addr": "",
                        "svcid": "",
                        "no_shn_notification": False,
                    },
                }
            ],
        }

    def config(self) -> dict[str, Any]:
        """The call that attaches it again."""
        parameters = self.parameters
        names = (
            "ctrlr_loss_timeout_sec",
            "reconnect_delay_sec",
            "fast_io_fail_timeout_sec",
            "hostnqn",
            "hdgst",
            "ddgst",
            "multipath",
            "fabrics_connect_timeout_us",
            "num_io_queues",
        )
        values = {name: getattr(parameters, name) for name in names}
        params = {"name": parameters.name, **parameters.trid(), "prchk_reftag": False, "prchk_guard": False, **values}
        return {"method": "bdev_nvme_attach_controller", "params": params}


class Controllers:
    """All attached controllers by name."""

    def __init__(self, layer: BdevLayer) -> None:
        self._layer = layer
        self._controllers: dict[str, NvmeController] = {}
        self._attaching: set[str] = set()

    def all(self) -> list[NvmeController]:
        """In the order in which they were attached."""
        return list(self._controllers.values())

    def get(self, name: str) -> NvmeController | None:
        """The controller of this name."""
        return self._controllers.get(name)

    async def attach(self, parameters: AttachParameters) -> list[str]:
        """Connect; the names of its bdevs. Raises BdevError."""
        name = parameters.name
        if name in self._attaching:
            raise BdevError(errno.EALREADY, f"A controller named {name} is being attached")
        self._refuse_second(parameters)
        self._attaching.add(name)
        try:
            controller = NvmeController(parameters, self._layer)
            await controller.connect()
        finally:
            self._attaching.discard(name)
        self._controllers[name] = controller
        return [controller.bdevs[nsid].name for nsid in sorted(controller.bdevs)]

    def _refuse_second(self, wanted: AttachParameters) -> None:
        """One path per controller here; SPDK's words where it refuses too."""
        known = self._controllers.get(wanted.name)
        if known is None:
            return
        there, prefix = known.parameters, f"A controller named {wanted.name} already exists"
        if wanted.multipath == "disable":
            raise BdevError(errno.EALREADY, f"{prefix} and multipath is disabled")
        if (wanted.traddr, wanted.trsvcid) == (there.traddr, there.trsvcid):
            raise BdevError(errno.EALREADY, f"{prefix} with the specified network path")
        if wanted.subnqn != there.subnqn:
            raise BdevError(errno.EINVAL, f"{prefix}, but uses a different subnqn ({there.subnqn})")
        if wanted.hostnqn != there.hostnqn:
            raise BdevError(errno.EINVAL, f"{prefix}, but uses a different hostnqn ({there.hostnqn})")
        raise BdevError(errno.ENOTSUP)

    async def detach(self, name: str, path: dict[str, str]) -> None:
        """Take it away. `path`: what the caller says of its path; all of it must be so. Raises BdevError."""
        controller = self._controllers.get(name)
        if controller is None:
            raise BdevError(errno.ENODEV)
        trid = {key: value.lower() for key, value in controller.parameters.trid().items()}
        if any(trid.get(key) != value.lower() for key, value in path.items()):
            raise BdevError(errno.ENXIO)
        del self._controllers[name]
        await controller.close()

    async def close(self) -> None:
        """Detach all."""
        for name in list(self._controllers):
            await self._controllers.pop(name).close()
