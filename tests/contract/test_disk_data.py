"""Virtual disks in real processes: a scripted daemon on the data plane's socket, a host over NVMe/TCP.

The same tests for the embedded target and for segmap_tgt, through nothing but their sockets.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import socket
import struct
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from channel.messages import (
    Admit,
    BindSlot,
    CopySegments,
    Epoch,
    FaultAnswer,
    GetEntries,
    GetParked,
    GetState,
    Refused,
    Resume,
    SetEntries,
    SetState,
    Suspend,
    TableSlots,
    TableStatus,
    UnbindSlot,
    ZeroSegments,
)
from channel.values import AnswerAction, AnswerRecord, AttachFlags, FaultRecord, Header, SegmentCopy, SegmentRun
from dataplane.embedded.nvme_host import NvmeStatusError, NvmeTcpHost
from fabric.nvme_tcp.spec import DNR
from mapping.entry import ERROR_ENTRY, NO_WRITE, ZERO_ENTRY, State, pack
from mapping.plane import SESSION_SHIFT, numbered
from mapping.rules import FaultKind, Operation
from mapping.status import Status
from spdk_rpc.client import RpcClient
from spdk_rpc.methods import bdev_segmap
from spdk_rpc.methods.bdev_segmap import SegmapBdev
from spdk_rpc.target import Target
from tests.contract.conftest import DISK_PLANES, NQN, READY_S, Plane
from tests.embedded.scripted_daemon import CLUSTER, INCARNATION, SECOND, TERM, Daemon
from transport import unix

pytestmark = pytest.mark.parametrize("plane", DISK_PLANES, indirect=True, scope="session")

SEGMENT = 64 << 10
SEGMENTS = 8
CONTAINER_SEGMENTS = 32
HOST = "nqn.2026-11.io.segmap:contract:host"
WAIT_S = 15
REPLACE, FAIL_REQUEST, FAIL_SEGMENT = AnswerAction.REPLACE, AnswerAction.FAIL_REQUEST, AnswerAction.FAIL_SEGMENT
_NUMBERS = itertools.count(1)
_SLOTS = itertools.count(100)


@dataclass
class Scene:
    """One disk on one container, exported; what a test of it needs."""

    plane: Plane
    slot: int
    container: str
    container_id: bytes
    table: int
    disk: str
    nqn: str
    port: str
    open_hosts: list[NvmeTcpHost] = field(default_factory=list)
    daemons: list[Daemon] = field(default_factory=list)
    daemon: Daemon | None = None
    kill: Callable[[signal.Signals], None] = lambda number: None
    ended: bool = False

    def end_target(self) -> None:
        """Ask it to end; nothing is left to be undone afterwards."""
        self.ended = True
        self.kill(signal.SIGTERM)

    def at(self, segment: int, flags: int = 0) -> int:
        return pack(self.slot, segment, flags)

    async def connect(self) -> Daemon:
        """A new daemon on the data plane's socket: not admitted yet."""
        connection = await unix.connect(self.plane.dataplane_socket)
        daemon = Daemon(connection)
        self.daemons.append(daemon)
        await daemon.until(lambda: daemon.hello)
        return daemon

    async def admitted(self, lease_s: float = 10) -> Daemon:
        """A connected daemon with a lease; it knows the table's sequence."""
        daemon = self.daemon = await self.connect()
        assert (await daemon.admit()).status is Status.OK
        daemon.grant(time.monotonic_ns(), int(lease_s * SECOND))
        tables = (await daemon.ask(TableStatus(), daemon.header(table=0))).tables
        daemon.sequence = dict(tables).get(self.table, 0)
        return daemon

    def bind(self, flags: int = AttachFlags.INITIALIZE, **changes: Any) -> BindSlot:
        fields: dict[str, Any] = {
            "slot": self.slot,
            "flags": flags,
            "container": self.container_id,
            "cluster": CLUSTER,
            "generation": 1,
            "segment_size": SEGMENT,
            "segment_count": 0,
            "bdev_name": self.container,
        }
        return BindSlot(**(fields | changes))

    async def ready(self, lease_s: float = 10) -> Daemon:
        """The container bound and listed in the table."""
        daemon = await self.admitted(lease_s)
        answer = await daemon.ask(self.bind(), daemon.header(table=0))
        assert (answer.status, answer.segment_count) == (Status.OK, CONTAINER_SEGMENTS), answer
        listed = await daemon.ask(TableSlots([self.slot]), self.header())
        assert listed.status is Status.OK
        return daemon

    def header(self, blocking: bool = False) -> Header:
        assert self.daemon is not None
        return self.daemon.header(0, self.table, blocking)

    async def set(self, start: int, *entries: int, count: int = 0, blocking: bool = False) -> Status:
        assert self.daemon is not None
        message = SetEntries(start, count or len(entries), list(entries))
        answer = await self.daemon.ask(message, self.daemon.next(blocking, self.table))
        return Status(answer.status)

    async def entries(self) -> list[int]:
        assert self.daemon is not None
        answer = await self.daemon.ask(GetEntries(0, SEGMENTS), self.header())
        assert answer.status is Status.OK
        return list(answer.entries)

    def answer(self, fault: FaultRecord, action: int, *entries: int, status: int = 0) -> None:
        assert self.daemon is not None
        record = AnswerRecord(fault.fault_id, fault.segment, len(entries), action, status)
        self.daemon.tell(FaultAnswer([record], list(entries)), self.daemon.next(table=self.table))

    async def host(self) -> NvmeTcpHost:
        host = await NvmeTcpHost.connect("127.0.0.1", int(self.port), self.nqn, HOST, io_queues=1, queue_depth=32)
        self.open_hosts.append(host)
        return host

    async def parked(self, count: int) -> list[Any]:
        """Wait until so many parts are parked."""
        assert self.daemon is not None
        while True:
            answer = await self.daemon.ask(GetParked(), self.daemon.header(table=self.table))
            if sum(record.count for record in answer.parked) == count:
                return list(answer.parked)
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        for host in self.open_hosts:
            await host.close()
        for daemon in self.daemons:
            daemon.connection.close()
            while not daemon.ended:
                await asyncio.sleep(0)
        await asyncio.sleep(0.01)  # what the loop closes at its next turns


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def made_scene(plane: Plane) -> Iterator[Scene]:
    """A malloc container, a disk and its export; the disk's table is empty, nobody is connected."""

    def rpc(method: str, **params: Any) -> Any:
        return plane.client.call(method, params)

    if not rpc("nvmf_get_transports"):
        rpc("nvmf_create_transport", trtype="TCP")
    number = next(_NUMBERS)
    container, disk, nqn = f"box{number}", f"disk{number}", f"{NQN}disk{number}"
    table = number << 32 | 1
    rpc("bdev_malloc_create", name=container, block_size=512, num_blocks=CONTAINER_SEGMENTS * SEGMENT // 512)
    shape = SegmapBdev(disk, str(uuid.uuid4()), table, SEGMENTS, SEGMENT, 512, reclaim=True)
    plane.client.run(bdev_segmap.create(shape))
    port = free_port()
    rpc("nvmf_create_subsystem", nqn=nqn, allow_any_host=True)
    rpc("nvmf_subsystem_add_ns", nqn=nqn, namespace={"bdev_name": disk})
    address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port}
    rpc("nvmf_subsystem_add_listener", nqn=nqn, listen_address=address)
    scene = Scene(plane, next(_SLOTS), container, uuid.uuid4().bytes, table, disk, nqn, port)
    yield scene
    if scene.ended:
        return
    rpc("nvmf_delete_subsystem", nqn=nqn)
    if disk in [state.name for state in plane.client.run(bdev_segmap.get())]:
        plane.client.run(bdev_segmap.delete(disk))
    rpc("bdev_malloc_delete", name=container)


@pytest.fixture
def scene(plane: Plane) -> Iterator[Scene]:
    with made_scene(plane) as scene:
        yield scene


@pytest.fixture
def own_scene(plane: Plane, runtime_dir: Path) -> Iterator[Scene]:
    """A scene on a target of the test's own, with two cores, if it is of the kind that has any."""
    rpc_socket, dataplane_socket = runtime_dir / "rpc.sock", runtime_dir / "plane.sock"
    command = plane.command(plane.name, rpc_socket, core_mask="0x3", dataplane_socket=dataplane_socket)
    log_path = runtime_dir / "target.log"
    with asyncio.Runner() as runner:
        target = runner.run(Target.start(command, rpc_socket, log_path=log_path, ready_s=READY_S))
        try:
            with RpcClient(rpc_socket, timeout_s=10) as client:
                own = Plane(plane.name, client, rpc_socket, dataplane_socket, plane.command)
                with made_scene(own) as scene:
                    scene.kill = target.kill
                    yield scene
                    if scene.ended and target.identity is not None:
                        os.waitid(os.P_PID, target.identity.pid, os.WEXITED | os.WNOWAIT)
        finally:
            status = runner.run(target.stop())
        assert status == 0, log_path.read_text()[-2000:]


def play(scene: Scene, act: Callable[[Scene], Awaitable[None]]) -> None:
    """Run a test's coroutine; what it opened is closed."""

    async def limited() -> None:
        try:
            await asyncio.wait_for(act(scene), WAIT_S)
        finally:
            await scene.close()

    asyncio.run(limited())


def test_a_write_faults_waits_and_lands_where_the_answer_says(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        daemon = await scene.ready()
        host = await scene.host()
        data = random.Random(1).randbytes(4096)
        writing = asyncio.create_task(host.write(1, SEGMENT + 4096, data))
        (fault,) = await daemon.fault()
        assert (fault.table, fault.segment, fault.operation) == (scene.table, 1, Operation.WRITE)
        assert (fault.kind, fault.offset_blocks, fault.length_blocks) == (FaultKind.WRITE, 8, 8)
        assert not writing.done()
        scene.answer(fault, REPLACE, scene.at(9))
        await writing
        assert await host.read(1, SEGMENT + 4096, 4096) == data
        assert (await scene.entries())[1] == scene.at(9)
        # It is in the container's segment 9: another segment that names it reads the same.
        assert await scene.set(5, scene.at(9, NO_WRITE)) is Status.OK
        assert await host.read(1, 5 * SEGMENT + 4096, 4096) == data

    play(scene, act)


def test_states(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        daemon = await scene.ready()
        host = await scene.host()
        assert await scene.set(0, scene.at(1), ZERO_ENTRY, ERROR_ENTRY, scene.at(2, NO_WRITE)) is Status.OK
        await host.write(1, 0, b"a" * 4096)
        assert await host.read(1, 0, 4096) == b"a" * 4096
        assert await host.read(1, SEGMENT, 4096) == bytes(4096)
        for transfer in (host.read(1, 2 * SEGMENT, 512), host.write(1, 2 * SEGMENT, bytes(512))):
            with pytest.raises(NvmeStatusError):
                await transfer
        await host.read(1, 3 * SEGMENT, 512)
        writing = asyncio.create_task(host.write(1, 3 * SEGMENT, bytes(512)))
        (fault,) = await daemon.fault()
        assert (fault.segment, fault.state, fault.entry) == (3, State.NO_WRITE, scene.at(2, NO_WRITE))
        scene.answer(fault, FAIL_REQUEST, status=Status.NO_SPACE)
        with pytest.raises(NvmeStatusError) as caught:
            await writing
        assert caught.value.status & 0x7FF == 0x81, "capacity exceeded"
        state = await daemon.ask(GetState(0, 4, State.NO_WRITE), scene.header())
        assert state.bits == b"\x08"
        changed = await daemon.ask(SetState(3, 1, State.NO_WRITE, False), daemon.next(table=scene.table))
        assert changed.status is Status.OK
        await host.write(1, 3 * SEGMENT, b"b" * 512)
        assert await host.read(1, 3 * SEGMENT, 512) == b"b" * 512

    play(scene, act)


def test_io_over_segments(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.ready()
        host = await scene.host()
        assert await scene.set(0, scene.at(5), scene.at(3), scene.at(7), scene.at(4)) is Status.OK
        data = random.Random(2).randbytes(3 * SEGMENT)
        await host.write(1, SEGMENT // 2, data)
        assert await host.read(1, SEGMENT // 2, len(data)) == data
        assert await host.read(1, SEGMENT, SEGMENT) == data[SEGMENT // 2 : SEGMENT // 2 + SEGMENT]
        await host.flush(1)

    play(scene, act)


def test_a_whole_segment_is_given_back(scene: Scene) -> None:
    """Zeroes over two and a half segments: the whole ones are asked for, the half one is written."""

    async def act(scene: Scene) -> None:
        daemon = await scene.ready()
        host = await scene.host()
        assert await scene.set(0, scene.at(5), scene.at(3), scene.at(7)) is Status.OK
        await host.write(1, 0, b"x" * 3 * SEGMENT)
        zeroing = asyncio.create_task(host.write_zeroes(1, SEGMENT // 2, 2 * SEGMENT + SEGMENT // 2))
        seen: set[int] = set()
        while not zeroing.done():
            fresh = [fault for fault in daemon.faults() if fault.fault_id not in seen]
            for fault in fresh:
                seen.add(fault.fault_id)
                assert fault.kind == FaultKind.RECLAIM
                assert fault.segment in (1, 2)
                scene.answer(fault, REPLACE, ZERO_ENTRY)
            await asyncio.sleep(0.005)
        await zeroing
        assert len(seen) == 2
        assert await host.read(1, 0, SEGMENT // 2) == b"x" * (SEGMENT // 2)
        assert await host.read(1, SEGMENT // 2, SEGMENT // 2) == bytes(SEGMENT // 2)
        assert await scene.entries() == [scene.at(5), ZERO_ENTRY, ZERO_ENTRY] + [0] * 5

    play(scene, act)


def test_blocking_changes_under_load(scene: Scene) -> None:
    """Barriers are reached while I/O goes on all the time, and none of it is lost."""

    async def act(scene: Scene) -> None:
        daemon = await scene.ready()
        host = await scene.host()
        assert await scene.set(0, *(scene.at(1 + number) for number in range(SEGMENTS))) is Status.OK
        ended = False

        async def load(seed: int) -> int:
            count, chance = 0, random.Random(seed)
            while not ended:
                offset = chance.randrange(SEGMENTS * SEGMENT // 4096) * 4096
                data = chance.randbytes(16) * 256
                if seed == offset // 4096 % 4:
                    await host.write(1, offset, data)
                    assert await host.read(1, offset, 4096) == data
                    count += 1
            return count

        loads = [asyncio.create_task(load(seed)) for seed in range(4)]
        for turn in range(40):
            segment = turn % SEGMENTS
            assert await scene.set(segment, scene.at(1 + segment, NO_WRITE), blocking=True) is Status.OK
            assert await scene.set(segment, scene.at(1 + segment)) is Status.OK
            for fault in daemon.faults():
                assert fault.kind == FaultKind.WRITE
        ended = True
        assert sum(await asyncio.gather(*loads)) > 20
        assert (await daemon.ask(Suspend(), scene.header(blocking=True))).status is Status.OK
        reading = asyncio.create_task(host.read(1, 0, 512))
        (record,) = await scene.parked(1)
        assert record.operation == Operation.READ
        assert not reading.done()
        assert (await daemon.ask(Resume(), scene.header())).status is Status.OK
        await reading

    play(scene, act)


def test_what_is_stale_or_out_of_order_is_refused(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        daemon = await scene.ready()
        host = await scene.host()
        assert await scene.set(0, scene.at(1), scene.at(2)) is Status.OK
        await host.write(1, 0, b"l" * 512)
        entries = await scene.entries()
        assert entries[:2] == [scene.at(1), scene.at(2)]
        stale = Header(TERM, INCARNATION, daemon.epoch + 1, scene.table, daemon.sequence + 1)
        assert (await daemon.ask(SetEntries(0, 1, [0]), stale)).status is Status.STALE_EPOCH
        gap = daemon.header(daemon.sequence + 2, scene.table)
        assert (await daemon.ask(SetEntries(0, 1, [0]), gap)).status is Status.SEQUENCE_GAP
        old = daemon.header(daemon.sequence, scene.table)
        assert (await daemon.ask(SetEntries(0, 1, [0]), old)).status is Status.SEQUENCE_OLD
        foreign = daemon.header(0, scene.table)._replace(incarnation=INCARNATION + 1)
        assert (await daemon.ask(Suspend(), foreign)).status is Status.STALE_INCARNATION
        assert await scene.entries() == entries
        assert await scene.set(0, pack(4000, 1)) is Status.NO_CONTAINER
        assert await scene.set(SEGMENTS, scene.at(1)) is Status.OUT_OF_RANGE

    play(scene, act)


def test_what_a_newer_daemon_appends_is_ignored(scene: Scene) -> None:
    """Of every kind of message that a data plane takes: as if it were not there."""

    async def act(scene: Scene) -> None:
        daemon = await scene.connect()
        real = daemon.session.data_to_send

        def with_more(bytes_max: int | None = None) -> list[bytes]:
            return [(len(data) + 16).to_bytes(4, "little") + data[4:] + b"of version N + 1" for data in real(bytes_max)]

        daemon.session.data_to_send = with_more  # type: ignore[method-assign]
        scene.daemon = daemon
        assert (await daemon.admit()).status is Status.OK
        daemon.grant(time.monotonic_ns())
        tables = (await daemon.ask(TableStatus(), daemon.header(table=0))).tables
        daemon.sequence = dict(tables)[scene.table]
        assert (await daemon.ask(scene.bind(), daemon.header(table=0))).status is Status.OK
        assert (await daemon.ask(TableSlots([scene.slot]), scene.header())).status is Status.OK
        assert await scene.set(0, scene.at(1), blocking=True) is Status.OK
        host = await scene.host()
        writing = asyncio.create_task(host.write(1, SEGMENT, b"w" * 512))
        (fault,) = await daemon.fault()
        scene.answer(fault, REPLACE, scene.at(2))
        await writing
        assert (await scene.entries())[:2] == [scene.at(1), scene.at(2)]
        for message in (Suspend(), Resume(), GetParked(), GetState(0, 1, State.ZERO), SetState(1, 1, State.ZERO, True)):
            stamps = daemon.next(table=scene.table) if isinstance(message, SetState) else scene.header()
            assert (await daemon.ask(message, stamps)).status is Status.OK
        zeroing = ZeroSegments([SegmentRun(scene.at(2), 1)])
        assert (await daemon.ask(zeroing, scene.header())).status is Status.OK

    play(scene, act)


def test_what_was_sent_in_an_earlier_session_is_refused(scene: Scene) -> None:
    """In sequence, of the present term, incarnation and epoch: a daemon that was stopped still had it."""

    async def act(scene: Scene) -> None:
        first = await scene.ready()
        assert await scene.set(0, scene.at(1)) is Status.OK
        last_said = first.header(first.sequence + 1, scene.table)
        daemon = scene.daemon = await scene.connect()
        begin = Header(TERM, INCARNATION, first.epoch, 0, 1)
        tables, header = await daemon.begin(TableStatus(), begin)
        session = header.epoch >> SESSION_SHIFT
        assert session and header.epoch == numbered(first.epoch, session)
        daemon.sequence = dict(tables.tables)[scene.table]
        admit = Admit(CLUSTER, 10 * SECOND, 20 * SECOND, 5 * SECOND)
        other = Header(TERM, INCARNATION, 0, 0, session + 1)
        assert (await daemon.ask(admit, other)).status is Status.STALE_EPOCH
        done, header = await daemon.begin(admit, other._replace(sequence=session))
        assert (done.status, header.epoch) == (Status.OK, first.epoch)
        assert (await daemon.ask(SetEntries(0, 1, [0]), last_said)).status is Status.STALE_EPOCH
        assert (await daemon.ask(ZeroSegments([SegmentRun(scene.at(1), 1)]), last_said)).status is Status.STALE_EPOCH
        assert (await daemon.ask(Suspend(), last_said)).status is Status.STALE_EPOCH
        record = AnswerRecord(1, 0, 1, REPLACE, 0)
        daemon.tell(FaultAnswer([record], [scene.at(2)]), last_said)
        await daemon.until(lambda: any(isinstance(notice, Refused) for notice in daemon.notices))
        daemon.epoch = numbered(first.epoch, session)
        assert await scene.entries() == [scene.at(1), *[0] * (SEGMENTS - 1)]
        assert await scene.set(1, scene.at(2)) is Status.OK

    play(scene, act)


def test_the_lease_stops_io_and_a_new_epoch_begins(own_scene: Scene) -> None:
    """Two hosts read on two cores until the lease ends: then nothing is read, until a new one and new entries."""

    async def act(scene: Scene) -> None:
        daemon = await scene.ready(lease_s=1.5)
        hosts = [await scene.host(), await scene.host()]
        entries = [scene.at(1 + segment) for segment in range(SEGMENTS)]
        assert await scene.set(0, *entries) is Status.OK
        for segment in range(SEGMENTS):
            await hosts[0].write(1, segment * SEGMENT, bytes([segment]) * 4096)
        done = 0

        async def load(host: NvmeTcpHost, seed: int) -> None:
            nonlocal done
            chance = random.Random(seed)
            while not daemon.notices:
                segment = chance.randrange(SEGMENTS)
                assert await host.read(1, segment * SEGMENT, 4096) == bytes([segment]) * 4096
                done += 1

        loads = [asyncio.create_task(load(host, seed)) for seed, host in enumerate(hosts * 4)]
        changes = 0
        while not daemon.notices:
            status = await scene.set(changes % SEGMENTS, entries[changes % SEGMENTS], blocking=True)
            changes += status is Status.OK
        assert isinstance(daemon.notices[0], Epoch)
        assert daemon.headers[0].epoch == daemon.epoch + 1
        assert changes > 10
        assert done > 100
        before = done
        daemon.epoch += 1
        daemon.sequence = 0
        assert await scene.entries() == [0] * SEGMENTS
        assert not daemon.faults(), "without a lease nothing faults"
        daemon.grant(time.monotonic_ns())
        while any(not task.done() for task in loads):
            answered = {fault.segment for fault in daemon.faults()}
            missing = [segment for segment, entry in enumerate(await scene.entries()) if not entry]
            for segment in answered & set(missing):
                assert await scene.set(segment, entries[segment]) is Status.OK
            await asyncio.sleep(0.005)
        await asyncio.gather(*loads)
        assert done - before <= len(loads)

    play(own_scene, act)


def test_faults_go_up_again_to_the_next_session(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.ready()
        host = await scene.host()
        reading = asyncio.create_task(host.read(1, 4 * SEGMENT, 512))
        (fault,) = await first.fault()
        second = await scene.admitted()
        await first.until(lambda: first.ended)
        first.connection.close()
        (again,) = await second.fault()
        assert again == fault
        scene.answer(again, REPLACE, ZERO_ENTRY)
        assert await reading == bytes(512)

    play(scene, act)


def test_a_deleted_disk_drops_what_is_parked(scene: Scene, rpc: Callable[..., Any]) -> None:
    async def act(scene: Scene) -> None:
        daemon = await scene.ready()
        host = await scene.host()
        writing = asyncio.create_task(host.write(1, 0, b"z" * 512))
        await daemon.fault()
        await scene.parked(1)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: rpc("bdev_segmap_delete", name=scene.disk))
        with pytest.raises(NvmeStatusError):
            await writing

    play(scene, act)


def test_a_target_ends_although_io_is_parked(own_scene: Scene) -> None:
    """In good order (the fixture looks at its exit status), and long before the park limit."""

    async def act(scene: Scene) -> None:
        daemon = await scene.ready()
        host = await scene.host()
        writing = asyncio.create_task(host.write(1, 0, b"z" * 512))
        await daemon.fault()
        scene.end_target()
        with pytest.raises(NvmeStatusError):
            await writing

    play(own_scene, act)


def test_labels(scene: Scene, rpc: Callable[..., Any]) -> None:
    async def act(scene: Scene) -> None:
        daemon = await scene.admitted()

        async def ask(message: Any) -> Any:
            return await daemon.ask(message, daemon.header(table=0))

        assert (await ask(scene.bind(0))).status is Status.LABEL_MISMATCH
        assert (await ask(scene.bind(bdev_name="nosuch"))).status is Status.NOT_FOUND
        assert (await ask(scene.bind(segment_count=CONTAINER_SEGMENTS + 1))).status is Status.OUT_OF_RANGE
        bound = await ask(scene.bind())
        assert (bound.status, bound.segment_count, bound.block_size) == (Status.OK, CONTAINER_SEGMENTS, 512)
        assert (await ask(scene.bind(0))).status is Status.OK, "again: the same"
        assert (await ask(scene.bind(0, container=b"o" * 16))).status is Status.EXISTS
        assert (await ask(scene.bind(0, slot=scene.slot + 1000))).status is Status.BUSY
        assert (await ask(UnbindSlot(scene.slot))).status is Status.OK
        assert (await ask(UnbindSlot(scene.slot))).status is Status.NO_CONTAINER
        verified = await ask(scene.bind(0))
        assert (verified.status, verified.segment_count) == (Status.OK, CONTAINER_SEGMENTS)
        assert (await ask(UnbindSlot(scene.slot))).status is Status.OK
        assert (await ask(scene.bind(0, cluster=b"o" * 16))).status is Status.LABEL_MISMATCH
        assert (await ask(scene.bind(container=b"o" * 16))).status is Status.FOREIGN_DATA
        assert (await ask(scene.bind(AttachFlags.INITIALIZE | AttachFlags.FORCE))).status is Status.OK

    play(scene, act)


def test_copies_and_zeroes(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        daemon = await scene.ready()
        host = await scene.host()
        assert await scene.set(0, scene.at(1), scene.at(2), scene.at(3)) is Status.OK
        data = random.Random(3).randbytes(SEGMENT)
        await host.write(1, 0, data)

        async def ask(message: Any) -> Any:
            return (await daemon.ask(message, daemon.header(table=0))).status

        assert await ask(CopySegments([SegmentCopy(scene.at(1), scene.at(3))])) is Status.OK
        assert await host.read(1, 2 * SEGMENT, SEGMENT) == data
        assert await ask(ZeroSegments([SegmentRun(scene.at(1), 2)])) is Status.OK
        assert await host.read(1, 0, SEGMENT) == bytes(SEGMENT)
        assert await host.read(1, 2 * SEGMENT, SEGMENT) == data
        assert await ask(ZeroSegments([SegmentRun(scene.at(0), 1)])) is Status.OUT_OF_RANGE, "the label"
        assert await ask(ZeroSegments([SegmentRun(scene.at(CONTAINER_SEGMENTS - 1), 2)])) is Status.OUT_OF_RANGE
        assert await ask(CopySegments([SegmentCopy(0, scene.at(3))])) is Status.BAD_MESSAGE
        assert await ask(UnbindSlot(scene.slot)) is Status.BUSY

    play(scene, act)


def test_a_flush_fails_while_a_container_with_data_is_absent(scene: Scene) -> None:
    """With a status that is tried again, and for as long as the controller says so (design: 6, 12)."""

    async def act(scene: Scene) -> None:
        daemon = await scene.ready()
        host = await scene.host()
        assert await scene.set(0, scene.at(1)) is Status.OK
        await host.flush(1)
        absent = TableSlots([scene.slot], [4000])
        assert (await daemon.ask(absent, scene.header())).status is Status.OK
        for _ in range(2):
            with pytest.raises(NvmeStatusError) as refused:
                await host.flush(1)
            assert not refused.value.status & DNR
        await host.write(1, 0, b"g" * 512)
        assert await host.read(1, 0, 512) == b"g" * 512
        assert await scene.set(1, pack(4000, 1)) is Status.NO_CONTAINER
        assert (await daemon.ask(TableSlots([scene.slot]), scene.header())).status is Status.OK
        await host.flush(1)

    play(scene, act)


def test_a_lost_container_fails_its_io_and_the_next_flush(scene: Scene, rpc: Callable[..., Any]) -> None:
    async def act(scene: Scene) -> None:
        await scene.ready()
        host = await scene.host()
        assert await scene.set(0, scene.at(1), ZERO_ENTRY) is Status.OK
        await host.write(1, 0, b"q" * 512)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: rpc("bdev_malloc_delete", name=scene.container))
        with pytest.raises(NvmeStatusError):
            await host.read(1, 0, 512)
        with pytest.raises(NvmeStatusError):
            await host.flush(1)
        assert await host.read(1, SEGMENT, 512) == bytes(512)

    play(scene, act)
    blocks = CONTAINER_SEGMENTS * SEGMENT // 512
    rpc("bdev_malloc_create", name=scene.container, block_size=512, num_blocks=blocks)


def test_a_hostile_peer_hurts_nobody(scene: Scene) -> None:
    """Junk, torn frames and silence: the connection ends, the target and the next daemon do not notice."""

    async def act(scene: Scene) -> None:
        path = str(scene.plane.dataplane_socket)
        good = struct.pack("<IHBBQQQQQQ", 56, 18, 1, 0, 1, 0, 0, 0, 0, 0)
        chance = random.Random(5)
        junk = [
            b"\xff" * 64,
            struct.pack("<I", 57) + bytes(60),
            struct.pack("<I", 2 << 20) + bytes(60),
            struct.pack("<IHBB", 64, 13, 1, 0) + bytes(56),
            good[:4] + b"\x63\x00" + good[6:],
            good[:7] + b"\x80" + good[8:],
            *(struct.pack("<I", 64) + chance.randbytes(60) for _ in range(20)),
        ]
        for data in junk:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(data)
            rest = await asyncio.wait_for(reader.read(), 5)
            assert rest, "a hello, and perhaps a goodbye"
            writer.close()
            await writer.wait_closed()
        _, torn = await asyncio.open_unix_connection(path)
        torn.write(good[:30])
        await torn.drain()
        torn.close()
        await torn.wait_closed()
        daemon = await scene.ready()
        assert (await daemon.ask(TableStatus(), daemon.header(table=0))).status is Status.OK
        assert not any(isinstance(notice, Refused) for notice in daemon.notices)

    play(scene, act)
