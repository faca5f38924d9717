"""`segmap target`: one process that serves JSON-RPC, NVMe/TCP and, if asked, the data plane's socket."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dataplane.embedded.rpc_server import RpcServer
from dataplane.embedded.target import Target

SWITCH_INTERVAL_S: Final = 0.0005
GC_THRESHOLD: Final = (50_000, 20, 20)
_log = logging.getLogger("segmap.target")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `segmap target`."""
    parser.add_argument("--rpc-socket", required=True, type=Path, metavar="PATH", help="Unix socket for JSON-RPC")
    parser.add_argument("--dataplane-socket", type=Path, metavar="PATH", help="Unix socket for the agent's daemon")
    parser.add_argument("--name", default="target", help="name in the log")
    parser.add_argument("--wait-for-rpc", action="store_true", help="begin only when framework_start_init is called")
    parser.add_argument("--verbose", action="store_true", help="log more")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM, SIGINT or spdk_kill_instance. 0, or 1 if a socket cannot be opened."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if args.verbose else logging.INFO,
        format=f"%(asctime)s {args.name} %(levelname)s %(message)s",
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLD)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_serve(args))


async def _serve(args: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    target = Target(loop, wait_for_rpc=args.wait_for_rpc, stop=stopped.set)
    server = RpcServer(target, target.methods)
    try:
        if args.dataplane_socket is not None:
            await target.listen_dataplane(args.dataplane_socket)
        await server.listen(args.rpc_socket)
    except OSError as error:
        where = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        print(f"segmap target: {where}", file=sys.stderr)
        await target.close()
        return 1
    _log.info("serving JSON-RPC at %s", args.rpc_socket)
    gc.freeze()
    await stopped.wait()
    _log.info("ending")
    await server.close()
    await target.close()
    return 0
