"""A controller as the host brings it up and keeps it: a script of commands, then keep-alive and events.

Base Specification, fabrics initialization: Connect, CAP, CC.EN, CSTS.RDY, Identify, number of queues, event
configuration, I/O queues, namespaces. `take_effects` says what the shell has to do; it feeds the queues' bytes, calls
`tick` at `next_deadline`, and tells `lost` when a connection ends.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Final

from fabric.nvme_tcp import identify, spec
from fabric.nvme_tcp.capsule import Sqe, connect_data, connect_sqe
from fabric.nvme_tcp.host_command import PENDING, HostCommand
from fabric.nvme_tcp.identify import DiscoveryEntry
from fabric.nvme_tcp.initiator import InitiatorQueue
from fabric.nvme_tcp.spec import FABRICS_OPCODE, AdminOpcode, Cns, FabricsType, Feature, LogPage, Property

SECOND_NS: Final = 1_000_000_000
ADMIN_ENTRIES: Final = 32
RDY_POLL_NS: Final = 10_000_000
TRANSFER_BYTES_MAX: Final = 1 << 20
NAMESPACES_MAX: Final = 1024
DISCOVERY_ENTRIES_MAX: Final = 4096
DISCOVERY_TRIES_MAX: Final = 8
_ONCS_DEALLOCATE, _ONCS_WRITE_ZEROES = 1 << 2, 1 << 3
_AUTHENTICATION_REQUIRED: Final = 0x6 << 16


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """Open a TCP connection for this queue, `start` the queue, carry its bytes."""

    qid: int


@dataclass(frozen=True, slots=True)
class Ready:
    """I/O may begin."""


@dataclass(frozen=True, slots=True)
class NamespacesChanged:
    """`namespaces` is not what it was."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The controller is of no more use: close its connections. `status`: of a refusal, or 0."""

    reason: str
    status: int = 0


Effect = OpenConnection | Ready | NamespacesChanged | Lost


@dataclass(frozen=True, slots=True)
class HostParameters:
    """Who connects to what, and how. Times in ns; 0 keep_alive_ms: none."""

    subnqn: str
    hostnqn: str
    hostid: bytes
    io_queues: int = 2
    queue_depth: int = 128
    header_digest: bool = False
    data_digest: bool = False
    keep_alive_ms: int = 10_000
    admin_timeout_ns: int = 10 * SECOND_NS
    io_timeout_ns: int = 30 * SECOND_NS

    @property
    def is_discovery(self) -> bool:
        return self.subnqn == spec.DISCOVERY_NQN


@dataclass(frozen=True, slots=True)
class HostNamespace:
    """A namespace as the controller describes it."""

    nsid: int
    block_size: int
    block_count: int
    uuid: bytes
    nguid: bytes
    eui64: bytes
    read_only: bool
    deallocate: bool
    write_zeroes: bool
    boundary_blocks: int


class BringUpError(Exception):
    """The script cannot go on; status of the command that failed, or 0."""

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


# A script yields a command to be run on the admin queue, or a time to wait for, or None: until an event resumes it.
Script = Generator[HostCommand | int | None, None, None]


@dataclass(slots=True)
class _Identity:
    """What Identify Controller said."""

    serial: str = ""
    model: str = ""
    firmware: str = ""
    oncs: int = 0
    oaes: int = 0
    transfer_bytes: int = TRANSFER_BYTES_MAX
    in_capsule_bytes: int = 0
    volatile_cache: bool = False
    raw: dict[str, Any] = field(default_factory=dict)


class HostController:
    """One controller, from nothing to `Ready` to `Lost`. Not used again after that."""

    def __init__(self, parameters: HostParameters) -> None:
        self.parameters = parameters
        self.admin = InitiatorQueue(
            0,
            ADMIN_ENTRIES,
            header_digest=parameters.header_digest,
            data_digest=parameters.data_digest,
            timeout_ns=parameters.admin_timeout_ns,
            on_initialized=self._resume,
        )
        self.queues: list[InitiatorQueue] = []
        self.namespaces: dict[int, HostNamespace] = {}
        self.identity = _Identity()
        self.discovery: list[DiscoveryEntry] = []
        self.cntlid = spec.CNTLID_DYNAMIC
        self.ready = False
        self.ended = False
        self._cap = 0
        self._effects: list[Effect] = []
        self._script: Script | None = None
        self._rescan = False
        self._wait_ns: int | None = None
        self._keep_alive_ns: int | None = None
        self._keep_alive: HostCommand | None = None
        self._unconnected = 0
        self.now_ns = 0

    def queue(self, qid: int) -> InitiatorQueue:
        return self.admin if qid == 0 else self.queues[qid - 1]

    def take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # What the shell tells

    def start(self, now_ns: int) -> None:
        """Begin: the first effect is the admin queue's connection."""
        self.now_ns = now_ns
        self._effects.append(OpenConnection(0))
        self._run(self._bring_up())

    def lost(self, reason: str, status: int = 0) -> None:
        """A connection ended, or the shell gives up: every command of every queue ends."""
        if self.ended:
            return
        self.ended = True
        self.ready = False
        if self._script is not None:
            self._script.close()
            self._script = None
        self._effects.append(Lost(reason, status))
        for queue in [self.admin, *self.queues]:
            queue.fail(reason)

    def received(self, now_ns: int) -> None:
        """Bytes have been given to a queue: look whether it has failed."""
        self.now_ns = now_ns
        for queue in [self.admin, *self.queues]:
            if queue.failed is not None:
                self.lost(queue.failed)

    def next_deadline(self) -> int | None:
        times = [queue.next_deadline() for queue in [self.admin, *self.queues]]
        times += [self._wait_ns, self._keep_alive_ns]
        return min((time for time in times if time is not None), default=None)

    def tick(self, now_ns: int) -> None:
        """Time has passed."""
        self.now_ns = now_ns
        for queue in [self.admin, *self.queues]:
            queue.tick(now_ns)
        self.received(now_ns)
        if self.ended:
            return
        if self._wait_ns is not None and self._wait_ns <= now_ns:
            self._wait_ns = None
            self._resume()
        if self._keep_alive_ns is not None and self._keep_alive_ns <= now_ns:
            self._send_keep_alive()

    # Scripts

    def _run(self, script: Script) -> None:
        self._script = script
        if self.admin.initialized:
            self._resume()

    def _resume(self) -> None:
        """Go on with the script until it has to wait."""
        script = self._script
        if script is None or self.ended:
            return
        if self.admin.failed is not None:
            self.lost(self.admin.failed)
            return
        try:
            step = next(script)
        except StopIteration:
            self._script = None
            if self._rescan and self.ready:
                self._rescan = False
                self._run(self._changed())
            return
        except BringUpError as error:
            self._script = None
            self.lost(str(error), error.status)
            return
        if isinstance(step, HostCommand):
            step.done = lambda _command: self._resume()
            self.admin.submit(step, self.now_ns)
        elif step is not None:
            self._wait_ns = step

    def _do(self, what: str, sqe: Sqe, data: bytes | bytearray | None = None) -> Generator[HostCommand, None, int]:
        """One admin or fabrics command. Returns its result; raises BringUpError if it fails."""
        command = HostCommand(sqe.opcode, sqe.nsid, data=data, sqe=sqe)
        yield command
        assert command.status != PENDING
        if command.status:
            raise BringUpError(f"{what}: {spec.status_text(command.status)}", command.status)
        return command.result

    def _get_property(self, place: Property) -> Generator[HostCommand, None, int]:
        wide = int(place == Property.CAP)
        sqe = Sqe(FABRICS_OPCODE, FabricsType.PROPERTY_GET, wide, place)
        return (yield from self._do(f"property {place.name}", sqe))

    def _set_cc(self, value: int) -> Generator[HostCommand, None, int]:
        sqe = Sqe(FABRICS_OPCODE, FabricsType.PROPERTY_SET, 0, Property.CC, value)
        return (yield from self._do("controller configuration", sqe))

    def _identify(self, cns: Cns, nsid: int = 0) -> Generator[HostCommand, None, bytearray]:
        data = bytearray(spec.IDENTIFY_BYTES)
        yield from self._do(f"identify {cns.name.lower()}", Sqe(AdminOpcode.IDENTIFY, nsid, cns), data)
        return data

    def _log_page(self, page: LogPage, length: int, offset: int = 0) -> Generator[HostCommand, None, bytearray]:
        data = bytearray(length)
        dwords = length // 4 - 1
        sqe = Sqe(
            AdminOpcode.GET_LOG_PAGE,
            0,
            page | (dwords & 0xFFFF) << 16,
            dwords >> 16,
            offset & 0xFFFFFFFF,
            offset >> 32,
        )
        yield from self._do(f"log page {page.name.lower()}", sqe, data)
        return data

    def _bring_up(self) -> Script:
        parameters = self.parameters
        result = yield from self._connect(0, ADMIN_ENTRIES)
        self.cntlid = result & 0xFFFF
        if result & _AUTHENTICATION_REQUIRED:
            raise BringUpError("the controller requires authentication")
        self._cap = yield from self._get_property(Property.CAP)
        yield from self._enable()
        yield from self._identify_controller()
        if parameters.keep_alive_ms:
            self._keep_alive_ns = self.now_ns + parameters.keep_alive_ms * 500_000
        if parameters.is_discovery:
            yield from self._discover()
        else:
            yield from self._configure_events()
            yield from self._connect_io_queues()
            yield from self._scan()
        self.ready = True
        self._effects.append(Ready())

    def _connect(self, qid: int, entries: int) -> Generator[HostCommand, None, int]:
        keep_alive = self.parameters.keep_alive_ms if qid == 0 else 0
        return (yield from self._do("connect", *self._connect_command(qid, entries, keep_alive)))

    def _connect_command(self, qid: int, entries: int, keep_alive_ms: int) -> tuple[Sqe, bytes]:
        parameters = self.parameters
        sqe = connect_sqe(qid, entries - 1, disable_flow_control=True, keep_alive_ms=keep_alive_ms)
        return sqe, connect_data(parameters.hostid, self.cntlid, parameters.subnqn, parameters.hostnqn)

    def _enable(self) -> Script:
        limit_ns = self.now_ns + max(1, self._cap >> 24 & 0xFF) * SECOND_NS // 2
        if (yield from self._get_property(Property.CC)) & spec.CC_EN:
            yield from self._set_cc(0)
            yield from self._await_ready(0, limit_ns)
        yield from self._set_cc(spec.CC_EN | 6 << 16 | 4 << 20)
        yield from self._await_ready(spec.CSTS_RDY, limit_ns)

    def _await_ready(self, wanted: int, limit_ns: int) -> Script:
        while True:
            status = yield from self._get_property(Property.CSTS)
            if status & spec.CSTS_CFS:
                raise BringUpError("the controller reports a fatal status")
            if status & spec.CSTS_RDY == wanted:
                return
            if self.now_ns >= limit_ns:
                raise BringUpError("the controller does not become ready")
            yield self.now_ns + RDY_POLL_NS

    def _identify_controller(self) -> Script:
        data = yield from self._identify(Cns.CONTROLLER)
        raw = identify.CONTROLLER.parse(data)
        page = 4096 << (self._cap >> 48 & 0xF)
        self.identity = _Identity(
            serial=raw["sn"].decode("ascii", "replace").strip(" \0"),
            model=raw["mn"].decode("ascii", "replace").strip(" \0"),
            firmware=raw["fr"].decode("ascii", "replace").strip(" \0"),
            oncs=raw["oncs"],
            oaes=raw["oaes"],
            transfer_bytes=min(page << raw["mdts"], TRANSFER_BYTES_MAX) if raw["mdts"] else TRANSFER_BYTES_MAX,
            in_capsule_bytes=max(0, raw["ioccsz"] * 16 - spec.SQE_BYTES) if not raw["icdoff"] else 0,
            volatile_cache=bool(raw["vwc"] & 1),
            raw=raw,
        )

    def _configure_events(self) -> Script:
        wanted = self.identity.oaes & spec.EVENT_CONFIG_NAMESPACES
        if wanted:
            sqe = Sqe(AdminOpcode.SET_FEATURES, 0, Feature.ASYNC_EVENT_CONFIGURATION, wanted)
            yield from self._do("event configuration", sqe)
            self._request_event()

    def _connect_io_queues(self) -> Script:
        parameters = self.parameters
        wanted = parameters.io_queues - 1
        sqe = Sqe(AdminOpcode.SET_FEATURES, 0, Feature.NUMBER_OF_QUEUES, wanted | wanted << 16)
        granted = yield from self._do("number of queues", sqe)
        count = min(parameters.io_queues, (granted & 0xFFFF) + 1, (granted >> 16) + 1)
        entries = min(parameters.queue_depth + 1, (self._cap & 0xFFFF) + 1)
        self._unconnected = count
        for qid in range(1, count + 1):
            self._add_queue(qid, entries)
        while self._unconnected:
            yield None

    def _add_queue(self, qid: int, entries: int) -> None:
        parameters = self.parameters

        def connected(command: HostCommand) -> None:
            if self.ended:
                return
            if command.status:
                self.lost(f"connect of I/O queue {qid}: {spec.status_text(command.status)}", command.status)
                return
            queue.in_capsule_bytes = self.identity.in_capsule_bytes
            self._unconnected -= 1
            if not self._unconnected:
                self._resume()

        def initialized() -> None:
            sqe, data = self._connect_command(qid, entries, 0)
            queue.submit(HostCommand(FABRICS_OPCODE, sqe=sqe, data=data, done=connected), self.now_ns)

        queue = InitiatorQueue(
            qid,
            entries,
            header_digest=parameters.header_digest,
            data_digest=parameters.data_digest,
            timeout_ns=parameters.io_timeout_ns,
            on_initialized=initialized,
        )
        self.queues.append(queue)
        self._effects.append(OpenConnection(qid))

    # Namespaces

    def _scan(self) -> Script:
        """Read all active namespaces anew."""
        found: dict[int, HostNamespace] = {}
        after = 0
        while True:
            ids = identify.parse_identifier_list((yield from self._identify(Cns.ACTIVE_NAMESPACES, after)))
            for nsid in ids:
                namespace = yield from self._describe(nsid)
                if namespace is not None:
                    found[nsid] = namespace
            if len(ids) < spec.IDENTIFY_BYTES // 4 or len(found) >= NAMESPACES_MAX or ids[-1] <= after:
                break
            after = ids[-1]
        if found != self.namespaces:
            self.namespaces = found
            if self.ready:
                self._effects.append(NamespacesChanged())

    def _describe(self, nsid: int) -> Generator[HostCommand, None, HostNamespace | None]:
        raw = identify.NAMESPACE.parse((yield from self._identify(Cns.NAMESPACE, nsid)))
        ids = identify.parse_descriptors((yield from self._identify(Cns.NAMESPACE_DESCRIPTORS, nsid)))
        shift = raw["lbaf0"] >> 16 & 0xFF if not raw["flbas"] & 0x0F else 0
        metadata = raw["lbaf0"] & 0xFFFF
        if not raw["nsze"] or not 9 <= shift <= 16 or metadata:
            return None  # gone in the meantime, or of a format that is not used here
        oncs = self.identity.oncs
        return HostNamespace(
            nsid=nsid,
            block_size=1 << shift,
            block_count=raw["nsze"],
            uuid=ids.get(identify.DESCRIPTOR_UUID, bytes(16)),
            nguid=raw["nguid"],
            eui64=raw["eui64"],
            read_only=bool(raw["nsattr"] & 1),
            deallocate=bool(oncs & _ONCS_DEALLOCATE),
            write_zeroes=bool(oncs & _ONCS_WRITE_ZEROES),
            boundary_blocks=raw["noiob"],
        )

    def _changed(self) -> Script:
        """After an event: reading the log page re-arms it."""
        yield from self._log_page(LogPage.CHANGED_NAMESPACES, spec.CHANGED_NAMESPACES_MAX * 4)
        yield from self._scan()

    def _request_event(self) -> None:
        sqe = Sqe(AdminOpcode.ASYNC_EVENT_REQUEST)
        self.admin.submit(HostCommand(sqe.opcode, sqe=sqe, done=self._event), self.now_ns, timeout=False)

    def _event(self, command: HostCommand) -> None:
        if self.ended or command.status:
            return
        self._request_event()
        if command.result & 0xFFFFFF == spec.EVENT_NAMESPACES_CHANGED:
            if self._script is None:
                self._run(self._changed())
            else:
                self._rescan = True

    # Keep alive

    def _send_keep_alive(self) -> None:
        self._keep_alive_ns = self.now_ns + self.parameters.keep_alive_ms * 500_000
        if self._keep_alive is None and self.admin.room:
            sqe = Sqe(AdminOpcode.KEEP_ALIVE)
            self._keep_alive = HostCommand(sqe.opcode, sqe=sqe, done=self._kept_alive)
            self.admin.submit(self._keep_alive, self.now_ns)

    def _kept_alive(self, command: HostCommand) -> None:
        self._keep_alive = None
        if command.status and not self.ended:
            self.lost(f"keep alive: {spec.status_text(command.status)}", command.status)

    # Discovery

    def _discover(self) -> Script:
        """Read the discovery log; again if it changes meanwhile."""
        header_bytes, entry_bytes = identify.DISCOVERY_HEADER.size, identify.DISCOVERY_ENTRY.size
        for _ in range(DISCOVERY_TRIES_MAX):
            generation, count = identify.parse_discovery_header(
                (yield from self._log_page(LogPage.DISCOVERY, header_bytes))
            )
            if count > DISCOVERY_ENTRIES_MAX:
                raise BringUpError(f"a discovery log of {count} entries")
            entries = []
            for number in range(count):
                offset = header_bytes + number * entry_bytes
                data = yield from self._log_page(LogPage.DISCOVERY, entry_bytes, offset)
                entries.append(identify.parse_discovery_entry(data))
            again, _ = identify.parse_discovery_header((yield from self._log_page(LogPage.DISCOVERY, header_bytes)))
            if again == generation:
                self.discovery = entries
                return
        raise BringUpError("the discovery log does not come to rest")
