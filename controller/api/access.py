"""Who may do what at the API: authentication, roles, rate limits.

A client on the Unix socket is who its process belongs to: our own user, and root, are admins. Everybody else shows a
token. The token file holds names, roles and SHA-256 hashes, never tokens; it is read again when it changes, and a file
that cannot be understood lets nobody in. A role may do what those before it may: view, operate, admin.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controller.api.errors import ApiError
from controller.api.operations import NAME_PATTERN, Operation
from transport.whole_files import replace_whole

ROLES: Final = ("view", "operate", "admin")
TOKEN_BYTES: Final = 32
TOKENS_MAX: Final = 1000
FILE_BYTES_MAX: Final = 1 << 20
RATE_PER_S: Final = 500.0
BURST: Final = 1000.0
CLIENTS_MAX: Final = 1024
"""Buckets kept; the one that was used longest ago is forgotten."""
_CREDENTIALS: Final = struct.Struct("3i")


class TokenFileError(Exception):
    """The token file cannot be read or written; the text says why."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks."""

    name: str
    role: str


@dataclass(frozen=True, slots=True)
class Token:
    """One line of the token file."""

    name: str
    role: str
    sha256: str


def read_tokens(path: Path) -> list[Token]:
    """All tokens; none if there is no file. Raises TokenFileError."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o022:
                raise TokenFileError(f"{path}: others can write it; chmod 600 it")
            data = file.read(FILE_BYTES_MAX + 1)
        rows = json.loads(data) if len(data) <= FILE_BYTES_MAX else None
        if not isinstance(rows, list) or len(rows) > TOKENS_MAX:
            raise TokenFileError(f"{path}: no list of at most {TOKENS_MAX} tokens")
        return [_token(row) for row in rows]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TokenFileError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise TokenFileError(f"{path}: not a token file: {error}") from error


def _token(row: Any) -> Token:
    token = Token(row["name"], row["role"], row["sha256"])
    good = token.role in ROLES and re.fullmatch(NAME_PATTERN, token.name) and re.fullmatch("[0-9a-f]{64}", token.sha256)
    if not good:
        raise ValueError(f"a token of {str(token.name)[:80]!r} with role {str(token.role)[:20]!r}")
    return token


def add_token(path: Path, name: str, role: str) -> str:
    """Make a token, and write its hash; the token itself is told once, here. Raises TokenFileError."""
    tokens = read_tokens(path)
    if role not in ROLES or not re.fullmatch(NAME_PATTERN, name):
        raise TokenFileError(f"a token has a name of letters, digits, '.', '_', '-' and a role of {', '.join(ROLES)}")
    if any(token.name == name for token in tokens):
        raise TokenFileError(f"{path}: there is a token of {name} already; remove it first")
    secret = secrets.token_urlsafe(TOKEN_BYTES)
    _write(path, [*tokens, Token(name, role, hashlib.sha256(secret.encode()).hexdigest())])
    return secret


def remove_token(path: Path, name: str) -> None:
    """It is not accepted any more. Raises TokenFileError."""
    tokens = read_tokens(path)
    if all(token.name != name for token in tokens):
        raise TokenFileError(f"{path}: there is no token of {name}")
    _write(path, [token for token in tokens if token.name != name])


def _write(path: Path, tokens: list[Token]) -> None:
    rows = [{"name": token.name, "role": token.role, "sha256": token.sha256} for token in tokens]
    try:
        replace_whole(path, json.dumps(rows, indent=1).encode(), 0o600)
    except OSError as error:
        raise TokenFileError(f"{path}: {error.strerror}") from error


class Access:
    """Decides. `now_s` is a monotonic clock."""

    def __init__(self, tokens: Path | None = None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._path = tokens
        self._now_s = now_s
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: list[Token] = []
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def identify(self, sock: socket.socket | None, authorization: str) -> Client:
        """The client of a request. Raises ApiError (unauthorized)."""
        if authorization:
            return self._by_token(authorization)
        if sock is not None and sock.family == socket.AF_UNIX:
            _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid in (0, os.geteuid()):
                return Client(f"uid:{uid}", "admin")
        raise ApiError("unauthorized", "this client has to show a token", "`segmap token add` makes one")

    def _by_token(self, authorization: str) -> Client:
        kind, _, secret = authorization.partition(" ")
        shown = hashlib.sha256(secret.strip().encode()).hexdigest()
        found: Token | None = None
        for token in self._current() if kind.lower() == "bearer" else []:
            if hmac.compare_digest(token.sha256, shown):
                found = token
        if found is None:
            raise ApiError("unauthorized", "the token is not known here", "`segmap token add` makes one")
        return Client(f"token:{found.name}", found.role)

    def _current(self) -> list[Token]:
        """The tokens of the file as it is now. Raises ApiError."""
        if self._path is None:
            return []
        try:
            facts = self._path.stat()
            stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        except OSError:
            self._stamp, self._tokens = None, []
            return []
        if stamp != self._stamp:
            self._tokens = []
            try:
                self._tokens = read_tokens(self._path)
            except TokenFileError as error:
                raise ApiError("unauthorized", "the token file cannot be used", str(error)) from error
            self._stamp = stamp
        return self._tokens

    def admit(self, client: Client, operation: Operation) -> None:
        """Raises ApiError: forbidden to this role, or asked too often."""
        if ROLES.index(client.role) < ROLES.index(operation.role):
            text = f"{operation.name} needs the role {operation.role}, {client.name} has {client.role}"
            raise ApiError("forbidden", text)
        now_s = self._now_s()
        left, at_s = self._buckets.pop(client.name, (BURST, now_s))
        left = min(BURST, left + (now_s - at_s) * RATE_PER_S)
        self._buckets[client.name] = (left - 1 if left >= 1 else left, now_s)
        if len(self._buckets) > CLIENTS_MAX:
            self._buckets.popitem(last=False)
        if left < 1:
            raise ApiError("limit", f"{client.name} asks more than {RATE_PER_S:.0f} times a second", "ask less often")
