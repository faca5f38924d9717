"""Where SPDK is installed: ``SPDK_PREFIX``, else pkg-config, else the usual prefixes; and what to do if nowhere.

And where `segmap_tgt` is, SPDK's target with our bdev module: ``SEGMAP_TGT``, else what `make native` built, else PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX_VARIABLE = "SPDK_PREFIX"
USUAL_PREFIXES = (Path("/usr"), Path("/usr/local"), Path("/opt/spdk"))
TARGET_PROGRAM = "spdk_tgt"
SEGMAP_TGT_VARIABLE = "SEGMAP_TGT"
SEGMAP_TGT = "segmap_tgt"
BUILT = Path(__file__).resolve().parents[1] / "build" / "native" / SEGMAP_TGT
PKG_CONFIG_PACKAGE = "spdk_event"
VERSION_HEADER = Path("include/spdk/version.h")
VERSION_PARTS = ("MAJOR", "MINOR", "PATCH")

WHAT_TO_DO = (
    "SPDK is optional: without it segmap runs on its embedded target. To use SPDK, install your distribution's package"
    " of it, or build and install it (configure --with-shared, make, make install) as SPDK's own getting-started guide"
    f" says, then set {PREFIX_VARIABLE} to the prefix it was installed in, unless that is one of"
    f" {', '.join(map(str, USUAL_PREFIXES))} or known to pkg-config"
)


class SpdkNotFound(Exception):
    """No installed SPDK; the text says where was looked and what to do."""


@dataclass(frozen=True, slots=True)
class Installation:
    """An installed SPDK. ``version`` is None where its headers are not installed."""

    prefix: Path
    found_by: str
    version: tuple[int, int, int] | None

    def binary(self, name: str) -> Path:
        """A program of the installation. Raises SpdkNotFound."""
        path = self.prefix / "bin" / name
        if not os.access(path, os.X_OK):
            raise SpdkNotFound(f"SPDK in {self.prefix} has no program {name}: install it into {path.parent}")
        return path

    @property
    def pkg_config_dirs(self) -> tuple[Path, ...]:
        """For PKG_CONFIG_PATH, when a module is built against this installation."""
        places = ("lib/pkgconfig", "lib64/pkgconfig", "share/pkgconfig", *_multiarch(self.prefix))
        return tuple(self.prefix / place for place in places if (self.prefix / place).is_dir())


def find_spdk(
    environ: Mapping[str, str] | None = None,
    ask_pkg_config: Callable[[], Path | None] | None = None,
    usual_prefixes: Sequence[Path] = USUAL_PREFIXES,
) -> Installation:
    """The first installation with a ``spdk_tgt``. A set SPDK_PREFIX must have one: it is never passed over."""
    environment = os.environ if environ is None else environ
    chosen = environment.get(PREFIX_VARIABLE)
    if chosen:
        found = _look(Path(chosen), PREFIX_VARIABLE)
        if found is None:
            raise SpdkNotFound(f"{PREFIX_VARIABLE} is {chosen}, but there is no {chosen}/bin/{TARGET_PROGRAM}")
        return found
    looked = []
    for prefix, how in _candidates(ask_pkg_config or _ask_pkg_config, usual_prefixes):
        looked.append(str(prefix))
        found = _look(prefix, how)
        if found is not None:
            return found
    raise SpdkNotFound(f"no bin/{TARGET_PROGRAM} in {', '.join(looked)}. {WHAT_TO_DO}.")


def find_segmap_tgt(environ: Mapping[str, str] | None = None, built: Path = BUILT) -> Path:
    """SPDK's target with our module. Raises SpdkNotFound. A set SEGMAP_TGT must be one: it is never passed over."""
    environment = os.environ if environ is None else environ
    chosen = environment.get(SEGMAP_TGT_VARIABLE)
    if chosen:
        if not os.access(chosen, os.X_OK):
            raise SpdkNotFound(f"{SEGMAP_TGT_VARIABLE} is {chosen}, which is no program")
        return Path(chosen)
    if os.access(built, os.X_OK):
        return built
    on_path = shutil.which(SEGMAP_TGT, path=environment.get("PATH", ""))
    if on_path is None:
        raise SpdkNotFound(
            f"no {SEGMAP_TGT}: neither {built} nor one on PATH. A mapping agent on SPDK needs it: build it with"
            f" `make native` where SPDK is installed, or name one in {SEGMAP_TGT_VARIABLE}"
        )
    return Path(on_path)


def _candidates(
    ask_pkg_config: Callable[[], Path | None], usual_prefixes: Sequence[Path]
) -> Iterator[tuple[Path, str]]:
    told = ask_pkg_config()
    if told is not None:
        yield told, "pkg-config"
    for prefix in usual_prefixes:
        yield prefix, "usual prefix"


def _look(prefix: Path, found_by: str) -> Installation | None:
    if not os.access(prefix / "bin" / TARGET_PROGRAM, os.X_OK):
        return None
    return Installation(prefix, found_by, read_version(prefix / VERSION_HEADER))


def read_version(header: Path) -> tuple[int, int, int] | None:
    """The version that SPDK's version.h defines."""
    try:
        text = header.read_text()
    except OSError:
        return None
    numbers = [re.search(rf"#define\s+SPDK_VERSION_{part}\s+(\d+)", text) for part in VERSION_PARTS]
    major, minor, patch = (int(number.group(1)) if number else 0 for number in numbers)
    return (major, minor, patch) if numbers[0] else None


def _ask_pkg_config() -> Path | None:
    """SPDK's .pc files name no prefix, only where the headers are: <prefix>/include."""
    program = shutil.which("pkg-config")
    if program is None:
        return None
    command = [program, "--cflags-only-I", "--keep-system-cflags", PKG_CONFIG_PACKAGE]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return prefix_of_flags(answer.stdout) if answer.returncode == 0 else None


def prefix_of_flags(flags: str) -> Path | None:
    """``-I/opt/x/include`` → ``/opt/x``"""
    for flag in flags.split():
        if flag.startswith("-I") and flag.endswith("/include"):
            return Path(flag[2:]).parent
    return None


def _multiarch(prefix: Path) -> list[str]:
    return [str(path.relative_to(prefix)) for path in sorted((prefix / "lib").glob("*-linux-gnu*/pkgconfig"))]
