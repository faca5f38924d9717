"""A minimal, synchronous stand-in for agent and controller on a data plane's socket: for benchmarks of one target."""

from __future__ import annotations

import socket
import threading
import time
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from channel.events import ResponseReceived, SessionOpened
from channel.handshake import Role
from channel.messages import Admit, BindSlot, LeaseGrant, SetEntries, TableSlots
from channel.session import Session
from channel.values import Header
from mapping.status import Status

SECOND = 1_000_000_000
INITIALIZE = 1
LEASE_NS = 30 * SECOND
RENEW_S = 5.0
POURED_AT_A_TIME = 8


class PlaneDriver:
    """Admits the data plane, keeps its lease, and orders one thing at a time. Use as a context manager."""

    def __init__(self, path: Path, cluster: bytes = b"c" * 16) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(path))
        self._session = Session(Role.DAEMON)
        self._cluster = cluster
        self._stamps = Header(term=1, incarnation=1, epoch=1)
        self._sequences: dict[int, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._wait(SessionOpened)
        admitted = self.order(Admit(cluster, LEASE_NS, LEASE_NS, LEASE_NS))
        assert admitted is not None
        self._renewer = threading.Thread(target=self._renew, daemon=True)
        self.grant()
        self._renewer.start()

    def __enter__(self) -> PlaneDriver:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._renewer.join()
        self._socket.close()

    def _flush(self) -> None:
        for data in self._session.data_to_send():
            self._socket.sendall(data)

    def _wait(self, kind: type[Any]) -> Any:
        while True:
            for event in self._session.events():
                if isinstance(event, kind):
                    return event
            self._flush()
            self._session.receive_data(self._socket.recv(1 << 20))

    def order(self, message: Any, table: int = 0, *, blocking: bool = False) -> Any:
        """Send a command, in sequence if it is a table's; its answer. Raises RuntimeError if refused."""
        with self._lock:
            stamps = self._stamps._replace(table=table, blocking=blocking)
            if isinstance(message, SetEntries):
                self._sequences[table] = self._sequences.get(table, 0) + 1
                stamps = stamps._replace(sequence=self._sequences[table])
            self._session.send(message, stamps)
            answer = self._wait(ResponseReceived).message
        if answer.status != Status.OK:
            raise RuntimeError(f"{type(message).__name__} was refused: {answer.status!r} {answer.detail}")
        return answer

    def pour(self, changes: Iterable[SetEntries], table: int) -> None:
        """Many changes, some of them on their way at a time. Raises RuntimeError if one is refused."""
        with self._lock:
            waiting = 0
            for change in changes:
                self._sequences[table] = self._sequences.get(table, 0) + 1
                self._session.send(change, self._stamps._replace(table=table, sequence=self._sequences[table]))
                self._flush()
                waiting += 1
                if waiting == POURED_AT_A_TIME:
                    self._answered()
                    waiting -= 1
            for _ in range(waiting):
                self._answered()

    def _answered(self) -> None:
        answer = self._wait(ResponseReceived).message
        if answer.status != Status.OK:
            raise RuntimeError(f"a change was refused: {answer.status!r} {answer.detail}")

    def grant(self) -> None:
        """Extend the lease."""
        with self._lock:
            self._session.send(LeaseGrant(time.monotonic_ns(), LEASE_NS), self._stamps)
            self._flush()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            self.grant()

    def bind(self, slot: int, bdev: str, segment_count: int, segment_size: int = 1 << 20) -> None:
        """Label an empty bdev and bind it."""
        container = bytes([slot + 1]) * 16
        self.order(BindSlot(slot, INITIALIZE, container, self._cluster, 1, segment_size, segment_count, bdev))

    def map(self, table: int, slots: list[int], entries: array[int]) -> None:
        """Give a table its containers and its first entries."""
        self.order(TableSlots(slots), table)
        self.order(SetEntries(0, len(entries), entries), table)
