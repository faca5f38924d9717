"""`segmap pki …`: the cluster's own certificate authority."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cli.command import Command, CommandError, Context, argument
from cli.exit_codes import ExitCode
from transport import pki

DIRECTORY = argument(
    "--dir", type=Path, default=Path("segmap-run/pki"), metavar="DIR", help="(default: segmap-run/pki)"
)
NAME = argument("name", metavar="NAME", help="the agent's or controller's name")
ROLE = argument("--role", choices=("agent", "controller"), default="agent", help="(default: agent)")


def init(context: Context) -> int:
    directory: Path = context.args.dir
    try:
        pki.init(directory, cluster=context.args.cluster)
    except pki.PkiError as error:
        raise CommandError(str(error)) from None
    context.output.document({"directory": str(directory)})
    context.output.line(f"{directory}: a new certificate authority; its key never leaves this directory")
    return ExitCode.DONE


def issue(context: Context) -> int:
    return make(context, pki.issue)


def rotate(context: Context) -> int:
    return make(context, pki.rotate)


def make(context: Context, maker: Callable[[Path, str, str], pki.Files]) -> int:
    """Issues or rotates, and tells what the certificate says."""
    try:
        made = maker(context.args.dir, context.args.name, context.args.role)
        facts = pki.inspect(made.certificate)
    except pki.PkiError as error:
        raise CommandError(str(error)) from None
    until = facts.not_after.isoformat()
    context.output.document({"certificate": str(made.certificate), "identity": facts.identity, "not_after": until})
    context.output.line(f"{made.certificate}: {facts.identity}, valid until {until}")
    return ExitCode.DONE


COMMANDS = (
    Command(
        ("pki", "init"),
        "Makes a certificate authority.",
        init,
        (DIRECTORY, argument("--cluster", default="segmap", metavar="NAME", help="the cluster's name")),
        speaks_api=False,
    ),
    Command(
        ("pki", "issue"),
        "Issues a certificate to an agent or controller.",
        issue,
        (NAME, ROLE, DIRECTORY),
        speaks_api=False,
    ),
    Command(
        ("pki", "rotate"),
        "Replaces a certificate and its key by new ones.",
        rotate,
        (NAME, ROLE, DIRECTORY),
        speaks_api=False,
    ),
)
