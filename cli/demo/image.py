"""The data that the demo puts on the disk: an ext4 image of the input, or a tar where there is no mke2fs.

The default input is segmap's own source tree plus generated files of seeded random bytes, enough to fill the image.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from cli.command import CommandError
from cli.exit_codes import ExitCode

IMAGE_BYTES_MIN = 256 << 20
MIB = 1 << 20
SEED = 1178407
GENERATED_SHARE = 0.7
FILE_BYTES = 8 * MIB
TOOL_TIMEOUT_S = 60
SOURCES = Path(__file__).resolve().parents[2]
SKIPPED = {"build", "__pycache__", "segmap-run", "node_modules"}


@dataclass(frozen=True, slots=True)
class Image:
    """The image's file and length; ``filesystem`` says whether e2fsck can check it."""

    path: Path
    length: int
    filesystem: bool
    files: int


def tool(name: str) -> str | None:
    """A program of e2fsprogs, also where only root's PATH would find it."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def build(workspace: Path, source: Path | None) -> Image:
    """Makes the image in ``workspace`` from a file, a directory, or the default input. Blocking."""
    root = workspace / "input"
    root.mkdir()
    if source is None:
        copy_sources(root)
        generate(root / "generated", int(IMAGE_BYTES_MIN * GENERATED_SHARE))
    else:
        copy_input(source, root)
    sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    length = image_length(sum(sizes), len(sizes))
    path = workspace / "image"
    filesystem = tool("mke2fs") is not None
    if filesystem:
        make_ext4(path, root, length)
    else:
        make_tar(path, root, length)
    shutil.rmtree(root)
    flush(path)
    return Image(path, path.stat().st_size, filesystem, len(sizes))


def flush(path: Path) -> None:
    """To the disk with it now: written back later, it would be in the way of what the demo measures."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def image_length(content: int, files: int) -> int:
    """Room for the content, a block lost in each file, and the file system's own structures; whole MiB."""
    needed = int((content + files * 8192) * 1.1) + 32 * MIB
    return max(IMAGE_BYTES_MIN, -(-needed // MIB) * MIB)


def copy_sources(root: Path) -> None:
    """segmap's own files: the tracked ones in a git checkout, else what lies beside the package."""
    for path in source_files():
        target = root / path.relative_to(SOURCES)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def source_files() -> list[Path]:
    git = shutil.which("git")
    if git and (SOURCES / ".git").exists():
        answer = subprocess.run(
            [git, "-C", str(SOURCES), "ls-files", "-z"], capture_output=True, check=False, timeout=TOOL_TIMEOUT_S
        )
        tracked = [SOURCES / os.fsdecode(name) for name in answer.stdout.split(b"\0") if name]
        if answer.returncode == 0 and tracked:
            return [path for path in tracked if path.is_file()]
    packages = [path for path in SOURCES.iterdir() if path.is_dir() and (path / "__init__.py").is_file()]
    return [path for package in packages for path in package.rglob("*.py") if SKIPPED.isdisjoint(path.parts)]


def generate(root: Path, length: int) -> None:
    """``length`` random bytes, the same in every run, in files of FILE_BYTES."""
    root.mkdir()
    chance = random.Random(SEED)
    for number, start in enumerate(range(0, length, FILE_BYTES)):
        (root / f"{number:03}.bin").write_bytes(chance.randbytes(min(FILE_BYTES, length - start)))


def copy_input(source: Path, root: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, root, symlinks=True, dirs_exist_ok=True)
    elif source.is_file():
        shutil.copyfile(source, root / source.name)
    else:
        raise CommandError(f"--input {source}: neither a file nor a directory", ExitCode.USAGE)


def make_ext4(path: Path, root: Path, length: int) -> None:
    run([str(tool("mke2fs")), "-q", "-F", "-t", "ext4", "-b", "4096", "-d", str(root), str(path), f"{length // 1024}k"])


def make_tar(path: Path, root: Path, length: int) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(root, arcname="input")
    if path.stat().st_size < length:
        os.truncate(path, length)


def check_ext4(path: Path) -> tuple[bool, str]:
    """`e2fsck -fn`: (no error was found, its last line)."""
    program = tool("e2fsck")
    if program is None:
        return False, "no e2fsck"
    answer = subprocess.run(
        [program, "-fn", str(path)], capture_output=True, text=True, check=False, timeout=TOOL_TIMEOUT_S
    )
    lines = [line for line in (answer.stdout or answer.stderr).splitlines() if line.strip()]
    return answer.returncode == 0, lines[-1] if lines else f"exit status {answer.returncode}"


def run(words: list[str]) -> None:
    answer = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TOOL_TIMEOUT_S)
    if answer.returncode:
        raise CommandError(f"{Path(words[0]).name}: {answer.stderr.strip() or answer.returncode}")
