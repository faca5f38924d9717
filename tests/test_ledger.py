"""The ledger of a test run notices what it is there for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ci import ledger
from ci.ledger import Ledger


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger of its own run, begun now."""
    monkeypatch.setenv(ledger.RUN_VARIABLE, "")
    begun = Ledger(budgets=False)
    begun.begin()
    return begun


@pytest.mark.parametrize(
    ("nodeid", "suite"),
    [
        ("tests/agent/test_x.py::test_y", "agent"),
        ("tests/fabric/nvme_tcp/test_x.py::test_y[1]", "fabric"),
        ("tests/test_tidy.py::test_y", "test_tidy"),
    ],
)
def test_suites(nodeid: str, suite: str) -> None:
    assert ledger.suite_of(nodeid) == suite


def test_a_clean_run_has_no_fault(fresh: Ledger) -> None:
    fresh.end()
    assert fresh.faults == []


def test_an_open_descriptor_is_a_fault(fresh: Ledger, tmp_path: Path) -> None:
    with (tmp_path / "left").open("w"):
        fresh.end()
    assert [fault.split(": ")[0] for fault in fresh.faults] == ["left open"]


def test_a_running_process_is_a_fault(fresh: Ledger) -> None:
    words = [sys.executable, "-c", "print(1, flush=True); import sys; sys.stdin.read()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdin
        process.stdout.readline()
        assert any(
            f"process {process.pid}:" in line for line in ledger.processes_of_run(os.environ[ledger.RUN_VARIABLE])
        )
        process.stdin.close()
    fresh.end()
    assert not any("process" in fault for fault in fresh.faults)


def test_a_running_thread_is_a_fault(fresh: Ledger) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="stray")
    thread.start()
    fresh.end()
    stop.set()
    thread.join()
    assert fresh.faults == ["left running: thread stray"]


def test_budgets() -> None:
    budgets = {"*": 5.0, "agent": 10.0, "total": 20.0}
    assert ledger.over_budget({"agent": 10.0, "x": 5.0}, 20.0, budgets) == []
    assert len(ledger.over_budget({"agent": 10.1, "x": 5.1}, 20.1, budgets)) == 3


def test_the_file_of_budgets_is_read_and_keeps_the_total() -> None:
    budgets = ledger.read_budgets()
    assert budgets["total"] == 540
    suites = {path.name for path in (ledger.TOP / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    named = budgets.keys() - {"*", "total"}
    assert named <= suites | {path.stem for path in (ledger.TOP / "tests").glob("test_*.py")}


def test_the_summary_tells_suites_and_data_planes() -> None:
    run = Ledger(budgets=False)
    run.plane_of = {
        "tests/contract/test_x.py::test_a[embedded]": "embedded",
        "tests/contract/test_x.py::test_a[spdk]": "SPDK",
    }
    run.add("tests/contract/test_x.py::test_a[embedded]", "setup", "passed", 0.5)
    run.add("tests/contract/test_x.py::test_a[embedded]", "call", "passed", 1.0)
    run.add("tests/contract/test_x.py::test_a[spdk]", "setup", "skipped", 0.0)
    text = "\n".join(ledger.summary_lines(run))
    assert "1.5 s of" in text
    assert "embedded: 1 passed" in text
    assert "SPDK: 1 skipped" in text
    assert ledger.data_plane_of("tests/mapping/test_x.py::test_a", needs_spdk=False) is None
    assert ledger.data_plane_of("tests/mapping/test_x.py::test_a", needs_spdk=True) == "SPDK"
