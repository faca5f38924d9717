"""`segmap agent …`: the daemon itself (`segmap agent --config`), and what the controller knows of all agents."""

from __future__ import annotations

import sys
import time
from typing import Any

from cli.command import Command, CommandError, Context, argument
from cli.exit_codes import ExitCode
from cli.output import rows_of

POLL_S = 0.2
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
    left = answer["lease_remaining_s"]
    fields += [("lease", f"{answer['lease']} ({left:.1f} s left)" if left else answer["lease"])]
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
    tell_fence(context, answer["fence"])
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


def tell_fence(context: Context, fence: dict[str, Any]) -> None:
    """What is known of an agent's end."""
    output = context.output
    if fence["containers"]:
        rows = rows_of(fence["containers"], "container", "exporter", "state", "detail")
        output.table(["container", "container host", "fence", "detail"], rows)
    if fence["lease_over_in_s"] and fence["state"] == "fencing":
        output.line(f"its lease is over in {fence['lease_over_in_s']:.1f} s at the latest")
    for text in fence["waiting_for"]:
        output.line(f"waits for {text}")


def order(context: Context, operation: str, over: tuple[str, ...], **more: Any) -> int:
    """Order the end of something, once; wait for it if that was asked for: TIMEOUT if it has not come by then."""
    args = context.args
    answer = context.client.call(operation, agent=args.agent, wait_s=0, **more)
    end = time.monotonic() + args.timeout
    said: set[str] = set()
    while args.wait and not answer["done"] and time.monotonic() < end:
        for text in answer["waiting_for"]:
            if text not in said:
                said.add(text)
                context.output.note(f"waits for {text}")
        time.sleep(POLL_S)
        now = context.client.call("agent.show", agent=args.agent)["fence"]
        replaced = now["incarnation"] != answer["incarnation"]
        if replaced:
            now = {**now, "incarnation": answer["incarnation"], "state": "fenced", "containers": [], "waiting_for": []}
        answer = {**answer, **now, "done": replaced or now["state"] in over}
    context.output.document(answer)
    context.output.line(f"agent {answer['agent']}, incarnation {answer['incarnation']}: {answer['state']}")
    for text in answer.get("assumed", ()):
        context.output.line(f"believed without proof: {text}")
    tell_fence(context, answer)
    return ExitCode.TIMEOUT if args.wait and not answer["done"] else ExitCode.DONE


def fence(context: Context) -> int:
    return order(context, "agent.fence", ("fenced",))


def drain(context: Context) -> int:
    return order(context, "agent.drain", ("drained", "fenced"))


def undrain(context: Context) -> int:
    return order(context, "agent.undrain", ("alive",))


def confirm_dead(context: Context) -> int:
    args = context.args
    if not args.yes:
        if not sys.stdin.isatty():
            raise CommandError(
                "nobody can be asked here", ExitCode.USAGE, "add --yes if the machine is off for certain"
            )
        context.output.note(f"If the machine of agent {args.agent} still runs, data will be lost.")
        context.output.note("Switch it off first. Then type its name:")
        if sys.stdin.readline().strip() != args.agent:
            raise CommandError("that is not its name: nothing was done", ExitCode.USAGE)
    return order(context, "agent.confirm_dead", ("fenced", "confirmed dead"), confirm=args.agent)


def remove(context: Context) -> int:
    answer = context.client.call("agent.remove", agent=context.args.agent)
    context.output.document(answer)
    context.output.line(
        f"agent {answer['agent']} is removed; `segmap pki revoke` keeps its certificate from coming back"
    )
    return ExitCode.DONE


WAITING = (
    AGENT,
    argument("--wait", action="store_true", help="wait until it is done"),
    argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="with --wait: how long (default 60)"),
)
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
        WAITING,
        more="Its daemon starts a new data plane, which is admitted once the fence is confirmed. Without --wait it "
        "says what it waits for, and `segmap agent show` tells how far it is. With --wait the status is 7 if it is not "
        "done in time; it goes on.",
    ),
    Command(
        ("agent", "drain"),
        "Takes everything away from an agent in order; then it can be stopped, and no fence is needed.",
        drain,
        WAITING,
        more="Its disks are withdrawn, its tables deleted, its containers detached: each is answered when the I/O "
        "begun before has ended. What was presented there stays recorded. It outlasts restarts, until undrain.",
    ),
    Command(
        ("agent", "undrain"),
        "Lets a drained agent hold again what is wanted of it.",
        undrain,
        WAITING,
    ),
    Command(
        ("agent", "remove"),
        "Forgets an agent of which nothing is left: not connected, fenced, nothing presented or exported.",
        remove,
        (AGENT,),
    ),
    Command(
        ("agent", "confirm-dead"),
        "Says that an agent's machine is off, where nobody can be asked to fence it.",
        confirm_dead,
        (*WAITING, argument("--yes", action="store_true", help="do not ask for the name: the machine is off")),
        more="For a mapping agent of which a container host cannot be reached, or that is its own; and for a "
        "container host that is lost, so that the fences which wait for it end. What is believed without proof is "
        "told, and is in the audit log. If the machine still runs, data will be lost.",
    ),
)
