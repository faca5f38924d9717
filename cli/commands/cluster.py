"""`segmap status` and `segmap events`: the cluster at a glance, and what happened."""

from __future__ import annotations

from cli.command import Command, Context, argument
from cli.output import rows_of, size_text


def status(context: Context) -> int:
    answer = context.client.call("cluster.status")
    output = context.output
    output.document(answer)
    faults = answer["faults"]
    output.fields(
        [
            ("cluster", f"{answer['name']} ({answer['cluster']})"),
            ("controller", f"term {answer['term']}, up {answer['uptime_s']:.0f} s"),
            ("faults", ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in faults.items())),
        ]
    )
    agents = rows_of(answer["agents"], "name", "roles", "state", "lease", "incarnation", "epoch")
    output.table(["agent", "roles", "state", "lease", "incarnation", "epoch"], agents)
    containers = [
        [row["name"], row["state"], size_text(row["size_bytes"]), *(row["segments"].get(key, 0) for key in SHOWN)]
        for row in answer["containers"]
    ]
    output.table(["container", "state", "size", *SHOWN], containers)
    vdisks = [
        [
            row["name"],
            row["state"],
            size_text(row["size_bytes"]),
            f"{row['allocated_segments']} of {row['segment_count']}",
            [f"{item['agent']} {item['state']}" for item in row["presentations"]],
        ]
        for row in answer["vdisks"]
    ]
    output.table(["vdisk", "state", "size", "allocated segments", "presented at"], vdisks)
    for fence in answer["fences"]:
        for text in fence["waiting_for"]:
            output.line(f"{fence['state']} agent {fence['agent']} waits for {text}", "yellow")
    for alarm in answer["alarms"]:
        output.line(f"{alarm['severity']}: {alarm['text']}", "bold red")
    return 0


SHOWN = ("free", "zeroed", "mapped", "quarantined")


def events(context: Context) -> int:
    answer = context.client.call("events.list", limit=context.args.limit, after=context.args.after)
    context.output.document(answer)
    context.output.table(
        ["id", "time", "severity", "kind", "what"], rows_of(answer["events"], "id", "time", "severity", "kind", "text")
    )
    return 0


COMMANDS = (
    Command(("status",), "The cluster at a glance.", status),
    Command(
        ("events",),
        "What happened, newest last.",
        events,
        (
            argument("--limit", type=int, default=100, metavar="N", help="at most so many (default 100)"),
            argument("--after", type=int, default=0, metavar="ID", help="only events with a higher id"),
        ),
    ),
)
