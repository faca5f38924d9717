"""What a command prints: tables and fields for people, plain columns for pipes, one JSON document for programs.

Colours and boxes appear only on a terminal (and never with NO_COLOR set). With `--json` nothing but the document goes
to standard output; progress and notes go to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

SIZE_STEPS = ((1 << 50, "PiB"), (1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))

# What states look like, wherever they appear: in tables, in the map, in pictures.
STYLES = {
    "connected": "green",
    "admitted": "green",
    "presented": "green",
    "ready": "green",
    "valid": "green",
    "yes": "green",
    "pending": "yellow",
    "waiting": "yellow",
    "adding": "yellow",
    "fencing": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "assumed": "yellow",
    "unreachable": "red",
    "not fenced": "red",
    "withdrawing": "yellow",
    "disconnected": "red",
    "expired": "red",
    "fenced": "red",
    "ok": "green",
    "missing": "red",
    "alarm": "bold red",
    "warning": "yellow",
}


def size_text(size_bytes: int) -> str:
    """``4294967296`` as ``4 GiB``; exact when it divides, one decimal otherwise."""
    for unit, name in SIZE_STEPS:
        if size_bytes >= unit:
            return f"{size_bytes // unit} {name}" if size_bytes % unit == 0 else f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"


def rate_text(size_bytes: int, seconds: float) -> str:
    """Megabytes (10^6) a second, as disks are sold."""
    return f"{size_bytes / max(seconds, 1e-9) / 1e6:.0f} MB/s"


def cell_text(value: object) -> str:
    """One value in a table."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(cell_text(item) for item in value) or "-"
    return str(value)


class Output:
    """Where a command's results go. ``as_json``: collect them and print one document at the end."""

    def __init__(self, as_json: bool = False, stream: TextIO | None = None, errors: TextIO | None = None) -> None:
        self.as_json = as_json
        self.stream = stream or sys.stdout
        self.errors = errors or sys.stderr
        self.pretty = self.stream.isatty() and not as_json and os.environ.get("TERM") != "dumb"
        self.colour = self.pretty and "NO_COLOR" not in os.environ
        self._console: Any = None

    @property
    def console(self) -> Any:
        """A rich console on our stream; made on first use, since importing rich takes a while."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self.stream, no_color=not self.colour, highlight=False, soft_wrap=True)
        return self._console

    def document(self, value: object) -> None:
        """The JSON document of a command; nothing for people."""
        if self.as_json:
            print(json.dumps(value, indent=2, sort_keys=False), file=self.stream)

    def line(self, text: str = "", style: str = "") -> None:
        """A line for people."""
        if self.as_json:
            return
        if self.pretty:
            self.console.print(text, style=style or None, markup=False)
        else:
            print(text, file=self.stream)
        self.stream.flush()

    def note(self, text: str) -> None:
        """A line beside the result."""
        print(text, file=self.errors, flush=True)

    def fields(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Names and values, one a line."""
        if self.as_json:
            return
        width = max((len(name) for name, _ in pairs), default=0)
        for name, value in pairs:
            text = cell_text(value)
            self.line(f"{name:<{width}}  {text}", STYLES.get(text, ""))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
        """Rows under headings: boxes and colours on a terminal, aligned columns elsewhere."""
        if self.as_json:
            return
        if self.pretty:
            self._rich_table(columns, rows, title)
            return
        if title:
            self.line(title)
        cells = [[cell_text(value) for value in row] for row in rows]
        widths = [max([len(head), *(len(row[index]) for row in cells)]) for index, head in enumerate(columns)]
        for row in [list(columns), *cells]:
            self.line("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())

    def _rich_table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, title_justify="left", box=box.ROUNDED, header_style="bold")
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in rows:
            texts = [cell_text(value) for value in row]
            table.add_row(*(Text(text, style=STYLES.get(text, "")) for text in texts))
        self.console.print(table)


def rows_of(items: Sequence[Mapping[str, Any]], *names: str) -> list[list[object]]:
    """The named members of each item, in that order."""
    return [[item.get(name) for name in names] for item in items]
