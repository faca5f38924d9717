"""Every message: round trip, byte by byte, truncated, with junk; every limit at limit + 1."""

from __future__ import annotations

import random
import struct
from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel import values
from channel.codec import HEADER_BYTES, REQUESTS, RESPONSES, decode, encode, encode_response
from channel.errors import FieldError, ProtocolError
from channel.fields import RecordArray, Records, Scalar, Words
from channel.framing import FrameReader
from channel.messages import (
    TABLE,
    Admit,
    CreateTable,
    Done,
    EntriesRead,
    FaultAnswer,
    GetEntries,
    Goodbye,
    LeaseRenew,
    MapFault,
    Present,
    Row,
    SetEntries,
    SetState,
    StateRead,
    TableSlots,
    Welcome,
    Withdraw,
    response_to,
    short,
)
from channel.values import AnswerRecord, FaultRecord, Header, MessageType
from mapping.entry import State
from mapping.status import Status
from tests.channel.strategies import headers, messages, name_of, plain_fields, smallest_frames

REQUEST = Header(request_id=1)
ASKED = [row for row in TABLE if row.response is not None]


def refusal(frame: bytes) -> ProtocolError:
    """What `decode` says against the frame."""
    with pytest.raises(ProtocolError) as caught:
        decode(frame)
    return caught.value


def changed(frame: bytes, offset: int, code: str, value: int) -> bytes:
    """The frame with one integer replaced."""
    data = bytearray(frame)
    struct.pack_into("<" + code, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize("row", TABLE, ids=name_of)
@settings(max_examples=25)
@given(data=st.data())
def test_every_message_round_trips(row: Row, data: st.DataObject) -> None:
    message = data.draw(messages(row.message))
    header = data.draw(headers(row.response is not None, row.blocking))
    frame = decode(encode(message, header))
    assert (frame.type, frame.response, frame.header) == (row.kind, False, header)
    assert type(frame.message) is row.message
    assert plain_fields(frame.message) == plain_fields(message)
    assert encode(frame.message, frame.header) == frame.data


@pytest.mark.parametrize("row", ASKED, ids=name_of)
@settings(max_examples=25)
@given(data=st.data())
def test_every_response_round_trips(row: Row, data: st.DataObject) -> None:
    assert row.response is not None
    message = data.draw(messages(row.response))
    header = data.draw(headers(True))
    frame = decode(encode_response(row.kind, message, header))
    assert (frame.type, frame.response, frame.header) == (row.kind, True, header)
    assert plain_fields(frame.message) == plain_fields(message)
    assert encode_response(row.kind, message, frame.header) == frame.data


def test_received_enums_are_members_and_arrays_do_not_copy() -> None:
    state = decode(encode(SetState(1, 2, State.NO_WRITE, True), REQUEST)).message
    assert isinstance(state, SetState) and state.state is State.NO_WRITE and state.active is True
    read = decode(encode_response(MessageType.GET_ENTRIES, EntriesRead(entries=array("Q", [1, 2, 3])), REQUEST)).message
    assert isinstance(read, EntriesRead) and read.status is Status.OK
    assert isinstance(read.entries, memoryview) and read.entries.format == "Q" and read.entries.tolist() == [1, 2, 3]
    assert decode(encode(TableSlots(()), REQUEST)).message == TableSlots(())


def test_received_records_are_a_sequence() -> None:
    sent = [FaultRecord(number, 2, 3, 4, 1, 1, 0, 5, 6) for number in range(1, 6)]
    message = decode(encode(MapFault(sent))).message
    assert isinstance(message, MapFault)
    faults = message.faults
    assert isinstance(faults, Records)
    assert len(faults) == 5 and faults[4].fault_id == 5 and faults[-5] == sent[0] and faults[1:3] == sent[1:3]
    assert faults == sent and list(faults) == sent and faults != sent[1:] and faults != 5
    assert faults == decode(encode(MapFault(faults))).message.faults  # type: ignore[attr-defined]
    assert repr(faults) == repr(sent)
    with pytest.raises(IndexError):
        faults[5]


def test_more_records_than_one_batch() -> None:
    sent = [FaultRecord(number, 2, 3, 4, 1, 1, 0, 5, 6) for number in range(values.FAULTS_MAX)]
    assert decode(encode(MapFault(sent))).message == MapFault(sent)


def test_truncated_everywhere() -> None:
    for frame in smallest_frames():
        assert decode(frame)
        for length in range(len(frame)):
            refusal(frame[:length])
            if length >= HEADER_BYTES:
                refusal(changed(frame[:length], 0, "I", length))


def test_wrong_length_and_what_a_newer_version_has_appended() -> None:
    """A frame's length is right or it is none; what lies behind the last field that is known is ignored."""
    for frame in smallest_frames():
        refusal(frame + bytes(8))
        refusal(changed(frame + bytes(4), 0, "I", len(frame) + 4))
        longer = decode(changed(frame + b"appended", 0, "I", len(frame) + 8))
        assert longer.message == decode(frame).message


def test_frames_are_multiples_of_8() -> None:
    assert all(len(frame) % 8 == 0 for frame in smallest_frames())


def test_any_changed_byte_is_refused_or_means_something_else() -> None:
    """No byte of a frame is without meaning: another value is either refused or gives another frame back."""
    for frame in smallest_frames():
        for offset in range(len(frame)):
            other = changed(frame, offset, "B", frame[offset] ^ 0x55)
            try:
                got = decode(other)
            except ProtocolError:
                continue
            if got.response:
                again = encode_response(got.type, got.message, got.header, version=got.version)  # type: ignore[arg-type]
            else:
                again = encode(got.message, got.header, version=got.version)
            assert again == other != frame


@pytest.mark.parametrize(
    ("offset", "code", "value", "where"),
    [
        (4, "H", 999, "header.type"),
        (4, "H", 0, "header.type"),
        (7, "B", 4, "header.flags"),
        (7, "B", 1, "header.flags"),
        (7, "B", 2, "header.flags"),
        (8, "Q", 9, "header.request_id"),
    ],
)
def test_header_of_a_notice(offset: int, code: str, value: int, where: str) -> None:
    assert refusal(changed(encode(LeaseRenew(5)), offset, code, value)).where == where


def test_header_of_a_request() -> None:
    frame = encode(GetEntries(0, 1), REQUEST)
    assert refusal(changed(frame, 8, "Q", 0)).where == "header.request_id"
    assert refusal(changed(frame, 7, "B", 2)).where == "header.flags"
    response = encode_response(MessageType.SET_ENTRIES, Done(), REQUEST)
    assert refusal(changed(response, 7, "B", 3)).where == "header.flags"


def test_frame_lengths() -> None:
    reader = FrameReader()
    for length, status in ((0, Status.BAD_MESSAGE), (55, Status.BAD_MESSAGE), (60, Status.BAD_MESSAGE)):
        reader.clear()
        reader.feed(struct.pack("<I", length))
        with pytest.raises(ProtocolError) as caught:
            reader.next_frame()
        assert caught.value.status is status
    reader.clear()
    reader.feed(struct.pack("<I", values.FRAME_BYTES_MAX))
    assert reader.next_frame() is None
    reader.clear()
    reader.feed(struct.pack("<I", values.FRAME_BYTES_MAX + 8))
    with pytest.raises(ProtocolError) as caught:
        reader.next_frame()
    assert caught.value.status is Status.LIMIT


@pytest.mark.parametrize(
    ("message", "place", "value", "where"),
    [
        (SetState(0, 1, State.ZERO, True), "state", 5, "SetState.state"),
        (SetState(0, 1, State.ZERO, True), "active", 2, "SetState.active"),
        (GetEntries(0, 1), "count", values.ENTRIES_MAX + 1, "GetEntries.count"),
        (Withdraw("a" * 8), "subnqn", values.NQN_BYTES_MAX + 1, "Withdraw.subnqn"),
        (Withdraw("a" * 8), "subnqn", 9, "Withdraw.subnqn"),
        (SetEntries(0, 2, [1, 2]), "count", 3, "SetEntries.entries"),
        (SetEntries(0, 1, [1]), "count", 0, "SetEntries.entries"),
        (Present(bytes(16), 1, 1, 2, 0, "", "", "", ""), "flags", 4, "Present.flags"),
    ],
)
def test_refused_values_are_named(message: Any, place: str, value: int, where: str) -> None:
    frame = encode(message, REQUEST)
    row = next(row for row in TABLE if row.message is type(message))
    spot = next(item for item in REQUESTS[row.kind].places if item.name == place)
    code = spot.kind.code if isinstance(spot.kind, Scalar) else "I"
    assert refusal(changed(frame, HEADER_BYTES + spot.offset, code, value)).where == where


def test_padding_must_be_zero() -> None:
    frame = encode(Withdraw("abc"), REQUEST)
    assert refusal(changed(frame, len(frame) - 1, "B", 1)).why == "padding is not zero"
    fixed = encode(SetState(0, 1, State.ZERO, True), REQUEST)
    assert decode(fixed)
    event = encode_response(MessageType.GET_STATE, StateRead(bits=b"\1"), REQUEST)
    assert refusal(changed(event, HEADER_BYTES + 12, "I", 1)).where == "StateRead"
    fault = encode(MapFault([FaultRecord(1, 2, 3, 4, 1, 1, 0, 5, 6)]))
    assert refusal(changed(fault, HEADER_BYTES + 8 + 35, "B", 1)).where == "MapFault.faults"
    assert refusal(changed(fault, HEADER_BYTES + 8 + 44, "I", 1)).why == "padding is not zero"
    assert "operation" in refusal(changed(fault, HEADER_BYTES + 8 + 32, "B", 6)).why


def test_text_is_strict_utf8_without_nul() -> None:
    frame = encode(Withdraw("abcdefgh"), REQUEST)
    assert refusal(frame.replace(b"abc", b"\xff\xffc")).why == "not UTF-8 at byte 0"
    assert refusal(frame.replace(b"abc", b"a\0c")).why == "a NUL in the text"
    for text in ("a\0b", "\ud800"):
        with pytest.raises(FieldError, match=r"Withdraw\.subnqn"):
            encode(Withdraw(text), REQUEST)


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        (lambda count: Withdraw("n" * count), values.NQN_BYTES_MAX),
        (lambda count: TableSlots([0] * count), values.SLOTS_MAX),
        (lambda count: SetEntries(0, count, array("Q", bytes(8 * count))), values.ENTRIES_MAX),
        (lambda count: MapFault([FaultRecord(1, 1, 1, 1, 1, 1, 1, 1, 1)] * count), values.FAULTS_MAX),
        (lambda count: FaultAnswer([AnswerRecord(1, 1, 0, 2, 0)] * count), values.ANSWERS_MAX),
        (lambda count: GetEntries(0, count), values.ENTRIES_MAX),
        (lambda count: CreateTable(bytes(16), bytes(16), 1, 1, 1, 0, "n" * count, ()), values.NAME_BYTES_MAX),
    ],
)
def test_limits_and_one_more(message: Any, kept: int) -> None:
    header = Header() if isinstance(message(1), MapFault | FaultAnswer) else REQUEST
    assert decode(encode(message(kept), header))
    with pytest.raises(FieldError):
        encode(message(kept + 1), header)


def test_largest_arrays_fit_into_a_frame() -> None:
    arrays = [
        place.kind
        for codec in (*REQUESTS.values(), *RESPONSES.values())
        for place in codec.places
        if isinstance(place.kind, RecordArray | Words)
    ]
    assert len(arrays) >= 10
    assert all(kind.limit * kind.element_size + 4096 <= values.FRAME_BYTES_MAX for kind in arrays)


@pytest.mark.parametrize(
    ("message", "header"),
    [
        (SetState(0, 1, 9, True), REQUEST),  # type: ignore[arg-type]
        (SetState(-1, 1, State.ZERO, True), REQUEST),
        (SetState(0, 1 << 64, State.ZERO, True), REQUEST),
        (SetEntries(0, 1, [1 << 64]), REQUEST),
        (SetEntries(0, 1, [-1]), REQUEST),
        (SetEntries(0, 3, [1, 2]), REQUEST),
        (SetEntries(0, 0, []), REQUEST),
        (MapFault([]), Header()),
        (MapFault([FaultRecord(1, 2, 3, 4, 6, 1, 0, 5, 6)]), Header()),
        (MapFault([FaultRecord(1, 2, 3, 4, 1, 1, 0, 1 << 32, 6)]), Header()),
        (FaultAnswer([], []), Header()),
        (FaultAnswer([AnswerRecord(1, 2, 2, 0, 0)], [9]), Header()),
        (FaultAnswer([AnswerRecord(1, 2, 0, 0, 0)], []), Header()),
        (FaultAnswer([AnswerRecord(1, 2, 1, 2, 0)], [1]), Header()),
        (FaultAnswer([AnswerRecord(1, 2, 0, 1, 0)], []), Header()),
        (FaultAnswer([AnswerRecord(1, 2, 0, 1, 30)], []), Header()),
        (Admit(b"short", 1, 1, 1), REQUEST),
        (LeaseRenew(1), REQUEST),
        (LeaseRenew(1), Header(term=-1)),
        (GetEntries(0, 1), Header()),
        (GetEntries(0, 1), Header(request_id=1, blocking=True)),
        (Done(), REQUEST),
    ],
)
def test_our_own_bad_messages(message: Any, header: Header) -> None:
    with pytest.raises(FieldError):
        encode(message, header)


def test_our_own_bad_responses() -> None:
    with pytest.raises(FieldError):
        encode_response(MessageType.GET_ENTRIES, Done(), REQUEST)
    with pytest.raises(FieldError):
        encode_response(MessageType.LEASE_RENEW, Done(), REQUEST)
    with pytest.raises(FieldError):
        encode_response(MessageType.SET_ENTRIES, Done(), Header())
    with pytest.raises(FieldError):
        encode_response(MessageType.SET_ENTRIES, Done(), Header(request_id=1, blocking=True))


def test_response_to_gives_the_right_class() -> None:
    assert isinstance(response_to(MessageType.HELLO, Status.FORBIDDEN, "no"), Welcome)
    for row in ASKED:
        assert type(response_to(row.kind, Status.BUSY, "x" * 5000)) is row.response
    with pytest.raises(ValueError, match="LEASE_RENEW"):
        response_to(MessageType.LEASE_RENEW, Status.OK)


def test_short_never_cuts_a_character() -> None:
    assert short("a" * 1023 + "é") == "a" * 1023
    assert short("a\0b\ud800") == "ab?"
    assert encode(Goodbye(Status.OK, short("€" * 1000)))


def test_every_type_has_one_row_and_a_codec() -> None:
    assert [row.kind for row in TABLE] == list(MessageType)
    assert set(REQUESTS) == set(MessageType) and set(RESPONSES) == {row.kind for row in ASKED}
    assert len({row.message for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("seed", range(4))
def test_fuzz_mutated_frames(seed: int) -> None:
    """Whatever the bytes: a frame or a ProtocolError, nothing else."""
    chance = random.Random(seed)
    frames = smallest_frames()
    refused = 0
    for _ in range(4000):
        data = bytearray(chance.choice(frames))
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 2, 127, 255, chance.randrange(256)))
        if chance.random() < 0.2:
            data = data[: chance.randrange(len(data))] + chance.randbytes(chance.randrange(40))
        if chance.random() < 0.7 and len(data) >= 4:
            struct.pack_into("<I", data, 0, len(data))
        try:
            decode(bytes(data))
        except ProtocolError:
            refused += 1
    assert refused > 1000
