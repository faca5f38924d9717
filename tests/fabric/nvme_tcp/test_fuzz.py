"""Junk and spoiled traffic: no exception, no effect on others, nothing left behind. Seeds are printed and kept."""

from __future__ import annotations

import random

import pytest

from fabric.nvme_tcp import host_command
from fabric.nvme_tcp.host_command import HostCommand
from fabric.nvme_tcp.initiator import InitiatorQueue
from fabric.nvme_tcp.spec import Opcode
from tests.fabric.nvme_tcp.rig import (
    AER,
    BLOCK,
    GET_LOG,
    IDENTIFY,
    NQN,
    READ,
    RawHost,
    Rig,
    admin,
    capsule,
    connect_capsule,
    h2c,
    ic_req,
    property_get,
    property_set,
    read,
    sqe,
    write,
    write_by_r2t,
)
from tests.fabric.nvme_tcp.test_initiator import data_pdu, ic_resp, response

SEEDS = range(12)
ROUNDS = 60


def spoil(chance: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat or invent a few bytes."""
    spoiled = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        at = chance.randrange(min(len(spoiled), chance.choice((8, 24, 72, len(spoiled)))))
        spoiled[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    if chance.random() < 0.1:
        del spoiled[chance.randrange(len(spoiled)) :]
    if chance.random() < 0.1:
        spoiled += chance.randbytes(chance.randrange(1, 200))
    return bytes(spoiled)


def good_pdus(chance: random.Random, cntlid: int, tags: list[int]) -> list[bytes]:
    cid = chance.randrange(8)
    return [
        ic_req(digests=chance.randrange(4)),
        connect_capsule(chance.randrange(3), chance.choice((cntlid, 0xFFFF)), cid=cid),
        property_get(chance.choice((0, 8, 0x14, 0x1C)), chance.randrange(2), cid),
        property_set(0x14, chance.choice((0, 0x460001, 0x464001)), cid),
        read(cid, chance.randrange(5000), chance.randrange(1, 200)),
        write(cid, chance.randrange(5000), bytes(BLOCK * chance.randrange(1, 9))),
        write_by_r2t(cid, chance.randrange(4000), BLOCK * chance.randrange(1, 64)),
        h2c(cid, chance.choice(tags or [0]), 0, bytes(BLOCK * chance.randrange(1, 64)), last=True),
        admin(IDENTIFY, cid, chance.randrange(3), chance.randrange(32)),
        admin(GET_LOG, cid, 0, chance.randrange(256) | 63 << 16, length=256),
        admin(AER, cid, length=0),
        admin(chance.randrange(256), cid, 1, *(chance.getrandbits(32) for _ in range(3)), length=64),
        capsule(sqe(chance.randrange(256), cid, 1, sgl=(0, 64, chance.randrange(256))), bytes(64)),
        chance.randbytes(chance.randrange(1, 300)),
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_target(seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    rig = Rig(fast=bool(seed % 2))
    witness = rig.queue(rig.controller())
    for _ in range(ROUNDS):
        _one_host(chance, rig)
        expected = bytes(rig.memory[: 8 * BLOCK])
        (answer,) = witness.send(read(1, 0, 8))
        assert answer.data == expected
    assert set(rig.target.connections) == {witness.connection, *_connections_of_witness(rig)}
    assert list(rig.target.subsystems[NQN].controllers) == [_cntlid(witness)]


def _cntlid(host: RawHost) -> int:
    assert host.connection.controller is not None
    return host.connection.controller.cntlid


def _connections_of_witness(rig: Rig) -> list[object]:
    return [queue for each in rig.target.subsystems[NQN].controllers.values() for queue in each.queues.values()]


def _one_host(chance: random.Random, rig: Rig) -> None:
    """A few PDUs, some of them spoiled, from a host that then vanishes."""
    admin_host = rig.controller() if chance.random() < 0.7 else rig.host()
    host = admin_host
    if chance.random() < 0.6 and admin_host.cntlid != 0xFFFF:
        host = rig.queue(admin_host, entries=16)
    host.chunk = chance.choice((0, 0, 1, 100))
    tags: list[int] = []
    for _ in range(chance.randrange(1, 6)):
        data = chance.choice(good_pdus(chance, admin_host.cntlid, tags))
        for answer in host.send(spoil(chance, data)):
            if answer.kind == 9:
                tags.append(answer.tag)
    for connection in {host.connection: 0, admin_host.connection: 0}:
        for command in connection.connection_lost():
            rig.finish(command)
    rig.target.take_attention()


@pytest.mark.parametrize("seed", SEEDS)
def test_initiator(seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(ROUNDS):
        queue = InitiatorQueue(1, 8, in_capsule_bytes=512)
        queue.start()
        queue.receive_data(ic_resp(), 0)
        ended: list[HostCommand] = []
        for opcode, size in ((READ, 4096), (Opcode.WRITE, 8192)):
            command = HostCommand(opcode, 1, 0, size // BLOCK, bytearray(size), done=ended.append)
            queue.submit(command, 0)
        queue.submit(host_command.flush(1, ended.append), 0)
        for _ in range(5):
            cid = chance.randrange(4)
            data = chance.choice(
                [
                    response(cid, chance.choice((0, 0x80))),
                    data_pdu(
                        7, cid, 0, chance.choice((0, 512)), chance.choice((512, 4096)), flags=chance.choice((4, 12))
                    ),
                    data_pdu(9, cid, 1, 0, 8192, flags=0),
                    ic_resp(),
                    chance.randbytes(60),
                ]
            )
            queue.receive_data(spoil(chance, data), 0)
        queue.fail("over")
        assert len(ended) == 3
        assert len({id(command) for command in ended}) == 3
