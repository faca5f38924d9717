"""JSON texts out of a byte stream: whole, in pieces, one behind the other, and what is none."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spdk_rpc.framing import FramingError, JsonFramer

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
TEXTS = st.lists(st.lists(VALUES, max_size=3) | st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=4)


@given(values=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=20), ascii_only=st.booleans())
def test_any_texts_in_any_pieces(values: list[object], cuts: list[int], ascii_only: bool) -> None:
    stream = b" \n".join(json.dumps(value, ensure_ascii=ascii_only).encode() for value in values)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    framer = JsonFramer()
    texts = [text for start, end in pairwise(edges) for text in framer.feed(stream[start:end])]
    assert [json.loads(text) for text in texts] == values
    assert framer.is_empty


def test_byte_by_byte() -> None:
    text = json.dumps({"a": ['x\\"}{][', "Grüße, 漢字 🦆"], "b": {}}, ensure_ascii=False).encode()
    framer = JsonFramer()
    for byte in text[:-1]:
        assert framer.feed(bytes([byte])) == []
    assert framer.feed(text[-1:]) == [text]


@pytest.mark.parametrize("junk", [b"hello", b"5", b'"text"', b"}", b"\xff", b"null"])
def test_what_begins_no_object_or_array(junk: bytes) -> None:
    with pytest.raises(FramingError, match="does not begin"):
        JsonFramer().feed(junk)


def test_limit() -> None:
    text = b"[" + b"1" * 98 + b"]"
    assert JsonFramer(bytes_max=100).feed(text) == [text]
    with pytest.raises(FramingError, match="more than 99 bytes"):
        JsonFramer(bytes_max=99).feed(text)
    with pytest.raises(FramingError, match="more than 99 bytes"):
        JsonFramer(bytes_max=99).feed(text[:-1] + b"2")


def test_white_space_only_is_empty() -> None:
    framer = JsonFramer()
    assert framer.feed(b" \r\n\t") == []
    assert framer.is_empty
    framer.feed(b"{")
    assert not framer.is_empty
