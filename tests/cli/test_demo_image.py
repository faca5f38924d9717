"""The demo's data: an image with the input inside, the same in every run."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from cli.command import CommandError
from cli.demo import image

SMALL = 16 << 20

needs_mke2fs = pytest.mark.skipif(image.tool("mke2fs") is None, reason="mke2fs is not installed (e2fsprogs)")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "IMAGE_BYTES_MIN", SMALL)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "hello").write_text("hello, disk")
    (tmp_path / "work").mkdir()
    return tmp_path / "in"


@needs_mke2fs
def test_the_input_is_in_a_whole_file_system(tmp_path: Path, source: Path) -> None:
    made = image.build(tmp_path / "work", source)
    assert made.filesystem and made.files == 1
    assert made.length == made.path.stat().st_size == image.image_length(11, 1)
    assert image.check_ext4(made.path)[0]
    debugfs = image.tool("debugfs")
    assert debugfs
    shown = subprocess.run([debugfs, "-R", "cat /deep/hello", str(made.path)], capture_output=True, check=True)
    assert shown.stdout == b"hello, disk"
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["image"]


@needs_mke2fs
def test_a_damaged_file_system_is_noticed(tmp_path: Path, source: Path) -> None:
    made = image.build(tmp_path / "work", source)
    with made.path.open("r+b") as file:
        file.seek(1024 + 12)
        file.write(b"\xff" * 64)
    assert not image.check_ext4(made.path)[0]


def test_without_mke2fs_it_is_a_tar(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "tool", lambda name: None)
    made = image.build(tmp_path / "work", source)
    assert not made.filesystem
    assert made.path.stat().st_size >= SMALL
    with tarfile.open(made.path) as archive:
        member = archive.extractfile("input/deep/hello")
        assert member and member.read() == b"hello, disk"
    assert image.check_ext4(made.path) == (False, "no e2fsck")


def test_a_single_file_is_an_input_too(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "tool", lambda name: None)
    assert image.build(tmp_path / "work", source / "deep" / "hello").files == 1


def test_no_input_is_told(tmp_path: Path, source: Path) -> None:
    with pytest.raises(CommandError, match="neither a file nor a directory"):
        image.build(tmp_path / "work", tmp_path / "none")


def test_generated_files_are_the_same_in_every_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image.generate(tmp_path / name, image.FILE_BYTES + 100)
    first, second = ([path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("a", "b"))
    assert first == second
    assert [len(data) for data in first] == [image.FILE_BYTES, 100]


def test_the_project_s_own_files_are_the_default() -> None:
    names = {path.relative_to(image.SOURCES).as_posix() for path in image.source_files()}
    assert "cli/__init__.py" in names
    assert not any(name.startswith((".venv", ".git/")) for name in names)
