"""`segmap config check`: is a configuration file right?"""

from __future__ import annotations

from pathlib import Path

from cli.command import Command, Context, argument
from cli.config.document import load
from cli.config.schema import ConfigError
from cli.exit_codes import ExitCode


def check(context: Context) -> int:
    output = context.output
    try:
        document = load(context.args.file)
    except ConfigError as error:
        if not output.as_json:
            raise
        problems = [
            {"file": item.file, "line": item.line, "column": item.column, "key": item.key, "message": item.message}
            for item in error.problems
        ]
        output.document({"ok": False, "problems": problems})
        return ExitCode.USAGE
    names = [agent["name"] for agent in document.agents]
    output.document({"ok": True, "problems": [], "agents": names})
    output.line(f"{context.args.file}: good; agents: {', '.join(names)}")
    return ExitCode.DONE


COMMANDS = (
    Command(
        ("config", "check"),
        "Checks a configuration file; every mistake with file, line and key.",
        check,
        (argument("file", type=Path, metavar="FILE", help="the YAML file"),),
        speaks_api=False,
    ),
)
