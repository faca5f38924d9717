"""`segmap fault-proxy …`: a bad network between two parts of a test system, on demand."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path
from typing import Any, Final

from cli.command import Command, CommandError, Context, argument
from cli.config.schema import BadValueError, parse_address, parse_duration, parse_size
from cli.exit_codes import ExitCode
from transport.fault_proxy import DOWN, LINE_BYTES_MAX, UP, FaultProxy, listen_control

ANSWER_S: Final = 5.0
NS_PER_S: Final = 1_000_000_000
BOTH: Final = "both"


def run(context: Context) -> int:
    return asyncio.run(_run(context))


async def _run(context: Context) -> int:
    args = context.args
    (host, port), server = _address(args.listen), _address(args.to)
    proxy = FaultProxy(*server)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await proxy.listen(host, port)
        control = await listen_control(proxy, args.control)
    except OSError as error:
        await proxy.close()
        raise CommandError(f"cannot listen: {error.strerror or error}", ExitCode.CONFLICT) from None
    try:
        context.output.document({"control": str(args.control), **proxy.show()})
        context.output.line(f"{host}:{proxy.port} leads to {args.to}; segmap fault-proxy set {args.control} …")
        await stop.wait()
    finally:
        control.close()
        control.close_all()
        await control.wait_closed()
        await proxy.close()
    return ExitCode.DONE


def change(context: Context) -> int:
    args = context.args
    values: dict[str, Any] = {}
    if args.heal:
        values |= {"delay_s": 0.0, "cut": False, "bandwidth": 0}
    if args.cut:
        values["cut"] = True
    try:
        if args.delay is not None:
            values["delay_s"] = parse_duration(args.delay) / NS_PER_S
        if args.bandwidth is not None:
            values["bandwidth"] = parse_size(args.bandwidth)
    except BadValueError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    wanted: dict[str, Any] = {"reset": True} if args.reset else {}
    if values:
        wanted |= dict.fromkeys((UP, DOWN) if args.direction == BOTH else (args.direction,), values)
    answer = _ask(args.control, wanted)
    if "error" in answer:
        raise CommandError(answer["error"], ExitCode.USAGE)
    context.output.document(answer)
    rows = [
        (direction, f"{faults['delay_s']:g} s", faults["cut"], faults["bandwidth"] or "", answer["bytes"][direction])
        for direction, faults in answer["faults"].items()
    ]
    context.output.table(["direction", "delay", "cut", "bytes/s at most", "bytes so far"], rows)
    return ExitCode.DONE


def _ask(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(ANSWER_S)
        try:
            sock.connect(str(path))
            sock.sendall(json.dumps(wanted).encode() + b"\n")
            text = b""
            while not text.endswith(b"\n") and len(text) <= LINE_BYTES_MAX:
                data = sock.recv(LINE_BYTES_MAX)
                if not data:
                    break
                text += data
            answer: dict[str, Any] = json.loads(text)
        except (OSError, ValueError) as error:
            raise CommandError(f"{path}: no fault proxy answers: {error}", ExitCode.UNREACHABLE) from None
    return answer


def _address(text: str) -> tuple[str, int]:
    try:
        return parse_address(text)
    except BadValueError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None


CONTROL = argument("control", type=Path, metavar="SOCKET", help="the proxy's control socket")

COMMANDS = (
    Command(
        ("fault-proxy", "run"),
        "For test systems: a TCP proxy that can be told to be a bad network.",
        run,
        (
            CONTROL,
            argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="where to listen (any free port)"),
            argument("--to", required=True, metavar="HOST:PORT", help="where it leads"),
        ),
        speaks_api=False,
        more="Without faults until `segmap fault-proxy set` says otherwise; ends on SIGTERM or Ctrl-C.",
    ),
    Command(
        ("fault-proxy", "set"),
        "Tells a fault proxy what to do from now on, and shows what it does.",
        change,
        (
            CONTROL,
            argument(
                "--direction",
                choices=(UP, DOWN, BOTH),
                default=BOTH,
                help="up: towards --to; down: back (default: both)",
            ),
            argument("--heal", action="store_true", help="no faults in this direction, except those given besides"),
            argument("--cut", action="store_true", help="forward nothing until healed: a partition"),
            argument("--delay", metavar="TIME", help="every byte comes so much later, like 200ms"),
            argument("--bandwidth", metavar="SIZE", help="so many bytes a second, like 1MiB; 0: without limit"),
            argument("--reset", action="store_true", help="break every connection now"),
        ),
        speaks_api=False,
    ),
)
