"""The Promela model of the protocol, checked with spin: it holds within its bounds, and what is broken is found.

Skipped, with the reason, where spin or a C compiler is not installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.model.cases import MUTANTS, PROGRESS, SAFE, Case

MODEL = Path(__file__).parents[2] / "docs" / "model" / "failover.pml"
COMPILER = shutil.which("cc") or shutil.which("gcc")
MEMORY_MIB = 3500
DEPTH = 200_000
VERIFY_S = 600

pytestmark = [
    pytest.mark.skipif(shutil.which("spin") is None, reason="spin is not installed (Debian package: spin)"),
    pytest.mark.skipif(COMPILER is None, reason="a C compiler is not installed; spin's verifiers are C"),
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier said. `complete`: the search was neither cut off by its depth nor by memory."""

    errors: int
    states: int
    complete: bool
    text: str


def _run(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=VERIFY_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def verify(case: Case, directory: Path) -> Verdict:
    """Generate the case's verifier, compile it and run it."""
    assert COMPILER is not None
    _run(["spin", "-a", *case.switches, str(MODEL)], directory)
    options = ["-O0" if case.quick else "-O1", "-w", "-DCOLLAPSE", "-DNOREDUCE", f"-DMEMLIM={MEMORY_MIB}"]
    options.append("-DNFAIR=3" if case.progress else "-DSAFETY")
    _run([COMPILER, *options, "-o", "pan", "pan.c"], directory)
    search = ["-a", "-f", "-N", "progress"] if case.progress else []
    text = _run(["./pan", f"-m{DEPTH}", "-w20", "-n", *search], directory)
    errors = re.search(r"errors: (\d+)", text)
    states = re.search(r"(\d[\d.e+]*) states, stored", text)
    assert errors and states, text
    cut = "Search not completed" in text or "max search depth too small" in text
    return Verdict(int(errors[1]), int(float(states[1])), not cut, text)


def cases(of: list[Case]) -> list[object]:
    """As parameters; the larger ones are marked `long`."""
    return [pytest.param(case, id=case.name, marks=() if case.quick else pytest.mark.long) for case in of]


@pytest.mark.parametrize("case", cases(SAFE + PROGRESS))
def test_holds(case: Case, tmp_path: Path) -> None:
    verdict = verify(case, tmp_path)
    assert verdict.errors == 0, verdict.text
    assert verdict.complete, verdict.text
    assert verdict.states > 1000, verdict.text


@pytest.mark.parametrize("case", cases(MUTANTS))
def test_mutant_is_caught(case: Case, tmp_path: Path) -> None:
    verdict = verify(case, tmp_path)
    assert verdict.errors == 1, verdict.text
    assert re.search("assertion violated|acceptance cycle", verdict.text), verdict.text


def test_each_mutant_has_a_case() -> None:
    sources = "".join(path.read_text() for path in MODEL.parent.glob("*.pml"))
    broken = set(re.findall(r"\bM_[A-Z_]+\b", sources))
    assert broken - {"M_"} == {case.mutant for case in MUTANTS}
