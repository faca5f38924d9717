"""`segmap container …`: storage that vdisks are made of."""

from __future__ import annotations

from typing import Any

from cli.command import Command, CommandError, Context, argument
from cli.exit_codes import ExitCode
from cli.output import rows_of, size_text

COLUMNS = ("name", "slot", "state", "size", "free", "zeroed", "mapped", "export", "attached at")


def row(container: dict[str, Any]) -> list[object]:
    segments = container["segments"]
    return [
        container["name"],
        container["slot"],
        container["state"],
        size_text(container["size_bytes"]),
        segments.get("free", 0),
        segments.get("zeroed", 0),
        segments.get("mapped", 0),
        f"{container['exporter']}/{container['export']}",
        container["attached_at"],
    ]


def show_one(context: Context, container: dict[str, Any]) -> int:
    context.output.document(container)
    context.output.fields(
        [
            ("name", container["name"]),
            ("state", container["state"]),
            ("slot", container["slot"]),
            ("uuid", container["uuid"]),
            ("size", size_text(container["size_bytes"])),
            ("segments", f"{container['segment_count']} of {size_text(container['segment_size'])}"),
            *((f"  {state}", number) for state, number in container["segments"].items()),
            ("export", f"{container['exporter']}/{container['export']}"),
            ("address", f"{container['traddr']}:{container['trsvcid']} {container['subnqn']} nsid {container['nsid']}"),
            ("volatile cache", container["volatile_cache"]),
            ("attached at", container["attached_at"]),
            ("not fenced there", container["not_fenced"]),
            *(("quarantined", f"{row['segments']} segments: {row['why']}") for row in container["quarantine"]),
        ]
    )
    return 0


def add(context: Context) -> int:
    args = context.args
    agent, slash, export = args.export.partition("/")
    if not (agent and slash and export):
        raise CommandError(f"--export {args.export!r}: expected AGENT/EXPORT; `segmap agent list` shows exports", USAGE)
    answer = context.client.call(
        "container.add", name=args.name, agent=agent, export=export, contents=args.contents, force=args.force
    )
    return show_one(context, answer)


USAGE = ExitCode.USAGE


def list_all(context: Context) -> int:
    answer = context.client.call("container.list")
    context.output.document(answer)
    context.output.table(COLUMNS, [row(container) for container in answer["containers"]])
    return 0


def show(context: Context) -> int:
    return show_one(context, context.client.call("container.show", name=context.args.name))


def fail(context: Context) -> int:
    return change(context, "container.fail")


def restore(context: Context) -> int:
    return change(context, "container.restore")


def change(context: Context, operation: str) -> int:
    answer = context.client.call(operation, name=context.args.name)
    context.output.document(answer)
    context.output.line(f"container {answer['name']} is {answer['state']}")
    context.output.table(["vdisk", "segments in it"], rows_of(answer["vdisks"], "vdisk", "segments"))
    return 0


COMMANDS = (
    Command(
        ("container", "add"),
        "Makes an export of a container host a container.",
        add,
        (
            argument("name", metavar="NAME", help="the container's new name"),
            argument("--export", required=True, metavar="AGENT/EXPORT", help="which export it is"),
            argument(
                "--contents",
                choices=("unknown", "zeroed"),
                default="unknown",
                help="zeroed only if every block reads as zeroes (default: unknown; zeroed ahead of demand)",
            ),
            argument("--force", action="store_true", help="write over data that is not ours"),
        ),
    ),
    Command(("container", "list"), "All containers.", list_all),
    Command(
        ("container", "fail"),
        "Gives a container up: what lies in it reads as errors, at once, and nothing is allocated in it.",
        fail,
        (argument("name", metavar="NAME", help="a container's name"),),
        more="For a container that is lost, for a while or for good. Flushes of disks that have segments in it fail. "
        "What waits for its container host to fence an agent goes on waiting: see `segmap agent confirm-dead`.",
    ),
    Command(
        ("container", "restore"),
        "Uses a failed container as before: it is back, with what was in it.",
        restore,
        (argument("name", metavar="NAME", help="a container's name"),),
    ),
    Command(
        ("container", "show"),
        "One container.",
        show,
        (argument("name", metavar="NAME", help="a container's name"),),
    ),
)
