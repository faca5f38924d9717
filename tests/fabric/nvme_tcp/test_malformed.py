"""Every malformed PDU is answered by C2HTermReq with the right place, and the target lives."""

from __future__ import annotations

import struct
from collections.abc import Callable

import google_crc32c
import pytest

from tests.fabric.nvme_tcp.rig import (
    BLOCK,
    C2H_TERM,
    IC_RESP,
    RawHost,
    Rig,
    capsule,
    connect_capsule,
    h2c,
    ic_req,
    read,
    sqe,
    write,
    write_by_r2t,
)

HEADER_FIELD, SEQUENCE, HEADER_DIGEST, OUT_OF_RANGE, LIMIT = 1, 2, 3, 4, 5
TYPE, FLAGS, HLEN, PDO, PLEN = 0, 1, 2, 3, 4


def changed(pdu: bytes, offset: int, layout: str, value: int) -> bytes:
    data = bytearray(pdu)
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


FRESH: list[tuple[str, bytes, tuple[int, int]]] = [
    ("another type first", read(1, 0, 1), (SEQUENCE, 0)),
    ("unknown type", changed(ic_req(), 0, "B", 0x0A), (HEADER_FIELD, TYPE)),
    ("a controller's type", changed(ic_req(), 0, "B", 0x01), (HEADER_FIELD, TYPE)),
    ("ICReq: header length", changed(ic_req(), 2, "B", 127), (HEADER_FIELD, HLEN)),
    ("ICReq: PDU length", changed(ic_req(), 4, "<I", 129), (HEADER_FIELD, PLEN)),
    ("ICReq: huge PDU length", changed(ic_req(), 4, "<I", 0xFFFFFFFF), (HEADER_FIELD, PLEN)),
    ("ICReq: version", ic_req(version=1), (HEADER_FIELD, 8)),
    ("ICReq: alignment 32", ic_req(alignment=32), (HEADER_FIELD, 10)),
]
RUNNING: list[tuple[str, bytes, tuple[int, int]]] = [
    ("second ICReq", ic_req(), (SEQUENCE, 0)),
    ("unknown type", changed(read(1, 0, 1), 0, "B", 0xFF), (HEADER_FIELD, TYPE)),
    ("R2T from the host", changed(read(1, 0, 1), 0, "B", 9), (HEADER_FIELD, TYPE)),
    ("capsule: header length", changed(read(1, 0, 1), 2, "B", 71), (HEADER_FIELD, HLEN)),
    ("capsule: short PDU length", changed(read(1, 0, 1), 4, "<I", 71), (HEADER_FIELD, PLEN)),
    ("capsule: digest flag", changed(read(1, 0, 1), 1, "B", 1), (HEADER_FIELD, FLAGS)),
    ("capsule: data digest flag", changed(write(1, 0, bytes(BLOCK)), 1, "B", 2), (HEADER_FIELD, FLAGS)),
    ("capsule: offset inside the header", changed(write(1, 0, bytes(BLOCK)), 3, "B", 68), (HEADER_FIELD, PDO)),
    ("capsule: offset too far", changed(write(1, 0, bytes(BLOCK)), 3, "B", 132), (HEADER_FIELD, PDO)),
    ("capsule: offset not of dwords", changed(write(1, 0, bytes(BLOCK)), 3, "B", 74), (HEADER_FIELD, PDO)),
    (
        "capsule: offset behind its end",
        changed(capsule(bytes(64), bytes(28), pdo=128), 4, "<I", 100),
        (HEADER_FIELD, PLEN),
    ),
    ("capsule: more data than IOCCSZ", write(1, 0, bytes(4096 + BLOCK)), (LIMIT, 0)),
    ("capsule: endless", changed(write(1, 0, bytes(BLOCK)), 4, "<I", 0xFFFFFFF0), (LIMIT, 0)),
    ("H2CData: unknown tag", h2c(1, 77, 0, bytes(BLOCK), last=True), (HEADER_FIELD, 10)),
    ("H2CData: without data", h2c(1, 77, 0, b"", last=True), (HEADER_FIELD, PLEN)),
    ("H2CData: length", h2c(1, 77, 0, bytes(BLOCK), last=True, length=BLOCK + 4), (HEADER_FIELD, 16)),
    ("H2CTermReq: too long", struct.pack("<BBBBI", 2, 0, 24, 0, 153).ljust(153, b"\0"), (HEADER_FIELD, PLEN)),
]


def check(host: RawHost, data: bytes, expected: tuple[int, int]) -> None:
    answers = host.send(data)
    assert [pdu.kind for pdu in answers if pdu.kind != IC_RESP] == [C2H_TERM]
    term = answers[-1]
    assert term.fes_fei == expected
    assert len(term.data) <= 128
    assert data.startswith(term.data)
    assert host.connection.closing
    # Whatever comes behind it changes nothing, and another host notices nothing.
    assert host.send(read(9, 0, 1) * 3) == []
    assert host.connection.connection_lost() == []
    assert not [pair for pair in host.rig.target.connections if pair is host.connection]
    assert host.rig.io_queue().send(read(3, 0, 1))[0].cid == 3


@pytest.mark.parametrize("chunk", [0, 1, 7])
@pytest.mark.parametrize(("data", "expected"), [pytest.param(*rest, id=name) for name, *rest in FRESH])
def test_before_initialization(data: bytes, expected: tuple[int, int], chunk: int) -> None:
    host = RawHost(Rig(), chunk=chunk)
    if chunk and data[0] == 0x04:
        data = data[:8]  # known to be wrong as soon as the common header is there
    check(host, data, expected)


@pytest.mark.parametrize("chunk", [0, 1, 13])
@pytest.mark.parametrize(("data", "expected"), [pytest.param(*rest, id=name) for name, *rest in RUNNING])
def test_on_an_io_queue(data: bytes, expected: tuple[int, int], chunk: int) -> None:
    host = Rig().io_queue()
    host.chunk = chunk
    check(host, data, expected)


Spoil = Callable[[int, int], bytes]
TRANSFERS: list[tuple[str, Spoil, tuple[int, int]]] = [
    ("another command", lambda cid, tag: h2c(cid + 1, tag, 0, bytes(8192), last=True), (HEADER_FIELD, 8)),
    ("a gap", lambda cid, tag: h2c(cid, tag, 512, bytes(512), last=False), (OUT_OF_RANGE, 0)),
    ("too much", lambda cid, tag: h2c(cid, tag, 0, bytes(8704), last=True), (OUT_OF_RANGE, 0)),
    ("last too early", lambda cid, tag: h2c(cid, tag, 0, bytes(4096), last=True), (HEADER_FIELD, FLAGS)),
    ("last missing", lambda cid, tag: h2c(cid, tag, 0, bytes(8192), last=False), (HEADER_FIELD, FLAGS)),
    ("beyond MAXH2CDATA", lambda cid, tag: h2c(cid, tag, 0, bytes(65536 + 4), last=False), (LIMIT, 0)),
]


@pytest.mark.parametrize("chunk", [0, 1000])
@pytest.mark.parametrize(("spoil", "expected"), [pytest.param(*rest, id=name) for name, *rest in TRANSFERS])
def test_in_a_transfer(spoil: Spoil, expected: tuple[int, int], chunk: int) -> None:
    rig = Rig(fast=False)
    host = rig.io_queue()
    (r2t,) = host.send(write_by_r2t(4, 0, 8192))
    host.chunk = chunk
    check(host, spoil(4, r2t.tag), expected)
    assert rig.memory == bytes(len(rig.memory))


def test_a_tag_is_used_once() -> None:
    host = Rig(fast=False).io_queue()
    (r2t,) = host.send(write_by_r2t(4, 0, 8192))
    done = h2c(4, r2t.tag, 0, bytes(8192), last=True)
    assert host.send(done)[0].status == 0
    check(host, done, (HEADER_FIELD, 10))


def test_wrong_header_digest_names_the_digest() -> None:
    rig = Rig()
    host = rig.queue(rig.controller(), digests=1)
    good = capsule(sqe(2, 1, 1, 0, 0, 0, sgl=(0, BLOCK, 0x5A)), digests=1)
    assert host.send(good)[0].cid == 1
    bad = changed(good, 72, "<I", 0x01020304)
    (term,) = host.send(bad)
    assert term.fes_fei == (HEADER_DIGEST, 0x01020304)
    assert google_crc32c.value(bad[:72]) != 0x01020304


def test_h2c_term_req_ends_the_connection_without_an_answer() -> None:
    host = Rig().io_queue()
    assert host.send(struct.pack("<BBBBIHI10x", 2, 0, 24, 0, 24, 1, 0)) == []
    assert host.connection.closing


@pytest.mark.parametrize("cut", [1, 8, 71, 100, 72 + 1023])
def test_truncated_pdus_just_wait(cut: int) -> None:
    rig = Rig()
    host = rig.host()
    whole = connect_capsule(0)
    assert host.send(whole[:cut]) == []
    assert not host.connection.closing
    (response,) = host.send(whole[cut:])
    assert response.status == 0


def test_depth_limit_at_limit_plus_one() -> None:
    rig = Rig(fast=False, park=True)
    host = rig.io_queue(entries=4)
    for cid in range(4):
        assert host.send(read(cid, 0, 1)) == []
    (term,) = host.send(read(4, 0, 1))
    assert term.fes_fei == (SEQUENCE, 0)
    assert host.connection.connection_lost() == rig.parked
    assert len(rig.parked) == 4


def test_depth_limit_holds_in_the_fast_path() -> None:
    rig = Rig()
    host = rig.io_queue(entries=4)
    assert len(host.send(b"".join(read(cid, 0, 1) for cid in range(4)))) == 4
    answers = host.send(b"".join(read(cid, 0, 1) for cid in range(5)))
    assert answers[-1].fes_fei == (SEQUENCE, 0)
