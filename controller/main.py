"""`segmap controller`: runs the shell, and the HTTP API if one is wanted, until SIGTERM or SIGINT.

SIGHUP loads the certificates again; without it that happens within seconds of a change of the files.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from typing import TYPE_CHECKING, Final

import uvloop

from controller.api.access import Access
from controller.config import ControllerConfig
from controller.shell import ControllerShell
from controller.store.interface import StoreError
from transport.connection import TransportError

if TYPE_CHECKING:
    from controller.api.server import ApiServer

GC_THRESHOLD: Final = (50_000, 20, 20)
_log: Final = logging.getLogger("segmap.controller")


async def serve(config: ControllerConfig) -> int:
    """Serve until told to stop. 0: told to; 1: another controller reigns."""
    shell = ControllerShell(config)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: shell.look_at_certificates(force=True))
    api: ApiServer | None = None
    try:
        await shell.start()
        gc.freeze()  # what was loaded stays: looking for garbage in it would only hold up faults
        gc.set_threshold(*GC_THRESHOLD)
        if config.api_socket is not None or config.api_listen is not None:
            access = Access(config.api_tokens)
            make_server = await asyncio.to_thread(_api_server)
            api = make_server(shell.call, config.api_socket, config.api_listen, access, shell.audit)
            await api.start()
        shell.failed.add_done_callback(lambda _: stopping.set())
        await stopping.wait()
        return 1 if shell.failed.done() else 0
    finally:
        if api is not None:
            await api.stop()
        await shell.stop()


def _api_server() -> type[ApiServer]:
    """The HTTP server takes long to import: agents that wait for their leases come first."""
    from controller.api.server import ApiServer

    return ApiServer


def run(config: ControllerConfig) -> int:
    """Blocking. Exit code 0, or 1 with the reason on stderr."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    _log.info("controller: opening the store %s", config.store_path)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(config))
    except (StoreError, TransportError, OSError) as error:
        print(f"segmap controller: {error}", file=sys.stderr)
        return 1
