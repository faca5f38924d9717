"""The SPDK module with other compilers, and under the sanitizers against a real SPDK. Long: each builds it anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ci.native import complaint
from spdk_rpc.find import find_spdk

TOP = Path(__file__).resolve().parents[2]
SOURCES = TOP / "dataplane/bdev_segmap"
DATA_TESTS = ("test_disk_data.py", "test_lost_connections.py", "test_hostile_socket.py", "test_segmap.py")

pytestmark = [pytest.mark.long, pytest.mark.spdk]


def make(build: Path, *words: str) -> None:
    """Build into a directory of its own, or fail with what the compiler says."""
    if problem := complaint():
        pytest.skip(problem)
    paths = ":".join(map(str, find_spdk().pkg_config_dirs))
    command = ["make", "-s", "-C", str(SOURCES), f"BUILD={build}", f"SPDK_PKG_CONFIG_PATH={paths}", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_no_compiler_warns(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    make(tmp_path, "objects", f"CC={compiler}")


def test_sanitizers_have_nothing_to_say(tmp_path: Path) -> None:
    """The contract tests of virtual disks on a target with the address and undefined behaviour sanitizers."""
    make(tmp_path, "ASAN=1", f"{tmp_path}/segmap_tgt")
    tests = [str(TOP / "tests/contract" / name) for name in DATA_TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "spdk and not long", "-k", "segmap_tgt", *tests]
    environment = os.environ | {"SEGMAP_TGT": str(tmp_path / "segmap_tgt")}
    done = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
