"""The project's tidy rules, checked on the source text: import directions, sizes, pure cores, words, sleeping tests.

Run as a program it checks the whole tree and exits 1 with one line per breach; tests/test_tidy.py does the same and
also proves that each rule can fail. The rules are those of ARCHITECTURE.md:

* imports point one way: cli -> {controller, agent, dataplane} -> {spdk_rpc, channel, fabric, transport} -> mapping;
* cores (mapping, channel, fabric, operations in spdk_rpc, every ``core`` module) decide and do nothing: no clock,
  socket, thread or chance;
* files of at most FILE_LINES_MAX lines, functions of at most FUNCTION_LINES_MAX, no package for odds and ends;
* tests never sleep.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_LINES_MAX = 700
FUNCTION_LINES_MAX = 70

LOWER = frozenset({"mapping"})
WIRE = frozenset({"spdk_rpc", "channel", "fabric", "transport"})
MAY_IMPORT: dict[str, frozenset[str]] = {
    "mapping": frozenset(),
    "channel": LOWER,
    "fabric": LOWER,
    "transport": LOWER | {"channel", "fabric"},
    "spdk_rpc": LOWER | {"transport", "channel", "fabric"},
    "agent": LOWER | WIRE,
    "controller": LOWER | WIRE,
    "dataplane": LOWER | WIRE,
    "cli": LOWER | WIRE | {"agent", "controller", "dataplane"},
}
PACKAGES = frozenset(MAY_IMPORT)

# What a core must not import, and where cores are. Shells in these packages are named one by one, with the reason.
IMPURE = frozenset({"asyncio", "socket", "time", "random", "threading", "selectors", "subprocess", "secrets"})
PURE_PACKAGES = frozenset({"mapping", "channel", "fabric"})
# What the agent's core uses of its target: descriptions of calls and operations, not who makes them.
PURE_RPC = frozenset({"call", "containers", "converge", "disks", "errors", "exports", "steps"})

SHAPELESS = frozenset({"utils", "util", "common", "helpers", "misc", "manager"})
# Written in two pieces each, so that this file holds to its own rule.
FORBIDDEN = (
    r"\bTO" + r"DO\b",
    r"\bFIX" + r"ME\b",
    r"\bXX" + r"X\b",
    r"/wor" + r"k/",
    r"(?<![\w}])/roo" + r"t\b",
    r"/tmp/s" + r"w\b",
    r"pypi\.or" + r"g",
    r"pythonhosted\.or" + r"g",
)
FORBIDDEN_WORDS = re.compile("|".join(FORBIDDEN))
# Polling what another process does, by less than a tenth of a second at a time, is not what is meant.
SLEEPING = (
    r"(^|[^_a-z])time\.sl" + r"eep\(",
    r"asyncio\.sl" + r"eep\((0*[1-9]|0\.[1-9])",
    r"from time import .*\bsl" + r"eep",
)
SLEEP = re.compile("|".join(SLEEPING))
TEXT_SUFFIXES = frozenset({".py", ".md", ".yaml", ".toml", ".sh", ".c", ".h", ".txt"})


@dataclass(frozen=True, slots=True)
class Source:
    """One tracked text file: its path from the top of the tree, and its text."""

    path: Path
    text: str

    @property
    def package(self) -> str:
        return self.path.parts[0] if len(self.path.parts) > 1 else ""


@dataclass(frozen=True, slots=True)
class Breach:
    path: Path
    line: int
    rule: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}"


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import anywhere in the module; relative imports stay inside a package: skipped."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


def is_core(path: Path) -> bool:
    """Modules that must be pure: all of mapping, channel and fabric, and what is named core elsewhere."""
    if path.parts[0] in PURE_PACKAGES:
        return True
    if path.parts[0] not in PACKAGES:
        return False
    if path.parts[0] == "spdk_rpc":
        return "methods" in path.parts or path.stem in PURE_RPC
    return (
        "core" in path.parts[:-1] or path.stem == "core" or path.stem.startswith("core_") or path.stem.endswith("_core")
    )


def check_directions(source: Source, tree: ast.AST) -> Iterator[Breach]:
    """Imports between our packages point one way only."""
    if source.package not in PACKAGES:
        return
    allowed = MAY_IMPORT[source.package] | {source.package}
    for line, name in imported_modules(tree):
        top = name.split(".")[0]
        if (top in PACKAGES and top not in allowed) or top == "tests":
            yield Breach(source.path, line, f"{source.package} must not import {name}")


def check_purity(source: Source, tree: ast.AST) -> Iterator[Breach]:
    """A core gets its clock, chance and bytes from outside."""
    if not is_core(source.path):
        return
    for line, name in imported_modules(tree):
        if name.split(".")[0] in IMPURE:
            yield Breach(source.path, line, f"a core must not import {name}")


def check_sizes(source: Source, tree: ast.AST) -> Iterator[Breach]:
    """Files and functions that one can read in one go."""
    lines = source.text.count("\n")
    if lines > FILE_LINES_MAX:
        yield Breach(source.path, lines, f"{lines} lines; at most {FILE_LINES_MAX}: split by idea")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                yield Breach(source.path, node.lineno, f"{node.name} has {length} lines; at most {FUNCTION_LINES_MAX}")


def check_names(source: Source, tree: ast.AST) -> Iterator[Breach]:
    """No module for odds and ends; every module says what it is for."""
    shapeless = SHAPELESS.intersection([*source.path.parts[:-1], source.path.stem])
    if shapeless:
        yield Breach(source.path, 1, f"no module is called {min(shapeless)}: name the idea")
    empty = not source.text.strip()
    if source.package in PACKAGES and not empty and isinstance(tree, ast.Module) and ast.get_docstring(tree) is None:
        yield Breach(source.path, 1, "a module docstring says purpose and invariants")


def check_sleeping_tests(source: Source, tree: ast.AST) -> Iterator[Breach]:
    """Tests wait for what they need, or turn a clock of their own."""
    if source.package != "tests":
        return
    for number, line in enumerate(source.text.splitlines(), 1):
        if SLEEP.search(line):
            yield Breach(source.path, number, "a test must not sleep: wait for the event, or turn a clock of its own")


def check_words(source: Source) -> Iterator[Breach]:
    """Nothing unfinished, no paths of one machine, no index hosts."""
    for number, line in enumerate(source.text.splitlines(), 1):
        found = FORBIDDEN_WORDS.search(line)
        if found:
            yield Breach(source.path, number, f"{found.group()!r} must not be in the tree")


CODE_RULES: tuple[Callable[[Source, ast.AST], Iterator[Breach]], ...] = (
    check_directions,
    check_purity,
    check_sizes,
    check_names,
    check_sleeping_tests,
)


def check(source: Source) -> list[Breach]:
    """All breaches in one file."""
    breaches = list(check_words(source))
    if source.path.suffix == ".py":
        try:
            tree = ast.parse(source.text)
        except SyntaxError as error:
            return [*breaches, Breach(source.path, error.lineno or 1, f"does not parse: {error.msg}")]
        for rule in CODE_RULES:
            breaches.extend(rule(source, tree))
    return breaches


def sources(top: Path) -> Iterator[Source]:
    """Every text file of the project under ``top``, hidden and built directories left out."""
    skipped = {"build", "__pycache__"}
    for path in sorted(top.rglob("*")):
        inside = path.relative_to(top)
        hidden = any((part.startswith(".") and part != ".ci") or part in skipped for part in inside.parts)
        if hidden or any(part.endswith(".egg-info") for part in inside.parts) or not path.is_file():
            continue
        if path.suffix in TEXT_SUFFIXES or path.name in {"Makefile", "run"}:
            yield Source(inside, path.read_text(encoding="utf-8"))


def check_tree(top: Path) -> list[Breach]:
    return [breach for source in sources(top) for breach in check(source)]


def main() -> int:
    breaches = check_tree(Path(__file__).resolve().parent.parent)
    for breach in breaches:
        print(breach)
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
