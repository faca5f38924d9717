"""Real processes under faults: a short run in every `make test`; longer ones, each with a new seed, besides."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
OVERHEAD_S = 240.0
LONG_SEEDS = int(os.environ.get("SEGMAP_CHAOS_SEEDS", "6"))


def chaos(runtime_dir: Path, seed: int, seconds: float, *more: str) -> None:
    """One run; its report is the failure's text."""
    place = runtime_dir / "report.json"
    command = [sys.executable, "-m", "tests.chaos", "--seed", str(seed), "--seconds", str(seconds), *more]
    done = subprocess.run(
        [*command, "--json", str(place)],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + OVERHEAD_S,
    )
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-4000:]
    print(done.stdout)
    report = json.loads(place.read_text())
    assert report["violations"] == []
    assert report["load"]["ios"]["read"] and report["load"]["ios"]["write"] and report["faults"]["kinds"]


def test_nothing_is_violated(runtime_dir: Path) -> None:
    chaos(runtime_dir, 1, 25)


@pytest.mark.long
@pytest.mark.parametrize("number", range(LONG_SEEDS))
def test_nothing_is_violated_for_long(runtime_dir: Path, number: int) -> None:
    chaos(runtime_dir, random.SystemRandom().randrange(1 << 32), 120)


@pytest.mark.long
def test_nothing_is_violated_where_there_are_no_namespaces(runtime_dir: Path) -> None:
    chaos(runtime_dir, random.SystemRandom().randrange(1 << 32), 30, "--loopback")
