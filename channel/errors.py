"""What can be wrong with a frame: the peer's fault (ProtocolError) or our own (FieldError)."""

from __future__ import annotations

from mapping.status import Status


class ProtocolError(Exception):
    """The peer sent what it must not send. `where` names the place, `why` the rule; the session ends."""

    def __init__(self, where: str, why: str, status: Status = Status.BAD_MESSAGE) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why
        self.status = status


class FieldError(ValueError):
    """A message of ours has a value that does not fit the wire; the text names message, field and rule."""
