"""How long container I/O takes: counts in buckets that double, as bdev_segmap_get_stats shows them.

Bucket 0 counts what took less than a microsecond, each other one what took less than twice as long as the bucket
before it allows, the last one all the rest. The bdev module in C has the same buckets.
"""

from __future__ import annotations

from typing import Final

BUCKETS: Final = 24
_US_NS: Final = 1000


class LatencyHistogram:
    """`counts`: one number for each bucket."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS

    def note(self, duration_ns: int) -> None:
        """One I/O has taken so long."""
        self.counts[bucket_of(duration_ns)] += 1


def bucket_of(duration_ns: int) -> int:
    """Where an I/O of this duration is counted."""
    return min((duration_ns // _US_NS).bit_length(), BUCKETS - 1)
