"""The JSON-RPC socket of a running target: framing, batches, limits, states, junk, and SPDK's own tools."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from dataplane.embedded.rpc_server import CALLS_MAX, CONNECTIONS_MAX, RpcServer, RpcSocketBusy
from tests.embedded.embedded_target import RpcRefused, RunningTarget, program
from tests.embedded.scripted_daemon import on_loop

VERSION = b'{"jsonrpc":"2.0","method":"spdk_get_version","id":1}'


@on_loop
async def test_requests_come_in_pieces_and_several_at_once(tmp_path: Path) -> None:
    async with RunningTarget(tmp_path) as target:
        for at in range(len(VERSION)):
            target.writer.write(VERSION[at : at + 1])
            await asyncio.sleep(0)
        assert json.loads(await target.reader.readline())["id"] == 1
        target.writer.write(VERSION * 3)
        for _ in range(3):
            assert "SPDK v26.09" in json.loads(await target.reader.readline())["result"]["version"]


@on_loop
async def test_a_batch_answers_as_one_and_notifications_not_at_all(tmp_path: Path) -> None:
    async with RunningTarget(tmp_path) as target:
        answers = await target.raw(b'[1,{"method":"nope","id":"a"},{"method":"spdk_get_version"},' + VERSION + b"]")
        assert [(answer["id"], answer.get("error", {}).get("code")) for answer in answers] == [
            (None, -32600),
            ("a", -32601),
            (1, None),
        ]
        target.writer.write(b'[{"method":"spdk_get_version"}]{"method":"spdk_get_version","id":null}')
        assert (await target.raw(VERSION))["id"] == 1


@on_loop
async def test_a_parse_error_ends_that_connection_only(tmp_path: Path) -> None:
    async with RunningTarget(tmp_path) as target:
        for junk in (b"hello", b'{"a":1}}', b"\xff\xfe", b'["' + b"x" * 300_000 + b'"]'):
            reader, writer = await asyncio.open_unix_connection(target.path)
            writer.write(junk)
            got = await asyncio.gather(reader.read(), return_exceptions=True)
            assert isinstance(got[0], ConnectionError) or b"Parse" not in got[0]
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        assert (await target.raw(VERSION))["id"] == 1


@on_loop
async def test_method_states(tmp_path: Path) -> None:
    async with RunningTarget(tmp_path, wait_for_rpc=True) as target:
        with pytest.raises(RpcRefused) as caught:
            await target.call("bdev_get_bdevs")
        assert caught.value.code == -1
        now = await target.call("rpc_get_methods", current=True)
        assert "framework_start_init" in now
        assert "bdev_get_bdevs" not in now
        reader, writer = await asyncio.open_unix_connection(target.path)
        writer.write(b'{"method":"framework_wait_init","id":2}')
        assert await target.call("framework_start_init") is True
        assert json.loads(await reader.readline()) == {"jsonrpc": "2.0", "id": 2, "result": True}
        with pytest.raises(RpcRefused) as caught:
            await target.call("framework_start_init")
        assert caught.value.code == -1
        assert await target.call("bdev_get_bdevs") == []
        writer.close()
        await writer.wait_closed()


@on_loop
async def test_every_method_is_listed_and_checks_its_parameters(tmp_path: Path) -> None:
    async with RunningTarget(tmp_path) as target:
        names = await target.call("rpc_get_methods", include_aliases=True)
        assert set(names) == set(target.target.methods.rows)
        for name, row in target.target.methods.rows.items():
            if row.deaf or row.relaxed or name == "framework_start_init":
                continue
            with pytest.raises(RpcRefused) as caught:
                await target.call(name, **{"no such parameter": 1})
            assert caught.value.code in (-32602, -32603), name


@on_loop
async def test_a_peer_that_does_not_read_is_not_read_from(tmp_path: Path) -> None:
    async with RunningTarget(tmp_path) as target:
        for number in range(200):
            await target.call("bdev_null_create", name=f"n{number}", block_size=512, num_blocks=8)
        loop = asyncio.get_running_loop()
        _reader, writer = await asyncio.open_unix_connection(target.path, limit=1 << 16)
        request = b'{"method":"bdev_get_bdevs","id":7}'
        sent = 0
        while sent < 4 * CALLS_MAX and writer.transport.get_write_buffer_size() < 1 << 16:
            writer.write(request)
            sent += 1
            await asyncio.sleep(0)
        answering = len([task for task in asyncio.all_tasks(loop) if "RpcPeer" in repr(task)])
        assert answering <= CALLS_MAX
        assert (await target.raw(VERSION))["id"] == 1
        writer.transport.abort()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@on_loop
async def test_only_so_many_connections(tmp_path: Path) -> None:
    async with RunningTarget(tmp_path) as target:
        writers: list[asyncio.StreamWriter] = []
        refused = False
        for _ in range(CONNECTIONS_MAX):
            reader, writer = await asyncio.open_unix_connection(target.path)
            writers.append(writer)
            writer.write(VERSION)
            got = await asyncio.gather(reader.readline(), return_exceptions=True)
            refused = not isinstance(got[0], bytes) or not got[0]
        assert refused
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
        assert (await target.raw(VERSION))["id"] == 1


@on_loop
async def test_one_target_per_path(tmp_path: Path) -> None:
    async with RunningTarget(tmp_path) as target:
        await target.call("spdk_get_version")
        second = RpcServer(target.target, target.target.methods)
        with pytest.raises(RpcSocketBusy):
            await second.listen(target.path)
        assert target.path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == []


def _mutations(dice: random.Random, names: list[str]) -> bytes:
    """One request that is more or less wrong."""
    values: list[Any] = [None, True, -1, 1 << 64, 0.5, "", "m0", "x" * 300, [], [1], {}, {"nqn": 1}, "\u0000"]
    params = {dice.choice(["name", "nqn", "nsid", "namespace", "x", "table", "count"]): dice.choice(values)}
    request = {"jsonrpc": "2.0", "method": dice.choice(names), "id": dice.choice(values), "params": params}
    data = bytearray(json.dumps(request).encode())
    for _ in range(dice.randrange(4)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data)


@on_loop
async def test_junk_never_harms_the_target(tmp_path: Path) -> None:
    seed = 20261122
    print(f"seed {seed}")
    dice = random.Random(seed)
    async with RunningTarget(tmp_path) as target:
        await target.call("bdev_malloc_create", name="m0", block_size=512, num_blocks=64)
        names = [name for name in target.target.methods.rows if name != "spdk_kill_instance"]
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(400):
            reader, writer = await asyncio.open_unix_connection(target.path)
            writer.write(_mutations(dice, names) + b" ")
            writer.write_eof()
            await asyncio.gather(reader.read(), return_exceptions=True)
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        assert (await target.raw(VERSION))["id"] == 1
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2


# --- SPDK's own tools ------------------------------------------------------------------------------------------------


async def configured(target: RunningTarget, image: str) -> None:
    """A little of everything."""
    with open(image, "wb") as file:  # noqa: ASYNC230
        file.truncate(1 << 20)
    await target.call("bdev_malloc_create", name="m0", block_size=512, num_blocks=64)
    await target.call("bdev_null_create", name="n0", block_size=4096, num_blocks=64)
    await target.call("bdev_aio_create", name="a0", filename=image, block_size=512)
    await target.call("bdev_segmap_create", name="v0", table=(1 << 32) | 1, segment_count=8)
    await target.export("nqn.2026-11.io.segmap:one", "m0", "v0", hosts=("nqn.2026-11.io.segmap:host",))
    await target.export("nqn.2026-11.io.segmap:two", "a0")


@on_loop
async def test_save_config_and_load_config_give_the_same_again(tmp_path: Path) -> None:
    async with RunningTarget(tmp_path) as target:
        await configured(target, str(tmp_path / "image"))
        code, saved, err = await program("spdk-rpc", "-s", str(target.path), "save_config")
        assert (code, err) == (0, "")
    methods = [call["method"] for subsystem in json.loads(saved)["subsystems"] for call in subsystem["config"]]
    assert methods[-1] == "nvmf_subsystem_add_listener"
    for wait_for_rpc in (False, True):
        async with RunningTarget(tmp_path, wait_for_rpc) as target:
            code, _, err = await program("spdk-rpc", "-s", str(target.path), "load_config", stdin=saved.encode())
            assert (code, err) == (0, "")
            code, again, _ = await program("spdk-rpc", "-s", str(target.path), "save_config")
            assert json.loads(again) == json.loads(saved)


@on_loop
async def test_spdk_rpc_sees_and_changes_things(tmp_path: Path) -> None:
    async with RunningTarget(tmp_path) as target:
        socket = ("-s", str(target.path))
        assert (await program("spdk-rpc", *socket, "bdev_malloc_create", "1", "512", "-b", "m0"))[:2] == (0, "m0\n")
        code, out, _ = await program("spdk-rpc", *socket, "bdev_get_bdevs", "-b", "m0")
        assert json.loads(out)[0]["num_blocks"] == 2048
        code, out, _ = await program("spdk-rpc", *socket, "bdev_malloc_delete", "x")
        assert code == 1
        assert "No such device" in out
        code, _, _ = await program("spdk-rpc", *socket, "spdk_kill_instance", "SIGTERM")
        assert code == 0
        assert target.stopped.is_set()


@on_loop
async def test_spdk_cli_shows_the_tree_and_makes_a_bdev(tmp_path: Path) -> None:
    async with RunningTarget(tmp_path) as target:
        await configured(target, str(tmp_path / "image"))
        code, out, err = await program("spdk-cli", "-s", str(target.path), "ls")
        assert code == 0, err
        for expected in ("m0", "n0", "a0", "nqn.2026-11.io.segmap:one", "TCP"):
            assert expected in out
        code, out, err = await program("spdk-cli", "-s", str(target.path), "/bdevs/malloc create 1 512 made")
        assert code == 0, err
        assert (await target.call("bdev_get_bdevs", name="made"))[0]["num_blocks"] == 2048
