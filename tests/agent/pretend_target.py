"""A target as the core sees it: a small model of what SPDK does with the agent's calls, with faults on demand.

`fault(call type, outcome)` makes the next call of that type end badly: "lost" (not done, outcome unknown), "late"
(done, outcome unknown), or a CallRefused to raise.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace
from typing import Any

from agent.core import calls
from agent.core.calls import CallFailed, CallRefused, CallUnknown

EEXIST, ENODEV, INVALID = -17, -19, -32602


class PretendTarget:
    """State is plain and public: tests look at it and change it."""

    def __init__(self) -> None:
        self.controllers: dict[str, calls.ControllerPath] = {}
        self.usable: dict[str, bool] = {}
        self.tables: dict[int, str] = {}
        self.subsystems: dict[str, calls.SubsystemState] = {}
        self.queue_pairs: dict[str, list[str]] = defaultdict(list)
        self.sticky_pairs = False
        self.bdevs: dict[str, calls.BdevState] = {}
        self.files: dict[str, int] = {}
        self.transport = False
        self.faults: dict[type, deque[str | CallRefused]] = defaultdict(deque)
        self.seen: list[calls.TargetCall] = []

    def fault(self, kind: type, *outcomes: str | CallRefused) -> None:
        self.faults[kind].extend(outcomes)

    def perform(self, call: calls.TargetCall) -> tuple[object, CallFailed | None]:
        """(value, failure), as a CallDone has them."""
        self.seen.append(call)
        outcome = self.faults[type(call)].popleft() if self.faults[type(call)] else ""
        if isinstance(outcome, CallRefused):
            return None, outcome
        if outcome == "lost":
            return None, CallUnknown("timed out")
        try:
            value = getattr(self, "_" + type(call).__name__)(call)
        except CallRefused as refusal:
            return None, refusal
        return (None, CallUnknown("timed out")) if outcome == "late" else (value, None)

    # --- one method for each call ------------------------------------------------------------------------------------

    def _FindController(self, call: calls.FindController) -> Any:
        return self.controllers.get(call.name)

    def _AttachController(self, call: calls.AttachController) -> Any:
        if call.name in self.controllers:
            raise CallRefused(-114, "Operation already in progress")
        self.controllers[call.name] = call.path
        return [f"{call.name}n1"]

    def _DetachController(self, call: calls.DetachController) -> None:
        if self.controllers.pop(call.name, None) is None:
            raise CallRefused(ENODEV, "No such device")

    def _ListControllers(self, _: calls.ListControllers) -> Any:
        return {name: self.usable.get(name, True) for name in self.controllers}

    def _CreateTable(self, call: calls.CreateTable) -> None:
        if call.table in self.tables:
            raise CallRefused(EEXIST, "File exists")
        self.tables[call.table] = call.name

    def _DeleteTable(self, call: calls.DeleteTable) -> None:
        known = [table for table, name in self.tables.items() if name == call.name]
        if not known:
            raise CallRefused(ENODEV, "No such device")
        del self.tables[known[0]]

    def _ListTables(self, _: calls.ListTables) -> Any:
        return dict(self.tables)

    def _FindSubsystem(self, call: calls.FindSubsystem) -> Any:
        return self.subsystems.get(call.nqn)

    def _CreateSubsystem(self, call: calls.CreateSubsystem) -> None:
        if call.nqn in self.subsystems:
            raise CallRefused(-32603, "Unable to create subsystem")
        self.subsystems[call.nqn] = calls.SubsystemState(
            call.nqn, call.serial, call.cntlid_min, call.cntlid_max, call.allow_any_host, frozenset(), (), ()
        )

    def _DeleteSubsystem(self, call: calls.DeleteSubsystem) -> None:
        self._subsystem(call.nqn)
        del self.subsystems[call.nqn]

    def _subsystem(self, nqn: str) -> calls.SubsystemState:
        if nqn not in self.subsystems:
            raise CallRefused(INVALID, f"Subsystem with NQN '{nqn}' not found")
        return self.subsystems[nqn]

    def _change(self, nqn: str, **changes: Any) -> None:
        self.subsystems[nqn] = replace(self._subsystem(nqn), **changes)

    def _AddNamespace(self, call: calls.AddNamespace) -> None:
        seen = self._subsystem(call.nqn)
        self._change(call.nqn, namespaces=(*seen.namespaces, calls.NamespaceState(call.nsid, call.bdev)))

    def _RemoveNamespace(self, call: calls.RemoveNamespace) -> None:
        kept = tuple(one for one in self._subsystem(call.nqn).namespaces if one.nsid != call.nsid)
        self._change(call.nqn, namespaces=kept)

    def _AddListener(self, call: calls.AddListener) -> None:
        self._change(call.nqn, listeners=(*self._subsystem(call.nqn).listeners, call.listener))

    def _AddHost(self, call: calls.AddHost) -> None:
        if call.host in self._subsystem(call.nqn).hosts:
            raise CallRefused(-32603, "Internal error")
        self._change(call.nqn, hosts=self._subsystem(call.nqn).hosts | {call.host})

    def _RemoveHost(self, call: calls.RemoveHost) -> None:
        if call.host not in self._subsystem(call.nqn).hosts:
            raise CallRefused(-32603, "Internal error")
        self._change(call.nqn, hosts=self._subsystem(call.nqn).hosts - {call.host})
        if not self.sticky_pairs:
            self.queue_pairs[call.nqn] = [host for host in self.queue_pairs[call.nqn] if host != call.host]

    def _AllowAnyHost(self, call: calls.AllowAnyHost) -> None:
        self._change(call.nqn, allow_any_host=call.allow)

    def _ListQueuePairs(self, call: calls.ListQueuePairs) -> Any:
        self._subsystem(call.nqn)
        return list(self.queue_pairs[call.nqn])

    def _EnsureTransport(self, _: calls.EnsureTransport) -> None:
        self.transport = True

    def _FindBdev(self, call: calls.FindBdev) -> Any:
        return self.bdevs.get(call.name)

    def _CreateBdev(self, call: calls.CreateBdev) -> None:
        if call.name in self.bdevs:
            raise CallRefused(EEXIST, "File exists")
        size = self.files.get(call.path, 0) if call.kind == "aio" else call.size_bytes
        if not size:
            raise CallRefused(-2, "No such file or directory")
        self.bdevs[call.name] = calls.BdevState(call.name, call.block_size, size // call.block_size, call.uuid)

    def _AttachLocal(self, call: calls.AttachLocal) -> Any:
        self.bdevs[f"{call.name}n1"] = calls.BdevState(f"{call.name}n1", 512, 1 << 20, bytes(16))
        return [f"{call.name}n1"]

    def _EnsureFile(self, call: calls.EnsureFile) -> None:
        if call.size_bytes:
            self.files.setdefault(call.path, call.size_bytes)
