"""The controller's shell: sockets, store thread, timers and operators around the core. It decides nothing.

Events wait in one inbox and are stepped in order; effects are executed in order. While too many commits are under way
nothing more is stepped and nothing more is read, so that agents feel the store's speed. If the store fails, or the core
or the execution of its effects does, the reign ends: sessions are closed, the store is opened again, and a new core
starts from what is durable.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from channel import events as channel_events
from channel.messages import MapFault
from controller.api.errors import ApiError
from controller.api.operations import BY_NAME, SHELL_OPERATIONS
from controller.certificates import CertificateWatch
from controller.config import ControllerConfig
from controller.core.effects import (
    BatchCommitted,
    Close,
    Depose,
    Effect,
    Event,
    Log,
    MessageReceived,
    OperationRequested,
    Persist,
    ReadStore,
    RefuseOperation,
    Reply,
    ResponseReceived,
    Send,
    SessionEnded,
    SessionOpened,
    StoreSpaceChanged,
    StoreWasRead,
    TimePassed,
    Welcome,
)
from controller.core.machine import Controller
from controller.links import IDENTITY_PREFIX, Link
from controller.store.interface import StaleTerm, StoreError, StoreFull
from controller.store.sqlite import SqliteStore
from controller.store.writer import CommitterFull, GroupCommitter
from controller.storekeeping import StoreKeeper
from mapping.status import Status
from transport import tcp
from transport.connection import Connection, Listener

_log: Final = logging.getLogger("segmap.controller")
COMMITS_HIGH: Final = 1024
COMMITS_LOW: Final = 256
COMMIT_BYTES_HIGH: Final = 16 << 20
COMMIT_BYTES_LOW: Final = 4 << 20
MERGED_FAULTS_MAX: Final = 4096
RECOVER_S: Final = 1.0
CERTIFICATES_S: Final = 5.0
_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "alarm": logging.ERROR}
_NS: Final = 1e-9


class ControllerShell:
    """start(), call() as often as wanted, stop(). `failed` is done, with the reason, if the reign was lost."""

    def __init__(self, config: ControllerConfig) -> None:
        self._config = config
        self._committer = GroupCommitter(
            lambda: SqliteStore.open(config.store_path), on_full=self._store_full, told=self._pump
        )
        self._keeper = StoreKeeper(self._committer, config.store_path)
        self._core: Controller | None = None
        self._links: dict[int, Link] = {}
        self._numbers = itertools.count(1)
        self._tokens = itertools.count(1)
        self._inbox: deque[Event] = deque()
        self._dirty: dict[Link, None] = {}
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._commits = 0
        self._unposted: deque[tuple[Controller | None, Persist]] = deque()
        self._paused = False
        self._full = False
        self._scheduled = self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: Listener | None = None
        self.failed: asyncio.Future[str]

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store, begin a term, listen. Raises StoreError, OSError or what TLS says of the certificates."""
        self._loop = asyncio.get_running_loop()
        self.failed = self._loop.create_future()
        config = self._config
        self._certificates = CertificateWatch(config)
        self._begin(await self._committer.start())
        tls = self._certificates.context
        self._listener = await tcp.listen(config.listen_host, config.listen_port, self._accept, tls=tls)
        if config.port_file is not None:
            config.port_file.write_text(f"{self.port}\n")
        self._spawn(self._watch_store())
        self._spawn(self._watch_certificates())
        _log.info("controller: term %d, listening on %s:%d", self._term, config.listen_host, self.port)

    @property
    def port(self) -> int:
        """The bound port."""
        assert self._listener is not None, "not started"
        return self._listener.port

    @property
    def _term(self) -> int:
        return self._core.term if self._core is not None else 0

    async def stop(self) -> None:
        """Say goodbye to all, finish what is being committed, close the store."""
        for task in self._tasks:
            task.cancel()
        if self._listener is not None:
            self._listener.close()
        self._end_links(Status.CANCELLED, "the controller stops")
        self._core = None
        if self._timer is not None:
            self._timer.cancel()
        self._fail_calls("unavailable", "the controller stops")
        await self._keeper.stop()
        await self._committer.close()
        if self._config.port_file is not None:
            self._config.port_file.unlink(missing_ok=True)
        if self._listener is not None:
            self._listener.close_all()
            await self._listener.wait_closed()

    def _begin(self, state: Any) -> None:
        self._begun_s = self._loop.time()
        config = self._config
        self._core = Controller(state, config.timing(), config.limits(), uuid.uuid4, time.monotonic_ns())
        self._commits = 0
        self._unposted.clear()
        self._certificates.forget()
        self._full = False
        self._inbox.clear()
        self._post(TimePassed())

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch_store(self) -> None:
        """A store that fails, or a failure of ours, ends the reign; a higher term ends us."""
        while True:
            error = await self._committer.stopped()
            self._core = None
            self._end_links(Status.INTERNAL, "the controller starts over")
            self._fail_calls("unavailable", f"the controller starts over: {error}")
            if isinstance(error, StaleTerm):
                self._depose(str(error))
                return
            _log.error("controller: starting over from what is durable: %s", error)
            await asyncio.sleep(max(0.0, self._begun_s + RECOVER_S - self._loop.time()))
            while self._core is None:
                try:
                    self._begin(await self._committer.recover())
                except StoreError as again:
                    _log.error("controller: the store cannot be opened again yet: %s", again)
                    await asyncio.sleep(RECOVER_S)
            _log.warning("controller: term %d after a failure", self._term)

    def _break(self, error: Exception) -> None:
        """A defect of ours: what the core believes may be wrong, and what waited for this step would wait for ever."""
        _log.critical("controller: internal error, the reign ends", exc_info=error)
        self._core = None
        self._inbox.clear()
        self._committer.abandon(StoreError(f"internal error: {error!r}"))

    async def _watch_certificates(self) -> None:
        while True:
            self.look_at_certificates()
            await asyncio.sleep(CERTIFICATES_S)

    def look_at_certificates(self, force: bool = False) -> None:
        """Use new ones for new sessions, end those of revoked ones, say which expire. `force`: changed or not."""
        watch, listener = self._certificates, self._listener
        if watch.refresh(force) and listener is not None:
            listener.replace_tls(watch.context)
            _log.info("controller: certificates loaded: new sessions use them")
        for link in list(self._links.values()):
            if watch.revoked(link.connection.peer):
                _log.warning("controller: ending the session of %s: its certificate is revoked", link.peer)
                link.close(Status.UNAUTHORIZED, "its certificate is revoked")
                self._touch(link)
        for change in watch.changes(link.connection.peer for link in self._links.values()):
            self._post(change)

    def _depose(self, reason: str) -> None:
        _log.critical("controller: deposed: %s", reason)
        self._end_links(Status.STALE_TERM, reason)
        if not self.failed.done():
            self.failed.set_result(reason)

    # --- connections -------------------------------------------------------------------------------------------------

    def _accept(self, connection: Connection) -> None:
        identity = connection.peer.identity
        known = identity.startswith(IDENTITY_PREFIX) and not self._certificates.revoked(connection.peer)
        if self._core is None or not known or len(self._links) >= self._sessions_max:
            _log.warning("controller: refused a connection of %r from %s", identity, connection.peer.address)
            connection.abort()
            return
        link = Link(next(self._numbers), connection, self._arrived)
        self._links[link.number] = link
        self._post(SessionOpened(link.number, link.peer))
        link.start()
        if self._paused:
            connection.pause()

    @property
    def _sessions_max(self) -> int:
        return self._config.sessions_max

    def _arrived(self, link: Link) -> None:
        """Turn what a session says into events of the core."""
        for event in link.session.events():
            if isinstance(event, channel_events.ResponseReceived):
                self._inbox.append(ResponseReceived(link.number, event.context, event.message))
            elif isinstance(event, channel_events.NoticeReceived):
                self._post_notice(link, event)
            elif isinstance(event, channel_events.RequestReceived):
                link.hello = event
                self._inbox.append(MessageReceived(link.number, event.header, event.message))
            elif isinstance(event, channel_events.SessionEnded):
                if event.status == Status.BAD_VERSION:
                    _log.error("controller: agent %s is refused: %s", link.peer, event.detail)
                self._ended(link, event.detail)
        self._dirty[link] = None
        self._pump()

    def _post_notice(self, link: Link, event: channel_events.NoticeReceived) -> None:
        """Faults that came one by one are stepped together: they share a commit and an answer."""
        header, message = event.header, event.message
        if isinstance(message, MapFault) and self._inbox:
            last = self._inbox[-1]
            if (
                isinstance(last, MessageReceived)
                and isinstance(last.message, MapFault)
                and last.session == link.number
                and last.header[:3] == header[:3]  # term, incarnation, epoch
                and len(last.message.faults) + len(message.faults) <= MERGED_FAULTS_MAX
            ):
                merged = last.message.faults
                if not isinstance(merged, list):
                    merged = list(merged)
                    self._inbox[-1] = MessageReceived(link.number, header, MapFault(merged))
                merged.extend(message.faults)
                return
        self._inbox.append(MessageReceived(link.number, header, message))

    def _ended(self, link: Link, why: str) -> None:
        if self._links.pop(link.number, None) is not None:
            self._post(SessionEnded(link.number, why))

    def _end_links(self, status: Status, detail: str) -> None:
        for link in list(self._links.values()):
            link.close(status, detail)
            for _ in link.session.events():
                pass
            link.flush()
        self._links.clear()

    def _touch(self, link: Link) -> None:
        self._dirty[link] = None
        self._schedule()

    # --- stepping ----------------------------------------------------------------------------------------------------

    def _post(self, event: Event) -> None:
        self._inbox.append(event)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Step what has come, as far as the store keeps up; then write, and wake the store's thread.

        What brings something to do calls this itself: nothing waits for the next turn of the loop. The store's thread
        comes last, because the two cannot run at once.
        """
        if self._pumping:
            self._schedule()
            return
        self._pumping, self._scheduled = True, False
        try:
            self._step()
            self._throttle()
            self._write()
            if self._core is not None:
                self._arm(self._core)
        except Exception as error:
            self._break(error)
        finally:
            self._pumping = False
        self._committer.hand_over()

    def _step(self) -> None:
        inbox = self._inbox
        while (core := self._core) is not None and inbox and not self._behind(COMMITS_HIGH, COMMIT_BYTES_HIGH):
            self._execute(core.step(inbox.popleft(), time.monotonic_ns()))

    def _write(self) -> None:
        dirty, self._dirty = self._dirty, {}
        for link in dirty:
            for event in link.session.events():
                if isinstance(event, channel_events.SessionEnded):
                    self._ended(link, event.detail)
                elif isinstance(event, channel_events.ResponseReceived):  # to a request that its version does not know
                    _log.warning("controller: agent %s: %s", link.peer, event.message.detail)
                    self._post(ResponseReceived(link.number, event.context, event.message))
            link.flush()

    def _behind(self, commits: int, size: int) -> bool:
        """Whether the store has so much to do that nothing more is stepped. A full one is not waited for: what needs no
        commit has to go on, and the core holds back what else there is (core/journal.py)."""
        queued = self._commits >= commits or self._committer.queued_bytes >= size
        return bool(self._unposted) or (queued and not self._full)

    def _store_full(self, error: StoreFull | None) -> None:
        """Told to the core before all that waits to be stepped: from then on it makes no commits of its own accord."""
        if self._core is not None:
            self._full = error is not None
            for former in [event for event in self._inbox if isinstance(event, StoreSpaceChanged)]:
                self._inbox.remove(former)
            self._inbox.appendleft(StoreSpaceChanged("" if error is None else str(error)))
            self._schedule()

    def _throttle(self) -> None:
        if not self._paused and self._behind(COMMITS_HIGH, COMMIT_BYTES_HIGH):
            self._paused = True
            for link in self._links.values():
                link.connection.pause()
        elif self._paused and not self._behind(COMMITS_LOW, COMMIT_BYTES_LOW):
            self._paused = False
            for link in self._links.values():
                link.connection.resume()

    def _arm(self, core: Controller) -> None:
        deadline_ns = core.next_deadline()
        if deadline_ns == self._timer_ns and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_ns = deadline_ns
        if deadline_ns is not None:
            delay = max(0.0, (deadline_ns - time.monotonic_ns()) * _NS)
            self._timer = self._loop.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._post(TimePassed())

    def _execute(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                link = self._links.get(effect.session)
                if link is not None:
                    link.send(effect.message, effect.header, effect.attempt)
                    self._dirty[link] = None
            elif isinstance(effect, Persist):
                self._persist(effect)
            else:
                self._execute_rare(effect)

    def _execute_rare(self, effect: Effect) -> None:
        if isinstance(effect, Welcome | Close):
            link = self._links.get(effect.session)
            if link is None:
                return
            if isinstance(effect, Welcome):
                link.welcome(effect.message, effect.header)
            else:
                link.close(effect.status, effect.detail)
            self._touch(link)
        elif isinstance(effect, Reply):
            self._resolve(effect.token, effect.result)
        elif isinstance(effect, RefuseOperation):
            future = self._calls.pop(effect.token, None)
            if future is not None and not future.done():
                future.set_exception(ApiError(effect.code, effect.text, effect.hint))
        elif isinstance(effect, ReadStore):
            self._spawn(self._read_store(self._core, effect.token))
        elif isinstance(effect, Log):
            _log.log(_LEVELS[effect.severity], "controller: %s", effect.text)
        elif isinstance(effect, Depose):
            self._core = None
            self._depose(effect.reason)

    def _persist(self, effect: Persist) -> None:
        """Queue it, behind those that the committer's full queue has not taken."""
        self._commits += 1
        self._unposted.append((self._core, effect))
        self._post_commits()

    def _post_commits(self) -> None:
        unposted = self._unposted
        while unposted:
            core, effect = unposted[0]
            try:
                self._committer.post(effect.batch, self._committed_as(core, effect.token))
            except CommitterFull:
                return  # tried again when a commit has ended; until then nothing is stepped
            except StoreError:
                unposted.clear()  # the committer has stopped; _watch_store starts over
                return
            unposted.popleft()

    def _committed_as(self, core: Controller | None, token: int) -> Callable[[int], None]:
        return lambda sequence: self._committed(core, token, sequence)

    def _committed(self, core: Controller | None, token: int, sequence: int) -> None:
        """`_pump` follows, once for all batches of the group."""
        if core is None or core is not self._core:
            return
        self._commits -= 1
        self._post_commits()
        core.cluster.sequence = max(core.cluster.sequence, sequence)
        self._inbox.append(BatchCommitted(token))

    # --- operators ---------------------------------------------------------------------------------------------------

    async def call(self, operation: str, args: Mapping[str, Any], request_id: str = "") -> dict[str, Any]:
        """Do an operation. Raises ApiError."""
        if self._core is None:
            raise ApiError("unavailable", "the controller is starting, or has lost its store", "try again")
        if operation in SHELL_OPERATIONS:
            return await self._call_keeper(self._core, operation, BY_NAME[operation].arguments(args))
        token = next(self._tokens)
        future = self._loop.create_future()
        self._calls[token] = future
        self._post(OperationRequested(token, operation, dict(args), request_id))
        try:
            return self._with_time(operation, await future)
        finally:
            self._calls.pop(token, None)

    async def _call_keeper(self, core: Controller, operation: str, args: dict[str, Any]) -> dict[str, Any]:
        if operation == "store.backup":
            return await self._keeper.backup(args["path"])
        if operation == "audit.list":
            return {"entries": await self._keeper.audited(args["after"], args["limit"])}
        return {
            "path": str(self._config.store_path),
            "size_bytes": self._keeper.size_bytes(),
            "cluster": str(core.cluster.uuid),
            "term": core.term,
            "generation": core.cluster.generation,
            "sequence": core.cluster.sequence,
            "frozen": core.cluster.frozen,
            "backup": self._keeper.newest(),
        }

    async def audit(self, actor: str, action: str, detail: dict[str, Any]) -> None:
        """Record who did what; durable on return, unless the store has failed, which is told."""
        if self._core is not None:
            await self._keeper.audit(self._core.term, actor, action, detail)

    async def _read_store(self, core: Controller | None, token: int) -> None:
        state, findings = await self._keeper.read()
        if core is not None and core is self._core:
            self._post(StoreWasRead(token, state, findings))

    def _with_time(self, operation: str, result: dict[str, Any]) -> dict[str, Any]:
        """The core has no wall clock: add it where events are shown."""
        if operation == "events.list":
            return {**result, "events": [_timed(event) for event in result["events"]]}
        if operation == "cluster.status":
            alarms = [_timed(event) for event in result["alarms"]]
            return {**result, "name": self._config.cluster_name, "alarms": alarms}
        return result

    def _resolve(self, token: int, result: dict[str, Any]) -> None:
        future = self._calls.pop(token, None)
        if future is not None and not future.done():
            future.set_result(result)

    def _fail_calls(self, code: str, text: str) -> None:
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(ApiError(code, text, "try again"))


def _timed(event: dict[str, Any]) -> dict[str, Any]:
    at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=event["age_s"])
    return {**event, "time": at.isoformat(timespec="milliseconds")}
