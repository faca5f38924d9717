"""What is checked of the Promela model under docs/model: bounds that must hold, and broken variants that must not.

A case is a set of -D switches for spin. `quick` ones run in `make test`; all of them in `make test-long`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """`bounds`: how much may happen (docs/model/parameters.pml). `mutant`: what is broken, if anything."""

    bounds: dict[str, int]
    mutant: str = ""
    quick: bool = False
    progress: bool = False
    about: str = ""

    @property
    def name(self) -> str:
        bounds = ",".join(f"{key.lower()}={value}" for key, value in self.bounds.items())
        return "-".join(part for part in (self.mutant, "progress" if self.progress else "", bounds) if part)

    @property
    def switches(self) -> list[str]:
        """For spin's preprocessor."""
        switches = [f"-D{key}={value}" for key, value in self.bounds.items()]
        if self.mutant:
            switches.append(f"-D{self.mutant}")
        if self.progress:
            switches += ["-DPROGRESS", "-DCLOCK=1"]
        return switches


def _bounds(locations: int, writes: int, /, **more: int) -> dict[str, int]:
    return {"LOCATIONS": locations, "WRITES": writes, "EXPIRIES": 0, **more}


ONE_SIDED = {"READERS": 1, "WRITERS": 2}  # a host reads at one agent and another writes at the other

SAFE = [
    Case(_bounds(1, 1, EXPIRIES=1, LOSSES=1, RESTARTS=1, **ONE_SIDED), quick=True, about="partition and restart"),
    Case(_bounds(1, 1, EXPIRIES=1, CRASHES=1, **ONE_SIDED), about="a data plane dies"),
    Case(_bounds(1, 1, CRASHES=1, UNMAPS=1, **ONE_SIDED), quick=True, about="a dead data plane's late write"),
    Case(_bounds(1, 2, UNMAPS=1, ABORTS=1, READERS=1), quick=True, about="reclaim, zeroing, re-use"),
    Case(_bounds(2, 2, SNAPSHOTS=1, LOSSES=1, **ONE_SIDED), quick=True, about="copy-on-write, and a lost copier"),
    Case(_bounds(1, 2, EXPIRIES=1, UNMAPS=1, RESETS=1, READERS=0, WRITERS=1), quick=True, about="late I/O"),
    Case(_bounds(2, 2, EXPIRIES=1, SNAPSHOTS=1, **ONE_SIDED), about="copy-on-write and an expired lease"),
    Case(_bounds(1, 2, REPLAYS=1, LOSSES=1, READERS=1), quick=True, about="replays within a term"),
    Case(_bounds(1, 2, REPLAYS=1, RESTARTS=1, READERS=1), about="replays over a restart"),
    Case(_bounds(1, 2, REPLAYS=1, LOSSES=1, READERS=1, NUMBERED=0), about="a daemon that drops them"),
    Case(_bounds(1, 2, REPLAYS=1, RESTARTS=1, READERS=1, NUMBERED=0), about="the same over a restart"),
    Case(_bounds(1, 1, EXPIRIES=1, FENCES=1), about="a fence under a valid lease"),
    Case(_bounds(2, 2, UNMAPS=1), about="reclaim at both agents"),
    Case(_bounds(1, 2, EXPIRIES=1), about="writers at both agents and an expired lease"),
    Case(_bounds(1, 1, EXPIRIES=1, LOSSES=1, RESTARTS=1), about="partition and restart, seen from both agents"),
    Case(_bounds(1, 1, EXPIRIES=1, LOSSES=1, RESTARTS=1, CRASHES=1, **ONE_SIDED), about="and a data plane dies"),
    Case(_bounds(1, 2, UNMAPS=1, LOSSES=1, ABORTS=1, **ONE_SIDED), about="reclaim over a partition"),
    Case(_bounds(2, 2, EXPIRIES=1, SNAPSHOTS=1, CRASHES=1, **ONE_SIDED), about="copy-on-write; a data plane dies"),
    Case(_bounds(1, 2, EXPIRIES=1, UNMAPS=1, RESETS=1, LOSSES=1, **ONE_SIDED), about="late I/O and a lost session"),
]

PROGRESS = [
    Case(_bounds(1, 1, READS=1, EXPIRIES=1), progress=True),
    Case(_bounds(1, 1, READS=1, CRASHES=1), progress=True),
    Case(_bounds(1, 1, READS=1, LOSSES=1), quick=True, progress=True),
    Case(_bounds(1, 1, READS=1, FENCES=1), progress=True),
    Case(_bounds(1, 1, READS=1, RESTARTS=1), progress=True),
]

MUTANTS: list[Case] = [
    Case(_bounds(1, 2, UNMAPS=1), "M_SKIP_BARRIER", quick=True),
    Case(_bounds(1, 1), "M_REPLY_BEFORE_COMMIT", quick=True),
    Case(_bounds(1, 1), "M_WRITABLE_AT_ONCE", quick=True),
    Case(_bounds(1, 1, UNMAPS=1), "M_FREE_BEFORE_BARRIER"),
    Case(_bounds(1, 1, EXPIRIES=2, LOSSES=1, READERS=2, WRITERS=1), "M_LEASE_FROM_ARRIVAL", quick=True),
    Case(_bounds(1, 1, EXPIRIES=1, UNMAPS=1, LOSSES=1, READERS=2, WRITERS=1), "M_SKIP_FENCE", quick=True),
    Case(_bounds(1, 1, EXPIRIES=1, UNMAPS=1, LOSSES=1, READERS=2, WRITERS=1), "M_UNCONFIRMED_FENCE"),
    Case(_bounds(1, 1, FENCES=1, READERS=2, WRITERS=1), "M_FENCE_IGNORES_LEASE"),
    Case(_bounds(1, 1, UNMAPS=1, CRASHES=1), "M_ADMIT_BEFORE_FENCE", quick=True),
    Case(_bounds(1, 2, EXPIRIES=1, READERS=1), "M_NO_EPOCH", quick=True),
    Case(_bounds(1, 2, REPLAYS=1, RESTARTS=1, READERS=1, NUMBERED=0), "M_NO_TERM"),
    Case(_bounds(1, 2, REPLAYS=1, LOSSES=1, READERS=1), "M_NO_SESSION", quick=True, about="a daemon that is late"),
    Case(_bounds(1, 1, REPLAYS=1), "M_NO_SEQUENCE", quick=True),
    Case(_bounds(1, 1, RESTARTS=1), "M_RESTART_PRESUMES_NOTHING", quick=True),
    Case(_bounds(1, 1, RESTARTS=1), "M_RESTART_FORGETS_LEASES"),
    Case(_bounds(1, 2, UNMAPS=1), "M_REUSE_UNZEROED"),
    Case(_bounds(1, 2, UNMAPS=1, ABORTS=1, READERS=0), "M_RECLAIM_UNWANTED"),
    Case(_bounds(2, 2, SNAPSHOTS=1, LOSSES=1, READERS=0), "M_NO_QUARANTINE"),
    Case(_bounds(1, 2, EXPIRIES=1, UNMAPS=1, RESETS=1, READERS=0, WRITERS=1), "M_REPEAT_UNSETTLED"),
    Case(_bounds(1, 2, UNMAPS=1, RESETS=1, READERS=0), "M_UNSETTLED_FORGOTTEN"),
    Case(_bounds(2, 2), "M_ALLOCATE_BLINDLY"),
    Case(_bounds(2, 2, SNAPSHOTS=1, READERS=0), "M_SNAPSHOT_AT_ONCE"),
    Case(_bounds(2, 2, EXPIRIES=1, SNAPSHOTS=1), "M_FREE_ASKS_HOLDERS_ONLY"),
    Case(_bounds(1, 1, EXPIRIES=1), "M_COMPLETE_ANYWAY"),
    Case(_bounds(1, 1, READS=1, LOSSES=1), "M_FAULTS_NOT_SENT_AGAIN", progress=True),
    Case(_bounds(1, 1, READS=1, EXPIRIES=1), "M_COMMAND_NOT_SENT_AGAIN", progress=True),
]
