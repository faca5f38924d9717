"""A small declarative schema over YAML nodes.

A schema is a tree of kinds: scalars (text, sizes, durations, addresses ...), lists and sections. Checking walks the
*nodes* of a document, not its values, so that every error names file, line, column, key and what was expected; all
errors of a file are found in one go. Unknown keys are refused with the nearest known one. The same tree generates
docs/config.md. Invariants: a document that passed has every key of its section, with defaults filled in.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DOCUMENT_BYTES_MAX = 1 << 20
LIST_ITEMS_MAX = 4096
DEPTH_MAX = 16

SIZE_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50}
DURATION_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


@dataclass(frozen=True, slots=True)
class Problem:
    """One error in a document. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        return f"{where}{self.key}: {self.message}" if self.key else f"{where}{self.message}"


class ConfigError(Exception):
    """A document that cannot be used; ``problems`` has every reason, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


class BadValueError(Exception):
    """What a scalar's parser raises; its text is what was expected. A section's check may say where below it."""

    def __init__(self, text: str, *below: str | int) -> None:
        super().__init__(text)
        self.below = below


@dataclass(slots=True)
class Report:
    """Collects the problems of one file while its nodes are walked."""

    file: str
    problems: list[Problem] = field(default_factory=list)

    def add(self, node: yaml.Node, key: str, message: str) -> None:
        mark = node.start_mark
        self.problems.append(Problem(self.file, mark.line + 1, mark.column + 1, key, message))


class Kind(ABC):
    """What a value may be: a name for the documentation, and a check that yields the value."""

    name: str

    @abstractmethod
    def check(self, node: yaml.Node, key: str, report: Report) -> Any:
        """The value at ``node``, or None after a problem was reported."""


@dataclass(frozen=True, slots=True)
class Scalar(Kind):
    """One plain value; ``parse`` gets its text and raises BadValueError."""

    name: str
    parse: Callable[[str], Any]

    def check(self, node: yaml.Node, key: str, report: Report) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            report.add(node, key, f"expected {self.name}, found {describe(node)}")
            return None
        try:
            return self.parse(node.value)
        except BadValueError as error:
            report.add(node, key, f"expected {error or self.name}, found {describe(node)}")
            return None


@dataclass(frozen=True, slots=True)
class ListOf(Kind):
    """A list of one kind, between ``least`` and ``most`` items; ``unique`` names a key that no two items share."""

    item: Kind
    least: int = 0
    most: int = LIST_ITEMS_MAX
    unique: str = ""

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"a list ({self.item.name} each)"

    def check(self, node: yaml.Node, key: str, report: Report) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            report.add(node, key, f"expected {self.name}, found {describe(node)}")
            return []
        if not self.least <= len(node.value) <= self.most:
            report.add(node, key, f"expected {self.least} to {self.most} items, found {len(node.value)}")
            return []
        values = [self.item.check(child, f"{key}[{index}]", report) for index, child in enumerate(node.value)]
        if self.unique:
            self._check_unique(node, values, key, report)
        return values

    def _check_unique(self, node: yaml.SequenceNode, values: list[Any], key: str, report: Report) -> None:
        seen: dict[Any, int] = {}
        for index, value in enumerate(values):
            mark = value.get(self.unique) if isinstance(value, Mapping) else value
            if mark is not None and mark in seen:
                report.add(node.value[index], f"{key}[{index}]", f"{mark!r} is already used by {key}[{seen[mark]}]")
            seen.setdefault(mark, index)


class Required:
    """The default of a key that has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section. ``default`` is the text that stands for a missing key, REQUIRED, or None (absent)."""

    name: str
    kind: Kind
    doc: str
    default: str | Required | None = REQUIRED


@dataclass(frozen=True, slots=True)
class Section(Kind):
    """A mapping with known keys; ``finish`` checks keys against each other and raises BadValueError."""

    name: str
    doc: str
    keys: tuple[Key, ...]
    finish: Callable[[dict[str, Any]], None] | None = None

    def check(self, node: yaml.Node, key: str, report: Report) -> Any:
        if not isinstance(node, yaml.MappingNode):
            report.add(node, key, f"expected {self.name} (keys and values), found {describe(node)}")
            return self._defaults(node, {}, key, report)
        before = len(report.problems)
        values = self._defaults(node, self._given(node, key, report), key, report)
        if self.finish and len(report.problems) == before:
            try:
                self.finish(values)
            except BadValueError as error:
                report.add(*_below(node, key, error.below), str(error))
        return values

    def _given(self, node: yaml.MappingNode, key: str, report: Report) -> dict[str, Any]:
        known = {entry.name: entry for entry in self.keys}
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else None
            if name not in known:
                report.add(name_node, key, unknown_key(describe(name_node) if name is None else name, list(known)))
            elif name in values:
                report.add(name_node, key, f"key {name!r} is given twice")
            else:
                values[name] = known[name].kind.check(value_node, f"{key}.{name}" if key else name, report)
        return values

    def _defaults(self, node: yaml.Node, values: dict[str, Any], key: str, report: Report) -> dict[str, Any]:
        for entry in self.keys:
            if entry.name in values:
                continue
            if isinstance(entry.default, Required):
                report.add(node, key, f"key {entry.name!r} is missing: expected {entry.kind.name}")
                values[entry.name] = None
            elif entry.default is None:
                values[entry.name] = None
            else:
                default = compose(entry.default, report.file)
                values[entry.name] = entry.kind.check(default, f"{key}.{entry.name}", report)
        return values


def _below(node: yaml.Node, key: str, path: Sequence[str | int]) -> tuple[yaml.Node, str]:
    """The node at a path of keys and indices, and its key; as far as it is written."""
    for step in path:
        if isinstance(step, int) and isinstance(node, yaml.SequenceNode):
            node, key = node.value[step], f"{key}[{step}]"
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next((value for name, value in pairs if name.value == step), None)
        if found is None:
            break
        node, key = found, f"{key}.{step}" if key else str(step)
    return node, key


def unknown_key(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {name!r}; {hint}"


def describe(node: yaml.Node) -> str:
    """What a node is, in a reader's words."""
    if isinstance(node, yaml.MappingNode):
        return "keys and values"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    text = str(node.value)
    return f"{text[:60]!r}" if text else "nothing"


# --- scalars ---------------------------------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """Bytes of ``4GiB``, ``512 KiB`` or ``4096``."""
    match = re.fullmatch(r"([0-9]{1,18})\s*([KMGTP]iB|B|)", text)
    if not match:
        raise BadValueError("a size like 4GiB, 512KiB or 4096 (units: B KiB MiB GiB TiB PiB)")
    return int(match[1]) * SIZE_UNITS[match[2]]


def parse_duration(text: str) -> int:
    """Nanoseconds of ``10s``, ``1.5s`` or ``250ms``."""
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,9}))?\s*(ns|us|ms|s|m|h)", text)
    if not match:
        raise BadValueError("a duration like 10s, 1.5s or 250ms (units: ns us ms s m h)")
    unit = DURATION_UNITS[match[3]]
    fraction = match[2] or ""
    return int(match[1]) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of ``127.0.0.1:4420`` or ``[::1]:0``; port 0 asks for a free one."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:\[\]/]+)):([0-9]{1,5})", text)
    if not match or int(match[3]) > 65535:
        raise BadValueError("an address HOST:PORT like 127.0.0.1:4420 (port 0: any free one)")
    return match[1] or match[2], int(match[3])


def parse_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", text):
        raise BadValueError("a name of lower-case letters, digits, '.', '_' and '-' (at most 63)")
    return text


def parse_boolean(text: str) -> bool:
    try:
        return {"true": True, "false": False, "yes": True, "no": False}[text.lower()]
    except KeyError:
        raise BadValueError("true or false") from None


def parse_path(text: str) -> Path:
    if not text or "\0" in text or len(text) > 4096:
        raise BadValueError("a path")
    return Path(text)


def parse_text(text: str) -> str:
    if not text or len(text) > 4096:
        raise BadValueError("a text")
    return text


NAME = Scalar("a name", parse_name)
TEXT = Scalar("a text", parse_text)
PATH = Scalar("a path", parse_path)
SIZE = Scalar("a size", parse_size)
DURATION = Scalar("a duration", parse_duration)
ADDRESS = Scalar("an address HOST:PORT", parse_address)
BOOLEAN = Scalar("true or false", parse_boolean)


def integer(least: int, most: int) -> Scalar:
    """A whole number within limits."""
    expected = f"a whole number from {least} to {most}"

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,20}", text) or not least <= int(text) <= most:
            raise BadValueError(expected)
        return int(text)

    return Scalar(expected, parse)


def choice(*names: str) -> Scalar:
    """One of a few words."""
    expected = "one of " + ", ".join(names)

    def parse(text: str) -> str:
        if text not in names:
            raise BadValueError(expected)
        return text

    return Scalar(expected, parse)


# --- documents -------------------------------------------------------------------------------------------------------


def compose(text: str, file: str) -> yaml.Node:
    """The one document's root node; aliases (and so loops and bombs) are refused, depth and size are limited."""
    if len(text) > DOCUMENT_BYTES_MAX:
        raise ConfigError([Problem(file, 1, 1, "", f"longer than {DOCUMENT_BYTES_MAX} characters")])
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError([_at(event.start_mark, file, "aliases (*name) are not supported: write it out")])
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH_MAX:
                raise ConfigError([_at(event.start_mark, file, f"nested deeper than {DEPTH_MAX}")])
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        reason = ": ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError([_at(error.problem_mark or error.context_mark, file, f"not YAML: {reason}")]) from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError([Problem(file, 1, 1, "", f"not YAML: {reason}")]) from None
    if node is None:
        raise ConfigError([Problem(file, 1, 1, "", "the file is empty")])
    return node


def _at(mark: Any, file: str, message: str) -> Problem:
    return Problem(file, mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, "", message)


def check_text(text: str, schema: Section, file: str) -> dict[str, Any]:
    """The checked document with defaults filled in; ConfigError with every problem otherwise."""
    report = Report(file)
    values = schema.check(compose(text, file), "", report)
    if report.problems:
        raise ConfigError(report.problems)
    assert isinstance(values, dict)
    return values
