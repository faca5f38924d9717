"""The processes: `up`, `controller`, `agent`, `target`; and `demo` and `version`."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cli.command import API_VARIABLE, Command, CommandError, Context, argument
from cli.config.daemons import agent_config, agent_dir, controller_config
from cli.config.document import load
from cli.exit_codes import ExitCode
from spdk_rpc.bound import die_with_parent

if TYPE_CHECKING:
    import argparse

    from cli.supervisor.cluster import Cluster

_T = TypeVar("_T")

CONFIG = argument("--config", type=Path, metavar="FILE", help="the configuration file (docs/config.md)")
RUNTIME_DIR = argument("--runtime-dir", type=Path, metavar="DIR", help="overrides the file's runtime_dir")


def up(context: Context) -> int:
    from cli.supervisor.cluster import Cluster

    document = load(context.args.file, context.args.runtime_dir)
    cluster = Cluster(document, context.output.note)
    return asyncio.run(_up(context, cluster))


async def _up(context: Context, cluster: Cluster) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    starting = asyncio.ensure_future(cluster.start())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            _tell_what_runs(context, cluster)
            await stopping
        return ExitCode.DONE
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await cluster.stop()


def _tell_what_runs(context: Context, cluster: Cluster) -> None:
    names = ("process", "pid", "address", "purpose")
    rows = cluster.rows()
    api = str(cluster.document.api_socket)
    context.output.document({"api": api, "processes": [dict(zip(names, row, strict=True)) for row in rows]})
    context.output.table(names, rows)
    context.output.line(f"\nIn another terminal:\n\n    export {API_VARIABLE}={api}\n    segmap status\n")
    context.output.line("Ctrl-C ends everything.")
    sys.stdout.flush()


def controller(context: Context) -> int:
    die_with_parent()
    document = load(needed(context.args.config, "--config FILE"))
    from controller import main

    document.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return main.run(controller_config(document))


def agent(context: Context) -> int:
    die_with_parent()
    document = load(needed(context.args.config, "--config FILE (the daemon), or one of list, show, entries, fence"))
    name = needed(context.args.name, "--name NAME: which agent of the file")
    from agent import main

    config = agent_config(document, name)
    agent_dir(document, name).mkdir(mode=0o700, parents=True, exist_ok=True)
    return main.run(config)


def target(context: Context) -> int:
    from dataplane.embedded import main

    die_with_parent(signal.SIGKILL)
    return main.run(context.args)


def needed(value: _T | None, what: str) -> _T:
    if value is None:
        raise CommandError(f"missing: {what}", ExitCode.USAGE)
    return value


def demo(context: Context) -> int:
    from cli.demo.program import run

    return run(context)


def version(context: Context) -> int:
    number = importlib.metadata.version("segmap")
    context.output.document({"segmap": number, "python": sys.version.split()[0], "pid": os.getpid()})
    context.output.line(f"segmap {number}")
    return ExitCode.DONE


def target_arguments(parser: argparse.ArgumentParser) -> None:
    """The embedded target's own arguments; imported only for this command, since that takes a while."""
    from dataplane.embedded import main

    main.add_arguments(parser)


COMMANDS = (
    Command(
        ("up",),
        "Starts a whole cluster on this machine from one file, and ends it on Ctrl-C.",
        up,
        (argument("file", type=Path, metavar="FILE", help="the configuration file"), RUNTIME_DIR),
        speaks_api=False,
    ),
    Command(
        ("demo",),
        "Shows the whole system at work on this machine, with checks.",
        demo,
        (
            argument("--input", type=Path, metavar="PATH", help="a file or directory to put on the disk"),
            argument(
                "--target",
                choices=("embedded", "spdk"),
                default="embedded",
                help="the mapping agents' data planes: ours, or SPDK's with our module",
            ),
            argument(
                "--containers",
                choices=("embedded", "spdk"),
                default="embedded",
                help="what exports the containers: our target, or a stock SPDK",
            ),
            argument("--keep", action="store_true", help="leave the cluster running until Ctrl-C"),
        ),
        speaks_api=False,
    ),
    Command(("controller",), "The controller's process.", controller, (CONFIG,), speaks_api=False),
    Command(
        ("agent",),
        "An agent's process.",
        agent,
        (CONFIG, argument("--name", metavar="NAME", help="which agent of the file")),
        speaks_api=False,
    ),
    Command(
        ("target",),
        "The embedded data plane: a target that speaks SPDK's JSON-RPC and NVMe/TCP.",
        target,
        speaks_api=False,
        extend=target_arguments,
    ),
    Command(("version",), "Which segmap this is.", version, speaks_api=False),
)
