"""Keeping zeroed segments ahead of demand (design: 1, 10).

A mapper agent zeroes and flushes; the segments are ZEROING in the store before it is told to, and ZEROED only in a
commit after its answer. If the outcome is unknown they are QUARANTINED: a late zero must not land on somebody's data.
If only the session broke, the same incarnation is told to zero them once more: it does one job at a time, so its answer
says that the first has ended, too. After a failed I/O nothing says so before the incarnation is over; so as long as
zeroing fails, single segments are tried, and ever less often.
"""

from __future__ import annotations

from typing import Any, Final

from channel.messages import ZeroSegments
from channel.values import SegmentRun
from controller.core.agents import Agent, AttachState
from controller.core.allocator import Space
from controller.core.cluster import Cluster
from controller.store.interface import Job
from controller.store.records import SegmentState
from mapping.entry import pack
from mapping.status import Status

KIND: Final = "zero"
RUNNING: Final = "running"
INTERRUPTED: Final = "interrupted"
"""Nobody has answered: to be ordered again."""
QUARANTINED: Final = "quarantined"
"""Failed: to be forgotten when the incarnation is over."""
REST_DOUBLED_MAX: Final = 8
NOT_BEGUN: Final = frozenset(
    (
        Status.NO_CONTAINER,
        Status.STALE_TERM,
        Status.STALE_INCARNATION,
        Status.STALE_EPOCH,
        Status.NOT_ADMITTED,
        Status.BUSY,
        Status.LIMIT,
        Status.UNSUPPORTED,
        Status.BAD_MESSAGE,
    )
)
"""Refusals that say: no segment has been touched."""
Runs = list[tuple[int, int]]


class Zeroing:
    """At most one batch per container is under way: `running` is its job, by slot."""

    def __init__(self, cluster: Cluster, jobs: dict[int, Job]) -> None:
        self._cluster = cluster
        self._jobs: dict[int, Job] = {}
        self._running: dict[int, int] = {}
        self._failures: dict[int, int] = {}
        self._resting: set[int] = set()
        self._low = True
        self._next_job = max(jobs, default=0) + 1
        for job in jobs.values():
            if job.kind == KIND:
                self._jobs[job.id] = job

    @property
    def jobs(self) -> dict[int, Job]:
        """The jobs there are, by id. Do not change them."""
        return self._jobs

    @property
    def busy(self) -> bool:
        """True while segments are being zeroed."""
        return bool(self._running)

    def taken(self) -> None:
        """Zeroed segments were taken: look at the pool when the step is over."""
        self._low = True

    def settle(self, now_ns: int) -> None:
        """The step is over."""
        if self._low:
            self._low = False
            self.consider(now_ns)

    def resume(self, now_ns: int) -> None:
        """After a restart: nobody knows how far the zeroers got, so they are asked again, or have to end."""
        for job in list(self._jobs.values()):
            payload = _payload(job)
            agent = self._cluster.agents.get(payload["agent"])
            current = agent is not None and agent.incarnation == payload["incarnation"]
            if not current or agent is None or agent.standing.value == "fenced":
                self._release(job, SegmentState.FREE, now_ns)
            elif job.state == RUNNING:
                self._set_aside(job, INTERRUPTED)

    def consider(self, now_ns: int) -> None:
        """Go on with what was interrupted; begin a batch wherever the pool is low and there is something to zero."""
        if self._cluster.frozen or self._cluster.store_full:
            return
        for job in list(self._jobs.values()):
            if job.state == INTERRUPTED:
                self._repeat(job, now_ns)
        for slot, space in self._cluster.allocator.spaces.items():
            low = space.zeroed.total < self._cluster.limits.zeroed_pool_segments
            if low and space.free.total and slot not in self._running and slot not in self._resting:
                agent = self._zeroer(slot, now_ns)
                if agent is not None:
                    self._begin(agent, space, now_ns)

    def _zeroer(self, slot: int, now_ns: int) -> Agent | None:
        """A leased agent that has the container; failing that, ask one to attach it."""
        agents = self._cluster.agents.values()
        mappers = [agent for agent in agents if agent.admitted and agent.mapper and not agent.draining]
        for agent in mappers:
            if self._able(agent, slot):
                return agent
        if mappers and not any(slot in agent.attachments for agent in mappers):
            self._cluster.bringup.want(mappers[0], slot, now_ns)
        return None

    def _able(self, agent: Agent, slot: int) -> bool:
        attachment = agent.attachments.get(slot)
        leased = agent.admitted and agent.granted
        return leased and attachment is not None and attachment.state is AttachState.ATTACHED

    def _repeat(self, job: Job, now_ns: int) -> None:
        """Order it again from the incarnation that may still be at it."""
        payload = _payload(job)
        slot, agent = payload["slot"], self._cluster.agents[payload["agent"]]
        if slot in self._running or slot in self._resting or agent.incarnation != payload["incarnation"]:
            return
        if self._able(agent, slot):
            self._running[slot] = job.id
            self._send(agent, job, now_ns)
        elif agent.admitted and slot not in agent.attachments and slot in self._cluster.containers:
            self._cluster.bringup.want(agent, slot, now_ns)

    def _begin(self, agent: Agent, space: Space, now_ns: int) -> None:
        cluster, slot = self._cluster, space.slot
        runs: Runs = []
        left = 1 if slot in self._failures else cluster.limits.zero_batch_segments
        while left and (run := space.free.take(left)) is not None:
            runs.append(run)
            left -= run[1]
        job = Job(
            self._next_job,
            KIND,
            RUNNING,
            0,
            sum(count for _, count in runs),
            {"agent": agent.number, "incarnation": agent.incarnation, "slot": slot, "runs": runs},
        )
        self._next_job += 1
        self._jobs[job.id] = job
        self._running[slot] = job.id
        cluster.journal.job(job)
        self._mark(slot, runs, SegmentState.ZEROING)
        incarnation = agent.incarnation
        cluster.journal.then(lambda now: self._order(agent, incarnation, job, now))

    def _mark(self, slot: int, runs: Runs, state: SegmentState) -> None:
        for start, count in runs:
            self._cluster.journal.records.segment_run(slot, start, count, state)
            self._cluster.image.fill_segments(slot, start, count, state)

    def _order(self, agent: Agent, incarnation: int, job: Job, now_ns: int) -> None:
        if not agent.admitted or agent.incarnation != incarnation or not agent.granted:
            self._release(job, SegmentState.FREE, now_ns)
        else:
            self._send(agent, job, now_ns)

    def _send(self, agent: Agent, job: Job, now_ns: int) -> None:
        payload = _payload(job)
        runs = [SegmentRun(pack(payload["slot"], start), count) for start, count in payload["runs"]]
        self._cluster.commands.order(
            agent,
            lambda: (ZeroSegments(runs), 0, False),
            lambda status, response, now: self._done(job, status, response, now),
            now_ns,
            once=True,
        )

    def _done(self, job: Job, status: int, response: Any, now_ns: int) -> None:
        if job.id not in self._jobs:
            return
        slot, refused = _payload(job)["slot"], response is not None and status in NOT_BEGUN
        repeated = self._jobs[job.id].state == INTERRUPTED
        if response is not None and status == Status.OK:
            self._failures.pop(slot, None)
            self._release(job, SegmentState.ZEROED, now_ns)
        elif (refused and not repeated) or (response is None and status == Status.STALE_INCARNATION):
            self._rest(slot, now_ns)
            self._release(job, SegmentState.FREE, now_ns)
        elif refused or response is None or status == Status.LEASE_EXPIRED:
            self._rest(slot, now_ns)
            self._set_aside(job, INTERRUPTED)
        else:
            text = f"zeroing {job.total} segments of container slot {slot}: {Status(status).name} {response.detail}"
            self._cluster.log.add(now_ns, "warning", "zeroing", f"{text}; they are quarantined")
            self._failures[slot] = self._failures.get(slot, 0) + 1
            self._rest(slot, now_ns)
            self._set_aside(job, QUARANTINED)

    def _rest(self, slot: int, now_ns: int) -> None:
        """Do not try again at once."""

        def rested(now_ns: int) -> None:
            self._resting.discard(slot)
            self.consider(now_ns)

        if slot not in self._resting:
            self._resting.add(slot)
            doubled = min(self._failures.get(slot, 0), REST_DOUBLED_MAX)
            self._cluster.timers.at(now_ns + (self._cluster.timing.retry_ns << doubled), rested)

    def _set_aside(self, job: Job, state: str) -> None:
        """Its segments are QUARANTINED: whoever was told to zero them may still do so."""
        payload = _payload(job)
        self._no_longer_running(job)
        if self._jobs[job.id].state != state:
            self._jobs[job.id] = kept = Job(job.id, job.kind, state, job.progress, job.total, job.payload)
            self._cluster.journal.job(kept)
            self._mark(payload["slot"], payload["runs"], SegmentState.QUARANTINED)

    def quarantine(self) -> list[tuple[Job, str]]:
        """Jobs whose segments nobody may touch, and until when."""
        kept = []
        for job in self._jobs.values():
            agent = self._cluster.agents.get(_payload(job)["agent"])
            who = f"incarnation {_payload(job)['incarnation']} of agent {agent.name if agent is not None else '?'}"
            if job.state == QUARANTINED:
                kept.append((job, f"zeroing has failed, and may still be under way until {who} is over"))
            elif job.state == INTERRUPTED:
                kept.append((job, f"nobody knows how far zeroing got until {who} does it again, or is over"))
        return kept

    def owns_jobs(self, agent: Agent) -> bool:
        """True if any incarnation of the agent has segments to zero."""
        return any(_payload(job)["agent"] == agent.number for job in self._jobs.values())

    def held_by(self, agent: Agent, failed: bool = False) -> int:
        """How many segments the agent's incarnation may still be zeroing; `failed`: those which only a fence ends."""
        return sum(
            job.total
            for job in self._jobs.values()
            if (_payload(job)["agent"], _payload(job)["incarnation"]) == (agent.number, agent.incarnation)
            and (job.state == QUARANTINED or not failed)
        )

    def to_repeat(self, agent: Agent) -> list[int]:
        """The containers in which the agent's incarnation has to zero once more what was interrupted."""
        payloads = [_payload(job) for job in self._jobs.values() if job.state == INTERRUPTED]
        life = (agent.number, agent.incarnation)
        return [payload["slot"] for payload in payloads if (payload["agent"], payload["incarnation"]) == life]

    def _no_longer_running(self, job: Job) -> None:
        slot = _payload(job)["slot"]
        if self._running.get(slot) == job.id:
            del self._running[slot]

    def _release(self, job: Job, state: SegmentState, now_ns: int) -> None:
        """The job is over: its segments are ZEROED, or FREE as before."""
        payload, cluster = _payload(job), self._cluster
        slot, runs = payload["slot"], payload["runs"]
        self._jobs.pop(job.id, None)
        cluster.journal.remove_job(job.id)
        for start, count in runs:
            cluster.journal.records.segment_run(slot, start, count, state)

        def committed(now_ns: int) -> None:
            self._no_longer_running(job)
            owner = cluster.agents.get(payload["agent"])
            if owner is not None:
                cluster.draining.proceed(owner, now_ns)
            for start, count in runs:
                cluster.image.fill_segments(slot, start, count, state)
            space = cluster.allocator.spaces.get(slot)
            if space is not None:
                for start, count in runs:
                    (space.zeroed if state is SegmentState.ZEROED else space.free).give(start, count)
            if state is SegmentState.ZEROED:
                cluster.faults.space_found(now_ns)
            self._low = True

        cluster.journal.then(committed)

    def freed(self, runs: list[tuple[int, int, int]], now_ns: int) -> None:
        """Committed: these (slot, start, count) are FREE; they have to be zeroed before anybody gets them."""
        for slot, start, count in runs:
            self._cluster.image.fill_segments(slot, start, count, SegmentState.FREE)
            space = self._cluster.allocator.spaces.get(slot)
            if space is not None:
                space.free.give(start, count)
        self._low = True

    def incarnation_over(self, agent: int, incarnation: int, now_ns: int) -> None:
        """Fenced: what it was zeroing can be touched again."""
        for job in list(self._jobs.values()):
            payload = _payload(job)
            if payload["agent"] == agent and payload["incarnation"] == incarnation:
                self._release(job, SegmentState.FREE, now_ns)


def _payload(job: Job) -> dict[str, Any]:
    assert isinstance(job.payload, dict), "a job's payload is not a record"
    return job.payload
