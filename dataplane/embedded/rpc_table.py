"""The method table: one row says a method's name, parameters, states and refusals, and who handles it.

It drives dispatch, `rpc_get_methods` and the decoding of parameters. A handler takes the target and the decoded
parameters, and returns the result (or an awaitable of it); it raises RpcError, or BdevError with a negative errno.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dataplane.embedded.bdev import BdevError
from dataplane.embedded.json_rpc import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    INVALID_STATE,
    METHOD_NOT_FOUND,
    Call,
    RpcError,
)
from dataplane.embedded.parameters import BadParameter, Parameter, decode_object

if TYPE_CHECKING:
    from dataplane.embedded.target import Target

STARTUP: Final = 1
RUNTIME: Final = 2
ALWAYS: Final = STARTUP | RUNTIME

Parameters = dict[str, Any]
Handler = Callable[["Target", Parameters], Any]
DECODE_FAILED: Final = (INTERNAL_ERROR, "spdk_json_decode_object failed")
INVALID: Final = (INVALID_PARAMS, "Invalid parameters")
_TOO_LATE: Final = (
    "Method may only be called before framework is initialized. Use --wait-for-rpc command line parameter and then "
    "issue this RPC before the framework_start_init RPC."
)
_TOO_EARLY: Final = "Method may only be called after framework is initialized using framework_start_init RPC."


@dataclass(frozen=True, slots=True)
class Method:
    """A row. `refusal`: code and message when the parameters do not decode; `bare`: params may be absent;
    `relaxed`: unknown names are ignored; `deaf`: params are not looked at.
    """

    name: str
    handler: Handler
    table: tuple[Parameter, ...]
    states: int
    refusal: tuple[int, str]
    bare: bool
    relaxed: bool
    deaf: bool = False

    def decode(self, params: Any) -> Parameters:
        """The decoded parameters. Raises RpcError as the row says."""
        if self.deaf or (params is None and self.bare):
            return {parameter.name: parameter.default for parameter in self.table}
        try:
            return decode_object(params, self.table, self.relaxed)
        except BadParameter:
            raise RpcError(*self.refusal) from None


class MethodTable:
    """Rows by name, in the order of their declaration."""

    def __init__(self) -> None:
        self.rows: dict[str, Method] = {}

    def method(
        self,
        name: str,
        *table: Parameter,
        refusal: tuple[int, str] = DECODE_FAILED,
        states: int = RUNTIME,
        bare: bool = False,
        relaxed: bool = False,
        deaf: bool = False,
    ) -> Callable[[Handler], Handler]:
        """Declare the decorated function as the handler of `name`."""

        def declare(handler: Handler) -> Handler:
            assert name not in self.rows, name
            self.rows[name] = Method(name, handler, table, states, refusal, bare, relaxed, deaf)
            return handler

        return declare

    def plain(self, name: str, refusal: str, states: int = RUNTIME) -> Callable[[Handler], Handler]:
        """Declare a method that takes no parameters, not even an empty object."""

        return self.method(name, refusal=(INVALID_PARAMS, refusal), states=states, bare=True)

    def names(self, state: int | None = None) -> list[str]:
        """All methods, or those that `state` allows."""
        return [row.name for row in self.rows.values() if state is None or row.states & state]

    async def call(self, target: Target, call: Call) -> Any:
        """The result of one request. Raises RpcError."""
        if call.invalid:
            raise RpcError(INVALID_REQUEST, "Invalid request")
        row = self.rows.get(call.method)
        if row is None:
            raise RpcError(METHOD_NOT_FOUND, "Method not found")
        if not row.states & target.state:
            raise RpcError(INVALID_STATE, _TOO_EARLY if target.state == STARTUP else _TOO_LATE)
        if not row.table and row.bare and not row.deaf and call.params is not None:
            raise RpcError(*row.refusal)
        try:
            result = row.handler(target, row.decode(call.params))
            return await _resolved(result) if inspect.isawaitable(result) else result
        except BdevError as error:
            raise RpcError(-error.errno, error.message or os.strerror(error.errno)) from None


async def _resolved(result: Awaitable[Any]) -> Any:
    return await result


def merge(tables: Sequence[MethodTable]) -> MethodTable:
    """One table of several; no name may come twice."""
    merged = MethodTable()
    for table in tables:
        assert not merged.rows.keys() & table.rows.keys()
        merged.rows.update(table.rows)
    return merged
