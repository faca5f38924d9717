"""How a JSON-RPC call can fail: the three kinds that a caller must treat differently.

* :class:`RpcError`: the target answered and refused. The outcome is known; the code is SPDK's own.
* :class:`RpcNotExecuted`: the request never reached the target as a whole, so it had no effect.
* :class:`RpcOutcomeUnknown`: the request was sent and no answer that fits came back. The call may have had its effect,
  may have it later, or never. The connection has been closed: read back and reconcile.
"""

from __future__ import annotations

# JSON-RPC 2.0, section 5.1, and SPDK's own code for a call in the wrong state of the framework.
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
INVALID_STATE = -1


class RpcFailure(Exception):
    """Any failed call."""


class RpcError(RpcFailure):
    """The target refused: ``code`` is one of JSON-RPC's (negative, five digits) or ``-errno``."""

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(f"{method}: {message} (code {code})")
        self.method = method
        self.code = code
        self.message = message


class RpcNotExecuted(RpcFailure):
    """The target never had the whole request, so nothing happened."""


class RpcConnectError(RpcNotExecuted):
    """No connection to the target."""


class RpcQueueFull(RpcNotExecuted):
    """Too many calls wait for this connection already."""


class RpcExpired(RpcNotExecuted):
    """The call's time ran out before its request was sent."""


class RpcRequestTooLarge(RpcNotExecuted):
    """The request is longer, or has more values, than SPDK reads."""


class RpcClosed(RpcNotExecuted):
    """The client had been closed before the call."""


class RpcOutcomeUnknown(RpcFailure):
    """Sent, but not answered: whether the call had its effect is not known."""

    def __init__(self, method: str, reason: str) -> None:
        super().__init__(f"{method}: outcome unknown: {reason}")
        self.method = method
        self.reason = reason


class RpcTimeout(RpcOutcomeUnknown):
    """No answer within the call's time."""


class RpcProtocolError(RpcOutcomeUnknown):
    """What came back is no answer to this call: not JSON-RPC, another id, or a result of another shape."""
