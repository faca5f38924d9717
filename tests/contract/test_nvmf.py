"""NVMe-oF export: transports, subsystems, namespaces, listeners, hosts."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from spdk_rpc.methods import nvmf
from tests.contract.conftest import NQN, Plane
from tests.contract.shapes import check_shape
from transport.ports import pick

INVALID_PARAMS, INTERNAL, ENODEV = -32602, -32603, -19
HOST = "nqn.2026-11.io.segmap:agent:a:1"
DISCOVERY = nvmf.DISCOVERY_NQN
ADDRESS = {"trtype": str, "adrfam": str, "traddr": str, "trsvcid": str}
SUBSYSTEM = {
    "nqn": str,
    "subtype": str,
    "listen_addresses": [ADDRESS],
    "allow_any_host": bool,
    "hosts": [{"nqn": str}],
    "serial_number": str,
    "model_number": str,
    "max_namespaces": int,
    "min_cntlid": int,
    "max_cntlid": int,
    "namespaces": [{"nsid": int, "bdev_name": str, "name": str, "nguid": str, "uuid": str}],
}


def get(rpc: Callable[..., Any], nqn: str) -> dict[str, Any]:
    (found,) = rpc("nvmf_get_subsystems", nqn=nqn)
    check_shape(found, SUBSYSTEM)
    assert found["nqn"] == nqn
    return dict(found)


def address(port: int | str, **change: Any) -> dict[str, Any]:
    return {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)} | change


@pytest.fixture
def port() -> int:
    """A port that is free now."""
    return pick("127.0.0.1", set())


# --- transports


def test_transport(rpc: Callable[..., Any], code_of: Callable[..., int], tcp: None) -> None:
    (found,) = rpc("nvmf_get_transports", trtype="TCP")
    shape = {"max_queue_depth": int, "max_io_qpairs_per_ctrlr": int, "in_capsule_data_size": int, "max_io_size": int}
    check_shape(found, shape | {"trtype": str, "max_aq_depth": int, "c2h_success": bool, "abort_timeout_sec": int})
    assert found["trtype"] == "TCP"
    assert rpc("nvmf_get_transports") == rpc("nvmf_get_transports", trtype="tcp") == [found]
    assert code_of("nvmf_create_transport", {"trtype": "TCP"}) == INTERNAL
    assert code_of("nvmf_create_transport", {"trtype": "tcp"}) == INTERNAL


@pytest.mark.parametrize("params", [{}, {"trtype": "BOGUS"}, {"trtype": 5}])
def test_create_transport_refused(code_of: Callable[..., int], params: dict[str, Any]) -> None:
    assert code_of("nvmf_create_transport", params) == INVALID_PARAMS


@pytest.mark.parametrize(
    ("params", "code"),
    [({"trtype": "FC"}, ENODEV), ({"bogus": 1}, INVALID_PARAMS), ({"tgt_name": "nosuch"}, INTERNAL)],
)
def test_get_transports_refused(code_of: Callable[..., int], params: dict[str, Any], code: int) -> None:
    assert code_of("nvmf_get_transports", params) == code


# --- subsystems


def test_a_new_subsystem_shows_nothing_to_nobody(rpc: Callable[..., Any], nqn: str) -> None:
    found = get(rpc, nqn)
    assert (found["subtype"], found["allow_any_host"]) == ("NVMe", False)
    assert found["hosts"] == found["namespaces"] == found["listen_addresses"] == []
    assert (found["serial_number"], found["max_namespaces"]) == ("CONTRACT", 4)
    assert (found["min_cntlid"], found["max_cntlid"]) == (1, 0xFFEF)


def test_subsystem_with_everything_said(rpc: Callable[..., Any]) -> None:
    nqn = NQN + "everything"
    params = {"model_number": "segmap vdisk", "min_cntlid": 10, "max_cntlid": 20, "max_namespaces": 7}
    assert rpc("nvmf_create_subsystem", nqn=nqn, serial_number="S1", allow_any_host=True, **params) is True
    found = get(rpc, nqn)
    assert {name: found[name] for name in params} == params
    assert (found["serial_number"], found["allow_any_host"]) == ("S1", True)
    assert rpc("nvmf_delete_subsystem", nqn=nqn) is True


def test_subsystem_with_defaults(rpc: Callable[..., Any]) -> None:
    nqn = "nqn.2014-08.org.nvmexpress:uuid:" + str(uuid.uuid4())
    assert rpc("nvmf_create_subsystem", nqn=nqn) is True
    found = get(rpc, nqn)
    assert (found["serial_number"], found["max_namespaces"]) == ("0" * 20, 32)
    assert rpc("nvmf_delete_subsystem", nqn=nqn) is True


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"nqn": None}, INVALID_PARAMS),
        ({"nqn": 5}, INVALID_PARAMS),
        ({"bogus": 1}, INVALID_PARAMS),
        ({"serial_number": "x" * 21}, INVALID_PARAMS),
        ({"serial_number": "é"}, INVALID_PARAMS),
        ({"model_number": "x" * 41}, INVALID_PARAMS),
        ({"min_cntlid": 5, "max_cntlid": 4}, INVALID_PARAMS),
        ({"min_cntlid": 0}, INVALID_PARAMS),
        ({"max_cntlid": 0xFFF0}, INVALID_PARAMS),
        ({"nqn": "bad"}, INTERNAL),
        ({"nqn": ""}, INTERNAL),
        ({"nqn": "nqn.2026-11.io.segmap"}, INTERNAL),
        ({"nqn": "nqn.2026-11.io.segmap:" + "x" * 230}, INTERNAL),
        ({"nqn": DISCOVERY}, INTERNAL),
        ({"tgt_name": "nosuch"}, INTERNAL),
    ],
)
def test_create_subsystem_refused(code_of: Callable[..., int], change: dict[str, Any], code: int) -> None:
    params = {"nqn": NQN + "refused"} | change
    assert code_of("nvmf_create_subsystem", {key: value for key, value in params.items() if value is not None}) == code


def test_subsystem_exists(code_of: Callable[..., int], nqn: str) -> None:
    assert code_of("nvmf_create_subsystem", {"nqn": nqn}) == INTERNAL


def test_discovery_subsystem_is_there_from_the_start(rpc: Callable[..., Any]) -> None:
    found = [one for one in rpc("nvmf_get_subsystems") if one["subtype"] == "Discovery"]
    assert [one["nqn"] for one in found] == [DISCOVERY]
    assert found[0]["allow_any_host"] is True
    assert rpc("nvmf_discovery_get_referrals") == []


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("nvmf_get_subsystems", {"nqn": "nosuch"}),
        ("nvmf_get_subsystems", {"bogus": 1}),
        ("nvmf_get_subsystems", {"tgt_name": "nosuch"}),
        ("nvmf_delete_subsystem", {"nqn": "nosuch"}),
        ("nvmf_delete_subsystem", {}),
        ("nvmf_subsystem_get_qpairs", {"nqn": "nosuch"}),
        ("nvmf_subsystem_get_qpairs", {}),
        ("nvmf_discovery_get_referrals", {"bogus": 1}),
    ],
)
def test_refused(code_of: Callable[..., int], method: str, params: dict[str, Any]) -> None:
    assert code_of(method, params) == INVALID_PARAMS


def test_deleted_twice(rpc: Callable[..., Any], code_of: Callable[..., int]) -> None:
    rpc("nvmf_create_subsystem", nqn=NQN + "twice")
    assert code_of("nvmf_delete_subsystem", {"nqn": NQN + "twice", "bogus": 1}) == INVALID_PARAMS
    assert rpc("nvmf_delete_subsystem", nqn=NQN + "twice") is True
    assert code_of("nvmf_delete_subsystem", {"nqn": NQN + "twice"}) == INVALID_PARAMS


# --- namespaces


def add(rpc: Callable[..., Any], nqn: str, **namespace: Any) -> Any:
    return rpc("nvmf_subsystem_add_ns", nqn=nqn, namespace=namespace)


def test_namespace(rpc: Callable[..., Any], nqn: str, malloc: str) -> None:
    ident = {"nguid": "0123456789ABCDEF0123456789ABCDEF", "uuid": "cccccccc-2222-3333-4444-555555555555"}
    assert add(rpc, nqn, bdev_name=malloc, nsid=3, **ident) == 3
    assert get(rpc, nqn)["namespaces"] == [{"nsid": 3, "bdev_name": malloc, "name": malloc, **ident}]
    (claimed,) = rpc("bdev_get_bdevs", name=malloc)
    assert claimed["claimed"] is True
    assert rpc("nvmf_subsystem_remove_ns", nqn=nqn, nsid=3) is True
    assert get(rpc, nqn)["namespaces"] == []
    (free,) = rpc("bdev_get_bdevs", name=malloc)
    assert free["claimed"] is False


def test_namespace_takes_number_and_identity_from_target_and_bdev(
    rpc: Callable[..., Any], nqn: str, malloc: str
) -> None:
    assert add(rpc, nqn, bdev_name=malloc) == 1
    (bdev,) = rpc("bdev_get_bdevs", name=malloc)
    (namespace,) = get(rpc, nqn)["namespaces"]
    assert namespace["uuid"] == bdev["uuid"]
    assert namespace["nguid"] == bdev["uuid"].replace("-", "").upper()
    assert rpc("nvmf_subsystem_remove_ns", nqn=nqn, nsid=1) is True


@pytest.mark.parametrize(
    "change",
    [
        {"bdev_name": "nosuch"},
        {"nsid": 5},  # over max_namespaces
        {"nsid": 0xFFFFFFFF},
        {"uuid": "junk"},
        {"nguid": "junk"},
        {"bogus": 1},
        {"bdev_name": None},
    ],
)
def test_add_namespace_refused(
    rpc: Callable[..., Any], code_of: Callable[..., int], nqn: str, malloc: str, change: dict[str, Any]
) -> None:
    params = {name: value for name, value in ({"bdev_name": malloc} | change).items() if value is not None}
    assert code_of("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": params}) == INVALID_PARAMS
    assert get(rpc, nqn)["namespaces"] == []


def test_add_namespace_refused_as_a_whole(code_of: Callable[..., int], nqn: str, malloc: str) -> None:
    namespace = {"bdev_name": malloc}
    for params in ({"nqn": nqn}, {"namespace": namespace}, {"nqn": "nosuch", "namespace": namespace}):
        assert code_of("nvmf_subsystem_add_ns", params) == INVALID_PARAMS


def test_bdev_and_number_are_taken_once(
    rpc: Callable[..., Any], code_of: Callable[..., int], nqn: str, malloc: str
) -> None:
    other = rpc("bdev_null_create", name="ns-null", block_size=512, num_blocks=64)
    add(rpc, nqn, bdev_name=malloc, nsid=1)
    for namespace in ({"bdev_name": malloc, "nsid": 2}, {"bdev_name": other, "nsid": 1}):
        assert code_of("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": namespace}) == INVALID_PARAMS
    assert rpc("bdev_null_delete", name=other) is True


def test_bdev_that_is_deleted_takes_its_namespace_with_it(rpc: Callable[..., Any], nqn: str) -> None:
    rpc("bdev_null_create", name="ns-gone", block_size=512, num_blocks=64)
    add(rpc, nqn, bdev_name="ns-gone", nsid=2)
    assert rpc("bdev_null_delete", name="ns-gone") is True
    assert get(rpc, nqn)["namespaces"] == []


@pytest.mark.parametrize("change", [{"nsid": 2}, {"nsid": 0}, {"nsid": None}, {"nsid": "x"}, {"nqn": "nosuch"}])
def test_remove_namespace_refused(
    rpc: Callable[..., Any], code_of: Callable[..., int], nqn: str, malloc: str, change: dict[str, Any]
) -> None:
    add(rpc, nqn, bdev_name=malloc, nsid=1)
    params = {name: value for name, value in ({"nqn": nqn, "nsid": 1} | change).items() if value is not None}
    assert code_of("nvmf_subsystem_remove_ns", params) == INVALID_PARAMS
    assert len(get(rpc, nqn)["namespaces"]) == 1


# --- listeners


def test_listener(rpc: Callable[..., Any], nqn: str, tcp: None, port: int) -> None:
    assert rpc("nvmf_subsystem_add_listener", nqn=nqn, listen_address=address(port)) is True
    assert get(rpc, nqn)["listen_addresses"] == [address(port)]
    with socket.create_connection(("127.0.0.1", port), 5):
        pass
    assert rpc("nvmf_subsystem_remove_listener", nqn=nqn, listen_address=address(port)) is True
    assert get(rpc, nqn)["listen_addresses"] == []


def test_listener_is_refused_twice(
    rpc: Callable[..., Any], code_of: Callable[..., int], nqn: str, tcp: None, port: int
) -> None:
    rpc("nvmf_subsystem_add_listener", nqn=nqn, listen_address=address(port))
    for change in ({}, {"trtype": "tcp"}):
        params = {"nqn": nqn, "listen_address": address(port, **change)}
        assert code_of("nvmf_subsystem_add_listener", params) == INVALID_PARAMS


def test_subsystems_share_a_listener(rpc: Callable[..., Any], nqn: str, tcp: None, port: int) -> None:
    other = NQN + "shares"
    rpc("nvmf_create_subsystem", nqn=other)
    for one in (nqn, other):
        assert rpc("nvmf_subsystem_add_listener", nqn=one, listen_address=address(port)) is True
    assert rpc("nvmf_delete_subsystem", nqn=other) is True
    with socket.create_connection(("127.0.0.1", port), 5):
        pass


def test_discovery_listens_too(rpc: Callable[..., Any], tcp: None, port: int) -> None:
    assert rpc("nvmf_subsystem_add_listener", nqn=DISCOVERY, listen_address=address(port)) is True
    assert rpc("nvmf_subsystem_remove_listener", nqn=DISCOVERY, listen_address=address(port)) is True


@pytest.mark.parametrize(
    "change",
    [
        {"trtype": "RDMA"},
        {"trtype": "BOGUS"},
        {"adrfam": "BOGUS"},
        {"traddr": "junk"},
        {"traddr": "192.0.2.1"},
        {"trsvcid": "99999"},
        {"trsvcid": "abc"},
        {"trsvcid": 4420},
        {"trsvcid": None},
        {"traddr": None},
        {"bogus": 1},
    ],
)
def test_add_listener_refused(
    rpc: Callable[..., Any], code_of: Callable[..., int], nqn: str, tcp: None, port: int, change: dict[str, Any]
) -> None:
    params = {name: value for name, value in address(port, **change).items() if value is not None}
    assert code_of("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": params}) == INVALID_PARAMS
    assert get(rpc, nqn)["listen_addresses"] == []


def test_listener_refused_where_another_listens(code_of: Callable[..., int], nqn: str, tcp: None) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        params = {"nqn": nqn, "listen_address": address(other.getsockname()[1])}
        assert code_of("nvmf_subsystem_add_listener", params) == INVALID_PARAMS


def test_listener_calls_refused_as_a_whole(code_of: Callable[..., int], nqn: str, tcp: None, port: int) -> None:
    for verb in ("add", "remove"):
        for params in ({"nqn": nqn}, {"nqn": "nosuch", "listen_address": address(port)}):
            assert code_of(f"nvmf_subsystem_{verb}_listener", params) == INVALID_PARAMS
    params = {"nqn": nqn, "listen_address": address(port)}
    assert code_of("nvmf_subsystem_remove_listener", params) == INVALID_PARAMS  # there is none


# --- hosts


def test_hosts(rpc: Callable[..., Any], code_of: Callable[..., int], nqn: str) -> None:
    assert rpc("nvmf_subsystem_add_host", nqn=nqn, host=HOST) is True
    assert rpc("nvmf_subsystem_add_host", nqn=nqn, host=HOST + "2") is True
    assert {host["nqn"] for host in get(rpc, nqn)["hosts"]} == {HOST, HOST + "2"}
    assert code_of("nvmf_subsystem_add_host", {"nqn": nqn, "host": HOST}) == INTERNAL
    assert rpc("nvmf_subsystem_remove_host", nqn=nqn, host=HOST) is True
    assert code_of("nvmf_subsystem_remove_host", {"nqn": nqn, "host": HOST}) == INTERNAL
    assert get(rpc, nqn)["hosts"] == [{"nqn": HOST + "2"}]


def test_any_host(rpc: Callable[..., Any], nqn: str) -> None:
    for allow in (True, True, False, False):
        assert rpc("nvmf_subsystem_allow_any_host", nqn=nqn, allow_any_host=allow) is True
        assert get(rpc, nqn)["allow_any_host"] is allow


@pytest.mark.parametrize(
    ("method", "change", "code"),
    [
        ("add_host", {"host": "bad"}, INTERNAL),
        ("add_host", {"host": ""}, INTERNAL),
        ("add_host", {"host": None}, INVALID_PARAMS),
        ("add_host", {"nqn": "nosuch"}, INVALID_PARAMS),
        ("remove_host", {"host": "bad"}, INTERNAL),
        ("remove_host", {"host": None}, INVALID_PARAMS),
        ("remove_host", {"nqn": "nosuch"}, INVALID_PARAMS),
    ],
)
def test_host_calls_refused(
    code_of: Callable[..., int], nqn: str, method: str, change: dict[str, Any], code: int
) -> None:
    params = {name: value for name, value in ({"nqn": nqn, "host": HOST} | change).items() if value is not None}
    assert code_of(f"nvmf_subsystem_{method}", params) == code


@pytest.mark.parametrize("change", [{"allow_any_host": None}, {"allow_any_host": "x"}, {"nqn": "nosuch"}, {"bogus": 1}])
def test_any_host_refused(code_of: Callable[..., int], nqn: str, change: dict[str, Any]) -> None:
    params = {key: value for key, value in ({"nqn": nqn, "allow_any_host": True} | change).items() if value is not None}
    assert code_of("nvmf_subsystem_allow_any_host", params) == INVALID_PARAMS


def test_queue_pairs_of_nobody(rpc: Callable[..., Any], nqn: str) -> None:
    assert rpc("nvmf_subsystem_get_qpairs", nqn=nqn) == []
    assert rpc("nvmf_subsystem_get_qpairs", nqn=DISCOVERY) == []


def test_typed_calls(plane: Plane, nqn: str, malloc: str, tcp: None) -> None:
    assert plane.client.run(nvmf.subsystem_add_ns(nqn, malloc, 2)) == 2
    plane.client.run(nvmf.subsystem_add_host(nqn, HOST))
    (found,) = plane.client.run(nvmf.get_subsystems(nqn))
    assert (found.nqn, found.is_discovery, found.hosts) == (nqn, False, frozenset({HOST}))
    assert [(namespace.nsid, namespace.bdev_name) for namespace in found.namespaces] == [(2, malloc)]
    assert any(one.is_discovery for one in plane.client.run(nvmf.get_subsystems()))
    assert [transport.trtype for transport in plane.client.run(nvmf.get_transports())] == ["TCP"]
