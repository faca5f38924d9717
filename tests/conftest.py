"""What holds for every test run: a time budget per suite, a summary of the data planes, and nothing left behind.

``--budgets`` (what ``make test`` passes) fails the run when a suite takes longer than ci/budgets.toml allows. In every
run the end is checked: a process, a file descriptor or a thread that the tests started and did not end fails the run.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest

from ci.ledger import Ledger, data_plane_of, summary_lines


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budgets", action="store_true", help="fail when a suite takes longer than ci/budgets.toml says")


LEDGER = pytest.StashKey[Ledger]()


def pytest_configure(config: pytest.Config) -> None:
    ledger = Ledger(config.getoption("--budgets"))
    config.stash[LEDGER] = ledger
    config.pluginmanager.register(Recorder(ledger), "segmap-recorder")


class Recorder:
    """The hooks that feed the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def pytest_sessionstart(self) -> None:
        self.ledger.begin()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            plane = data_plane_of(item.nodeid, item.get_closest_marker("spdk") is not None)
            if plane:
                self.ledger.plane_of[item.nodeid] = plane

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ledger.add(report.nodeid, report.when, report.outcome, report.duration)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.ledger.end()
        if self.ledger.faults and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in summary_lines(self.ledger):
            terminalreporter.write_line(line)
        for fault in self.ledger.faults:
            terminalreporter.write_line(f"ERROR {fault}", red=True)


@pytest.fixture
def runtime_dir() -> Generator[Path, None, None]:
    """A short, private directory: Unix socket paths have 107 bytes, and tmp_path can be longer."""
    path = Path("/tmp") / f"segmap-{uuid.uuid4().hex[:12]}"
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
