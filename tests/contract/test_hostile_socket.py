"""Whoever connects to the data plane's socket cannot hurt the target: junk, torn and slow peers, while a host reads.

Each seed is one attack, and is printed when it fails. `make native ASAN=1` builds a target that also tells of misuse of
memory (SEGMAP_TGT names the program to be tested).
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from typing import Any

import pytest

from channel.codec import encode
from channel.messages import (
    Admit,
    BindSlot,
    CopySegments,
    FaultAnswer,
    GetEntries,
    GetParked,
    GetState,
    LeaseGrant,
    Message,
    Resume,
    SetEntries,
    SetState,
    Suspend,
    TableSlots,
    TableStatus,
    UnbindSlot,
    ZeroSegments,
)
from channel.values import AnswerRecord, Header, SegmentCopy, SegmentRun
from mapping.entry import ZERO_ENTRY, State
from mapping.status import Status
from tests.contract.conftest import DISK_PLANES
from tests.contract.test_disk_data import SEGMENT, SEGMENTS, Scene, own_scene, play  # noqa: F401  (a fixture)
from tests.embedded.scripted_daemon import CLUSTER, INCARNATION, SECOND, TERM

pytestmark = pytest.mark.parametrize("plane", DISK_PLANES, indirect=True, scope="session")

SEEDS = (1,)
LONG_SEEDS = range(100, 130)
PEERS = 12
FRAMES = 60
VICTIM = 999 << 32 | 7
VICTIM_SEGMENTS = 65536
LENGTH_BYTES = 4
ADMIT = Admit(CLUSTER, 60 * SECOND, 20 * SECOND, 20 * SECOND)
NOTICES = (FaultAnswer, LeaseGrant)


def framed(message: Message, header: Header, request_id: int) -> bytes:
    return encode(message, header._replace(request_id=0 if isinstance(message, NOTICES) else request_id))


def victim(chance: random.Random, epoch: int) -> bytes:
    """A good frame about the victim's table, or what might be one in another state of things."""
    start, count = chance.randrange(VICTIM_SEGMENTS), chance.choice((1, 2, 7, 4096))
    entry = chance.choice((0, ZERO_ENTRY, chance.getrandbits(64)))
    message: Message = chance.choice(
        (
            GetEntries(start, count),
            SetEntries(start, count, [entry]),
            SetEntries(start, 2, [entry, 0]),
            GetState(start, count, State(chance.randrange(5))),
            SetState(start, count, State(chance.randrange(4)), chance.random() < 0.8),
            TableSlots([chance.randrange(4096)]),
            Suspend(),
            Resume(),
            GetParked(),
            TableStatus(),
            BindSlot(chance.randrange(4096), chance.choice((0, 1, 3, 4)), b"x" * 16, CLUSTER, 1, SEGMENT, 0, "nosuch"),
            UnbindSlot(3000 + chance.randrange(90)),
            CopySegments([SegmentCopy(entry, 0x10001)]),
            ZeroSegments([SegmentRun(entry, count)]),
            FaultAnswer([AnswerRecord(chance.randrange(99), start, 1, 0, 0)], [entry]),
            LeaseGrant(time.monotonic_ns(), 30 * SECOND),
        )
    )
    header = Header(TERM, INCARNATION, epoch, VICTIM, chance.randrange(40), 0, False)
    return framed(message, header, chance.randrange(1, 1 << 40))


def spoilt(chance: random.Random, frame: bytes) -> bytes:
    """The frame, as somebody else might have written it."""
    data = bytearray(frame)
    way = chance.randrange(6)
    if way == 0:
        return frame
    if way == 1:  # lengths and counts are where it hurts: the body's first words
        at = 56 + 4 * chance.randrange(max((len(data) - 56) // 4, 1))
        data[at : at + 4] = struct.pack("<I", chance.choice((0, 1, 255, 65537, 0x7FFFFFFF, 0xFFFFFFFF)))
    elif way == 2:
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(LENGTH_BYTES, len(data))] ^= 1 << chance.randrange(8)
    elif way == 3:
        data[4:8] = bytes((chance.randrange(64), 0, 1, chance.randrange(4)))
    elif way == 4:  # more, or less, than its type has
        del data[56 + 8 * chance.randrange((len(data) - 56) // 8 + 1) :]
        data += chance.randbytes(8 * chance.randrange(4))
    else:
        data[:LENGTH_BYTES] = struct.pack("<I", chance.choice((0, 55, 57, len(data) + 8, 1 << 20, 1 << 31)))
        return bytes(data)
    data[:LENGTH_BYTES] = struct.pack("<I", len(data))
    return bytes(data)


async def hello_of(reader: asyncio.StreamReader) -> tuple[int, int, int]:
    """The target's first frame: its term, incarnation and epoch."""
    prefix = await asyncio.wait_for(reader.readexactly(56), 10)
    length, *_, term, incarnation, epoch, _, _ = struct.unpack("<IHBBQQQQQQ", prefix)
    await reader.readexactly(length - 56)
    return term, incarnation, epoch


async def drain(reader: asyncio.StreamReader) -> None:
    """Read until the target hangs up."""
    while await reader.read(1 << 20):
        pass


async def attack(scene: Scene, chance: random.Random) -> None:
    """One peer, from its connect to its end, which comes from this or the other side."""
    reader, writer = await asyncio.open_unix_connection(str(scene.plane.dataplane_socket))
    _, _, epoch = await hello_of(reader)
    reading = asyncio.ensure_future(drain(reader))
    frames = [framed(ADMIT, Header(TERM, INCARNATION), 1)]
    frames += [spoilt(chance, victim(chance, epoch)) for _ in range(FRAMES)]
    stream = b"".join(frames)
    try:
        while stream and not reading.done():
            cut = chance.choice((1, 3, 57, 1000, len(stream)))
            writer.write(stream[:cut])
            await writer.drain()
            stream = stream[cut:]
    except ConnectionError:
        pass
    if chance.random() < 0.5:
        writer.close()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    writer.transport.abort()


async def attack_by_silence(scene: Scene) -> None:
    """A peer that asks for more and more, and reads nothing: it is cut off."""
    reader, writer = await asyncio.open_unix_connection(str(scene.plane.dataplane_socket))
    _, _, epoch = await hello_of(reader)
    header = Header(TERM, INCARNATION, epoch, VICTIM)
    writer.write(framed(ADMIT, Header(TERM, INCARNATION), 1))
    try:
        for number in range(2, 10_000):
            writer.write(framed(GetEntries(0, VICTIM_SEGMENTS), header, number))
            await asyncio.wait_for(writer.drain(), 3)
    except (ConnectionError, TimeoutError):
        pass
    writer.transport.abort()


async def besiege(scene: Scene, seed: int) -> None:
    """A host reads, and none of this is any of its business."""
    chance = random.Random(seed)
    daemon = scene.daemon = await scene.connect()
    daemon.epoch = (await daemon.begin(ADMIT, Header(TERM, INCARNATION)))[1].epoch
    daemon.grant(time.monotonic_ns(), 60 * SECOND)
    assert (await daemon.ask(scene.bind(), daemon.header(table=0))).status is Status.OK
    assert (await daemon.ask(TableSlots([scene.slot]), scene.header())).status is Status.OK
    assert await scene.set(0, *(scene.at(1 + number) for number in range(SEGMENTS))) is Status.OK
    host = await scene.host()
    data = chance.randbytes(SEGMENT)
    await host.write(1, 0, data)
    over = False

    async def reads() -> int:
        count = 0
        while not over:
            assert await host.read(1, 0, SEGMENT) == data
            count += 1
        return count

    reading = asyncio.create_task(reads())
    for _ in range(PEERS):
        await attack(scene, chance)
    await attack_by_silence(scene)
    for _ in range(PEERS):
        _, writer = await asyncio.open_unix_connection(str(scene.plane.dataplane_socket))
        writer.write(chance.randbytes(chance.randrange(60)))
        writer.transport.abort()
    over = True
    assert await reading > 0
    await still_serves(scene)


async def still_serves(scene: Scene) -> None:
    """The next daemon, which takes the target as it is."""
    reader, writer = await asyncio.open_unix_connection(str(scene.plane.dataplane_socket))
    term, incarnation, _ = await hello_of(reader)
    writer.write(framed(ADMIT, Header(term, incarnation), 5))
    answer = await asyncio.wait_for(reader.readexactly(64), 10)
    assert struct.unpack_from("<I", answer, 56)[0] == Status.OK
    writer.transport.abort()


def run(scene: Scene, seed: int) -> None:
    print(f"seed {seed}")

    def rpc(method: str, **params: Any) -> Any:
        return scene.plane.client.call(method, params)

    rpc("bdev_segmap_create", name="victim", table=VICTIM, segment_count=VICTIM_SEGMENTS, segment_size=SEGMENT)
    play(scene, lambda scene: besiege(scene, seed))
    rpc("bdev_segmap_delete", name="victim")


@pytest.mark.parametrize("seed", SEEDS)
def test_hostile_peers_hurt_nobody(own_scene: Scene, seed: int) -> None:  # noqa: F811
    run(own_scene, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", LONG_SEEDS)
def test_many_hostile_peers_hurt_nobody(own_scene: Scene, seed: int) -> None:  # noqa: F811
    run(own_scene, seed)
