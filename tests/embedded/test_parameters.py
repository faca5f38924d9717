"""Decoding of parameters: every type at its edges, unknown, missing and repeated names."""

from __future__ import annotations

from typing import Any

import pytest

from dataplane.embedded.json_stream import JsonStream
from dataplane.embedded.parameters import (
    BadParameter,
    Decode,
    boolean,
    decode_object,
    identity,
    int32,
    list_of,
    object_of,
    one_of,
    optional,
    required,
    string,
    uint8,
    uint16,
    uint32,
    uint64,
)


def parsed(text: str) -> Any:
    stream = JsonStream()
    stream.receive_data(text.encode() + b" ")
    assert stream.next_document()
    return stream.document


@pytest.mark.parametrize(
    ("decode", "text", "value"),
    [
        (uint8, "255", 255),
        (uint16, "65535", 65535),
        (uint32, "4294967295", 4294967295),
        (uint64, "18446744073709551615", (1 << 64) - 1),
        (uint64, "1.0e3", 1000),
        (uint64, "1200e-2", 12),
        (int32, "-2147483648", -(1 << 31)),
        (boolean, "true", True),
        (string, '"a"', "a"),
        (one_of("x", "y"), '"y"', "y"),
        (list_of(uint8, 2), "[1,2]", [1, 2]),
    ],
)
def test_values_in_range(decode: Decode, text: str, value: Any) -> None:
    assert decode(parsed(text)) == value


@pytest.mark.parametrize(
    ("decode", "text"),
    [
        (uint8, "256"),
        (uint16, "-1"),
        (uint32, "4294967296"),
        (uint64, "18446744073709551616"),
        (uint64, "1e30"),
        (uint64, "1e999999999"),
        (uint32, "1.5"),
        (uint32, "-0"),
        (uint32, '"1"'),
        (uint32, "true"),
        (uint32, "null"),
        (int32, "2147483648"),
        (boolean, "1"),
        (string, "1"),
        (string, "1.5"),
        (string, '"a\\u0000b"'),
        (identity, '"00000000-0000-4000-8000-00000000000"'),
        (identity, '"0000000000004000800000000000000000000"'),
        (identity, '"g0000000-0000-4000-8000-000000000001"'),
        (one_of("x"), '"z"'),
        (list_of(uint8, 2), "[1,2,3]"),
        (list_of(uint8, 2), '["a"]'),
        (object_of(required("a", uint8)), "[]"),
    ],
)
def test_values_out_of_range(decode: Decode, text: str) -> None:
    with pytest.raises(BadParameter):
        decode(parsed(text))


TABLE = (required("name", string), optional("count", uint32, 7))


def test_defaults_unknown_missing_and_repeated_names() -> None:
    assert decode_object(parsed('{"name":"a"}'), TABLE) == {"name": "a", "count": 7}
    for text in ('{"count":1}', '{"name":"a","x":1}', '{"name":"a","name":"b"}', "[]"):
        with pytest.raises(BadParameter):
            decode_object(parsed(text), TABLE)
    assert decode_object(parsed('{"name":"a","x":1}'), TABLE, relaxed=True) == {"name": "a", "count": 7}
