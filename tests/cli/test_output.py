"""Tables, fields and documents."""

from __future__ import annotations

import io
import json

import pytest

from cli.output import Output, cell_text, rate_text, size_text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (4 << 30, "4 GiB"), (1 << 50, "1 PiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_rates_are_decimal_megabytes() -> None:
    assert rate_text(300_000_000, 1.0) == "300 MB/s"
    assert rate_text(0, 0.0) == "0 MB/s"


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (True, "yes"), ([], "-"), (["a", 1], "a, 1"), (1.25, "1.2")])
def test_cells(value: object, text: str) -> None:
    assert cell_text(value) == text


def test_plain_tables_are_aligned_columns() -> None:
    stream = io.StringIO()
    Output(stream=stream).table(["name", "n"], [["abcdef", 1], ["x", None]])
    assert stream.getvalue().splitlines() == ["name    n", "abcdef  1", "x       -"]


def test_json_prints_the_document_and_nothing_else() -> None:
    stream = io.StringIO()
    output = Output(as_json=True, stream=stream)
    output.table(["a"], [["b"]])
    output.fields([("a", 1)])
    output.line("x")
    output.document({"a": [1]})
    assert json.loads(stream.getvalue()) == {"a": [1]}
