"""Histories that failed once: always run again. Each is (seed, simulated seconds, workload), with what it had found."""

from __future__ import annotations

from typing import Final

ONCE_FAILED: Final[tuple[tuple[int, float, str], ...]] = (
    (3, 60, "dense"),  # a folded store gave back more segments than a container has
    (11, 60, "storm"),  # an exporter that an operator had fenced never came back
    (3008, 120, "dense"),  # a flush succeeded where a container with unflushed data was not attached: lost silently
    (16, 60, "storm"),  # the same, seen as the flush succeeds
    (2033, 90, "dense"),  # of two reclaims that had been given up, the second that waited stood for the first
)
