"""`segmap vdisk map` and `segmap vdisk explain`: the mapping table as a picture, and one byte's way through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli.client import Client
from cli.command import Command, Context, argument
from cli.commands.vdisks import NAME, size_argument
from cli.map_view import Run, cells, legend, plain_lines, rich_lines, runs_of_entries, runs_of_map, write_png
from cli.output import Output, size_text

ENTRIES_MAX = 65536


def read_runs(client: Client, name: str, agent: str, start: int, count: int) -> tuple[list[Run], dict[str, Any]]:
    """Runs and the raw answer: the controller's truth, or with ``agent`` what that agent's table holds."""
    if not agent:
        answer = client.call("vdisk.map", name=name, start=start, count=count)
        return runs_of_map(answer["runs"]), answer
    total = client.call("vdisk.show", name=name)["segment_count"]
    count = min(count or total, total - start)
    entries: list[dict[str, Any]] = []
    while len(entries) < count:
        step = min(ENTRIES_MAX, count - len(entries))
        part = client.call("agent.entries", agent=agent, vdisk=name, start=start + len(entries), count=step)["entries"]
        if not part:
            break
        entries.extend(part)
    return runs_of_entries(entries), {
        "name": name,
        "agent": agent,
        "segment_count": total,
        "start": start,
        "count": len(entries),
        "entries": entries,
    }


def draw(output: Output, runs: list[Run], start: int, count: int, segment_size: int = 0) -> None:
    """The picture and its legend."""
    picture, width = cells(runs, start, count)
    if output.pretty:
        for text in rich_lines(picture, width, start):
            output.console.print(text)
    else:
        for text in plain_lines(picture, width, start):
            output.line(text)
    scale = f"a cell is {width} segment{'s' if width > 1 else ''}"
    output.line(f"{legend(runs)}   ({scale}{f' of {size_text(segment_size)}' if segment_size else ''})")


def show_map(context: Context) -> int:
    args = context.args
    runs, answer = read_runs(context.client, args.name, args.agent, args.start, args.count)
    context.output.document(answer)
    if not context.output.as_json:
        draw(context.output, runs, answer["start"], answer["count"])
    if answer.get("truncated"):
        context.output.note("the table has too many runs for one answer; --start and --count show a part of it")
    if args.png:
        write_png(args.png, runs, answer["start"], answer["count"])
        context.output.note(f"picture written to {args.png}")
    return 0


def explain(context: Context) -> int:
    answer = context.client.call("vdisk.explain", name=context.args.name, offset=context.args.offset)
    output = context.output
    output.document(answer)
    output.fields(
        [
            ("byte", answer["offset"]),
            ("segment", f"{answer['segment']}, byte {answer['offset_in_segment']} of it"),
            ("state", answer["state"]),
            ("container", answer["container"] and f"{answer['container']} (slot {answer['slot']})"),
            ("container segment", answer["physical_segment"]),
            ("container byte", answer["container_offset"]),
            ("being changed", answer["changing"]),
            ("waiting faults", answer["waiting_faults"]),
            *((f"agent {holder['agent']}", HOLDS[holder["holds"]]) for holder in answer["holders"]),
        ]
    )
    return 0


HOLDS = {"no": "does not hold it", "current": "may hold it", "unknown": "may hold it, or an older one"}

COMMANDS = (
    Command(
        ("vdisk", "map"),
        "Draws the mapping table: a cell per segment or run, states by letter and colour.",
        show_map,
        (
            NAME,
            argument("--agent", default="", metavar="NAME", help="what this agent's table holds, not the truth"),
            argument("--start", type=int, default=0, metavar="SEGMENT", help="first segment (default 0)"),
            argument("--count", type=int, default=0, metavar="N", help="segments (default: to the end)"),
            argument("--png", type=Path, metavar="FILE", help="also write the picture to a PNG file"),
        ),
        more="Letters: M mapped, N no-write, E error, . zero, ? invalid; lower case: not the whole cell.",
    ),
    Command(
        ("vdisk", "explain"),
        "From a byte of the vdisk to a byte of a container, with states and who holds the entry.",
        explain,
        (NAME, argument("offset", type=size_argument, metavar="OFFSET", help="byte of the vdisk, like 1GiB or 4096")),
    ),
)
