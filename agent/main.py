"""`run(config)`: one agent daemon in this process, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import uvloop

from agent.config import AgentConfig, ConfigError
from agent.shell import AgentFailed, AgentShell
from agent.target_process import end_left_over

_log = logging.getLogger("segmap.agent")


def run(config: AgentConfig) -> int:
    """Blocks; 0 after a clean stop, 1 when the daemon cannot do its work (the reason is on stderr)."""
    logging.basicConfig(
        level=logging.DEBUG if config.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(config))
    except (AgentFailed, ConfigError, OSError) as error:
        _log.error("%s", error)
        return 1
    return 0


def stop_target(config: AgentConfig) -> bool:
    """End the target that an ended daemon left running; True if there was one."""
    with asyncio.Runner() as runner:
        return runner.run(end_left_over(config))


async def _run(config: AgentConfig) -> None:
    shell = AgentShell(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shell.stop)
    loop.add_signal_handler(signal.SIGHUP, shell.look_at_certificates)
    await shell.run()
