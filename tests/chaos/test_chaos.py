"""Real processes under faults: a short run in every `make test`; longer ones, each with a new seed, besides."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.daemon import MUTANT
from tests.contract.conftest import binary_of

TOP = Path(__file__).resolve().parents[2]
OVERHEAD_S = 240.0
MUTANTS = ("no-barrier", "reuse-unzeroed", "zero-given-to-two")
LONG_SEEDS = int(os.environ.get("SEGMAP_CHAOS_SEEDS", "6"))


def played(place: Path, seed: int, seconds: float, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One run; its report goes to `place`."""
    command = [sys.executable, "-m", "tests.chaos", "--seed", str(seed), "--seconds", str(seconds), *more]
    return subprocess.run(
        [*command, "--json", str(place)],
        cwd=TOP,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + OVERHEAD_S,
    )


def chaos(runtime_dir: Path, seed: int, seconds: float, *more: str) -> None:
    """Nothing may be violated; the report is the failure's text."""
    place = runtime_dir / "report.json"
    done = played(place, seed, seconds, *more)
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


@pytest.mark.long
@pytest.mark.spdk
def test_nothing_is_violated_on_both_kinds_of_data_plane(runtime_dir: Path) -> None:
    binary_of("segmap_tgt")
    chaos(runtime_dir, random.SystemRandom().randrange(1 << 32), 120, "--spdk", "a", "c")


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_rule_is_noticed(runtime_dir: Path, mutant: str) -> None:
    """With one rule taken away, the same run finds violations, and keeps what shows them."""
    place = runtime_dir / "report.json"
    done = played(place, 1, 60, **{MUTANT: mutant})
    assert done.returncode == 1, done.stdout[-4000:] + done.stderr[-4000:]
    report = json.loads(place.read_text())
    assert report["violations"] and report["violations"][0]["text"] in done.stdout
    kept = Path(report["kept"])
    assert (kept / "controller.log").exists() and (kept / "schedule").exists() and str(kept) in done.stdout
    shutil.rmtree(kept)
