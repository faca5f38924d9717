"""Part of a check: what agents hold against the truth, and labels; and what a reconciliation does about them.

An agent's entry is INVALID, or the truth, perhaps with NO-WRITE; ZERO may be older than the truth where the controller
knows that it may be (design: 2, 4). Entries are read while they change: what does not fit is read again, and a segment
that is changing is not judged.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Final

from channel.messages import GetEntries
from controller.core.agents import Agent, AgentTable, AttachState, TableState
from controller.core.cluster import Cluster
from controller.core.holdings import NOTHING, UNKNOWN
from controller.core.truth import Container, runs_of
from controller.store.audit import ERROR, WARNING
from mapping.entry import MAPPED, NO_WRITE, State, describe, has_location, state_of
from mapping.status import Status

if TYPE_CHECKING:
    from controller.core.checking import Check

WAIT_NS: Final = 2_000_000
AGAIN_NS: Final = 100_000_000
ENTRIES_PER_READ: Final = 16_384
ROUNDS: Final = 6
READS_PER_ROUND: Final = 64
ATTACH_PATIENCE_NS: Final = 15_000_000_000
Answer = tuple[int, Any]


# --- tables ----------------------------------------------------------------------------------------------------------


def check_agents(cluster: Cluster, check: Check) -> Iterator[int]:
    """Every table of every agent that may hold entries."""
    for agent in list(cluster.agents.values()):
        if not agent.mapper or agent.over:
            continue
        if not agent.admitted:
            check.missing("agent", f"agent {agent.name} is not connected: what it holds is unknown until it is fenced")
            continue
        for table in list(agent.tables.values()):
            yield from _TableCheck(cluster, check, table).run()


class _TableCheck:
    """One table."""

    def __init__(self, cluster: Cluster, check: Check, table: AgentTable) -> None:
        self._cluster = cluster
        self._check = check
        self._table = table
        self._name = f"agent {table.agent.name}, vdisk {table.vdisk.name}"

    def run(self) -> Iterator[int]:
        """Read all of it, and again what does not fit."""
        table = self._table
        if table.state is not TableState.CREATED:
            if table.present:
                self._check.missing("agent", f"{self._name}: its table is {table.state.value}, and was not read")
            return
        suspects: list[int] = []
        for start in range(0, table.vdisk.segment_count, ENTRIES_PER_READ):
            count = min(ENTRIES_PER_READ, table.vdisk.segment_count - start)
            entries = yield from self._read(start, count)
            if entries is None:
                return
            suspects += self._misfits(start, entries)
        self._check.count("agent_entries", table.vdisk.segment_count)
        for _ in range(ROUNDS):
            if not suspects:
                return
            yield AGAIN_NS
            again = yield from self._read_again(suspects)
            if again is None:
                return
            suspects = again
        yield from self._settle(suspects)

    def _read(self, start: int, count: int) -> Generator[int, None, array[int] | None]:
        """The agent's entries; None if it does not say."""
        table, answers = self._table, list[Answer]()
        if not table.agent.admitted or table.state is not TableState.CREATED:
            self._check.missing("agent", f"{self._name}: the table went away while it was read")
            return None
        self._cluster.commands.order(
            table.agent,
            lambda: (GetEntries(start, count), table.table_id, False),
            lambda status, response, now: answers.append((status, response)),
            self._check.now_ns,
            once=True,
        )
        while not answers:
            yield WAIT_NS
        status, response = answers[0]
        if response is None or status != Status.OK:
            why = Status(status).name if response is not None else "its session ended"
            self._check.missing("agent", f"{self._name}: the table was not read: {why}")
            return None
        return array("Q", response.entries)

    def _read_again(self, suspects: list[int]) -> Generator[int, None, list[int] | None]:
        """Which of them still do not fit; None if the agent does not say any more."""
        kept: list[int] = []
        for number, (start, count) in enumerate(runs_of(suspects)):
            if number >= READS_PER_ROUND:
                kept += [segment for segment in suspects if segment >= start]
                break
            entries = yield from self._read(start, count)
            if entries is None:
                return None
            kept += self._misfits(start, entries)
        return kept

    def _misfits(self, start: int, entries: array[int]) -> list[int]:
        """Segments whose entry is neither INVALID nor the truth."""
        if not entries.tobytes().strip(b"\0"):
            return []
        return [start + index for index, entry in enumerate(entries) if entry and self._misfit(start + index, entry)]

    def _misfit(self, segment: int, entry: int) -> str:
        """Why an entry must not be there; an empty text if it may."""
        table = self._table
        if not entry & MAPPED or segment in table.vdisk.changing:
            return ""
        truth, holds = table.vdisk.entry(segment), table.holdings.get(segment)
        if has_location(entry) and has_location(truth):
            fits = entry | NO_WRITE == truth | NO_WRITE and (entry & NO_WRITE or not truth & NO_WRITE)
        else:
            fits = state_of(entry) == state_of(truth)
            fits = fits or (state_of(entry) is State.ZERO and has_location(truth) and holds == UNKNOWN)
        where = f"{self._name} segment {segment}"
        if not fits:
            return f"{where} is {describe(entry)} at the agent, {describe(truth)} in truth"
        if holds == NOTHING:
            return f"{where} is {describe(entry)} at the agent, which is not known to hold it"
        return ""

    def _settle(self, suspects: list[int]) -> Iterator[int]:
        """They do not fit: say so, or take them away."""
        check, vdisk = self._check, self._table.vdisk
        if not check.discard:
            hint = "; `segmap check --reconcile --discard` takes it away" if self._cluster.frozen else ""
            entries = {}
            for start, count in runs_of(suspects)[:READS_PER_ROUND]:
                read = yield from self._read(start, count)
                if read is None:
                    return
                entries.update({start + index: entry for index, entry in enumerate(read)})
            for segment in suspects:
                text = self._misfit(segment, entries.get(segment, 0))
                if text:
                    check.findings.add(ERROR, "agent", text + hint)
            return
        segments = [segment for segment in suspects if segment not in vdisk.changing]
        change = self._cluster.changes.begin(vdisk, segments, "what the restored store does not know is taken away")
        over: list[int] = []
        self._cluster.changes.invalidate(change, [self._table], check.now_ns, over.append, NOTHING)
        while not over:
            yield WAIT_NS
        self._cluster.changes.finish(change, check.now_ns)
        check.count("discarded_entries", len(segments))
        check.findings.add(WARNING, "agent", f"{self._name}: {len(segments)} entries were taken away")


# --- labels ----------------------------------------------------------------------------------------------------------


def check_labels(cluster: Cluster, check: Check) -> Iterator[int]:
    """Every container's label has been verified by an agent in this reign: it was attached."""
    for container in [one for one in cluster.containers.values() if one.ready]:
        agent = yield from _attached(cluster, check, container)
        check.count("labels", int(agent is not None))
        if agent is not None:
            continue
        details = [
            f"{one.name}: {one.attachments[container.slot].detail}"
            for one in cluster.agents.values()
            if container.slot in one.attachments and one.attachments[container.slot].state is AttachState.FAILED
        ]
        mismatch = any(Status.LABEL_MISMATCH.name in detail for detail in details)
        text = f"container {container.name}: its label was not read: {'; '.join(details) or 'no agent has attached it'}"
        check.incomplete = True
        check.findings.add(ERROR if mismatch else WARNING, "label", text)


def _attached(cluster: Cluster, check: Check, container: Container) -> Generator[int, None, Agent | None]:
    """An agent that has it attached. A reconciliation has one attach it, and waits a while."""
    end_ns = check.now_ns + (ATTACH_PATIENCE_NS if check.reconcile else 0)
    asked = False
    while True:
        for agent in cluster.agents.values():
            attachment = agent.attachments.get(container.slot)
            if agent.admitted and attachment is not None and attachment.state is AttachState.ATTACHED:
                return agent
        agents = cluster.agents.values()
        mappers = [agent for agent in agents if agent.admitted and agent.mapper and not agent.draining]
        if check.now_ns >= end_ns or not mappers:
            return None
        if not asked:
            asked = True
            cluster.bringup.want(mappers[0], container.slot, check.now_ns)
        yield AGAIN_NS


def renew_labels(cluster: Cluster, check: Check) -> Iterator[int]:
    """Write the store's generation into labels of older ones: then an older store is noticed when it attaches them."""
    for container in [one for one in cluster.containers.values() if one.ready]:
        if container.generation >= cluster.generation:
            continue
        agent = yield from _attached(cluster, check, container)
        if agent is None:
            check.missing(
                "label", f"container {container.name}: its label could not be renewed: nobody has it attached"
            )
            continue
        status, response = yield from _renewed(cluster, check, agent, container)
        if response is None or status not in (Status.OK, Status.EXISTS):
            why = f"{Status(status).name} {response.detail if response is not None else ''}".strip()
            check.missing("label", f"container {container.name}: its label could not be renewed: {why}")
            continue
        container.generation = cluster.generation
        cluster.journal.put("container", str(container.slot), container.record())
        check.count("labels_renewed", 1)


def _renewed(cluster: Cluster, check: Check, agent: Agent, container: Container) -> Generator[int, None, Answer]:
    """The agent's answer to the order."""
    answers: list[Answer] = []
    cluster.bringup.renew_label(
        agent, container, lambda status, response, now: answers.append((status, response)), check.now_ns
    )
    while not answers:
        yield WAIT_NS
    return answers[0]
