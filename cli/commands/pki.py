"""`segmap pki …`: the cluster's own certificate authority."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cli.command import Command, CommandError, Context, argument
from cli.exit_codes import ExitCode
from cli.output import rows_of
from transport import pki
from transport.credentials import expiry

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


def revoke(context: Context) -> int:
    args = context.args
    try:
        fresh = pki.revoke(args.dir, args.name, args.role, old=args.old)
    except pki.PkiError as error:
        raise CommandError(str(error), ExitCode.NOT_FOUND) from None
    serials = [f"{item.serial:x}" for item in fresh]
    context.output.document({"identity": pki.identity(args.name, args.role), "revoked": serials})
    context.output.line(f"{len(serials)} certificates revoked; sessions with them end within seconds")
    return ExitCode.DONE


def show(context: Context) -> int:
    now = pki.utc_now()
    try:
        found = pki.show(context.args.dir)
    except pki.PkiError as error:
        raise CommandError(str(error), ExitCode.NOT_FOUND) from None
    rows = []
    for path, (info, revoked) in found.items():
        soon = expiry(info.identity or "the authority", info.not_after, now)
        state = "revoked" if revoked else "expired" if info.days_left(now) <= 0 else soon.severity if soon else "valid"
        rows.append(
            {
                "file": path.name,
                "identity": info.identity or None,
                "state": state,
                "days_left": round(info.days_left(now), 1),
                "not_before": info.not_before.isoformat(),
                "not_after": info.not_after.isoformat(),
                "serial": f"{info.serial:x}",
            }
        )
    columns = ("file", "identity", "state", "days_left", "not_after", "serial")
    context.output.document({"directory": str(context.args.dir), "certificates": rows})
    context.output.table([name.replace("_", " ") for name in columns], rows_of(rows, *columns))
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
        more="Running daemons use them for their next connections; open sessions go on. The old ones stay valid.",
    ),
    Command(
        ("pki", "revoke"),
        "Revokes every certificate that an agent or controller has been issued.",
        revoke,
        (
            NAME,
            ROLE,
            DIRECTORY,
            argument("--old", action="store_true", help="all but the one in its file, after `rotate`"),
        ),
        speaks_api=False,
        more="Every process reads revoked.json beside its ca.pem; open sessions end, new ones are refused.",
    ),
    Command(
        ("pki", "show"),
        "Every certificate in the directory: whose, until when, revoked or not.",
        show,
        (DIRECTORY,),
        speaks_api=False,
    ),
)
