"""Making an agent be what it should: containers let in and attached, tables created, vdisks presented.

A reconciler: it compares what is wanted with what is known and orders the next missing thing, so it may be called at
any time and as often as one likes. Every order is idempotent (EXISTS is read as done, NOT_FOUND as gone). Order of
things: the allow is recorded, sent, answered; then ATTACH_CONTAINER; then CREATE_TABLE; then PRESENT (design: 8, 11).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from channel.messages import AllowHost, AttachContainer, CreateTable, DeleteTable, Present, TableSlots, Withdraw
from channel.values import AttachFlags, PresentFlags, TableFlags
from controller.core.agents import (
    Agent,
    AgentTable,
    Attachment,
    AttachState,
    Listing,
    Presentation,
    Standing,
    TableState,
)
from controller.core.cluster import Allow, Cluster
from controller.core.holdings import NOTHING
from controller.core.moves import Moves
from controller.core.truth import Container, VDisk
from mapping.status import Status

DONE: Final = frozenset((Status.OK, Status.EXISTS))
GONE: Final = frozenset((Status.OK, Status.NOT_FOUND, Status.NO_TABLE))
CONTROLLER_IDS_PER_AGENT: Final = 256


class BringUp:
    """Orders what is missing at agents."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._retrying: set[int] = set()
        self._spares: dict[tuple[int, int], bool] = {}
        self.moves = Moves(cluster, self.reconcile_all)

    def reconcile(self, agent: Agent, now_ns: int) -> None:
        """Order the next missing things at one agent."""
        if not agent.admitted or not agent.mapper or self._cluster.deposed:
            return
        if self._cluster.draining.keeps_out(agent):
            for slot in self._cluster.zeroing.to_repeat(agent):
                if slot in agent.attachments:
                    self._attach(agent, agent.attachments[slot], now_ns)
            self._cluster.draining.proceed(agent, now_ns)
            return
        for slot in self.wanted_slots(agent):
            self._attach(agent, agent.attachments.setdefault(slot, Attachment(slot)), now_ns)
        for table in list(agent.tables.values()):
            self._table(table, now_ns)

    def reconcile_all(self, now_ns: int) -> None:
        for agent in list(self._cluster.agents.values()):
            self.reconcile(agent, now_ns)

    def _retry(self, agent: Agent, now_ns: int) -> None:
        """Look again a little later."""
        if agent.number in self._retrying:
            return
        self._retrying.add(agent.number)

        def again(now_ns: int) -> None:
            self._retrying.discard(agent.number)
            for attachment in agent.attachments.values():
                if attachment.state is AttachState.FAILED:
                    attachment.state = AttachState.WAITING
            self.reconcile(agent, now_ns)

        self._cluster.timers.at(now_ns + self._cluster.timing.retry_ns, again)

    # --- containers --------------------------------------------------------------------------------------------------

    def vdisk_slots(self, vdisk: VDisk) -> list[int]:
        """The containers that a vdisk may use now."""
        return [
            container.slot
            for container in self._cluster.containers.values()
            if container.ready
            and not (container.failed and self._spared(vdisk, container.slot))
            and container.suits(vdisk.segment_size, vdisk.block_size)
            and (vdisk.slots is None or container.slot in vdisk.slots)
        ]

    def _spared(self, vdisk: VDisk, slot: int) -> bool:
        """Whether a vdisk has nothing in a failed container: then it need not wait for it, nor flush it. It may get
        nothing there as long as that is failed, so this is found out once."""
        known = self._spares.get((vdisk.number, slot))
        if known is None:
            known = self._spares[vdisk.number, slot] = next(self._cluster.failures.uses(vdisk, slot), None) is None
        return known

    def look_again(self, slot: int) -> None:
        """Who has something in the container may be different now."""
        self._spares = {key: spared for key, spared in self._spares.items() if key[1] != slot}

    def wanted_slots(self, agent: Agent) -> list[int]:
        """The containers that an agent's vdisks use, and those it has been given besides."""
        slots = dict.fromkeys(agent.attachments)
        for table in agent.tables.values():
            slots.update(dict.fromkeys(self.vdisk_slots(table.vdisk)))
        return [slot for slot in slots if slot in self._cluster.containers]

    def attachment(self, agent: Agent, slot: int) -> Attachment:
        """What is known of a container at an agent; made if need be, then it is wanted there."""
        return agent.attachments.setdefault(slot, Attachment(slot))

    def want(self, agent: Agent, slot: int, now_ns: int) -> Attachment:
        """Attach a container at an agent, whether or not a vdisk uses it there."""
        attachment = agent.attachments.setdefault(slot, Attachment(slot))
        self.reconcile(agent, now_ns)
        return attachment

    def _attach(self, agent: Agent, attachment: Attachment, now_ns: int) -> None:
        if attachment.state is not AttachState.WAITING:
            return
        container = self._cluster.containers[attachment.slot]
        allow = self._allow(agent, container, now_ns)
        if attachment.patient_until_ns is None:
            attachment.patient_until_ns = now_ns + self._cluster.timing.retry_ns
            self._cluster.timers.at(attachment.patient_until_ns, lambda now: self.reconcile(agent, now))
        if not allow.confirmed and not allow.inherited:
            exporter = self._cluster.agents[container.exporter]
            attachment.detail = f"waiting for exporter {exporter.name} to let it in"
            return
        attachment.state = AttachState.ATTACHING
        attachment.detail = ""
        incarnation = agent.incarnation
        self._cluster.commands.order(
            agent,
            lambda: (self._attach_message(container, self.moves.attaching(container, attachment)), 0, False),
            lambda status, response, now: self._attached(agent, incarnation, attachment, status, response, now),
            now_ns,
        )

    def renew_label(
        self, agent: Agent, container: Container, done: Callable[[int, Any, int], None], now_ns: int
    ) -> None:
        """Have an agent that has it attached write the store's generation into its label."""
        message = self._attach_message(container, AttachFlags.RENEW)
        self._cluster.commands.order(agent, lambda: (message, 0, False), done, now_ns, once=True)

    def _attach_message(self, container: Container, flags: int) -> AttachContainer:
        return AttachContainer(
            slot=container.slot,
            nsid=container.nsid,
            container=container.uuid.bytes,
            cluster=self._cluster.uuid.bytes,
            generation=self._cluster.generation,
            segment_size=container.segment_size,
            segment_count=container.segment_count,
            flags=flags,
            trtype=container.trtype,
            traddr=container.traddr,
            trsvcid=container.trsvcid,
            subnqn=container.subnqn,
            name=container.name,
        )

    def _attached(
        self, agent: Agent, incarnation: int, attachment: Attachment, status: int, response: Any, now_ns: int
    ) -> None:
        cluster = self._cluster
        cluster.changed = True
        if response is None or incarnation != agent.incarnation:
            if attachment.then is not None:
                attachment.then(status, None, now_ns)
            return
        name = cluster.containers[attachment.slot].name if attachment.slot in cluster.containers else "?"
        subject = f"{agent.name}:{attachment.slot}"
        if status in DONE:
            attachment.state = AttachState.ATTACHED
            attachment.bound = True
            attachment.is_at_last()
            attachment.patient_until_ns = None
            attachment.detail = ""
            cluster.log.clear(now_ns, "attach", subject, f"agent {agent.name} has attached container {name}")
            self.moves.follow(attachment)
        else:
            attachment.state = AttachState.FAILED
            attachment.detail = f"{Status(status).name} {response.detail}".strip()
            for table in agent.tables.values():
                if table.extent.slot == attachment.slot:
                    cluster.allocator.release(table.extent)
            for allow in cluster.fencing.allows_of(agent):
                if allow.slot == attachment.slot:
                    allow.inherited = False
            text = f"agent {agent.name} cannot attach container {name}: {attachment.detail}"
            cluster.log.alarm(now_ns, "attach", subject, text)
            self._retry(agent, now_ns)
        if attachment.then is not None:
            attachment.then(status, response, now_ns)
        self.reconcile(agent, now_ns)
        cluster.zeroing.consider(now_ns)

    # --- allow lists of exporters ------------------------------------------------------------------------------------

    def _allow(self, agent: Agent, container: Container, now_ns: int) -> Allow:
        """The permission of this incarnation at this container: recorded, then sent."""
        cluster = self._cluster
        allow = Allow(
            container.subnqn, agent.host_nqn, container.exporter, agent.number, agent.incarnation, container.slot
        )
        known = cluster.allows.get(allow.key)
        if known is not None:
            if not known.confirmed:
                self._send_allow(known, now_ns)
            return known
        cluster.allows[allow.key] = allow
        allow.pending = True
        cluster.journal.put("allow", allow.key, allow.record())

        def recorded(now_ns: int) -> None:
            allow.pending = False
            self._send_allow(allow, now_ns)

        cluster.journal.then(recorded)
        return allow

    def presume_allowed(self, agent: Agent) -> None:
        """Record that every exporter may have let the agent's incarnation in to every container."""
        cluster = self._cluster
        for container in cluster.containers.values():
            allow = Allow(
                container.subnqn, agent.host_nqn, container.exporter, agent.number, agent.incarnation, container.slot
            )
            cluster.allows[allow.key] = allow
            cluster.journal.put("allow", allow.key, allow.record())

    def _send_allow(self, allow: Allow, now_ns: int) -> None:
        cluster = self._cluster
        agent = cluster.agents[allow.agent]
        current = agent.incarnation == allow.incarnation and agent.standing is Standing.ALIVE
        if allow.pending or not current or allow.key not in cluster.allows:
            return
        allow.pending = True

        def done(status: int, response: Any, now_ns: int) -> None:
            allow.pending = False
            if status in DONE:
                allow.confirmed = True
                attachment = agent.attachments.get(allow.slot)
                if attachment is not None and attachment.state is AttachState.FAILED:
                    attachment.state = AttachState.WAITING
                self.reconcile(agent, now_ns)
            elif allow.key in cluster.allows:
                attachment = agent.attachments.get(allow.slot)
                if attachment is not None:
                    detail = response.detail if response is not None else "no answer"
                    attachment.detail = f"not let in by its exporter: {Status(status).name} {detail}".strip()
                self._retry(agent, now_ns)
            if agent.standing is Standing.FENCING:
                cluster.fencing.proceed(agent, now_ns)

        allow.command = cluster.commands.order(
            cluster.agents[allow.exporter],
            lambda: (AllowHost(allow.subnqn, allow.hostnqn), 0, False),
            done,
            now_ns,
            exporting=True,
        )

    def withdraw_allow(self, allow: Allow) -> bool:
        """Its agent is being fenced: True once no ALLOW_HOST of it can still be executed."""
        if not allow.pending:
            return True
        if allow.command is not None and self._cluster.commands.recall(allow.command):
            allow.pending = False
            return True
        return False

    def exporter_returned(self, exporter: Agent, now_ns: int) -> None:
        """Its allow-lists may be empty again: let everybody who is current in once more."""
        if not exporter.exporter:
            return
        for allow in list(self._cluster.allows.values()):
            if allow.exporter == exporter.number:
                allow.confirmed = False
                self._send_allow(allow, now_ns)

    def exports_changed(self, exporter: Agent, now_ns: int) -> None:
        """An exporter has said what it exports, and where."""
        self.moves.exports_changed(exporter, now_ns)
        self.reconcile_all(now_ns)

    # --- tables ------------------------------------------------------------------------------------------------------

    def _table(self, table: AgentTable, now_ns: int) -> None:
        if table.presentation.withdrawing or self._cluster.draining.keeps_out(table.agent):
            self.take_away(table, now_ns)
        elif table.state is TableState.ABSENT:
            self._create(table, now_ns)
        elif table.state is TableState.CREATED and self._update_slots(table, now_ns):
            self._present(table, now_ns)

    def _settled(self, table: AgentTable, now_ns: int) -> Listing | None:
        """The attached containers of the table's vdisk, or None while another may be attached in a moment.

        One whose container host is down is listed later: the others must not wait for it. But a flush that does not
        reach what it may have in its cache must not succeed: until then it is absent (design: 6, 12).
        """
        attached, missing = set(), set()
        for slot in self.vdisk_slots(table.vdisk):
            attachment = table.agent.attachments.get(slot)
            if attachment is None:
                return None
            if attachment.state is AttachState.ATTACHED or attachment.bound:
                attached.add(slot)
                continue
            missing.add(slot)
            if attachment.state is not AttachState.FAILED and self._is_coming(attachment, now_ns):
                return None
        absent = missing & (table.vdisk.reached_slots | table.vdisk.reaching) if missing else missing
        return Listing(frozenset(attached), frozenset(absent))

    def reach(self, table: AgentTable, slot: int, now_ns: int) -> None:
        """The vdisk is to get its first segments in a container: its other tables must heed it before."""
        if slot not in table.vdisk.reaching:
            table.vdisk.reaching.add(slot)
            for other in table.vdisk.tables.values():
                if other is not table and other.agent.admitted:
                    self._table(other, now_ns)

    def _is_coming(self, attachment: Attachment, now_ns: int) -> bool:
        """It is being attached, or waits for an exporter that can be asked; and not for long yet."""
        exporter = self._cluster.agents[self._cluster.containers[attachment.slot].exporter]
        if attachment.state is AttachState.WAITING and not exporter.admitted:
            return False
        return attachment.patient_until_ns is None or now_ns < attachment.patient_until_ns

    def _create(self, table: AgentTable, now_ns: int) -> None:
        listing = self._settled(table, now_ns)
        if listing is None:
            return
        vdisk = table.vdisk
        table.state = TableState.CREATING
        table.sequence = 0
        table.holdings.reset(NOTHING)
        table.forget_slots()
        flags = TableFlags.RECLAIM | (TableFlags.READ_ONLY if table.presentation.read_only else 0)
        message = CreateTable(
            vdisk.uuid.bytes,
            vdisk.uuid.bytes,
            vdisk.segment_count,
            vdisk.segment_size,
            vdisk.block_size,
            int(flags),
            vdisk.name,
            sorted(listing.slots),
            sorted(listing.absent),
        )
        self._cluster.commands.order(
            table.agent,
            lambda: (message, table.table_id, False),
            lambda status, response, now: self._created(table, listing, status, response, now),
            now_ns,
        )

    def _created(self, table: AgentTable, listing: Listing, status: int, response: Any, now_ns: int) -> None:
        self._cluster.changed = True
        if response is None or table.state is not TableState.CREATING:
            return
        if status in DONE:
            table.state = TableState.CREATED
            if status == Status.OK:
                self._listed(table, listing, now_ns)
            table.presentation.detail = ""
        else:
            table.state = TableState.ABSENT
            table.presentation.detail = f"create table: {Status(status).name} {response.detail}".strip()
            if status == Status.NO_CONTAINER:
                self._attach_again(table.agent)
            self._retry(table.agent, now_ns)
            return
        self._table(table, now_ns)

    def _attach_again(self, agent: Agent) -> None:
        """It says it lacks a container that we thought attached: try all again."""
        for attachment in agent.attachments.values():
            attachment.bound = False
            if attachment.state is AttachState.ATTACHED:
                attachment.state = AttachState.FAILED

    def _update_slots(self, table: AgentTable, now_ns: int) -> bool:
        """Tell the table its container list; True if it is up to date as far as it can be."""
        listing = self._settled(table, now_ns)
        if listing is None or table.slots_asked is not None:
            return False
        if listing == (table.slots, table.absent):
            return True
        table.slots_asked = listing

        def done(status: int, response: Any, now_ns: int) -> None:
            if table.slots_asked is not listing:
                return
            table.slots_asked = None
            if status == Status.OK:
                self._listed(table, listing, now_ns)
                self._table(table, now_ns)
            elif response is not None:
                table.presentation.detail = f"table slots: {Status(status).name} {response.detail}".strip()
                if status == Status.NO_CONTAINER:
                    self._attach_again(table.agent)
                self._retry(table.agent, now_ns)

        message = TableSlots(sorted(listing.slots), sorted(listing.absent))
        self._cluster.commands.order(table.agent, lambda: (message, table.table_id, False), done, now_ns, stamped=True)
        return False

    def _listed(self, table: AgentTable, listing: Listing, now_ns: int) -> None:
        """The agent has the container list."""
        cluster = self._cluster
        table.slots, table.absent = listing
        subject = f"{table.agent.name}:{table.vdisk.name}"
        where = f"flushes of vdisk {table.vdisk.name} at agent {table.agent.name}"
        if table.absent:
            names = ", ".join(cluster.containers[slot].name for slot in sorted(table.absent))
            cluster.log.alarm(now_ns, "flush", subject, f"{where} fail until it has attached {names}")
        else:
            cluster.log.clear(now_ns, "flush", subject, f"{where} reach every container")
        cluster.faults.slots_ready(now_ns)

    def settle_missing(self, table: AgentTable, then: Callable[[int], None], now_ns: int) -> None:
        """The agent says it has no such table. DELETE_TABLE is answered only when its I/O has ended, too."""
        table.gone.append(then)
        if table.state is not TableState.DELETING:
            table.state = TableState.DELETING
            self._order_delete(table, now_ns)

    # --- presentations -----------------------------------------------------------------------------------------------

    def _present(self, table: AgentTable, now_ns: int) -> None:
        presentation = table.presentation
        if presentation.exporting or (presentation.exported and not presentation.replaced):
            return
        presentation.exporting = True
        if presentation.replaced:
            presentation.replaced = False
            presentation.exported = False
            self._cluster.commands.order(
                table.agent, lambda: (Withdraw(table.vdisk.subnqn), 0, False), lambda *_: None, now_ns
            )
        message = self._present_message(table)
        self._cluster.commands.order(
            table.agent,
            lambda: (message, table.table_id, False),
            lambda status, response, now: self._presented(table, presentation, status, response, now),
            now_ns,
        )

    def _present_message(self, table: AgentTable) -> Present:
        vdisk, presentation = table.vdisk, table.presentation
        first = 1 + (table.agent.number - 1) * CONTROLLER_IDS_PER_AGENT
        flags = (PresentFlags.READ_ONLY if presentation.read_only else 0) | (
            PresentFlags.ALLOW_ANY_HOST if presentation.any_host else 0
        )
        return Present(
            vdisk=vdisk.uuid.bytes,
            nsid=1,
            cntlid_min=first,
            cntlid_max=first + CONTROLLER_IDS_PER_AGENT - 1,
            flags=int(flags),
            subnqn=vdisk.subnqn,
            serial=vdisk.uuid.hex[:20].upper(),
            hosts="\n".join(presentation.hosts),
            name=vdisk.name,
        )

    def _presented(
        self, table: AgentTable, presentation: Presentation, status: int, response: Any, now_ns: int
    ) -> None:
        self._cluster.changed = True
        presentation.exporting = False
        if response is None:
            return
        if status in DONE:
            presentation.exported = True
            presentation.detail = ""
            presentation.address = (response.trtype, response.traddr, response.trsvcid)
            self._table(table, now_ns)
            return
        presentation.detail = f"present: {Status(status).name} {response.detail}".strip()
        self._retry(table.agent, now_ns)

    def take_away(self, table: AgentTable, now_ns: int) -> None:
        """WITHDRAW, then DELETE_TABLE: answered when its I/O has ended."""
        if table.state in (TableState.DELETING, TableState.UNKNOWN, TableState.CREATING):
            return
        if table.state is TableState.ABSENT:
            self.table_gone(table, now_ns)
            return
        table.state = TableState.DELETING
        vdisk = table.vdisk

        def withdrawn(status: int, response: Any, now_ns: int) -> None:
            if response is None or table.state is not TableState.DELETING:
                return
            if status in GONE:
                self._order_delete(table, now_ns)
            else:
                table.state = TableState.CREATED
                table.presentation.detail = f"withdraw: {Status(status).name} {response.detail}"
                self._cluster.faults.kept(table)
                self._retry(table.agent, now_ns)

        self._cluster.commands.order(table.agent, lambda: (Withdraw(vdisk.subnqn), 0, False), withdrawn, now_ns)

    def _order_delete(self, table: AgentTable, now_ns: int) -> None:
        def done(status: int, response: Any, now_ns: int) -> None:
            if response is None or table.state is not TableState.DELETING:
                return
            if status not in GONE:
                table.presentation.detail = f"delete table: {Status(status).name} {response.detail}"
                timers = self._cluster.timers
                timers.at(now_ns + self._cluster.timing.retry_ns, lambda now: self._order_delete(table, now))
                return
            table.state = TableState.ABSENT
            table.holdings.reset(NOTHING)
            table.presentation.exported = False
            self._cluster.faults.dropped(table)
            self._cluster.commands.end_table(table, now_ns)
            self.table_gone(table, now_ns)

        self._cluster.commands.order(table.agent, lambda: (DeleteTable(), table.table_id, False), done, now_ns)

    def table_gone(self, table: AgentTable, now_ns: int) -> None:
        """The agent certainly has nothing of it any more: whoever waited for that goes on."""
        self._cluster.changed = True
        self._cluster.log.clear(now_ns, "flush", f"{table.agent.name}:{table.vdisk.name}", "there is no such table")
        self._cluster.faults.slots_ready(now_ns)
        gone, table.gone = table.gone, []
        for then in gone:
            then(now_ns)
        if table.presentation.withdrawing:
            self._cluster.volumes.withdrawn(table, now_ns)
        if self._cluster.draining.keeps_out(table.agent):
            self._cluster.draining.proceed(table.agent, now_ns)
        elif table.agent.admitted and not table.presentation.withdrawing:
            self._table(table, now_ns)

    def delete_stray(self, agent: Agent, table_id: int, now_ns: int) -> None:
        """The agent has a table that nobody wants: it was withdrawn while the agent was away, or is not ours.

        Its I/O is not left waiting: it ends with the table (NO-TABLE: missing [claim 28])."""
        if table_id in agent.strays:
            return
        agent.strays.add(table_id)
        self._cluster.log.add(now_ns, "warning", "agent", f"agent {agent.name} has table {table_id:#x}, deleting it")

        def done(status: int, response: Any, now_ns: int) -> None:
            agent.strays.discard(table_id)

        self._cluster.commands.order(agent, lambda: (DeleteTable(), table_id, False), done, now_ns)
