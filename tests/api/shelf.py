"""A small, honest stand-in for the controller behind the API: it keeps names, refuses doubles, remembers requests."""

from __future__ import annotations

import asyncio
from typing import Any

from controller.api.errors import ApiError


class Shelf:
    """``call`` as ControllerShell.call: vdisks only; ``gate`` holds answers back until it is set."""

    def __init__(self) -> None:
        self.vdisks: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, dict[str, Any], str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._called = asyncio.Event()

    async def until_called(self, times: int) -> None:
        while len(self.calls) < times:
            self._called.clear()
            await self._called.wait()

    async def call(self, operation: str, arguments: dict[str, Any], request_id: str) -> dict[str, Any]:
        self.calls.append((operation, arguments, request_id))
        self._called.set()
        await self.gate.wait()
        if request_id in self.answers:
            return self.answers[request_id]
        answer = self._answer(operation, arguments)
        if request_id:
            self.answers[request_id] = answer
        return answer

    def _answer(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        name = arguments.get("name", "")
        if operation == "vdisk.create":
            if name in self.vdisks:
                raise ApiError("exists", f"vdisk {name!r} exists", "choose another name")
            self.vdisks[name] = dict(arguments)
            return self.vdisks[name]
        if operation == "vdisk.list":
            return {"vdisks": list(self.vdisks.values())}
        if operation in ("vdisk.show", "vdisk.delete"):
            if name not in self.vdisks:
                raise ApiError("not_found", f"no vdisk {name!r}")
            return self.vdisks[name] if operation == "vdisk.show" else self.vdisks.pop(name)
        if operation == "agent.fence":
            raise RuntimeError("a defect")
        return {"operation": operation, "arguments": arguments}
