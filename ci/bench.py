"""`make bench`: run every ci/bench_*.py and print one table; `--json FILE` writes the figures too.

A benchmark module has `TITLE`, `run() -> dict[str, float]` (medians) and `GOALS: dict[str, Goal]`. It may raise
`Skipped(reason)`. A goal that is missed is shown, and makes the exit status 1 with `--strict`; noise is the reader's
to judge.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


def _load(path: Path) -> ModuleType:
    return importlib.import_module(f"ci.{path.stem}")


def _verdict(value: float, goal: tuple[str, float] | None) -> tuple[str, bool]:
    if goal is None:
        return "", True
    sign, bound = goal
    good = value >= bound if sign == ">=" else value <= bound
    return f"{sign} {bound:,g} {'met' if good else 'MISSED'}", good


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"


def _machine() -> dict[str, object]:
    return {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="benchmarks to run, e.g. mapping store (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a goal is missed")
    arguments = parser.parse_args()
    paths = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    unknown = set(arguments.names) - paths.keys()
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(paths)}")
    console = Console()
    figures: dict[str, object] = {"machine": _machine()}
    missed = 0
    for name in arguments.names or paths:
        module = _load(paths[name])
        table = Table(title=f"{name}: {getattr(module, 'TITLE', '')}", title_justify="left")
        for heading, justify in (("figure", "left"), ("median", "right"), ("goal", "left")):
            table.add_column(heading, justify=justify)  # type: ignore[arg-type]
        try:
            results = module.run()
        except Skip as skip:
            console.print(f"{name}: skipped: {skip}")
            figures[name] = {"skipped": str(skip)}
            continue
        figures[name] = results
        for figure, value in results.items():
            verdict, good = _verdict(value, getattr(module, "GOALS", {}).get(figure))
            missed += not good
            table.add_row(figure, _figure(value), verdict)
        console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if missed and arguments.strict else 0


class Skip(Exception):
    """Raised by a benchmark whose needs are not there; the text says which."""


if __name__ == "__main__":
    sys.modules["ci.bench"] = sys.modules["__main__"]
    sys.exit(main())
