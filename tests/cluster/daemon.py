"""`python -m tests.cluster.daemon`: one daemon as a process of its own; its configuration comes pickled on stdin."""

from __future__ import annotations

import pickle
import sys

from agent.config import AgentConfig
from agent.main import run as run_agent
from controller.config import ControllerConfig
from controller.main import run as run_controller


def main() -> int:
    """Whatever the configuration is of."""
    config = pickle.loads(sys.stdin.buffer.read())
    if isinstance(config, AgentConfig):
        return run_agent(config)
    assert isinstance(config, ControllerConfig)
    return run_controller(config)


if __name__ == "__main__":
    sys.exit(main())
