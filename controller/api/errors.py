"""What an operation answers when it cannot be done: a code for programs, a message and a hint for people."""

from __future__ import annotations

HTTP_STATUS: dict[str, int] = {
    "bad_argument": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "unknown_operation": 404,
    "exists": 409,
    "busy": 409,
    "foreign_data": 409,
    "limit": 429,
    "internal": 500,
    "refused": 502,
    "unavailable": 503,
    "deposed": 503,
    "timeout": 504,
    "no_space": 507,
}

MEANING: dict[str, str] = {
    "bad_argument": "a parameter is missing, unknown or out of range; or a request id was used for something else",
    "unauthorized": "no token, or one that is not known",
    "forbidden": "the token's role may not do this",
    "not_found": "nothing has that name",
    "unknown_operation": "no such operation",
    "exists": "something else has that name already",
    "busy": "it is in use: presented, being changed, or being deleted",
    "foreign_data": "the container carries data that is not ours (force writes over it)",
    "limit": "too many requests at once; try again",
    "internal": "a defect of segmap: the controller's log has the details",
    "refused": "an agent refused; the message says why",
    "unavailable": "an agent or exporter that is needed is not connected",
    "deposed": "this controller no longer reigns",
    "timeout": "not done in time; it may still happen: ask again with the same request id",
    "no_space": "the containers have no free segment left",
}


class ApiError(Exception):
    """`code` is a key of HTTP_STATUS; `message` says what happened, `hint` what to do about it (may be empty)."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code if code in HTTP_STATUS else "internal"
        self.message = message
        self.hint = hint

    @property
    def status(self) -> int:
        return HTTP_STATUS[self.code]

    def body(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message, "hint": self.hint}
