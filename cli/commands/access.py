"""`segmap token …` and `segmap audit`: who may use the API, and who did what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli.client import TOKEN_VARIABLE
from cli.command import Command, CommandError, Context, argument
from cli.exit_codes import ExitCode
from cli.output import rows_of
from controller.api.access import ROLES, TokenFileError, add_token, read_tokens, remove_token

FILE = argument(
    "--file",
    type=Path,
    default=Path("segmap-run/api-tokens.json"),
    metavar="FILE",
    help="controller.api_tokens of the configuration (default: segmap-run/api-tokens.json)",
)
NAME = argument("name", metavar="NAME", help="whose token")


def add(context: Context) -> int:
    args = context.args
    try:
        secret = add_token(args.file, args.name, args.role)
    except TokenFileError as error:
        raise CommandError(str(error)) from None
    context.output.document({"name": args.name, "role": args.role, "token": secret})
    context.output.line(secret)
    context.output.note(f"told only once; its owner sets {TOKEN_VARIABLE}")
    return ExitCode.DONE


def remove(context: Context) -> int:
    try:
        remove_token(context.args.file, context.args.name)
    except TokenFileError as error:
        raise CommandError(str(error), ExitCode.NOT_FOUND) from None
    context.output.document({"name": context.args.name})
    context.output.line(f"the token of {context.args.name} is not accepted any more")
    return ExitCode.DONE


def list_all(context: Context) -> int:
    try:
        rows = [{"name": token.name, "role": token.role} for token in read_tokens(context.args.file)]
    except TokenFileError as error:
        raise CommandError(str(error)) from None
    context.output.document({"tokens": rows})
    context.output.table(["name", "role"], rows_of(rows, "name", "role"))
    return ExitCode.DONE


def detail_text(detail: dict[str, Any]) -> str:
    """What was asked, as far as it was said, and how it ended if not well."""
    arguments = detail.get("arguments", {})
    rest = {key: value for key, value in detail.items() if key not in ("arguments", "request_id")}
    said = {**arguments, **({} if rest.get("outcome") == "done" else rest)}
    words = [
        f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in said.items()
        if value not in ("", 0, False, [], None)
    ]
    return " ".join(words)


def audit(context: Context) -> int:
    answer = context.client.call("audit.list", after=context.args.after, limit=context.args.limit)
    context.output.document(answer)
    rows = [
        [entry["number"], entry["time"], entry["actor"], entry["action"], detail_text(entry["detail"])]
        for entry in answer["entries"]
    ]
    context.output.table(["number", "time", "who", "what", "detail"], rows)
    return ExitCode.DONE


COMMANDS = (
    Command(
        ("audit",),
        "Who changed what, oldest first.",
        audit,
        (
            argument("--after", type=int, default=0, metavar="N", help="only entries with a higher number"),
            argument("--limit", type=int, default=100, metavar="N", help="at most so many (default 100)"),
        ),
    ),
    Command(
        ("token", "add"),
        "Makes a token for an API client, and shows it once.",
        add,
        (NAME, argument("--role", choices=ROLES, default="view", help="(default: view)"), FILE),
        speaks_api=False,
    ),
    Command(("token", "remove"), "Makes a token worthless, at once.", remove, (NAME, FILE), speaks_api=False),
    Command(("token", "list"), "Whose tokens there are.", list_all, (FILE,), speaks_api=False),
)
