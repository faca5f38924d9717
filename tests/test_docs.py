"""Generated documents: claims are covered, markers are understood, pages tell what the tables say."""

from __future__ import annotations

import ast

from ci import claims, docs
from cli.commands import COMMANDS
from cli.config.document import DOCUMENT
from controller.api.operations import OPERATIONS


def covers(text: str) -> list[tuple[int, str]]:
    return sorted((cover.claim, cover.test) for cover in claims.covers_in(ast.parse(text), "tests/test_x.py"))


def test_markers_are_understood() -> None:
    text = """
import pytest
pytestmark = [pytest.mark.claim(6), pytest.mark.long]
@pytest.mark.claim(1, 2)
def test_a(): ...
class TestB:
    @pytest.mark.claim(*[3])
    def test_c(self): ...
@pytest.mark.claim(4)
class TestD: ...
@pytest.mark.long
def test_e(): ...
"""
    assert covers(text) == [(1, "test_a"), (2, "test_a"), (3, "test_c"), (4, "TestD"), (6, "(all)")]


def test_there_are_thirty_five_claims() -> None:
    assert list(claims.CLAIMS) == list(range(1, 36))


def test_a_missing_claim_is_noticed() -> None:
    found = [claims.Cover(number, "p", "t") for number in claims.CLAIMS if number != 17]
    assert claims.uncovered(found) == [17]


def test_every_claim_has_a_test() -> None:
    assert claims.uncovered(claims.collect(docs.TOP)) == []


def test_every_command_key_and_operation_is_in_its_page() -> None:
    cli = docs.text_of(docs.cli_page)
    assert all(f"## segmap {command.name}\n" in cli for command in COMMANDS)
    api = docs.text_of(docs.api_page)
    assert all(f"## {row.name}\n" in api for row in OPERATIONS)
    config = docs.text_of(docs.config_page)
    assert all(f"| `{key.name}` |" in config for key in DOCUMENT.keys)
