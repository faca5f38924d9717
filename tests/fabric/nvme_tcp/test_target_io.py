"""I/O commands at the target: what reaches the owner, what is refused and how, and what the host is told."""

from __future__ import annotations

import struct

import pytest

from fabric.nvme_tcp.limits import TransportLimits
from fabric.nvme_tcp.spec import Status
from tests.fabric.nvme_tcp.rig import (
    ABORT,
    BLOCK,
    BLOCKS,
    C2H,
    DSM,
    FLUSH,
    R2T,
    READ,
    RESPONSE,
    WRITE,
    WRITE_ZEROES,
    RawHost,
    Rig,
    admin,
    capsule,
    h2c,
    read,
    sqe,
    write,
    write_by_r2t,
)

FUA, LIMITED_RETRY = 0x4000, 0x8000


def pattern(length: int, seed: int = 1) -> bytes:
    prime = bytes((seed + index * 7) & 0xFF for index in range(251))
    return (prime * (length // 251 + 1))[:length]


def host_of(fast: bool, *, flow_control: bool = False, chunk: int = 0, **options: object) -> RawHost:
    host = Rig(fast=fast, **options).io_queue(no_flow_control=not flow_control)  # type: ignore[arg-type]
    host.chunk = chunk
    return host


@pytest.mark.parametrize("chunk", [0, 1, 50])
@pytest.mark.parametrize("fast", [True, False])
def test_write_then_read(fast: bool, chunk: int) -> None:
    host = host_of(fast, chunk=chunk)
    data = pattern(8 * BLOCK)
    (response,) = host.send(write(3, 16, data))
    assert (response.kind, response.status, response.cid) == (RESPONSE, 0, 3)
    (answer,) = host.send(read(4, 16, 8))
    assert (answer.kind, answer.cid, answer.offset, answer.length) == (C2H, 4, 0, len(data))
    assert answer.flags == 0x0C  # last and success: no response follows
    assert answer.data == data


@pytest.mark.parametrize("fast", [True, False])
def test_sq_flow_control_brings_responses_with_the_queue_head(fast: bool) -> None:
    host = host_of(fast, flow_control=True)
    heads = []
    for cid in range(70):
        data, response = host.send(read(cid, cid, 1))
        assert data.flags == 0x04
        assert response.status == 0
        heads.append(response.sq_head)
    start = heads[0]
    assert heads == [(start + step) % 32 for step in range(70)]


def test_many_commands_in_one_piece() -> None:
    host = host_of(True)
    host.rig.memory[:] = pattern(len(host.rig.memory))
    answers = host.send(b"".join(read(cid, cid * 8, 8) for cid in range(32)))
    assert [answer.cid for answer in answers] == list(range(32))
    assert all(answer.data == host.rig.memory[answer.cid * 4096 :][:4096] for answer in answers)


@pytest.mark.parametrize("chunk", [0, 1, 777])
@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_r2t_in_pieces(pieces: int, chunk: int) -> None:
    host = host_of(False)
    length = 40 * BLOCK
    data = pattern(length)
    (r2t,) = host.send(write_by_r2t(9, 100, length))
    assert (r2t.kind, r2t.cid, r2t.offset, r2t.length) == (R2T, 9, 0, length)
    host.chunk = chunk
    step = length // pieces
    answers = []
    for at in range(0, length, step):
        answers += host.send(h2c(9, r2t.tag, at, data[at : at + step], last=at + step == length))
    assert [answer.status for answer in answers] == [0]
    assert host.rig.memory[100 * BLOCK :][:length] == data


def test_r2ts_wait_for_buffer_space() -> None:
    limits = TransportLimits(max_io_size=65536, write_buffer_size=100_000)
    host = host_of(False, limits=limits)
    answers = host.send(b"".join(write_by_r2t(cid, cid * 128, 65536) for cid in range(3)))
    assert [answer.cid for answer in answers] == [0]
    tags = [answers[0].tag]
    for cid in range(3):
        answers = host.send(h2c(cid, tags[cid], 0, bytes(65536), last=True))
        kinds = sorted(answer.kind for answer in answers)
        assert kinds == ([RESPONSE, R2T] if cid < 2 else [RESPONSE])
        tags += [answer.tag for answer in answers if answer.kind == R2T]


def test_interleaved_transfers() -> None:
    host = host_of(False)
    first, second = host.send(write_by_r2t(1, 0, 8192) + write_by_r2t(2, 16, 8192))
    one, two = pattern(8192, 3), pattern(8192, 9)
    host.send(h2c(1, first.tag, 0, one[:4096], last=False))
    assert host.send(h2c(2, second.tag, 0, two, last=True))[0].cid == 2
    assert host.send(h2c(1, first.tag, 4096, one[4096:], last=True))[0].cid == 1
    assert host.rig.memory[:16384] == one + two


@pytest.mark.parametrize("fast", [True, False])
def test_fua_goes_to_the_owner(fast: bool) -> None:
    host = host_of(fast)
    host.send(write(1, 0, bytes(BLOCK), control=FUA))
    assert host.rig.executed == [(WRITE, 0, BLOCK, True)]
    host.send(write(2, 0, bytes(BLOCK), control=LIMITED_RETRY))
    assert host.rig.executed[1:] == ([] if fast else [(WRITE, 0, BLOCK, False)])


def test_write_cache_off_makes_every_write_durable() -> None:
    rig = Rig()
    admin_host = rig.controller()
    host = rig.queue(admin_host)
    (response,) = admin_host.send(admin(9, 1, 0, 6, 0, length=0))
    assert response.status == 0
    host.send(write(1, 0, bytes(BLOCK)))
    assert rig.executed == [(WRITE, 0, BLOCK, True)]


def test_flush_write_zeroes_and_deallocate_reach_the_owner() -> None:
    host = host_of(True)
    host.rig.memory[:] = pattern(len(host.rig.memory))
    assert host.send(capsule(sqe(FLUSH, 1, 1, sgl=(0, 0, 0x5A))))[0].status == 0
    zeroes = capsule(sqe(WRITE_ZEROES, 2, 1, 8, 0, 7 | 1 << 25, sgl=(0, 0, 0x5A)))
    assert host.send(zeroes)[0].status == 0
    ranges = struct.pack("<IIQIIQ", 0, 4, 100, 0, 2, 200)
    assert host.send(capsule(sqe(DSM, 3, 1, 1, 4, sgl=(0, 32, 1)), ranges))[0].status == 0
    assert [item[0] for item in host.rig.executed] == [FLUSH, WRITE_ZEROES, DSM]
    assert host.rig.memory[8 * BLOCK : 16 * BLOCK] == bytes(8 * BLOCK)
    assert host.rig.memory[100 * BLOCK : 104 * BLOCK] == bytes(4 * BLOCK)
    assert host.rig.memory[104 * BLOCK : 105 * BLOCK] != bytes(BLOCK)


def test_dataset_management_without_deallocation_does_nothing() -> None:
    host = host_of(True)
    assert host.send(capsule(sqe(DSM, 3, 1, 0, 1, sgl=(0, 16, 1)), struct.pack("<IIQ", 0, 4, 100)))[0].status == 0
    assert host.rig.executed == []


def test_dataset_management_by_r2t() -> None:
    host = host_of(True)
    host.rig.memory[:] = pattern(len(host.rig.memory))
    (r2t,) = host.send(capsule(sqe(DSM, 3, 1, 0, 4, sgl=(0, 4096, 0x5A))))
    assert r2t.length == 16
    assert host.send(h2c(3, r2t.tag, 0, struct.pack("<IIQ", 0, 4, 100), last=True))[0].status == 0
    assert host.rig.memory[100 * BLOCK : 104 * BLOCK] == bytes(4 * BLOCK)


REFUSALS = [
    ("opcode", sqe(0x05, 1, 1, sgl=(0, 0, 0x5A)), Status.INVALID_OPCODE),
    ("vendor opcode", sqe(0x80, 1, 1, sgl=(0, 0, 0x5A)), Status.INVALID_OPCODE),
    ("namespace 0", sqe(READ, 1, 0, sgl=(0, BLOCK, 0x5A)), Status.INVALID_NAMESPACE),
    ("namespace 2", sqe(READ, 1, 2, sgl=(0, BLOCK, 0x5A)), Status.INVALID_NAMESPACE),
    ("all namespaces", sqe(FLUSH, 1, 0xFFFFFFFF, sgl=(0, 0, 0x5A)), Status.INVALID_NAMESPACE),
    ("fused, first", sqe(READ, 1, 1, flags=0x41, sgl=(0, BLOCK, 0x5A)), Status.INVALID_FIELD),
    ("fused, second", sqe(WRITE, 1, 1, flags=0x42, sgl=(0, BLOCK, 0x5A)), Status.INVALID_FIELD),
    ("PRPs", sqe(READ, 1, 1, flags=0x00, sgl=(0, BLOCK, 0x5A)), Status.INVALID_FIELD),
    ("protection information", sqe(READ, 1, 1, 0, 0, 1 << 29, sgl=(0, BLOCK, 0x5A)), Status.INVALID_FIELD),
    ("last block + 1", sqe(READ, 1, 1, BLOCKS - 1, 0, 1, sgl=(0, 2 * BLOCK, 0x5A)), Status.LBA_OUT_OF_RANGE),
    ("far away", sqe(READ, 1, 1, 0, 1 << 31, 0, sgl=(0, BLOCK, 0x5A)), Status.LBA_OUT_OF_RANGE),
    ("write out of range", sqe(WRITE, 1, 1, BLOCKS, 0, 0, sgl=(0, BLOCK, 0x5A)), Status.LBA_OUT_OF_RANGE),
    ("zeroes out of range", sqe(WRITE_ZEROES, 1, 1, 1, 0, 0xFFFF, sgl=(0, 0, 0x5A)), Status.LBA_OUT_OF_RANGE),
    ("MDTS + 1, read", sqe(READ, 1, 1, 0, 0, 128, sgl=(0, 129 * BLOCK, 0x5A)), Status.INVALID_FIELD),
    ("MDTS + 1, write", sqe(WRITE, 1, 1, 0, 0, 128, sgl=(0, 129 * BLOCK, 0x5A)), Status.INVALID_FIELD),
    ("read into the capsule", sqe(READ, 1, 1, sgl=(0, BLOCK, 0x01)), Status.SGL_TYPE_INVALID),
    ("keyed SGL", sqe(WRITE, 1, 1, sgl=(0, BLOCK, 0x40)), Status.SGL_TYPE_INVALID),
    ("SGL too short, read", sqe(READ, 1, 1, 0, 0, 1, sgl=(0, BLOCK, 0x5A)), Status.DATA_SGL_LENGTH_INVALID),
    ("SGL too short, write", sqe(WRITE, 1, 1, 0, 0, 1, sgl=(0, BLOCK, 0x5A)), Status.DATA_SGL_LENGTH_INVALID),
    ("no data in the capsule", sqe(WRITE, 1, 1, sgl=(0, BLOCK, 0x01)), Status.DATA_SGL_LENGTH_INVALID),
]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("entry", "status"), [pytest.param(*rest, id=name) for name, *rest in REFUSALS])
def test_refusals(entry: bytes, status: Status, fast: bool) -> None:
    host = host_of(fast)
    (response,) = host.send(capsule(entry))
    assert Status(response.status) is status
    assert response.do_not_retry
    assert host.rig.executed == []
    assert host.send(read(2, 0, 1))[0].kind == C2H


@pytest.mark.parametrize("fast", [True, False])
def test_at_the_limits(fast: bool) -> None:
    host = host_of(fast)
    assert host.send(read(1, BLOCKS - 1, 1))[0].kind == C2H
    assert host.send(read(2, 0, 128))[0].length == 65536
    assert host.send(read(3, 0, 1, length=4096))[0].length == BLOCK  # a longer SGL is fine
    assert host.send(write(4, BLOCKS - 8, bytes(4096)))[0].status == 0


def test_in_capsule_offset_and_length_are_checked() -> None:
    host = host_of(True)
    data = bytes(BLOCK)
    (response,) = host.send(capsule(sqe(WRITE, 1, 1, sgl=(4, BLOCK, 1)), data))
    assert response.status == Status.INVALID_SGL_OFFSET
    (response,) = host.send(capsule(sqe(WRITE, 1, 1, sgl=(0, BLOCK - 4, 1)), data))
    assert response.status == Status.DATA_SGL_LENGTH_INVALID


@pytest.mark.parametrize("fast", [True, False])
def test_write_protected(fast: bool) -> None:
    host = host_of(fast, read_only=True)
    for entry in (
        write(1, 0, bytes(BLOCK)),
        write_by_r2t(1, 0, BLOCK),
        capsule(sqe(WRITE_ZEROES, 1, 1, sgl=(0, 0, 0x5A))),
        capsule(sqe(DSM, 1, 1, 0, 4, sgl=(0, 16, 1)), struct.pack("<IIQ", 0, 4, 100)),
    ):
        (response,) = host.send(entry)
        assert response.status == Status.NAMESPACE_WRITE_PROTECTED
    assert host.rig.executed == []
    assert host.send(read(2, 0, 1))[0].kind == C2H


def test_deallocate_out_of_range() -> None:
    host = host_of(True)
    ranges = struct.pack("<IIQ", 0, 2, BLOCKS - 1)
    assert host.send(capsule(sqe(DSM, 1, 1, 0, 4, sgl=(0, 16, 1)), ranges))[0].status == Status.LBA_OUT_OF_RANGE


def test_same_command_identifier_twice() -> None:
    host = host_of(False, park=True)
    assert host.send(read(1, 0, 1)) == []
    (response,) = host.send(read(1, 8, 1))
    assert response.status == Status.COMMAND_ID_CONFLICT
    (command,) = host.rig.parked
    host.rig.finish(command)
    assert [answer.kind for answer in host.answers()] == [C2H]


def test_status_of_the_owner_reaches_the_host() -> None:
    host = host_of(False, park=True)
    host.send(read(1, 0, 1) + write(2, 0, bytes(BLOCK)))
    for command, status in zip(host.rig.parked, (Status.INTERNAL_PATH_ERROR, Status.CAPACITY_EXCEEDED), strict=True):
        host.rig.finish(command, status)
    answers = host.answers()
    assert [(answer.kind, answer.status) for answer in answers] == [(RESPONSE, 0x300), (RESPONSE, 0x81)]


def test_completions_in_any_order_and_data_in_parts() -> None:
    host = host_of(False, park=True)
    host.send(read(1, 0, 2) + read(2, 2, 1))
    first, second = host.rig.parked
    second.connection.complete(second, 0, bytes(BLOCK))
    first.connection.complete(first, 0, [b"a" * BLOCK, memoryview(b"b" * BLOCK)])
    answers = host.answers()
    assert [(answer.cid, answer.data) for answer in answers] == [(2, bytes(BLOCK)), (1, b"a" * BLOCK + b"b" * BLOCK)]


def test_in_capsule_data_stays_valid_until_completion() -> None:
    """Many writes wait while more than a whole receive buffer arrives behind them."""
    rig = Rig(fast=False, park=True)
    host = rig.queue(rig.controller(), entries=128)
    blocks = {cid: pattern(4096, cid) for cid in range(100)}
    for cid, data in blocks.items():
        host.send(write(cid, cid * 8, data))
    rig.park = False
    for index in range(50):
        host.send(write(100 + index % 20, 3000, pattern(4096, index)))
    for command in list(rig.parked):
        rig.finish(command)
    assert len(host.answers()) == 100
    for cid, data in blocks.items():
        assert rig.memory[cid * 4096 :][:4096] == data


def test_lost_connection_lists_what_the_owner_has_and_ignores_late_completions() -> None:
    host = host_of(False, park=True)
    host.send(read(1, 0, 1) + write(2, 0, bytes(BLOCK)) + write_by_r2t(3, 0, 8192))
    connection, target = host.connection, host.rig.target
    lost = connection.connection_lost()
    assert lost == host.rig.parked
    assert [command.cid for command in lost] == [1, 2]
    pairs = target.queue_pairs(connection.subsystem.nqn)  # type: ignore[union-attr]
    assert connection in pairs
    host.rig.finish(lost[0])
    assert connection in target.queue_pairs(connection.subsystem.nqn)  # type: ignore[union-attr]
    host.rig.finish(lost[1])
    assert connection not in target.queue_pairs(connection.subsystem.nqn)  # type: ignore[union-attr]
    assert connection.drained
    assert connection.connection_lost() == []
    assert host.answers() == []


def test_abort() -> None:
    rig = Rig(fast=False, park=True)
    admin_host = rig.controller()
    host = rig.queue(admin_host)
    host.send(read(1, 0, 1) + read(2, 0, 1))
    assert admin_host.send(admin(ABORT, 7, 0, 1 | 1 << 16, length=0)) == []
    ((_, victim),) = admin_host.connection.aborts
    assert victim is rig.parked[0]
    rig.finish(victim, Status.ABORTED_BY_REQUEST)
    admin_host.connection.finish_aborts()
    (response,) = admin_host.answers()
    assert (response.status, response.result) == (0, 0)
    assert host.answers()[0].status == Status.ABORTED_BY_REQUEST
    # What cannot be dropped any more goes on, and the host is told so.
    admin_host.send(admin(ABORT, 8, 0, 1 | 2 << 16, length=0))
    admin_host.connection.finish_aborts()
    assert admin_host.answers()[0].result == 1
    assert admin_host.send(admin(ABORT, 9, 0, 1 | 77 << 16, length=0))[0].result == 1


def test_abort_of_a_write_that_waits_for_buffer_space() -> None:
    rig = Rig(TransportLimits(max_io_size=65536, write_buffer_size=65536), fast=False)
    admin_host = rig.controller()
    host = rig.queue(admin_host)
    (r2t,) = host.send(write_by_r2t(1, 0, 65536) + write_by_r2t(2, 0, 65536))
    assert admin_host.send(admin(ABORT, 7, 0, 1 | 2 << 16, length=0))[0].result == 0
    assert host.answers()[0].status == Status.ABORTED_BY_REQUEST
    assert admin_host.send(admin(ABORT, 7, 0, 1 | 1 << 16, length=0))[0].result == 1
    assert host.send(h2c(1, r2t.tag, 0, bytes(65536), last=True))[0].status == 0


def test_output_is_limited_and_goes_on_after_it_was_sent() -> None:
    rig = Rig(TransportLimits(max_io_size=65536, output_size=200_000))
    host = rig.queue(rig.controller(), entries=32)
    connection = host.connection
    data = b"".join(read(cid, 0, 128) for cid in range(20))
    view = connection.get_buffer()
    view[: len(data)] = data
    assert connection.buffer_updated(len(data), 0) == []
    rounds = []
    while connection.stalled:
        out = b"".join(connection.data_to_send())
        rounds.append(len(out))
        connection.resume(0)
    rounds.append(len(b"".join(connection.data_to_send())))
    assert sum(rounds) == 20 * (65536 + 24)
    assert max(rounds) <= 200_000 + 2 * (65536 + 24)


def test_removed_namespace_refuses_and_running_commands_end() -> None:
    host = host_of(False, park=True)
    host.send(read(1, 0, 1))
    host.rig.target.remove_namespace(host.connection.subsystem.nqn, 1)  # type: ignore[union-attr]
    (response,) = host.send(read(2, 0, 1))
    assert response.status == Status.INVALID_NAMESPACE
    host.rig.finish(host.rig.parked[0])
    assert host.answers()[0].kind == C2H


def test_write_buffers_are_used_again() -> None:
    host = host_of(False)
    for cid in range(10):
        (r2t,) = host.send(write_by_r2t(cid, 0, 65536))
        host.send(h2c(cid, r2t.tag, 0, bytes(65536), last=True))
    assert host.rig.target.pool.spare_bytes == 65536
