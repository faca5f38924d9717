"""Who may do what: tokens, roles, peers of the Unix socket, rate limits, the audit log."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from cli.client import TOKEN_VARIABLE, Client
from cli.program import main
from controller.api import access
from controller.api.access import (
    BURST,
    CLIENTS_MAX,
    RATE_PER_S,
    ROLES,
    TOKENS_MAX,
    Access,
    TokenFileError,
    add_token,
    read_tokens,
    remove_token,
)
from controller.api.errors import ApiError
from controller.api.operations import BY_NAME, OPERATIONS
from controller.api.server import ApiServer
from tests.api.shelf import Shelf

NEEDED = {"vdisk.list": "view", "vdisk.create": "operate", "agent.fence": "admin", "audit.list": "admin"}


def refused(action: Any) -> str:
    with pytest.raises(ApiError) as caught:
        action()
    return caught.value.code


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_is_told_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    secret = add_token(path, "ops", "operate")
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    decides = Access(path)
    client = decides.identify(None, f"Bearer {secret}")
    assert (client.name, client.role) == ("token:ops", "operate")
    for wrong in (f"Bearer {secret}x", "Bearer ", f"Basic {secret}", secret):
        assert refused(lambda wrong=wrong: decides.identify(None, wrong)) == "unauthorized"
    with pytest.raises(TokenFileError, match="already"):
        add_token(path, "ops", "view")
    add_token(path, "eye", "view")
    remove_token(path, "ops")
    assert refused(lambda: decides.identify(None, f"Bearer {secret}")) == "unauthorized"
    assert [(token.name, token.role) for token in read_tokens(path)] == [("eye", "view")]
    with pytest.raises(TokenFileError, match="no token of"):
        remove_token(path, "ops")


@pytest.mark.parametrize("name", ["", "a b", "x" * 64, "-x"])
def test_bad_names_and_roles_make_no_token(tmp_path: Path, name: str) -> None:
    for arguments in ((name, "view"), ("good", "emperor")):
        with pytest.raises(TokenFileError):
            add_token(tmp_path / "tokens", *arguments)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "7",
        "[1]",
        '[{"name": "a"}]',
        '[{"name": "a", "role": "emperor", "sha256": "%s"}]' % ("0" * 64),
        '[{"name": "a", "role": "view", "sha256": "short"}]',
        json.dumps([{"name": "a", "role": "view", "sha256": "0" * 64}] * (TOKENS_MAX + 1)),
    ],
)
def test_a_damaged_token_file_lets_nobody_in(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    secret = add_token(path, "a", "admin")
    decides = Access(path)
    decides.identify(None, f"Bearer {secret}")
    path.write_text(text)
    assert refused(lambda: decides.identify(None, f"Bearer {secret}")) == "unauthorized"
    with pytest.raises(TokenFileError):
        read_tokens(path)


def test_a_token_file_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    secret = add_token(tmp_path / "tokens", "a", "admin")
    (tmp_path / "tokens").chmod(0o666)
    assert refused(lambda: Access(tmp_path / "tokens").identify(None, f"Bearer {secret}")) == "unauthorized"


def test_the_peer_of_a_unix_socket_is_known_and_one_of_tcp_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair()
    with one, other:
        client = Access().identify(one, "")
        assert (client.name, client.role) == (f"uid:{os.geteuid()}", "admin")
        monkeypatch.setattr(access.os, "geteuid", lambda: 4711)
        if os.getuid():
            assert refused(lambda: Access().identify(one, "")) == "unauthorized"
        assert refused(lambda: Access().identify(one, "Bearer x")) == "unauthorized"
    with socket.socket() as tcp:
        assert refused(lambda: Access().identify(tcp, "")) == "unauthorized"
    assert refused(lambda: Access().identify(None, "")) == "unauthorized"


# --- roles and rates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("operation", NEEDED)
def test_roles(role: str, operation: str) -> None:
    def ask() -> None:
        Access().admit(access.Client("c", role), BY_NAME[operation])

    if ROLES.index(role) >= ROLES.index(NEEDED[operation]):
        ask()
    else:
        assert refused(ask) == "forbidden"


def test_every_operation_has_a_role_and_nothing_that_changes_is_for_viewers() -> None:
    for operation in OPERATIONS:
        assert operation.role in ROLES
        assert not (operation.mutating and operation.role == "view")


def test_a_client_that_asks_too_often_is_refused_and_others_are_not() -> None:
    now = [100.0]
    decides = Access(now_s=lambda: now[0])
    eager, calm = access.Client("eager", "view"), access.Client("calm", "view")
    for _ in range(int(BURST)):
        decides.admit(eager, BY_NAME["vdisk.list"])
    assert refused(lambda: decides.admit(eager, BY_NAME["vdisk.list"])) == "limit"
    decides.admit(calm, BY_NAME["vdisk.list"])
    now[0] += 10.5 / RATE_PER_S
    for _ in range(10):
        decides.admit(eager, BY_NAME["vdisk.list"])
    assert refused(lambda: decides.admit(eager, BY_NAME["vdisk.list"])) == "limit"
    for number in range(CLIENTS_MAX + 1):
        decides.admit(access.Client(str(number), "view"), BY_NAME["vdisk.list"])
    assert len(decides._buckets) == CLIENTS_MAX


# --- over HTTP -------------------------------------------------------------------------------------------------------


def test_tokens_and_the_audit_log_over_http(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = runtime_dir / "tokens"
    audited: list[tuple[str, str, Any]] = []

    async def audit(actor: str, action: str, detail: dict[str, Any]) -> None:
        audited.append((actor, action, detail["outcome"]))

    def ask(client: Client) -> None:
        with pytest.raises(ApiError) as caught:
            client.call("vdisk.list")
        assert (caught.value.code, caught.value.status) == ("unauthorized", 401)
        monkeypatch.setenv(TOKEN_VARIABLE, add_token(path, "eye", "view"))
        assert client.call("vdisk.list") == {"vdisks": []}
        with pytest.raises(ApiError) as caught:
            client.call("vdisk.create", name="v", size_bytes=1)
        assert (caught.value.code, caught.value.status) == ("forbidden", 403)
        assert main(["vdisk", "list", "--api", "{}:{}".format(*client.address)]) == 0
        assert main(["vdisk", "delete", "v", "--api", "{}:{}".format(*client.address)]) == 9
        monkeypatch.setenv(TOKEN_VARIABLE, add_token(path, "ops", "operate"))
        client.call("vdisk.create", name="v", size_bytes=1)
        for _ in range(2):
            with pytest.raises(ApiError):
                client.call("vdisk.delete", name="w")

    async def work() -> None:
        api = ApiServer(Shelf().call, listen=("127.0.0.1", 0), access=Access(path), audit=audit)
        await api.start()
        try:
            await asyncio.to_thread(ask, Client(("127.0.0.1", api.port)))
        finally:
            await api.stop()

    asyncio.run(work())
    assert audited == [
        ("token:ops", "vdisk.create", "done"),
        ("token:ops", "vdisk.delete", "not_found"),
        ("token:ops", "vdisk.delete", "not_found"),
    ]


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--file", str(tmp_path / "tokens"), "--json"]
    assert main(["token", "add", "ops", "--role", "admin", *file]) == 0
    secret = json.loads(capsys.readouterr().out)["token"]
    assert Access(tmp_path / "tokens").identify(None, f"bearer {secret}").role == "admin"
    assert main(["token", "add", "ops", *file]) == 1
    capsys.readouterr()
    assert main(["token", "list", *file]) == 0
    assert json.loads(capsys.readouterr().out) == {"tokens": [{"name": "ops", "role": "admin"}]}
    assert main(["token", "remove", "ops", *file]) == 0
    assert main(["token", "remove", "ops", *file]) == 4
