"""What all parts of the core share: the truth, the agents, the journal, the timers and the effects of this step.

Parts reach each other only through here. Nothing in it decides anything about segments.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast
from uuid import UUID

from channel.messages import FaultAnswer
from channel.values import AnswerRecord, Header
from controller.config import Limits, Timing
from controller.core.agents import Agent, AgentTable, Command, Presentation, TableState
from controller.core.allocator import Allocator, Space
from controller.core.effects import Effect, Send
from controller.core.eventlog import EventLog
from controller.core.holdings import NOTHING
from controller.core.journal import Journal
from controller.core.timers import Timers
from controller.core.truth import Container, VDisk, segment_states
from controller.store.interface import JsonValue, StoreState, frozen

if TYPE_CHECKING:
    from controller.core.admission import Admission
    from controller.core.bringup import BringUp
    from controller.core.changes import Changes
    from controller.core.checking import Checking
    from controller.core.commands import Commands
    from controller.core.draining import Draining
    from controller.core.failed_containers import FailedContainers
    from controller.core.faults import Faults
    from controller.core.fencing import Fencing
    from controller.core.volumes import Volumes
    from controller.core.zeroing import Zeroing

FROZEN_ADVICE: Final = "{}, and nothing is allocated until `segmap check --reconcile` has compared agents and labels"
FAILED: Final = "container {} is failed: what lies in it reads as errors until it is restored"
ANSWERS_MAX: Final = 4096
ANSWER_ENTRIES_MAX: Final = 65536


class Allow:
    """A host NQN that an exporter lets in to one container: recorded before it is sent (design: fences).

    `inherited` from an earlier reign: the container may be attached already, whatever its exporter says now.
    """

    __slots__ = (
        "agent",
        "command",
        "confirmed",
        "exporter",
        "hostnqn",
        "incarnation",
        "inherited",
        "pending",
        "slot",
        "subnqn",
    )

    def __init__(self, subnqn: str, hostnqn: str, exporter: int, agent: int, incarnation: int, slot: int) -> None:
        self.subnqn = subnqn
        self.hostnqn = hostnqn
        self.exporter = exporter
        self.agent = agent
        self.incarnation = incarnation
        self.slot = slot
        self.confirmed = False
        self.inherited = False
        self.pending = False
        self.command: Command | None = None

    @property
    def key(self) -> str:
        return f"{self.agent}:{self.incarnation}:{self.subnqn}"

    def record(self) -> dict[str, JsonValue]:
        """What is persisted of it."""
        return {
            "subnqn": self.subnqn,
            "hostnqn": self.hostnqn,
            "exporter": self.exporter,
            "agent": self.agent,
            "incarnation": self.incarnation,
            "slot": self.slot,
        }


class Cluster:
    """State and services. The attributes declared without a value are set by the core, which makes the parts.

    `frozen` says why nothing may be allocated or zeroed: the store was restored (store/restore.py). Empty: it may.
    `store_full` says that commits wait for space: then nothing is begun that needs one, and what needs none goes on.
    """

    commands: Commands
    bringup: BringUp
    changes: Changes
    checking: Checking
    draining: Draining
    failures: FailedContainers
    faults: Faults
    fencing: Fencing
    volumes: Volumes
    zeroing: Zeroing
    admission: Admission

    def __init__(
        self, state: StoreState, timing: Timing, limits: Limits, make_uuid: Callable[[], UUID], now_ns: int
    ) -> None:
        self.timing = timing
        self.limits = limits
        self.make_uuid = make_uuid
        self.uuid = state.cluster
        self.term = state.term
        self.generation = state.generation
        self.sequence = state.sequence
        self.image = state.image
        self.objects = state.objects
        self.started_ns = now_ns
        self.deposed = False
        self.journal = Journal(state.term)
        self.timers = Timers()
        self.log = EventLog(limits.events_kept)
        self.allocator = Allocator(limits.extent_segments)
        self.effects: list[Effect] = []
        self.answered: list[AgentTable] = []
        self.agents: dict[int, Agent] = {}
        self.agents_by_name: dict[str, Agent] = {}
        self.sessions: dict[int, Agent] = {}
        self.containers: dict[int, Container] = {}
        self.failed_slots: set[int] = set()
        self.vdisks: dict[int, VDisk] = {}
        self.allows: dict[str, Allow] = {}
        self.incarnation_max = 0
        self.frozen = ""
        self.store_full = ""
        self.changed = False
        self.faults_received = 0
        self.faults_answered = 0
        self._load(state, now_ns)
        for container in self.containers.values():
            if container.failed:
                self.log.alarm(now_ns, "container", container.name, FAILED.format(container.name))
        if self.frozen:
            self.log.alarm(now_ns, "frozen", "store", FROZEN_ADVICE.format(self.frozen))

    # --- loading -----------------------------------------------------------------------------------------------------

    def _load(self, state: StoreState, now_ns: int) -> None:
        objects = state.objects
        self.frozen = frozen(state)
        incarnation = objects.get("counter", {}).get("incarnation")
        self.incarnation_max = incarnation if isinstance(incarnation, int) else 0
        for key, record in objects.get("container", {}).items():
            self.add_container(Container(int(key), _dict(record)))
        for key, record in objects.get("vdisk", {}).items():
            self.add_vdisk(VDisk(int(key), _dict(record), state.image.tables.setdefault(int(key), {})))
        for key, record in objects.get("agent", {}).items():
            agent = Agent.load(int(key), _dict(record))
            agent.lease_until_ns = now_ns + self.timing.surely_expired_ns
            self.add_agent(agent)
        for key, record in objects.get("presentation", {}).items():
            self._load_presentation(key, _dict(record))
        for record in objects.get("allow", {}).values():
            allow = Allow(**_dict(record))  # type: ignore[arg-type]
            allow.inherited = True
            self.allows[allow.key] = allow

    def _load_presentation(self, key: str, record: dict[str, object]) -> None:
        vdisk_number, agent_number = map(int, key.split(":"))
        vdisk, agent = self.vdisks[vdisk_number], self.agents[agent_number]
        presentation = Presentation(**record)  # type: ignore[arg-type]
        vdisk.presentations[agent_number] = presentation
        table = AgentTable(agent, vdisk, presentation)
        if agent.holds_nothing:
            table.state = TableState.ABSENT
            table.holdings.reset(NOTHING)
        self.add_table(table)

    def add_container(self, container: Container) -> None:
        """Known from now on; its space, if it is ready, may be allocated."""
        self.containers[container.slot] = container
        if container.failed:
            self.failed_slots.add(container.slot)
        elif container.ready:
            self.open_space(container)

    def add_vdisk(self, vdisk: VDisk) -> None:
        """Known from now on."""
        vdisk.failed_slots = self.failed_slots
        self.vdisks[vdisk.number] = vdisk

    def open_space(self, container: Container) -> None:
        """Let its segments be allocated."""
        self.allocator.add(Space(container.slot, segment_states(self.image, container)))

    def add_agent(self, agent: Agent) -> None:
        self.agents[agent.number] = agent
        self.agents_by_name[agent.name] = agent
        self.incarnation_max = max(self.incarnation_max, agent.incarnation)

    def forget_agent(self, agent: Agent) -> None:
        """It is removed: nothing is left of it."""
        del self.agents[agent.number], self.agents_by_name[agent.name]
        self.fencing.forget(agent)

    def add_table(self, table: AgentTable) -> None:
        table.agent.tables[table.vdisk.number] = table
        table.vdisk.tables[table.agent.number] = table

    def store_space(self, full: str, now_ns: int) -> None:
        """The store has become full, or (empty) has space again: leases and answers from memory go on all the time."""
        if full:
            self.log.alarm(now_ns, "full", "store", f"the store is full: no change is made until it has space: {full}")
            for agent in self.agents.values():
                for table in agent.tables.values():
                    self.allocator.release(table.extent)
        self.store_full = full
        self.journal.held = bool(full)
        if not full:
            self.log.clear(now_ns, "full", "store", "the store has space again")
            self.faults.space_found(now_ns)
            self.zeroing.consider(now_ns)

    # --- sending -----------------------------------------------------------------------------------------------------

    def header(self, agent: Agent, table: AgentTable | None = None, blocking: bool = False) -> Header:
        """The stamps of a message to an agent, without a sequence."""
        table_id = 0 if table is None else table.table_id
        return Header(self.term, agent.incarnation, agent.stamped_epoch, table_id, blocking=blocking)

    def answer(self, table: AgentTable, answer: tuple[int, int, int, int, int], entries: object = ()) -> None:
        """Add (fault id, start, count, action, status) and `count` entries to the table's next FAULT_ANSWER."""
        if not table.answers:
            self.answered.append(table)
        elif len(table.answers) >= ANSWERS_MAX or len(table.entries) + answer[2] > ANSWER_ENTRIES_MAX:
            self.flush(table)
            self.answered.append(table)
        table.answers.append(answer)
        table.entries.extend(entries)  # type: ignore[arg-type]

    def answer_all(self, table: AgentTable, answers: list[tuple[int, int, int, int, int]], entries: array[int]) -> None:
        """The same for many, which together are within the limits of one message."""
        if table.answers:
            self.flush(table)
        self.answered.append(table)
        table.answers, table.entries = answers, entries

    def flush(self, table: AgentTable) -> None:
        """Send what `answer` has gathered: before anything else in the table's sequence, and at a step's end."""
        if not table.answers:
            return
        agent = table.agent
        if not agent.admitted or self.deposed:
            table.answers, table.entries = [], array("Q")
            return
        table.sequence += 1
        message = FaultAnswer(cast("list[AnswerRecord]", table.answers), table.entries)
        header = Header(self.term, agent.incarnation, agent.stamped_epoch, table.table_id, table.sequence)
        self.effects.append(Send(agent.session, message, header))
        self.faults_answered += len(table.answers)
        table.answers = []
        table.entries = array("Q")

    def flush_all(self) -> None:
        """The step is over."""
        answered, self.answered = self.answered, []
        for table in answered:
            self.flush(table)


def _dict(value: object) -> dict[str, object]:
    assert isinstance(value, dict), "an object of the store is not a record"
    return value
