"""The least that a durable fault can cost on this machine: waking a process and a thread, there and back, and a flush.

Nothing is encrypted, decided or looked up here, so that what is left of a fault's time is our own. Measured as the
controller is: on one core, by small messages over TCP on the loopback to a peer that polls, by a queue between two
threads, and by flushing frames of a write-ahead log that lies on the disk already.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from time import perf_counter
from typing import NamedTuple

ROUND_TRIPS = 500
SYNCS = 200
MESSAGE = bytes(136)
FRAME = bytes(24 + 4096)
LOG_BYTES = 1 << 20


class Costs(NamedTuple):
    """Medians in seconds: a round trip over TCP, one to another thread, an fdatasync that overwrites a log."""

    tcp: float
    thread: float
    sync: float

    @property
    def rate(self) -> float:
        """Faults in 1/s, one at a time, that cost nothing else."""
        return 1 / sum(self)


class Cores(NamedTuple):
    """One core for the controller, or what stands for it, with all its threads; the others for the generator."""

    controller: frozenset[int]
    generator: frozenset[int]

    @classmethod
    def ours(cls) -> Cores:
        """Of those that this process may use. A single one is shared."""
        cores = frozenset(os.sched_getaffinity(0))
        last = frozenset({max(cores)})
        return cls(last, cores - last or last)


class Floor:
    """A process to talk to, until `stop`."""

    def __init__(self, directory: Path, cores: Cores) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            context = multiprocessing.get_context("spawn")
            self._process = context.Process(target=_serve, args=(directory, cores, listener.getsockname(), theirs))
            self._process.start()
            self._socket, _ = listener.accept()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def measure(self) -> Costs:
        """Takes a fraction of a second, and the caller's thread."""
        self._pipe.send(True)
        tcp = _median(ROUND_TRIPS, self._round_trip)
        return Costs(tcp, *self._pipe.recv())

    def _round_trip(self) -> None:
        self._socket.sendall(MESSAGE)
        while True:
            try:
                _receive(self._socket, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            return

    def stop(self) -> None:
        self._pipe.send(False)
        self._process.join(30)
        self._socket.close()


def _serve(directory: Path, cores: Cores, address: tuple[str, int], pipe: Pipe) -> None:
    os.sched_setaffinity(0, cores.controller)
    with socket.create_connection(address) as connection, (directory / "floor").open("w+b", buffering=0) as file:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        file.write(bytes(LOG_BYTES))
        os.fsync(file.fileno())
        while pipe.recv():
            for _ in range(ROUND_TRIPS):
                _receive(connection, socket.MSG_WAITALL)
                connection.sendall(MESSAGE)
            pipe.send((_thread_s(), _sync_s(file.fileno())))


def _receive(connection: socket.socket, flags: int) -> None:
    if len(connection.recv(len(MESSAGE), flags)) < len(MESSAGE):
        raise ConnectionError("the other process has ended")


def _thread_s() -> float:
    there: SimpleQueue[bool] = SimpleQueue()
    back: SimpleQueue[bool] = SimpleQueue()

    def answer() -> None:
        while there.get():
            back.put(True)

    def ask() -> None:
        there.put(True)
        back.get()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        return _median(ROUND_TRIPS, ask)
    finally:
        there.put(False)
        thread.join()


def _sync_s(descriptor: int) -> float:
    at = 0

    def flush() -> None:
        nonlocal at
        os.pwrite(descriptor, FRAME, at)
        os.fdatasync(descriptor)
        at = (at + len(FRAME)) % (LOG_BYTES - len(FRAME))

    return _median(SYNCS, flush)


def _median(count: int, action: Callable[[], None]) -> float:
    times = []
    for _ in range(count):
        began = perf_counter()
        action()
        times.append(perf_counter() - began)
    return median(times)
