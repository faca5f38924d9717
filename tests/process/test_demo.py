"""The demo, as `make demo` runs it: every check holds, in time, and nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
TIMEOUT_S = 150


@pytest.mark.claim(1, 3, 24, 25, 26, 28, 29, 30)
def test_every_check_of_the_demo_holds(runtime_dir: Path) -> None:
    environment = os.environ | {"TMPDIR": str(runtime_dir)}
    answer = subprocess.run(
        [sys.executable, "-m", "cli", "demo", "--json"],
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
