"""`segmap agent …`: the daemon itself (`segmap agent --config`), and what the controller knows of all agents."""

from __future__ import annotations

from cli.command import Command, Context, argument
from cli.output import rows_of

AGENT = argument("agent", metavar="AGENT", help="an agent's name")


def list_all(context: Context) -> int:
    answer = context.client.call("agent.list")
    context.output.document(answer)
    columns = ["name", "roles", "state", "lease", "incarnation", "epoch", "exports"]
    rows = [
        [*row, [export["name"] for export in agent["exports"]]]
        for row, agent in zip(rows_of(answer["agents"], *columns[:-1]), answer["agents"], strict=True)
    ]
    context.output.table(columns, rows)
    return 0


def show(context: Context) -> int:
    answer = context.client.call("agent.show", agent=context.args.agent)
    output = context.output
    output.document(answer)
    fields = [("name", answer["name"]), ("number", answer["number"]), ("roles", answer["roles"])]
    fields += [("state", answer["state"]), ("detail", answer.get("detail")), ("software", answer.get("software"))]
    fields += [("incarnation", answer["incarnation"]), ("epoch", answer["epoch"])]
    fields += [("lease", f"{answer['lease']} ({answer['lease_remaining_s'] or 0:.1f} s left)")]
    output.fields(fields)
    if answer["tables"]:
        output.table(
            ["vdisk", "state", "sequence", "segments it may hold"],
            rows_of(answer["tables"], "vdisk", "state", "sequence", "holds"),
        )
    if answer["attachments"]:
        rows = rows_of(answer["attachments"], "slot", "container", "state", "detail")
        output.table(["slot", "container", "state", "detail"], rows)
    if answer["exports"]:
        rows = rows_of(answer["exports"], "name", "container", "traddr", "trsvcid", "subnqn")
        output.table(["export", "container", "address", "port", "subsystem"], rows)
    return 0


def entries(context: Context) -> int:
    args = context.args
    answer = context.client.call(
        "agent.entries", agent=args.agent, vdisk=args.vdisk, start=args.start, count=args.count
    )
    context.output.document(answer)
    rows = rows_of(answer["entries"], "segment", "state", "slot", "physical_segment")
    context.output.table(["segment", "state", "slot", "container segment"], rows)
    return 0


def fence(context: Context) -> int:
    answer = context.client.call("agent.fence", agent=context.args.agent)
    context.output.document(answer)
    waiting = f"; waiting for {', '.join(answer['waiting_for'])}" if answer["waiting_for"] else ""
    context.output.line(f"agent {answer['agent']}, incarnation {answer['incarnation']}: {answer['state']}{waiting}")
    return 0


COMMANDS = (
    Command(("agent", "list"), "All agents.", list_all),
    Command(("agent", "show"), "One agent: lease, tables, attachments, exports.", show, (AGENT,)),
    Command(
        ("agent", "entries"),
        "What an agent's table holds now; the agent is asked.",
        entries,
        (
            AGENT,
            argument("vdisk", metavar="VDISK", help="a vdisk's name"),
            argument("--start", type=int, default=0, metavar="SEGMENT", help="first segment (default 0)"),
            argument("--count", type=int, default=64, metavar="N", help="entries, at most 65536 (default 64)"),
        ),
    ),
    Command(
        ("agent", "fence"),
        "Cuts an agent's incarnation off from every container, confirmed by the container hosts.",
        fence,
        (AGENT,),
    ),
)
