"""The target: subsystems, who connects to them, the discovery service, keep-alive deadlines, what needs attention.

Pure: time comes as `now_ns`. Changes may put output or an end on any connection; such connections wait in the
attention list, and `on_attention` says once that it is no longer empty.
"""

from __future__ import annotations

from collections.abc import Callable

from fabric.nvme_tcp import fabrics
from fabric.nvme_tcp.command import Command
from fabric.nvme_tcp.controller import Controller
from fabric.nvme_tcp.identify import SUBTYPE_DISCOVERY_CURRENT, SUBTYPE_NVM, DiscoveryEntry
from fabric.nvme_tcp.limits import TransportLimits
from fabric.nvme_tcp.queue_pair import QueuePair
from fabric.nvme_tcp.spec import DISCOVERY_NQN, EVENT_DISCOVERY_CHANGED
from fabric.nvme_tcp.subsystem import Listener, Namespace, Subsystem, TargetError, check_nqn
from fabric.nvme_tcp.target_connection import TargetConnection
from fabric.nvme_tcp.write_pool import WritePool


class NvmeTarget:
    """All subsystems of one process, the discovery subsystem included."""

    def __init__(self, limits: TransportLimits | None = None, on_attention: Callable[[], None] | None = None) -> None:
        self.limits = limits or TransportLimits()
        self.on_attention = on_attention
        self.single: Callable[[str], bool] = lambda hostnqn: False
        """Host NQNs that name one host with one controller in each subsystem: its next one ends the one before."""
        self.pool = WritePool()
        self.generation = 1  # of the discovery log
        self.connections: dict[TargetConnection, None] = {}  # in order of arrival
        self.subsystems: dict[str, Subsystem] = {
            DISCOVERY_NQN: Subsystem(DISCOVERY_NQN, allow_any_host=True, namespaces_max=0)
        }
        self._attention: list[TargetConnection] = []
        self._connecting: dict[TargetConnection, Command] = {}  # Connects that wait, one of a connection at most

    # Configuration

    def subsystem(self, nqn: str) -> Subsystem:
        """Raises TargetError if there is none such."""
        found = self.subsystems.get(nqn)
        if found is None or found.is_discovery:
            raise TargetError(f"there is no subsystem {nqn}")
        return found

    def add_subsystem(self, subsystem: Subsystem) -> None:
        if subsystem.nqn in self.subsystems:
            raise TargetError(f"subsystem {subsystem.nqn} exists")
        self.subsystems[subsystem.nqn] = subsystem
        self._discovery_changed()

    def remove_subsystem(self, nqn: str) -> None:
        """Its connections end."""
        subsystem = self.subsystem(nqn)
        self._close(nqn, None, "the subsystem was removed")
        subsystem.hosts.clear()
        subsystem.allow_any_host = False
        del self.subsystems[nqn]
        self._discovery_changed()

    def add_namespace(self, nqn: str, namespace: Namespace) -> None:
        subsystem = self.subsystem(nqn)
        if namespace.nsid in subsystem.namespaces:
            raise TargetError(f"namespace {namespace.nsid} of {nqn} exists")
        if namespace.nsid > subsystem.namespaces_max:
            raise TargetError(f"{nqn} has at most {subsystem.namespaces_max} namespaces")
        subsystem.namespaces[namespace.nsid] = namespace
        self._namespace_changed(subsystem, namespace.nsid)

    def remove_namespace(self, nqn: str, nsid: int) -> None:
        """Commands that the owner has go on; new ones are refused."""
        subsystem = self.subsystem(nqn)
        if subsystem.namespaces.pop(nsid, None) is None:
            raise TargetError(f"{nqn} has no namespace {nsid}")
        self._namespace_changed(subsystem, nsid)

    def resize_namespace(self, nqn: str, nsid: int, block_count: int) -> None:
        subsystem = self.subsystem(nqn)
        namespace = subsystem.namespaces.get(nsid)
        if namespace is None:
            raise TargetError(f"{nqn} has no namespace {nsid}")
        if block_count < 1:
            raise TargetError(f"a namespace of {block_count} blocks is not possible")
        namespace.block_count = block_count
        self._namespace_changed(subsystem, nsid)

    def add_listener(self, nqn: str, listener: Listener) -> None:
        subsystem = self.subsystem(nqn)
        if listener in subsystem.listeners:
            raise TargetError(f"{nqn} listens there already")
        subsystem.listeners.append(listener)
        self._discovery_changed()

    def remove_listener(self, nqn: str, listener: Listener) -> None:
        """The connections that came by it end."""
        subsystem = self.subsystem(nqn)
        if listener not in subsystem.listeners:
            raise TargetError(f"{nqn} does not listen there")
        subsystem.listeners.remove(listener)
        for connection in self.queue_pairs(nqn):
            if connection.listener == listener:
                connection.close("the listener was removed")
        self._discovery_changed()

    def allow_host(self, nqn: str, hostnqn: str) -> None:
        check_nqn(hostnqn)
        subsystem = self.subsystem(nqn)
        if hostnqn in subsystem.hosts:
            raise TargetError(f"{hostnqn} is allowed already")
        subsystem.hosts.add(hostnqn)
        self._discovery_changed()

    def deny_host(self, nqn: str, hostnqn: str) -> None:
        """The host's queue pairs end; `queue_pairs(nqn, hostnqn)` is empty once none of its commands is left."""
        subsystem = self.subsystem(nqn)
        if hostnqn not in subsystem.hosts:
            raise TargetError(f"{hostnqn} is not in the list of {nqn}")
        subsystem.hosts.remove(hostnqn)
        if not subsystem.allow_any_host:
            self._close(nqn, hostnqn, "the host was removed")
        self._discovery_changed()

    def allow_any_host(self, nqn: str, allow: bool) -> None:
        """Not allowing it ends the connections of hosts that are not in the list."""
        subsystem = self.subsystem(nqn)
        subsystem.allow_any_host = allow
        for connection in self.queue_pairs(nqn):
            if not subsystem.allows(connection.hostnqn):
                connection.close("the host is not allowed any more")
        self._discovery_changed()

    # Connections and controllers

    def accept(self, listener: Listener, peer: str, now_ns: int) -> TargetConnection | None:
        """A TCP connection came in; None: too many, close it."""
        if len(self.connections) >= self.limits.max_connections:
            return None
        connection = TargetConnection(self, listener, peer, now_ns)
        self.connections[connection] = None
        return connection

    def queue_pairs(self, nqn: str, hostnqn: str | None = None) -> list[TargetConnection]:
        """Connected queue pairs, also lost ones of which a command is still being executed."""
        return [
            connection
            for connection in self.connections
            if connection.subsystem is not None
            and connection.subsystem.nqn == nqn
            and hostnqn in (None, connection.hostnqn)
        ]

    def new_controller(self, subsystem: Subsystem, hostnqn: str, hostid: bytes) -> Controller | None:
        """None: all controller ids are in use."""
        cntlid = subsystem.take_cntlid()
        if cntlid is None:
            return None
        controller = Controller(subsystem, cntlid, hostnqn, hostid, self.limits)
        subsystem.controllers[cntlid] = controller
        return controller

    def connection_lost(self, connection: QueuePair) -> None:
        """The shell has lost it. The end of an admin queue is the end of its controller."""
        controller = connection.controller
        if controller is not None and controller.queues.get(connection.qid) is connection:
            del controller.queues[connection.qid]
            if connection.qid == 0:
                self._end_controller(controller, "the admin queue is gone")
        if connection.drained:
            self.forget(connection)

    def forget(self, connection: QueuePair) -> None:
        """Nothing of this connection is left."""
        assert isinstance(connection, TargetConnection)
        self.connections.pop(connection, None)

    def let_in(self) -> None:
        """An ended connection has no more commands: Connects that waited may go on."""
        waiting, self._connecting = self._connecting, {}
        for other, command in waiting.items():
            if not command.done and not other.closing:
                assert command.sqe is not None
                fabrics.connect(other, command, command.sqe)

    def supersede(self, subsystem: Subsystem, hostnqn: str) -> None:
        """A `single` host begins anew: it has lost what it had here, whether or not we know of that yet.

        Nothing more is received on those connections: what the host sent there and was not read by now never counts.
        """
        for controller in [one for one in subsystem.controllers.values() if one.hostnqn == hostnqn]:
            self._end_controller(controller, "the host has begun another controller")

    def has_lost(self, subsystem: Subsystem, hostnqn: str, hostid: bytes) -> bool:
        """Whether connections of this host have ended of which a command is still being executed."""
        return any(
            connection.closing
            and connection.subsystem is subsystem
            and connection.hostnqn == hostnqn
            and (connection.hostid == hostid or self.single(hostnqn))
            and connection.executing
            for connection in self.connections
        )

    def let_wait(self, command: Command) -> None:
        """A Connect that is answered by `let_in`. Its data stays."""
        if command.connection.connecting is None:
            command.connection.connecting = command
            command.data = None if command.data is None else memoryview(bytes(command.data))
        self._connecting[command.connection] = command

    def _end_controller(self, controller: Controller, reason: str) -> None:
        controller.subsystem.controllers.pop(controller.cntlid, None)
        controller.deadline_ns = None
        for queue in list(controller.queues.values()):
            queue.close(reason)

    def _close(self, nqn: str, hostnqn: str | None, reason: str) -> None:
        for connection in self.queue_pairs(nqn, hostnqn):
            connection.close(reason)

    # Events

    def _namespace_changed(self, subsystem: Subsystem, nsid: int) -> None:
        for controller in subsystem.controllers.values():
            controller.namespace_changed(nsid)

    def _discovery_changed(self) -> None:
        self.generation += 1
        for controller in self.subsystems[DISCOVERY_NQN].controllers.values():
            controller.raise_event(EVENT_DISCOVERY_CHANGED)

    def discovery_entries(self, hostnqn: str, here: Listener) -> list[DiscoveryEntry]:
        """What this host may connect to, and the discovery service itself."""
        found = [(DISCOVERY_NQN, SUBTYPE_DISCOVERY_CURRENT, here)]
        for subsystem in self.subsystems.values():
            if subsystem.allows(hostnqn) and not subsystem.is_discovery:
                found += [(subsystem.nqn, SUBTYPE_NVM, listener) for listener in subsystem.listeners]
        return [
            DiscoveryEntry(listener.trtype, listener.adrfam, listener.traddr, listener.trsvcid, nqn, subtype)
            for nqn, subtype, listener in found
        ]

    # Attention and time

    def attend(self, connection: QueuePair) -> None:
        """A connection has output, or is closing, without having received anything."""
        assert isinstance(connection, TargetConnection)
        self._attention.append(connection)
        if len(self._attention) == 1 and self.on_attention is not None:
            self.on_attention()

    def take_attention(self) -> list[TargetConnection]:
        """Connections whose output is to be sent, and which are to be closed if `closing`."""
        taken, self._attention = self._attention, []
        for connection in taken:
            connection.noted = False
        return taken

    def next_deadline(self) -> int | None:
        """When `tick` has something to do, at the latest."""
        deadlines = [connection.deadline_ns for connection in self.connections if connection.deadline_ns is not None]
        deadlines += [
            controller.deadline_ns
            for subsystem in self.subsystems.values()
            for controller in subsystem.controllers.values()
            if controller.deadline_ns is not None
        ]
        return min(deadlines, default=None)

    def tick(self, now_ns: int) -> None:
        """End what is overdue: connections without Connect, controllers without Keep Alive."""
        for connection in list(self.connections):
            if connection.deadline_ns is not None and connection.deadline_ns <= now_ns:
                connection.deadline_ns = None
                connection.close("no Connect in time")
        for subsystem in self.subsystems.values():
            for controller in list(subsystem.controllers.values()):
                if controller.deadline_ns is not None and controller.deadline_ns <= now_ns:
                    self._end_controller(controller, f"no keep alive for {controller.keep_alive_ms} ms")
