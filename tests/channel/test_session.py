"""Ends, requests and responses, limits at limit + 1, relaying, chunks and junk."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel.codec import encode, encode_response
from channel.errors import FieldError
from channel.events import (
    Event,
    NoticeReceived,
    OutputPaused,
    OutputResumed,
    RequestReceived,
    ResponseReceived,
    SessionEnded,
)
from channel.handshake import INCOMING, OUTGOING, Role, SessionState
from channel.messages import (
    TABLE,
    Admit,
    Done,
    EntriesRead,
    FaultAnswer,
    GetEntries,
    Goodbye,
    LeaseGrant,
    LeaseRenew,
    MapFault,
    Resume,
    SetEntries,
    Suspend,
    TableStatus,
    response_to,
)
from channel.session import LimitReached, Limits, Session, SessionStateError
from channel.values import AnswerRecord, FaultRecord, Header, MessageType
from mapping.status import Status
from tests.channel.sessions import (
    HELLO,
    STAMPS,
    WELCOME,
    agent_waiting,
    carry,
    controller_admitting,
    ending,
    in_state,
    opened_pair,
    opened_plane,
)
from tests.channel.strategies import headers, messages, smallest, smallest_frames

# --- ends ------------------------------------------------------------------------------------------------------------


def test_goodbye_ends_both() -> None:
    controller, agent = opened_pair()
    controller.goodbye(Status.STALE_TERM, "another controller reigns\0")
    assert ending(controller) == SessionEnded(Status.STALE_TERM, "another controller reigns", by_peer=False)
    (ended,) = carry(controller, agent)
    assert ended == SessionEnded(Status.STALE_TERM, "another controller reigns", by_peer=True)
    agent.receive_data(encode(LeaseGrant(1, 2)))
    agent.receive_eof()
    assert agent.next_event() is None
    with pytest.raises(SessionStateError):
        agent.send(LeaseRenew(1))
    with pytest.raises(SessionStateError):
        agent.goodbye(Status.OK)


def test_rejected_hello_ends_both() -> None:
    controller, hello = controller_admitting()
    agent = agent_waiting()
    controller.respond(hello, response_to(MessageType.HELLO, Status.STALE_INCARNATION, "fenced"))
    assert ending(controller) == SessionEnded(Status.STALE_INCARNATION, "fenced", by_peer=False)
    assert carry(controller, agent) == [SessionEnded(Status.STALE_INCARNATION, "fenced", by_peer=True)]


def test_what_follows_a_goodbye_is_not_parsed() -> None:
    controller, _ = opened_pair()
    controller.receive_data(encode(Goodbye(Status.OK)) + b"\xff" * 100)
    assert list(controller.events()) == [SessionEnded(Status.OK, "", by_peer=True)]


def test_frames_before_a_bad_one_count() -> None:
    controller, _ = opened_pair()
    controller.receive_data(encode(LeaseRenew(1)) + encode(LeaseRenew(2)) + bytes(4))
    first, second, ended = controller.events()
    assert isinstance(first, NoticeReceived) and isinstance(second, NoticeReceived)
    assert isinstance(ended, SessionEnded) and ended.error is not None and ended.error.where == "header.length"


def test_end_inside_a_frame_is_told() -> None:
    controller, _ = opened_pair()
    controller.receive_data(encode(LeaseRenew(1))[:20])
    controller.receive_eof()
    ended = ending(controller)
    assert ended.status is Status.CANCELLED and "after 20 bytes" in ended.detail


def test_outstanding_requests_are_known_after_the_end() -> None:
    controller, _ = opened_pair()
    first = controller.send(GetEntries(0, 1), STAMPS, context="x")
    controller.receive_eof()
    assert controller.outstanding() == [(first, "x")]


# --- requests and responses ------------------------------------------------------------------------------------------


def test_responses_find_their_requests_in_any_order() -> None:
    controller, agent = opened_pair()
    ids = [controller.send(GetEntries(number, 1), STAMPS, context=number) for number in range(5)]
    assert ids == [1, 2, 3, 4, 5] and controller.requests_free == 1019
    requests = carry(controller, agent)
    assert agent.unanswered == 5
    for request in reversed(requests):
        assert isinstance(request, RequestReceived) and isinstance(request.message, GetEntries)
        agent.respond(request, EntriesRead(entries=[request.message.start]))
    answers = carry(agent, controller)
    assert [answer.context for answer in answers if isinstance(answer, ResponseReceived)] == [4, 3, 2, 1, 0]
    for answer in answers:
        assert isinstance(answer, ResponseReceived) and isinstance(answer.message, EntriesRead)
        assert list(answer.message.entries) == [answer.context]
        assert answer.header[:5] == STAMPS[:5]
    assert not controller.outstanding() and not agent.unanswered


def test_a_response_carries_other_stamps_if_asked() -> None:
    daemon, plane = opened_plane()
    daemon.send(Admit(bytes(16), 1, 1, 1), Header(4, 5))
    (request,) = carry(daemon, plane)
    assert isinstance(request, RequestReceived)
    plane.respond(request, Done(), Header(4, 5, epoch=6))
    (answer,) = carry(plane, daemon)
    assert answer.header == Header(4, 5, 6, request_id=1)  # type: ignore[union-attr]


def test_blocking_goes_along_but_not_back() -> None:
    controller, agent = opened_pair()
    controller.send(SetEntries(0, 1, [1]), STAMPS._replace(blocking=True))
    (request,) = carry(controller, agent)
    assert isinstance(request, RequestReceived) and request.header.blocking
    agent.respond(request, Done())
    (answer,) = carry(agent, controller)
    assert not answer.header.blocking  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [MessageType.SUSPEND, MessageType.RESUME], ids=lambda kind: kind.name)
def test_unasked_responses_end_the_session(kind: MessageType) -> None:
    controller, _ = opened_pair()
    controller.send(Suspend(), STAMPS)
    request_id = 1 if kind is MessageType.RESUME else 2
    controller.receive_data(encode_response(kind, Done(), Header(request_id=request_id)))
    ended = ending(controller)
    assert ended.error is not None and ended.error.where == "header.request_id"


def test_a_second_response_ends_the_session() -> None:
    controller, _ = opened_pair()
    controller.send(Suspend(), STAMPS)
    answer = encode_response(MessageType.SUSPEND, Done(), Header(request_id=1))
    controller.receive_data(answer + answer)
    first, ended = controller.events()
    assert isinstance(first, ResponseReceived) and isinstance(ended, SessionEnded)


def test_a_request_id_in_use_ends_the_session() -> None:
    _, agent = opened_pair()
    frame = encode(Resume(), Header(request_id=9))
    agent.receive_data(frame + frame)
    assert "used twice" in ending(agent).detail


def test_only_what_waits_can_be_answered_and_once() -> None:
    controller, agent = opened_pair()
    other_controller, other_agent = opened_pair()
    controller.send(Suspend(), STAMPS)
    other_controller.send(Suspend(), STAMPS)
    (request,) = carry(controller, agent)
    (same_id,) = carry(other_controller, other_agent)
    assert isinstance(request, RequestReceived) and isinstance(same_id, RequestReceived)
    assert agent.awaits_response(request) and not agent.awaits_response(same_id)
    with pytest.raises(SessionStateError):
        agent.respond(same_id, Done())
    with pytest.raises(FieldError):
        agent.respond(request, EntriesRead())
    agent.respond(request, Done())
    with pytest.raises(SessionStateError):
        agent.respond(request, Done())


def test_bad_messages_of_ours_change_nothing() -> None:
    controller, _ = opened_pair()
    with pytest.raises(FieldError):
        controller.send(GetEntries(-1, 1), STAMPS)
    with pytest.raises(SessionStateError):
        controller.send(Done())
    with pytest.raises(SessionStateError):
        controller.send(Suspend(), Header(request_id=3))
    assert not controller.data_to_send() and not controller.outstanding()
    assert controller.send(Suspend(), STAMPS) == 1


# --- limits ----------------------------------------------------------------------------------------------------------


def test_requests_in_flight_and_one_more() -> None:
    controller, agent = opened_pair(limits=Limits(inflight_out_max=3))
    for _ in range(3):
        controller.send(Suspend(), STAMPS)
    assert controller.requests_free == 0
    with pytest.raises(LimitReached, match="inflight_out_max"):
        controller.send(Suspend(), STAMPS)
    requests = carry(controller, agent)
    assert len(requests) == 3
    agent.respond(requests[1], Done())  # type: ignore[arg-type]
    carry(agent, controller)
    assert controller.send(Suspend(), STAMPS) == 4


def test_the_peers_requests_in_flight_and_one_more() -> None:
    _, agent = opened_pair(limits=Limits(inflight_in_max=3))
    for number in range(1, 5):
        assert not agent.ended
        agent.receive_data(encode(Suspend(), Header(request_id=number)))
    ended = ending(agent)
    assert ended.status is Status.LIMIT and ended.error is not None
    assert b"".join(agent.data_to_send())[56] == Status.LIMIT


def test_output_pauses_resumes_and_refuses() -> None:
    limits = Limits(output_high_bytes=200, output_low_bytes=100, output_max_bytes=320)
    _, agent = opened_pair(limits=limits)
    for _ in range(3):
        agent.send(LeaseRenew(1))
    assert agent.output_bytes == 192 and not agent.output_paused
    agent.send(LeaseRenew(1))
    assert agent.next_event() == OutputPaused(256) and agent.output_paused
    agent.send(LeaseRenew(1))
    with pytest.raises(LimitReached, match="output_max_bytes"):
        agent.send(LeaseRenew(1))
    assert agent.output_bytes == 320 and agent.next_event() is None
    assert len(agent.data_to_send(65)) == 2
    assert agent.output_bytes == 192 and agent.next_event() is None
    assert len(agent.data_to_send(1)) == 1 and agent.next_event() is None
    assert len(agent.data_to_send(1)) == 1
    assert agent.next_event() == OutputResumed(64) and not agent.output_paused


def test_goodbye_has_room_in_a_full_queue() -> None:
    _, agent = opened_pair(limits=Limits(output_max_bytes=144))
    agent.send(LeaseRenew(1))
    agent.send(LeaseRenew(1))
    agent.goodbye(Status.LIMIT, "the controller does not read")
    assert len(agent.data_to_send()) == 3 and ending(agent).status is Status.LIMIT


# --- relaying --------------------------------------------------------------------------------------------------------


def test_a_command_through_the_daemon() -> None:
    controller, agent = opened_pair()
    daemon, plane = opened_plane()
    daemon.send(TableStatus())
    controller.send(SetEntries(5, 2, [7, 8]), STAMPS._replace(blocking=True), context="mine")
    (command,) = carry(controller, agent)
    assert isinstance(command, RequestReceived)
    assert daemon.relay(command) == 2
    _, request = carry(daemon, plane)
    assert isinstance(request, RequestReceived)
    assert request.header == STAMPS._replace(blocking=True, request_id=2)
    assert request.message == command.message
    plane.respond(request, Done(Status.SEQUENCE_GAP, "gap"))
    (response,) = carry(plane, daemon)
    assert isinstance(response, ResponseReceived) and response.context is command
    assert agent.relay(response) == 0
    (answer,) = carry(agent, controller)
    assert isinstance(answer, ResponseReceived)
    assert (answer.context, answer.message) == ("mine", Done(Status.SEQUENCE_GAP, "gap"))
    assert answer.header == STAMPS._replace(request_id=1)


def test_faults_and_answers_through_the_daemon_keep_their_bytes() -> None:
    controller, agent = opened_pair()
    daemon, plane = opened_plane()
    plane.send(MapFault([FaultRecord(1, 4, 3, 4, 1, 1, 0, 5, 6)]), STAMPS._replace(sequence=0, table=0))
    (fault,) = carry(plane, daemon)
    assert isinstance(fault, NoticeReceived)
    agent.relay(fault)
    (seen,) = carry(agent, controller)
    assert isinstance(seen, NoticeReceived) and seen.frame == fault.frame
    controller.send(FaultAnswer([AnswerRecord(1, 3, 1, 0, 0)], [17]), STAMPS)
    (reply,) = carry(controller, agent)
    assert isinstance(reply, NoticeReceived)
    daemon.relay(reply)
    (answer,) = carry(daemon, plane)
    assert isinstance(answer, NoticeReceived) and answer.frame == reply.frame and answer.header == STAMPS


def test_what_cannot_be_relayed() -> None:
    controller, agent = opened_pair()
    daemon, plane = opened_plane()
    daemon.send(TableStatus())
    (request,) = carry(daemon, plane)
    assert isinstance(request, RequestReceived)
    plane.respond(request, response_to(MessageType.TABLE_STATUS, Status.OK))
    (own,) = carry(plane, daemon)
    assert isinstance(own, ResponseReceived)
    with pytest.raises(SessionStateError, match="not relayed"):
        agent.relay(own)
    agent.send(LeaseRenew(1))
    (renewal,) = carry(agent, controller)
    assert isinstance(renewal, NoticeReceived)
    with pytest.raises(SessionStateError, match="LEASE_RENEW"):
        daemon.relay(renewal)


def test_a_late_response_does_not_answer_a_new_session() -> None:
    controller, agent = opened_pair()
    daemon, plane = opened_plane()
    controller.send(Suspend(), STAMPS)
    (command,) = carry(controller, agent)
    assert isinstance(command, RequestReceived)
    daemon.relay(command)
    new_controller, new_agent = opened_pair()
    new_controller.send(Suspend(), STAMPS)
    carry(new_controller, new_agent)
    (request,) = carry(daemon, plane)
    plane.respond(request, Done())  # type: ignore[arg-type]
    (response,) = carry(plane, daemon)
    assert isinstance(response, ResponseReceived)
    with pytest.raises(SessionStateError):
        new_agent.relay(response)
    agent.receive_eof()
    assert not agent.awaits_response(command)
    with pytest.raises(SessionStateError):
        agent.relay(response)


def test_relaying_counts_against_the_limits() -> None:
    controller, agent = opened_pair()
    daemon, _ = opened_plane(limits=Limits(inflight_out_max=1, output_max_bytes=1 << 20))
    controller.send(Suspend(), STAMPS)
    controller.send(Suspend(), STAMPS)
    first, second = carry(controller, agent)
    daemon.relay(first)  # type: ignore[arg-type]
    with pytest.raises(LimitReached):
        daemon.relay(second)  # type: ignore[arg-type]


# --- chunks and junk -------------------------------------------------------------------------------------------------


def stream() -> bytes:
    """What an agent could send in one session: every report and notice, twice."""
    parts = [encode(HELLO, Header(request_id=1))]
    for row in TABLE:
        if row.directions & INCOMING[Role.CONTROLLER] and row.response is None and row.kind is not MessageType.GOODBYE:
            parts += [encode(smallest(row), STAMPS)] * 2
    return b"".join(parts)


def events_of(chunks: list[bytes]) -> list[Event]:
    controller = Session(Role.CONTROLLER)
    events: list[Event] = []
    for chunk in chunks:
        controller.receive_data(memoryview(chunk))
        for event in controller.events():
            if isinstance(event, RequestReceived):
                controller.respond(event, WELCOME)
            events.append(event)
    return events


def test_byte_by_byte_is_the_same_as_frame_by_frame() -> None:
    data = stream()
    frames, rest = [], data
    while rest:
        length = int.from_bytes(rest[:4], "little")
        frames.append(rest[:length])
        rest = rest[length:]
    whole = events_of(frames)
    assert len(whole) == len(frames) and not any(isinstance(event, SessionEnded) for event in whole)
    assert events_of([data[index : index + 1] for index in range(len(data))]) == whole


@settings(max_examples=40)
@given(st.data())
def test_any_chunking_gives_the_same_events(data: st.DataObject) -> None:
    controller, agent = opened_pair()
    rows = [row for row in TABLE if row.directions & OUTGOING[Role.AGENT] and not row.response]
    picked = data.draw(st.lists(st.sampled_from([row for row in rows if row.kind is not MessageType.GOODBYE])))
    for row in picked:
        agent.send(data.draw(messages(row.message)), data.draw(headers(False)))
    sent = agent.data_to_send()
    left = b"".join(sent)
    got: list[Event] = []
    while left:
        size = data.draw(st.integers(1, len(left)))
        controller.receive_data(left[:size])
        got.extend(controller.events())
        left = left[size:]
    assert [event.frame for event in got if isinstance(event, NoticeReceived)] == sent
    assert len(got) == len(sent)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("role", Role, ids=lambda role: role.name)
def test_fuzzed_sessions_live_or_end_properly(seed: int, role: Role) -> None:
    chance = random.Random(f"{seed} {role}")
    frames = smallest_frames()
    ended = 0
    for _ in range(150):
        session = in_state(role, SessionState.OPEN)
        assert session is not None
        for _ in range(20):
            data = bytearray(chance.choice(frames))
            if chance.random() < 0.3:
                data[chance.randrange(len(data))] = chance.randrange(256)
            if chance.random() < 0.1:
                data = bytearray(chance.randbytes(chance.randrange(200)))
            session.receive_data(data)
        events = list(session.events())
        assert all(not isinstance(event, SessionEnded) for event in events[:-1])
        if session.ended:
            ended += 1
            assert isinstance(events[-1], SessionEnded)
            said = session.data_to_send()
            assert events[-1].by_peer or said[-1][4] == MessageType.GOODBYE
    assert ended > 100
