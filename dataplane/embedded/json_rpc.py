"""JSON-RPC 2.0 as SPDK's server speaks it: requests and batches out of documents, responses into bytes. Sans-I/O.

What is particular to SPDK: a request without id, or with id null, gets no response unless it fails; an id is given
back as it was written; a name that no request has, or that comes twice, makes the request invalid; a parse error ends
the connection without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from dataplane.embedded.json_stream import Members, Number

INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
INVALID_STATE: Final = -1
_REQUEST_NAMES: Final = frozenset({"jsonrpc", "method", "params", "id"})


class RpcError(Exception):
    """A method's refusal: JSON-RPC code (a negative errno, or one of the constants here) and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(slots=True)
class Call:
    """One request. `id_text` is its id as JSON, "" if there is none; `invalid` requests are only answered."""

    method: str = ""
    params: Any = None
    id_text: str = ""
    invalid: bool = False


@dataclass(slots=True)
class Batch:
    """Requests whose responses go out together, in the order in which they end."""

    calls: list[Call]
    left: int = 0
    responses: list[bytes] = field(default_factory=list)


def read_document(document: Any) -> Call | Batch:
    """The request or batch in a parsed document. What is neither is an invalid request."""
    if isinstance(document, list) and document:
        return Batch([_read_call(item) for item in document], len(document))
    return _read_call(document)


def _read_call(value: Any) -> Call:
    call = Call(invalid=True)
    if not isinstance(value, Members) or value.repeated or not value.keys() <= _REQUEST_NAMES:
        return call
    method = value.get("method")
    version = value.get("jsonrpc", "2.0")
    if not _is_text(method) or not _is_text(version) or version != "2.0":
        return call
    if "id" in value:
        identity = value["id"]
        if isinstance(identity, bool) or not (identity is None or isinstance(identity, int | str)):
            return call
        call.id_text = "" if identity is None else _id_text(identity)
    params = value.get("params")
    if params is not None and not isinstance(params, dict | list):
        return call
    call.method, call.params, call.invalid = str(method), params, False
    return call


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Number)


def _id_text(identity: int | str) -> str:
    return str(identity) if isinstance(identity, Number) else json.dumps(identity)


def result_bytes(call: Call, result: Any) -> bytes:
    """The response to a successful call; b"" if it wants none."""
    if not call.id_text:
        return b""
    text = json.dumps(result, separators=(",", ":"))
    return f'{{"jsonrpc":"2.0","id":{call.id_text},"result":{text}}}'.encode()


def error_bytes(call: Call, code: int, message: str) -> bytes:
    """The response to a failed call; it goes out even if the call has no id."""
    identity = call.id_text or "null"
    return f'{{"jsonrpc":"2.0","id":{identity},"error":{{"code":{code},"message":{json.dumps(message)}}}}}'.encode()


def batch_bytes(batch: Batch) -> Iterator[bytes]:
    """The bytes of a finished batch; none if nobody wants a response."""
    if batch.responses:
        yield b"[" + b",".join(batch.responses) + b"]\n"
