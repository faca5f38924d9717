"""`segmap doctor`: what this machine lacks, and what to do about it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cli.command import Command, CommandError, Context, argument
from cli.config.document import load
from cli.exit_codes import ExitCode


def doctor(context: Context) -> int:
    from cli.doctor.checks import Verdict, diagnose
    from cli.doctor.facts import gather
    from cli.doctor.needs import Needs, needs_of

    args, output = context.args, context.output
    if args.agent and args.file is None:
        raise CommandError("--agent names agents of a configuration file: name the file, too", ExitCode.USAGE)
    needs = needs_of(load(args.file, args.runtime_dir), args.agent) if args.file else Needs()
    findings = diagnose(gather(needs), needs, datetime.now(UTC))
    missing = sum(finding.verdict is Verdict.MISSING for finding in findings)
    names = ("subject", "verdict", "found", "advice")
    rows = [(one.subject, one.verdict.value, one.found, one.advice) for one in findings]
    output.document({"fit": not missing, "findings": [dict(zip(names, row, strict=True)) for row in rows]})
    output.table(("what", "verdict", "found"), [row[:3] for row in rows])
    advised = [one for one in findings if one.advice and one.verdict is not Verdict.UNUSED]
    if advised:
        output.line("\nWhat to do:")
    for finding in advised:
        output.line(f"  {finding.subject}: {finding.advice}", "yellow")
    if args.file is None:
        output.line("\nWithout a configuration FILE nothing of SPDK is asked for: the embedded data plane needs none.")
    return ExitCode.DIFFERENT if missing else ExitCode.DONE


COMMANDS = (
    Command(
        ("doctor",),
        "Checks this machine: SPDK, module, huge pages, cores, disks, permissions, certificates; says what to do.",
        doctor,
        (
            argument("file", type=Path, nargs="?", metavar="FILE", help="what is to run here (docs/config.md)"),
            argument("--agent", action="append", default=[], metavar="NAME", help="only this agent runs here; repeat"),
            argument("--runtime-dir", type=Path, metavar="DIR", help="overrides the file's runtime_dir"),
        ),
        speaks_api=False,
    ),
)
