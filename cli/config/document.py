"""The one configuration document of a cluster, and what each process is given of it.

`segmap up` reads it, and so do `segmap controller` and `segmap agent`: each takes its own part. Relative paths are
relative to the runtime directory. Port 0 asks for a free port; `segmap up` picks them and hands its children a copy
with the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.config import CORE_MASK, SPDK_MEMORY_MIB_MIN
from cli.config.schema import (
    ADDRESS,
    BOOLEAN,
    DURATION,
    NAME,
    PATH,
    SIZE,
    TEXT,
    BadValueError,
    ConfigError,
    Key,
    ListOf,
    Problem,
    Section,
    check_text,
    choice,
    integer,
)

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")
EXPORTS_MAX = 256
AGENTS_MAX = 255

EXPORT_KINDS = ("aio", "malloc", "null", "bdev", "nvme")
BLOCK_SIZE = choice("512", "4096")


def _check_export(values: dict[str, Any]) -> None:
    kind = values["kind"]
    needed = {"aio": ("file",), "malloc": ("size",), "null": ("size",), "bdev": ("bdev",), "nvme": ("traddr",)}[kind]
    allowed = {"aio": ("file", "size"), "malloc": ("size",), "null": ("size",)}.get(kind, needed)
    for name in needed:
        if values[name] is None:
            raise BadValueError(f"an export of kind {kind} needs {name!r}")
    for name in ("file", "size", "bdev", "traddr"):
        if values[name] is not None and name not in allowed:
            raise BadValueError(f"an export of kind {kind} has no {name!r}", name)
    if values["size"] is not None and values["size"] % int(values["block_size"]):
        raise BadValueError(f"expected whole blocks of {values['block_size']} bytes, found {values['size']}", "size")


EXPORT = Section(
    "an export",
    "Storage that a container host exports.",
    (
        Key("name", NAME, "Name of the export; containers are added by AGENT/NAME."),
        Key(
            "kind",
            choice(*EXPORT_KINDS),
            "`aio`: a file or block device. `malloc`: memory, lost when the target stops. `null`: reads zeroes, for "
            "tests. `bdev`: one that the target has already. `nvme`: a local PCIe disk (SPDK only).",
        ),
        Key("file", PATH, "aio: the file or block device. A missing file is made if `size` is given.", None),
        Key("size", SIZE, "malloc, null: the size. aio: the size of the file to make when it is missing.", None),
        Key("block_size", BLOCK_SIZE, "Bytes in a block.", "512"),
        Key("bdev", TEXT, "bdev: its name.", None),
        Key("traddr", TEXT, "nvme: its PCIe address, like 0000:01:00.0.", None),
        Key("nsid", integer(1, 1 << 16), "nvme: the namespace.", "1"),
        Key(
            "faults",
            BOOLEAN,
            "In a test system: export a delay bdev `faults-BDEV` on an error bdev `EE_BDEV` on the storage's bdev. Both"
            " do nothing until `segmap fault-storage`, or SPDK's own tools, tell them to.",
            "false",
        ),
    ),
    _check_export,
)


def _check_agent(values: dict[str, Any]) -> None:
    if values["exports"] and "exporter" not in values["roles"]:
        raise BadValueError("an agent with 'exports' needs exporter in 'roles'", "roles")
    if values["target"] == "adopt" and values["rpc_socket"] is None:
        raise BadValueError("'target: adopt' needs 'rpc_socket': the JSON-RPC socket of the running target", "target")
    started = values["target"] == "spdk" and not values["target_command"]
    if started and not values["spdk"]["huge_pages"] and any(one["kind"] == "nvme" for one in values["exports"]):
        raise BadValueError("an export of kind nvme needs 'spdk: {huge_pages: true}'")


def _check_spdk(values: dict[str, Any]) -> None:
    if not CORE_MASK.fullmatch(values["cores"]):
        raise BadValueError("'cores' must be a mask like 0x3 or a list like '[0,1]' (quoted)", "cores")
    if values["memory"] < SPDK_MEMORY_MIB_MIN << 20:
        raise BadValueError(f"expected at least {SPDK_MEMORY_MIB_MIN}MiB", "memory")


SPDK = Section(
    "a SPDK target",
    "How the agent starts a target of SPDK: `segmap_tgt` (`make native`) for a mapper, else SPDK's own `spdk_tgt`. "
    "Not looked at with `target_command`.",
    (
        Key("cores", TEXT, "The cores that poll, all the time: a mask, or a list like `'[0,1]'`.", "0x1"),
        Key("memory", SIZE, "What the target may use, beside the memory of its malloc exports.", "1GiB"),
        Key(
            "huge_pages",
            BOOLEAN,
            "Memory in huge pages, for local PCIe disks too; `segmap doctor` says how to reserve them.",
            "false",
        ),
        Key("core_locks", BOOLEAN, "Refuse a core on which another SPDK application polls.", "true"),
    ),
    _check_spdk,
)


AGENT = Section(
    "an agent",
    "A mapping agent, a container host's agent, or both.",
    (
        Key("name", NAME, "The agent's name; its certificate carries it."),
        Key(
            "roles", ListOf(choice("mapper", "exporter"), 1, 2, "self"), "`mapper` serves hosts, `exporter` containers."
        ),
        Key("listen", ADDRESS, "Where its target listens for NVMe/TCP.", "127.0.0.1:0"),
        Key(
            "target",
            choice("embedded", "spdk", "adopt"),
            "Its data plane: `embedded` (ours), `spdk` (started by the agent), `adopt` (somebody else starts it).",
            "embedded",
        ),
        Key("spdk", SPDK, "spdk: how the target is started.", "{}"),
        Key(
            "target_command",
            ListOf(TEXT, 0, 64),
            "spdk: the program to start and its arguments, instead of what `spdk` says.",
            "[]",
        ),
        Key(
            "target_lifetime",
            choice("host", "daemon"),
            "`host`: the target outlives its agent, and the agent's next start adopts it; `daemon`: it ends with it.",
            "daemon",
        ),
        Key("rpc_socket", PATH, "The target's JSON-RPC socket; needed for adopt.", None),
        Key("dataplane_socket", PATH, "The data plane's own socket.", None),
        Key("exports", ListOf(EXPORT, 0, EXPORTS_MAX, "name"), "Role exporter: what it exports.", "[]"),
    ),
    _check_agent,
)


def _check_controller(values: dict[str, Any]) -> None:
    if not 0 < values["renew"] * 2 < values["lease"]:
        raise BadValueError("expected less than half of 'lease', or one lost renewal ends it; and not 0", "renew")
    if values["api_listen"] and values["api_listen"][0] not in LOOPBACK_HOSTS:
        raise BadValueError(f"the API has no TLS: expected one of {', '.join(LOOPBACK_HOSTS)} as host", "api_listen")
    if values["space_deadline"] >= values["park_limit"]:
        raise BadValueError(
            "'space_deadline' must be shorter than 'park_limit', or the host never hears of it", "space_deadline"
        )


CONTROLLER = Section(
    "the controller",
    "The one controller: the durable truth, the faults, the commands, the HTTP/JSON API.",
    (
        Key("listen", ADDRESS, "Where agents connect (TLS 1.3, both sides certified).", "127.0.0.1:0"),
        Key("api_socket", PATH, "Unix socket of the HTTP/JSON API (mode 0600).", "api.sock"),
        Key("api_listen", ADDRESS, "Also serve the API on this TCP address. No TLS: loopback only.", None),
        Key("api_tokens", PATH, "Tokens of other users' API clients (`segmap token add`).", "api-tokens.json"),
        Key("store", PATH, "The SQLite store.", "controller.db"),
        Key("lease", DURATION, "How long an agent may begin I/O without hearing from the controller.", "10s"),
        Key("renew", DURATION, "How often agents renew their lease.", "3s"),
        Key("park_limit", DURATION, "How long an I/O may wait for a fault; shorter than the hosts' failover.", "30s"),
        Key("io_deadline", DURATION, "How long one container I/O may take before the agent is fenced.", "20s"),
        Key("space_deadline", DURATION, "How long a write waits for space before `capacity exceeded`.", "20s"),
    ),
    _check_controller,
)

CONTAINER = Section(
    "a container",
    "A container that `segmap up` adds when the cluster does not have it yet.",
    (
        Key("name", NAME, "The container's name."),
        Key("export", TEXT, "Which export it is: AGENT/EXPORT."),
        Key(
            "contents",
            choice("unknown", "zeroed"),
            "`zeroed` only if every block is known to read as zeroes.",
            "unknown",
        ),
    ),
)


def _check_document(values: dict[str, Any]) -> None:
    segment = values["segment_size"]
    if segment & (segment - 1) or not 4096 <= segment <= 1 << 30:
        raise BadValueError(f"expected a power of two from 4KiB to 1GiB, found {segment}", "segment_size")
    _check_containers(values, segment)
    _check_ports(values)


def _check_containers(values: dict[str, Any], segment: int) -> None:
    """Each is an export of the file, and has a segment for its label and one for data."""
    exports = {
        f"{agent['name']}/{export['name']}": (export, ("agents", number, "exports", index))
        for number, agent in enumerate(values["agents"])
        for index, export in enumerate(agent["exports"])
    }
    for index, container in enumerate(values["containers"]):
        if container["export"] not in exports:
            known = ", ".join(sorted(exports)) or "none"
            text = f"expected AGENT/EXPORT of this file, found {container['export']!r}; known: {known}"
            raise BadValueError(text, "containers", index, "export")
        export, where = exports[container["export"]]
        if export["size"] is not None and export["size"] < 2 * segment:
            raise BadValueError(f"expected at least two segments ({2 * segment} bytes) for a container", *where, "size")


def _check_ports(values: dict[str, Any]) -> None:
    """No two processes listen at the same address."""
    taken: dict[tuple[str, int], str] = {}
    controller = values["controller"]
    listeners: list[tuple[Any, tuple[str | int, ...], str]] = [
        (controller[name], ("controller", name), f"controller.{name}") for name in ("listen", "api_listen")
    ]
    for index, agent in enumerate(values["agents"]):
        listeners.append((agent["listen"], ("agents", index, "listen"), f"agents[{index}].listen"))
    for address, where, name in listeners:
        if address is None or not address[1]:
            continue
        if address in taken:
            raise BadValueError(f"{address[0]}:{address[1]} is already used by {taken[address]}", *where)
        taken[address] = name


DOCUMENT = Section(
    "a cluster",
    "The whole cluster.",
    (
        Key("cluster", NAME, "The cluster's name.", "segmap"),
        Key("runtime_dir", PATH, "Sockets, store, certificates; `--runtime-dir` overrides it.", "segmap-run"),
        Key("segment_size", SIZE, "Bytes in a segment, for every disk and container unless told otherwise.", "1MiB"),
        Key("block_size", BLOCK_SIZE, "Bytes in a block of a new vdisk.", "512"),
        Key("controller", CONTROLLER, "The controller.", "{}"),
        Key("agents", ListOf(AGENT, 1, AGENTS_MAX, "name"), "The agents."),
        Key("containers", ListOf(CONTAINER, 0, 4096, "name"), "Containers to add at the first start.", "[]"),
        Key("verbose", BOOLEAN, "Log every command and fault.", "false"),
    ),
    _check_document,
)


@dataclass(frozen=True, slots=True)
class Document:
    """A checked document: ``values`` as DOCUMENT describes them, and the directory relative paths start from."""

    file: str
    values: dict[str, Any]
    runtime_dir: Path

    @property
    def controller(self) -> dict[str, Any]:
        part: dict[str, Any] = self.values["controller"]
        return part

    @property
    def agents(self) -> list[dict[str, Any]]:
        part: list[dict[str, Any]] = self.values["agents"]
        return part

    @property
    def containers(self) -> list[dict[str, Any]]:
        part: list[dict[str, Any]] = self.values["containers"]
        return part

    @property
    def api_socket(self) -> Path:
        return self.path(self.controller["api_socket"])

    def path(self, path: Path) -> Path:
        """``path``, from the runtime directory if it is relative."""
        return path if path.is_absolute() else self.runtime_dir / path

    def agent(self, name: str) -> dict[str, Any]:
        for agent in self.agents:
            if agent["name"] == name:
                return agent
        names = ", ".join(agent["name"] for agent in self.agents)
        raise ConfigError([Problem(self.file, 1, 1, "agents", f"no agent is called {name!r}; there are: {names}")])


def load(path: Path, runtime_dir: Path | None = None) -> Document:
    """Reads and checks ``path``; ConfigError has every problem with file, line and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([Problem(str(path), 1, 1, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), 1, 1, "", f"is not UTF-8 text (byte {error.start})")]) from None
    return parse(text, str(path), runtime_dir)


def parse(text: str, file: str, runtime_dir: Path | None = None) -> Document:
    """The same for a text in memory."""
    values = check_text(text, DOCUMENT, file)
    return Document(file, values, (runtime_dir or values["runtime_dir"]).absolute())
