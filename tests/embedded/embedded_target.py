"""A whole embedded target inside a test's loop, on sockets of its own, and ways to talk to it."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from dataplane.embedded.rpc_server import RpcServer
from dataplane.embedded.target import Target

_NUMBERS = itertools.count(1)
BIN = Path(sys.executable).parent


class RpcRefused(Exception):
    """An error response."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class RunningTarget:
    """Use `async with RunningTarget(tmp_path) as target`; `call` speaks JSON-RPC over its socket."""

    def __init__(self, directory: Path, wait_for_rpc: bool = False) -> None:
        number = next(_NUMBERS)
        self.path = directory / f"{number}.sock"
        self.dataplane = directory / f"{number}-dp.sock"
        self.stopped = asyncio.Event()
        self.target = Target(asyncio.get_running_loop(), wait_for_rpc=wait_for_rpc, stop=self.stopped.set)
        self.server = RpcServer(self.target, self.target.methods)
        self.port = ""

    async def __aenter__(self) -> RunningTarget:
        await self.server.listen(self.path)
        await self.target.listen_dataplane(self.dataplane)
        self.reader, self.writer = await asyncio.open_unix_connection(self.path, limit=1 << 26)
        return self

    async def __aexit__(self, *failure: object) -> None:
        self.writer.close()
        await self.server.close()
        await self.target.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)

    async def raw(self, data: bytes) -> Any:
        """Send bytes, take one line."""
        self.writer.write(data)
        return json.loads(await self.reader.readline())

    async def call(self, method: str, **params: Any) -> Any:
        """A result. Raises RpcRefused."""
        request: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "id": 1}
        if params:
            request["params"] = params
        response = await self.raw(json.dumps(request).encode())
        if "error" in response:
            raise RpcRefused(response["error"]["code"], response["error"]["message"])
        return response["result"]

    async def export(self, nqn: str, *bdevs: str, hosts: tuple[str, ...] = ()) -> dict[str, str]:
        """Show bdevs as namespaces of a new subsystem; where they are."""
        if not await self.call("nvmf_get_transports"):
            await self.call("nvmf_create_transport", trtype="TCP")
        await self.call("nvmf_create_subsystem", nqn=nqn, allow_any_host=not hosts)
        for bdev in bdevs:
            await self.call("nvmf_subsystem_add_ns", nqn=nqn, namespace={"bdev_name": bdev})
        for host in hosts:
            await self.call("nvmf_subsystem_add_host", nqn=nqn, host=host)
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": self.port or "0"}
        await self.call("nvmf_subsystem_add_listener", nqn=nqn, listen_address=address)
        (subsystem,) = await self.call("nvmf_get_subsystems", nqn=nqn)
        (listener,) = subsystem["listen_addresses"]
        self.port = listener["trsvcid"]
        return {**listener, "subnqn": nqn}


async def program(name: str, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run one of the tools that are installed beside this Python; (exit code, output, errors)."""
    process = await asyncio.create_subprocess_exec(
        str(BIN / name),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
