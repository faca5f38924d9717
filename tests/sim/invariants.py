"""What must always hold (the design's list of twelve): how the simulation checks it, and which mutants break it.

`check` says where to look: functions of `checks` unless it names another module. A test holds the table against the
list of mutants: every invariant has one that breaks it, or says why none can be seen from here; every mutant is of one.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Invariant(NamedTuple):
    """`number` as in the design, 0: of parked I/O, which the design has among the faults."""

    number: int
    what: str
    check: str
    mutants: tuple[str, ...]


INVARIANTS: Final[tuple[Invariant, ...]] = (
    Invariant(
        0,
        "parked I/O that its host was told is dropped never executes",
        "hosts: a block's history is that of one register, and what was refused is never seen",
        ("dropped-yet-parked", "unmap-wins"),
    ),
    Invariant(
        1,
        "durable before visible",
        "_visible: an entry at an agent was committed; mapped anew: holds flushed zeroes; world: the store loads it",
        ("reply-before-commit", "lossy-store", "torn-commit"),
    ),
    Invariant(
        2,
        "a cache, never a source",
        "_visible; world.audit_tables: at rest every entry of an agent is the truth; landed: on its own segment",
        ("no-wipe", "entry-misplaced"),
    ),
    Invariant(
        3,
        "in order: term, incarnation, epoch, session, sequence",
        "machine.past_returns replays what is in sequence; then _visible, landed, zeroing",
        ("no-sequence-check", "no-epoch-check", "no-term-check", "no-incarnation-check", "no-session-check"),
    ),
    Invariant(
        4,
        "writable last",
        "_visible: while one agent may write a location, every other with a lease holds it or nothing",
        (
            "no-barrier",
            "barrier-of-one",
            "writable-beside-old",
            "zero-given-to-two",
            "no-write-ignored",
            "old-entry-kept",
            "lost-command-is-done",
        ),
    ),
    Invariant(
        5,
        "free last",
        "freed: not mapped, and nothing that could land is under way to it; landed: on its own segment",
        ("free-before-barrier", "no-wait-for-begun"),
    ),
    Invariant(
        6,
        "one change at a time; the same request twice changes once",
        "_Committed: no location is mapped twice; world.audit: every segment is accounted for; scenario: no refusal",
        ("replay-allocates", "request-forgotten"),
    ),
    Invariant(
        7,
        "the lease stops new I/O, and nothing succeeds after it",
        "_needs_lease, by the true time since the renewal was sent, at begin, success and zeroes",
        ("lease-from-arrival", "late-grant-taken", "lease-never-ends", "success-after-expiry"),
    ),
    Invariant(
        8,
        "a lease does not prove that old I/O has ended: a confirmed fence does",
        "freed, landed, _visible and zeroing, with data planes killed or stopped while I/O is on its way",
        ("admit-without-fence", "deny-not-sent", "deny-unconfirmed", "fence-before-lease-ends"),
    ),
    Invariant(
        9,
        "a restarted controller presumes that everybody lives and holds everything (there is one controller here: that"
        " none grants past its reign is not seen)",
        "_visible after restarts; deposed is a violation",
        ("forget-holdings",),
    ),
    Invariant(
        10,
        "no data of one tenant reaches another",
        "_Committed: mapped anew only if it holds flushed zeroes; zeroing: zeroes land on nobody's, nor on ZEROED ones;"
        " hosts: a read gives the block's own data",
        ("reuse-unzeroed", "zero-status-ignored", "quarantine-ignored"),
    ),
    Invariant(
        11,
        "containers are who they say",
        "landed: the container reached is the slot's; binding compares labels, but no container is exchanged here",
        (),
    ),
    Invariant(
        12,
        "a flush that could have lost something fails",
        "hosts: what an acknowledged flush covered is there after any loss of caches",
        ("loss-not-told", "flush-nothing", "writes-not-remembered", "absent-not-told"),
    ),
)


def invariant_of(mutant: str) -> int:
    """The number of the invariant that a mutant breaks."""
    return next(row.number for row in INVARIANTS if mutant in row.mutants)
