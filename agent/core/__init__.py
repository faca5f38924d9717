"""The agent daemon's core: pure decisions, `Agent.step(event, now_ns) -> effects`. No clock, no socket, no chance."""

from agent.core.machine import Agent, Phase

__all__ = ["Agent", "Phase"]
