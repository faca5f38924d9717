"""A queue pair of the target as its owner sees it: outstanding commands, their completion, answers to send, its end.

Invariant: every command in `outstanding` is completed exactly once, or forgotten with a reset; after `lost` nothing
is sent, and the pair counts as alive until its last command that the owner holds is completed (`drained`).
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from fabric.nvme_tcp import pdu
from fabric.nvme_tcp.command import Command
from fabric.nvme_tcp.host_data import HostData
from fabric.nvme_tcp.pdu import Framing, PduError
from fabric.nvme_tcp.receive import ReceiveBuffer
from fabric.nvme_tcp.spec import DNR, FLAG_LAST, FLAG_SUCCESS, FatalError, PduType, Status
from fabric.nvme_tcp.subsystem import Listener, Namespace, Subsystem

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from fabric.nvme_tcp.controller import Controller
    from fabric.nvme_tcp.target import NvmeTarget

C2H: Final = Struct("<IIHxxIIxxxx")  # common header but length; length; CCCID; DATAO; DATAL
CQE: Final = Struct("<QQHHHH")  # common header; result; SQHD; queue; command; status
RESPONSE: Final = PduType.CAPSULE_RESP | 24 << 16 | 24 << 32
C2H_LAST: Final = PduType.C2H_DATA | FLAG_LAST << 8 | 24 << 16 | 24 << 24
C2H_SUCCESS: Final = C2H_LAST | FLAG_SUCCESS << 8
SQ_HEAD_UNUSED: Final = 0xFFFF


class QueuePair:
    """State of one connection, and everything towards the host."""

    def __init__(self, target: NvmeTarget, listener: Listener, peer: str, now_ns: int) -> None:
        self.target = target
        self.limits = target.limits
        self.listener = listener
        self.peer = peer
        self.qid = -1  # until Connect
        self.sq_entries = target.limits.max_admin_depth
        self.controller: Controller | None = None
        self.subsystem: Subsystem | None = None
        self.hostnqn = ""
        self.hostid = bytes(16)
        self.framing = Framing()
        self.initialized = False
        self.closing = False
        self.close_reason = ""
        self.lost = False
        self.holding = False  # the shell sends by itself after this batch
        self.noted = False  # waits in the target's attention list
        self.connecting: Command | None = None  # a Connect that waits
        self.deadline_ns: int | None = now_ns + target.limits.setup_timeout_ns
        self.now_ns = now_ns
        self.aborts: list[tuple[Command, Command]] = []
        self._receive = ReceiveBuffer()
        self._host_data = HostData(self, target.pool)
        self._outstanding: dict[int, Command] = {}
        self._namespaces: dict[int, Namespace] = {}
        self._out: list[Buffer] = []
        self._out_bytes = 0
        self._unsent = 0
        self._sq_head = 0
        self._flow_control = True
        self._success = False
        self._fast = False
        self._fast_write = False

    def connected(self, controller: Controller, qid: int, sq_entries: int, flow_control: bool) -> None:
        """Connect has succeeded: this is queue `qid` of `controller`."""
        self.controller = controller
        self.subsystem = controller.subsystem
        self.hostnqn = controller.hostnqn
        self.hostid = controller.hostid
        self.qid = qid
        self.sq_entries = sq_entries
        self.deadline_ns = None
        self.connecting = None
        self._namespaces = controller.subsystem.namespaces
        self._flow_control = flow_control
        self._success = self.limits.c2h_success and not flow_control
        controller.queues[qid] = self  # type: ignore[assignment]  # the only subclass is TargetConnection
        self.refresh_fast_path()

    def refresh_fast_path(self) -> None:
        """Which commands may be answered in the parse loop."""
        controller = self.controller
        self._fast = controller is not None and self.qid > 0 and self.framing.plain
        self._fast_write = self._fast and controller is not None and controller.write_cache

    # Commands

    def outstanding(self) -> list[Command]:
        """Commands begun and not completed, in order of arrival."""
        return list(self._outstanding.values())

    def find(self, cid: int) -> Command | None:
        """The outstanding command with this identifier."""
        return self._outstanding.get(cid)

    @property
    def drained(self) -> bool:
        """The connection is lost and no command of it is still being executed."""
        return self.lost and not self._outstanding

    @property
    def executing(self) -> bool:
        """The owner has commands of it."""
        return any(command.owned for command in self._outstanding.values())

    def admit(self, command: Command) -> None:
        """A new command. Raise PduError beyond the queue's depth; a duplicate identifier is refused by a status."""
        if len(self._outstanding) + self._unsent >= self.sq_entries:
            raise PduError(FatalError.PDU_SEQUENCE_ERROR, 0, f"more than {self.sq_entries} commands at a time")
        self._sq_head = (self._sq_head + 1) % self.sq_entries
        self._outstanding[command.cid] = command

    def complete(
        self, command: Command, status: int = 0, data: Buffer | list[Buffer] | None = None, result: int = 0
    ) -> None:
        """Answer a command: status (0: success), data of a read (one buffer or several in order), result dwords."""
        assert not command.done, f"{command} is completed twice"
        command.done = True
        del self._outstanding[command.cid]
        self._release(command)
        if self.lost or self.closing:
            if self.drained:
                self.target.forget(self)
            if not self.executing:
                self.target.let_in()
            return
        self._unsent += 1
        if status:
            if self.controller is not None:
                self.controller.record_error(command, status)
        elif data is not None:
            parts = data if isinstance(data, list) else [data]
            if self._data_out(command, parts, result):
                self.note()
                return
        self._respond(command.cid, status, result)
        self.note()

    def refuse(self, cid: int, status: int) -> None:
        """Answer a command that was never admitted."""
        self._sq_head = (self._sq_head + 1) % self.sq_entries
        self._unsent += 1
        self._respond(cid, status, 0)

    def forget_command(self, command: Command) -> None:
        """The command ends without an answer (controller reset)."""
        if not command.done:
            command.done = True
            del self._outstanding[command.cid]

    def _release(self, command: Command) -> None:
        """Buffers that the command's data was in."""
        if command.lender is not None:
            self._receive.returned(command.lender)
        elif command.buffer is not None:
            self._host_data.release(command)

    def _data_out(self, command: Command, parts: list[Buffer], result: int) -> bool:
        """C2HData with everything. True if it also says that the command succeeded."""
        if command.sqe is None:
            length = command.length
            assert self.controller is not None
            assert sum(memoryview(part).nbytes for part in parts) == length, f"{command}: not {length} bytes of data"
            self.controller.reads += 1
            self.controller.bytes_read += length
        else:
            length = sum(memoryview(part).nbytes for part in parts)
            limit = command.sqe.sgl_length
            if length > limit:
                parts, length = [memoryview(b"".join(parts))[:limit]], limit
        if not length:
            return False
        success = self._success and not result
        if self.framing.plain:
            common = C2H_SUCCESS if success else C2H_LAST
            self._out.append(C2H.pack(common, 24 + length, command.cid, 0, length))
            self._out.extend(parts)
        else:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            self._out += pdu.data_pdu(
                self.framing, PduType.C2H_DATA, command.cid, 0, 0, data, last=True, success=success
            )
        self._out_bytes += length
        return success

    def _respond(self, cid: int, status: int, result: int) -> None:
        head = self._sq_head if self._flow_control else SQ_HEAD_UNUSED
        queue = max(self.qid, 0)
        if self.framing.header_digest:
            self._out.append(pdu.response_pdu(self.framing, result, head, queue, cid, status))
        else:
            self._out.append(CQE.pack(RESPONSE, result, head, queue, cid, status << 1))

    # Bytes out

    def send_pdu(self, data: bytes) -> None:
        """Queue a PDU that is no answer to a command."""
        self._out.append(data)
        self.note()

    def data_to_send(self) -> list[Buffer]:
        """Buffers to send, in order; afterwards they are the caller's. They do not change until they are sent, except
        memoryviews that a namespace's owner gave."""
        out, self._out = self._out, []
        self._out_bytes = 0
        self._unsent = 0
        return out

    def note(self) -> None:
        """There is something to send or to close, outside of this connection's own receiving."""
        if not self.holding and not self.noted:
            self.noted = True
            self.target.attend(self)

    # The end

    def close(self, reason: str) -> None:
        """End the connection: what is queued may still be sent, nothing is received any more."""
        if not self.closing:
            self.closing = True
            self.close_reason = reason
            self.note()

    def terminate(self, error: PduError) -> None:
        """A malformed PDU: tell the host what and where, then end."""
        receive = self._receive
        header = bytes(receive.view[receive.head : min(receive.tail, receive.head + pdu.TERM_DATA_MAX)])
        length = min(len(header), header[2] if len(header) > 2 else 0) or min(len(header), pdu.COMMON_BYTES)
        self._out.append(pdu.term_request(PduType.C2H_TERM_REQ, error, header[:length]))
        self.close(str(error))

    def connection_lost(self) -> list[Command]:
        """The TCP connection is gone. Returns the commands that the owner holds; it completes each, to no effect."""
        if self.lost:
            return []
        self.lost = True
        self.closing = True
        self._out.clear()
        self._host_data.clear()
        self._receive.release()
        for command in self.outstanding():
            if not command.owned:
                self.forget_command(command)
        self.target.connection_lost(self)
        return self.outstanding()

    def abort(self, victim: Command, command: Command) -> None:
        """The host wants `victim`, a command of this queue pair, to end; `command` is the Abort to be answered."""
        if victim.owned:
            command.connection.aborts.append((command, victim))
            return
        aborted = self._host_data.withdraw(victim)
        if aborted:
            self.complete(victim, Status.ABORTED_BY_REQUEST | DNR)
        command.connection.complete(command, 0, result=0 if aborted else 1)

    def finish_aborts(self) -> None:
        """The owner has seen all `aborts`: answer them; a victim that is done by now was aborted."""
        aborts, self.aborts = self.aborts, []
        for command, victim in aborts:
            if not command.done:
                self.complete(command, 0, result=0 if victim.done else 1)
