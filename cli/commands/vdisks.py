"""`segmap vdisk …`: virtual disks, and where they are shown to hosts."""

from __future__ import annotations

import argparse
from typing import Any

from cli.command import Argument, Command, Context, argument
from cli.config.schema import BadValueError, parse_size
from cli.output import size_text

NAME = argument("name", metavar="NAME", help="a vdisk's name")


def size_argument(text: str) -> int:
    """argparse type: a size like 4GiB."""
    try:
        return parse_size(text)
    except BadValueError as error:
        raise argparse.ArgumentTypeError(f"expected {error}, found {text!r}") from None


def presentation_text(item: dict[str, Any]) -> str:
    where = f" {item['traddr']}:{item['trsvcid']}" if item.get("trsvcid") else ""
    return f"{item['agent']} {item['state']}{where}"


def host_url(item: dict[str, Any]) -> str:
    """What `io copy` takes for this presentation; empty while it has no address."""
    if not item.get("trsvcid"):
        return ""
    host = f"[{item['traddr']}]" if ":" in item["traddr"] else item["traddr"]
    return f"nvme-{item['trtype'].lower()}://{host}:{item['trsvcid']}/{item['subnqn']}?nsid={item['nsid']}"


def show_one(context: Context, vdisk: dict[str, Any]) -> int:
    output = context.output
    output.document(vdisk)
    output.fields(
        [
            ("name", vdisk["name"]),
            ("state", vdisk["state"]),
            ("size", size_text(vdisk["size_bytes"])),
            ("segments", f"{vdisk['segment_count']} of {size_text(vdisk['segment_size'])}"),
            ("allocated", vdisk["allocated_segments"]),
            ("block size", vdisk["block_size"]),
            ("uuid", vdisk["uuid"]),
            ("subsystem", vdisk["subnqn"]),
            ("containers", vdisk["containers"] or "all"),
        ]
    )
    show_presentations(context, vdisk["presentations"])
    return 0


def show_presentations(context: Context, items: list[dict[str, Any]]) -> None:
    rows = []
    for item in items:
        mode = "read-only" if item["read_only"] else "read-write"
        hosts = "any" if item["any_host"] else item["hosts"]
        rows.append([item["agent"], item["state"], mode, hosts, item.get("detail")])
    if rows:
        context.output.table(["agent", "state", "mode", "hosts", "detail"], rows)
    context.output.fields([(f"at agent {item['agent']}", host_url(item)) for item in items if host_url(item)])


def create(context: Context) -> int:
    args = context.args
    answer = context.client.call(
        "vdisk.create",
        name=args.name,
        size_bytes=args.size,
        segment_size=args.segment_size,
        block_size=args.block_size,
        containers=args.container,
    )
    return show_one(context, answer)


def list_all(context: Context) -> int:
    answer = context.client.call("vdisk.list")
    context.output.document(answer)
    rows = [
        [
            vdisk["name"],
            vdisk["state"],
            size_text(vdisk["size_bytes"]),
            f"{vdisk['allocated_segments']} of {vdisk['segment_count']}",
            [presentation_text(item) for item in vdisk["presentations"]],
        ]
        for vdisk in answer["vdisks"]
    ]
    context.output.table(["name", "state", "size", "allocated segments", "presented at"], rows)
    return 0


def show(context: Context) -> int:
    return show_one(context, context.client.call("vdisk.show", name=context.args.name))


def delete(context: Context) -> int:
    answer = context.client.call("vdisk.delete", name=context.args.name, force=context.args.force)
    context.output.document(answer)
    context.output.line(f"deleted {answer['name']}; {answer['freed_segments']} segments freed")
    return 0


def present(context: Context) -> int:
    args = context.args
    answer = context.client.call(
        "vdisk.present",
        name=args.name,
        agents=args.agent,
        hosts=args.host,
        read_only=args.read_only,
        any_host=args.any_host,
    )
    context.output.document(answer)
    show_presentations(context, answer["presentations"])
    return 0


def withdraw(context: Context) -> int:
    name = context.args.name
    before = {item["agent"] for item in context.client.call("vdisk.show", name=name)["presentations"]}
    answer = context.client.call("vdisk.withdraw", name=name, agents=context.args.agent)
    context.output.document(answer)
    left = {item["agent"] for item in answer["presentations"]}
    gone = ", ".join(sorted(before - left)) or "nowhere: it was not presented there"
    context.output.line(f"withdrawn from {gone}; still presented at: {', '.join(sorted(left)) or 'none'}")
    return 0


def many(flag: str, metavar: str, text: str, required: bool = False) -> Argument:
    """An argument that may be given several times."""
    return argument(
        flag, action="append", default=None if required else [], required=required, metavar=metavar, help=text
    )


COMMANDS = (
    Command(
        ("vdisk", "create"),
        "A new thin virtual disk: nothing is allocated until it is written.",
        create,
        (
            argument("name", metavar="NAME", help="the vdisk's new name"),
            argument("--size", type=size_argument, required=True, metavar="SIZE", help="like 4GiB"),
            argument("--segment-size", type=size_argument, default=0, metavar="SIZE", help="(default: the cluster's)"),
            argument("--block-size", type=size_argument, default=0, metavar="SIZE", help="512 or 4096"),
            many("--container", "NAME", "allocate only there; may be repeated (default: everywhere)"),
        ),
    ),
    Command(("vdisk", "list"), "All vdisks.", list_all),
    Command(("vdisk", "show"), "One vdisk and where it is presented.", show, (NAME,)),
    Command(
        ("vdisk", "delete"),
        "Deletes a vdisk and frees its segments.",
        delete,
        (NAME, argument("--force", action="store_true", help="withdraw it first where it is presented")),
    ),
    Command(
        ("vdisk", "present"),
        "Shows a vdisk to hosts at one or more agents.",
        present,
        (
            NAME,
            many("--agent", "NAME", "at which agent; may be repeated", required=True),
            many("--host", "NQN", "a host that may connect; may be repeated"),
            argument("--any-host", action="store_true", help="every host may connect"),
            argument("--read-only", action="store_true", help="refuse writes"),
        ),
    ),
    Command(
        ("vdisk", "withdraw"),
        "Takes a vdisk away from hosts.",
        withdraw,
        (NAME, many("--agent", "NAME", "at which agent; may be repeated (default: at all)")),
    ),
)
