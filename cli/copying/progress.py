"""How far a copy is: a bar with rate and time left on a terminal, nothing elsewhere. It goes to standard error."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class ProgressBar:
    """A context manager; `advance(bytes)` moves it. ``total`` None: the length is not known."""

    def __init__(self, title: str, total: int | None, shown: bool) -> None:
        self._title = title
        self._total = total
        self._bar: Any = None
        self._task: Any = None
        self._shown = shown and sys.stderr.isatty()

    def __enter__(self) -> ProgressBar:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.progress import TransferSpeedColumn as SpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), SpeedColumn())
            console = Console(file=sys.stderr)
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, refresh_per_second=4)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total)
        return self

    def advance(self, length: int) -> None:
        if self._bar:
            self._bar.advance(self._task, length)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
