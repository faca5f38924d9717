"""What operators are shown: the results of all reading operations, made from the cluster's state."""

from __future__ import annotations

from array import array
from typing import Any, Final

from controller.config import SECOND_NS
from controller.core.agents import ROLE_NAMES, Agent, AttachState, Presentation, Standing
from controller.core.cluster import Cluster
from controller.core.eventlog import LoggedEvent
from controller.core.holdings import NAMES, NOTHING
from controller.core.refusals import Refusal
from controller.core.truth import Container, VDisk, segment_states
from controller.store.records import SegmentState
from mapping.entry import State, has_location, segment_of, slot_of, state_of

Row = dict[str, Any]
STATE_NAMES: Final[dict[State, str]] = {
    State.INVALID: "invalid",
    State.NO_WRITE: "no-write",
    State.ZERO: "zero",
    State.ERROR: "error",
    State.NONE: "mapped",
}
_LOCATION_STEP: Final = 1 << 16


class Reports:
    """Rows and maps."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    # --- containers --------------------------------------------------------------------------------------------------

    def container(self, container: Container) -> Row:
        """One container."""
        cluster = self._cluster
        states = segment_states(cluster.image, container) if container.ready else bytearray()
        attached = sorted(
            agent.name
            for agent in cluster.agents.values()
            if container.slot in agent.attachments and agent.attachments[container.slot].state is AttachState.ATTACHED
        )
        return {
            "name": container.name,
            "slot": container.slot,
            "uuid": str(container.uuid),
            "state": "failed" if container.failed else "ready" if container.ready else "adding",
            "exporter": cluster.agents[container.exporter].name,
            "export": container.export,
            "subnqn": container.subnqn,
            "nsid": container.nsid,
            "traddr": container.traddr,
            "trsvcid": container.trsvcid,
            "segment_size": container.segment_size,
            "segment_count": container.segment_count,
            "size_bytes": container.segment_count * container.segment_size,
            "volatile_cache": container.volatile_cache,
            "segments": {state.name.lower(): states.count(state) for state in SegmentState},
            "attached_at": attached,
            "not_fenced": self._not_fenced(container),
            "quarantine": quarantine(cluster, container.slot),
        }

    def _not_fenced(self, container: Container) -> list[str]:
        """Incarnations that are lost, or over, and of which its exporter has not confirmed that it has denied them."""
        agents = self._cluster.agents
        return [
            f"{agents[allow.agent].name}:{allow.incarnation}"
            for allow in self._cluster.allows.values()
            if allow.slot == container.slot
            and (
                allow.incarnation != agents[allow.agent].incarnation
                or agents[allow.agent].standing is not Standing.ALIVE
            )
        ]

    def failure(self, container: Container) -> Row:
        """One container, and which vdisks have segments in it."""
        uses = {
            vdisk.name: sum(count for _, count in self._cluster.failures.uses(vdisk, container.slot))
            for vdisk in self._cluster.vdisks.values()
        }
        used = [{"vdisk": name, "segments": count} for name, count in uses.items() if count]
        return {**self.container(container), "vdisks": used}

    # --- vdisks ------------------------------------------------------------------------------------------------------

    def vdisk(self, vdisk: VDisk) -> Row:
        """One vdisk."""
        containers = [] if vdisk.slots is None else sorted(vdisk.slots)
        return {
            "name": vdisk.name,
            "number": vdisk.number,
            "uuid": str(vdisk.uuid),
            "state": "deleting" if vdisk.deleting else "ready",
            "size_bytes": vdisk.segment_count * vdisk.segment_size,
            "segment_size": vdisk.segment_size,
            "block_size": vdisk.block_size,
            "segment_count": vdisk.segment_count,
            "allocated_segments": vdisk.allocated(),
            "containers": [self._container_name(slot) for slot in containers],
            "subnqn": vdisk.subnqn,
            "presentations": self.presentations(vdisk),
        }

    def _container_name(self, slot: int) -> str | None:
        container = self._cluster.containers.get(slot)
        return container.name if container else None

    def presentations(self, vdisk: VDisk) -> list[Row]:
        """Where a vdisk is shown, or is to be."""
        return [
            self._presentation(vdisk, self._cluster.agents[number], presentation)
            for number, presentation in vdisk.presentations.items()
        ]

    def _presentation(self, vdisk: VDisk, agent: Agent, presentation: Presentation) -> Row:
        if presentation.withdrawing:
            state = "withdrawing"
        elif presentation.exported and agent.admitted:
            state = "presented"
        else:
            state = "attaching" if agent.admitted else "pending"
        detail = presentation.detail
        if not detail and state == "attaching":
            detail = "; ".join(item.detail for item in agent.attachments.values() if item.detail)
        trtype, traddr, trsvcid = presentation.address
        return {
            "agent": agent.name,
            "state": state,
            "detail": detail or ("" if agent.admitted else "the agent is not connected"),
            "read_only": presentation.read_only,
            "any_host": presentation.any_host,
            "hosts": list(presentation.hosts),
            "trtype": trtype,
            "traddr": traddr,
            "trsvcid": trsvcid,
            "subnqn": vdisk.subnqn,
            "nsid": 1,
        }

    def map(self, vdisk: VDisk, start: int, count: int) -> Row:
        """The truth of a range, as runs."""
        count = min(count or vdisk.segment_count, vdisk.segment_count - start)
        if start < 0 or count <= 0:
            raise Refusal("bad_argument", f"{vdisk.name} has segments 0..{vdisk.segment_count - 1}")
        runs: list[Row] = []
        position, end = start, start + count
        limit = self._cluster.limits.map_runs
        while position < end:
            entry, length = self._run(vdisk, position, end)
            state = state_of(entry)
            located = has_location(entry)
            row = {
                "start": position,
                "count": length,
                "state": STATE_NAMES[state],
                "slot": slot_of(entry) if located else None,
                "segment": segment_of(entry) if located else None,
            }
            if len(runs) >= limit:
                break
            runs.append(row)
            position += length
        return {
            "name": vdisk.name,
            "segment_count": vdisk.segment_count,
            "start": start,
            "count": position - start,
            "runs": runs,
            "truncated": position < end,
        }

    def _run(self, vdisk: VDisk, start: int, end: int) -> tuple[int, int]:
        """(first entry, length) of the run of like or neighbouring entries at `start`."""
        first = vdisk.entry(start)
        step = _LOCATION_STEP if has_location(first) else 0
        position = start
        while position < end:
            number, offset = position >> 12, position & 4095
            length = min(4096 - offset, end - position)
            chunk = vdisk.chunks.get(number)
            if chunk is None:
                if first != vdisk.entry(position):
                    break
                position += length
                continue
            if vdisk.failed_slots:
                chunk, offset = vdisk.entries(position, length), 0
            matched = _matching(chunk, offset, length, first + step * (position - start), step)
            position += matched
            if matched < length:
                break
        return first, position - start

    def explain(self, vdisk: VDisk, offset: int) -> Row:
        """From a byte of the vdisk to a byte of a container, and who holds it."""
        if not 0 <= offset < vdisk.segment_count * vdisk.segment_size:
            raise Refusal("bad_argument", f"{vdisk.name} has {vdisk.segment_count * vdisk.segment_size} bytes")
        segment, inside = divmod(offset, vdisk.segment_size)
        entry = vdisk.entry(segment)
        located = has_location(entry)
        change = vdisk.changing.get(segment)
        holders = [
            {"agent": table.agent.name, "holds": NAMES[table.holdings.get(segment) if table.present else NOTHING]}
            for table in vdisk.tables.values()
        ]
        return {
            "name": vdisk.name,
            "offset": offset,
            "segment": segment,
            "offset_in_segment": inside,
            "state": STATE_NAMES[state_of(entry)],
            "container": self._container_name(slot_of(entry)) if located else None,
            "slot": slot_of(entry) if located else None,
            "physical_segment": segment_of(entry) if located else None,
            "container_offset": segment_of(entry) * vdisk.segment_size + inside if located else None,
            "holders": holders,
            "changing": change is not None,
            "waiting_faults": sum(item.fault[2] == segment for item in change.waiting) if change else 0,
        }

    # --- agents ------------------------------------------------------------------------------------------------------

    def agent(self, agent: Agent, now_ns: int) -> Row:
        """One agent."""
        remaining = max(0, agent.lease_until_ns - now_ns) / SECOND_NS
        lease = "none" if not agent.granted and not remaining else "valid" if remaining else "expired"
        return {
            "name": agent.name,
            "number": agent.number,
            "roles": [name for role, name in ROLE_NAMES.items() if agent.roles & role],
            "connected": bool(agent.session),
            "admitted": agent.admitted,
            "incarnation": agent.incarnation,
            "epoch": agent.epoch,
            "instance": agent.instance.hex(),
            "lease": lease if agent.mapper else "none",
            "lease_remaining_s": round(remaining, 3) if agent.mapper else 0,
            "state": self._agent_state(agent),
            "detail": agent.detail,
            "exports": [self._export(agent, export) for export in agent.exports.values()],
        }

    def _agent_state(self, agent: Agent) -> str:
        if agent.standing in (Standing.FENCING, Standing.FENCED):
            return agent.standing.value
        if agent.draining and agent.hello is None:
            return "drained" if agent.drained else "draining"
        if agent.hello is not None:
            return "waiting"
        if agent.admitted:
            return "admitted"
        return "new" if agent.standing is Standing.NONE else "disconnected"

    def _export(self, agent: Agent, export: Any) -> Row:
        used = [
            container.name
            for container in self._cluster.containers.values()
            if (container.exporter, container.export) == (agent.number, export.name)
        ]
        return {
            "name": export.name,
            "subnqn": export.subnqn,
            "nsid": export.nsid,
            "traddr": export.traddr,
            "trsvcid": export.trsvcid,
            "trtype": export.trtype,
            "block_size": export.block_size,
            "block_count": export.block_count,
            "uuid": export.uuid.hex(),
            "container": used[0] if used else None,
        }

    def agent_in_full(self, agent: Agent, now_ns: int) -> Row:
        """One agent with its tables, containers and fence."""
        tables = [
            {
                "vdisk": table.vdisk.name,
                "state": table.state.value,
                "sequence": table.sequence,
                "holds": table.holdings.known_held(),
            }
            for table in agent.tables.values()
        ]
        attachments = [
            {
                "slot": item.slot,
                "container": self._container_name(item.slot),
                "state": item.state.value,
                "detail": item.detail,
            }
            for item in agent.attachments.values()
        ]
        return {
            **self.agent(agent, now_ns),
            "tables": tables,
            "attachments": attachments,
            "fence": self.fence(agent, now_ns),
            "software": agent.software,
        }

    def fence(self, agent: Agent, now_ns: int) -> Row:
        """What is known of an agent's end: by whom it was denied, what is waited for."""
        fencing = self._cluster.fencing
        lease_ns = agent.lease_until_ns - now_ns if agent.mapper and not (agent.replaced or agent.vouched) else 0
        places = [
            {
                "container": self._container_name(allow.slot),
                "exporter": self._cluster.agents[allow.exporter].name,
                "subnqn": allow.subnqn,
                "state": state,
                "detail": detail,
            }
            for allow, state, detail in fencing.places(agent)
        ]
        return {
            "state": self._fence_state(agent),
            "incarnation": agent.incarnation,
            "why": agent.detail,
            "confirmed_dead": agent.vouched,
            "lease_over_in_s": round(max(0, lease_ns) / SECOND_NS, 3),
            "containers": places,
            "waiting_for": fencing.waiting_for(agent) + self._cluster.draining.waiting_for(agent),
        }

    def _fence_state(self, agent: Agent) -> str:
        if agent.vouched and not agent.mapper:
            return "confirmed dead"
        if agent.standing is Standing.ALIVE and agent.draining:
            return "drained" if agent.drained else "draining"
        return agent.standing.value

    # --- the whole ---------------------------------------------------------------------------------------------------

    def event(self, event: LoggedEvent, now_ns: int) -> Row:
        """One event; the shell adds the wall-clock time."""
        return {
            "id": event.id,
            "age_s": round((now_ns - event.at_ns) / SECOND_NS, 3),
            "severity": event.severity,
            "kind": event.kind,
            "text": event.text,
        }

    def status(self, now_ns: int) -> Row:
        """The cluster at a glance."""
        cluster = self._cluster
        return {
            "cluster": str(cluster.uuid),
            "term": cluster.term,
            "leader": not cluster.deposed,
            "uptime_s": round((now_ns - cluster.started_ns) / SECOND_NS, 3),
            "agents": [self.agent(agent, now_ns) for agent in cluster.agents.values()],
            "containers": [self.container(container) for container in cluster.containers.values()],
            "vdisks": [self.vdisk(vdisk) for vdisk in cluster.vdisks.values()],
            "faults": {
                "received": cluster.faults_received,
                "answered": cluster.faults_answered,
                "parked": sum(agent.faults_waiting for agent in cluster.agents.values()),
                "waiting_for_space": cluster.faults.waiting_for_space(),
            },
            "fences": [
                {"agent": agent.name, **self.fence(agent, now_ns)}
                for agent in cluster.agents.values()
                if agent.standing is Standing.FENCING or (agent.draining and not agent.drained)
            ],
            "alarms": [self.event(event, now_ns) for event in cluster.log.alarms.values()],
            "store": {"seq": cluster.sequence},
        }


def quarantine(cluster: Cluster, slot: int | None = None) -> list[Row]:
    """What of a container (or of all) is not to be touched, and until when."""
    rows = []
    for job, until in cluster.zeroing.quarantine():
        payload: Any = job.payload
        container = cluster.containers.get(payload["slot"])
        if container is not None and slot in (None, container.slot):
            rows.append({"container": container.name, "segments": job.total, "why": until})
    return rows


def _matching(chunk: array[int], offset: int, length: int, first: int, step: int) -> int:
    """How many of the entries from `offset` on are first, first + step, first + 2 * step ..."""
    part = chunk[offset : offset + length]
    expected = array("Q", range(first, first + step * length, step)) if step else array("Q", [first]) * length
    if part == expected:
        return length
    for index in range(length):
        if part[index] != expected[index]:
            return index
    return length
