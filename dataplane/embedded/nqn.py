"""The host NQNs of mapping agents."""

from __future__ import annotations

from typing import Final

AGENT_PREFIX: Final = "nqn.2026-11.io.segmap:agent:"


def is_agent(name: str) -> bool:
    """True for the host NQN of a mapping agent's incarnation: one process, with one controller in each subsystem."""
    return name.startswith(AGENT_PREFIX)
