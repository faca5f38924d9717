"""`segmap store …` and `segmap check`: backups of the controller's store, and audits of everything.

`backup` and `show` ask the running controller; `verify` and `restore` work on files that nobody has open. `check` exits
with 1 if anything is wrong; with `--reconcile` also if the freeze has not ended.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from cli.command import Command, CommandError, Context, argument
from cli.exit_codes import ExitCode
from cli.output import Output, rows_of, size_text
from controller.store.interface import StoreError, StoreLocked
from controller.store.restore import StorePresent, restore
from controller.store.verify import StoreMissing, verify

POLL_S: Final = 0.1


def backup(context: Context) -> int:
    path = context.args.path.absolute()
    answer = context.client.call("store.backup", path=str(path))
    while answer["state"] == "running":
        context.output.note(f"{answer['pages_done']} of {answer['pages']} pages")
        answer = context.client.call("store.backup", path=str(path))
    context.output.document(answer)
    context.output.line(f"{path}: {size_text(answer['size_bytes'])}, sequence {answer['sequence']}")
    return ExitCode.DONE


def show(context: Context) -> int:
    answer = context.client.call("store.show")
    context.output.document(answer)
    newest = answer["backup"]
    context.output.fields(
        [
            ("path", answer["path"]),
            ("size", size_text(answer["size_bytes"])),
            ("cluster", answer["cluster"]),
            ("term", answer["term"]),
            ("generation", answer["generation"]),
            ("sequence", answer["sequence"]),
            ("frozen", answer["frozen"] or "no"),
            ("newest backup", f"{newest['path']} {newest['state']} {newest['detail']}".strip() if newest else None),
        ]
    )
    return ExitCode.DONE


def verify_file(context: Context) -> int:
    try:
        verified = verify(context.args.path)
    except StoreError as error:
        raise _failure(error) from None
    row = verified.row()
    context.output.document(row)
    counted = ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in row["counts"].items())
    facts = ("cluster", "term", "generation", "sequence", "frozen")
    context.output.fields([("checked", counted), *((name, row[name]) for name in facts)])
    tell_findings(context.output, row)
    context.output.line(f"{context.args.path}: {'good' if row['good'] else 'NOT good'}")
    return ExitCode.DONE if row["good"] else ExitCode.FAILED


def restore_file(context: Context) -> int:
    args = context.args
    try:
        done = restore(args.backup, args.path, force=args.force, generation=args.generation, now_ns=time.time_ns())
    except StoreError as error:
        raise _failure(error) from None
    row = done.row()
    context.output.document(row)
    context.output.line(f"{done.path}: restored, generation {done.generation}, term {done.term}")
    if done.kept:
        context.output.line(f"the store that was there: {done.kept}")
    context.output.line("Start the controller, then: segmap check --reconcile. Until then nothing is allocated.")
    return ExitCode.DONE


def _failure(error: StoreError) -> CommandError:
    code = ExitCode.FAILED
    if isinstance(error, StorePresent | StoreLocked):
        code = ExitCode.CONFLICT
    elif isinstance(error, StoreMissing):
        code = ExitCode.NOT_FOUND
    return CommandError(Exception.__str__(error), code, error.advice)


def check(context: Context) -> int:
    args, client, output = context.args, context.client, context.output
    if args.discard and not args.reconcile:
        raise CommandError("--discard goes with --reconcile", ExitCode.USAGE)
    run = client.call("cluster.reconcile", discard=args.discard)["run"] if args.reconcile else 0
    answer = client.call("cluster.check", run=run)
    stage = ""
    while answer["state"] == "running":
        if answer["stage"] != stage:
            stage = answer["stage"]
            output.note(f"{100 * answer['progress']:3.0f} %  {stage}")
        time.sleep(POLL_S)
        answer = client.call("cluster.check", run=answer["run"])
    output.document(answer)
    tell_findings(output, answer)
    output.line("looked at " + ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in answer["counts"].items()))
    for row in answer["quarantine"]:
        output.line(f"quarantined: {row['segments']} segments of container {row['container']}: {row['why']}")
    if args.reconcile:
        output.line("allocation goes on" if not answer["frozen"] else f"allocation stays frozen: {answer['frozen']}")
    output.line("nothing wrong" if answer["good"] else "something is WRONG")
    return ExitCode.DONE if answer["good"] and not (args.reconcile and answer["frozen"]) else ExitCode.FAILED


def tell_findings(output: Output, row: dict[str, Any]) -> None:
    """What is wrong, one a line."""
    if row["findings"]:
        output.table(["severity", "kind", "what"], rows_of(row["findings"], "severity", "kind", "text"))
    if row["findings_dropped"]:
        output.line(f"and {row['findings_dropped']} more")


COMMANDS = (
    Command(
        ("check",),
        "Audits store, memory and agents' tables while everything goes on.",
        check,
        (
            argument("--reconcile", action="store_true", help="after a restore: end the freeze if nothing differs"),
            argument(
                "--discard",
                action="store_true",
                help="with --reconcile: take away from agents what the restored store does not know; it is lost",
            ),
        ),
        more="Exit status 1 if something is wrong, or if --reconcile could not end the freeze.",
    ),
    Command(("store", "show"), "The controller's store, and its newest backup.", show),
    Command(
        ("store", "backup"),
        "Copies the running controller's store into a new file.",
        backup,
        (argument("path", type=Path, metavar="FILE", help="must not exist; on the controller's machine"),),
    ),
    Command(
        ("store", "verify"),
        "Checks a backup, or the store of a stopped controller; changes nothing.",
        verify_file,
        (argument("path", type=Path, metavar="FILE", help="a backup or a store"),),
        speaks_api=False,
        more="Exit status 1 if anything in it is wrong.",
    ),
    Command(
        ("store", "restore"),
        "Makes a backup the store of a stopped controller, and freezes allocation.",
        restore_file,
        (
            argument("backup", type=Path, metavar="BACKUP", help="a verified backup"),
            argument("path", type=Path, metavar="STORE", help="the controller's store (controller.store in the file)"),
            argument("--force", action="store_true", help="there is a store already: keep it under another name"),
            argument(
                "--generation",
                type=int,
                default=0,
                metavar="N",
                help="at least this generation, if containers are labelled with a newer one",
            ),
        ),
        speaks_api=False,
        more="Then start the controller, and run `segmap check --reconcile`.",
    ),
)
