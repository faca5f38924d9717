"""Containers that move: their exporter exports them at another address than the agents have attached them at.

The new address is recorded, then every agent that has the container attached is told to attach it there: under its
slot, which tables go on listing, with its label verified like at every attach (design: containers are who they say).
What was begun at the old address is over if its process is: the exporter's machine has started another since. If that
is not known, writes sent there stay unsettled, and barriers fail rather than believe that they have ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from channel.values import AttachFlags
from controller.core.agents import Agent, Attachment, AttachState, Place
from controller.core.cluster import Cluster
from controller.core.truth import Container


class Moves:
    """`reconcile_all` orders what is missing at the agents."""

    def __init__(self, cluster: Cluster, reconcile_all: Callable[[int], None]) -> None:
        self._cluster = cluster
        self._reconcile_all = reconcile_all

    def exports_changed(self, exporter: Agent, now_ns: int) -> None:
        """An exporter has said what it exports, and where."""
        for container in self._cluster.containers.values():
            export = exporter.exports.get(container.export)
            if container.exporter != exporter.number or export is None or not self._is_it(container, export, now_ns):
                continue
            address = (export.trtype, export.traddr, export.trsvcid)
            if address != (container.trtype, container.traddr, container.trsvcid):
                self._moved(container, address, now_ns)
            else:
                self._stayed(container)

    def _is_it(self, container: Container, export: Any, now_ns: int) -> bool:
        """Fences and permissions are by subsystem: under another one it is not reached any more."""
        cluster, name = self._cluster, container.name
        if (export.subnqn, export.nsid) == (container.subnqn, container.nsid):
            cluster.log.clear(now_ns, "export", name, f"container {name} is exported under its name again")
            return True
        cluster.log.alarm(
            now_ns,
            "export",
            name,
            f"container {name} is {container.subnqn} namespace {container.nsid}, but its exporter says "
            f"{export.subnqn} namespace {export.nsid}: export it as it was",
        )
        return False

    def _moved(self, container: Container, address: tuple[str, str, str], now_ns: int) -> None:
        cluster = self._cluster
        former = f"{container.traddr}:{container.trsvcid}"
        container.trtype, container.traddr, container.trsvcid = address
        cluster.journal.put("container", str(container.slot), container.record())
        text = f"container {container.name} has moved from {former} to {container.traddr}:{container.trsvcid}"
        cluster.log.add(now_ns, "warning", "container", text)

        def recorded(now_ns: int) -> None:
            for agent in cluster.agents.values():
                attachment = agent.attachments.get(container.slot)
                if attachment is not None:
                    self.follow(attachment)
            self._reconcile_all(now_ns)

        cluster.journal.then(recorded)

    def attaching(self, container: Container, attachment: Attachment) -> int:
        """An order to attach it is sent: its flags."""
        place = self._place(container)
        attachment.may_be_at(place)
        former = attachment.places[:-1]
        flags = 0 if container.ready else attachment.flags
        if any(known.address != place.address for known in former) and all(place.follows(known) for known in former):
            flags |= AttachFlags.ENDED
        return flags

    def _stayed(self, container: Container) -> None:
        """Who has it attached there connects anew by itself, perhaps to another process than before."""
        place = self._place(container)
        for agent in self._cluster.agents.values():
            attachment = agent.attachments.get(container.slot)
            if attachment is not None and attachment.places and attachment.places[-1].address == place.address:
                attachment.may_be_at(place)

    def follow(self, attachment: Attachment) -> None:
        """Have it attached anew if it is elsewhere by now. One that is being attached is looked at when it has been."""
        container = self._cluster.containers.get(attachment.slot)
        if container is None or attachment.state is not AttachState.ATTACHED or not attachment.places:
            return
        if attachment.places[-1].address != self._place(container).address:
            attachment.state = AttachState.WAITING
            attachment.detail = f"to be attached at {container.traddr}:{container.trsvcid}"

    def _place(self, container: Container) -> Place:
        """Where it is exported now, as far as we know."""
        exporter = self._cluster.agents[container.exporter]
        return Place(container.trtype, container.traddr, container.trsvcid, exporter.instance, exporter.machine)
