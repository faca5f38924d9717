"""Host data on its way to the target by R2T and H2CData (TCP Transport Specification, clause 3.3.2).

One R2T asks for all of a command's data; the host sends it in order, in PDUs of at most MAXH2CDATA. At most
`write_buffer_size` bytes are asked for at a time: further commands wait for their R2T.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from fabric.nvme_tcp import pdu
from fabric.nvme_tcp.command import Command
from fabric.nvme_tcp.pdu import PduError, refuse_field
from fabric.nvme_tcp.spec import FatalError
from fabric.nvme_tcp.write_pool import WritePool

if TYPE_CHECKING:
    from fabric.nvme_tcp.queue_pair import QueuePair


class HostData:
    """Transfers of one connection: waiting for buffer space, under way, and the PDU that is being received."""

    def __init__(self, connection: QueuePair, pool: WritePool) -> None:
        self._connection = connection
        self._pool = pool
        self._limits = connection.limits
        self._waiting: deque[Command] = deque()
        self._transfers: dict[int, Command] = {}
        self._held_bytes = 0
        self._tag = 0
        self._receiving: Command | None = None
        self._start = 0
        self._end = 0

    def request(self, command: Command) -> None:
        """Ask the host for `command.requested` bytes, now or as soon as there is space."""
        self._waiting.append(command)
        self._ask()

    def begin(self, cid: int, tag: int, offset: int, length: int, last: bool) -> memoryview:
        """An H2CData header has come. Returns where its data goes; raises PduError if it is not what was asked for."""
        command = self._transfers.get(tag)
        if command is None:
            refuse_field(pdu.AT_TTAG, f"transfer tag {tag} is not in use")
        if command.cid != cid:
            refuse_field(pdu.AT_CCCID, f"command {cid} has no transfer tag {tag}")
        if length > self._limits.max_io_size:
            raise PduError(FatalError.LIMIT_EXCEEDED, 0, f"{length} bytes in a PDU of host data")
        if offset != command.received or offset + length > command.requested:
            raise PduError(FatalError.DATA_OUT_OF_RANGE, 0, f"host data at {offset}, {length} bytes, not asked for")
        if last != (offset + length == command.requested):
            refuse_field(pdu.AT_FLAGS, "last-PDU flag")
        assert command.buffer is not None
        self._receiving = command
        self._start, self._end = offset, offset + length
        return memoryview(command.buffer)[offset : offset + length]

    def check_digest(self, received: int) -> None:
        """The digest behind the PDU's data; a wrong one fails the command only."""
        command = self._receiving
        assert command is not None and command.buffer is not None
        if pdu.digest(memoryview(command.buffer)[self._start : self._end]) != received:
            command.damaged = True

    def finish_pdu(self) -> Command | None:
        """The PDU has all come. Returns its command if that was the last of its data."""
        command = self._receiving
        assert command is not None and command.buffer is not None
        self._receiving = None
        command.received = self._end
        if command.received < command.requested:
            return None
        del self._transfers[command.tag]
        command.data = memoryview(command.buffer)[: command.requested]
        return command

    def withdraw(self, command: Command) -> bool:
        """Take back a command whose data has not been asked for yet. False if it has."""
        if command in self._waiting:
            self._waiting.remove(command)
            return True
        return False

    def release(self, command: Command) -> None:
        """The command is completed: its buffer can be used again."""
        assert command.buffer is not None
        command.data = None
        self._pool.give(command.buffer)
        command.buffer = None
        self._held_bytes -= command.requested
        self._ask()

    def clear(self) -> None:
        """The connection is lost. Buffers that the owner still has are not used again."""
        self._waiting.clear()
        self._transfers.clear()
        self._receiving = None

    def _ask(self) -> None:
        while self._waiting and not self._connection.closing:
            command = self._waiting[0]
            if self._held_bytes and self._held_bytes + command.requested > self._limits.write_buffer_size:
                return
            self._waiting.popleft()
            self._held_bytes += command.requested
            command.buffer = self._pool.take(command.requested)
            command.tag = self._free_tag()
            self._transfers[command.tag] = command
            self._connection.send_pdu(
                pdu.r2t_pdu(self._connection.framing, command.cid, command.tag, 0, command.requested)
            )

    def _free_tag(self) -> int:
        while True:
            self._tag = (self._tag + 1) & 0xFFFF
            if self._tag not in self._transfers:
                return self._tag
