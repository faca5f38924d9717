"""One TCP connection of a host, receiving: PDUs in, commands for the owner out.

Bytes come by `get_buffer`/`buffer_updated` (zero-copy) or `receive_data`; both return the commands that the owner has
to execute and `complete`. Reads and in-capsule writes that the namespace's owner answers at once never become a
command. `data_to_send` returns buffers in order; while `stalled`, send them, then `resume`.

Malformed PDUs: C2HTermReq, then `closing` (TCP Transport Specification, error handling); a wrong data digest only
fails its command, as a transient transport error.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from fabric.nvme_tcp import admin, fabrics, io_commands, pdu, spec
from fabric.nvme_tcp.capsule import Sqe, unpack_sqe
from fabric.nvme_tcp.command import Command
from fabric.nvme_tcp.io_commands import IO_CAPSULE, IoFields
from fabric.nvme_tcp.pdu import DIGEST, DIGEST_BYTES, Framing, PduError, refuse_field
from fabric.nvme_tcp.queue_pair import C2H, C2H_LAST, C2H_SUCCESS, CQE, RESPONSE, SQ_HEAD_UNUSED, QueuePair
from fabric.nvme_tcp.receive import feed
from fabric.nvme_tcp.spec import DNR, FABRICS_OPCODE, FatalError, Opcode, PduType, Status

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from fabric.nvme_tcp.subsystem import Listener, Namespace
    from fabric.nvme_tcp.target import NvmeTarget

# A whole capsule: common header as one number; opcode and flags; cid; nsid; SGL; SLBA; number of blocks; control.
_FAST: Final = Struct("<QHHI16xQI3xBQHH12x")
_READ: Final = spec.PSDT_SGL << 8 | Opcode.READ
_WRITE: Final = spec.PSDT_SGL << 8 | Opcode.WRITE
_CAPSULE_ALONE: Final = PduType.CAPSULE_CMD | 72 << 16 | 72 << 32
_CAPSULE_DATA: Final = PduType.CAPSULE_CMD | 72 << 16 | 72 << 24
_CONTROL_PLAIN: Final = 0x7FFF  # any of these (FUA, protection …) leaves the fast path; limited retry does not


class TargetConnection(QueuePair):
    """A queue pair of the target, from ICReq to the end of its last command."""

    def __init__(self, target: NvmeTarget, listener: Listener, peer: str, now_ns: int) -> None:
        super().__init__(target, listener, peer, now_ns)
        self.stalled = False
        self._digest_due = False

    # Bytes in

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Where to receive next; tell `buffer_updated` how much came."""
        return self._receive.get()

    def buffer_updated(self, count: int, now_ns: int) -> list[Command]:
        """`count` bytes are there. Returns the commands that are ready to be executed."""
        self.now_ns = now_ns
        commands: list[Command] = []
        if self.closing:
            self._receive.sink = None
            self._receive.head = self._receive.tail = 0
            return commands
        try:
            if self._receive.received(count):
                self._receive.take_sink()
                self._sink_full(commands)
            if self._receive.sink is None:
                self._parse(commands)
        except PduError as error:
            self.terminate(error)
        return commands

    def receive_data(self, data: Buffer, now_ns: int) -> list[Command]:
        """The same for bytes that are somewhere already, without regard to `stalled`."""
        commands: list[Command] = []
        at, size = 0, memoryview(data).nbytes
        while at < size:
            count = feed(self.get_buffer(), data, at)
            at += count
            commands += self.buffer_updated(count, now_ns)
            while self.stalled:
                commands += self.resume(now_ns)
        return commands

    def resume(self, now_ns: int) -> list[Command]:
        """Go on after a stall: what was to be sent has been sent."""
        self.stalled = False
        return self.buffer_updated(0, now_ns) if self._receive.sink is None else []

    def _parse(self, commands: list[Command]) -> None:
        receive = self._receive
        limit = self._out_bytes + self.limits.output_size
        while not self.closing:
            if self._fast:
                self._serve(limit, commands)
            if self._out_bytes > limit:
                self.stalled = True
                break
            if not self._next_pdu(commands):
                break
        receive.consumed(receive.head)

    def _serve(self, limit: int, commands: list[Command]) -> None:
        """The fast path, without digests: reads, in-capsule writes; answered at once or handed to the owner.

        Leaves at the first PDU that needs more thought. Checks everything that the slow path checks.
        """
        receive, append, namespaces = self._receive, self._out.append, self._namespaces
        data, view, head, tail = receive.data, receive.view, receive.head, receive.tail
        unpack, pack_c2h, pack_cqe = _FAST.unpack_from, C2H.pack, CQE.pack
        outstanding, success, qid = self._outstanding, self._success, self.qid
        c2h, sq_head, entries = C2H_SUCCESS if success else C2H_LAST, self._sq_head, self.sq_entries
        max_bytes, in_capsule, out_bytes = self.limits.max_io_size, self.limits.in_capsule_data_size, self._out_bytes
        served = read_bytes = written = write_bytes = last_nsid = shift = blocks = 0
        while tail - head >= 72 and out_bytes <= limit:
            common, opcode, cid, nsid, address, sgl_length, sgl_type, slba, nlb, control = unpack(data, head)
            if nsid != last_nsid:
                found = namespaces.get(nsid)
                if found is None:
                    break
                namespace = found
                last_nsid, shift, blocks = nsid, namespace.block_shift, namespace.block_count
                read_now = namespace.read_now
                write_now = namespace.write_now if self._fast_write else None
            nlb += 1
            length = nlb << shift
            if slba + nlb > blocks or sgl_length != length or control & _CONTROL_PLAIN or cid in outstanding:
                break
            answer: Buffer | bool | None = None
            if opcode == _READ:
                if common != _CAPSULE_ALONE or sgl_type != 0x5A or length > max_bytes:
                    break
                end = head + 72
                if read_now is not None and (answer := read_now(slba << shift, length)) is not None:
                    append(pack_c2h(c2h, 24 + length, cid, 0, length))
                    append(answer)
                    read_bytes += length
                    out_bytes += length
                elif not self._begin(commands, served, Opcode.READ, cid, namespace, slba, nlb, None):
                    break
            elif opcode == _WRITE:
                end = head + 72 + length
                if common != _CAPSULE_DATA | (72 + length) << 32 or sgl_type != 1 or address or length > in_capsule:
                    break
                if end > tail or namespace.read_only:
                    break
                carried = view[head + 72 : end]
                if write_now is not None and write_now(slba << shift, carried):
                    answer = True
                    written += 1
                    write_bytes += length
                elif not self._begin(commands, served, Opcode.WRITE, cid, namespace, slba, nlb, carried):
                    break
            else:
                break
            head = end
            sq_head = sq_head + 1 if sq_head + 1 < entries else 0
            if answer is None:
                continue
            served += 1
            if not success:
                append(pack_cqe(RESPONSE, 0, sq_head, qid, cid, 0))
            elif opcode == _WRITE:
                append(pack_cqe(RESPONSE, 0, SQ_HEAD_UNUSED, qid, cid, 0))
        receive.head, self._out_bytes, self._sq_head = head, out_bytes, sq_head
        if served:
            self._account(served, written, read_bytes, write_bytes)

    def _begin(
        self,
        commands: list[Command],
        served: int,
        opcode: int,
        cid: int,
        namespace: Namespace,
        slba: int,
        nlb: int,
        data: memoryview | None,
    ) -> bool:
        """Hand a read or in-capsule write to the owner. False at the depth limit."""
        outstanding, controller = self._outstanding, self.controller
        if len(outstanding) + self._unsent + served >= self.sq_entries or controller is None:
            return False
        command = Command(self, opcode, cid, namespace.nsid)
        command.namespace = namespace
        command.slba = slba
        command.nlb = nlb
        command.offset = slba << namespace.block_shift
        command.length = nlb << namespace.block_shift
        if data is not None:
            command.data = data
            command.lender = self._receive.data
            self._receive.lent += 1
            controller.writes += 1
            controller.bytes_written += command.length
            if not controller.write_cache:
                command.fua = True
        command.owned = True
        outstanding[cid] = command
        commands.append(command)
        return True

    def _account(self, served: int, written: int, read_bytes: int, write_bytes: int) -> None:
        self._unsent += served
        controller = self.controller
        assert controller is not None
        controller.reads += served - written
        controller.writes += written
        controller.bytes_read += read_bytes
        controller.bytes_written += write_bytes
        if self._unsent + len(self._outstanding) > self.sq_entries:
            raise PduError(FatalError.PDU_SEQUENCE_ERROR, 0, f"more than {self.sq_entries} commands at a time")

    def _next_pdu(self, commands: list[Command]) -> bool:
        """Work on the PDU at the head of the receive buffer. False if it has not all come."""
        receive = self._receive
        if self._digest_due:
            return self._data_digest(commands)
        head, available = receive.head, receive.tail - receive.head
        if available < pdu.COMMON_BYTES:
            return False
        kind, flags, hlen, pdo, plen = pdu.COMMON.unpack_from(receive.data, head)
        length = self.framing.check_common(pdu.HOST, self.initialized, kind, flags, hlen, pdo, plen)
        if kind == PduType.CAPSULE_CMD and length > self.limits.in_capsule(self.qid if self.controller else 0):
            raise PduError(FatalError.LIMIT_EXCEEDED, 0, f"{length} bytes in a capsule")
        digest_bytes = DIGEST_BYTES if flags & spec.FLAG_HDGST else 0
        if available < hlen + digest_bytes:
            return False
        if digest_bytes:
            (received,) = DIGEST.unpack_from(receive.data, head + hlen)
            pdu.check_header_digest(bytes(receive.view[head : head + hlen]), received)
        if kind == PduType.H2C_DATA:
            if available < pdo:
                return False
            self._h2c_data(head, flags, pdo, plen, commands)
        elif available < plen:
            return False
        else:
            receive.head = head + plen
            if kind == PduType.CAPSULE_CMD:
                self._capsule(head, flags, pdo, plen, commands)
            elif kind == PduType.IC_REQ:
                self._ic_req(head)
            else:
                self.close("the host terminated the connection")
        return receive.sink is None and not self.closing

    def _ic_req(self, head: int) -> None:
        *_, version, alignment, digests, _r2t_max = pdu.IC.unpack_from(self._receive.data, head)
        if version:
            refuse_field(pdu.AT_PFV, f"PDU format version {version}")
        if alignment > pdu.ALIGNMENT_MAX:
            refuse_field(pdu.AT_ALIGNMENT, f"data alignment {alignment}")
        self.framing = Framing(bool(digests & 1), bool(digests & 2), alignment)
        self.initialized = True
        self.send_pdu(pdu.ic_response(0, self.framing.header_digest, self.framing.data_digest, self.limits.max_io_size))

    # Host data by R2T

    def _h2c_data(self, head: int, flags: int, pdo: int, plen: int, commands: list[Command]) -> None:
        *_, cid, tag, offset, length = pdu.DATA.unpack_from(self._receive.data, head)
        carried = plen - pdo - (DIGEST_BYTES if self.framing.data_digest else 0)
        if length != carried:
            refuse_field(pdu.AT_DATAL, f"data length {length} in a PDU that carries {carried}")
        sink = self._host_data.begin(cid, tag, offset, length, bool(flags & spec.FLAG_LAST))
        receive = self._receive
        start = head + pdo
        receive.head = start + receive.fill(sink, start, receive.tail - start)
        if receive.sink is None:
            self._sink_full(commands)

    def _sink_full(self, commands: list[Command]) -> None:
        """All data of an H2CData PDU is in its place; its digest may be still to come."""
        if self.framing.data_digest:
            self._digest_due = True
        else:
            self._host_data_done(commands)

    def _data_digest(self, commands: list[Command]) -> bool:
        receive = self._receive
        if receive.tail - receive.head < DIGEST_BYTES:
            return False
        (received,) = DIGEST.unpack_from(receive.data, receive.head)
        receive.head += DIGEST_BYTES
        self._digest_due = False
        self._host_data.check_digest(received)
        self._host_data_done(commands)
        return True

    def _host_data_done(self, commands: list[Command]) -> None:
        command = self._host_data.finish_pdu()
        if command is not None:
            self._ready(command, commands)

    # Commands

    def _capsule(self, head: int, flags: int, pdo: int, plen: int, commands: list[Command]) -> None:
        """A whole command capsule: to an I/O, admin or fabrics command."""
        receive = self._receive
        data: memoryview | None = None
        damaged = False
        if plen > pdu.CAPSULE_BYTES + DIGEST_BYTES or (plen > pdu.CAPSULE_BYTES and not flags & spec.FLAG_HDGST):
            end = head + plen - (DIGEST_BYTES if flags & spec.FLAG_DDGST else 0)
            data = receive.view[head + pdo : end]
            if flags & spec.FLAG_DDGST:
                damaged = pdu.digest(data) != DIGEST.unpack_from(receive.data, end)[0]
        opcode, bits, cid, nsid, address, length, kind, slba, cdw12 = IO_CAPSULE.unpack_from(receive.data, head)
        command = Command(self, opcode, cid, nsid)
        if cid in self._outstanding and not self._withdraw_event_request(cid):
            self.refuse(cid, Status.COMMAND_ID_CONFLICT | DNR)
            return
        self.admit(command)
        if damaged:
            self.complete(command, Status.TRANSIENT_TRANSPORT_ERROR)
            return
        if self.qid > 0 and opcode != FABRICS_OPCODE:
            fields = IoFields(bits, address, length, kind, slba, cdw12, data)
            status = io_commands.check(command, fields, self._namespaces, self.limits.max_io_size)
        else:
            status = self._admin_data(command, unpack_sqe(receive.data, head + pdu.COMMON_BYTES), data)
        if status:
            self.complete(command, status)
        elif command.requested:
            self._host_data.request(command)
        else:
            self._ready(command, commands)

    def _withdraw_event_request(self, cid: int) -> bool:
        """A host that shuts down forgets its event requests without a word and uses their identifiers again (SPDK)."""
        command, controller = self._outstanding[cid], self.controller
        if controller is None or command not in controller.event_requests:
            return False
        controller.event_requests.remove(command)
        self.forget_command(command)
        return True

    def _admin_data(self, command: Command, sqe: Sqe, data: memoryview | None) -> int:
        """Find the host data of an admin or fabrics command. A status."""
        command.sqe = sqe
        if sqe.flags & spec.FUSE_MASK or sqe.flags & spec.PSDT_MASK != spec.PSDT_SGL:
            return Status.INVALID_FIELD | DNR
        if not sqe.takes_host_data or not sqe.sgl_length:
            return 0
        if sqe.sgl_length > spec.ADMIN_IN_CAPSULE_BYTES:
            return Status.INVALID_FIELD | DNR
        fields = IoFields(sqe.flags, sqe.sgl_address, sqe.sgl_length, sqe.sgl_type, 0, 0, data)
        return io_commands.take_host_data(command, fields, sqe.sgl_length)

    def _ready(self, command: Command, commands: list[Command]) -> None:
        """A command has all its data: hand it to the owner, or answer it here."""
        if command.damaged:
            self.complete(command, Status.TRANSIENT_TRANSPORT_ERROR)
        elif command.sqe is not None:
            if command.opcode == FABRICS_OPCODE:
                fabrics.execute(self, command, command.sqe)
            else:
                admin.execute(self, command, command.sqe)
        else:
            self._hand_over(command, commands)

    def _hand_over(self, command: Command, commands: list[Command]) -> None:
        opcode, controller = command.opcode, self.controller
        assert controller is not None
        if opcode == Opcode.DATASET_MANAGEMENT:
            status = io_commands.read_ranges(command)
            if status or not command.ranges:
                self.complete(command, status)
                return
        elif opcode == Opcode.WRITE:
            controller.writes += 1
            controller.bytes_written += command.length
            command.fua = command.fua or not controller.write_cache
        elif opcode == Opcode.WRITE_ZEROES:
            command.fua = command.fua or not controller.write_cache
        if command.data is not None and command.buffer is None and opcode == Opcode.WRITE:
            command.lender = self._receive.data
            self._receive.lent += 1
        command.owned = True
        commands.append(command)
