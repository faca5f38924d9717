"""Containers that an operator has given up, for a while or for good (design: 8, Error).

In truth and at every agent their segments read as ERROR: hosts are told at once instead of waiting for a container that
does not answer. The locations stay recorded, so that `restore` brings back what is there when the container is back,
whatever was written meanwhile to other segments. Nothing is allocated, zeroed or freed for re-use in it. What agents
hold is made INVALID without a barrier: no location is re-used, and I/O to a dead container may never end.

A disk that has segments there keeps the container in its flush set: its flushes fail, for they may have lost something.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import Any, Final

from channel.messages import SetEntries
from controller.core.agents import AgentTable, TableState
from controller.core.cluster import FAILED, Cluster
from controller.core.refusals import Refusal
from controller.core.truth import LOCATED, Container, VDisk
from controller.store.image import CHUNK_SHIFT
from mapping.entry import INVALID_ENTRY

_RUN: Final = re.compile(b"\1+")
AGAIN: Final = 2
"""A change that was under way may bring an entry of the container after it was swept: so it is swept again."""


class FailedContainers:
    """Fails and restores."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def fail(self, container: Container, now_ns: int) -> None:
        """From the commit on, it is given up."""
        if not container.ready:
            raise Refusal("busy", f"container {container.name} is still being added")
        cluster = self._cluster
        container.coming = {"failed": True}
        cluster.journal.put("container", str(container.slot), container.record())

        def recorded(now_ns: int) -> None:
            if container.failed:
                return
            container.failed, container.coming = True, {}
            cluster.failed_slots.add(container.slot)
            cluster.allocator.remove(container.slot)
            cluster.changed = True
            cluster.log.alarm(now_ns, "container", container.name, FAILED.format(container.name))
            self._sweep(container, AGAIN, now_ns)
            cluster.bringup.reconcile_all(now_ns)

        cluster.journal.then(recorded)

    def restore(self, container: Container, now_ns: int) -> None:
        """From the commit on, it is used as before."""
        cluster = self._cluster
        container.coming = {"failed": False}
        cluster.journal.put("container", str(container.slot), container.record())

        def recorded(now_ns: int) -> None:
            if not container.failed:
                return
            container.failed, container.coming = False, {}
            cluster.failed_slots.discard(container.slot)
            cluster.open_space(container)
            cluster.changed = True
            cluster.log.clear(now_ns, "container", container.name, f"container {container.name} is restored")
            self._sweep(container, 1, now_ns)
            cluster.bringup.reconcile_all(now_ns)
            cluster.zeroing.consider(now_ns)
            cluster.faults.space_found(now_ns)

        cluster.journal.then(recorded)

    def uses(self, vdisk: VDisk, slot: int) -> Iterator[tuple[int, int]]:
        """(start, count) of the vdisk's segments that lie in a container: columns of bytes are looked at, not entries,
        for agents that want their leases wait meanwhile."""
        low = bytes(byte >> 4 == slot & 15 and LOCATED[byte] for byte in range(256))
        high = bytes(byte == slot >> 4 for byte in range(256))
        for number, chunk in vdisk.chunks.items():
            raw = chunk.tobytes()
            columns = raw[0::8].translate(low), raw[1::8].translate(high)
            both = int.from_bytes(columns[0]) & int.from_bytes(columns[1])
            if both:
                for run in _RUN.finditer(both.to_bytes(len(chunk))):
                    yield (number << CHUNK_SHIFT) + run.start(), run.end() - run.start()

    def _sweep(self, container: Container, times: int, now_ns: int) -> None:
        """Make agents forget what they hold of it: they fault, and are told what it is now."""
        cluster = self._cluster
        cluster.bringup.look_again(container.slot)
        for vdisk in cluster.vdisks.values():
            tables = [table for table in vdisk.sharing if table.agent.admitted and table.state is TableState.CREATED]
            runs = list(self.uses(vdisk, container.slot)) if tables else []
            for table in tables:
                for start, count in runs:
                    self._forget(table, start, count, now_ns)
        if times > 1:
            again = now_ns + cluster.timing.retry_ns
            cluster.timers.at(again, lambda now: self._sweep(container, times - 1, now))

    def _forget(self, table: AgentTable, start: int, count: int, now_ns: int) -> None:
        """Whatever comes of it: nothing depends on it, and what is known of the table's holdings stays as it is."""

        def done(status: int, response: Any, now_ns: int) -> None:
            self._cluster.changed = True

        invalid = array("Q", [INVALID_ENTRY])
        self._cluster.commands.order(
            table.agent, lambda: (SetEntries(start, count, invalid), table.table_id, False), done, now_ns, table=table
        )
