"""The embedded target: bdevs, NVMe/TCP subsystems and the data plane of one process, before any socket is opened."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dataplane.embedded import rpc_bdev, rpc_framework, rpc_nvme, rpc_nvmf, rpc_segmap, rpc_stacked
from dataplane.embedded.bdev import BdevLayer
from dataplane.embedded.bdev_nvme import Controllers
from dataplane.embedded.bdev_stacked import Stacks
from dataplane.embedded.container_binding import ContainerBinder
from dataplane.embedded.file_pool import FilePool
from dataplane.embedded.nvmf_subsystems import NvmfSubsystems
from dataplane.embedded.plane_host import PlaneHost
from dataplane.embedded.plane_server import PlaneServer
from dataplane.embedded.rpc_table import RUNTIME, STARTUP, merge
from dataplane.embedded.segment_jobs import SegmentJobs
from transport import unix
from transport.connection import Listener

CLOSE_S: Final = 1.0


class Target:
    """Everything one target has. `stop` ends the process; `state` says which methods are allowed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int] = time.monotonic_ns,
        wait_for_rpc: bool = False,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = loop
        self.clock = clock
        self.state = STARTUP if wait_for_rpc else RUNTIME
        self.stop = stop
        self.layer = BdevLayer()
        self.stacks = Stacks(self.layer)
        self.pool = FilePool(loop)
        self.plane_host = PlaneHost(loop, clock)
        self.binder = ContainerBinder(self.layer, self.plane_host)
        self.plane_server = PlaneServer(loop, self.plane_host, self.binder, SegmentJobs(self.plane_host))
        self.controllers = Controllers(self.layer)
        self.nvmf: NvmfSubsystems = NvmfSubsystems(self.layer)
        modules = (rpc_framework, rpc_bdev, rpc_stacked, rpc_nvme, rpc_nvmf, rpc_segmap)
        self.methods = merge([module.TABLE for module in modules])
        self._started = asyncio.Event()
        self._dataplane: Listener | None = None
        if not wait_for_rpc:
            self._started.set()

    def start(self) -> None:
        """framework_start_init."""
        self.state = RUNTIME
        self._started.set()

    async def wait_started(self) -> None:
        """framework_wait_init."""
        await self._started.wait()

    def kill(self, number: int) -> None:
        """spdk_kill_instance: the signal, once the answer is on its way; those that end a target end it in order."""
        if number in (signal.SIGTERM, signal.SIGINT):
            self.loop.call_soon(self.stop)
        else:
            self.loop.call_soon(os.kill, os.getpid(), number)

    async def listen_dataplane(self, path: Path) -> None:
        """Open the data plane's socket."""
        self._dataplane = await unix.listen(path, self.plane_server.accept)

    async def close(self) -> None:
        """Front ends first, then the plane, then what is below: remote containers before what waits for them."""
        await self.nvmf.close()
        self.plane_server.close()
        if self._dataplane is not None:
            self._dataplane.close()
            await closed(self._dataplane)
        await self.controllers.close()
        self.plane_host.abandon()
        for bdev in reversed(list(self.layer.bdevs.values())):
            if bdev.name in self.layer.bdevs and not bdev.removing:
                await self.layer.unregister(bdev)
        self.plane_host.close()
        self.pool.close()


async def closed(listener: Listener) -> None:
    """Wait for the end of a listener's connections; those that take too long are cut off."""
    ended = asyncio.ensure_future(listener.wait_closed())
    await asyncio.wait({ended}, timeout=CLOSE_S)
    if not ended.done():
        listener.close_all()
    await ended
