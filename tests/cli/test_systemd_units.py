"""The systemd units: systemd itself understands them, and what they run is what the programs take."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cli.program import build_parser

UNITS = Path(__file__).resolve().parents[2] / "configs" / "systemd"
NAMES = sorted(path.name for path in UNITS.glob("*.service"))


def test_readme_names_all_of_them() -> None:
    told = (UNITS / "README.md").read_text().replace("@NAME", "@")
    assert NAMES and all(name in told for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_systemd_understands_it(name: str, tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    for unit in UNITS.glob("*.service"):
        text = re.sub(r"/opt/segmap/\S+", "/bin/true", unit.read_text())
        (tmp_path / unit.name.replace("@.", "@x.")).write_text(text)
    unit_path = tmp_path / name.replace("@.", "@x.")
    answer = subprocess.run([program, "verify", unit_path], capture_output=True, text=True, check=False, timeout=60)
    complaints = [line for line in answer.stderr.splitlines() if str(tmp_path) in line or "segmap" in line]
    assert complaints == [], answer.stderr


@pytest.mark.parametrize("name", NAMES)
def test_our_program_takes_the_arguments(name: str) -> None:
    text = (UNITS / name).read_text().replace("\\\n", " ").replace("%i", "x")
    for line in re.findall(r"^ExecStart=/opt/segmap/\.venv/bin/segmap (.*)$", text, re.MULTILINE):
        args = build_parser(line.split()).parse_args(line.split())
        assert args.config == Path("/etc/segmap/cluster.yaml")
