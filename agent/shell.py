"""The daemon's shell: sockets, processes, time and chance for the core. It decides nothing.

Events are fed to the core one at a time; its effects are executed in order before the next one. What both sessions have
to send is written once a turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agent.config import AgentConfig
from agent.core import Agent
from agent.core import effects as e
from agent.core.work import Unanswered
from agent.image import create_sparse
from agent.link import Link
from agent.target_process import State, TargetHandle, TargetUnavailable, this_machine, write_whole
from channel.events import Event as ChannelEvent
from channel.events import (
    NoticeReceived,
    OutputPaused,
    OutputResumed,
    RequestReceived,
    ResponseReceived,
    SessionEnded,
    SessionOpened,
)
from channel.handshake import Role
from channel.messages import DataPlaneHello, Welcome
from channel.session import LimitReached, PeerTooOld, Session, SessionStateError
from mapping.status import Status
from spdk_rpc.errors import RpcClosed, RpcFailure
from spdk_rpc.exports import NvmeTcpFrontEnd
from spdk_rpc.target import Target
from transport import pki, tcp, unix
from transport.connection import ConnectFailed
from transport.credentials import Credentials
from transport.ports import Reservation
from transport.tls import TlsContext

CONTROLLER_IDENTITY: Final = "segmap:controller"
JITTER: Final = (0.5, 1.5)
DATA_PLANE_CONNECT_S: Final = 2.0
DATA_PLANE_HELLO_S: Final = 5.0
_log = logging.getLogger("segmap.agent")


class AgentFailed(Exception):
    """The daemon cannot do its work; the text says why."""


class AgentShell:
    """One agent daemon in this event loop."""

    def __init__(
        self,
        config: AgentConfig,
        clock: Callable[[], int] = time.monotonic_ns,
        chance: random.Random | None = None,
    ) -> None:
        config.check()
        self.config = config
        self._clock = clock
        self._chance = chance or random.Random()
        self._credentials = Credentials(
            pki.Files(config.tls_ca, config.tls_certificate, config.tls_key),
            lambda ca, certificate, key: TlsContext.client(ca, certificate, key, expect=CONTROLLER_IDENTITY),
        )
        self._addresses = itertools.cycle(config.controllers)
        state = State.load(config.state_path)
        self._port = Reservation(config.listen_host, config.listen_port or state.port, self._chance)
        self.core = Agent(config, NvmeTcpFrontEnd(config.listen_host, self._port.port), this_machine())
        self._target = TargetHandle(
            config,
            self._port.port,
            lambda why: self._tell(e.TargetExited(why)),
            lambda why: self._tell(e.TargetSilent(why)),
        )
        self._serving: Target | None = None
        self._controller: Link | None = None
        self._data_plane: Link | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._target_tasks: set[asyncio.Task[None]] = set()
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._queue: deque[e.Event] = deque()
        self._stepping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns: int | None = None
        self._stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self._failure = ""
        self._handlers: dict[type, Callable[[Any], None]] = {
            e.RelayController: self._relay_controller,
            e.RelayDataPlane: self._relay_data_plane,
            e.SendController: self._send_controller,
            e.RespondController: self._respond_controller,
            e.SendDataPlane: self._send_data_plane,
            e.CallTarget: self._call_target,
            e.CreateFile: self._create_file,
            e.StartTarget: self._start_target,
            e.StopTarget: self._stop_target,
            e.ConnectDataPlane: self._connect_data_plane,
            e.CloseDataPlane: self._close_data_plane,
            e.ConnectController: self._connect_controller,
            e.CloseController: self._close_controller,
            e.Alarm: lambda alarm: _log.warning("%s: %s", config.name, alarm.text),
            e.Note: lambda note: _log.info("%s: %s", config.name, note.text),
            e.Ready: self._became_ready,
            e.GiveUp: self._give_up,
        }

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until `stop`. Raises AgentFailed when there is nothing more to try, or another daemon is this agent."""
        lock = self._lock()
        try:
            self._tell(e.Started())
            await self._stopping.wait()
        finally:
            await self._end()
            os.close(lock)
        if self._failure:
            raise AgentFailed(self._failure)

    def _lock(self) -> int:
        """Two daemons would take the data plane from each other for ever. The lock ends with its process."""
        path = self.config.lock_path
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            self._port.close()
            raise AgentFailed(f"another daemon of agent {self.config.name} runs: it holds {path}") from error
        return lock

    def stop(self) -> None:
        """Ask `run` to end; from the event loop's thread."""
        self._stopping.set()

    async def ready(self) -> None:
        """Until the target is up and everything that is to be exported is."""
        await self._ready.wait()

    @property
    def target_pid(self) -> int:
        """The target's process id, 0 if there is none."""
        return self._target.pid

    async def _end(self) -> None:
        self._stepping = True  # what still happens is not told to the core any more
        if self._timer is not None:
            self._timer.cancel()
        for link in (self._controller, self._data_plane):
            if link is not None:
                link.end(Status.CANCELLED, "the daemon ends")
        await self._cancel({*self._tasks, *self._target_tasks, *self._connecting.values()})
        await self._end_calls()
        if self.config.target_lifetime == "daemon":
            await self._target.end()
        else:
            await self._target.release()
        self._port.close()
        if self.config.ready_file is not None:
            self.config.ready_file.unlink(missing_ok=True)

    async def _cancel(self, tasks: set[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the core ----------------------------------------------------------------------------------------------------

    def _step(self, event: e.Event) -> None:
        """Feed the core; events that come from executing its effects follow in order."""
        self._queue.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._queue:
                for effect in self.core.step(self._queue.popleft(), self._clock()):
                    self._handlers[type(effect)](effect)
        except Exception as error:
            _log.exception("%s: internal error; the daemon ends, its target does not", self.config.name)
            self._failure = f"internal error: {error!r}"
            self._stopping.set()
        finally:
            self._stepping = False

    def _settle(self) -> None:
        """After a turn: write what is to be written, and set the timer."""
        for link in (self._controller, self._data_plane):
            if link is not None:
                link.flush()
                link.pump()
        deadline = self.core.next_deadline()
        if deadline == self._timer_ns or self._stopping.is_set():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_ns = None, deadline
        if deadline is not None:
            delay_s = max(deadline - self._clock(), 0) / 1e9
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = self._timer_ns = None
        self._tell(e.Tick())

    def _tell(self, event: e.Event) -> None:
        """An event from outside, as a turn of its own."""
        self._step(event)
        self._settle()

    def _spawn(self, work: Any, tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    # --- messages ----------------------------------------------------------------------------------------------------

    def _relay_controller(self, effect: e.RelayController) -> None:
        if self._controller is not None:
            self._guard_controller(lambda link: link.session.relay(effect.received))

    def _send_controller(self, effect: e.SendController) -> None:
        self._guard_controller(lambda link: link.session.send(effect.message, effect.header))

    def _respond_controller(self, effect: e.RespondController) -> None:
        self._guard_controller(lambda link: link.session.respond(effect.request, effect.response))

    def _guard_controller(self, send: Callable[[Link], object]) -> None:
        """A session that has just ended tells so itself; one that takes no more is ended."""
        link = self._controller
        if link is None:
            return
        try:
            send(link)
        except PeerTooOld as error:
            _log.warning("%s: not sent: %s", self.config.name, error)
        except SessionStateError:
            _log.debug("%s: not sent: the controller's session has ended", self.config.name)
        except LimitReached as limit:
            self._close_controller(e.CloseController(str(limit)))
            self._step(e.SessionDown(str(limit), Status.LIMIT))

    def _relay_data_plane(self, effect: e.RelayDataPlane) -> None:
        link, received = self._data_plane, effect.received
        if link is None:
            return
        try:
            link.session.relay(received)
        except PeerTooOld as error:
            _log.warning("%s: not passed on: %s", self.config.name, error)
        except SessionStateError:
            _log.debug("%s: not sent: the data plane's session has ended", self.config.name)
        except LimitReached as limit:
            if isinstance(received, RequestReceived):
                self._step(e.NotRelayed(received, str(limit)))
            else:
                self._lose_data_plane(str(limit))

    def _send_data_plane(self, effect: e.SendDataPlane) -> None:
        link = self._data_plane
        try:
            if link is None:
                raise SessionStateError("there is no connection to the data plane")
            link.session.send(effect.message, effect.header, effect.token)
        except (SessionStateError, LimitReached) as error:
            self._step(e.CallDone(effect.token, None, Unanswered(str(error))))

    def _lose_data_plane(self, reason: str) -> None:
        self._close_data_plane(e.CloseDataPlane(reason))
        self._step(e.DataPlaneDown(reason))

    # --- the controller ----------------------------------------------------------------------------------------------

    def _connect_controller(self, effect: e.ConnectController) -> None:
        self._begin_connecting("controller", self._reach_controller(effect.delay_ns))

    def _begin_connecting(self, whom: str, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._connecting[whom] = task
        task.add_done_callback(lambda done: self._connecting.pop(whom) if self._connecting.get(whom) is done else None)

    def _stop_connecting(self, whom: str) -> None:
        task = self._connecting.pop(whom, None)
        if task is not None:
            task.cancel()

    def look_at_certificates(self) -> TlsContext:
        """What the next connection uses: new files, if there are any. Says what is wrong, and what expires."""
        credentials = self._credentials
        if credentials.refresh():
            _log.info("certificates loaded: the next connection uses them")
        if credentials.problem:
            _log.error("the new TLS files are not used, the old ones are: %s", credentials.problem)
        for item in credentials.expiries():
            _log.warning("%s", item.text)
        return credentials.context

    async def _reach_controller(self, delay_ns: int) -> None:
        await asyncio.sleep(delay_ns / 1e9 * self._chance.uniform(*JITTER))
        host, port = next(self._addresses)
        try:
            connection = await tcp.connect(host, port, tls=self.look_at_certificates())
        except ConnectFailed as error:
            self._tell(e.SessionDown(str(error)))
            return
        self._controller = Link(connection, Session(Role.AGENT), self._from_controller, self._settle)
        self._controller.start()
        self._tell(e.SessionUp())

    def _from_controller(self, event: ChannelEvent) -> None:
        if isinstance(event, RequestReceived | NoticeReceived | ResponseReceived):
            self._step(e.FromController(event))
        elif isinstance(event, SessionOpened):
            assert isinstance(event.message, Welcome)
            self._step(e.Welcomed(event.message, event.header))
        elif isinstance(event, SessionEnded):
            self._controller = None
            self._step(e.SessionDown(event.detail or event.status.name, event.status))
            _release(self._data_plane)
        else:
            _hold(self._data_plane, event)

    def _close_controller(self, effect: e.CloseController) -> None:
        self._stop_connecting("controller")
        link, self._controller = self._controller, None
        if link is not None:
            link.end(Status.CANCELLED, effect.reason)
            _release(self._data_plane)

    # --- the data plane ----------------------------------------------------------------------------------------------

    def _connect_data_plane(self, effect: e.ConnectDataPlane) -> None:
        self._begin_connecting("data plane", self._reach_data_plane(effect.delay_ns))

    async def _reach_data_plane(self, delay_ns: int) -> None:
        await asyncio.sleep(delay_ns / 1e9)
        try:
            connection = await unix.connect(self.config.dataplane_path, connect_timeout_s=DATA_PLANE_CONNECT_S)
        except ConnectFailed as error:
            self._tell(e.DataPlaneDown(str(error)))
            return
        link = Link(connection, Session(Role.DAEMON), self._from_data_plane, self._settle)
        self._data_plane = link
        link.start()
        await asyncio.sleep(DATA_PLANE_HELLO_S)
        if self._data_plane is link and not link.session.version:
            self._lose_data_plane("it says nothing")
            self._settle()

    def _from_data_plane(self, event: ChannelEvent) -> None:
        if isinstance(event, RequestReceived | NoticeReceived | ResponseReceived):
            self._step(e.FromDataPlane(event))
        elif isinstance(event, SessionOpened):
            assert isinstance(event.message, DataPlaneHello)
            self._step(e.DataPlaneUp(event.message.instance, event.header))
        elif isinstance(event, SessionEnded):
            self._data_plane = None
            self._step(e.DataPlaneDown(event.detail or event.status.name, event.status))
            _release(self._controller)
        else:
            _hold(self._controller, event)

    def _close_data_plane(self, effect: e.CloseDataPlane) -> None:
        self._stop_connecting("data plane")
        link, self._data_plane = self._data_plane, None
        if link is not None:
            link.end(Status.CANCELLED, effect.reason)
            _release(self._controller)

    # --- the target --------------------------------------------------------------------------------------------------

    def _call_target(self, effect: e.CallTarget) -> None:
        if self._serving is None:
            self._step(e.CallDone(effect.token, None, RpcClosed("the target is being ended")))
            return
        self._spawn(self._perform(self._serving, effect), self._target_tasks)

    async def _perform(self, target: Target, effect: e.CallTarget) -> None:
        try:
            event = e.CallDone(effect.token, await target.client.run(effect.call))
        except RpcFailure as failure:
            event = e.CallDone(effect.token, None, failure)
        if target is self._serving:
            self._tell(event)

    def _create_file(self, effect: e.CreateFile) -> None:
        self._spawn(self._ensure_file(effect), self._target_tasks)

    async def _ensure_file(self, effect: e.CreateFile) -> None:
        try:
            await asyncio.to_thread(create_sparse, effect.path, effect.size_bytes)
        except OSError as failure:
            self._tell(e.CallDone(effect.token, None, failure))
        else:
            self._tell(e.CallDone(effect.token))

    def _start_target(self, _: e.StartTarget) -> None:
        self._spawn(self._obtain_target(), self._tasks)

    async def _obtain_target(self) -> None:
        await self._end_calls()
        try:
            running = await self._target.obtain()
        except TargetUnavailable as error:
            self._tell(e.TargetExited(str(error)))
            return
        self._serving = self._target.target
        _log.info("%s: target %d %s", self.config.name, self._target.pid, "adopted" if running.adopted else "started")
        self._tell(e.TargetStarted(running.identity, running.adopted))

    def _stop_target(self, effect: e.StopTarget) -> None:
        self._spawn(self._finish_target(effect.reason), self._tasks)

    async def _finish_target(self, reason: str) -> None:
        await self._end_calls()
        await self._target.end()
        self._tell(e.TargetExited(reason))

    async def _end_calls(self) -> None:
        """Calls to a target that is gone, or will be, are of no interest any more."""
        self._serving = None
        await self._cancel(set(self._target_tasks))

    def _became_ready(self, _: e.Ready) -> None:
        self._ready.set()
        if self.config.ready_file is not None:
            facts = {
                "pid": os.getpid(),
                "target_pid": self._target.pid,
                "listen_host": self.config.listen_host,
                "listen_port": self._port.port,
            }
            with contextlib.suppress(OSError):
                write_whole(Path(self.config.ready_file), json.dumps(facts) + "\n")

    def _give_up(self, effect: e.GiveUp) -> None:
        _log.error("%s: %s", self.config.name, effect.reason)
        self._failure = effect.reason
        self._stopping.set()


def _hold(other: Link | None, event: OutputPaused | OutputResumed) -> None:
    """One side does not keep up: read no more from the other until it does."""
    if other is None:
        return
    if isinstance(event, OutputPaused):
        other.connection.pause()
    else:
        other.connection.resume()


def _release(other: Link | None) -> None:
    """The side that did not keep up is gone."""
    if other is not None:
        other.connection.resume()
