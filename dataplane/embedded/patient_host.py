"""An NVMe/TCP host for which the loss of its controller is a pause, as it is for a kernel's: commands that ended with
the connection are submitted again when it is back, for as long as its patience lasts.

Invariants:
* Only what ended for a reason of the path (status code type 3h, and not "do not retry") is submitted again: the host's
  own HOST_PATH_ERROR, and what a data plane says whose lease expired meanwhile. Everything else is final.
* Whether a lost command was executed is unknown, so only commands that may be executed twice are sent this way: reads,
  writes, flushes, zeroes and deallocations are all there are. That none of them is executed *late*, after its second
  submission, is the data plane's promise: what a lost connection had begun has ended before a new one is let in.
* They go to the same namespace: another one that has its number now gets nothing (NVM Express Base: identifiers).
"""

from __future__ import annotations

import asyncio
from typing import Final

from dataplane.embedded.nvme_host import NvmeStatusError, NvmeTcpHost
from fabric.nvme_tcp import spec
from fabric.nvme_tcp.host_command import HostCommand
from fabric.nvme_tcp.host_controller import HostNamespace
from fabric.nvme_tcp.spec import Status

PATIENCE_S: Final = 60.0
AGAIN_S: Final = 0.1
PATH_RELATED: Final = 3  # NVM Express Base: status code types


class PatientHost(NvmeTcpHost):
    """`patience_s` counts for each operation, from when it first found its controller lost."""

    patience_s: float = PATIENCE_S

    async def wait_restored(self, timeout_s: float) -> bool:
        """Until there is a connection again: True. False if there is none after this time, or will be none."""
        if not self.connected and self._restoring is not None and not self._restoring.done():
            await asyncio.wait({self._restoring}, timeout=timeout_s)
        return self.connected and not self._closed

    async def _all(self, what: str, commands: list[HostCommand]) -> None:
        known = dict(self.namespaces)
        deadline_s: float | None = None
        while True:
            try:
                await super()._all(what, commands)
                return
            except NvmeStatusError:
                commands = [command for command in commands if command.status]
                if not all(_of_path(command.status) for command in commands):
                    raise
                now_s = asyncio.get_running_loop().time()
                deadline_s = now_s + self.patience_s if deadline_s is None else deadline_s
                if not await self._may_try_again(deadline_s - now_s):
                    raise
            for command in commands:
                if _identity(known.get(command.nsid)) != _identity(self.namespaces.get(command.nsid)):
                    text = f"{what}: namespace {command.nsid} is another one now"
                    raise NvmeStatusError(text, Status.INVALID_NAMESPACE | spec.DNR)
                command.begin_again()

    async def _may_try_again(self, left_s: float) -> bool:
        if self.connected:  # the controller itself said so: it will not be better at once
            await asyncio.sleep(min(AGAIN_S, max(left_s, 0.0)))
        return left_s > 0 and await self.wait_restored(left_s)


def _of_path(status: int) -> bool:
    """Another try may go better, on this path or on another one."""
    return (status >> 8) & 7 == PATH_RELATED and not status & spec.DNR


def _identity(namespace: HostNamespace | None) -> object:
    """What must be the same when the controller is back."""
    if namespace is None:
        return None
    return namespace.uuid, namespace.nguid, namespace.eui64, namespace.block_size
