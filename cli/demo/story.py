"""What the demo tells and what it checks; a check that does not hold is remembered, and makes the demo fail."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cli.output import Output


class Story:
    """Prints chapters, facts and checks; ``checks`` has every check with its outcome."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.checks: list[tuple[str, bool]] = []
        self.chapters = 0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self._began

    @property
    def failed(self) -> list[str]:
        return [name for name, good in self.checks if not good]

    def chapter(self, title: str) -> None:
        self.chapters += 1
        self.output.line(f"\n{self.chapters}. {title}   [{self.seconds:.1f} s]", "bold")

    def say(self, text: str, style: str = "") -> None:
        self.output.line(f"   {text}", style)

    def ran(self, words: Sequence[str]) -> None:
        """A command that the demo runs, as one would type it."""
        self.output.line(f"   $ segmap {' '.join(words)}", "cyan")

    def check(self, name: str, good: bool, detail: str = "") -> None:
        """Something that must hold."""
        self.checks.append((name, good))
        mark, style = ("ok", "green") if good else ("FAILED", "bold red")
        self.output.line(f"   [{mark}] {name}{f': {detail}' if detail else ''}", style)
