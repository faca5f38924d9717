"""Deliberately broken variants: each takes away one rule of the design, and the simulation has to notice.

A mutant is a name, what it does wrong, and the replacement of one method; `applied` puts it in place for a while. A
mutant that survives its seeds means that a checker or a failure is missing.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from controller.core.admission import Admission
from controller.core.agents import Standing
from controller.core.bringup import BringUp
from controller.core.changes import Changes
from controller.core.cluster import Cluster
from controller.core.commands import Commands
from controller.core.effects import BatchCommitted, Persist
from controller.core.faults import Faults, _Slower
from controller.core.fencing import Fencing
from controller.core.holdings import NOTHING
from controller.core.machine import Controller
from controller.core.operations import Operations
from controller.core.zeroing import Zeroing
from controller.store.records import SegmentState
from mapping.effects import BarrierReached, Complete
from mapping.engine import Engine
from mapping.entry import MAPPED, NO_WRITE, ZERO, ZERO_ENTRY
from mapping.generations import Generations
from mapping.lease import Lease
from mapping.plane import SESSIONS_MAX, Plane, numbered
from mapping.rules import Operation
from mapping.status import Status
from spdk_rpc import exports
from spdk_rpc.converge import read_subsystem
from spdk_rpc.methods import nvmf
from tests.sim.dataplane import DataPlane
from tests.sim.world import World

Wrong = Callable[..., Any]


@dataclass(frozen=True)
class Mutant:
    """`make(right)` gives the wrong function for `owner.attribute`. `seed`: the first to try.

    Most break soon in a storm; those that need peace at other times, so that nothing else covers them, have hours;
    those that hurt only in one history that is rare by itself have failures aimed at it.
    """

    name: str
    what: str
    owner: Any
    attribute: str
    make: Callable[[Wrong], Wrong]
    seed: int = 1
    workload: str = "storm"
    seconds: float = 60.0


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """While this lasts, the code is broken."""
    right = getattr(mutant.owner, mutant.attribute)
    setattr(mutant.owner, mutant.attribute, mutant.make(right))
    try:
        yield
    finally:
        setattr(mutant.owner, mutant.attribute, right)


# --- controller ------------------------------------------------------------------------------------------------------


def _reply_before_commit(right: Wrong) -> Wrong:
    def step(self: Controller, event: Any, now_ns: int) -> list[Any]:
        if isinstance(event, BatchCommitted):
            return (
                right(self, BatchCommitted(event.token), now_ns)
                if event.token in self.cluster.journal.in_flight
                else []
            )
        effects = right(self, event, now_ns)
        for effect in [effect for effect in effects if isinstance(effect, Persist)]:
            effects += right(self, BatchCommitted(effect.token), now_ns)
        return effects

    return step


def _no_barrier(right: Wrong) -> Wrong:
    def invalidate(self: Any, change: Any, tables: Any, now_ns: int, then: Any, least: int = 1) -> None:
        then(now_ns)

    return invalidate


def _barrier_of_one(right: Wrong) -> Wrong:
    def invalidate(self: Any, change: Any, tables: Any, now_ns: int, then: Any, least: int = 1) -> None:
        right(self, change, list(tables)[:1], now_ns, then, least)

    return invalidate


def _admit_without_fence(right: Wrong) -> Wrong:
    def consider(self: Any, agent: Any, now_ns: int) -> None:
        hello = agent.hello
        if hello and not agent.admitting and hello.instance != agent.instance and agent.standing is Standing.ALIVE:
            self._admit(agent, hello, now_ns)
        else:
            right(self, agent, now_ns)

    return consider


def _forget_holdings(right: Wrong) -> Wrong:
    def load(self: Any, key: str, record: Any) -> None:
        right(self, key, record)
        vdisk, agent = map(int, key.split(":"))
        self.vdisks[vdisk].tables[agent].holdings.reset(NOTHING)

    return load


def _reuse_unzeroed(right: Wrong) -> Wrong:
    def freed(self: Any, runs: Any, now_ns: int) -> None:
        for slot, start, count in runs:
            self._cluster.image.fill_segments(slot, start, count, SegmentState.ZEROED)
            self._cluster.allocator.spaces[slot].zeroed.give(start, count)

    return freed


def _free_before_barrier(right: Wrong) -> Wrong:
    def reclaim(self: Any, group: Any, now_ns: int) -> None:
        cluster, vdisk = self._cluster, group.change.vdisk
        wanted = cluster.changes.invalidate
        entries = [vdisk.entry(segment) for segment in group.segments]
        for segment, entry in zip(group.segments, entries, strict=True):
            cluster.journal.records.entry_run(vdisk.number, segment, 1, ZERO_ENTRY)
            cluster.journal.records.segment_run(entry >> 4 & 4095, entry >> 16, 1, SegmentState.FREE)

        def committed(now_ns: int) -> None:
            for segment, entry in zip(group.segments, entries, strict=True):
                cluster.image.fill_entries(vdisk.number, segment, 1, ZERO_ENTRY)
                cluster.zeroing.freed([(entry >> 4 & 4095, entry >> 16, 1)], now_ns)
            tables = list(vdisk.sharing)
            wanted(group.change, tables, now_ns, lambda now: cluster.changes.finish(group.change, now), NOTHING)

        cluster.journal.then(committed)

    return reclaim


def _quarantine_ignored(right: Wrong) -> Wrong:
    def set_aside(self: Any, job: Any, state: str) -> None:
        self._release(job, SegmentState.FREE, 0)

    return set_aside


def _zero_status_ignored(right: Wrong) -> Wrong:
    def done(self: Any, job: Any, status: int, response: Any, now_ns: int) -> None:
        if job.id in self._jobs:
            self._release(job, SegmentState.ZEROED, now_ns)

    return done


def _given_to_two(right: Wrong) -> Wrong:
    return lambda self, others, segment: False


def _replay_allocates(right: Wrong) -> Wrong:
    def decide(self: Any, fault: Any, seen: int, truth: int, now_ns: int) -> None:
        if seen & ZERO:
            self._allocate_shared(fault, now_ns)
        else:
            right(self, fault, seen, truth, now_ns)

    return decide


def _writable_beside_old(right: Wrong) -> Wrong:
    return lambda self, entries, positions: None


def _unmap_wins(right: Wrong) -> Wrong:
    return lambda self, group: list(group.segments)


def _deny_not_sent(right: Wrong) -> Wrong:
    def deny(self: Any, agent: Any, allow: Any, now_ns: int) -> None:
        self.denied(allow)
        self.proceed(agent, now_ns)

    return deny


def _fence_before_lease_ends(right: Wrong) -> Wrong:
    def proceed(self: Any, agent: Any, now_ns: int) -> None:
        agent.lease_until_ns = now_ns
        right(self, agent, now_ns)

    return proceed


def _lost_command_is_done(right: Wrong) -> Wrong:
    def session_ended(self: Any, agent: Any, now_ns: int) -> None:
        for command in list(agent.sent.values()):
            if command.table is not None:
                del agent.sent[command.attempt]
                command.done(Status.OK, None, now_ns)
        right(self, agent, now_ns)

    return session_ended


def _lossy_store(right: Wrong) -> Wrong:
    """What is told to be durable is written only when three more batches are; a crash loses it."""

    def commit_one(self: World, tell: bool) -> None:
        batch = self.commits.popleft()
        late: deque[Any] = self.__dict__.setdefault("late", deque())
        if late and late[0][0] != self.reign:
            late.clear()
        late.append((self.reign, batch))
        self._durable(batch)
        if len(late) > 3 and self.store is not None:
            self.store.commit([late.popleft()[1]], self.store.term)
        if tell:
            self.step(BatchCommitted(batch.id))

    return commit_one


def _torn_commit(right: Wrong) -> Wrong:
    """Of a batch that a crash cuts short, the map records are durable, the rest is not."""

    def commit_one(self: World, tell: bool) -> None:
        if not tell:
            self.commits[0] = replace(self.commits[0], puts=(), deletes=(), jobs=(), jobs_removed=())
        right(self, tell)

    return commit_one


# --- data plane ------------------------------------------------------------------------------------------------------


def _lease_from_arrival(right: Wrong) -> Wrong:
    return lambda self, sent_ns, duration_ns, now_ns: right(self, now_ns, duration_ns, now_ns)


def _late_grant_taken(right: Wrong) -> Wrong:
    def grant(self: Any, stamp: Any, sent_ns: int, duration_ns: int, now_ns: int) -> Any:
        if self.check(stamp, now_ns) is Status.OK and sent_ns + duration_ns <= now_ns:
            sent_ns = now_ns
        return right(self, stamp, sent_ns, duration_ns, now_ns)

    return grant


def _lease_never_ends(right: Wrong) -> Wrong:
    def grant(self: Any, sent_ns: int, duration_ns: int, now_ns: int) -> Any:
        status = right(self, sent_ns, duration_ns, now_ns)
        self.deadline_ns = 1 << 62
        return status

    return grant


def _no_wipe(right: Wrong) -> Wrong:
    def lease_expired(self: Any, now_ns: int) -> Any:
        kept = self.table.get(0, self.table.segment_count)
        effects = right(self, now_ns)
        self.table.set(0, kept)
        return effects

    return lease_expired


def _no_sequence(right: Wrong) -> Wrong:
    def in_sequence(self: Any, stamp: Any, table_id: int, now_ns: int, apply: Any) -> Any:
        engine = self.tables.get(table_id)
        if engine is not None:
            newest = engine.sequence
            stamp = stamp._replace(sequence=newest + 1)
        return right(self, stamp, table_id, now_ns, apply)

    return in_sequence


def _unchecked(field: str) -> Callable[[Wrong], Wrong]:
    """Whatever is of an earlier term, epoch or incarnation is of an earlier session, too: that is not checked then."""

    def make(right: Wrong) -> Wrong:
        def check(self: Plane, stamp: Any, now_ns: int) -> Status:
            epoch = self.lease.epoch if field == "epoch" else stamp.epoch & SESSIONS_MAX
            stamp = stamp._replace(epoch=numbered(epoch, self.session))
            if field in ("term", "incarnation"):
                stamp = stamp._replace(**{field: getattr(self, field)})
            return right(self, stamp, now_ns)  # type: ignore[no-any-return]

        return check

    return make


def _misplaced(right: Wrong) -> Wrong:
    """A location that comes alone is stored one segment further."""

    def store(self: Any, start: int, count: int, entries: Any) -> None:
        alone = count == 1 and len(entries) == 1 and entries[0] & MAPPED and not entries[0] & ZERO
        right(self, (start + 1) % self.table.segment_count if alone else start, count, entries)

    return store


def _no_wait_for_begun(right: Wrong) -> Wrong:
    return lambda self, token, deadline_ns: [BarrierReached(token, Status.OK)]


def _success_after_expiry(right: Wrong) -> Wrong:
    def complete(self: Any, part: Any, status: Status, now_ns: int, settled: bool = True) -> Any:
        return [Complete(part, status), *(self.settle(part) if settled else [])]

    return complete


def _dropped_yet_parked(right: Wrong) -> Wrong:
    def drop(self: Any, doomed: Any, status: Status) -> Any:
        found = [part for part in self.parked() if doomed(part)]
        for part in found:
            part.parked_ns = 1 << 62
        return [Complete(part, status) for part in found]

    return drop


def _no_write_ignored(right: Wrong) -> Wrong:
    def store(self: Any, start: int, count: int, entries: Any) -> None:
        right(self, start, count, array("Q", [e & ~NO_WRITE if e & MAPPED else e for e in entries]))

    return store


def _old_entry_kept(right: Wrong) -> Wrong:
    """INVALID of a segment that has parked I/O is taken for done without being stored."""

    def store(self: Any, start: int, count: int, entries: Any) -> None:
        if len(entries) == 1 and not entries[0] & MAPPED and any(self._faults_in(start, count)):
            return
        right(self, start, count, entries)

    return store


# --- agent and data plane around its core ----------------------------------------------------------------------------


def _deny_unconfirmed(right: Wrong) -> Wrong:
    def deny_round(nqn: str, hostnqn: str) -> Any:
        seen = yield from read_subsystem(nqn)
        if seen is not None and hostnqn in seen.hosts:
            yield nvmf.subsystem_remove_host(nqn, hostnqn)
        return exports.FENCED

    return deny_round


def _loss_not_told(right: Wrong) -> Wrong:
    return lambda self, slot: 0


def _absent_not_told(right: Wrong) -> Wrong:
    """Tables list what is attached, and nothing else."""

    def settled(self: Any, table: Any, now_ns: int) -> Any:
        listing = right(self, table, now_ns)
        return listing and listing._replace(absent=frozenset())

    return settled


def _flush_nothing(right: Wrong) -> Wrong:
    return lambda self, container: True


def _flush_without_writes(right: Wrong) -> Wrong:
    """A write to one path's container is not remembered as unflushed, so a loss is never seen by that disk."""

    def forward(self: Any, part: Any) -> None:
        right(self, part)
        if part.operation is not Operation.FLUSH:
            self.unflushed.get(part.io.engine.table_id, {}).clear()

    return forward


PEACE: Final[dict[str, Any]] = {"workload": "sparse", "seconds": 7200.0}
AIM: Final[dict[str, Any]] = {"workload": "aimed", "seconds": 120.0}
MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "reply-before-commit", "answers faults before the store has committed", Controller, "step", _reply_before_commit
    ),
    Mutant("no-barrier", "makes a location writable without asking the others", Changes, "invalidate", _no_barrier),
    Mutant("barrier-of-one", "asks only the first of the other agents", Changes, "invalidate", _barrier_of_one),
    Mutant(
        "admit-without-fence",
        "admits a new data plane beside the old one",
        Admission,
        "_consider",
        _admit_without_fence,
        **AIM,
    ),
    Mutant(
        "forget-holdings",
        "a restarted controller presumes that nobody holds anything",
        Cluster,
        "_load_presentation",
        _forget_holdings,
    ),
    Mutant("reuse-unzeroed", "gives out freed segments as they are", Zeroing, "freed", _reuse_unzeroed),
    Mutant(
        "free-before-barrier",
        "frees a reclaimed location before the agents have let go",
        _Slower,
        "_reclaim",
        _free_before_barrier,
    ),
    Mutant(
        "quarantine-ignored", "frees segments whose zeroing nobody saw end", Zeroing, "_set_aside", _quarantine_ignored
    ),
    Mutant("zero-status-ignored", "takes any answer to a zeroing for success", Zeroing, "_done", _zero_status_ignored),
    Mutant("zero-given-to-two", "ZERO becomes a location, others go on reading ZERO", Faults, "_held", _given_to_two),
    Mutant(
        "replay-allocates",
        "a write fault that comes twice allocates twice",
        _Slower,
        "_decide_write",
        _replay_allocates,
    ),
    Mutant(
        "writable-beside-old",
        "gives a location writable while another may hold an older one",
        Faults,
        "_protect",
        _writable_beside_old,
    ),
    Mutant(
        "unmap-wins", "carries out a reclaim that its host has given up", _Slower, "_still_wanted", _unmap_wins, **AIM
    ),
    Mutant(
        "deny-not-sent", "takes a host for fenced without telling the exporter", Fencing, "_deny", _deny_not_sent, **AIM
    ),
    Mutant(
        "fence-before-lease-ends",
        "fences without waiting for the lease",
        Fencing,
        "proceed",
        _fence_before_lease_ends,
        **AIM,
    ),
    Mutant(
        "lost-command-is-done",
        "takes commands of an ended session for answered",
        Commands,
        "session_ended",
        _lost_command_is_done,
    ),
    Mutant(
        "request-forgotten",
        "carries out an operator's request a second time",
        Operations,
        "_repeated",
        lambda right: lambda self, request: False,
    ),
    Mutant("torn-commit", "half of a commit is durable after a crash", World, "commit_one", _torn_commit),
    Mutant("lossy-store", "says that a commit is durable long before it is", World, "commit_one", _lossy_store),
    Mutant(
        "lease-from-arrival", "counts the lease from the grant's arrival", Lease, "grant", _lease_from_arrival, **AIM
    ),
    Mutant(
        "late-grant-taken", "takes a grant that comes after its own end", Plane, "grant_lease", _late_grant_taken, **AIM
    ),
    Mutant("lease-never-ends", "goes on for ever on one grant", Lease, "grant", _lease_never_ends),
    Mutant("no-wipe", "keeps its entries over an expiry", Engine, "lease_expired", _no_wipe, **PEACE),
    Mutant("no-sequence-check", "applies entries in any order, and twice", Plane, "_in_sequence", _no_sequence),
    Mutant("no-epoch-check", "applies entries of an earlier epoch", Plane, "check", _unchecked("epoch")),
    Mutant("no-term-check", "applies entries of an earlier term", Plane, "check", _unchecked("term")),
    Mutant("no-session-check", "takes messages of an earlier session", Plane, "check", _unchecked("session")),
    Mutant("entry-misplaced", "stores an entry in its neighbour's place", Engine, "_store", _misplaced),
    Mutant(
        "no-incarnation-check",
        "applies entries meant for an earlier data plane",
        Plane,
        "check",
        _unchecked("incarnation"),
    ),
    Mutant(
        "no-wait-for-begun",
        "answers INVALID while old I/O is under way",
        Generations,
        "barrier",
        _no_wait_for_begun,
        **AIM,
    ),
    Mutant(
        "success-after-expiry",
        "reports success of I/O that outlived its lease",
        Engine,
        "complete",
        _success_after_expiry,
    ),
    Mutant(
        "dropped-yet-parked",
        "executes parked I/O that its host was told is dropped",
        Engine,
        "_drop",
        _dropped_yet_parked,
    ),
    Mutant("no-write-ignored", "drops NO-WRITE from entries", Engine, "_store", _no_write_ignored),
    Mutant("old-entry-kept", "skips INVALID where I/O is parked", Engine, "_store", _old_entry_kept, **AIM),
    Mutant(
        "deny-unconfirmed",
        "denied is taken for gone, queue pairs or not",
        exports,
        "_deny_round",
        _deny_unconfirmed,
        **AIM,
    ),
    Mutant("loss-not-told", "flushes succeed after a cache was lost", DataPlane, "_losses", _loss_not_told, **PEACE),
    Mutant("flush-nothing", "flushes end before they are done", DataPlane, "flush_container", _flush_nothing),
    Mutant(
        "absent-not-told",
        "flushes succeed where a container with data is not attached",
        BringUp,
        "_settled",
        _absent_not_told,
        seed=16,
    ),
    Mutant(
        "writes-not-remembered",
        "forgets which containers have unflushed writes",
        DataPlane,
        "_forward",
        _flush_without_writes,
        **PEACE,
    ),
)
