"""The authority: who gets which name, what is never overwritten, modes, expiry."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest

from tests.transport.conftest import shifted
from transport import pki
from transport.pki import PkiError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_and_issue(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "pki"
    authority = pki.init(directory, cluster="c")
    assert authority == directory / "ca.pem" and mode(directory / "ca.key") == 0o600 and mode(directory) == 0o700
    assert pki.inspect(authority).identity == ""
    for name, role, uri, stem in (
        ("", "controller", "segmap:controller", "controller"),
        ("host-1.a", "agent", "segmap:agent:host-1.a", "agent-host-1.a"),
    ):
        files = pki.issue(directory, name, role)
        assert files == pki.files(directory, name, role)
        assert files.key.name == f"{stem}.key" and mode(files.key) == 0o600 and mode(files.certificate) == 0o644
        info = pki.inspect(files.certificate)
        assert info.identity == uri == pki.identity(name, role)
        assert 824 < info.days_left(pki.utc_now()) <= 825
        assert info.not_before < pki.utc_now()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    pki.init(tmp_path)
    files = pki.issue(tmp_path, "a", "agent")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(PkiError, match="exists already"):
        pki.init(tmp_path)
    with pytest.raises(PkiError, match="rotate"):
        pki.issue(tmp_path, "a", "agent")
    files.certificate.unlink()
    with pytest.raises(PkiError, match=r"agent-a\.key"):
        pki.issue(tmp_path, "a", "agent")
    del before["agent-a.pem"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_rotate_replaces_what_is_there(tmp_path: Path) -> None:
    pki.init(tmp_path)
    with pytest.raises(PkiError, match="issue"):
        pki.rotate(tmp_path, "a", "agent")
    files = pki.issue(tmp_path, "a", "agent")
    old_key, old = files.key.read_bytes(), pki.inspect(files.certificate)
    (tmp_path / "agent-a.key.new").write_bytes(b"left by a crash")
    assert pki.rotate(tmp_path, "a", "agent", days=10) == files
    new = pki.inspect(files.certificate)
    assert files.key.read_bytes() != old_key and mode(files.key) == 0o600
    assert new.serial != old.serial and new.identity == old.identity and new.days_left(pki.utc_now()) < 11
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a:b", "a" * 64, "ä", "a\n", "../a"])
def test_bad_agent_names(tmp_path: Path, name: str) -> None:
    pki.init(tmp_path)
    with pytest.raises(PkiError, match="agent name"):
        pki.issue(tmp_path, name, "agent")


def test_bad_roles_and_missing_or_broken_files(tmp_path: Path) -> None:
    with pytest.raises(PkiError, match="one of controller, agent"):
        pki.issue(tmp_path, "a", "root")
    with pytest.raises(PkiError, match="init"):
        pki.issue(tmp_path, "a", "agent")
    pki.init(tmp_path)
    pki.init(tmp_path / "other")
    key = (tmp_path / "ca.key").read_bytes()
    (tmp_path / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(PkiError, match="do not belong together"):
        pki.issue(tmp_path, "a", "agent")
    (tmp_path / "ca.key").write_bytes(b"no key")
    with pytest.raises(PkiError, match="no PEM private key"):
        pki.issue(tmp_path, "a", "agent")
    (tmp_path / "ca.key").write_bytes(key)
    (tmp_path / "ca.pem").write_bytes(b"no certificate")
    with pytest.raises(PkiError, match="no PEM certificate"):
        pki.inspect(tmp_path / "ca.pem")
    assert not list(tmp_path.glob("agent-*"))


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    authority = pki.init(tmp_path, days=30)
    info = pki.inspect(pki.issue(tmp_path, "a", "agent").certificate)
    assert info.not_after <= pki.inspect(authority).not_after
    with pytest.raises(PkiError, match="has expired"):
        pki.issue(tmp_path, "b", "agent", now=shifted(40))
    assert info.days_left(pki.utc_now() + timedelta(days=40)) < 0
