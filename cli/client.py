"""The client of API v1, on the operation table: `Client(Path("api.sock")).call("vdisk.show", name="d")`.

Plain http.client over the Unix socket (or loopback TCP), so that a command starts fast. A mutating call gets a request
id of its own; when the answer is lost it is asked again with the same id, which cannot do the thing twice.
"""

from __future__ import annotations

import http.client
import json
import os
import socket as sockets
import urllib.parse
import uuid
from pathlib import Path
from typing import Any

from controller.api.errors import ApiError
from controller.api.operations import ANSWER_BYTES_MAX, BY_NAME, REQUEST_ID_HEADER, Operation

TIMEOUT_S = 45.0
TRIES_MAX = 3
TOKEN_VARIABLE = "SEGMAP_TOKEN"
"""A token for where the Unix socket is not our own."""


class UnreachableError(Exception):
    """No controller answers at that address."""


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection whose socket is a Unix one."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """One connection per call; ``address`` is a socket's path or (host, port)."""

    def __init__(self, address: Path | tuple[str, int], timeout_s: float = TIMEOUT_S) -> None:
        self.address = address
        self.timeout_s = timeout_s

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """The operation's result. ApiError: the controller refused; UnreachableError: it is not there."""
        row = BY_NAME[operation]
        request_id = uuid.uuid4().hex if row.mutating else ""
        for attempt in range(1, TRIES_MAX + 1):
            try:
                return self._ask(row, row.arguments(arguments), request_id)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                if attempt == TRIES_MAX:
                    raise UnreachableError(f"{self._where()} closes the connection") from None
            except TimeoutError:
                raise UnreachableError(f"{self._where()} does not answer within {self.timeout_s:g} s") from None
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise UnreachableError(f"{self._where()}: {reason}") from None
        raise AssertionError

    def _where(self) -> str:
        return str(self.address) if isinstance(self.address, Path) else "{}:{}".format(*self.address)

    def _connect(self) -> http.client.HTTPConnection:
        if isinstance(self.address, Path):
            return UnixConnection(self.address, self.timeout_s)
        return http.client.HTTPConnection(*self.address, timeout=self.timeout_s)

    def _ask(self, row: Operation, arguments: dict[str, Any], request_id: str) -> dict[str, Any]:
        connection = self._connect()
        try:
            url, body, headers = compose_request(row, arguments, request_id)
            connection.request(row.method, url, body, headers)
            response = connection.getresponse()
            text = response.read(ANSWER_BYTES_MAX + 1)
        finally:
            connection.close()
        return read_answer(response.status, text)


def compose_request(
    row: Operation, arguments: dict[str, Any], request_id: str
) -> tuple[str, bytes | None, dict[str, str]]:
    """URL, body and headers of a call."""
    rest = dict(arguments)
    quoted = {name: urllib.parse.quote(str(rest.pop(name)), safe="") for name in row.path_parameters}
    url = row.path.format(**quoted)
    headers = {REQUEST_ID_HEADER: request_id} if request_id else {}
    if token := os.environ.get(TOKEN_VARIABLE):
        headers["Authorization"] = f"Bearer {token}"
    if row.method == "POST":
        return url, json.dumps(rest).encode(), headers | {"Content-Type": "application/json"}
    query = {name: json.dumps(value) if not isinstance(value, str) else value for name, value in rest.items()}
    return url + ("?" + urllib.parse.urlencode(query) if query else ""), None, headers


def read_answer(status: int, text: bytes) -> dict[str, Any]:
    """The result, or the ApiError that the body describes."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ApiError("internal", f"the controller's answer (HTTP {status}) is not a JSON object")
    if status >= 400:
        raise ApiError(str(value.get("code")), str(value.get("message")), str(value.get("hint", "")))
    return value
