"""The host's queue: against the target in memory in any chunking, and against a controller that misbehaves."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.nvme_tcp import host_command
from fabric.nvme_tcp.capsule import Sqe, pack_ranges
from fabric.nvme_tcp.host_command import HostCommand
from fabric.nvme_tcp.host_controller import (
    HostController,
    HostParameters,
    Lost,
    NamespacesChanged,
    OpenConnection,
    Ready,
)
from fabric.nvme_tcp.initiator import InitiatorQueue, QueueFullError
from fabric.nvme_tcp.limits import TransportLimits
from fabric.nvme_tcp.spec import DISCOVERY_NQN, Opcode, Status
from fabric.nvme_tcp.subsystem import Listener, Namespace
from fabric.nvme_tcp.target_connection import TargetConnection
from tests.fabric.nvme_tcp.rig import BLOCK, BLOCKS, HOST, HOSTID, NQN, Rig

SECOND = 1_000_000_000
Chunker = Callable[[int], int]


def whole(size: int) -> int:
    return size


class Wire:
    """Carries bytes between a HostController's queues and a Rig, in pieces; time stands still unless it is turned."""

    def __init__(self, rig: Rig, chunker: Chunker = whole, **parameters: object) -> None:
        self.rig = rig
        self.chunker = chunker
        self.now_ns = 0
        arguments = {
            "subnqn": NQN,
            "hostnqn": HOST,
            "hostid": HOSTID,
            "queue_depth": 16,
            "keep_alive_ms": 0,
        } | parameters
        self.controller = HostController(HostParameters(**arguments))  # type: ignore[arg-type]
        self.connections: dict[int, TargetConnection] = {}
        self.effects: list[object] = []
        self.cut: set[int] = set()

    def start(self) -> Wire:
        self.controller.start(self.now_ns)
        self.run()
        return self

    def run(self) -> None:
        """Until nothing moves any more."""
        moved = True
        while moved:
            moved = False
            for effect in self.controller.take_effects():
                moved = True
                self.effects.append(effect)
                if isinstance(effect, OpenConnection):
                    self.connections[effect.qid] = self.rig.connection()
                    self.controller.queue(effect.qid).start()
            for qid, connection in list(self.connections.items()):
                moved = self._carry(qid, connection) or moved

    def _carry(self, qid: int, connection: TargetConnection) -> bool:
        queue = self.controller.queue(qid)
        up = b"".join(queue.data_to_send())
        for piece in self._pieces(up):
            self.rig.execute(connection.receive_data(piece, self.now_ns))
        down = b"" if qid in self.cut else b"".join(connection.data_to_send())
        for piece in self._pieces(down):
            queue.receive_data(piece, self.now_ns)
        self.controller.received(self.now_ns)
        return bool(up or down)

    def _pieces(self, data: bytes) -> list[bytes]:
        pieces = []
        while data:
            size = self.chunker(len(data))
            pieces.append(data[:size])
            data = data[size:]
        return pieces

    def submit(self, command: HostCommand, qid: int = 1) -> HostCommand:
        self.controller.queue(qid).submit(command, self.now_ns)
        self.run()
        return command


def ready(rig: Rig | None = None, chunker: Chunker = whole, **parameters: object) -> Wire:
    wire = Wire(rig or Rig(), chunker, **parameters).start()
    assert Ready() in wire.effects, wire.effects
    return wire


def test_bring_up() -> None:
    rig = Rig(uuid=b"u" * 16, nguid=b"n" * 16)
    rig.target.add_namespace(NQN, Namespace(3, 4096, 10, read_only=True))
    wire = ready(rig, io_queues=3)
    controller = wire.controller
    assert [effect.qid for effect in wire.effects if isinstance(effect, OpenConnection)] == [0, 1, 2, 3]
    assert (controller.cntlid, controller.identity.serial, controller.identity.model) == (5, "S1", "segmap")
    assert controller.identity.transfer_bytes == 65536
    assert controller.identity.in_capsule_bytes == 4096
    first, second = controller.namespaces[1], controller.namespaces[3]
    assert (first.block_size, first.block_count, first.uuid, first.nguid) == (512, BLOCKS, b"u" * 16, b"n" * 16)
    assert (second.block_size, second.read_only, first.read_only) == (4096, True, False)
    assert first.deallocate and first.write_zeroes


def test_fewer_queues_and_entries_than_wanted() -> None:
    wire = ready(Rig(TransportLimits(max_io_queues=2, max_queue_depth=8)), io_queues=9, queue_depth=100)
    assert len(wire.controller.queues) == 2
    assert wire.controller.queues[0].room == 7


operations = st.lists(
    st.tuples(st.sampled_from(["read", "write"]), st.integers(0, BLOCKS - 128), st.integers(1, 128)), max_size=12
)


@settings(max_examples=40, deadline=None)
@given(
    digests=st.tuples(st.booleans(), st.booleans()),
    fast=st.booleans(),
    in_capsule=st.sampled_from([0, 4096, 8192]),
    steps=operations,
    seed=st.integers(0, 2**32),
)
def test_any_operations_in_any_chunking(
    digests: tuple[bool, bool], fast: bool, in_capsule: int, steps: list[tuple[str, int, int]], seed: int
) -> None:
    chance = random.Random(seed)

    def chunker(size: int) -> int:
        return chance.choice((size, chance.randint(1, size), min(size, chance.randint(1, 100))))

    rig = Rig(TransportLimits(max_io_size=65536, in_capsule_data_size=in_capsule), fast=fast)
    wire = ready(rig, chunker, header_digest=digests[0], data_digest=digests[1])
    model = bytearray(len(rig.memory))
    for kind, slba, blocks in steps:
        at, length = slba * BLOCK, blocks * BLOCK
        if kind == "write":
            data = chance.randbytes(length)
            command = wire.submit(HostCommand(Opcode.WRITE, 1, slba, blocks, data))
            model[at : at + length] = data
        else:
            into = bytearray(length)
            command = wire.submit(HostCommand(Opcode.READ, 1, slba, blocks, into))
            assert into == model[at : at + length]
        assert command.status == 0
    assert rig.memory == model


def test_many_commands_at_a_time() -> None:
    wire = ready(Rig(fast=False), queue_depth=15)
    rig, queue = wire.rig, wire.controller.queue(1)
    rig.memory[:] = os.urandom(len(rig.memory))
    buffers = [bytearray(4096) for _ in range(15)]
    done: list[int] = []
    for index, buffer in enumerate(buffers):
        command = HostCommand(Opcode.READ, 1, index * 8, 8, buffer, done=lambda command: done.append(command.slba))
        queue.submit(command, 0)
    with pytest.raises(QueueFullError):
        queue.submit(HostCommand(Opcode.READ, 1, 0, 8, bytearray(4096)), 0)
    wire.run()
    assert sorted(done) == [index * 8 for index in range(15)]
    assert b"".join(buffers) == rig.memory[: 15 * 4096]
    assert queue.room == 15


def test_every_kind_of_command() -> None:
    wire = ready()
    rig = wire.rig
    rig.memory[:] = b"x" * len(rig.memory)

    def nothing(_command: HostCommand) -> None:
        pass

    assert wire.submit(host_command.flush(1, nothing)).status == 0
    assert wire.submit(host_command.write_zeroes(1, 8, 8, nothing, deallocate=True, fua=True)).status == 0
    sqe = Sqe(Opcode.DATASET_MANAGEMENT, 1, 1, 4)
    data = pack_ranges([(100, 2), (200, 2)])
    assert wire.submit(HostCommand(sqe.opcode, 1, data=data, sqe=sqe)).status == 0
    assert wire.submit(HostCommand(Opcode.WRITE, 1, 0, 1, bytes(BLOCK), fua=True)).status == 0
    assert [item[0] for item in rig.executed] == [0, 8, 9, 1]
    assert rig.executed[1][3] and rig.executed[3][3]
    assert rig.memory[8 * BLOCK : 16 * BLOCK] == bytes(8 * BLOCK)
    refused = wire.submit(HostCommand(Opcode.READ, 1, BLOCKS, 1, bytearray(BLOCK)))
    assert refused.status & 0x7FF == Status.LBA_OUT_OF_RANGE


def test_namespace_changes_arrive() -> None:
    wire = ready()
    target = wire.rig.target
    target.resize_namespace(NQN, 1, 100)
    wire.run()
    assert NamespacesChanged() in wire.effects
    assert wire.controller.namespaces[1].block_count == 100
    for nsid in (2, 3, 4):
        target.add_namespace(NQN, Namespace(nsid, 512, nsid))
        wire.run()
    target.remove_namespace(NQN, 1)
    wire.run()
    assert sorted(wire.controller.namespaces) == [2, 3, 4]


def test_discovery() -> None:
    rig = Rig()
    rig.target.add_listener(NQN, Listener("10.0.0.1", "4421"))
    wire = ready(rig, subnqn=DISCOVERY_NQN)
    assert [(entry.subnqn, entry.traddr, entry.is_discovery) for entry in wire.controller.discovery] == [
        (DISCOVERY_NQN, "127.0.0.1", True),
        (NQN, "127.0.0.1", False),
        (NQN, "10.0.0.1", False),
    ]


# What goes wrong


def test_refused_host() -> None:
    wire = Wire(Rig(), hostnqn="nqn.2026-11.io.segmap:stranger").start()
    (lost,) = [effect for effect in wire.effects if isinstance(effect, Lost)]
    assert lost.status & 0x7FF == Status.CONNECT_INVALID_HOST
    assert "CONNECT_INVALID_HOST" in lost.reason


def test_a_lost_connection_ends_every_command_once() -> None:
    rig = Rig(fast=False, park=True)
    wire = ready(rig)
    ended: list[int] = []
    for slba in range(3):
        command = HostCommand(Opcode.READ, 1, slba, 1, bytearray(BLOCK), done=lambda each: ended.append(each.status))
        wire.controller.queue(1).submit(command, 0)
    wire.run()
    wire.controller.lost("the wire was cut")
    wire.controller.lost("again")
    assert ended == [Status.HOST_PATH_ERROR] * 3
    assert [effect for effect in wire.controller.take_effects() if isinstance(effect, Lost)] == [
        Lost("the wire was cut", 0)
    ]
    with pytest.raises(QueueFullError):
        wire.controller.queue(1).submit(HostCommand(Opcode.READ, 1, 0, 1, bytearray(BLOCK)), 0)


def test_an_unanswered_command_is_the_end() -> None:
    rig = Rig(fast=False, park=True)
    wire = ready(rig, io_timeout_ns=5 * SECOND)
    command = wire.submit(HostCommand(Opcode.READ, 1, 0, 1, bytearray(BLOCK)))
    assert wire.controller.next_deadline() == 5 * SECOND
    wire.controller.tick(5 * SECOND - 1)
    assert not wire.controller.ended
    wire.controller.tick(5 * SECOND)
    assert wire.controller.ended and command.status == Status.HOST_PATH_ERROR


def test_keep_alive_is_sent_and_missed() -> None:
    wire = ready(keep_alive_ms=2000)
    for second in range(1, 10):
        wire.now_ns = second * SECOND
        wire.controller.tick(wire.now_ns)
        wire.run()
        wire.rig.target.tick(wire.now_ns)
    assert not wire.controller.ended
    wire.cut.add(0)
    wire.now_ns += SECOND
    wire.controller.tick(wire.now_ns)
    wire.run()
    wire.now_ns += 10 * SECOND
    wire.controller.tick(wire.now_ns)
    assert wire.controller.ended


def queue_in_use(entries: int = 8) -> InitiatorQueue:
    """A queue after ICResp, with a read (cid 0), a write by R2T (cid 1) and a flush (cid 2) outstanding."""
    queue = InitiatorQueue(1, entries, in_capsule_bytes=512)
    queue.start()
    queue.receive_data(ic_resp(), 0)
    queue.submit(HostCommand(Opcode.READ, 1, 0, 8, bytearray(4096)), 0)
    queue.submit(HostCommand(Opcode.WRITE, 1, 0, 16, bytes(8192)), 0)
    queue.submit(host_command.flush(1, lambda _command: None), 0)
    queue.data_to_send()
    return queue


def ic_resp(version: int = 0, alignment: int = 0, digests: int = 0, h2c_max: int = 4096) -> bytes:
    return struct.pack("<BBBBIHBBI", 1, 0, 128, 0, 128, version, alignment, digests, h2c_max).ljust(128, b"\0")


def data_pdu(kind: int, cid: int, tag: int, offset: int, length: int, carried: int = -1, flags: int = 4) -> bytes:
    size = length if carried < 0 else carried
    pdo, plen = (24, 24 + size) if kind == 7 else (0, 24)
    return struct.pack("<BBBBIHHII4x", kind, flags, 24, pdo, plen, cid, tag, offset, length) + bytes(plen - 24)


def response(cid: int, status: int = 0) -> bytes:
    return struct.pack("<BBBBIQHHHH", 5, 0, 24, 0, 24, 0, 0, 1, cid, status << 1)


WRONG = [
    ("unknown type", struct.pack("<BBBBI", 8, 0, 24, 0, 24), (1, 0)),
    ("a host's type", struct.pack("<BBBBI", 4, 0, 72, 0, 72), (1, 0)),
    ("second ICResp", ic_resp(), (2, 0)),
    ("header length", struct.pack("<BBBBI", 5, 0, 23, 0, 24).ljust(24, b"\0"), (1, 2)),
    ("response: PDU length", struct.pack("<BBBBI", 5, 0, 24, 0, 28).ljust(28, b"\0"), (1, 4)),
    ("response: nobody asked", response(3), (1, 20)),
    ("response: no such command", response(0xFFFF), (1, 20)),
    ("data: nobody asked", data_pdu(7, 5, 0, 0, 512), (1, 8)),
    ("data: for a write", data_pdu(7, 1, 0, 0, 512), (1, 8)),
    ("data: for a flush", data_pdu(7, 2, 0, 0, 512), (1, 8)),
    ("data: gap", data_pdu(7, 0, 0, 512, 512), (4, 0)),
    ("data: too much", data_pdu(7, 0, 0, 0, 8192), (4, 0)),
    ("data: length", data_pdu(7, 0, 0, 0, 516, carried=512), (1, 16)),
    ("data: success but not last", data_pdu(7, 0, 0, 0, 512, flags=8), (1, 1)),
    ("data: empty", data_pdu(7, 0, 0, 0, 0), (1, 4)),
    ("R2T: for a read", data_pdu(9, 0, 1, 0, 512, flags=0), (1, 8)),
    ("R2T: for nobody", data_pdu(9, 6, 1, 0, 512, flags=0), (1, 8)),
    ("R2T: too much", data_pdu(9, 1, 1, 0, 8193, flags=0), (4, 0)),
    ("R2T: gap", data_pdu(9, 1, 1, 512, 512, flags=0), (4, 0)),
    ("R2T: empty", data_pdu(9, 1, 1, 0, 0, flags=0), (4, 0)),
]


@pytest.mark.parametrize("chunk", [0, 1])
@pytest.mark.parametrize(("data", "expected"), [pytest.param(*rest, id=name) for name, *rest in WRONG])
def test_malformed_pdus_of_the_controller(data: bytes, expected: tuple[int, int], chunk: int) -> None:
    queue = queue_in_use()
    for at in range(0, len(data), chunk or len(data)):
        queue.receive_data(data[at : at + (chunk or len(data))], 0)
    assert queue.failed is not None
    term = b"".join(queue.data_to_send())
    assert term[0] == 2
    assert struct.unpack_from("<HI", term, 8) == expected
    assert queue.outstanding == 0


def test_commands_that_have_ended_are_not_sent() -> None:
    queue = queue_in_use()
    queue.submit(HostCommand(Opcode.WRITE, 1, 0, 1, bytes(512)), 0)
    queue.receive_data(data_pdu(9, 1, 7, 0, 6144, flags=0), 0)
    queue.fail("another queue is lost")
    assert queue.data_to_send() == []
    queue = queue_in_use()
    queue.submit(HostCommand(Opcode.WRITE, 1, 0, 1, bytes(512)), 0)
    queue.receive_data(b"\xff" * 24, 0)
    assert b"".join(queue.data_to_send())[0] == 2, "only why"


@pytest.mark.parametrize(
    ("data", "place"),
    [(ic_resp(version=1), 8), (ic_resp(alignment=32), 10), (ic_resp(digests=1), 11), (ic_resp(h2c_max=100), 12)],
)
def test_wrong_ic_resp(data: bytes, place: int) -> None:
    queue = InitiatorQueue(1, 8)
    queue.start()
    queue.data_to_send()
    queue.receive_data(data, 0)
    assert struct.unpack_from("<HI", b"".join(queue.data_to_send()), 8) == (1, place)


def test_r2t_is_answered_in_pdus_of_at_most_maxh2cdata() -> None:
    queue = queue_in_use()
    queue.receive_data(data_pdu(9, 1, 7, 0, 6144, flags=0), 0)
    queue.receive_data(data_pdu(9, 1, 8, 6144, 2048, flags=0), 0)
    stream = b"".join(queue.data_to_send())
    seen = []
    while stream:
        _, flags, _, _, plen, cid, tag, offset, length = struct.unpack_from("<BBBBIHHII", stream)
        seen.append((flags, cid, tag, offset, length))
        stream = stream[plen:]
    assert seen == [(0, 1, 7, 0, 4096), (4, 1, 7, 4096, 2048), (4, 1, 8, 6144, 2048)]


def test_data_in_several_pdus_and_a_short_read() -> None:
    queue = queue_in_use()
    queue.receive_data(data_pdu(7, 0, 0, 0, 1024, flags=0) + data_pdu(7, 0, 0, 1024, 3072, flags=12), 0)
    assert queue.outstanding == 2
    buffer = bytearray(4096)
    command = HostCommand(Opcode.READ, 1, 0, 8, buffer)
    queue.submit(command, 0)
    queue.receive_data(data_pdu(7, command.cid, 0, 0, 512, flags=4) + response(command.cid), 0)
    assert command.status == Status.DATA_TRANSFER_ERROR


def test_the_controllers_term_request_ends_it() -> None:
    queue = queue_in_use()
    queue.receive_data(struct.pack("<BBBBIHI10x", 3, 0, 24, 0, 24, 2, 0), 0)
    assert queue.failed is not None
    assert "pdu sequence error" in queue.failed
    assert queue.data_to_send() == []


def test_a_damaged_read_is_a_transient_transport_error() -> None:
    rig = Rig()
    wire = ready(rig, data_digest=True)
    command = HostCommand(Opcode.READ, 1, 0, 8, bytearray(4096))
    queue = wire.controller.queue(1)
    queue.submit(command, 0)
    connection = wire.connections[1]
    rig.execute(connection.receive_data(b"".join(queue.data_to_send()), 0))
    answer = bytearray(b"".join(connection.data_to_send()))
    answer[100] ^= 1
    queue.receive_data(answer, 0)
    assert command.status == Status.TRANSIENT_TRANSPORT_ERROR
    assert wire.submit(HostCommand(Opcode.READ, 1, 0, 8, bytearray(4096))).status == 0
