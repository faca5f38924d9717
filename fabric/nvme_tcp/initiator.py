"""One connection of the host = one queue pair: commands in, PDUs out; PDUs in, `done` called.

Data that is read goes straight into the command's buffer, data that is written is sent from it, in the capsule if it
fits there and by R2T otherwise. A malformed PDU of the controller is answered by H2CTermReq and is the end; a wrong
data digest fails only its command, as a transient transport error.

Invariant: at most `entries - 1` commands are outstanding, so that the submission queue never overruns, with or
without SQ flow control.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from fabric.nvme_tcp import pdu, spec
from fabric.nvme_tcp.capsule import Sqe
from fabric.nvme_tcp.host_command import PENDING, HostCommand
from fabric.nvme_tcp.pdu import DIGEST, DIGEST_BYTES, Framing, PduError, refuse_field
from fabric.nvme_tcp.receive import ReceiveBuffer, feed
from fabric.nvme_tcp.spec import CDW12_FUA, FatalError, Opcode, PduType, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

R2T_MAX: Final = 1  # R2Ts of one command at a time; each is answered at once
_IO: Final = Struct("<QBBHI16xQI3xBQI12x")  # common header; opcode, flags, cid, nsid; SGL; SLBA; dword 12
_DATA_OR_RESPONSE: Final = Struct("<BBBBIQHHHH")  # common; result or CCCID, DATAO; SQHD or DATAL; cid; status
_ALONE: Final = PduType.CAPSULE_CMD | 72 << 16 | 72 << 32
_WITH_DATA: Final = PduType.CAPSULE_CMD | 72 << 16 | 72 << 24
_FES_TEXT: Final = {member.value: member.name.lower().replace("_", " ") for member in FatalError}


class QueueFullError(Exception):
    """As many commands as the queue may have are outstanding."""


class InitiatorQueue:
    """A queue pair of the host, from ICReq on. After `failed` it is useless; every command has been `done`."""

    def __init__(
        self,
        qid: int,
        entries: int,
        *,
        in_capsule_bytes: int = spec.ADMIN_IN_CAPSULE_BYTES,
        header_digest: bool = False,
        data_digest: bool = False,
        timeout_ns: int | None = None,
        on_initialized: Callable[[], None] | None = None,
    ) -> None:
        self.qid = qid
        self.entries = entries
        self.in_capsule_bytes = in_capsule_bytes
        self.timeout_ns = timeout_ns
        self.initialized = False
        self.failed: str | None = None
        self.h2c_data_max = 0
        self.framing = Framing()
        self._wanted = (header_digest, data_digest)
        self._on_initialized = on_initialized
        self._receive = ReceiveBuffer()
        self._outstanding: dict[int, HostCommand] = {}
        self._free = list(range(entries - 2, -1, -1))
        self._out: list[Buffer] = []
        self._reading: HostCommand | None = None  # whose data fills the sink
        self._read_start = 0
        self._read_end = 0
        self._read_flags = 0
        self._digest_due = False
        self._now_ns = 0

    # Commands

    @property
    def room(self) -> int:
        """How many more commands may be submitted now."""
        return len(self._free) if self.failed is None else 0

    @property
    def outstanding(self) -> int:
        return len(self._outstanding)

    def submit(self, command: HostCommand, now_ns: int, *, timeout: bool = True) -> None:
        """Queue a command. Raises QueueFullError. Without `timeout` it may take for ever."""
        if not self._free or self.failed is not None:
            raise QueueFullError(f"queue {self.qid} takes at most {self.entries - 1} commands")
        cid = self._free.pop()
        command.cid = cid
        command.deadline_ns = now_ns + self.timeout_ns if timeout and self.timeout_ns else None
        self._outstanding[cid] = command
        data = command.data
        if command.sqe is None:
            self._submit_io(command, cid, data)
            return
        sqe = command.sqe
        sqe.cid = cid
        inside = data is not None and sqe.takes_host_data and data.nbytes <= self.in_capsule_bytes
        sqe.sgl_length = data.nbytes if data is not None else 0
        sqe.sgl_type = spec.SGL_IN_CAPSULE if inside else spec.SGL_TRANSPORT
        self._out += self.framing.encode(PduType.CAPSULE_CMD, 0, sqe.pack(), data if inside else None)

    def _submit_io(self, command: HostCommand, cid: int, data: memoryview | None) -> None:
        """A read or write: the fast path."""
        length = 0 if data is None else data.nbytes
        opcode = command.opcode
        cdw12 = command.nlb - 1 | (CDW12_FUA if command.fua else 0)
        inside = opcode == Opcode.WRITE and length <= self.in_capsule_bytes
        kind = spec.SGL_IN_CAPSULE if inside else spec.SGL_TRANSPORT
        if self.framing.plain:
            common = _WITH_DATA | (72 + length) << 32 if inside else _ALONE
            self._out.append(
                _IO.pack(common, opcode, spec.PSDT_SGL, cid, command.nsid, 0, length, kind, command.slba, cdw12)
            )
            if inside and data is not None:
                self._out.append(data)
            return
        slba = command.slba
        sqe = Sqe(opcode, command.nsid, slba & 0xFFFFFFFF, slba >> 32, cdw12, cid=cid, sgl_length=length, sgl_type=kind)
        self._out += self.framing.encode(PduType.CAPSULE_CMD, 0, sqe.pack(), data if inside else None)

    def start(self) -> None:
        """Begin the connection: ICReq. `on_initialized` is called when commands may be submitted."""
        self._out.append(pdu.ic_request(0, *self._wanted, R2T_MAX - 1))

    def data_to_send(self) -> list[Buffer]:
        """Buffers to send, in order. Views of commands' data among them stay unchanged until the commands are done."""
        out, self._out = self._out, []
        return out

    @property
    def has_output(self) -> bool:
        return bool(self._out)

    # The end and the clock

    def fail(self, reason: str, status: int = Status.HOST_PATH_ERROR) -> None:
        """The connection is of no more use: every command ends with `status`; whether it was executed is unknown.

        What has not been sent is not sent any more: the commands are over, and their data is their submitters' again.
        """
        if self.failed is not None:
            return
        self.failed = reason
        self._out.clear()
        commands, self._outstanding = list(self._outstanding.values()), {}
        for command in commands:
            command.status = status
            if command.done is not None:
                command.done(command)

    def next_deadline(self) -> int | None:
        """When the oldest command is overdue."""
        for command in self._outstanding.values():
            if command.deadline_ns is not None:
                return command.deadline_ns
        return None

    def tick(self, now_ns: int) -> None:
        """An overdue command means that the connection is dead."""
        deadline_ns = self.next_deadline()
        if deadline_ns is not None and deadline_ns <= now_ns:
            self.fail(f"queue {self.qid}: a command was not answered in time")

    # Bytes in

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Where to receive next; tell `buffer_updated` how much came."""
        return self._receive.get()

    def buffer_updated(self, count: int, now_ns: int) -> None:
        """`count` bytes are there; completed commands are `done`. See `failed` afterwards."""
        if self.failed is not None:
            self._receive.sink = None
            self._receive.head = self._receive.tail = 0
            return
        self._now_ns = now_ns
        receive = self._receive
        try:
            if receive.received(count):
                receive.take_sink()
                self._sink_full()
            if receive.sink is None:
                while self._complete_plain() and self._next_pdu():
                    pass
                receive.consumed(receive.head)
        except PduError as error:
            head = receive.head
            header = bytes(receive.view[head : min(receive.tail, head + pdu.CAPSULE_BYTES)])
            self.fail(str(error))
            self._out.append(pdu.term_request(PduType.H2C_TERM_REQ, error, header))

    def receive_data(self, data: Buffer, now_ns: int) -> None:
        """The same for bytes that are somewhere already."""
        at, size = 0, memoryview(data).nbytes
        while at < size:
            count = feed(self.get_buffer(), data, at)
            at += count
            self.buffer_updated(count, now_ns)

    def _complete_plain(self) -> bool:
        """The fast path: responses and whole reads, while there are no digests. True: go on PDU by PDU."""
        receive, outstanding = self._receive, self._outstanding
        data, view, head, tail = receive.data, receive.view, receive.head, receive.tail
        if not self.initialized or self.framing.header_digest or self.framing.data_digest or self._digest_due:
            return True
        unpack = _DATA_OR_RESPONSE.unpack_from
        while tail - head >= 24:
            kind, flags, hlen, pdo, plen, result, _head, _queue, cid, status = unpack(data, head)
            if kind == PduType.CAPSULE_RESP:
                command = outstanding.get(cid)
                if plen != 24 or hlen != 24 or command is None:
                    break
                head += 24
                status >>= 1
            elif kind == PduType.C2H_DATA and pdo == 24 and hlen == 24 and flags == spec.FLAG_LAST | spec.FLAG_SUCCESS:
                cid = result & 0xFFFF
                command = outstanding.get(cid)
                end = head + plen
                if command is None or end > tail or result >> 32 or command.data is None:
                    break
                if command.writes or plen - 24 != command.data.nbytes or _head | _queue << 16 != plen - 24:
                    break
                command.data[:] = view[head + 24 : end]
                command.received = plen - 24
                head = end
                result = status = 0
            else:
                break
            receive.head = head
            del outstanding[cid]
            self._free.append(cid)
            self._finish(command, status, result)
            if self.failed is not None:
                return False
        receive.head = head
        return True

    def _next_pdu(self) -> bool:
        receive = self._receive
        if self._digest_due:
            return self._data_digest()
        head, available = receive.head, receive.tail - receive.head
        if available < pdu.COMMON_BYTES or self.failed is not None:
            return False
        kind, flags, hlen, pdo, plen = pdu.COMMON.unpack_from(receive.data, head)
        self.framing.check_common(pdu.CONTROLLER, self.initialized, kind, flags, hlen, pdo, plen)
        digest_bytes = DIGEST_BYTES if flags & spec.FLAG_HDGST else 0
        if available < hlen + digest_bytes:
            return False
        if digest_bytes:
            (received,) = DIGEST.unpack_from(receive.data, head + hlen)
            pdu.check_header_digest(bytes(receive.view[head : head + hlen]), received)
        if kind == PduType.C2H_DATA:
            if available < pdo:
                return False
            self._c2h_data(head, flags, pdo, plen)
        elif available < plen:
            return False
        else:
            receive.head = head + plen
            self._whole_pdu(kind, head)
        return receive.sink is None and self.failed is None

    def _whole_pdu(self, kind: int, head: int) -> None:
        data = self._receive.data
        if kind == PduType.CAPSULE_RESP:
            *_, low, high, _head, _queue, cid, status = pdu.RESPONSE.unpack_from(data, head)
            command = self._outstanding.pop(cid, None)
            if command is None:
                refuse_field(pdu.AT_RESPONSE_CID, f"response to command {cid}, which is not outstanding")
            self._free.append(cid)
            self._finish(command, status >> 1, low | high << 32)
        elif kind == PduType.R2T:
            *_, cid, tag, offset, length = pdu.DATA.unpack_from(data, head)
            self._r2t(cid, tag, offset, length)
        elif kind == PduType.IC_RESP:
            self._ic_resp(head)
        else:
            *_, fes, _fei = pdu.TERM.unpack_from(data, head)
            self.fail(f"the controller terminated the connection: {_FES_TEXT.get(fes, fes)}")

    def _ic_resp(self, head: int) -> None:
        *_, version, alignment, digests, h2c_data_max = pdu.IC.unpack_from(self._receive.data, head)
        if version:
            refuse_field(pdu.AT_PFV, f"PDU format version {version}")
        if alignment > pdu.ALIGNMENT_MAX:
            refuse_field(pdu.AT_ALIGNMENT, f"data alignment {alignment}")
        if h2c_data_max < pdu.MAXH2CDATA_MIN or h2c_data_max % 4:
            refuse_field(pdu.AT_MAXH2CDATA, f"at most {h2c_data_max} bytes of host data in a PDU")
        wanted = self._wanted[0] | self._wanted[1] << 1
        if digests & ~wanted:
            refuse_field(pdu.AT_ALIGNMENT + 1, "a digest that was not asked for")
        self.h2c_data_max = h2c_data_max
        self.framing = Framing(bool(digests & 1), bool(digests & 2), alignment)
        self.initialized = True
        if self._on_initialized is not None:
            self._on_initialized()

    def _r2t(self, cid: int, tag: int, offset: int, length: int) -> None:
        """Send what the controller asks for, in PDUs of at most MAXH2CDATA."""
        command = self._outstanding.get(cid)
        if command is None or command.data is None or not command.writes:
            refuse_field(pdu.AT_CCCID, f"R2T for command {cid}, which has no data to send")
        if offset != command.received or not length or offset + length > command.data.nbytes:
            raise PduError(FatalError.DATA_OUT_OF_RANGE, 0, f"R2T for {length} bytes at {offset}")
        command.received = end = offset + length
        while offset < end:
            count = min(self.h2c_data_max, end - offset)
            part = command.data[offset : offset + count]
            last = offset + count == end
            self._out += pdu.data_pdu(self.framing, PduType.H2C_DATA, cid, tag, offset, part, last=last)
            offset += count

    def _c2h_data(self, head: int, flags: int, pdo: int, plen: int) -> None:
        *_, cid, _reserved, offset, length = pdu.DATA.unpack_from(self._receive.data, head)
        if length != plen - pdo - (DIGEST_BYTES if self.framing.data_digest else 0):
            refuse_field(pdu.AT_DATAL, f"data length {length}")
        command = self._outstanding.get(cid)
        if command is None or command.data is None or command.writes:
            refuse_field(pdu.AT_CCCID, f"data for command {cid}, which takes none")
        if offset != command.received or offset + length > command.data.nbytes:
            raise PduError(FatalError.DATA_OUT_OF_RANGE, 0, f"{length} bytes of data at {offset}")
        if flags & spec.FLAG_SUCCESS and not flags & spec.FLAG_LAST:
            refuse_field(pdu.AT_FLAGS, "success before the last PDU")
        self._reading, self._read_start, self._read_end = command, offset, offset + length
        self._read_flags = flags
        receive = self._receive
        start = head + pdo
        sink = command.data[offset : offset + length]
        receive.head = start + receive.fill(sink, start, receive.tail - start)
        if receive.sink is None:
            self._sink_full()

    def _sink_full(self) -> None:
        if self.framing.data_digest:
            self._digest_due = True
        else:
            self._data_done()

    def _data_digest(self) -> bool:
        receive = self._receive
        if receive.tail - receive.head < DIGEST_BYTES:
            return False
        (received,) = DIGEST.unpack_from(receive.data, receive.head)
        receive.head += DIGEST_BYTES
        self._digest_due = False
        command = self._reading
        assert command is not None and command.data is not None
        if pdu.digest(command.data[self._read_start : self._read_end]) != received:
            command.damaged = True
        self._data_done()
        return self.failed is None

    def _data_done(self) -> None:
        command, self._reading = self._reading, None
        assert command is not None
        command.received = self._read_end
        if self._read_flags & spec.FLAG_SUCCESS:
            del self._outstanding[command.cid]
            self._free.append(command.cid)
            self._finish(command, 0, 0)

    def _finish(self, command: HostCommand, status: int, result: int) -> None:
        """The command has been answered."""
        assert command.status == PENDING
        data = command.data
        if not status and command.damaged:
            status = Status.TRANSIENT_TRANSPORT_ERROR
        elif not status and command.opcode == Opcode.READ and data is not None and command.received != data.nbytes:
            status = Status.DATA_TRANSFER_ERROR
        command.status = status
        command.result = result
        if command.done is not None:
            command.done(command)
