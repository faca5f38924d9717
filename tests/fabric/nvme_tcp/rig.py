"""A host that speaks in raw PDUs, written from the standard without the code under test, and a small backend."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import google_crc32c

from fabric.nvme_tcp.command import Command
from fabric.nvme_tcp.limits import TransportLimits
from fabric.nvme_tcp.subsystem import Listener, Namespace, Subsystem
from fabric.nvme_tcp.target import NvmeTarget
from fabric.nvme_tcp.target_connection import TargetConnection

NQN = "nqn.2026-11.io.segmap:test"
HOST = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000001"
HOSTID = bytes(range(16))
LISTENER = Listener("127.0.0.1", "4420")
BLOCK = 512
BLOCKS = 4096
IC_REQ, IC_RESP, H2C_TERM, C2H_TERM, CAPSULE, RESPONSE, H2C, C2H, R2T = 0, 1, 2, 3, 4, 5, 6, 7, 9
FLUSH, WRITE, READ, WRITE_ZEROES, DSM = 0, 1, 2, 8, 9
IDENTIFY, GET_LOG, ABORT, SET_FEATURES, GET_FEATURES, AER, KEEP_ALIVE, FABRICS = 6, 2, 8, 9, 10, 12, 0x18, 0x7F


@dataclass
class Pdu:
    """One PDU that the target sent."""

    kind: int
    flags: int
    header: bytes
    data: bytes

    @property
    def status(self) -> int:
        """Of a response: status code type and code."""
        return self.status_field & 0x7FF

    @property
    def status_field(self) -> int:
        assert self.kind == RESPONSE
        return int(struct.unpack_from("<H", self.header, 22)[0]) >> 1

    @property
    def do_not_retry(self) -> bool:
        return bool(self.status_field & 0x4000)

    @property
    def result(self) -> int:
        return int(struct.unpack_from("<Q", self.header, 8)[0])

    @property
    def sq_head(self) -> int:
        return int(struct.unpack_from("<H", self.header, 16)[0])

    @property
    def cid(self) -> int:
        return int(struct.unpack_from("<H", self.header, 20 if self.kind == RESPONSE else 8)[0])

    @property
    def tag(self) -> int:
        return int(struct.unpack_from("<H", self.header, 10)[0])

    @property
    def offset(self) -> int:
        return int(struct.unpack_from("<I", self.header, 12)[0])

    @property
    def length(self) -> int:
        return int(struct.unpack_from("<I", self.header, 16)[0])

    @property
    def fes_fei(self) -> tuple[int, int]:
        assert self.kind == C2H_TERM
        return struct.unpack_from("<HI", self.header, 8)


def parse(stream: bytes) -> Iterator[Pdu]:
    """Every PDU in `stream`, which must end with a whole one; digests are verified."""
    while stream:
        kind, flags, hlen, pdo, plen = struct.unpack_from("<BBBBI", stream)
        assert hlen <= plen <= len(stream)
        header, end = stream[:hlen], plen
        if flags & 1:
            assert struct.unpack_from("<I", stream, hlen)[0] == google_crc32c.value(header)
        if kind == C2H_TERM:
            pdo = hlen
        data = stream[pdo : end - (4 if flags & 2 else 0)] if pdo else b""
        if flags & 2:
            assert struct.unpack_from("<I", stream, end - 4)[0] == google_crc32c.value(data)
        yield Pdu(kind, flags, header, data)
        stream = stream[plen:]


def ic_req(version: int = 0, alignment: int = 0, digests: int = 0, r2t_max: int = 0) -> bytes:
    return struct.pack("<BBBBIHBBI", IC_REQ, 0, 128, 0, 128, version, alignment, digests, r2t_max).ljust(128, b"\0")


def sqe(opcode: int, cid: int, nsid: int = 0, *dwords: int, flags: int = 0x40, sgl: tuple[int, int, int]) -> bytes:
    """64 bytes; `sgl`: address, length, type; `dwords` from 10 on."""
    words = (*dwords, 0, 0, 0, 0, 0, 0)[:6]
    return struct.pack("<BBHI16xQI3xB6I", opcode, flags, cid, nsid, *sgl, *words)


def capsule(entry: bytes, data: bytes = b"", *, digests: int = 0, pdo: int | None = None) -> bytes:
    """A command capsule with in-capsule data."""
    hlen = 72
    start = hlen + (4 if digests & 1 else 0)
    offset = (start if pdo is None else pdo) if data else 0
    plen = (offset + len(data) + (4 if digests & 2 else 0)) if data else start
    flags = digests if data else digests & 1
    header = struct.pack("<BBBBI", CAPSULE, flags, hlen, offset, plen) + entry
    if digests & 1:
        header += struct.pack("<I", google_crc32c.value(header))
    if not data:
        return header
    tail = struct.pack("<I", google_crc32c.value(data)) if digests & 2 else b""
    return header.ljust(offset, b"\0") + data + tail


def h2c(cid: int, tag: int, offset: int, data: bytes, *, last: bool, digests: int = 0, length: int = -1) -> bytes:
    """An H2CData PDU."""
    start = 24 + (4 if digests & 1 else 0)
    plen = start + len(data) + (4 if digests & 2 else 0)
    flags = digests | (4 if last else 0)
    size = len(data) if length < 0 else length
    header = struct.pack("<BBBBIHHII4x", H2C, flags, 24, start, plen, cid, tag, offset, size)
    if digests & 1:
        header += struct.pack("<I", google_crc32c.value(header))
    return header + data + (struct.pack("<I", google_crc32c.value(data)) if digests & 2 else b"")


def connect_capsule(
    qid: int,
    cntlid: int = 0xFFFF,
    *,
    subnqn: str = NQN,
    hostnqn: str = HOST,
    hostid: bytes = HOSTID,
    entries: int = 32,
    no_flow_control: bool = False,
    keep_alive_ms: int = 0,
    recfmt: int = 0,
    digests: int = 0,
    cid: int = 0,
) -> bytes:
    data = hostid + struct.pack("<H238x", cntlid) + subnqn.encode().ljust(256, b"\0") + hostnqn.encode()
    data = data.ljust(1024, b"\0")
    dwords = (recfmt | qid << 16, (entries - 1) | (4 if no_flow_control else 0) << 16, keep_alive_ms)
    return capsule(sqe(FABRICS, cid, 1, *dwords, sgl=(0, 1024, 1)), data, digests=digests)


def property_get(offset: int, wide: int = 0, cid: int = 0) -> bytes:
    return capsule(sqe(FABRICS, cid, 4, wide, offset, sgl=(0, 0, 0x5A)))


def property_set(offset: int, value: int, cid: int = 0) -> bytes:
    return capsule(sqe(FABRICS, cid, 0, 0, offset, value, sgl=(0, 0, 0x5A)))


def read(cid: int, slba: int, blocks: int, nsid: int = 1, control: int = 0, length: int = -1) -> bytes:
    size = blocks * BLOCK if length < 0 else length
    dwords = (slba & 0xFFFFFFFF, slba >> 32, blocks - 1 | control << 16)
    return capsule(sqe(READ, cid, nsid, *dwords, sgl=(0, size, 0x5A)))


def write(cid: int, slba: int, data: bytes, nsid: int = 1, control: int = 0, digests: int = 0) -> bytes:
    """In the capsule."""
    dwords = (slba & 0xFFFFFFFF, slba >> 32, len(data) // BLOCK - 1 | control << 16)
    return capsule(sqe(WRITE, cid, nsid, *dwords, sgl=(0, len(data), 1)), data, digests=digests)


def write_by_r2t(cid: int, slba: int, length: int, nsid: int = 1, digests: int = 0) -> bytes:
    dwords = (slba & 0xFFFFFFFF, slba >> 32, length // BLOCK - 1)
    return capsule(sqe(WRITE, cid, nsid, *dwords, sgl=(0, length, 0x5A)), digests=digests)


def admin(opcode: int, cid: int, nsid: int = 0, *dwords: int, length: int = 4096) -> bytes:
    return capsule(sqe(opcode, cid, nsid, *dwords, sgl=(0, length, 0x5A)))


class Rig:
    """A target with one namespace in memory. `fast`: answered in the parse loop; `park`: commands wait in `parked`."""

    def __init__(
        self, limits: TransportLimits | None = None, *, fast: bool = True, park: bool = False, **namespace: object
    ) -> None:
        self.limits = limits or TransportLimits(in_capsule_data_size=4096, max_io_size=65536)
        self.target = NvmeTarget(self.limits)
        self.memory = bytearray(BLOCK * BLOCKS)
        self.park = park
        self.parked: list[Command] = []
        self.executed: list[tuple[int, int, int, bool]] = []
        self.now_ns = 0
        self.target.add_subsystem(Subsystem(NQN, serial="S1", cntlid_min=5, cntlid_max=9))
        self.target.allow_host(NQN, HOST)
        self.target.add_listener(NQN, LISTENER)
        self.namespace = Namespace(1, BLOCK, BLOCKS, volatile_cache=True, **namespace)  # type: ignore[arg-type]
        if fast:
            self.namespace.read_now = self.read_now
            self.namespace.write_now = self.write_now
        self.target.add_namespace(NQN, self.namespace)

    def read_now(self, offset: int, length: int) -> bytes | None:
        return bytes(self.memory[offset : offset + length])

    def write_now(self, offset: int, data: memoryview) -> bool:
        self.memory[offset : offset + len(data)] = data
        return True

    def execute(self, commands: list[Command]) -> None:
        for command in commands:
            if self.park:
                self.parked.append(command)
            else:
                self.finish(command)

    def finish(self, command: Command, status: int = 0) -> None:
        """Do what the command says, and complete it."""
        self.executed.append((command.opcode, command.offset, command.length, command.fua))
        data: bytes | None = None
        if status == 0 and command.opcode == READ:
            data = bytes(self.memory[command.offset : command.offset + command.length])
        elif status == 0 and command.opcode == WRITE:
            assert command.data is not None
            self.memory[command.offset : command.offset + command.length] = command.data
        elif status == 0 and command.opcode == WRITE_ZEROES:
            self.memory[command.offset : command.offset + command.length] = bytes(command.length)
        elif status == 0 and command.opcode == DSM:
            for start, count in command.ranges:
                self.memory[start * BLOCK : (start + count) * BLOCK] = bytes(count * BLOCK)
        command.connection.complete(command, status, data)

    def connection(self) -> TargetConnection:
        connection = self.target.accept(LISTENER, "host:1", self.now_ns)
        assert connection is not None
        return connection

    def host(self, digests: int = 0, alignment: int = 0) -> RawHost:
        """A connection after ICReq."""
        host = RawHost(self, digests=digests)
        (response,) = host.send(ic_req(digests=digests, alignment=alignment))
        assert response.kind == IC_RESP
        return host

    def controller(self, digests: int = 0, **connect: object) -> RawHost:
        """An admin queue whose controller is ready."""
        host = self.host(digests)
        (response,) = host.send(connect_capsule(0, digests=digests, **connect))  # type: ignore[arg-type]
        assert response.status == 0
        host.cntlid = response.result & 0xFFFF
        if not digests:
            host.send(property_set(0x14, 1 | 6 << 16 | 4 << 20))
        else:
            entry = sqe(FABRICS, 0, 0, 0, 0x14, 1 | 6 << 16 | 4 << 20, sgl=(0, 0, 0x5A))
            host.send(capsule(entry, digests=digests & 1))
        return host

    def queue(self, admin_host: RawHost, qid: int = 1, digests: int = 0, **connect: object) -> RawHost:
        """An I/O queue of that controller."""
        host = self.host(digests)
        arguments = {"entries": 32, "no_flow_control": True, "digests": digests} | connect
        (response,) = host.send(connect_capsule(qid, admin_host.cntlid, **arguments))  # type: ignore[arg-type]
        assert response.status == 0, hex(response.status)
        return host

    def io_queue(self, **connect: object) -> RawHost:
        return self.queue(self.controller(), **connect)  # type: ignore[arg-type]


@dataclass
class RawHost:
    """The host's end of one connection; `send` feeds bytes and returns what the target answered."""

    rig: Rig
    digests: int = 0
    chunk: int = 0
    cntlid: int = 0xFFFF
    connection: TargetConnection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = self.rig.connection()

    def send(self, data: bytes) -> list[Pdu]:
        """Whole, or in pieces of `chunk` bytes."""
        step = self.chunk or max(1, len(data))
        answers = []
        for at in range(0, len(data), step):
            commands = self.connection.receive_data(data[at : at + step], self.rig.now_ns)
            self.rig.execute(commands)
            answers.append(b"".join(self.connection.data_to_send()))
        return list(parse(b"".join(answers)))

    def answers(self) -> list[Pdu]:
        """What the target has to say without having been asked."""
        return list(parse(b"".join(self.connection.data_to_send())))
