"""JSON out of a byte stream: whole, byte by byte, several at once, at every limit, and junk."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from dataplane.embedded.json_rpc import Batch, Call, error_bytes, read_document, result_bytes
from dataplane.embedded.json_stream import (
    BUFFER_BYTES,
    DEPTH_MAX,
    VALUES_MAX,
    JsonInvalid,
    JsonOverflow,
    JsonStream,
)


def documents(*pieces: bytes) -> list[Any]:
    """Every document that comes out when the pieces go in one after the other."""
    stream, found = JsonStream(), []
    for piece in pieces:
        stream.receive_data(piece)
        while stream.next_document():
            found.append(stream.document)
    return found


SAMPLES = [
    b'{"jsonrpc":"2.0","method":"bdev_get_bdevs","id":1,"params":{"name":"a\\n\\u00e9 \\ud83d\\ude00 \xc3\xa9"}}',
    b'[1, -2, 3.5e-7, true, false, null, [], {}, "", {"a": {"b": [[]]}}]',
    b' \r\n\t{ "a" : [ 1 , 2 ] , "b" : "c" } ',
    b'{"n": 18446744073709551615}',
]


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_document_comes_out_whatever_pieces_it_comes_in(sample: bytes) -> None:
    expected = json.loads(sample)
    whole = documents(sample)
    single = documents(*(sample[at : at + 1] for at in range(len(sample))))
    assert whole == single
    assert len(whole) == 1
    assert str(whole[0]).replace("'3.5e-7'", "3.5e-07") == str(expected)


def test_several_documents_in_one_piece_and_one_cut_anywhere() -> None:
    both = SAMPLES[0] + b"\n" + SAMPLES[1]
    expected = documents(SAMPLES[0]) + documents(SAMPLES[1])
    for cut in range(len(both)):
        assert documents(both[:cut], both[cut:]) == expected


def test_a_name_that_comes_twice_is_remembered() -> None:
    (document,) = documents(b'{"a":1,"a":2}')
    assert document.repeated
    assert not documents(b'{"a":1,"b":2}')[0].repeated


def test_numbers_keep_how_they_were_written() -> None:
    (document,) = documents(b"[1.50, -0, 1e3, 12345678901234567890123]")
    assert [str(number) for number in document] == ["1.50", "-0", "1e3", "12345678901234567890123"]


@pytest.mark.parametrize(
    "junk",
    [
        b"hello",
        b"//c\n{}",
        b"{]",
        b"[1,]",
        b'{"a":1,}',
        b'{"a" 1}',
        b"{1:2}",
        b'["\\x"]',
        b'["\\ud800"]',
        b'["\\ud800\\u0041"]',
        b'["\\udc00"]',
        b'["a\nb"]',
        b"[01]",
        b"[1.]",
        b"[+1]",
        b"[nul!]",
        b"[Infinity]",
        b'["\xff"]',
        b"]",
        b"[" * (DEPTH_MAX + 1),
        b"[" + b"1" * 5000 + b"]",
    ],
)
def test_junk_is_refused_however_it_comes(junk: bytes) -> None:
    with pytest.raises(JsonInvalid):
        documents(junk)
    with pytest.raises(JsonInvalid):
        documents(*(junk[at : at + 1] for at in range(len(junk))))


def test_an_unfinished_document_is_waited_for() -> None:
    for sample in SAMPLES:
        for cut in range(len(sample.strip())):
            assert documents(sample[:cut]) == []


def test_limits_and_limits_plus_one() -> None:
    assert len(documents(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX)) == 1
    inside = b",".join([b"1"] * (VALUES_MAX - 2))
    assert len(documents(b"[" + inside + b"]")) == 1
    with pytest.raises(JsonInvalid):
        documents(b"[" + inside + b",1]")
    text = b'["' + b"x" * (BUFFER_BYTES - 3)
    with pytest.raises(JsonOverflow):
        documents(text, b"y")


def test_random_changes_never_break_the_reader() -> None:
    dice = random.Random(20261122)
    for _ in range(3000):
        data = bytearray(dice.choice(SAMPLES))
        for _ in range(dice.randrange(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            found = documents(bytes(data))
        except JsonInvalid:
            continue
        for document in found:
            read_document(document)


def read(text: bytes) -> Call | Batch:
    return read_document(documents(text)[0])


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        (b'{"id":1}', ""),
        (b'{"method":1,"id":1}', ""),
        (b'{"method":"m","id":[1]}', ""),
        (b'{"method":"m","id":true}', ""),
        (b'{"jsonrpc":"1.0","method":"m","id":1}', ""),
        (b'{"jsonrpc":"2.0","method":"m","id":1,"extra":1}', ""),
        (b'{"id":1,"id":2,"method":"m"}', ""),
        (b'{"method":"m","id":1,"params":3}', "1"),
        (b"[]", ""),
        (b"7 ", ""),
        (b'"abc"', ""),
    ],
)
def test_what_is_no_request(text: bytes, identity: str) -> None:
    call = read(text)
    assert isinstance(call, Call)
    assert (call.invalid, call.id_text) == (True, identity)


def test_an_id_is_given_back_as_it_was_written() -> None:
    for text in ("1.50", '"a"', "-0", "7"):
        call = read(b'{"method":"m","id":' + text.encode() + b"}")
        assert isinstance(call, Call)
        assert not call.invalid
        assert result_bytes(call, True) == f'{{"jsonrpc":"2.0","id":{text},"result":true}}'.encode()


def test_without_an_id_only_errors_are_answered() -> None:
    for text in (b'{"method":"m"}', b'{"method":"m","id":null,"params":null}'):
        call = read(text)
        assert isinstance(call, Call)
        assert result_bytes(call, 1) == b""
        assert json.loads(error_bytes(call, -5, 'a "b"')) == {
            "jsonrpc": "2.0",
            "id": None,
            "error": {"code": -5, "message": 'a "b"'},
        }


def test_a_batch_keeps_what_is_no_request_in_its_place() -> None:
    batch = read(b'[1,{"method":"m","id":"a"}]')
    assert isinstance(batch, Batch)
    assert [call.invalid for call in batch.calls] == [True, False]
    assert batch.left == 2
