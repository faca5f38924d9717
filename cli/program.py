"""Parsing arguments, running one command of the table, turning what went wrong into one clear line."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, TypeAlias

from cli.client import UnreachableError
from cli.command import API_VARIABLE, DEFAULT_API, Command, CommandError, Context
from cli.commands import COMMANDS, GROUPS
from cli.config.schema import ConfigError
from cli.exit_codes import ExitCode, of_api_error
from cli.output import Output
from controller.api.errors import ApiError

Subparsers: TypeAlias = "argparse._SubParsersAction[Any]"
TRACE_VARIABLE = "SEGMAP_TRACE"


class UsageError(CommandError):
    """Words that make no command. `program`: as far as they did."""

    def __init__(self, program: str, message: str) -> None:
        super().__init__(message, ExitCode.USAGE, f"`{program} --help` lists what it takes")
        self.program = program


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line and a hint, not the whole usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(self.prog, message)


def build_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command table. What is costly to declare is left out if ``argv`` does not need it."""
    parser = Parser(prog="segmap", description="Distributed, table-driven storage virtualization.", allow_abbrev=False)
    top: Subparsers = parser.add_subparsers(dest="word0", metavar="COMMAND", required=True)
    groups: dict[str, Subparsers] = {}
    alone = {command.words[0]: command for command in COMMANDS if len(command.words) == 1}
    for command in COMMANDS:
        group = command.words[0]
        if group in GROUPS:
            if group not in groups:
                groups[group] = add_group(top, group, alone.get(group))
            if len(command.words) > 1:
                add_command(groups[group], command)
        else:
            add_command(top, command, extended=argv is None or command.words[0] in argv[:1])
    return parser


def add_group(top: Subparsers, group: str, alone: Command | None) -> Subparsers:
    """A group of commands; ``alone`` is what its bare word does, where it does something."""
    parser = top.add_parser(group, help=GROUPS[group], description=GROUPS[group], allow_abbrev=False)
    if alone:
        fill_parser(parser, alone)
    inner: Subparsers = parser.add_subparsers(dest="word1", metavar="COMMAND", required=alone is None)
    return inner


def add_command(subparsers: Subparsers, command: Command, extended: bool = True) -> None:
    text = f"{command.doc} {command.more}".strip()
    parser = subparsers.add_parser(command.words[-1], help=command.doc, description=text, allow_abbrev=False)
    if command.extend and extended:
        command.extend(parser)
    fill_parser(parser, command)


def fill_parser(parser: argparse.ArgumentParser, command: Command) -> None:
    for entry in command.arguments:
        parser.add_argument(*entry.flags, **entry.options)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    if command.speaks_api:
        note = f"the controller's API: a socket's path or HOST:PORT (default: ${API_VARIABLE}, else {DEFAULT_API})"
        parser.add_argument("--api", metavar="ADDRESS", help=note)
    parser.set_defaults(command=command)


def explain_failure(error: Exception) -> tuple[ExitCode, str, str]:
    """(exit status, what happened, what to do) of anything a command raises."""
    if isinstance(error, CommandError):
        return error.code, str(error), error.hint
    if isinstance(error, ApiError):
        return of_api_error(error), error.message, error.hint
    if isinstance(error, UnreachableError):
        hint = f"is the controller running? --api or ${API_VARIABLE} says where its API is"
        return ExitCode.UNREACHABLE, f"no controller: {error}", hint
    if isinstance(error, ConfigError):
        return ExitCode.USAGE, str(error), "docs/config.md has every key"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return ExitCode.FAILED, f"{where}{error.strerror or error}", ""
    hint = f"this is a defect of segmap; {TRACE_VARIABLE}=1 shows where"
    return ExitCode.INTERNAL, f"{type(error).__name__}: {error}", hint


def report_failure(error: Exception, name: str, output: Output) -> int:
    code, message, hint = explain_failure(error)
    if os.environ.get(TRACE_VARIABLE):
        traceback.print_exception(error, file=output.errors)
    if output.as_json:
        api_code = error.code if isinstance(error, ApiError) else code.name.lower()
        output.document({"error": {"code": api_code, "message": message, "hint": hint}})
    output.note(f"segmap {name}: {message}" if name else f"segmap: {message}")
    if hint:
        output.note(f"hint: {hint}")
    return int(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - closed for us: as good as ended
    try:
        args = build_parser(words).parse_args(words)
    except UsageError as error:
        return report_failure(error, error.program.partition(" ")[2], Output(as_json="--json" in words))
    command: Command = args.command
    output = Output(as_json=args.json)
    try:
        return command.run(Context(args, output))
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.FAILED)
    except Exception as error:
        return report_failure(error, command.name, output)
