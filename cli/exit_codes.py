"""What the `segmap` command's exit status means. docs/cli.md lists them from here."""

from __future__ import annotations

from enum import IntEnum

from controller.api.errors import ApiError


class ExitCode(IntEnum):
    """One number for each kind of outcome that a script may want to tell apart."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    CONFLICT = 5
    NO_SPACE = 6
    TIMEOUT = 7
    DIFFERENT = 8
    FORBIDDEN = 9
    INTERNAL = 70
    INTERRUPTED = 130


MEANING: dict[ExitCode, str] = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "it could not be done; the message says why",
    ExitCode.USAGE: "wrong arguments, or a configuration with mistakes",
    ExitCode.UNREACHABLE: "the controller, an agent or a target is not there",
    ExitCode.NOT_FOUND: "nothing has that name",
    ExitCode.CONFLICT: "it exists already, is in use, or holds foreign data",
    ExitCode.NO_SPACE: "no free segment, or the destination is too small",
    ExitCode.TIMEOUT: "not done in time; it may still happen",
    ExitCode.DIFFERENT: "data or a check is not as it should be (`io copy --verify`, `demo`)",
    ExitCode.FORBIDDEN: "the API does not know us, or our role may not do it",
    ExitCode.INTERNAL: "a defect of segmap",
    ExitCode.INTERRUPTED: "interrupted from the keyboard",
}

OF_API_CODE: dict[str, ExitCode] = {
    "bad_argument": ExitCode.USAGE,
    "unauthorized": ExitCode.FORBIDDEN,
    "forbidden": ExitCode.FORBIDDEN,
    "unknown_operation": ExitCode.USAGE,
    "not_found": ExitCode.NOT_FOUND,
    "exists": ExitCode.CONFLICT,
    "busy": ExitCode.CONFLICT,
    "foreign_data": ExitCode.CONFLICT,
    "no_space": ExitCode.NO_SPACE,
    "timeout": ExitCode.TIMEOUT,
    "unavailable": ExitCode.UNREACHABLE,
    "deposed": ExitCode.UNREACHABLE,
}


def of_api_error(error: ApiError) -> ExitCode:
    return OF_API_CODE.get(error.code, ExitCode.FAILED)
