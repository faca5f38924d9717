"""Between controller and data plane: as it is, in order, and never from an ended session."""

from __future__ import annotations

import pytest

from agent.core import Phase
from agent.core import effects as e
from channel.events import ResponseReceived
from channel.messages import (
    CopySegments,
    Done,
    EntriesRead,
    FaultAnswer,
    GetEntries,
    GetParked,
    GetState,
    MapFault,
    Message,
    Refused,
    Resume,
    SetEntries,
    SetState,
    Suspend,
    TableSlots,
    ZeroSegments,
)
from channel.values import AnswerRecord, FaultRecord, Header, MessageType
from mapping.entry import State
from mapping.status import Status
from tests.agent.driver import Driver, config, notice, of

TABLE = 1 << 32 | 1
FAULT = MapFault([FaultRecord(1, TABLE, 5, 0, 1, 1, 2, 0, 8)])
RELAYED: list[Message] = [
    GetEntries(0, 1),
    SetEntries(0, 1, [0]),
    GetState(0, 1, State.ZERO),
    SetState(0, 1, State.NO_WRITE, True),
    TableSlots([1]),
    Suspend(),
    Resume(),
    GetParked(),
    CopySegments([]),
    ZeroSegments([]),
]


@pytest.mark.claim(30, 31, 35)
@pytest.mark.parametrize("message", RELAYED, ids=lambda message: type(message).__name__)
def test_table_commands_go_through_and_so_do_their_responses(message: Message) -> None:
    driver = Driver().open()
    request = driver.request(message, TABLE)
    assert driver.step(e.FromController(request)) == [e.RelayDataPlane(request)]
    response = ResponseReceived(Header(), request.type, Done(), b"", request)
    assert driver.step(e.FromDataPlane(response)) == [e.RelayController(response)]
    assert driver.step(e.FromDataPlane(response)) == [], "answered once"


@pytest.mark.claim(28)
def test_faults_and_answers_go_through() -> None:
    driver = Driver().open()
    fault, answer = notice(FAULT), notice(FaultAnswer([AnswerRecord(1, 5, 1, 0, 0)], [5]))
    assert driver.step(e.FromDataPlane(fault)) == [e.RelayController(fault)]
    assert driver.step(e.FromController(answer)) == [e.RelayDataPlane(answer)]


def test_what_the_data_plane_refuses_is_passed_on() -> None:
    driver = Driver().open()
    refused = notice(Refused(Status.SEQUENCE_GAP, int(MessageType.FAULT_ANSWER), "3 after 1"))
    assert driver.step(e.FromDataPlane(refused)) == [e.RelayController(refused)]


def test_what_the_controller_refuses_is_noted_only() -> None:
    driver = Driver().open()
    made = driver.step(e.FromController(notice(Refused(Status.BAD_MESSAGE, int(MessageType.EVENT), "what"))))
    assert [type(effect) for effect in made] == [e.Note]


def test_order_is_kept() -> None:
    driver = Driver().open()
    requests = [driver.request(SetEntries(n, 1, [0]), TABLE) for n in range(20)]
    made = [effect for request in requests for effect in driver.step(e.FromController(request))]
    assert made == [e.RelayDataPlane(request) for request in requests]


def test_answers_to_an_ended_session_reach_nobody() -> None:
    driver = Driver().open()
    request = driver.request(GetEntries(0, 1), TABLE)
    driver.step(e.FromController(request))
    driver.step(e.SessionDown("gone"))
    response = ResponseReceived(Header(), request.type, EntriesRead(), b"", request)
    assert driver.step(e.FromDataPlane(response)) == []
    driver.step(e.SessionUp())
    driver.welcome()
    assert driver.step(e.FromDataPlane(response)) == [], "not even when a new session has begun"


def test_the_same_request_id_in_a_new_session_is_another_request() -> None:
    driver = Driver().open()
    old = driver.request(GetEntries(0, 1), TABLE)
    driver.step(e.FromController(old))
    driver.step(e.SessionDown("gone"))
    driver.step(e.SessionUp())
    driver.welcome()
    driver.request_ids -= 1
    new = driver.request(GetEntries(0, 1), TABLE)
    assert new.header.request_id == old.header.request_id
    driver.step(e.FromController(new))
    late = ResponseReceived(Header(), old.type, EntriesRead(), b"", old)
    assert driver.step(e.FromDataPlane(late)) == []
    fresh = ResponseReceived(Header(), new.type, EntriesRead(), b"", new)
    assert driver.step(e.FromDataPlane(fresh)) == [e.RelayController(fresh)]


def test_faults_wait_for_a_session_they_are_sent_again_on_admit() -> None:
    driver = Driver()
    driver.start()
    driver.plane_up()
    fault = notice(FAULT)
    for phase in (Phase.CONNECTING, Phase.GREETING):
        assert driver.core.phase is phase
        assert driver.step(e.FromDataPlane(fault)) == []
        driver.step(e.SessionUp())
    driver.plane_answers = False
    driver.welcome()
    assert driver.core.phase is Phase.ADMITTING
    assert driver.step(e.FromDataPlane(fault)) == [e.RelayController(fault)]


def test_a_request_beyond_the_data_planes_limit_is_refused() -> None:
    driver = Driver().open()
    request = driver.request(GetEntries(0, 1), TABLE)
    driver.step(e.FromController(request))
    made = driver.step(e.NotRelayed(request, "1024 requests wait"))
    assert driver.responses(made) == [EntriesRead(Status.LIMIT, "1024 requests wait")]
    assert driver.step(e.NotRelayed(request, "again")) == []


def test_table_commands_are_not_for_an_exporter() -> None:
    driver = Driver(config("exporter")).open()
    made = driver.command(GetEntries(0, 1), TABLE)
    assert [response.status for response in driver.responses(made)] == [Status.UNSUPPORTED]


def test_nothing_goes_anywhere_without_a_session() -> None:
    driver = Driver()
    driver.start()
    driver.plane_up()
    made = driver.step(e.FromDataPlane(notice(FAULT)))
    assert not of(e.RelayController, made)
