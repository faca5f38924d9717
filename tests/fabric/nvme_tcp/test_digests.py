"""Header and data digests in both directions; a wrong data digest fails its command only."""

from __future__ import annotations

import pytest

from fabric.nvme_tcp.spec import Status
from tests.fabric.nvme_tcp.rig import (
    BLOCK,
    C2H,
    READ,
    RESPONSE,
    RawHost,
    Rig,
    capsule,
    h2c,
    sqe,
    write,
    write_by_r2t,
)

HEADER, DATA = 1, 2


def queue(digests: int, chunk: int = 0, **options: object) -> RawHost:
    rig = Rig(**options)  # type: ignore[arg-type]
    host = rig.queue(rig.controller(digests), digests=digests)
    host.chunk = chunk
    return host


@pytest.mark.parametrize("chunk", [0, 1, 100])
@pytest.mark.parametrize("digests", [HEADER, DATA, HEADER | DATA])
def test_write_and_read(digests: int, chunk: int) -> None:
    host = queue(digests, chunk)
    data = bytes(range(256)) * 2
    (response,) = host.send(write(1, 5, data, digests=digests))
    assert (response.kind, response.status, response.flags) == (RESPONSE, 0, digests & HEADER)
    (answer,) = host.send(capsule(sqe(READ, 2, 1, 5, 0, 0, sgl=(0, BLOCK, 0x5A)), digests=digests & HEADER))
    assert (answer.kind, answer.flags & 3, answer.data) == (C2H, digests, data)


@pytest.mark.parametrize("chunk", [0, 1, 1000])
@pytest.mark.parametrize("digests", [HEADER, DATA, HEADER | DATA])
def test_write_by_r2t(digests: int, chunk: int) -> None:
    host = queue(digests)
    data = bytes(range(256)) * 32
    (r2t,) = host.send(write_by_r2t(1, 0, 8192, digests=digests & HEADER))
    host.chunk = chunk
    assert host.send(h2c(1, r2t.tag, 0, data[:4096], last=False, digests=digests)) == []
    (response,) = host.send(h2c(1, r2t.tag, 4096, data[4096:], last=True, digests=digests))
    assert response.status == 0
    assert host.rig.memory[:8192] == data


def damaged(pdu: bytes) -> bytes:
    return pdu[:-1] + bytes((pdu[-1] ^ 1,))


@pytest.mark.parametrize("digests", [DATA, HEADER | DATA])
def test_wrong_data_digest_in_a_capsule(digests: int) -> None:
    host = queue(digests)
    (response,) = host.send(damaged(write(1, 0, b"x" * BLOCK, digests=digests)))
    assert (response.status, response.do_not_retry) == (Status.TRANSIENT_TRANSPORT_ERROR, False)
    assert host.rig.memory[:BLOCK] == bytes(BLOCK)
    assert host.send(write(1, 0, b"x" * BLOCK, digests=digests))[0].status == 0


@pytest.mark.parametrize("which", [0, 1])
def test_wrong_data_digest_in_a_transfer(which: int) -> None:
    host = queue(HEADER | DATA)
    (r2t,) = host.send(write_by_r2t(1, 0, 8192, digests=HEADER))
    pdus = [h2c(1, r2t.tag, at, b"x" * 4096, last=at == 4096, digests=3) for at in (0, 4096)]
    pdus[which] = damaged(pdus[which])
    assert host.send(pdus[0]) == []
    (response,) = host.send(pdus[1])
    assert (response.status, response.do_not_retry) == (Status.TRANSIENT_TRANSPORT_ERROR, False)
    assert host.rig.memory[:8192] == bytes(8192)
    assert not host.connection.closing


@pytest.mark.parametrize(("alignment", "digests"), [(0, 0), (1, 0), (15, 3), (31, 0), (31, 3)])
def test_data_to_the_host_is_aligned_as_it_asked(alignment: int, digests: int) -> None:
    rig = Rig()
    admin_host = rig.controller()
    host = rig.host(digests, alignment)
    from tests.fabric.nvme_tcp.rig import connect_capsule

    assert host.send(connect_capsule(1, admin_host.cntlid, digests=digests, no_flow_control=True))[0].status == 0
    commands = host.connection.receive_data(
        capsule(sqe(READ, 2, 1, 5, 0, 0, sgl=(0, BLOCK, 0x5A)), digests=digests & HEADER), 0
    )
    rig.execute(commands)
    stream = b"".join(host.connection.data_to_send())
    assert stream[3] % ((alignment + 1) * 4) == 0
    assert stream[3] >= 24
