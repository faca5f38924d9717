"""What the controller knows of an agent: its session, its incarnation, its lease, its tables and containers.

State only; who changes it and when is in admission, bringup, fencing and faults. Persisted are name, number, roles,
instance, incarnation and standing; all else is learnt again after a restart, presuming the worst (design: controllers
too have leases).
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from controller.core.allocator import Extent
from controller.core.holdings import UNKNOWN, Holdings
from mapping.plane import numbered

if TYPE_CHECKING:
    from controller.core.changes import Waiting
    from controller.core.truth import VDisk

MAPPER: Final = 1
EXPORTER: Final = 2
MARKS: Final = ("vouched", "draining", "drained")
ROLE_NAMES: Final = {MAPPER: "mapper", EXPORTER: "exporter"}


class Standing(StrEnum):
    """Of an incarnation, as persisted. NONE: never admitted. A FENCED one is never admitted again."""

    NONE = "none"
    ALIVE = "alive"
    FENCING = "fencing"
    FENCED = "fenced"


class TableState(Enum):
    """Of a table at an agent, as far as the controller knows."""

    UNKNOWN = "unknown"
    ABSENT = "absent"
    CREATING = "creating"
    CREATED = "created"
    DELETING = "deleting"


class AttachState(StrEnum):
    """Of a container at an agent."""

    WAITING = "waiting"
    ATTACHING = "attaching"
    ATTACHED = "attached"
    FAILED = "failed"


class Place(NamedTuple):
    """Where a container is exported: the address, and which process (of which machine's boot) answers there."""

    trtype: str
    traddr: str
    trsvcid: str
    instance: bytes
    machine: bytes

    @property
    def address(self) -> tuple[str, str, str]:
        return self[:3]

    def follows(self, former: Place) -> bool:
        """True if the process of the former place is over: its machine has started another since."""
        return any(self.machine) and self.machine == former.machine and self.instance != former.instance


class Attachment:
    """A container at an agent. `detail` says what it waits for, or what went wrong.

    `patient_until_ns`: from then on nothing else waits until it is attached; None: it has not been tried yet.
    `places`: where it may be attached: where it was, and where we have asked for it since, the last one last. `bound`:
    it keeps its slot, and tables go on listing it, while it is attached elsewhere.
    """

    __slots__ = ("bound", "detail", "flags", "patient_until_ns", "places", "slot", "state", "then")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.state = AttachState.WAITING
        self.detail = ""
        self.flags = 0
        self.bound = False
        self.places: list[Place] = []
        self.patient_until_ns: int | None = None
        self.then: Callable[[int, Any, int], None] | None = None

    def may_be_at(self, place: Place) -> None:
        """From now on it may be there, too. Of one address, who certainly is over is forgotten."""
        over = [known for known in self.places if known.address == place.address and place.follows(known)]
        self.places = [*(known for known in self.places if known not in over and known != place), place]

    def is_at_last(self) -> None:
        """It is attached where it was asked for last."""
        self.places = [known for known in self.places if known.address == self.places[-1].address]


class Presentation:
    """A vdisk shown at an agent [0015]: persisted as what is wanted; `exported` is what is known to be so."""

    __slots__ = (
        "address",
        "any_host",
        "detail",
        "exported",
        "exporting",
        "hosts",
        "read_only",
        "replaced",
        "withdrawing",
    )

    def __init__(self, hosts: list[str], read_only: bool, any_host: bool, withdrawing: bool = False) -> None:
        self.hosts = hosts
        self.read_only = read_only
        self.any_host = any_host
        self.withdrawing = withdrawing
        self.replaced = False
        self.exporting = False
        self.exported = False
        self.detail = ""
        self.address = ("", "", "")

    def record(self) -> dict[str, Any]:
        """What is persisted of it."""
        return {
            "hosts": self.hosts,
            "read_only": self.read_only,
            "any_host": self.any_host,
            "withdrawing": self.withdrawing,
        }


class Listing(NamedTuple):
    """A table's container list: those attached, which flushes go to, and those that may hold data of the vdisk and are
    not attached, so that flushes fail."""

    slots: frozenset[int]
    absent: frozenset[int]


class AgentTable:
    """The table of one vdisk at one agent. `sequence` is the last one used; `answers` gathers a step's answers.

    `held`: faults that came while it was being deleted.
    """

    __slots__ = (
        "absent",
        "agent",
        "answers",
        "entries",
        "extent",
        "gone",
        "held",
        "holdings",
        "last_write",
        "presentation",
        "sequence",
        "slots",
        "slots_asked",
        "state",
        "streak",
        "table_id",
        "vdisk",
    )

    def __init__(self, agent: Agent, vdisk: VDisk, presentation: Presentation) -> None:
        self.agent = agent
        self.vdisk = vdisk
        self.presentation = presentation
        self.table_id = vdisk.number << 32 | agent.number
        self.state = TableState.UNKNOWN
        self.sequence = 0
        self.slots: frozenset[int] = frozenset()
        self.absent: frozenset[int] = frozenset()
        self.slots_asked: Listing | None = None
        self.holdings = Holdings(UNKNOWN)
        self.extent = Extent()
        self.last_write = -2
        self.streak = 0
        self.answers: list[tuple[int, int, int, int, int]] = []
        self.entries: array[int] = array("Q")
        self.gone: list[Callable[[int], None]] = []
        self.held: list[Waiting] = []

    @property
    def heeded_slots(self) -> frozenset[int]:
        """The containers without which, as far as is known, no flush of it succeeds: reached by it, or said to be
        absent."""
        heeded = self.slots | self.absent
        return heeded if self.slots_asked is None else heeded & (self.slots_asked.slots | self.slots_asked.absent)

    def forget_slots(self) -> None:
        """There is no such table at the agent."""
        self.slots, self.absent, self.slots_asked = frozenset(), frozenset(), None

    @property
    def usable_slots(self) -> frozenset[int]:
        """Its containers without those that could not be attached again: nothing new is put there."""
        attachments = self.agent.attachments
        lost = {slot for slot in self.slots if slot in attachments and attachments[slot].state is AttachState.FAILED}
        return self.slots - lost if lost else self.slots

    @property
    def present(self) -> bool:
        """True if it may hold entries: every change of the vdisk concerns it."""
        return self.state is not TableState.ABSENT


class Command:
    """An order to an agent until it is answered. Re-sent after a reconnect and in a new epoch, unless `once`.

    `build(agent)` makes the message anew for each sending. `done(status, response, now_ns)` is called exactly once;
    the response is None if there was none: the incarnation is over (its effects are, too), or `once` and lost.
    """

    __slots__ = ("agent", "attempt", "build", "done", "exporting", "once", "sent_epoch", "sent_ns", "stamped", "table")

    def __init__(
        self,
        agent: Agent,
        build: Callable[[], Any],
        done: Callable[[int, Any, int], None],
        *,
        table: AgentTable | None = None,
        stamped: bool = False,
        exporting: bool = False,
        once: bool = False,
    ) -> None:
        self.agent = agent
        self.build = build
        self.done = done
        self.table = table
        self.stamped = stamped
        self.exporting = exporting
        self.once = once
        self.attempt = 0
        self.sent_ns = 0
        self.sent_epoch = 0


class Hello:
    """A HELLO that waits: for the fence of the incarnation before, or for a commit."""

    __slots__ = ("header", "instance", "machine", "message", "roles", "session")

    def __init__(self, session: int, header: Any, message: Any) -> None:
        self.session = session
        self.header = header
        self.message = message
        self.instance: bytes = message.instance
        self.machine: bytes = message.machine
        self.roles: int = message.roles


class Agent:
    """One agent of the cluster.

    `vouched`: an operator says that its machine is off (until it is heard of again). `draining`: it is to hold nothing;
    `drained`: it does, by its own answers. `replaced`: its present incarnation is over for certain, and so its lease.
    `coming`: of its record, what is on its way to the store: whatever is recorded meanwhile must not undo it.
    """

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.roles = 0
        self.software = ""
        self.instance = b""
        self.machine = b""
        self.incarnation = 0
        self.standing = Standing.NONE
        self.session = 0
        self.admitted = False
        self.admitting = False
        self.replaced = False
        self.vouched = False
        self.draining = False
        self.drained = False
        self.coming: dict[str, Any] = {}
        self.hello: Hello | None = None
        self.epoch = 0
        self.plane_session = 0
        self.granted = False
        self.lease_until_ns = 0
        self.tables: dict[int, AgentTable] = {}
        self.attachments: dict[int, Attachment] = {}
        self.strays: set[int] = set()
        self.exports: dict[str, Any] = {}
        self.exports_arriving: dict[str, Any] = {}
        self.exports_known = False
        self.queue: deque[Command] = deque()
        self.sent: dict[int, Command] = {}
        self.faults_waiting = 0
        self.detail = ""

    @property
    def mapper(self) -> bool:
        return bool(self.roles & MAPPER)

    @property
    def exporter(self) -> bool:
        return bool(self.roles & EXPORTER)

    @property
    def over(self) -> bool:
        """Its last incarnation can do nothing any more: it is fenced for certain, or there was none."""
        return self.standing in (Standing.FENCED, Standing.NONE)

    @property
    def holds_nothing(self) -> bool:
        """No entry, because it is over, or because it has answered that it let go of everything."""
        return self.over or self.drained

    @property
    def stamped_epoch(self) -> int:
        """What our stamps say of its epoch, and of the session that its data plane has numbered (0: it does not)."""
        return numbered(self.epoch, self.plane_session)

    @property
    def host_nqn(self) -> str:
        """The NQN under which this incarnation attaches containers."""
        return host_nqn(self.name, self.incarnation)

    def record(self) -> dict[str, Any]:
        """What is persisted of it."""
        marks = {mark: True for mark in MARKS if getattr(self, mark)}
        return {
            "name": self.name,
            "roles": self.roles,
            "instance": self.instance.hex(),
            "machine": self.machine.hex(),
            "incarnation": self.incarnation,
            "standing": self.standing.value,
            **marks,
            **self.coming,
        }

    @classmethod
    def load(cls, number: int, record: dict[str, Any]) -> Agent:
        """From its record; everything else presumed the worst by the caller."""
        agent = cls(number, record["name"])
        agent.roles = record["roles"]
        agent.instance = bytes.fromhex(record["instance"])
        agent.machine = bytes.fromhex(record.get("machine", ""))
        agent.incarnation = record["incarnation"]
        agent.standing = Standing(record["standing"])
        for mark in MARKS:
            setattr(agent, mark, mark in record)
        return agent


def host_nqn(name: str, incarnation: int) -> str:
    """The host NQN of one incarnation of an agent."""
    return f"nqn.2026-11.io.segmap:agent:{name}:{incarnation}"
