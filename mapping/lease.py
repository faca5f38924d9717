"""The lease: how long a data plane may begin I/O without hearing from the controller [0027].

One per data plane, shared by its engines. Expiry is sticky: it begins a new epoch, and only a grant of that epoch ends
it. Time is CLOCK_MONOTONIC of the data plane's machine, in nanoseconds, counted from when the renewal was *sent*.
"""

from mapping.status import Status


class Lease:
    """`valid`: I/O may begin while `now < deadline_ns`. `epoch` counts the expiries, from 1."""

    __slots__ = ("deadline_ns", "duration_max_ns", "epoch", "valid")

    def __init__(self, duration_max_ns: int = 60_000_000_000) -> None:
        self.valid = False
        self.deadline_ns = 0
        self.epoch = 1
        self.duration_max_ns = duration_max_ns

    def covers(self, now_ns: int) -> bool:
        """True if an I/O may begin, or may succeed, now."""
        return self.valid and now_ns < self.deadline_ns

    def grant(self, sent_ns: int, duration_ns: int, now_ns: int) -> Status:
        """Extend the lease to `sent_ns + duration_ns`. A grant never shortens it, and a late one is refused."""
        if sent_ns > now_ns or not 0 < duration_ns <= self.duration_max_ns:
            return Status.BAD_MESSAGE
        if sent_ns + duration_ns <= now_ns:
            return Status.LEASE_EXPIRED
        self.valid = True
        self.deadline_ns = max(self.deadline_ns, sent_ns + duration_ns)
        return Status.OK

    def expire(self) -> None:
        """The deadline has passed: a new epoch, without a lease."""
        self.valid = False
        self.deadline_ns = 0
        self.epoch += 1
