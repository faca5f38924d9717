"""The HTTP server of API v1: an aiohttp shell around the operation table.

It listens on a Unix socket of mode 0600, and on a loopback TCP address if told to. Who asks is found out by `Access`;
every call that changes something is in the audit log before it is answered. Every answer is JSON; errors are
`{code, message, hint}`. Limits: BODY_BYTES_MAX a request, REQUESTS_MAX at once. A mutating call must carry the header
`Request-Id`: the same id again gets the first result, so that a client may repeat a call whose answer it lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket as sockets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from controller.api.access import Access
from controller.api.errors import ApiError
from controller.api.operations import (
    BODY_BYTES_MAX,
    OPERATIONS,
    REQUEST_ID_HEADER,
    REQUEST_ID_PATTERN,
    Operation,
)

REQUESTS_MAX = 64
STOP_TIMEOUT_S = 2.0
LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")

Call = Callable[[str, dict[str, Any], str], Awaitable[dict[str, Any]]]
Audit = Callable[[str, str, dict[str, Any]], Awaitable[None]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger("segmap.api")
peer_log = logging.getLogger("segmap.api.peer")


def is_ours(record: logging.LogRecord) -> bool:
    """False for what a peer got wrong, or did not wait for: it can't be let fill our log with tracebacks."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError | ConnectionError)


peer_log.addFilter(is_ours)


class ApiServer:
    """Serves ``call(operation, arguments, request id)``, which returns a JSON object or raises ApiError."""

    def __init__(
        self,
        call: Call,
        socket: Path | None = None,
        listen: tuple[str, int] | None = None,
        access: Access | None = None,
        audit: Audit | None = None,
    ) -> None:
        if listen and listen[0] not in LOOPBACK_HOSTS:
            raise ValueError(f"the API has no TLS: {listen[0]} is not a loopback address")
        self._call = call
        self._access = access or Access()
        self._audit = audit
        self._socket = socket
        self._listen = listen
        self._running = 0
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        """Binds and serves; OSError when an address is taken."""
        application = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._answer_errors])
        for operation in OPERATIONS:
            application.router.add_route(operation.method, operation.path, self._handler(operation))
        self._runner = web.AppRunner(
            application,
            access_log=None,
            logger=peer_log,
            shutdown_timeout=STOP_TIMEOUT_S,
            handle_signals=False,
            keepalive_timeout=30,
        )
        await self._runner.setup()
        if self._socket:
            await web.SockSite(self._runner, bind_private(self._socket)).start()
        if self._listen:
            site = web.TCPSite(self._runner, *self._listen)
            await site.start()
            self.port = int(self._runner.addresses[-1][1])

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None
            if self._socket:
                self._socket.unlink(missing_ok=True)

    def _handler(self, operation: Operation) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            sock = request.transport.get_extra_info("socket") if request.transport is not None else None
            client = self._access.identify(sock, request.headers.get("Authorization", ""))
            self._access.admit(client, operation)
            request_id = read_request_id(request, operation)
            arguments = await read_arguments(request, operation)
            if not operation.mutating or self._audit is None:
                return web.json_response(await self._call(operation.name, arguments, request_id))
            detail: dict[str, Any] = {"arguments": arguments, "request_id": request_id, "outcome": "internal"}
            try:
                result = await self._call(operation.name, arguments, request_id)
                detail["outcome"] = "done"
                if "assumed" in result:
                    detail["assumed"] = result["assumed"]
            except ApiError as error:
                detail["outcome"] = error.code
                raise
            finally:
                await self._audit(client.name, operation.name, detail)
            return web.json_response(result)

        return handle

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._running >= REQUESTS_MAX:
            return error_response(ApiError("limit", f"more than {REQUESTS_MAX} requests at once", "try again"))
        self._running += 1
        try:
            check_host(request)
            return await handler(request)
        except ApiError as error:
            return error_response(error)
        except web.HTTPRequestEntityTooLarge:
            return error_response(ApiError("bad_argument", f"the body has more than {BODY_BYTES_MAX} bytes"), 413)
        except web.HTTPException as error:
            return error_response(no_such_route(request, error.status), error.status)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return error_response(ApiError("internal", "a defect of segmap", "see the controller's log"))
        finally:
            self._running -= 1


def bind_private(path: Path) -> sockets.socket:
    """A bound Unix socket that only we may open. A socket nobody listens on is a leftover and is replaced."""
    if len(os.fsencode(path)) > 107:
        raise OSError(f"the API socket's path has more than 107 bytes: {path}")
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        if path.is_socket():
            if someone_listens(path):
                raise OSError(f"another controller serves {path}")
            path.unlink()
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
    except BaseException:
        listener.close()
        raise
    return listener


def someone_listens(path: Path) -> bool:
    with contextlib.closing(sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


def check_host(request: web.Request) -> None:
    """On TCP only loopback names are served: a page that rebinds its own name to loopback gets nothing."""
    transport = request.transport
    if transport is None or transport.get_extra_info("sockname") in (None, "") or request.remote in (None, ""):
        return
    host = request.host.rsplit(":", 1)[0].strip("[]")
    if host not in LOOPBACK_HOSTS:
        raise ApiError("bad_argument", f"Host {host[:80]!r} is not a loopback name", "ask 127.0.0.1 or localhost")


def read_request_id(request: web.Request, operation: Operation) -> str:
    if not operation.mutating:
        return ""
    request_id = request.headers.get(REQUEST_ID_HEADER, "")
    if not re.fullmatch(REQUEST_ID_PATTERN, request_id):
        hint = "1 to 64 letters, digits, '.', '_', ':' or '-'; a new one for each thing you want done"
        raise ApiError("bad_argument", f"{operation.name} needs the header {REQUEST_ID_HEADER}", hint)
    return request_id


async def read_arguments(request: web.Request, operation: Operation) -> dict[str, Any]:
    """Path, query (GET, DELETE) and body (POST), checked against the operation's row."""
    given: dict[str, Any] = dict(request.match_info)
    textual = set(given)
    for key in request.query:
        if len(request.query.getall(key)) > 1 or key in given or request.method == "POST":
            raise ApiError("bad_argument", f"{key[:80]!r} is given twice, or belongs into the body")
        given[key] = request.query[key]
        textual.add(key)
    if request.method == "POST":
        for key, value in (await read_body(request)).items():
            if key in given:
                raise ApiError("bad_argument", f"{key[:80]!r} is already in the path")
            given[key] = value
    return operation.arguments(given, frozenset(textual))


async def read_body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a POST; an empty body is an empty object."""
    body = await request.read()
    if not body:
        return {}
    if request.content_type != "application/json":
        raise ApiError("bad_argument", "the body must be JSON", "send Content-Type: application/json")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError("bad_argument", "the body is not valid JSON") from None
    if not isinstance(value, dict):
        raise ApiError("bad_argument", "the body must be a JSON object")
    return value


def no_such_route(request: web.Request, status: int) -> ApiError:
    if status == 404:
        return ApiError("unknown_operation", f"no operation at {request.path[:120]}", "docs/api.md lists all of them")
    if status == 405:
        return ApiError("unknown_operation", f"{request.path[:120]} does not take {request.method[:16]}")
    return ApiError("bad_argument", f"HTTP status {status}")


def error_response(error: ApiError, status: int | None = None) -> web.Response:
    return web.json_response(error.body(), status=status or error.status)
