"""Hypothesis strategies for every message, made from the same table as the codec, and what compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from hypothesis import strategies as st

from channel.codec import encode, encode_response
from channel.fields import Blob, Records, Scalar, Text, Words, kind_of
from channel.messages import TABLE, FaultAnswer, MapFault, Message, Row, SetEntries
from channel.values import AnswerRecord, FaultRecord, Header

U64 = st.integers(0, (1 << 64) - 1)
WIDTHS = {"B": 8, "H": 16, "I": 32, "Q": 64}
SHORT = 6


def scalars(kind: Scalar) -> st.SearchStrategy[Any]:
    if kind.code == "16s":
        return st.binary(min_size=16, max_size=16)
    valid = kind.values()
    if valid is not None:
        return st.sampled_from(list(valid.values()))
    top = (1 << WIDTHS[kind.code]) - 1
    return st.integers(0, min(top, kind.maximum if kind.maximum is not None else top, kind.mask or top))


def values(kind: Any) -> st.SearchStrategy[Any]:
    if isinstance(kind, Scalar):
        return scalars(kind)
    if isinstance(kind, Text):
        alphabet = st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")
        return st.text(alphabet, max_size=kind.limit // 4 if kind.limit < 300 else 80)
    if isinstance(kind, Blob):
        return st.binary(max_size=40)
    if isinstance(kind, Words):
        return st.lists(U64, max_size=SHORT)
    record = st.tuples(*(scalars(item.kind) for item in kind.fields)).map(lambda items: kind.record(*items))
    return st.lists(record, max_size=SHORT)


@st.composite
def set_entries(draw: st.DrawFn) -> SetEntries:
    entries = draw(st.lists(U64, min_size=1, max_size=SHORT))
    count = len(entries) if len(entries) > 1 else draw(st.integers(1, 1 << 40))
    return SetEntries(draw(U64), count, entries)


@st.composite
def fault_answers(draw: st.DrawFn) -> FaultAnswer:
    answers, entries = [], []
    for _ in range(draw(st.integers(1, SHORT))):
        action = draw(st.integers(0, 2))
        taken = draw(st.lists(U64, min_size=1, max_size=3)) if action == 0 else []
        entries += taken
        answers.append(AnswerRecord(draw(U64), draw(U64), len(taken), action, draw(st.integers(1, 29))))
    return FaultAnswer(answers, entries)


def messages(message: type[Message]) -> st.SearchStrategy[Any]:
    """Any valid message of one class."""
    if message is SetEntries:
        return set_entries()
    if message is FaultAnswer:
        return fault_answers()
    hints = get_type_hints(message, include_extras=True)
    made = st.builds(message, *(values(kind_of(hints[item.name])) for item in fields(message)))
    return made.filter(lambda made: bool(made.faults)) if message is MapFault else made


def headers(request_ids: bool, blocking: bool = False) -> st.SearchStrategy[Header]:
    number = st.integers(1, (1 << 64) - 1) if request_ids else st.just(0)
    return st.builds(Header, U64, U64, U64, U64, U64, number, st.booleans() if blocking else st.just(False))


def name_of(row: Row) -> str:
    return row.kind.name


def plain_fields(message: Message) -> tuple[Any, ...]:
    """Fields with arrays as lists, so that what was sent and what came can be compared."""
    return tuple(_plain(getattr(message, item.name)) for item in fields(message))  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, str | bytes):
        return value
    return list(value) if isinstance(value, Records | Sequence | memoryview) else value


def smallest(row: Row) -> Message:
    """The message with zeroes and nothing in it, or as little as its rules allow."""
    if row.message is SetEntries:
        return SetEntries(0, 1, [5])
    if row.message is MapFault:
        return MapFault([FaultRecord(1, 2, 3, 4, 1, 1, 0, 5, 6)])
    if row.message is FaultAnswer:
        return FaultAnswer([AnswerRecord(1, 2, 1, 0, 0)], [9])
    hints = get_type_hints(row.message, include_extras=True)
    return row.message(*(_blank(kind_of(hints[item.name])) for item in fields(row.message)))  # type: ignore[arg-type]


def _blank(kind: Any) -> Any:
    if isinstance(kind, Scalar):
        valid = kind.values()
        return bytes(16) if kind.code == "16s" else min(valid.values()) if valid else 0
    return "" if isinstance(kind, Text) else b"" if isinstance(kind, Blob) else ()


def smallest_frames() -> list[bytes]:
    """A frame of every message and of every response."""
    frames = []
    for row in TABLE:
        frames.append(encode(smallest(row), Header(1, 2, 3, 4, 5, 6 if row.response else 0)))
        if row.response:
            frames.append(encode_response(row.kind, row.response(), Header(1, 2, 3, 4, 5, 6)))
    return frames
