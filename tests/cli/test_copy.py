"""`segmap io copy` between files and pipes, its pump on endpoints that fail, and addresses."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import random
from pathlib import Path

import pytest

from cli.command import CommandError
from cli.copying.endpoint import (
    Chunk,
    Destination,
    EndpointError,
    FileEndpoint,
    InputStream,
    NvmeAddress,
    OutputStream,
    Source,
    check_apart,
)
from cli.copying.pump import CHUNK_BYTES, CopyFailedError, Pump, Range
from cli.exit_codes import ExitCode
from cli.program import main

DATA = random.Random(5).randbytes(5 * CHUNK_BYTES // 2 + 17)


class Memory(Source, Destination):
    """A device in memory whose I/O completes in a seeded random order, with a limit on what it has seen at once."""

    def __init__(self, data: bytes = b"", capacity: int = 64 << 20, fail_at: int = -1, seed: int = 1) -> None:
        self.data = bytearray(data)
        self.size = len(data)
        self.capacity = capacity
        self.fail_at = fail_at
        self.chance = random.Random(seed)
        self.busy = self.busiest = self.flushes = 0

    async def _turns(self) -> None:
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        for _ in range(self.chance.randrange(6)):
            await asyncio.sleep(0)
        self.busy -= 1

    async def read(self, offset: int, length: int) -> Chunk:
        await self._turns()
        return bytes(self.data[offset : offset + length])

    async def write(self, offset: int, data: Chunk) -> None:
        await self._turns()
        if offset <= self.fail_at < offset + len(data):
            raise EndpointError("the medium failed", ExitCode.NO_SPACE)
        end = offset + len(data)
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
        self.data[offset:end] = data

    async def flush(self) -> None:
        self.flushes += 1

    async def close(self) -> None:
        return


def pump(source: Source, destination: Destination | None, what: Range, depth: int = 8) -> tuple[str, int]:
    moved: list[int] = []
    result = asyncio.run(Pump(source, destination, moved.append, depth).run(what))
    assert sum(moved) == result.length
    return result.sha256, result.length


@pytest.mark.parametrize("depth", [1, 2, 8])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_byte_arrives_whatever_the_order(depth: int, seed: int) -> None:
    source, destination = Memory(DATA, seed=seed), Memory(seed=seed + 10)
    assert pump(source, destination, Range(), depth) == (hashlib.sha256(DATA).hexdigest(), len(DATA))
    assert bytes(destination.data) == DATA
    assert destination.flushes == 1
    assert source.busiest <= depth and destination.busiest <= depth


@pytest.mark.parametrize(("start", "to", "length"), [(0, 0, 1), (7, 3, CHUNK_BYTES + 1), (CHUNK_BYTES, 512, None)])
def test_ranges(start: int, to: int, length: int | None) -> None:
    destination = Memory()
    part = DATA[start:] if length is None else DATA[start : start + length]
    assert pump(Memory(DATA), destination, Range(start, to, length))[0] == hashlib.sha256(part).hexdigest()
    assert bytes(destination.data[to:]) == part


def test_a_source_that_is_too_short_is_told() -> None:
    with pytest.raises(CopyFailedError, match=f"ended at byte {len(DATA)}"):
        pump(Memory(DATA), Memory(), Range(length=len(DATA) + 9))


@pytest.mark.parametrize("seed", range(6))
def test_a_failed_copy_tells_what_is_safe(seed: int) -> None:
    destination = Memory(fail_at=CHUNK_BYTES + 5, seed=seed)
    with pytest.raises(CopyFailedError, match="the medium failed") as caught:
        pump(Memory(DATA, seed=seed), destination, Range())
    assert caught.value.durable == CHUNK_BYTES
    assert bytes(destination.data[:CHUNK_BYTES]) == DATA[:CHUNK_BYTES]
    assert destination.flushes == 1


@pytest.mark.parametrize("seed", range(6))
def test_an_interrupted_copy_tells_what_is_safe(seed: int) -> None:
    destination = Memory(seed=seed)

    async def interrupted() -> int:
        copy = asyncio.ensure_future(Pump(Memory(DATA, seed=seed), destination, lambda _: copy.cancel()).run(Range()))
        with pytest.raises(CopyFailedError) as caught:
            await copy
        assert isinstance(caught.value.reason, asyncio.CancelledError)
        return caught.value.durable

    durable = asyncio.run(interrupted())
    assert destination.flushes == 1 and destination.busy == 0
    assert bytes(destination.data[:durable]) == DATA[:durable]
    assert durable or destination.data[:CHUNK_BYTES] != DATA[:CHUNK_BYTES]


def test_pipes() -> None:
    out = io.BytesIO()
    digest, length = pump(InputStream(io.BytesIO(DATA)), OutputStream(out), Range())
    assert (out.getvalue(), digest, length) == (DATA, hashlib.sha256(DATA).hexdigest(), len(DATA))


def test_a_pipe_can_begin_later() -> None:
    out = io.BytesIO()
    pump(InputStream(io.BytesIO(DATA)), OutputStream(out), Range(source_offset=1000, length=50))
    assert out.getvalue() == DATA[1000:1050]


def test_files_and_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(DATA)
    assert main(["io", "copy", str(source), str(copy), "--verify", "--json"]) == ExitCode.DONE
    answer = json.loads(capsys.readouterr().out)
    assert answer["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert answer["verified"] is True
    assert copy.read_bytes() == DATA


def test_a_difference_has_an_exit_status_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A destination that keeps something else than it was given."""
    (tmp_path / "source").write_bytes(DATA)

    async def forgetful(self: FileEndpoint, offset: int, data: Chunk) -> None:
        self._write(offset, bytes(len(data)))

    monkeypatch.setattr(FileEndpoint, "write", forgetful)
    words = ["io", "copy", str(tmp_path / "source"), str(tmp_path / "copy"), "--verify"]
    assert main(words) == ExitCode.DIFFERENT
    assert "DIFFERENT" in capsys.readouterr().out


def test_what_cannot_be_opened_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["io", "copy", str(tmp_path / "none"), str(tmp_path / "copy")]) == ExitCode.FAILED
    assert capsys.readouterr().err == f"segmap io copy: {tmp_path / 'none'}: No such file or directory\n"
    assert main(["io", "copy", str(tmp_path), "-"]) == ExitCode.USAGE
    assert os.listdir(tmp_path) == []


def test_namespaces_are_named_by_urls() -> None:
    address = NvmeAddress.parse("nvme-tcp://127.0.0.1:4420/nqn.2026-11.io.segmap:x?nsid=3&hostnqn=nqn.2014-08.org:h")
    assert address == NvmeAddress("127.0.0.1", "4420", "nqn.2026-11.io.segmap:x", 3, "nqn.2014-08.org:h")
    assert NvmeAddress.parse("nvme-tcp://[::1]/nqn.2026-11.io.segmap:x").host == "::1"


@pytest.mark.parametrize(
    "text",
    [
        "nvme-tcp://127.0.0.1:4420",
        "nvme-tcp:///nqn.x",
        "nvme-tcp://h:99999/nqn.x",
        "nvme-tcp://h:1/nqn.x?nsid=0",
        "nvme-tcp://h:1/nqn.x?nsid=1&nsid=2",
        "nvme-tcp://h:1/nqn.x?ns=1",
        "nvme-tcp://[/nqn.x",
    ],
)
def test_wrong_urls_say_what_was_expected(text: str) -> None:
    with pytest.raises(CommandError, match="expected nvme-tcp://HOST:PORT/NQN") as caught:
        NvmeAddress.parse(text)
    assert caught.value.code == ExitCode.USAGE


def test_a_copy_onto_itself_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, link = tmp_path / "f", tmp_path / "g"
    path.write_bytes(b"0123456789" * 1000)
    link.symlink_to(path)
    for words in ([], ["--length", "100", "--to-offset", "99"]):
        assert main(["io", "copy", str(path), str(link), "--quiet", *words]) == ExitCode.USAGE
        assert "are the same" in capsys.readouterr().err
    assert main(["io", "copy", str(path), str(link), "--quiet", "--length", "100", "--to-offset", "100"]) == 0
    assert path.read_bytes()[:200] == b"0123456789" * 20


def test_nothing_is_called_safe_after_a_flush_that_failed() -> None:
    class Forgetful(Memory):
        async def flush(self) -> None:
            await super().flush()
            if self.flushes == 1:
                raise OSError("what was written may be lost")

    async def work() -> None:
        with pytest.raises(CopyFailedError, match="may be lost") as caught:
            await Pump(Memory(bytes(3 * CHUNK_BYTES)), Forgetful(), lambda _: None).run(Range())
        assert caught.value.durable == 0

    asyncio.run(work())


@pytest.mark.parametrize("other", ["nvme-tcp://h/nqn.x:y?nsid=1", "nvme-tcp://another:4421/nqn.x%3Ay"])
def test_a_namespace_is_the_same_on_all_paths(other: str) -> None:
    one = "nvme-tcp://h:4420/nqn.x:y"
    with pytest.raises(CommandError, match="are the same"):
        check_apart(one, other, 0, 99, 100)
    check_apart(one, other, 0, 100, 100)
    check_apart(one, "nvme-tcp://h:4420/nqn.x:y?nsid=2", 0, 99, 100)
    check_apart(one, "/dev/null", 0, 99, 100)


def test_only_one_kind_of_address_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f"
    path.touch()
    assert main(["io", "copy", str(path), "http://x/y"]) == ExitCode.USAGE
    assert "only nvme-tcp:// is known, not http://" in capsys.readouterr().err


def test_nobody_there_is_told_once_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(512))
    assert main(["io", "copy", str(path), "nvme-tcp://127.0.0.1:1/nqn.2026-11.x:y?nsid=1"]) == ExitCode.UNREACHABLE
    said = capsys.readouterr().err
    assert said.count("127.0.0.1:1") == 1 and "hint: is the vdisk presented there?" in said
