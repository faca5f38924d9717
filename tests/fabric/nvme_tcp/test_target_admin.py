"""Connect, properties, Identify, log pages, features, events, keep-alive: what hosts ask of a controller."""

from __future__ import annotations

import struct

import pytest

from fabric.nvme_tcp.limits import TransportLimits
from fabric.nvme_tcp.spec import DISCOVERY_NQN, Status
from fabric.nvme_tcp.subsystem import Listener, Namespace, Subsystem, TargetError
from tests.fabric.nvme_tcp.rig import (
    AER,
    BLOCK,
    BLOCKS,
    C2H,
    GET_FEATURES,
    GET_LOG,
    HOST,
    IDENTIFY,
    KEEP_ALIVE,
    LISTENER,
    NQN,
    SET_FEATURES,
    RawHost,
    Rig,
    admin,
    capsule,
    connect_capsule,
    property_get,
    property_set,
    read,
    sqe,
)

SECOND = 1_000_000_000
OTHER = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000002"
IN_DATA = 1 << 16


def page(host: RawHost, number: int, length: int, offset: int = 0, retain: int = 0) -> bytes:
    dwords = length // 4 - 1
    entry = (number | retain << 15 | (dwords & 0xFFFF) << 16, dwords >> 16, offset & 0xFFFFFFFF, offset >> 32)
    data, response = host.send(admin(GET_LOG, 3, 0, *entry, length=length))
    assert response.status == 0
    return data.data


def identify(host: RawHost, cns: int, nsid: int = 0) -> bytes:
    answers = host.send(admin(IDENTIFY, 2, nsid, cns))
    assert answers[-1].status == 0, hex(answers[-1].status)
    return answers[0].data


# Connect

REFUSED = [
    ("unknown subsystem", {"subnqn": "nqn.2026-11.io.segmap:nobody"}, 0x182, IN_DATA | 256),
    ("empty subsystem", {"subnqn": ""}, 0x182, IN_DATA | 256),
    ("host not allowed", {"hostnqn": OTHER}, 0x184, 0),
    ("empty host", {"hostnqn": ""}, 0x184, 0),
    ("endless host NQN", {"hostnqn": "n" * 256}, 0x182, IN_DATA | 512),
    ("record format", {"recfmt": 1}, 0x180, 0),
    ("one entry", {"entries": 1}, 0x182, 44),
    ("too many entries", {"entries": 129}, 0x182, 44),
    ("a controller of its choice", {"cntlid": 5}, 0x182, IN_DATA | 16),
]


@pytest.mark.parametrize(("arguments", "status", "place"), [pytest.param(*rest, id=name) for name, *rest in REFUSED])
def test_refused_connects(arguments: dict[str, object], status: int, place: int) -> None:
    rig = Rig()
    host = rig.host()
    (response,) = host.send(connect_capsule(0, **arguments))  # type: ignore[arg-type]
    later = status == Status.CONNECT_INVALID_HOST or place == (IN_DATA | 256)
    assert (response.status, response.result, response.do_not_retry) == (status, place, not later)
    assert rig.target.subsystems[NQN].controllers == {}
    assert host.send(connect_capsule(0))[0].status == 0


def test_a_listener_of_another_subsystem_is_no_way_in() -> None:
    """Not yet: a target that has just started gets its listeners one by one, and its hosts have to go on trying."""
    rig = Rig()
    rig.target.remove_listener(NQN, LISTENER)
    rig.target.add_listener(NQN, Listener("127.0.0.1", "4421"))
    response = rig.host().send(connect_capsule(0))[0]
    assert (response.status, response.do_not_retry) == (Status.CONNECT_INVALID_HOST, False)


def test_nothing_but_connect_before_connect() -> None:
    host = Rig().host()
    for data in (admin(IDENTIFY, 1, 0, 1), property_get(0, 1), admin(KEEP_ALIVE, 1, length=0)):
        assert host.send(data)[0].status == Status.COMMAND_SEQUENCE_ERROR
    assert host.send(connect_capsule(0))[0].status == 0
    assert host.send(connect_capsule(0))[0].status == Status.COMMAND_SEQUENCE_ERROR


def test_nothing_but_properties_before_it_is_enabled() -> None:
    host = Rig().host()
    host.send(connect_capsule(0))
    assert host.send(admin(IDENTIFY, 1, 0, 1))[0].status == Status.COMMAND_SEQUENCE_ERROR


def test_io_connects_are_checked() -> None:
    rig = Rig()
    host = rig.host()
    cntlid = host.send(connect_capsule(0))[0].result
    early = rig.host().send(connect_capsule(1, cntlid))[0]
    assert (early.status, early.result) == (0x182, 42)
    host.send(property_set(0x14, 1 | 6 << 16 | 4 << 20))
    assert rig.host().send(connect_capsule(1, cntlid))[0].status == 0
    for arguments, place in (
        ({"qid": 1, "cntlid": cntlid}, 42),
        ({"qid": 127, "cntlid": cntlid}, 42),
        ({"qid": 2, "cntlid": cntlid + 1}, IN_DATA | 16),
        ({"qid": 2, "cntlid": cntlid, "hostid": bytes(16)}, IN_DATA | 16),
        ({"qid": 2, "cntlid": cntlid, "entries": 129}, 44),
    ):
        response = rig.host().send(connect_capsule(**arguments))[0]  # type: ignore[arg-type]
        assert (response.status, response.result) == (0x182, place)
    assert sorted(rig.target.subsystems[NQN].controllers[cntlid].queues) == [0, 1]


def test_controller_ids_come_from_the_range_and_run_out() -> None:
    rig = Rig()
    hosts = [rig.controller() for _ in range(5)]
    assert [host.cntlid for host in hosts] == [5, 6, 7, 8, 9]
    busy = rig.host().send(connect_capsule(0))[0]
    assert (busy.status, busy.do_not_retry) == (Status.CONNECT_CONTROLLER_BUSY, False)
    hosts[2].connection.connection_lost()
    assert rig.controller().cntlid == 7


# Allow-list


def test_deny_host_ends_its_queue_pairs_and_only_its() -> None:
    rig = Rig()
    rig.target.allow_host(NQN, OTHER)
    mine, other = rig.controller(), rig.controller(hostnqn=OTHER)
    queue = rig.queue(mine)
    rig.target.deny_host(NQN, HOST)
    assert mine.connection.closing and queue.connection.closing and not other.connection.closing
    assert len(rig.target.queue_pairs(NQN, HOST)) == 2
    for host in (mine, queue):
        host.connection.connection_lost()
    assert rig.target.queue_pairs(NQN, HOST) == []
    assert len(rig.target.queue_pairs(NQN)) == 1
    assert rig.host().send(connect_capsule(0))[0].status == Status.CONNECT_INVALID_HOST


def test_any_host() -> None:
    rig = Rig()
    rig.target.allow_any_host(NQN, True)
    host = rig.controller(hostnqn=OTHER)
    assert rig.controller(hostnqn="").cntlid
    rig.target.allow_any_host(NQN, False)
    assert host.connection.closing


def test_wrong_configuration_is_refused() -> None:
    target = Rig().target
    for call in (
        lambda: target.add_subsystem(Subsystem(NQN)),
        lambda: target.remove_subsystem("nqn.2026-11.io.segmap:nobody"),
        lambda: target.remove_subsystem(DISCOVERY_NQN),
        lambda: target.add_namespace(NQN, Namespace(1, 512, 1)),
        lambda: target.add_namespace(NQN, Namespace(33, 512, 1)),
        lambda: target.remove_namespace(NQN, 2),
        lambda: target.resize_namespace(NQN, 1, 0),
        lambda: target.add_listener(NQN, LISTENER),
        lambda: target.remove_listener(NQN, Listener("::1", "1")),
        lambda: target.allow_host(NQN, HOST),
        lambda: target.allow_host(NQN, "somebody"),
        lambda: target.deny_host(NQN, OTHER),
        lambda: Subsystem("nqn.x" + "y" * 220),
        lambda: Subsystem("nqn.2026-11.io:a", cntlid_min=9, cntlid_max=8),
        lambda: Subsystem("nqn.2026-11.io:a", serial="s" * 21),
        lambda: Namespace(0, 512, 1),
        lambda: Namespace(1, 513, 1),
        lambda: Namespace(1, 512, 0),
        lambda: Namespace(1, 512, 1, uuid=b"short"),
    ):
        with pytest.raises(TargetError):
            call()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_io_size": 4097},
        {"max_io_size": 2048},
        {"in_capsule_data_size": 1 << 20},
        {"in_capsule_data_size": 17},
        {"max_queue_depth": 1},
        {"max_io_queues": 0},
    ],
)
def test_wrong_limits_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        TransportLimits(**wrong)  # type: ignore[arg-type]


def test_connections_are_limited() -> None:
    rig = Rig(TransportLimits(max_connections=2))
    rig.connection()
    connection = rig.connection()
    assert rig.target.accept(LISTENER, "host:3", 0) is None
    connection.connection_lost()
    rig.connection()


# Properties


def test_properties() -> None:
    host = Rig().host()
    host.send(connect_capsule(0))
    cap = host.send(property_get(0x00, 1))[0].result
    assert cap & 0xFFFF == 127
    assert cap >> 37 & 1
    assert host.send(property_get(0x08))[0].result == 0x00010400
    assert host.send(property_get(0x1C))[0].result == 0
    host.send(property_set(0x14, 0x460001))
    assert host.send(property_get(0x14))[0].result == 0x460001
    assert host.send(property_get(0x1C))[0].result == 1
    for data in (property_get(0x00), property_get(0x14, 1), property_get(0x24), property_set(0x1C, 1)):
        assert host.send(data)[0].status == Status.INVALID_FIELD


@pytest.mark.parametrize("value", [0x460000, 0x464001])
def test_reset_and_shutdown_end_the_io_queues(value: int) -> None:
    rig = Rig(fast=False, park=True)
    host = rig.controller()
    queue = rig.queue(host)
    queue.send(read(1, 0, 1))
    host.send(admin(AER, 9, length=0))
    assert host.send(property_set(0x14, value))[0].status == 0
    assert queue.connection.closing and not host.connection.closing
    assert queue.connection.connection_lost() == rig.parked
    status = host.send(property_get(0x1C))[0].result
    assert status == (0 if value == 0x460000 else 1 | 2 << 2)
    if value == 0x460000:
        assert host.connection.outstanding() == []
        host.send(property_set(0x14, 0x460001))
        rig.finish(rig.parked.pop())
        assert rig.queue(host).send(read(1, 0, 1)) == []


def test_the_end_of_the_admin_queue_is_the_end_of_the_controller() -> None:
    rig = Rig()
    host = rig.controller()
    queue = rig.queue(host)
    host.connection.connection_lost()
    assert queue.connection.closing
    assert queue.connection in rig.target.take_attention()
    assert rig.target.subsystems[NQN].controllers == {}


# Identify


def test_identify_controller() -> None:
    rig = Rig()
    data = identify(rig.controller(), 1)
    assert len(data) == 4096
    assert data[4:24] == b"S1".ljust(20)
    assert data[24:64] == b"segmap".ljust(40)
    assert data[77] == 4  # MDTS: 64 KiB of 4 KiB pages
    assert struct.unpack_from("<H", data, 78) == (5,)
    assert data[111] == 1
    assert struct.unpack_from("<HHI", data, 512) == (0x4466, 128, 32)
    assert struct.unpack_from("<H", data, 520) == (1 << 2 | 1 << 3,)
    assert data[525] & 1
    assert data[768:1024].rstrip(b"\0") == NQN.encode()
    assert struct.unpack_from("<IIH", data, 1792) == ((64 + 4096) // 16, 1, 0)


def test_identify_namespaces() -> None:
    rig = Rig(fast=True, uuid=b"u" * 16, nguid=b"n" * 16, eui64=b"e" * 8, boundary_blocks=2048, thin=True)
    rig.target.add_namespace(NQN, Namespace(7, 4096, 100, read_only=True))
    host = rig.controller()
    assert struct.unpack_from("<3I", identify(host, 2)) == (1, 7, 0)
    assert struct.unpack_from("<2I", identify(host, 2, 1)) == (7, 0)
    assert struct.unpack_from("<2I", identify(host, 7)) == (1, 7)
    data = identify(host, 0, 1)
    assert struct.unpack_from("<3QB", data) == (BLOCKS, BLOCKS, BLOCKS, 1)
    assert data[30] == 1  # shared
    assert struct.unpack_from("<H", data, 46) == (128,)  # NOIOB, at most MDTS
    assert (data[104:120], data[120:128]) == (b"n" * 16, b"e" * 8)
    assert struct.unpack_from("<I", data, 128) == (9 << 16,)
    assert identify(host, 0, 7)[99] == 1
    assert struct.unpack_from("<I", identify(host, 0, 7), 128) == (12 << 16,)
    assert identify(host, 0, 2) == bytes(4096)
    descriptors = identify(host, 3, 1)
    expected = b"\1\x08\0\0" + b"e" * 8 + b"\2\x10\0\0" + b"n" * 16 + b"\3\x10\0\0" + b"u" * 16 + b"\4\1\0\0\0"
    assert descriptors.rstrip(b"\0") == expected.rstrip(b"\0")
    assert identify(host, 8, 7)[8] == 1
    assert identify(host, 5, 1) == identify(host, 6) == bytes(4096)


@pytest.mark.parametrize(
    ("cns", "nsid", "dword11", "status"),
    [
        (0, 0, 0, Status.INVALID_NAMESPACE),
        (0, 33, 0, Status.INVALID_NAMESPACE),
        (0, 0xFFFFFFFF, 0, Status.INVALID_NAMESPACE),
        (2, 0xFFFFFFFE, 0, Status.INVALID_NAMESPACE),
        (3, 2, 0, Status.INVALID_NAMESPACE),
        (6, 0, 1 << 24, Status.INVALID_FIELD),
        (0x10, 0, 0, Status.INVALID_FIELD),
        (0xFF, 0, 0, Status.INVALID_FIELD),
    ],
)
def test_identify_refusals(cns: int, nsid: int, dword11: int, status: Status) -> None:
    (response,) = Rig().controller().send(admin(IDENTIFY, 1, nsid, cns, dword11))
    assert response.status == status


def test_unknown_admin_commands() -> None:
    host = Rig().controller()
    for opcode in (0x00, 0x01, 0x0D, 0x10, 0x80, 0xC0):
        assert host.send(admin(opcode, 1, length=0))[0].status == Status.INVALID_OPCODE
    assert host.send(capsule(sqe(IDENTIFY, 1, flags=0x41, sgl=(0, 4096, 0x5A))))[0].status == Status.INVALID_FIELD
    assert host.send(admin(IDENTIFY, 1, 0, 1, length=100))[0].status == Status.DATA_SGL_LENGTH_INVALID


# Log pages


def test_log_pages() -> None:
    rig = Rig()
    host = rig.controller()
    queue = rig.queue(host)
    queue.send(read(1, 0, 8))
    queue.send(read(2, BLOCKS, 1))
    smart = page(host, 2, 512)
    assert struct.unpack_from("<Q", smart, 64) == (1,)
    assert struct.unpack_from("<Q", smart, 176) == (1,)
    count, sqid, cid, status, _, lba, nsid = struct.unpack_from("<QHHHHQI", page(host, 1, 128))
    assert (count, sqid, cid, status >> 1 & 0x7FF, lba, nsid) == (1, 1, 2, 0x80, BLOCKS, 1)
    assert page(host, 3, 512)[8:16] == b"1.0".ljust(8)
    effects = page(host, 5, 4096)
    assert struct.unpack_from("<I", effects, 1024 + 4 * 1) == (3,)
    assert struct.unpack_from("<I", effects, 1024 + 4 * 5) == (0,)
    supported = struct.unpack("<256I", page(host, 0, 1024))
    assert [number for number, value in enumerate(supported) if value] == [0, 1, 2, 3, 4, 5, 0x12]
    assert struct.unpack_from("<I", page(host, 0x12, 1024), 4 * 7)[0] & 1


def test_log_page_in_pieces_and_beyond_its_end() -> None:
    host = Rig().controller()
    whole = page(host, 2, 512)
    assert b"".join(page(host, 2, 128, offset) for offset in range(0, 512, 128)) == whole
    assert page(host, 2, 1024, 256) == whole[256:].ljust(1024, b"\0")
    for number, offset, length, status in (
        (0x70, 0, 512, Status.INVALID_LOG_PAGE),
        (0x0C, 0, 512, Status.INVALID_LOG_PAGE),
        (2, 516, 4, Status.INVALID_FIELD),
        (2, 2, 4, Status.INVALID_FIELD),
        (2, 0, 0, Status.DATA_SGL_LENGTH_INVALID),
    ):
        dwords = 127
        entry = admin(GET_LOG, 3, 0, number | dwords << 16, 0, offset, length=length)
        if length == 4:
            entry = admin(GET_LOG, 3, 0, number, 0, offset, length=4)
        assert host.send(entry)[0].status == status


# Features


def feature(host: RawHost, opcode: int, number: int, dword11: int = 0, nsid: int = 0) -> tuple[int, int]:
    response = host.send(admin(opcode, 4, nsid, number, dword11, length=0))[-1]
    return response.status, response.result


def test_features() -> None:
    rig = Rig(TransportLimits(max_io_queues=3))
    host = rig.controller()
    assert feature(host, SET_FEATURES, 7, 9 | 7 << 16) == (0, 2 | 2 << 16)
    assert feature(host, SET_FEATURES, 7, 1 | 1 << 16) == (0, 1 | 1 << 16)
    assert feature(host, GET_FEATURES, 7) == (0, 1 | 1 << 16)
    assert feature(host, SET_FEATURES, 7, 0xFFFF)[0] == Status.INVALID_FIELD
    rig.queue(host, 2)
    assert rig.host().send(connect_capsule(3, host.cntlid))[0].status == 0x182
    assert feature(host, SET_FEATURES, 7, 0)[0] == Status.COMMAND_SEQUENCE_ERROR
    assert feature(host, SET_FEATURES, 0x0B, 0x100) == (0, 0)
    assert feature(host, GET_FEATURES, 0x0B) == (0, 0x100)
    assert feature(host, SET_FEATURES, 0x0F, 1234) == (0, 0)
    assert feature(host, GET_FEATURES, 0x0F) == (0, 1300)
    assert feature(host, SET_FEATURES, 1, 3) == (0, 0)
    assert feature(host, GET_FEATURES, 1) == (0, 3)
    assert feature(host, GET_FEATURES, 6) == (0, 1)
    assert feature(host, SET_FEATURES, 6, 0) == (0, 0)
    assert feature(host, GET_FEATURES, 6) == (0, 0)
    assert feature(host, SET_FEATURES, 5, 1)[0] == Status.INVALID_NAMESPACE
    assert feature(host, SET_FEATURES, 5, 1, nsid=1)[0] == 0
    assert feature(host, SET_FEATURES, 0x81)[0] == Status.COMMAND_SEQUENCE_ERROR
    assert feature(host, GET_FEATURES, 0x81)[0] == Status.HOST_IDENTIFIER_FORMAT
    data, response = host.send(admin(GET_FEATURES, 4, 0, 0x81, 1, length=16))
    assert (data.data, response.status) == (bytes(range(16)), 0)
    behaviour = b"\1".ljust(512, b"\0")
    assert host.send(capsule(sqe(SET_FEATURES, 4, 0, 0x16, sgl=(0, 512, 1)), behaviour))[0].status == 0
    assert host.send(admin(GET_FEATURES, 4, 0, 0x16, length=512))[0].data == behaviour
    for number in (0x02 | 1 << 31, 0x1D, 0xC0):
        assert feature(host, SET_FEATURES, number)[0] in (Status.FEATURE_NOT_SAVEABLE, Status.INVALID_FIELD)
    assert feature(host, GET_FEATURES, 0x1D)[0] == Status.INVALID_FIELD
    assert feature(host, GET_FEATURES, 7 | 3 << 8)[0] == Status.INVALID_FIELD


def test_no_write_cache_no_such_feature() -> None:
    rig = Rig()
    rig.namespace.volatile_cache = False
    assert feature(rig.controller(), GET_FEATURES, 6)[0] == Status.INVALID_FIELD


# Events


def test_namespace_events() -> None:
    rig = Rig()
    host = rig.controller()
    assert host.send(admin(AER, 8, length=0)) == []
    rig.target.resize_namespace(NQN, 1, BLOCKS * 2)
    assert rig.target.take_attention() == [host.connection]
    (event,) = host.answers()
    assert (event.cid, event.status, event.result) == (8, 0, 0x040002)
    assert struct.unpack_from("<Q", identify(host, 0, 1)) == (BLOCKS * 2,)
    # Masked until the log page is read; then once more.
    host.send(admin(AER, 9, length=0))
    rig.target.add_namespace(NQN, Namespace(2, 512, 8))
    assert host.answers() == []
    assert struct.unpack_from("<3I", page(host, 4, 4096, retain=1)) == (1, 2, 0)
    assert host.answers() == []
    answers = host.send(admin(GET_LOG, 3, 0, 4 | 1023 << 16, length=4096))
    assert struct.unpack_from("<3I", answers[1].data if answers[0].kind != C2H else answers[0].data) == (1, 2, 0)
    assert [answer.result for answer in answers if answer.kind != C2H and answer.cid == 9] == [0x040002]
    page(host, 4, 4096)
    rig.target.remove_namespace(NQN, 2)
    host.send(admin(AER, 10, length=0))
    assert struct.unpack_from("<2I", page(host, 4, 4096)) == (2, 0)


def test_events_the_host_does_not_want() -> None:
    rig = Rig()
    host = rig.controller()
    feature(host, SET_FEATURES, 0x0B, 0)
    host.send(admin(AER, 8, length=0))
    rig.target.resize_namespace(NQN, 1, 8)
    assert host.answers() == []


def test_event_request_limit_at_limit_plus_one() -> None:
    host = Rig().controller()
    for cid in range(4):
        assert host.send(admin(AER, cid, length=0)) == []
    (response,) = host.send(admin(AER, 4, length=0))
    assert response.status == Status.ASYNC_EVENT_LIMIT_EXCEEDED
    (aborted, response) = host.send(admin(8, 9, 0, 0 | 2 << 16, length=0))
    assert (aborted.cid, aborted.status, response.cid, response.result) == (2, Status.ABORTED_BY_REQUEST, 9, 0)


def test_an_event_requests_identifier_may_be_used_again() -> None:
    rig = Rig()
    host = rig.controller()
    host.send(admin(AER, 0, length=0))
    assert host.send(property_get(0x1C, cid=0))[0].result == 1
    assert host.connection.outstanding() == []
    rig.target.resize_namespace(NQN, 1, 8)
    assert host.answers() == []


# Keep alive and time


def test_keep_alive_expiry() -> None:
    rig = Rig()
    host = rig.controller(keep_alive_ms=950)
    queue = rig.queue(host)
    assert rig.target.next_deadline() == SECOND  # rounded up to the grain
    rig.now_ns = SECOND - 1
    assert host.send(admin(KEEP_ALIVE, 1, length=0))[0].status == 0
    rig.target.tick(SECOND)
    assert not host.connection.closing
    rig.target.tick(2 * SECOND - 2)
    assert not host.connection.closing
    rig.target.tick(2 * SECOND - 1)
    assert host.connection.closing and queue.connection.closing
    assert rig.target.subsystems[NQN].controllers == {}
    assert rig.target.next_deadline() is None


def test_without_keep_alive_nothing_expires() -> None:
    rig = Rig()
    host = rig.controller()
    rig.target.tick(10**15)
    assert not host.connection.closing


def test_a_connection_without_connect_expires() -> None:
    rig = Rig()
    host = rig.host()
    deadline = rig.target.next_deadline()
    assert deadline == 30 * SECOND
    rig.target.tick(deadline)
    assert host.connection.closing
    assert host.connection in rig.target.take_attention()


# Discovery


def discovery_log(host: RawHost) -> tuple[int, list[tuple[str, str, str]]]:
    generation, count = struct.unpack_from("<QQ", page(host, 0x70, 1024))
    found = []
    for number in range(count):
        entry = page(host, 0x70, 1024, 1024 + number * 1024)
        assert entry[0] == 3
        texts = [entry[at : at + size].rstrip(b" \0").decode() for at, size in ((256, 256), (512, 256), (32, 32))]
        found.append((texts[0], texts[1], texts[2]))
    return generation, found


def test_discovery_shows_what_this_host_may_use() -> None:
    rig = Rig()
    rig.target.add_subsystem(Subsystem("nqn.2026-11.io.segmap:open", allow_any_host=True))
    rig.target.add_listener("nqn.2026-11.io.segmap:open", Listener("::1", "4430", "IPv6"))
    own = (DISCOVERY_NQN, "127.0.0.1", "4420")
    both = rig.controller(subnqn=DISCOVERY_NQN)
    generation, found = discovery_log(both)
    assert found == [own, (NQN, "127.0.0.1", "4420"), ("nqn.2026-11.io.segmap:open", "::1", "4430")]
    assert discovery_log(rig.controller(subnqn=DISCOVERY_NQN, hostnqn=OTHER))[1] == [own, found[2]]
    rig.target.remove_subsystem("nqn.2026-11.io.segmap:open")
    again, found = discovery_log(both)
    assert (again > generation, len(found)) == (True, 2)


def test_discovery_controller() -> None:
    rig = Rig()
    host = rig.controller(subnqn=DISCOVERY_NQN)
    assert identify(host, 1)[111] == 2
    assert host.send(admin(8, 1, 0, 0, length=0))[0].status == Status.INVALID_OPCODE
    (response,) = rig.host().send(connect_capsule(1, host.cntlid, subnqn=DISCOVERY_NQN))
    assert response.status == 0x182
    assert feature(host, SET_FEATURES, 0x0B, 1 << 31) == (0, 0)
    host.send(admin(AER, 8, length=0))
    rig.target.add_listener(NQN, Listener("127.0.0.1", "4499"))
    assert host.answers()[0].result == 0x70F002


def test_read_data_of_4096_byte_blocks() -> None:
    rig = Rig()
    rig.target.add_namespace(
        NQN, Namespace(2, 4096, 16, read_now=lambda offset, length: bytes([offset >> 12]) * length)
    )
    host = rig.io_queue()
    entry = capsule(sqe(2, 1, 2, 5, 0, 1, sgl=(0, 8192, 0x5A)))
    assert host.send(entry)[0].data == b"\5" * 8192
    assert host.send(capsule(sqe(2, 1, 2, 15, 0, 1, sgl=(0, 8192, 0x5A))))[0].status == Status.LBA_OUT_OF_RANGE
    assert BLOCK == 512
