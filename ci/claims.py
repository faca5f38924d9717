"""The claims of the patent (EP 1 178 407 A2) in a few words each, and the tests that cover them.

Tests say what they cover by `@pytest.mark.claim(1, 2)`; markers are read from the source text, so that no test has to
be imported or run for it. tests/test_docs.py fails when a claim has no test.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLAIMS: dict[int, str] = {
    1: "agent with a volatile table, controller with the durable one that replaces its contents; hosts' I/O uses it",
    2: "invalid state: the entry has no usable mapping",
    3: "an I/O that meets an invalid entry is not let through",
    4: "no-write state: the location cannot be written",
    5: "a write that meets a no-write entry is not let through",
    6: "a channel couples agent and controller",
    7: "the channel uses a data transfer protocol for its messages",
    8: "entries hold an offset",
    9: "the offset has a logical unit identifier (container slot)",
    10: "the offset has a block identifier (physical segment)",
    11: "an entry covers a segment of virtual disk positions",
    12: "table, state variables, offset of unit and block, memory: a segment maps to a location",
    13: "the memory is volatile",
    14: "a location is a block of data of the storage device",
    15: "that block is about 1 MB",
    16: "the agent is coupled to the host",
    17: "states are Boolean variables",
    18: "there is an invalid state",
    19: "there is a variable for the invalid state",
    20: "there is a no-write state",
    21: "there is a variable for the no-write state",
    22: "there is a zero state",
    23: "there is an error state",
    24: "an operation on the vdisk becomes one on the storage device by the table, and its end is presented",
    25: "the agent at the host issues it",
    26: "the table is updated from the persistent one",
    27: "states of the table are determined",
    28: "a fault goes up when the table cannot be accessed",
    29: "the table is kept in volatile memory",
    30: "updates come from a controller",
    31: "a controller's command activates states, waits for operations, updates the table",
    32: "blocking: answered when operations have ended",
    33: "mapping information is read from an entry",
    34: "as 24, as a program",
    35: "as 31, as a program",
}


@dataclass(frozen=True, slots=True, order=True)
class Cover:
    """A test that covers a claim."""

    claim: int
    path: str
    test: str


def claim_numbers(node: ast.expr) -> Iterator[int]:
    """The numbers in every ``pytest.mark.claim(...)`` inside an expression."""
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr == "claim":
            for argument in part.args:
                value = ast.literal_eval(argument.value if isinstance(argument, ast.Starred) else argument)
                yield from [value] if isinstance(value, int) else value


def covers_in(tree: ast.Module, path: str) -> Iterator[Cover]:
    """Marked functions, marked classes (all their tests), and the module's own ``pytestmark``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(name, ast.Name) and name.id == "pytestmark" for name in node.targets
        ):
            yield from (Cover(number, path, "(all)") for number in claim_numbers(node.value))
    for owner in ast.walk(tree):
        if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for decorator in owner.decorator_list:
                yield from (Cover(number, path, owner.name) for number in claim_numbers(decorator))


def collect(top: Path) -> list[Cover]:
    """Every claim marker under tests/, in the order of the claims."""
    found: list[Cover] = []
    for path in sorted((top / "tests").rglob("test_*.py")):
        inside = path.relative_to(top).as_posix()
        found.extend(covers_in(ast.parse(path.read_text(encoding="utf-8")), inside))
    return sorted(found)


def uncovered(covers: list[Cover]) -> list[int]:
    return sorted(CLAIMS.keys() - {cover.claim for cover in covers})


def page(covers: list[Cover]) -> Iterator[str]:
    """docs/claims.md, line by line."""
    yield "# Claims of EP 1 178 407 A2, and the tests that cover them"
    yield ""
    yield "| claim | in a few words | tests |"
    yield "|---|---|---|"
    for number, text in CLAIMS.items():
        tests = [f"`{cover.path}::{cover.test}`" for cover in covers if cover.claim == number]
        yield f"| {number} | {text} | {'<br>'.join(tests)} |"
