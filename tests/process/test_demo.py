"""The demo, as `make demo` runs it: every check holds, in time, and nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.conftest import binary_of

TOP = Path(__file__).resolve().parents[2]
TIMEOUT_S = 150


TARGETS = [
    pytest.param("embedded", "embedded", id="embedded"),
    pytest.param("spdk", "spdk", id="spdk", marks=pytest.mark.spdk),
    pytest.param("spdk", "embedded", id="spdk-maps", marks=[pytest.mark.spdk, pytest.mark.long]),
    pytest.param("embedded", "spdk", id="spdk-exports", marks=[pytest.mark.spdk, pytest.mark.long]),
]


@pytest.mark.claim(1, 3, 24, 25, 26, 28, 29, 30)
@pytest.mark.parametrize(("target", "containers"), TARGETS)
def test_every_check_of_the_demo_holds(target: str, containers: str, runtime_dir: Path) -> None:
    for kind, plane in ((target, "segmap_tgt"), (containers, "spdk")):
        if kind == "spdk":
            binary_of(plane)
    environment = os.environ | {"TMPDIR": str(runtime_dir)}
    answer = subprocess.run(
        [sys.executable, "-m", "cli", "demo", "--json", "--target", target, "--containers", containers],
        cwd=TOP,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    document = json.loads(answer.stdout)
    assert all(document["checks"].values()), document
    assert len(document["checks"]) >= 15
    assert list(runtime_dir.iterdir()) == []
