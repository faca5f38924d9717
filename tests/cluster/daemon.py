"""`python -m tests.cluster.daemon`: one daemon as a process of its own; its configuration comes pickled on stdin.

With $SEGMAP_MUTANT it is one of the simulation's deliberately broken variants (tests.sim.mutants), for tests of tests.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys

from agent.config import AgentConfig
from agent.main import run as run_agent
from controller.config import ControllerConfig
from controller.main import run as run_controller

MUTANT = "SEGMAP_MUTANT"


def main() -> int:
    """Whatever the configuration is of."""
    config = pickle.loads(sys.stdin.buffer.read())
    with broken(os.environ.get(MUTANT, "")):
        return run(config)


def broken(name: str) -> contextlib.AbstractContextManager[None]:
    """The code as it is, or with that mutant in place."""
    if not name:
        return contextlib.nullcontext()
    from tests.sim.mutants import MUTANTS, applied

    return applied(next(mutant for mutant in MUTANTS if mutant.name == name))


def run(config: AgentConfig | ControllerConfig) -> int:
    """Until it is ended."""
    if isinstance(config, AgentConfig):
        return run_agent(config)
    assert isinstance(config, ControllerConfig)
    return run_controller(config)


if __name__ == "__main__":
    sys.exit(main())
