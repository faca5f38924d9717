"""Adding containers: an export of an exporter becomes segments to allocate (design: 10, 11).

Recorded as not ready first; then a mapper agent is let in, attaches it and writes the label; with its answer the
container becomes ready in a commit. Segment 0 is the label's. What was there before is refused without `force`, and,
unless the contents are known to be zeroes, every other segment is zeroed before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from channel.values import AttachFlags
from controller.config import SLOTS_MAX
from controller.core.agents import Agent, AttachState
from controller.core.cluster import Cluster
from controller.core.refusals import Refusal
from controller.core.truth import Container, segment_states
from controller.store.records import SegmentState
from mapping.entry import SEGMENT_MAX
from mapping.status import Status

SEGMENTS_MIN: Final = 2
_LASTING: Final = {
    Status.FOREIGN_DATA: ("foreign_data", "add it with --force if what is on it may be lost"),
    Status.LABEL_MISMATCH: ("foreign_data", "it belongs to another cluster or container"),
    Status.OUT_OF_RANGE: ("refused", "its size differs from what the exporter says"),
    Status.UNSUPPORTED: ("refused", ""),
}


class Containers:
    """Adds them; finds them by name."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def named(self, name: str) -> Container:
        """Raises Refusal if there is none."""
        for container in self._cluster.containers.values():
            if container.name == name:
                return container
        raise Refusal("not_found", f"there is no container {name}", "`segmap container list` shows them")

    def begin(self, name: str, exporter: Agent, export: Any, contents: str, segment_size: int) -> Container:
        """Record a new container, not ready yet; or go on with one whose adding was cut short."""
        cluster = self._cluster
        for known in cluster.containers.values():
            same = (known.name, known.exporter, known.export) == (name, exporter.number, export.name)
            if same and not known.ready:
                return known
            if known.name == name:
                raise Refusal("exists", f"there is a container {name} already")
            if (known.exporter, known.export) == (exporter.number, export.name):
                raise Refusal("exists", f"export {export.name} of {exporter.name} is container {known.name}")
        slot = next((slot for slot in range(SLOTS_MAX) if slot not in cluster.containers), None)
        if slot is None:
            raise Refusal("limit", f"there are {SLOTS_MAX} containers already")
        segment_count = export.block_count * export.block_size // segment_size
        if not SEGMENTS_MIN <= segment_count <= min(SEGMENT_MAX, 1 << 32):
            raise Refusal("bad_argument", f"{export.name} has {segment_count} segments of {segment_size} bytes")
        container = Container(
            slot,
            {
                "name": name,
                "uuid": str(cluster.make_uuid()),
                "exporter": exporter.number,
                "export": export.name,
                "subnqn": export.subnqn,
                "nsid": export.nsid,
                "trtype": export.trtype,
                "traddr": export.traddr,
                "trsvcid": export.trsvcid,
                "segment_size": segment_size,
                "segment_count": segment_count,
                "block_size": export.block_size,
                "contents": contents,
                "volatile_cache": False,
                "ready": False,
                "generation": cluster.generation,
            },
        )
        cluster.add_container(container)
        cluster.journal.put("container", str(slot), container.record())
        return container

    def label(
        self, container: Container, agent: Agent, force: bool, done: Callable[[Refusal | None, int], None], now_ns: int
    ) -> None:
        """Have a mapper attach it and write the label. `done(None)` once it is ready and committed."""
        attachment = self._cluster.bringup.attachment(agent, container.slot)
        attachment.flags = AttachFlags.INITIALIZE | (AttachFlags.FORCE if force else 0)

        def answered(status: int, response: Any, now_ns: int) -> None:
            if status in (Status.OK, Status.EXISTS) and response is not None:
                attachment.then = None
                self._ready(container, response, done, now_ns)
            elif status in _LASTING:
                attachment.then = None
                agent.attachments.pop(container.slot, None)
                code, hint = _LASTING[Status(status)]
                text = f"container {container.name}: {Status(status).name} {response.detail}"
                self._cancel(container, Refusal(code, text, hint), done)

        attachment.then = answered
        if attachment.state is not AttachState.ATTACHING:
            attachment.state = AttachState.WAITING
        self._cluster.bringup.reconcile(agent, now_ns)

    def _cancel(self, container: Container, refusal: Refusal, done: Callable[[Refusal | None, int], None]) -> None:
        """Nothing was written: forget it. Its exporter keeps the agent's permission until that incarnation ends."""
        cluster = self._cluster
        cluster.containers.pop(container.slot, None)
        cluster.journal.delete("container", str(container.slot))
        cluster.journal.then(lambda now: done(refusal, now))

    def _ready(
        self, container: Container, response: Any, done: Callable[[Refusal | None, int], None], now_ns: int
    ) -> None:
        """The label is there, and flushed: nobody writes it again, or a container that has lost all would go unseen."""
        cluster = self._cluster
        for agent in cluster.agents.values():
            if container.slot in agent.attachments:
                agent.attachments[container.slot].flags = 0
        if container.ready:
            done(None, now_ns)
            return
        container.volatile_cache = response.volatile_cache
        slot, rest = container.slot, container.segment_count - 1
        state = SegmentState.ZEROED if container.contents == "zeroed" else SegmentState.FREE
        container.coming = {"ready": True}
        cluster.journal.put("container", str(slot), container.record())
        cluster.journal.records.segment_run(slot, 0, 1, SegmentState.LABEL)
        cluster.journal.records.segment_run(slot, 1, rest, state)

        def committed(now_ns: int) -> None:
            if container.ready:
                done(None, now_ns)
                return
            container.ready, container.coming = True, {}
            segment_states(cluster.image, container)
            cluster.image.fill_segments(slot, 0, 1, SegmentState.LABEL)
            cluster.image.fill_segments(slot, 1, rest, state)
            cluster.open_space(container)
            cluster.log.add(now_ns, "info", "container", f"container {container.name} is ready: {rest} segments")
            cluster.changed = True
            cluster.bringup.reconcile_all(now_ns)
            cluster.zeroing.consider(now_ns)
            cluster.faults.space_found(now_ns)
            done(None, now_ns)

        cluster.journal.then(committed)
