"""Generates the reference pages under docs/ from the tables in the code; with --check it only compares.

Each page is a function that yields lines. A page that differs from its table makes `make lint` fail.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from channel import generate, refusals  # noqa: E402
from ci import claims  # noqa: E402
from cli.command import API_VARIABLE, DEFAULT_API, Argument, Command  # noqa: E402
from cli.commands import COMMANDS, GROUPS  # noqa: E402
from cli.config.document import DOCUMENT  # noqa: E402
from cli.config.schema import Key, ListOf, Required, Section  # noqa: E402
from cli.exit_codes import MEANING as EXIT_MEANING  # noqa: E402
from controller.api import access, errors, operations  # noqa: E402
from spdk_rpc import reference  # noqa: E402

MADE = "Generated from the code by `make docs`; change the table there, not this page."


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def claims_page() -> Iterator[str]:
    yield from claims.page(claims.collect(TOP))
    yield ""
    yield MADE


def cli_page() -> Iterator[str]:
    yield "# The `segmap` command"
    yield ""
    yield MADE
    yield ""
    yield "Every command takes `--json`: one JSON document on standard output. Commands that speak to the controller"
    yield f"take `--api ADDRESS` (a socket's path or HOST:PORT); without it, `${API_VARIABLE}`, else `{DEFAULT_API}`."
    yield ""
    yield "## Exit status"
    yield ""
    yield "| status | meaning |"
    yield "|---|---|"
    for code, meaning in EXIT_MEANING.items():
        yield f"| {int(code)} | {cell(meaning)} |"
    for command in sorted(COMMANDS, key=lambda row: (row.words[0] in GROUPS, row.words)):
        yield from command_lines(command)


def command_lines(command: Command) -> Iterator[str]:
    yield ""
    yield f"## segmap {command.name}"
    yield ""
    yield f"{command.doc} {command.more}".strip()
    if command.arguments:
        yield ""
        yield "| argument | |"
        yield "|---|---|"
        yield from (
            f"| `{argument_text(entry)}` | {cell(str(entry.options.get('help', '')))} |" for entry in command.arguments
        )
    if command.extend:
        yield ""
        yield "Its other arguments: `segmap " + command.name + " --help`."


def argument_text(entry: Argument) -> str:
    """How an argument is written on the command line."""
    metavar = entry.options.get("metavar")
    if not entry.flags[0].startswith("-"):
        return str(metavar or entry.flags[0])
    if entry.options.get("action") == "store_true":
        return entry.flags[0]
    if metavar is None and "choices" in entry.options:
        metavar = "\\|".join(entry.options["choices"])
    text = f"{entry.flags[0]} {metavar}"
    return text + " …" if entry.options.get("action") == "append" else text


def config_page() -> Iterator[str]:
    yield "# The configuration file"
    yield ""
    yield f"{MADE} `segmap config check FILE` checks a file; `configs/quickstart.yaml` is an example."
    yield ""
    yield "Sizes: `4GiB`, `512KiB`, `4096` (B KiB MiB GiB TiB PiB). Durations: `10s`, `1.5s`, `250ms` (ns us ms s m h)."
    yield "Addresses: `HOST:PORT`, port 0 for any free one. Relative paths are relative to the runtime directory."
    yield from section_lines(DOCUMENT, "")


def section_lines(section: Section, path: str) -> Iterator[str]:
    yield ""
    yield f"## {path or 'top level'}"
    yield ""
    yield section.doc
    yield ""
    yield "| key | value | default | |"
    yield "|---|---|---|---|"
    inner: list[tuple[Section, str]] = []
    for key in section.keys:
        yield f"| `{key.name}` | {cell(key.kind.name)} | {default_text(key)} | {cell(key.doc)} |"
        kind = key.kind.item if isinstance(key.kind, ListOf) else key.kind
        if isinstance(kind, Section):
            mark = "[]" if isinstance(key.kind, ListOf) else ""
            inner.append((kind, f"{path}.{key.name}{mark}".lstrip(".")))
    for kind, where in inner:
        yield from section_lines(kind, where)


def default_text(key: Key) -> str:
    if isinstance(key.default, Required):
        return "required"
    return "" if key.default is None else f"`{key.default}`"


def api_page() -> Iterator[str]:
    yield "# HTTP/JSON API, version 1"
    yield ""
    yield f"{MADE} The controller serves it on a Unix socket (mode 0600), and on a loopback TCP address if told to."
    yield ""
    yield "* Arguments: in the path, in the query (GET, DELETE), in a JSON object as body (POST; at most "
    yield f"  {operations.BODY_BYTES_MAX} bytes, `Content-Type: application/json`)."
    yield f"* Calls that change something need the header `{operations.REQUEST_ID_HEADER}`, of the form"
    yield f"  `{operations.REQUEST_ID_PATTERN}`: the same id again gets the first result, so that a call whose answer"
    yield "  was lost can be repeated."
    yield "* Who asks: on the Unix socket a process of the controller's own user (or root) is admin. Others, and all on"
    yield "  TCP, show a token: `Authorization: Bearer …` (`segmap token add`). Roles: view, operate, admin; each may"
    yield f"  do what those before it may. At most {access.RATE_PER_S:.0f} calls a second for each client, in bursts of"
    yield f"  {access.BURST:.0f}. Calls that change something are in the audit log (`segmap audit`)."
    yield '* Errors: `{"code": …, "message": …, "hint": …}`.'
    yield ""
    yield "    curl --unix-socket segmap-run/api.sock http://localhost/v1/status"
    yield ""
    yield "| code | HTTP status | meaning |"
    yield "|---|---|---|"
    for code, status in errors.HTTP_STATUS.items():
        yield f"| `{code}` | {status} | {cell(errors.MEANING[code])} |"
    for row in operations.OPERATIONS:
        yield from operation_lines(row)


def operation_lines(row: operations.Operation) -> Iterator[str]:
    yield ""
    yield f"## {row.name}"
    yield ""
    yield f"`{row.method} {row.path}` {row.doc}{' Changes something.' if row.mutating else ''} Role: {row.role}."
    yield ""
    yield f"Result: {row.result}."
    if row.parameters:
        yield ""
        yield "| argument | value | default | |"
        yield "|---|---|---|---|"
    for parameter in row.parameters:
        default = "required" if parameter.default is operations.REQUIRED else f"`{parameter.default!r}`"
        yield f"| `{parameter.name}` | {cell(parameter.expected)} | {default} | {cell(parameter.doc)} |"


def refusals_page() -> Iterator[str]:
    yield "# What is refused when"
    yield ""
    yield f"{MADE} A test drives every row through the cores."
    yield ""
    yield "Every message bears term, incarnation, epoch and, in a table, sequence (docs/wire.md). A refused request is"
    yield "answered with the status, a refused notice with REFUSED. What an ended session leaves open is settled by the"
    yield "next one: its HELLO says where the data plane stands, unanswered commands and faults are sent again."
    yield from refusals.page()


def rpc_page() -> Iterator[str]:
    yield "# JSON-RPC methods of virtual disks"
    yield ""
    yield f"{MADE} `segmap_tgt` and `segmap target` have these beside SPDK's own, with the same results and errors."
    yield ""
    yield "They say what a disk is and show what it does; what its table holds comes over the data plane's socket"
    yield "(docs/wire.md). `save_config` keeps a disk's identity, never its table. On the command line:"
    yield "`spdk-rpc --plugin spdk_rpc.plugin bdev_segmap_get`. What is missing, unknown or of another type:"
    yield f"error {reference.DECODE}."
    for method in reference.METHODS:
        yield from rpc_lines(method)


def rpc_lines(method: reference.Method) -> Iterator[str]:
    yield ""
    yield f"## {method.name}"
    yield ""
    yield method.doc
    yield ""
    yield "| parameter | | type | |"
    yield "|---|---|---|---|"
    for parameter in method.parameters:
        need = "required" if parameter.required else f"optional, {parameter.default}"
        yield f"| `{parameter.name}` | {cell(need)} | {parameter.kind} | {cell(parameter.doc)} |"
    yield ""
    yield f"Result: {method.result}."
    if method.members:
        yield ""
        yield "| member | |"
        yield "|---|---|"
        yield from (f"| `{member.name}` | {cell(member.doc)} |" for member in method.members)
    yield ""
    yield "| error | |"
    yield "|---|---|"
    yield from (f"| {code} | {cell(when)} |" for code, when in method.errors)
    yield ""
    yield "```json"
    yield from example({"jsonrpc": "2.0", "id": 1, "method": method.name, "params": method.params})
    yield from example({"jsonrpc": "2.0", "id": 1, "result": method.example})
    yield "```"


def example(document: object) -> Iterator[str]:
    """Indented JSON; lists of numbers on one line."""
    text = json.dumps(document, indent=2)
    numbers = re.compile(r"\[\s*(\d+(?:,\s*\d+)*)\s*\]")
    yield from numbers.sub(lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text).splitlines()


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "docs/api.md": api_page,
    "docs/claims.md": claims_page,
    "docs/cli.md": cli_page,
    "docs/config.md": config_page,
    "docs/refusals.md": refusals_page,
    "docs/rpc.md": rpc_page,
    "docs/wire.md": lambda: iter(generate.text("wire-reference").splitlines()),
    "dataplane/bdev_segmap/segmap_wire.h": lambda: iter(generate.text("c-header").splitlines()),
}


def text_of(page: Callable[[], Iterator[str]]) -> str:
    return "\n".join(page()) + "\n"


def stale() -> list[str]:
    """Pages that are missing or differ from what would be generated."""
    return [
        name for name, page in PAGES.items() if not (TOP / name).is_file() or (TOP / name).read_text() != text_of(page)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Generates the reference pages under docs/.")
    parser.add_argument("--check", action="store_true", help="only tell which pages are not current")
    if parser.parse_args().check:
        wrong = stale()
        for name in wrong:
            print(f"{name} is not current; run: make docs")
        return 1 if wrong else 0
    for name, page in PAGES.items():
        (TOP / name).write_text(text_of(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
