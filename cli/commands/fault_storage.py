"""`segmap fault-storage …`: storage that fails or is late, where an export has `faults: true` in a test system."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from cli.command import Command, CommandError, Context, argument
from cli.config.schema import BadValueError, parse_duration
from cli.exit_codes import ExitCode
from spdk_rpc.call import Call
from spdk_rpc.client import RpcClient
from spdk_rpc.containers import DelayContainer, ErrorContainer
from spdk_rpc.errors import RpcError, RpcFailure
from spdk_rpc.methods import bdev

ENODEV: Final = -19
NS_PER_US: Final = 1000
IO_TYPES: Final = ("read", "write", "unmap", "flush", "all")
LATENCIES: Final = ("avg_read", "p99_read", "avg_write", "p99_write")
ERROR_TYPES: Final = ("failure", "pending", "nomem")


def fail(context: Context) -> int:
    args = context.args
    name = ErrorContainer(args.bdev).name
    _run(args.socket, name, [bdev.error_inject(name, args.io, args.error, args.count)])
    return _told(context, {"bdev": name, "io": args.io, "error": args.error, "count": args.count})


def delay(context: Context) -> int:
    args = context.args
    name = DelayContainer.faulty(args.bdev)
    try:
        times = {kind: parse_duration(getattr(args, kind)) // NS_PER_US for kind in ("read", "write")}
    except BadValueError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    calls = [bdev.delay_update(name, f"{of}_{kind}", times[kind]) for kind in times for of in ("avg", "p99")]
    _run(args.socket, name, calls)
    return _told(context, {"bdev": name, "read_us": times["read"], "write_us": times["write"]})


def heal(context: Context) -> int:
    args = context.args
    error, late = ErrorContainer(args.bdev).name, DelayContainer.faulty(args.bdev)
    _run(args.socket, error, [bdev.error_inject(error, "clear", "failure"), bdev.error_resume(error)])
    _run(
        args.socket,
        late,
        [bdev.delay_update(late, f"{of}_{io}", 0) for io in ("read", "write") for of in ("avg", "p99")],
    )
    return _told(context, {"bdev": args.bdev, "healed": True})


def _told(context: Context, document: dict[str, Any]) -> int:
    context.output.document(document)
    context.output.fields(list(document.items()))
    return ExitCode.DONE


def _run(socket: Path, name: str, calls: list[Call[Any]]) -> None:
    try:
        with RpcClient(socket) as client:
            for call in calls:
                client.run(call)
    except RpcError as error:
        if error.code == ENODEV or "does not exist" in str(error):
            hint = "the export needs `faults: true`, and BDEV is the name of its storage's bdev"
            raise CommandError(f"the target has no bdev {name}", ExitCode.NOT_FOUND, hint) from None
        raise CommandError(str(error)) from None
    except RpcFailure as error:
        raise CommandError(str(error), ExitCode.UNREACHABLE) from None


WHERE: Final = (
    argument("socket", type=Path, metavar="SOCKET", help="the JSON-RPC socket of the container host's target"),
    argument("bdev", metavar="BDEV", help="the storage's bdev: the export's name for aio, malloc and null"),
)

COMMANDS = (
    Command(
        ("fault-storage", "fail"),
        "Lets the next I/Os of an export with `faults: true` fail, or wait.",
        fail,
        (
            *WHERE,
            argument("--io", choices=IO_TYPES, default="all", help="which I/O (default: all)"),
            argument("--error", choices=ERROR_TYPES, default="failure", help="what happens (default: failure)"),
            argument("--count", type=int, default=1, metavar="N", help="how many (default: 1)"),
        ),
        speaks_api=False,
        more="Writing zeroes is never touched. What is pending waits for `segmap fault-storage heal`.",
    ),
    Command(
        ("fault-storage", "delay"),
        "Lets reads and writes of an export with `faults: true` end later.",
        delay,
        (
            *WHERE,
            argument("--read", default="0s", metavar="TIME", help="how much later reads end, like 200ms"),
            argument("--write", default="0s", metavar="TIME", help="how much later writes end, like 200ms"),
        ),
        speaks_api=False,
    ),
    Command(("fault-storage", "heal"), "Ends all of that.", heal, WHERE, speaks_api=False),
)
