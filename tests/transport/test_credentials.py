"""Certificates that change, expire and are revoked, on an injected clock."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.transport.conftest import shifted
from transport import pki, revocation
from transport.credentials import ALARM_DAYS, WARNING_DAYS, Credentials, expiry
from transport.pki import PkiError
from transport.revocation import Issued, RevocationError
from transport.tls import TlsContext, TlsError, TlsLayer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    pki.init(tmp_path)
    for name in ("a", "b"):
        pki.issue(tmp_path, name, "agent")
    pki.issue(tmp_path, "", "controller")
    return tmp_path


def server(directory: Path, now: pki.Now = pki.utc_now) -> Credentials:
    make: Callable[[Path, Path, Path], TlsContext] = TlsContext.server
    return Credentials(pki.files(directory, "", "controller"), make, now)


def client(directory: Path, name: str = "a") -> Credentials:
    return Credentials(pki.files(directory, name, "agent"), TlsContext.client)


def meet(left: TlsContext, right: TlsContext) -> tuple[TlsLayer, TlsLayer]:
    """A handshake; raises TlsError."""
    ends = TlsLayer(left), TlsLayer(right)
    for _ in range(4):
        for one, other in (ends, ends[::-1]):
            one.handshake()
            other.receive_ciphertext(one.data_to_send())
    return ends


# --- changes ---------------------------------------------------------------------------------------------------------


def test_new_files_are_loaded_and_the_old_context_still_works(directory: Path) -> None:
    credentials = server(directory)
    old = credentials.context
    assert not credentials.refresh()
    before = meet(client(directory).context, old)[0].serial
    pki.rotate(directory, "", "controller")
    assert credentials.refresh()
    assert credentials.context is not old
    assert meet(client(directory).context, credentials.context)[0].serial != before
    assert meet(client(directory).context, old)[0].serial == before
    assert not credentials.refresh()
    assert credentials.refresh(force=True)


def test_files_that_do_not_belong_together_are_not_used_until_they_do(directory: Path) -> None:
    credentials = server(directory)
    old = credentials.context
    files = pki.files(directory, "", "controller")
    key = files.key.read_bytes()
    files.key.write_bytes(pki.files(directory, "a", "agent").key.read_bytes())
    assert not credentials.refresh()
    assert credentials.context is old
    assert "make them with" in credentials.problem
    files.key.write_bytes(key)
    assert credentials.refresh()
    assert credentials.problem == ""
    files.certificate.unlink()
    assert not credentials.refresh()
    assert credentials.problem


# --- expiry ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "severity", "word"),
    [
        (WARNING_DAYS + 1, None, ""),
        (WARNING_DAYS - 1, "warning", "in 28 days"),
        (ALARM_DAYS + 1, "warning", "in 7 days"),
        (ALARM_DAYS - 1, "alarm", "in 5 days"),
        (-1, "alarm", "has EXPIRED"),
    ],
)
def test_expiry_is_said_before(days: int, severity: str | None, word: str) -> None:
    now = pki.utc_now()
    found = expiry("segmap:agent:a", now + timedelta(days=days, minutes=-1), now)
    if severity is None:
        assert found is None
    else:
        assert found is not None
        assert (found.severity, found.subject) == (severity, "segmap:agent:a")
        assert word in found.text


def test_ones_own_certificate_and_the_authoritys_are_watched(directory: Path) -> None:
    assert server(directory).expiries() == []
    assert [item.subject for item in server(directory, shifted(800)).expiries()] == ["segmap:controller"]
    late = server(directory, shifted(3649)).expiries()
    assert [(item.subject, item.severity) for item in late] == [
        ("segmap:controller", "alarm"),
        ("the authority", "alarm"),
    ]


# --- revocation ------------------------------------------------------------------------------------------------------


def test_a_revoked_certificate_is_refused_and_a_new_one_is_not(directory: Path) -> None:
    credentials = server(directory)
    _, ours = meet(client(directory).context, credentials.context)
    assert ours.not_after_s > pki.utc_now().timestamp()
    revoked = pki.revoke(directory, "a", "agent")
    assert [item.serial for item in revoked] == [ours.serial]
    assert pki.revoke(directory, "a", "agent") == ()
    assert credentials.refresh()
    assert credentials.revoked == {ours.serial}
    with pytest.raises(TlsError, match="is revoked"):
        meet(client(directory).context, credentials.context)
    meet(client(directory, "b").context, credentials.context)
    pki.rotate(directory, "a", "agent")
    meet(client(directory).context, credentials.context)


def test_a_revoked_controller_is_refused_by_agents(directory: Path) -> None:
    context = server(directory).context
    pki.revoke(directory, "", "controller")
    with pytest.raises(TlsError, match="is revoked"):
        meet(client(directory).context, context)


def test_after_a_rotation_the_old_ones_alone_can_be_revoked(directory: Path) -> None:
    pki.rotate(directory, "a", "agent")
    assert len(pki.revoke(directory, "a", "agent", old=True)) == 1
    meet(client(directory).context, server(directory).context)
    states = {path.name: revoked for path, (_, revoked) in pki.show(directory).items()}
    assert states == {"agent-a.pem": False, "agent-b.pem": False, "ca.pem": False, "controller.pem": False}
    assert len(pki.revoke(directory, "a", "agent")) == 1
    assert pki.show(directory)[directory / "agent-a.pem"][1]


def test_a_list_that_is_damaged_is_never_an_empty_one(directory: Path) -> None:
    credentials = server(directory)
    path = directory / revocation.REVOKED
    for text in ("{", "{}x", '[{"serial": "zz"}]', "[1]", "7"):
        path.write_text(text)
        with pytest.raises(RevocationError):
            revocation.serials(path)
        assert not credentials.refresh()
        assert "no list of certificates" in credentials.problem
        with pytest.raises(RevocationError):
            server(directory)
        with pytest.raises(PkiError):
            pki.show(directory)
    with path.open("wb") as file:
        os.truncate(file.fileno(), revocation.FILE_BYTES_MAX + 1)
    with pytest.raises(RevocationError, match="more than"):
        revocation.serials(path)


def test_what_was_not_issued_here_cannot_be_revoked_and_expired_entries_go(tmp_path: Path) -> None:
    with pytest.raises(RevocationError, match="no valid certificate"):
        revocation.revoke(tmp_path, "segmap:agent:a", 0.0)
    pki.init(tmp_path)
    with pytest.raises(PkiError):
        pki.revoke(tmp_path, "nobody", "agent")
    for serial, until in ((1, 100.0), (2, 300.0)):
        revocation.record(tmp_path, Issued(serial, "segmap:agent:a", until), 0.0)
    assert [item.serial for item in revocation.revoke(tmp_path, "segmap:agent:a", 50.0)] == [1, 2]
    revocation.record(tmp_path, Issued(3, "segmap:agent:a", 900.0), 200.0)
    assert [item.serial for item in revocation.revoke(tmp_path, "segmap:agent:a", 200.0)] == [3]
    assert revocation.serials(tmp_path / revocation.REVOKED) == {2, 3}
    assert json.loads((tmp_path / revocation.REVOKED).read_text())[0]["serial"] == "2"
