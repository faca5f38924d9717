"""`segmap io …`: copying data in and out of vdisks, and I/O that waits for an answer."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from cli.command import Command, CommandError, Context, argument
from cli.commands.vdisks import size_argument
from cli.copying.endpoint import Destination, Source, check_apart, open_destination, open_source
from cli.copying.progress import ProgressBar
from cli.copying.pump import CopyFailedError, Pump, Range, Result
from cli.exit_codes import ExitCode
from cli.output import rate_text, rows_of, size_text


def copy(context: Context) -> int:
    args = context.args
    what = Range(args.from_offset, args.to_offset, args.length)
    try:
        return _run(context, what)
    except KeyboardInterrupt:
        if args.source == "-":
            # A thread may sit in read(2) on our standard input; a normal exit would wait for it.
            sys.stderr.flush()
            os._exit(ExitCode.INTERRUPTED)
        raise


def _run(context: Context, what: Range) -> int:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_copy(context, what))


async def _copy(context: Context, what: Range) -> int:
    args = context.args
    check_apart(args.source, args.destination, what.source_offset, what.destination_offset, what.length)
    source = await open_source(args.source)
    try:
        destination = await open_destination(args.destination)
        try:
            result = await _move("copy", context, source, destination, what)
            verified = await _verify(context, destination, what, result) if args.verify else None
        finally:
            await destination.close()
    finally:
        await source.close()
    return _tell(context, result, verified)


async def _move(title: str, context: Context, source: Source, destination: Destination | None, what: Range) -> Result:
    total = what.length
    if total is None and source.size is not None:
        total = max(0, source.size - what.source_offset)
    with ProgressBar(title, total, not context.args.quiet) as bar:
        try:
            return await Pump(source, destination, bar.advance, context.args.depth).run(what)
        except CopyFailedError as error:
            failure = error
    if not isinstance(failure.reason, asyncio.CancelledError):
        raise _command_error(failure, what) from failure
    context.output.note(
        f"segmap io {title}: interrupted; {_how_to_go_on(failure, what) or 'nothing is surely written'}"
    )
    raise failure.reason


def _command_error(error: CopyFailedError, what: Range) -> CommandError:
    """One line for what went wrong, and how to go on from there."""
    code = error.reason.code if isinstance(error.reason, CommandError) else ExitCode.FAILED
    return CommandError(str(error.reason) or type(error.reason).__name__, code, _how_to_go_on(error, what))


def _how_to_go_on(error: CopyFailedError, what: Range) -> str:
    if not error.durable:
        return ""
    return (
        f"{error.durable} bytes are safely written; to go on: --from-offset {what.source_offset + error.durable} "
        f"--to-offset {what.destination_offset + error.durable}"
    )


async def _verify(context: Context, destination: Destination, what: Range, result: Result) -> Result:
    """Reads the destination again and compares checksums."""
    source = await destination.reader()
    try:
        return await _move("verify", context, source, None, Range(what.destination_offset, 0, result.length))
    finally:
        await source.close()


def _tell(context: Context, result: Result, verified: Result | None) -> int:
    same = verified is None or verified.sha256 == result.sha256
    document = {
        "bytes": result.length,
        "seconds": round(result.seconds, 6),
        "bytes_per_second": round(result.length / max(result.seconds, 1e-9)),
        "sha256": result.sha256,
        "verified": None if verified is None else same,
    }
    if context.output.as_json and context.args.destination == "-":
        context.output.note(json.dumps(document))
    else:
        context.output.document(document)
    say = context.output.note if context.args.destination == "-" else context.output.line
    if not context.output.as_json:
        rate = rate_text(result.length, result.seconds)
        say(f"{size_text(result.length)} in {result.seconds:.2f} s, {rate}, sha256 {result.sha256}")
        if verified:
            rate = rate_text(verified.length, verified.seconds)
            say(f"read back at {rate}: {'the same' if same else 'DIFFERENT: ' + verified.sha256}")
    return ExitCode.DONE if same else ExitCode.DIFFERENT


def parked(context: Context) -> int:
    answer = context.client.call("io.parked", agent=context.args.agent)
    context.output.document(answer)
    if not answer["parked"]:
        context.output.line("nothing is parked")
        return ExitCode.DONE
    columns = ("agent", "vdisk", "segment", "count", "operation", "kind", "state", "since_s", "why")
    context.output.table(
        ["agent", "vdisk", "segment", "I/Os", "operation", "fault", "state", "seconds", "waits for"],
        rows_of(answer["parked"], *columns),
    )
    return ExitCode.DONE


ENDPOINTS = "a file, a block device, - for a pipe, or nvme-tcp://HOST:PORT/NQN?nsid=1"

COMMANDS = (
    Command(
        ("io", "copy"),
        "Copies between files, pipes, block devices and vdisks over NVMe/TCP, with a SHA-256.",
        copy,
        (
            argument("source", metavar="SRC", help=ENDPOINTS),
            argument("destination", metavar="DST", help=ENDPOINTS),
            argument("--length", type=size_argument, metavar="SIZE", help="bytes (default: all of the source)"),
            argument("--from-offset", type=size_argument, default=0, metavar="SIZE", help="where to begin in SRC"),
            argument("--to-offset", type=size_argument, default=0, metavar="SIZE", help="where to begin in DST"),
            argument("--verify", action="store_true", help="read the destination again and compare"),
            argument("--depth", type=int, choices=range(1, 65), default=8, metavar="N", help="chunks at once (8)"),
            argument("--quiet", action="store_true", help="no progress bar"),
        ),
        speaks_api=False,
        more="A lost connection is waited for, for a minute. A copy that fails or is interrupted tells the offsets "
        "where it can go on.",
    ),
    Command(
        ("io", "parked"),
        "I/O that waits for a fault's answer: what, why, since when, on whom.",
        parked,
        (argument("--agent", default="", metavar="NAME", help="only this agent"),),
    ),
)
