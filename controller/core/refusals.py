"""Why an operation cannot be done: a code for programs, a text and a hint for people."""

from __future__ import annotations


class Refusal(Exception):
    """Codes: bad_argument, not_found, exists, busy, no_space, foreign_data, unavailable, refused, timeout,
    unknown_operation, deposed, limit, internal."""

    def __init__(self, code: str, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.hint = hint
