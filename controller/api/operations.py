"""The operation table of API v1: name, method, path, parameters, result, whether it changes anything.

Everything about the API is derived from it: the server's routes and validation, the client, docs/api.md. Arguments
that passed are complete (defaults filled in) and of the right type; the controller never sees an unknown key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.api.errors import ApiError

SIZE_MAX = 1 << 60
NUMBER_MAX = (1 << 63) - 1
LIST_MAX = 1024
TEXT_MAX = 256
REQUIRED = object()

REQUEST_ID_HEADER = "Request-Id"
BODY_BYTES_MAX = 1 << 20
ANSWER_BYTES_MAX = 64 << 20

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
REQUEST_ID_PATTERN = r"[A-Za-z0-9._:-]{1,64}"
NQN_PATTERN = r"nqn\.[\x21-\x7e]{1,219}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument. ``kind``: name, text, number, boolean, names, nqns, or the words of a choice joined by ``|``."""

    name: str
    kind: str
    doc: str
    default: Any = REQUIRED
    least: int = 0
    most: int = NUMBER_MAX

    def refuse(self, found: object) -> ApiError:
        return ApiError("bad_argument", f"{self.name}: expected {self.expected}, found {str(found)[:80]!r}")

    @property
    def expected(self) -> str:
        if self.kind == "number":
            return f"a whole number from {self.least} to {self.most}"
        return {
            "name": "a name (letters, digits, '.', '_', '-'; at most 63)",
            "text": f"a text of at most {TEXT_MAX} characters",
            "boolean": "true or false",
            "names": f"a list of at most {LIST_MAX} names",
            "nqns": f"a list of at most {LIST_MAX} NQNs (nqn.…)",
        }.get(self.kind, f"one of {self.kind.replace('|', ', ')}")

    def check(self, value: object) -> Any:
        """The value, if it is of this kind; ApiError otherwise."""
        if self.kind == "number":
            good = isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most
        elif self.kind == "boolean":
            good = isinstance(value, bool)
        elif self.kind in ("names", "nqns"):
            pattern = NAME_PATTERN if self.kind == "names" else NQN_PATTERN
            good = isinstance(value, list) and len(value) <= LIST_MAX and all(_matches(pattern, item) for item in value)
        elif self.kind == "name":
            good = _matches(NAME_PATTERN, value)
        elif self.kind == "text":
            good = isinstance(value, str) and len(value) <= TEXT_MAX and value.isprintable()
        else:
            good = isinstance(value, str) and value in self.kind.split("|")
        if not good:
            raise self.refuse(value)
        return value

    def read(self, text: str) -> Any:
        """The value a URL says: numbers and booleans are written as text there."""
        if self.kind == "number" and re.fullmatch(r"[0-9]{1,19}", text):
            return self.check(int(text))
        if self.kind == "boolean" and text in ("true", "false"):
            return text == "true"
        if self.kind in ("number", "boolean", "names", "nqns"):
            raise self.refuse(text)
        return self.check(text)


def _matches(pattern: str, value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


@dataclass(frozen=True, slots=True)
class Operation:
    """One row. ``{name}`` in the path is the parameter of that name; GET takes the others from the query, the rest
    from a JSON body. ``role``: who may do it; without one, view for reading and operate for changing."""

    name: str
    method: str
    path: str
    doc: str
    parameters: tuple[Parameter, ...]
    result: str
    mutating: bool = False
    role: str = ""

    def __post_init__(self) -> None:
        if not self.role:
            object.__setattr__(self, "role", "operate" if self.mutating else "view")

    @property
    def path_parameters(self) -> tuple[str, ...]:
        return tuple(re.findall(r"\{(\w+)\}", self.path))

    def arguments(self, given: Mapping[str, Any], textual: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Checked arguments, defaults filled in; ``textual`` are those that came as text in the URL."""
        known = {parameter.name: parameter for parameter in self.parameters}
        for key in given:
            if key not in known:
                names = ", ".join(known) or "none"
                raise ApiError("bad_argument", f"{key[:80]!r}: unknown parameter", f"{self.name} has: {names}")
        values: dict[str, Any] = {}
        for name, parameter in known.items():
            if name in given:
                values[name] = parameter.read(given[name]) if name in textual else parameter.check(given[name])
            elif parameter.default is REQUIRED:
                raise ApiError("bad_argument", f"{name}: missing; expected {parameter.expected}")
            else:
                values[name] = parameter.default
        return values


def _name(doc: str) -> Parameter:
    return Parameter("name", "name", doc)


_SEGMENT_SIZE = Parameter("segment_size", "number", "bytes; a power of two; 0: the cluster's default", 0, 0, 1 << 30)
_START = Parameter("start", "number", "first segment", 0)
_VDISK = "a vdisk's name"
_AGENT = Parameter("agent", "name", "an agent's name")
_WAIT = Parameter("wait_s", "number", "how long to wait for the end before saying how far it is", 30, 0, 40)
_FENCE = "state, why, confirmed_dead, lease_over_in_s, containers of {container, exporter, state, detail}, waiting_for"

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "cluster.status",
        "GET",
        "/v1/status",
        "Everything at a glance: agents, containers, vdisks, faults, alarms.",
        (),
        "cluster, name, term, leader, uptime_s, agents, containers, vdisks, faults, fences, alarms, store",
    ),
    Operation(
        "container.add",
        "POST",
        "/v1/containers",
        "Makes an export a container: a mapper agent attaches it and writes or verifies its label.",
        (
            _name("the container's new name"),
            Parameter("agent", "name", "the exporter agent"),
            Parameter("export", "name", "the export's name there"),
            Parameter("contents", "unknown|zeroed", "zeroed only if every block reads as zeroes", "unknown"),
            Parameter("force", "boolean", "write over data that is not ours", False),
            _SEGMENT_SIZE,
        ),
        "a container",
        mutating=True,
    ),
    Operation("container.list", "GET", "/v1/containers", "All containers.", (), "containers"),
    Operation(
        "container.show",
        "GET",
        "/v1/containers/{name}",
        "One container.",
        (_name("a container's name"),),
        "name, slot, uuid, state, exporter, export, segments by state, attached_at, not_fenced, quarantine, …",
    ),
    Operation(
        "container.fail",
        "POST",
        "/v1/containers/{name}/fail",
        "Gives a container up: what lies in it reads as errors, at once, and nothing is allocated in it.",
        (_name("a container's name"),),
        "a container, and vdisks of {vdisk, segments} that lie in it",
        mutating=True,
    ),
    Operation(
        "container.restore",
        "POST",
        "/v1/containers/{name}/restore",
        "Uses a failed container as before: it is back, with what was in it.",
        (_name("a container's name"),),
        "a container, and vdisks of {vdisk, segments} that lie in it",
        mutating=True,
    ),
    Operation(
        "vdisk.create",
        "POST",
        "/v1/vdisks",
        "A new thin vdisk: ZERO everywhere.",
        (
            _name("the vdisk's new name"),
            Parameter("size_bytes", "number", "rounded up to whole segments", REQUIRED, 1, SIZE_MAX),
            _SEGMENT_SIZE,
            Parameter("block_size", "number", "512 or 4096; 0: the cluster's default", 0, 0, 4096),
            Parameter("containers", "names", "where it may allocate; empty: everywhere", []),
            Parameter("thick", "boolean", "allocate everything now", False),
        ),
        "a vdisk",
        mutating=True,
    ),
    Operation("vdisk.list", "GET", "/v1/vdisks", "All vdisks.", (), "vdisks"),
    Operation(
        "vdisk.show",
        "GET",
        "/v1/vdisks/{name}",
        "One vdisk and its presentations.",
        (_name(_VDISK),),
        "name, number, uuid, state, size_bytes, segment_size, allocated_segments, presentations, …",
    ),
    Operation(
        "vdisk.delete",
        "DELETE",
        "/v1/vdisks/{name}",
        "Deletes a vdisk and frees its segments.",
        (_name(_VDISK), Parameter("force", "boolean", "withdraw it first where it is presented", False)),
        "name, freed_segments",
        mutating=True,
    ),
    Operation(
        "vdisk.present",
        "POST",
        "/v1/vdisks/{name}/present",
        "Shows a vdisk to hosts at one or more agents.",
        (
            _name(_VDISK),
            Parameter("agents", "names", "at which agents"),
            Parameter("hosts", "nqns", "host NQNs that may connect", []),
            Parameter("read_only", "boolean", "refuse writes", False),
            Parameter("any_host", "boolean", "every host may connect", False),
        ),
        "name, presentations",
        mutating=True,
    ),
    Operation(
        "vdisk.withdraw",
        "POST",
        "/v1/vdisks/{name}/withdraw",
        "Takes a vdisk away from hosts.",
        (_name(_VDISK), Parameter("agents", "names", "at which agents; empty: at all", [])),
        "name, presentations",
        mutating=True,
    ),
    Operation(
        "vdisk.map",
        "GET",
        "/v1/vdisks/{name}/map",
        "The mapping table as runs.",
        (_name(_VDISK), _START, Parameter("count", "number", "segments; 0: to the end", 0)),
        "name, segment_count, start, count, runs of {start, count, state, slot, segment}, truncated",
    ),
    Operation(
        "vdisk.explain",
        "GET",
        "/v1/vdisks/{name}/explain",
        "From a byte of the vdisk to a byte of a container, and who may hold the entry.",
        (_name(_VDISK), Parameter("offset", "number", "byte of the vdisk")),
        "segment, state, container, slot, physical_segment, container_offset, holders, changing, waiting_faults",
    ),
    Operation("agent.list", "GET", "/v1/agents", "All agents.", (), "agents"),
    Operation(
        "agent.show",
        "GET",
        "/v1/agents/{agent}",
        "One agent: lease, tables, attachments, exports.",
        (Parameter("agent", "name", "an agent's name"),),
        "name, roles, state, incarnation, epoch, lease, tables, attachments, exports, fence",
    ),
    Operation(
        "agent.entries",
        "GET",
        "/v1/agents/{agent}/entries",
        "What an agent's table holds now (the agent is asked).",
        (
            Parameter("agent", "name", "an agent's name"),
            Parameter("vdisk", "name", _VDISK),
            _START,
            Parameter("count", "number", "entries", 64, 1, 65536),
        ),
        "agent, vdisk, start, entries of {segment, state, slot, physical_segment}",
    ),
    Operation(
        "agent.fence",
        "POST",
        "/v1/agents/{agent}/fence",
        "Cuts an agent's incarnation off from every container, confirmed by the container hosts.",
        (_AGENT, _WAIT),
        f"agent, incarnation, done, {_FENCE}",
        mutating=True,
        role="admin",
    ),
    Operation(
        "agent.drain",
        "POST",
        "/v1/agents/{agent}/drain",
        "Takes everything away from an agent, each thing answered when its I/O has ended: then it can be stopped, and "
        "no fence is needed. What was presented there is recorded, and comes back with undrain.",
        (_AGENT, _WAIT),
        f"agent, incarnation, done, {_FENCE}",
        mutating=True,
    ),
    Operation(
        "agent.undrain",
        "POST",
        "/v1/agents/{agent}/undrain",
        "Lets an agent hold again what is wanted of it.",
        (_AGENT, _WAIT),
        f"agent, incarnation, done, {_FENCE}",
        mutating=True,
    ),
    Operation(
        "agent.remove",
        "DELETE",
        "/v1/agents/{agent}",
        "Forgets an agent that is fenced and not connected: nothing is presented at it, exported by it or owed.",
        (_AGENT,),
        "agent",
        mutating=True,
        role="admin",
    ),
    Operation(
        "agent.confirm_dead",
        "POST",
        "/v1/agents/{agent}/confirm-dead",
        "Says that an agent's machine is off, where nobody can be asked: a mapper whose container hosts cannot be "
        "reached, or a container host of which fences wait. If the machine still runs, data will be lost.",
        (_AGENT, Parameter("confirm", "name", "the agent's name again"), _WAIT),
        f"agent, incarnation, done, assumed (what is believed without proof), {_FENCE}",
        mutating=True,
        role="admin",
    ),
    Operation(
        "io.parked",
        "GET",
        "/v1/io/parked",
        "I/O that waits for a fault's answer: what, why, since when, on whom.",
        (Parameter("agent", "text", "only this agent; empty: all", ""),),
        "parked",
    ),
    Operation(
        "cluster.check",
        "GET",
        "/v1/check",
        "Audits store, memory and agents' tables while everything goes on; ask again with the run until it is done.",
        (Parameter("run", "number", "a run to ask about; 0: begin one, or join the one that is going on", 0),),
        "run, state (running, done), stage, progress, findings of {severity, kind, text}, findings_dropped, counts, "
        "quarantine of {container, segments, why}, frozen, reconcile, lifted",
    ),
    Operation(
        "cluster.reconcile",
        "POST",
        "/v1/reconcile",
        "After a restore: compares agents and labels with the store, renews the labels and ends the freeze.",
        (
            Parameter(
                "discard", "boolean", "take away from agents what the restored store does not know, and lose it", False
            ),
        ),
        "run: ask cluster.check about it",
        mutating=True,
        role="admin",
    ),
    Operation(
        "store.show",
        "GET",
        "/v1/store",
        "The store's file, and the backup that runs or was made last.",
        (),
        "path, size_bytes, cluster, term, generation, sequence, frozen, backup",
    ),
    Operation(
        "store.backup",
        "POST",
        "/v1/store/backup",
        "Copies the store into a new file while it is in use.",
        (Parameter("path", "text", "an absolute path on the controller's machine; must not exist"),),
        "path, state (running: see store.show; done), pages_done, pages, size_bytes, sequence",
        mutating=True,
        role="admin",
    ),
    Operation(
        "audit.list",
        "GET",
        "/v1/audit",
        "Who changed what: every call that changes something, and what came of it, oldest first.",
        (
            Parameter("after", "number", "only entries with a higher number", 0),
            Parameter("limit", "number", "at most so many", 100, 1, 1000),
        ),
        "entries of {number, time, actor, action, detail}",
        role="admin",
    ),
    Operation(
        "events.list",
        "GET",
        "/v1/events",
        "What happened, newest last.",
        (
            Parameter("limit", "number", "at most so many", 100, 1, 1000),
            Parameter("after", "number", "only events with a higher id", 0),
        ),
        "events of {id, time, severity, kind, text}",
    ),
)

SHELL_OPERATIONS: frozenset[str] = frozenset({"store.show", "store.backup", "audit.list"})
"""Those about the store itself: the core has no part in them."""
BY_NAME: dict[str, Operation] = {operation.name: operation for operation in OPERATIONS}
