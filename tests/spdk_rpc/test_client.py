"""The client against a scripted target: every fault of the package's client, and every way a call can fail."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from pathlib import Path

import pytest
from spdk.rpc.client import JSONRPCClient, JSONRPCException

from spdk_rpc import client as client_module
from spdk_rpc.call import Call, read_number
from spdk_rpc.client import AsyncRpcClient, RpcClient, count_values, encode_request
from spdk_rpc.errors import (
    RpcClosed,
    RpcConnectError,
    RpcError,
    RpcExpired,
    RpcNotExecuted,
    RpcOutcomeUnknown,
    RpcProtocolError,
    RpcQueueFull,
    RpcRequestTooLarge,
    RpcTimeout,
)
from tests.spdk_rpc.scripted_target import Peer, scripted_target

SHORT_S = 0.05


@pytest.fixture
def path(runtime_dir: Path) -> Path:
    return runtime_dir / "rpc.sock"


def answer_each_with_its_method(peer: Peer) -> None:
    try:
        while True:
            request = peer.request()
            peer.answer(request, request["method"])
    except OSError:
        pass


def answer_once(peer: Peer) -> None:
    request = peer.request()
    peer.answer(request, request["method"])
    peer.wait_until_closed()


def late_then_closed(peer: Peer) -> None:
    request = peer.request()
    peer.wait_until_released()
    try:
        peer.answer(request, "late")
    except OSError:
        pass
    peer.wait_until_closed()


def test_late_answer_is_never_taken_for_the_next_one(path: Path) -> None:
    with scripted_target(path, late_then_closed, answer_once) as released, RpcClient(path) as client:
        with pytest.raises(RpcTimeout, match="slow: outcome unknown: no answer in time"):
            client.call("slow", timeout_s=SHORT_S)
        released.set()
        assert client.call("fast") == "fast"


def test_the_packages_own_client_has_that_fault(path: Path) -> None:
    """Why the wrapper exists: should this test fail one day, the package has been repaired."""

    def late(peer: Peer) -> None:
        request = peer.request()
        peer.wait_until_released()
        peer.answer(request, "late")
        peer.wait_until_closed()

    with scripted_target(path, late) as released:
        theirs = JSONRPCClient(str(path), timeout=SHORT_S)
        with pytest.raises(JSONRPCException):
            theirs.call("slow")
        released.set()
        theirs.timeout = 5
        assert theirs.call("fast") == "late"
        theirs.close()
    for handler in list(logging.getLogger(f"JSONRPCClient({path})").handlers):
        logging.getLogger(f"JSONRPCClient({path})").removeHandler(handler)


def test_deadline_is_of_the_wall_also_while_bytes_trickle_in(path: Path) -> None:
    def trickle(peer: Peer) -> None:
        peer.request()
        try:
            peer.send(b'{"jsonrpc":"2.0","id":1,"result":"')
            while not peer.released.wait(SHORT_S / 5):
                peer.send(b"x")
        except OSError:
            pass

    with scripted_target(path, trickle) as released, RpcClient(path) as client:
        begun = time.monotonic()
        with pytest.raises(RpcTimeout):
            client.call("m", timeout_s=SHORT_S)
        assert time.monotonic() - begun < 2
        released.set()


def test_utf8_character_in_two_pieces(path: Path) -> None:
    def split(peer: Peer) -> None:
        request = peer.request()
        text = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": "Gruß 🦆"}, ensure_ascii=False).encode()
        for byte in text:
            peer.send(bytes([byte]))
        peer.wait_until_closed()

    with scripted_target(path, split), RpcClient(path) as client:
        assert client.call("m") == "Gruß 🦆"


def test_long_answer(path: Path) -> None:
    with (
        scripted_target(path, lambda peer: (peer.answer(peer.request(), ["x" * 1000] * 3000), None)[1]),
        RpcClient(path) as client,
    ):
        assert client.call("m") == ["x" * 1000] * 3000


def test_error_keeps_code_message_and_method(path: Path) -> None:
    def refuse(peer: Peer) -> None:
        for _ in range(2):
            request = peer.request()
            error = {"code": -17, "message": "File exists"}
            peer.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}).encode())
        peer.wait_until_closed()

    with scripted_target(path, refuse), RpcClient(path) as client:
        for _ in range(2):  # an error does not cost the connection
            with pytest.raises(RpcError) as caught:
                client.call("bdev_malloc_create", {"name": "a"})
            assert (caught.value.method, caught.value.code) == ("bdev_malloc_create", -17)
            assert caught.value.message == "File exists"


def test_error_with_null_id_is_ours(path: Path) -> None:
    def refuse(peer: Peer) -> None:
        peer.request()
        peer.send(b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Invalid request"}}')
        peer.wait_until_closed()

    with scripted_target(path, refuse), RpcClient(path) as client, pytest.raises(RpcError) as caught:
        client.call("m")
    assert caught.value.code == -32600


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"hello", "does not begin"),
        (b'{"jsonrpc":"2.0","id":7,"result":true}', "answers request 7"),
        (b'{"jsonrpc":"2.0","id":null,"result":true}', "answers request None"),
        (b'{"jsonrpc":"2.0","id":1}', "neither a result nor an error"),
        (b'{"jsonrpc":"2.0","id":1,"result":1,"error":{}}', "neither a result nor an error"),
        (b"[1]", "neither a result nor an error"),
        (b'{"jsonrpc":"2.0","id":1,"result":"\xff"}', "decode"),
        (b'{"jsonrpc":"2.0","id":1,"result":tru}', "JSON"),
        (b'{"jsonrpc":"2.0","id":1,"error":"no"}', "an error without a code"),
        (b'{"jsonrpc":"2.0","id":1,"result":1}{"jsonrpc":"2.0","id":2,"result":2}', "more than one answer"),
        (b'{"jsonrpc":"2.0","id":1,"result":1}{"json', "more than one answer"),
        (b'{"id":1,"result":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion"),
    ],
)
def test_what_is_no_answer_leaves_the_outcome_unknown(path: Path, answer: bytes, said: str) -> None:
    def send(peer: Peer) -> None:
        peer.request()
        peer.send(answer)
        if said != "an error without a code":  # that one can be understood, so the connection lives
            peer.wait_until_closed()

    with scripted_target(path, send, answer_each_with_its_method), RpcClient(path) as client:
        with pytest.raises(RpcProtocolError, match=said):
            client.call("m")
        assert client.call("next") == "next"


def test_answer_over_the_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spdk_rpc.framing import JsonFramer

    monkeypatch.setattr(client_module, "JsonFramer", lambda: JsonFramer(bytes_max=100))

    def send(peer: Peer) -> None:
        peer.answer(peer.request(), "x" * 200)
        peer.wait_until_closed()

    with scripted_target(path, send), RpcClient(path) as client, pytest.raises(RpcProtocolError, match="more than 100"):
        client.call("m")


def test_closed_before_the_answer(path: Path) -> None:
    with (
        scripted_target(path, lambda peer: (peer.request(), None)[1], answer_once),
        RpcClient(path) as client,
    ):
        with pytest.raises(RpcOutcomeUnknown, match="closed the connection before it answered") as caught:
            client.call("m")
        assert not isinstance(caught.value, RpcNotExecuted)
        assert client.call("next") == "next"


def test_closed_in_the_middle_of_the_answer(path: Path) -> None:
    def half(peer: Peer) -> None:
        peer.request()
        peer.send(b'{"jsonrpc":"2.0","id":1,"res')

    with scripted_target(path, half), RpcClient(path) as client, pytest.raises(RpcOutcomeUnknown):
        client.call("m")


def test_idle_connection_closed_by_the_target_is_replaced(path: Path) -> None:
    closed = threading.Event()

    def one(peer: Peer) -> None:
        request = peer.request()
        peer.answer(request, 1)
        peer.sock.close()
        closed.set()

    with scripted_target(path, one, answer_once), RpcClient(path, timeout_s=5) as client:
        assert client.call("a") == 1
        assert closed.wait(10)
        assert client.call("b") == "b"


def test_nobody_listens(path: Path) -> None:
    with RpcClient(path) as client:
        with pytest.raises(RpcConnectError, match="is the target running, and with this RPC socket"):
            client.call("m")
        path.touch()
        with pytest.raises(RpcConnectError, match="nobody listens there any more"):
            client.call("m")


def test_path_too_long(runtime_dir: Path) -> None:
    with RpcClient(runtime_dir / ("x" * 200)) as client, pytest.raises(RpcConnectError, match="at most 107 bytes"):
        client.call("m")


def test_target_that_does_not_read_the_request(path: Path) -> None:
    """The socket's buffer takes the beginning only: without its last bracket the request is none."""
    params = {"x": "y" * (200 << 10)}
    with (
        scripted_target(path, Peer.wait_until_released),
        RpcClient(path) as client,
    ):
        begun = time.monotonic()
        # Either the socket's buffer took it all (then the outcome is unknown) or it did not (then nothing happened).
        with pytest.raises((RpcExpired, RpcTimeout)):
            client.call("m", params, timeout_s=SHORT_S)
        assert time.monotonic() - begun < 2


def test_request_limits() -> None:
    overhead = len(encode_request(1, "m", {"x": ""}))
    most = client_module.REQUEST_BYTES_MAX - overhead
    assert len(encode_request(1, "m", {"x": "y" * most})) == client_module.REQUEST_BYTES_MAX
    with pytest.raises(RpcRequestTooLarge, match="262145 bytes"):
        encode_request(1, "m", {"x": "y" * (most + 1)})
    values = client_module.REQUEST_VALUES_MAX - count_values(
        {"jsonrpc": "", "id": 1, "method": "", "params": {"x": []}}
    )
    encode_request(1, "m", {"x": [1] * values})
    with pytest.raises(RpcRequestTooLarge):
        encode_request(1, "m", {"x": [1] * (values + 1)})


def test_no_params_member_without_parameters() -> None:
    assert b"params" not in encode_request(1, "spdk_get_version", None)
    assert b"params" not in encode_request(1, "spdk_get_version", {})


def test_ids_go_on_over_connections(path: Path) -> None:
    seen = []

    def note(peer: Peer) -> None:
        request = peer.request()
        seen.append(request["id"])
        if len(seen) > 1:
            peer.answer(request, None)
            peer.wait_until_closed()

    with scripted_target(path, note, note), RpcClient(path) as client:
        with pytest.raises(RpcOutcomeUnknown):
            client.call("a")
        client.call("b")
    assert seen == [1, 2]


def test_no_handler_is_left_on_the_packages_logger(path: Path) -> None:
    with scripted_target(path, *[answer_once] * 3):
        for _ in range(3):
            with RpcClient(path) as client:
                client.call("m")
    assert logging.getLogger(f"JSONRPCClient({path})").handlers == []


def test_closed_client(path: Path) -> None:
    client = RpcClient(path)
    client.close()
    with pytest.raises(RpcClosed):
        client.call("m")


def test_close_ends_a_call_in_another_thread(path: Path) -> None:
    asked = threading.Event()

    def hang(peer: Peer) -> None:
        peer.request()
        asked.set()
        peer.wait_until_closed()

    caught: list[BaseException] = []

    def call(client: RpcClient) -> None:
        try:
            client.call("m")
        except RpcOutcomeUnknown as error:
            caught.append(error)

    with scripted_target(path, hang):
        client = RpcClient(path)
        thread = threading.Thread(target=call, args=(client,))
        thread.start()
        assert asked.wait(5)
        client.close()
        thread.join(5)
    assert len(caught) == 1


@pytest.mark.parametrize("timeout_s", [0, -1])
def test_timeout_must_be_positive(path: Path, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        RpcClient(path, timeout_s)


def test_typed_call_and_wrong_shape(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.answer(peer.request(), 5)
        peer.answer(peer.request(), "five")
        peer.wait_until_closed()

    call = Call("count", {}, read_number)
    with scripted_target(path, script), RpcClient(path) as client:
        assert client.run(call) == 5
        with pytest.raises(RpcProtocolError, match=r"count: outcome unknown: result: expected an integer, got 'five'"):
            client.run(call)


def test_async_calls_in_order(path: Path) -> None:
    async def run() -> None:
        async with AsyncRpcClient(path) as client:
            assert await asyncio.gather(*(client.call(f"m{n}") for n in range(20))) == [f"m{n}" for n in range(20)]
            with pytest.raises(RpcProtocolError):
                await client.run(Call("m", {}, read_number))

    with scripted_target(path, answer_each_with_its_method):
        asyncio.run(run())


def test_async_queue_is_bounded(path: Path) -> None:
    async def run(released: threading.Event) -> None:
        async with AsyncRpcClient(path, queue_max=2) as client:
            first, second = asyncio.create_task(client.call("a")), asyncio.create_task(client.call("b"))
            await asyncio.sleep(0)
            with pytest.raises(RpcQueueFull, match="c: 2 calls wait already"):
                await client.call("c")
            released.set()
            assert await first == "late"
            assert await second == "b"
            assert await client.call("d") == "d"

    def late_then_go_on(peer: Peer) -> None:
        request = peer.request()
        peer.wait_until_released()
        peer.answer(request, "late")
        answer_each_with_its_method(peer)

    with scripted_target(path, late_then_go_on) as released:
        asyncio.run(run(released))


def test_async_call_that_expires_in_the_queue_is_never_made(path: Path) -> None:
    async def run() -> None:
        async with AsyncRpcClient(path) as client:
            slow = asyncio.create_task(client.call("slow", timeout_s=SHORT_S * 2))
            await asyncio.sleep(0)
            with pytest.raises(RpcExpired):
                await client.call("never", timeout_s=SHORT_S)
            with pytest.raises(RpcTimeout):
                await slow

    with scripted_target(path, late_then_closed) as released:
        asyncio.run(run())
        released.set()


def test_async_cancelled_while_queued_is_never_made(path: Path) -> None:
    methods: list[str] = []

    def note(peer: Peer) -> None:
        try:
            while True:
                request = peer.request()
                peer.wait_until_released()
                methods.append(request["method"])
                peer.answer(request, None)
        except OSError:
            pass

    async def run(released: threading.Event) -> None:
        async with AsyncRpcClient(path) as client:
            first, second = asyncio.create_task(client.call("a")), asyncio.create_task(client.call("b"))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            released.set()
            await first
            await client.call("c")

    with scripted_target(path, note) as released:
        asyncio.run(run(released))
    assert methods == ["a", "c"]


def test_async_closed(path: Path) -> None:
    async def run() -> None:
        client = AsyncRpcClient(path)
        await client.close()
        with pytest.raises(RpcClosed):
            await client.call("m")

    asyncio.run(run())


def test_a_connection_says_nothing_to_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The package tells its log level at each connection, to a logger that still has the program's."""
    with caplog.at_level(logging.INFO), scripted_target(path, answer_once), RpcClient(path) as client:
        client.call("a")
    assert not caplog.records
    assert capfd.readouterr().err == ""
