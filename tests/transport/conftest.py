"""Certificates for the tests of this directory: made once, they cost a few milliseconds each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from transport import pki
from transport.tls import TlsContext


@dataclass(frozen=True)
class Authority:
    """Two authorities' files: ours, a stranger's, and what can be wrong with ours."""

    directory: Path
    controller: pki.Files
    agent: pki.Files
    expired: pki.Files
    early: pki.Files
    stranger: pki.Files

    def server(self, files: pki.Files | None = None, roles: tuple[str, ...] = ("agent",)) -> TlsContext:
        files = files or self.controller
        return TlsContext.server(files.ca, files.certificate, files.key, roles)

    def client(self, files: pki.Files | None = None, expect: str = "segmap:controller") -> TlsContext:
        files = files or self.agent
        return TlsContext.client(files.ca, files.certificate, files.key, expect)


def shifted(days: int) -> Callable[[], datetime]:
    """A clock that is off."""
    return lambda: pki.utc_now() + timedelta(days=days)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    directory = tmp_path_factory.mktemp("pki")
    ours, theirs = directory / "ours", directory / "theirs"
    pki.init(ours, now=shifted(-100))
    pki.init(theirs)
    return Authority(
        ours,
        pki.issue(ours, "", "controller"),
        pki.issue(ours, "a", "agent"),
        pki.issue(ours, "old", "agent", now=shifted(-50), days=10),
        pki.issue(ours, "young", "agent", now=shifted(50)),
        pki.issue(theirs, "a", "agent"),
    )
