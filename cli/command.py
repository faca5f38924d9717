"""One row of the command table: its words, what it is for, its arguments, what runs it.

The argument parser, `segmap help` and docs/cli.md are made from these rows. A command gets a Context and returns an
exit code; what goes wrong is raised as CommandError, ApiError, UnreachableError or ConfigError, and becomes one line.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.client import Client
from cli.config.schema import BadValueError, parse_address
from cli.exit_codes import ExitCode
from cli.output import Output

API_VARIABLE = "SEGMAP_API"
DEFAULT_API = "segmap-run/api.sock"


class CommandError(Exception):
    """What a command cannot do: the message says why and what to do; ``code`` is the exit status."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its flags (or name), and what argparse's add_argument takes."""

    flags: tuple[str, ...]
    options: dict[str, Any]


def argument(*flags: str, **options: Any) -> Argument:
    return Argument(flags, options)


@dataclass(frozen=True, slots=True)
class Context:
    """What a command works with."""

    args: argparse.Namespace
    output: Output

    @property
    def client(self) -> Client:
        return Client(api_address(self.args.api))


@dataclass(frozen=True, slots=True)
class Command:
    """``words``: ("vdisk", "create"). ``run`` does it and returns the exit status. ``extend`` adds arguments that
    another part declares."""

    words: tuple[str, ...]
    doc: str
    run: Callable[[Context], int]
    arguments: tuple[Argument, ...] = ()
    speaks_api: bool = True
    more: str = ""
    extend: Callable[[argparse.ArgumentParser], None] | None = None

    @property
    def name(self) -> str:
        return " ".join(self.words)


def api_address(text: str | None) -> Path | tuple[str, int]:
    """A socket's path (anything with a slash, or an existing file) or HOST:PORT; from --api or the environment."""
    text = text or os.environ.get(API_VARIABLE) or DEFAULT_API
    if "/" in text or Path(text).exists():
        return Path(text)
    try:
        return parse_address(text)
    except BadValueError:
        raise CommandError(f"--api {text!r}: expected a socket's path or HOST:PORT", ExitCode.USAGE) from None
