"""The operation table: what operators can ask, with which arguments, and how each is carried out.

Mutating operations may carry a request id: the same one again gets the first result, also after a restart, and with
other arguments it is refused. Operations that have to wait for agents do so up to a limit, and say what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from channel.messages import GetEntries, GetParked
from controller.core.agents import Agent
from controller.core.changes import Change
from controller.core.cluster import Cluster
from controller.core.containers import Containers
from controller.core.effects import RefuseOperation, Reply
from controller.core.fence_operations import FenceOperations
from controller.core.refusals import Refusal
from controller.core.reports import STATE_NAMES, Reports
from controller.core.truth import Container, VDisk
from controller.core.volumes import Volumes
from fabric.nvme_tcp.nqn import NQN_BYTES_MAX, nqn_is_valid
from mapping.entry import State, has_location, segment_of, slot_of, state_of
from mapping.rules import FaultKind, Operation
from mapping.status import Status

Done = Callable[[dict[str, Any]], None]
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
HOSTS_MAX: Final = 256
WAIT_S: Final = 30


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its type, and its default unless it is required."""

    kind: type
    default: Any = None
    required: bool = False
    minimum: int = 0


def _required(kind: type, minimum: int = 0) -> Argument:
    return Argument(kind, None, True, minimum)


@dataclass(frozen=True, slots=True)
class OperationSpec:
    """What an operation takes, and whether it changes anything."""

    arguments: dict[str, Argument]
    mutating: bool = False


_NAME_ONLY: Final = {"name": _required(str)}
_FENCING: Final = {"agent": _required(str), "wait_s": Argument(int, WAIT_S)}
OPERATIONS: Final[dict[str, OperationSpec]] = {
    "cluster.status": OperationSpec({}),
    "container.add": OperationSpec(
        {
            "name": _required(str),
            "agent": _required(str),
            "export": _required(str),
            "contents": Argument(str, "unknown"),
            "force": Argument(bool, False),
            "segment_size": Argument(int, 0),
        },
        True,
    ),
    "container.list": OperationSpec({}),
    "container.show": OperationSpec(_NAME_ONLY),
    "container.fail": OperationSpec(_NAME_ONLY, True),
    "container.restore": OperationSpec(_NAME_ONLY, True),
    "vdisk.create": OperationSpec(
        {
            "name": _required(str),
            "size_bytes": _required(int, 1),
            "segment_size": Argument(int, 0),
            "block_size": Argument(int, 0),
            "containers": Argument(list, ()),
            "thick": Argument(bool, False),
        },
        True,
    ),
    "vdisk.list": OperationSpec({}),
    "vdisk.show": OperationSpec(_NAME_ONLY),
    "vdisk.delete": OperationSpec({"name": _required(str), "force": Argument(bool, False)}, True),
    "vdisk.present": OperationSpec(
        {
            "name": _required(str),
            "agents": _required(list),
            "hosts": Argument(list, ()),
            "read_only": Argument(bool, False),
            "any_host": Argument(bool, False),
        },
        True,
    ),
    "vdisk.withdraw": OperationSpec({"name": _required(str), "agents": Argument(list, ())}, True),
    "vdisk.map": OperationSpec({"name": _required(str), "start": Argument(int, 0), "count": Argument(int, 0)}),
    "vdisk.explain": OperationSpec({"name": _required(str), "offset": _required(int)}),
    "agent.list": OperationSpec({}),
    "agent.show": OperationSpec({"agent": _required(str)}),
    "agent.entries": OperationSpec(
        {
            "agent": _required(str),
            "vdisk": _required(str),
            "start": Argument(int, 0),
            "count": Argument(int, 64, minimum=1),
        }
    ),
    "agent.fence": OperationSpec(_FENCING, True),
    "agent.drain": OperationSpec(_FENCING, True),
    "agent.undrain": OperationSpec(_FENCING, True),
    "agent.remove": OperationSpec({"agent": _required(str)}, True),
    "agent.confirm_dead": OperationSpec({**_FENCING, "confirm": _required(str)}, True),
    "io.parked": OperationSpec({"agent": Argument(str, "")}),
    "cluster.check": OperationSpec({"run": Argument(int, 0)}),
    "cluster.reconcile": OperationSpec({"discard": Argument(bool, False)}, True),
    "events.list": OperationSpec({"limit": Argument(int, 100, minimum=1), "after": Argument(int, 0)}),
}


class _Request:
    """One asked operation until it is replied to; `tokens` grow if the same request id is asked again meanwhile."""

    __slots__ = ("args", "operation", "replied", "request_id", "tokens")

    def __init__(self, token: int, operation: str, args: dict[str, Any], request_id: str) -> None:
        self.tokens = [token]
        self.operation = operation
        self.args = args
        self.request_id = request_id
        self.replied = False


class _Waiter:
    """A condition that an operation waits for; at the deadline `late` is called instead."""

    __slots__ = ("done", "late", "met")

    def __init__(self, met: Callable[[], bool], done: Callable[[int], None], late: Callable[[int], None]) -> None:
        self.met = met
        self.done = done
        self.late = late


class Operations:
    """Checks, carries out, replies."""

    def __init__(self, cluster: Cluster, volumes: Volumes, containers: Containers, reports: Reports) -> None:
        self._cluster = cluster
        self._volumes = volumes
        self._containers = containers
        self._reports = reports
        self._running: dict[str, _Request] = {}
        self._waiters: list[_Waiter] = []
        requests = cluster.objects.get("request", {})
        self._finished: dict[str, dict[str, Any]] = {key: value for key, value in requests.items() if value}  # type: ignore[misc]
        self._finished = dict(sorted(self._finished.items(), key=lambda item: item[1]["order"]))
        self._order = max((record["order"] for record in self._finished.values()), default=0)
        fences = FenceOperations(cluster, reports, self)
        self._handlers: dict[str, Callable[[Any, int], None]] = {
            "agent.fence": fences.fence,
            "agent.drain": fences.drain,
            "agent.undrain": fences.undrain,
            "agent.confirm_dead": fences.confirm_dead,
            "agent.remove": fences.remove,
        }
        for name in OPERATIONS.keys() - self._handlers.keys():
            self._handlers[name] = getattr(self, "_" + name.replace(".", "_"))

    # --- asking and replying -----------------------------------------------------------------------------------------

    def requested(self, token: int, operation: str, args: Mapping[str, Any], request_id: str, now_ns: int) -> None:
        """An operator asks."""
        request = _Request(token, operation, {}, request_id)
        try:
            request.args = self._checked(operation, args, request_id)
            if self._repeated(request):
                return
            if OPERATIONS[operation].mutating and request_id:
                self._running[request_id] = request
            self._handlers[operation](request, now_ns)
        except Refusal as refusal:
            self._refuse(request, refusal)

    def _checked(self, operation: str, args: Mapping[str, Any], request_id: str) -> dict[str, Any]:
        spec = OPERATIONS.get(operation)
        if spec is None:
            raise Refusal("unknown_operation", f"there is no operation {operation}")
        if self._cluster.deposed:
            raise Refusal("deposed", "another controller reigns")
        if spec.mutating and self._cluster.store_full:
            raise Refusal("unavailable", "the controller's store is full: nothing can be changed", "free space for it")
        if len(self._waiters) + len(self._running) >= self._cluster.limits.operations_waiting:
            raise Refusal("limit", "too many operations wait", "try again later")
        if request_id and not REQUEST_ID.fullmatch(request_id):
            raise Refusal("bad_argument", "request_id is 1..64 of A-Z a-z 0-9 . _ : -")
        unknown = sorted(set(args) - set(spec.arguments))
        if unknown:
            raise Refusal("bad_argument", f"{operation} has no argument {unknown[0]}")
        return {name: _value(name, argument, args) for name, argument in spec.arguments.items()}

    def _repeated(self, request: _Request) -> bool:
        """True if its request id was asked before: it is replied to, or will be."""
        request_id = request.request_id
        if not request_id or not OPERATIONS[request.operation].mutating:
            return False
        running, finished = self._running.get(request_id), self._finished.get(request_id)
        known = (running.operation, running.args) if running else None
        if finished is not None:
            known = (finished["operation"], finished["args"])
        if known is None:
            return False
        if known != (request.operation, request.args):
            raise Refusal("bad_argument", f"request id {request_id} was used for another {known[0]}")
        if running is not None:
            running.tokens += request.tokens
            return True
        assert finished is not None
        if finished["result"] is None:
            return False
        self._cluster.effects.append(Reply(request.tokens[0], finished["result"]))
        return True

    def accept(self, request: _Request, result: dict[str, Any] | None = None) -> None:
        """Remember the request in the same transaction as what it changes."""
        if not request.request_id:
            return
        known = self._finished.get(request.request_id)
        self._order += 0 if known else 1
        record = {
            "operation": request.operation,
            "args": request.args,
            "result": result,
            "order": known["order"] if known else self._order,
        }
        self._finished[request.request_id] = record
        self._cluster.journal.put("request", request.request_id, record)
        while len(self._finished) > self._cluster.limits.requests_kept:
            oldest = next(iter(self._finished))
            del self._finished[oldest]
            self._cluster.journal.delete("request", oldest)

    def reply(self, request: _Request, result: dict[str, Any]) -> None:
        """Reply now; a mutating operation's result is remembered first."""
        if request.replied:
            return
        request.replied = True
        self._running.pop(request.request_id, None)
        if not OPERATIONS[request.operation].mutating or not request.request_id:
            self._cluster.effects.extend(Reply(token, result) for token in request.tokens)
            return
        self.accept(request, result)
        self._cluster.journal.then(
            lambda now: self._cluster.effects.extend(Reply(token, result) for token in request.tokens)
        )

    def _refuse(self, request: _Request, refusal: Refusal) -> None:
        if request.replied:
            return
        request.replied = True
        if self._running.get(request.request_id) is request:
            del self._running[request.request_id]
        record = self._finished.get(request.request_id)
        if record is not None and record["result"] is None and record["args"] == request.args:
            del self._finished[request.request_id]
            self._cluster.journal.delete("request", request.request_id)
        self._cluster.effects.extend(
            RefuseOperation(token, refusal.code, refusal.text, refusal.hint) for token in request.tokens
        )

    # --- waiting -----------------------------------------------------------------------------------------------------

    def wait(
        self,
        met: Callable[[], bool],
        done: Callable[[int], None],
        late: Callable[[int], None],
        now_ns: int,
        limit_ns: int | None = None,
    ) -> None:
        """Call `done` once `met`, or `late` at the limit."""
        if met() or limit_ns == 0:
            (done if met() else late)(now_ns)
            return
        waiter = _Waiter(met, done, late)
        self._waiters.append(waiter)

        def expired(now_ns: int) -> None:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                waiter.late(now_ns)

        self._cluster.timers.at(now_ns + (self._cluster.timing.wait_ns if limit_ns is None else limit_ns), expired)

    def look(self, now_ns: int) -> None:
        """Something has changed: who waits for it?"""
        for waiter in [waiter for waiter in self._waiters if waiter.met()]:
            self._waiters.remove(waiter)
            waiter.done(now_ns)

    # --- finding -----------------------------------------------------------------------------------------------------

    def agent(self, name: str) -> Agent:
        agent = self._cluster.agents_by_name.get(name)
        if agent is None:
            raise Refusal("not_found", f"there is no agent {name}", "`segmap agent list` shows them")
        return agent

    def _vdisk(self, request: _Request) -> VDisk:
        return self._volumes.named(request.args["name"])

    # --- containers --------------------------------------------------------------------------------------------------

    def _container_add(self, request: _Request, now_ns: int) -> None:
        args = request.args
        _check_name(args["name"])
        if args["contents"] not in ("zeroed", "unknown"):
            raise Refusal("bad_argument", "contents is zeroed or unknown")
        if args["force"] and args["contents"] == "zeroed":
            text = "what is added over foreign data does not read as zeroes"
            raise Refusal("bad_argument", text, "leave out --contents zeroed, or --force")
        exporter = self.agent(args["agent"])
        if self._container_added(request):
            return
        export = exporter.exports.get(args["export"])
        if not exporter.admitted or not exporter.exports_known:
            raise Refusal("unavailable", f"exporter {exporter.name} is not connected", "start its agent")
        if export is None:
            known = ", ".join(exporter.exports) or "nothing"
            raise Refusal("not_found", f"agent {exporter.name} exports no {args['export']}", f"it exports {known}")
        mapper = self._labeller()
        size = args["segment_size"] or self._cluster.limits.segment_size
        if size % export.block_size or not 4096 <= size <= 1 << 30:
            raise Refusal("bad_argument", f"segment_size is a multiple of {export.block_size}, 4096..{1 << 30}")
        container = self._containers.begin(args["name"], exporter, export, args["contents"], size)
        self.accept(request)

        def done(refusal: Refusal | None, now_ns: int) -> None:
            if refusal is not None:
                self._refuse(request, refusal)
            else:
                self.reply(request, self._reports.container(container))

        self._cluster.journal.then(lambda now: self._containers.label(container, mapper, args["force"], done, now))
        self.wait(lambda: request.replied, lambda now: None, lambda now: self._add_late(request, container), now_ns)

    def _container_added(self, request: _Request) -> bool:
        """A repeated request whose container has become ready without us."""
        if request.request_id not in self._finished:
            return False
        for container in self._cluster.containers.values():
            if container.name == request.args["name"] and container.ready:
                self.reply(request, self._reports.container(container))
                return True
        return False

    def _add_late(self, request: _Request, container: Container) -> None:
        details = [
            f"{agent.name}: {agent.attachments[container.slot].detail or 'no answer yet'}"
            for agent in self._cluster.agents.values()
            if container.slot in agent.attachments
        ]
        text = f"container {container.name} is not ready yet: {'; '.join(details)}"
        self._refuse(request, Refusal("timeout", text, "ask again with the same arguments"))

    def _labeller(self) -> Agent:
        for agent in self._cluster.agents.values():
            if agent.admitted and agent.mapper and not agent.draining:
                return agent
        raise Refusal("unavailable", "no mapper agent is connected, and one has to write the label", "start one")

    def _container_list(self, request: _Request, now_ns: int) -> None:
        rows = [self._reports.container(container) for container in self._cluster.containers.values()]
        self.reply(request, {"containers": rows})

    def _container_show(self, request: _Request, now_ns: int) -> None:
        self.reply(request, self._reports.container(self._containers.named(request.args["name"])))

    def _container_fail(self, request: _Request, now_ns: int) -> None:
        container = self._containers.named(request.args["name"])
        if not container.failed:
            self._cluster.failures.fail(container, now_ns)
        self.accept(request)
        self._cluster.journal.then(lambda now: self.reply(request, self._reports.failure(container)))

    def _container_restore(self, request: _Request, now_ns: int) -> None:
        container = self._containers.named(request.args["name"])
        if container.failed:
            self._cluster.failures.restore(container, now_ns)
        self.accept(request)
        self._cluster.journal.then(lambda now: self.reply(request, self._reports.failure(container)))

    # --- vdisks ------------------------------------------------------------------------------------------------------

    def _vdisk_create(self, request: _Request, now_ns: int) -> None:
        args = request.args
        _check_name(args["name"])
        if args["thick"]:
            raise Refusal("bad_argument", "thick vdisks cannot be made yet", "leave thick out: it will be thin")
        slots = None
        if args["containers"]:
            slots = frozenset(self._containers.named(name).slot for name in args["containers"])
        vdisk = self._volumes.create(args["name"], args["size_bytes"], args["segment_size"], args["block_size"], slots)
        result = self._reports.vdisk(vdisk)
        self.accept(request, result)
        self._cluster.journal.then(lambda now: self.reply(request, result))

    def _vdisk_list(self, request: _Request, now_ns: int) -> None:
        self.reply(request, {"vdisks": [self._reports.vdisk(vdisk) for vdisk in self._cluster.vdisks.values()]})

    def _vdisk_show(self, request: _Request, now_ns: int) -> None:
        self.reply(request, self._reports.vdisk(self._vdisk(request)))

    def _vdisk_delete(self, request: _Request, now_ns: int) -> None:
        name = request.args["name"]
        if request.request_id in self._finished and all(v.name != name for v in self._cluster.vdisks.values()):
            self.reply(request, {"name": name, "freed_segments": 0})
            return
        vdisk = self._vdisk(request)
        if vdisk.presentations and not request.args["force"] and not vdisk.deleting:
            agents = ", ".join(self._cluster.agents[number].name for number in vdisk.presentations)
            hint = f"`segmap vdisk withdraw {name}` first, or delete it with --force"
            raise Refusal("busy", f"vdisk {name} is presented at {agents}", hint)
        self.accept(request)
        self._volumes.delete(
            vdisk, lambda freed, now: self.reply(request, {"name": name, "freed_segments": freed}), now_ns
        )
        self.wait(lambda: request.replied, lambda now: None, lambda now: self._delete_late(request, vdisk), now_ns)

    def _delete_late(self, request: _Request, vdisk: VDisk) -> None:
        agents = ", ".join(self._cluster.agents[number].name for number in vdisk.presentations) or "the store"
        self._refuse(request, Refusal("timeout", f"vdisk {vdisk.name} is being deleted; it waits for {agents}"))

    def _vdisk_present(self, request: _Request, now_ns: int) -> None:
        args = request.args
        vdisk = self._vdisk(request)
        hosts = args["hosts"]
        if not args["agents"]:
            raise Refusal("bad_argument", "agents names at least one agent")
        if len(hosts) > HOSTS_MAX:
            raise Refusal("bad_argument", f"{len(hosts)} hosts, at most {HOSTS_MAX}")
        for host in hosts:
            if not nqn_is_valid(host) or "\n" in host:
                text = f"{host[:NQN_BYTES_MAX]!r} is no NQN of a host"
                raise Refusal("bad_argument", text, "nqn.2014-08.org.nvmexpress:uuid:UUID, or nqn.YYYY-MM.DOMAIN:NAME")
        agents = [self.agent(name) for name in dict.fromkeys(args["agents"])]
        self.accept(request)
        self._volumes.present(vdisk, agents, list(hosts), args["read_only"], args["any_host"], now_ns)

        def met() -> bool:
            shown = [(agent, vdisk.presentations.get(agent.number)) for agent in agents]
            return all(item is None or (item.exported and not item.replaced) or not a.admitted for a, item in shown)

        def finish(now_ns: int) -> None:
            self.reply(request, {"name": vdisk.name, "presentations": self._reports.presentations(vdisk)})

        self._cluster.journal.then(lambda now: self.wait(met, finish, finish, now))

    def _vdisk_withdraw(self, request: _Request, now_ns: int) -> None:
        vdisk = self._vdisk(request)
        names = request.args["agents"] or [self._cluster.agents[number].name for number in vdisk.presentations]
        agents = [self.agent(name) for name in names]
        self.accept(request)
        for agent in agents:
            self._volumes.withdraw(vdisk, agent, now_ns)

        def met() -> bool:
            return all(agent.number not in vdisk.presentations for agent in agents)

        def finish(now_ns: int) -> None:
            self.reply(request, {"name": vdisk.name, "presentations": self._reports.presentations(vdisk)})

        self._cluster.journal.then(lambda now: self.wait(met, finish, finish, now))

    def _vdisk_map(self, request: _Request, now_ns: int) -> None:
        self.reply(request, self._reports.map(self._vdisk(request), request.args["start"], request.args["count"]))

    def _vdisk_explain(self, request: _Request, now_ns: int) -> None:
        self.reply(request, self._reports.explain(self._vdisk(request), request.args["offset"]))

    # --- agents ------------------------------------------------------------------------------------------------------

    def _agent_list(self, request: _Request, now_ns: int) -> None:
        rows = [self._reports.agent(agent, now_ns) for agent in self._cluster.agents.values()]
        self.reply(request, {"agents": rows})

    def _agent_show(self, request: _Request, now_ns: int) -> None:
        self.reply(request, self._reports.agent_in_full(self.agent(request.args["agent"]), now_ns))

    def _agent_entries(self, request: _Request, now_ns: int) -> None:
        args = request.args
        agent, vdisk = self.agent(args["agent"]), self._volumes.named(args["vdisk"])
        table = agent.tables.get(vdisk.number)
        if table is None:
            raise Refusal("not_found", f"agent {agent.name} has no table of {vdisk.name}")
        if not agent.admitted:
            raise Refusal("unavailable", f"agent {agent.name} is not connected")
        start, count = args["start"], min(args["count"], vdisk.segment_count - args["start"])
        if count <= 0 or count > self._cluster.limits.entries_asked:
            limit = self._cluster.limits.entries_asked
            raise Refusal("bad_argument", f"{vdisk.name} has {vdisk.segment_count} segments; ask for at most {limit}")

        def done(status: int, response: Any, now_ns: int) -> None:
            if response is None or status != Status.OK:
                text = f"agent {agent.name}: {Status(status).name} {response.detail if response else ''}".strip()
                self._refuse(request, Refusal("refused" if response else "unavailable", text))
                return
            rows = [_entry_row(start + index, entry) for index, entry in enumerate(response.entries)]
            self.reply(request, {"agent": agent.name, "vdisk": vdisk.name, "start": start, "entries": rows})

        self._cluster.commands.order(
            agent, lambda: (GetEntries(start, count), table.table_id, False), done, now_ns, once=True
        )

    def _io_parked(self, request: _Request, now_ns: int) -> None:
        name = request.args["agent"]
        agents = [self.agent(name)] if name else list(self._cluster.agents.values())
        asked = [agent for agent in agents if agent.admitted and agent.mapper]
        rows: list[dict[str, Any]] = []
        missing = [len(asked)]

        def finish() -> None:
            self.reply(request, {"parked": sorted(rows, key=lambda row: -row["since_s"])})

        def answered(agent: Agent) -> Callable[[int, Any, int], None]:
            def done(status: int, response: Any, now_ns: int) -> None:
                if response is not None and status == Status.OK:
                    rows.extend(self._parked_row(agent, item) for item in response.parked)
                missing[0] -= 1
                if not missing[0]:
                    finish()

            return done

        for agent in asked:
            self._cluster.commands.order(agent, lambda: (GetParked(), 0, False), answered(agent), now_ns, once=True)
        if not asked:
            finish()

    def _parked_row(self, agent: Agent, item: Any) -> dict[str, Any]:
        vdisk = self._cluster.vdisks.get(item.table >> 32)
        change = vdisk.changing.get(item.segment) if vdisk is not None else None
        return {
            "agent": agent.name,
            "vdisk": vdisk.name if vdisk is not None else None,
            "segment": item.segment,
            "since_s": round(item.since_ns_ago / 1e9, 3),
            "count": item.count,
            "operation": Operation(item.operation).name.lower(),
            "kind": FaultKind(item.kind).name.lower(),
            "state": STATE_NAMES[State(item.state)],
            "why": self._why(vdisk, item.segment, change),
        }

    def _why(self, vdisk: VDisk | None, segment: int, change: Change | None) -> str:
        if vdisk is None:
            return "its vdisk is gone"
        if change is not None:
            silent = [
                table.agent.name for table in vdisk.sharing if not table.agent.admitted and table.holdings.get(segment)
            ]
            return change.why + (f"; waiting for agent {', '.join(silent)}" if silent else "")
        alarm = self._cluster.log.alarms.get(("space", vdisk.name))
        return alarm.text if alarm is not None else "the answer is on its way, or the fault has just come"

    # --- the whole ---------------------------------------------------------------------------------------------------

    def _cluster_status(self, request: _Request, now_ns: int) -> None:
        self.reply(request, self._reports.status(now_ns))

    def _cluster_check(self, request: _Request, now_ns: int) -> None:
        run = request.args["run"]
        check = self._cluster.checking.find(run) if run else self._cluster.checking.begin(now_ns)
        if check is None:
            raise Refusal("not_found", f"there is no check {run} any more", "begin another one")
        self.reply(request, check.row())

    def _cluster_reconcile(self, request: _Request, now_ns: int) -> None:
        check = self._cluster.checking.begin(now_ns, reconcile=True, discard=request.args["discard"])
        self.reply(request, {"run": check.run})

    def _events_list(self, request: _Request, now_ns: int) -> None:
        after, limit = request.args["after"], request.args["limit"]
        events = [event for event in self._cluster.log.events if event.id > after]
        events = events[:limit] if after else events[-limit:]
        self.reply(request, {"events": [self._reports.event(event, now_ns) for event in events]})


def _entry_row(segment: int, entry: int) -> dict[str, Any]:
    located = has_location(entry)
    return {
        "segment": segment,
        "state": STATE_NAMES[state_of(entry)],
        "slot": slot_of(entry) if located else None,
        "physical_segment": segment_of(entry) if located else None,
    }


def _value(name: str, argument: Argument, args: Mapping[str, Any]) -> Any:
    """The checked value of one argument."""
    if name not in args:
        if argument.required:
            raise Refusal("bad_argument", f"{name} is missing")
        return list(argument.default) if argument.kind is list else argument.default
    value = args[name]
    if type(value) is list and argument.kind is list:
        if not all(isinstance(item, str) for item in value):
            raise Refusal("bad_argument", f"{name} is a list of str")
        return value
    if not isinstance(value, argument.kind) or (argument.kind is int and isinstance(value, bool)):
        raise Refusal("bad_argument", f"{name} has to be {argument.kind.__name__}, not {type(value).__name__}")
    if isinstance(value, int) and not argument.minimum <= value < 1 << 63:
        raise Refusal("bad_argument", f"{name} is {argument.minimum} or more")
    return value


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise Refusal("bad_argument", "a name is 1..63 of A-Z a-z 0-9 . _ -, and begins with a letter or digit")
