"""Version N and N + 1 work together, on both links, whichever end is older; what they cannot do they say."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from dataclasses import MISSING, field, make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest

from tests.channel.neighbour import load_next

NAMES = ("fields", "messages", "values", "codec", "session", "events", "handshake", "generate")
NOW = SimpleNamespace(**{name: importlib.import_module(f"channel.{name}") for name in NAMES})
NEXT = load_next()
INSTANCE = bytes(range(16))
COMPILER = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
PAIRS = pytest.mark.parametrize(
    ("upper", "lower"), [(NOW, NEXT), (NEXT, NOW), (NEXT, NEXT)], ids=["N over N+1", "N+1 over N", "N+1 over N+1"]
)


def carry(sender: Any, receiver: Any) -> list[Any]:
    for data in sender.data_to_send():
        receiver.receive_data(data)
    return list(receiver.events())


def session(of: SimpleNamespace, role: str) -> Any:
    return of.session.Session(of.handshake.Role[role])


def versions(of: SimpleNamespace) -> tuple[int, int]:
    return of.values.VERSION_MIN, of.values.VERSION


def link(upper: SimpleNamespace, lower: SimpleNamespace) -> tuple[Any, Any]:
    """(controller, agent), open."""
    controller, agent = session(upper, "CONTROLLER"), session(lower, "AGENT")
    agent.send(lower.messages.Hello(*versions(lower), 1, INSTANCE, "a", "it", [(7, 3)], bytes(16)))
    (hello,) = carry(agent, controller)
    assert (hello.message.name, list(hello.message.tables)) == ("a", [(7, 3)])
    controller.respond(hello, upper.messages.Welcome(cluster=b"c" * 16, agent_number=2))
    (opened,) = carry(controller, agent)
    assert opened.message.agent_number == 2
    return controller, agent


def socket(upper: SimpleNamespace, lower: SimpleNamespace) -> tuple[Any, Any]:
    """(daemon, data plane), open."""
    daemon, plane = session(upper, "DAEMON"), session(lower, "DATA_PLANE")
    plane.send(lower.messages.DataPlaneHello(*versions(lower), INSTANCE, "it", [(7, 3)]))
    (opened,) = carry(plane, daemon)
    assert (opened.message.software, list(opened.message.tables)) == ("it", [(7, 3)])
    return daemon, plane


def plain(message: Any) -> dict[str, Any]:
    values = {name: getattr(message, name) for name in message.__dataclass_fields__}
    return {
        name: value
        if isinstance(value, str | int | bytes)
        else [tuple(v) if isinstance(v, tuple) else v for v in value]
        for name, value in values.items()
    }


def same(received: Any, sent: Any) -> None:
    """What both know is equal; what only the receiver knows has its default."""
    got, said = plain(received), plain(sent)
    for name, value in got.items():
        default = received.__dataclass_fields__[name].default
        assert value == said.get(name, list(default) if isinstance(default, tuple) else default), name


@PAIRS
@pytest.mark.parametrize("open_pair", [link, socket])
def test_a_lease_a_fault_and_a_command(upper: SimpleNamespace, lower: SimpleNamespace, open_pair: Any) -> None:
    above, below = open_pair(upper, lower)
    up, down = upper.messages, lower.messages
    stamps = (1, 2, 3, 4, 5)
    grant = up.LeaseGrant(1, 2)
    above.send(grant, upper.values.Header(*stamps[:3]))
    (got,) = carry(above, below)
    same(got.message, grant)
    assert above.version == below.version == min(upper.values.VERSION, lower.values.VERSION)
    fault = down.MapFault([lower.values.FaultRecord(4, 5, 6, 7, 1, 1, 2, 8, 9)])
    below.send(fault, lower.values.Header(*stamps[:3]))
    (got,) = carry(below, above)
    same(got.message, fault)
    answer = up.FaultAnswer([upper.values.AnswerRecord(4, 6, 2, 0, 0)], [17, 33])
    above.send(answer, upper.values.Header(*stamps))
    (got,) = carry(above, below)
    same(got.message, answer)
    assert got.header[:5] == stamps
    command = up.SetEntries(3, 2, [1, 17])
    above.send(command, upper.values.Header(*stamps, blocking=True), "context")
    (got,) = carry(above, below)
    same(got.message, command)
    assert got.header.blocking
    done = down.Done(lower.messages.Status.OK, "well")
    below.respond(got, done)
    (got,) = carry(below, above)
    same(got.message, done)
    assert got.context == "context" and not above.outstanding()


def test_what_is_appended_arrives_where_both_know_it() -> None:
    controller, agent = link(NEXT, NEXT)
    sent = NEXT.messages.SetEntries(3, 2, [1, 17], reason=77, why="because")
    controller.send(sent, NEXT.values.Header(1, 2, 3, 4, 5))
    (got,) = carry(controller, agent)
    assert (got.message.reason, got.message.why, list(got.message.entries)) == (77, "because", [1, 17])


def test_what_is_appended_is_checked_like_the_rest() -> None:
    frame = NEXT.codec.encode(NEXT.messages.SetEntries(3, 2, [1, 17]), NEXT.values.Header(request_id=1))
    old = NOW.codec.encode(NOW.messages.SetEntries(3, 2, [1, 17]), NOW.values.Header(request_id=1))
    assert frame[8 : len(old)] == old[8:], "appended, and nothing is moved"
    for length in range(len(old) + 8, len(frame), 8):
        with pytest.raises(NEXT.codec.ProtocolError):
            NEXT.codec.decode(length.to_bytes(4, "little") + frame[4:length])
    with pytest.raises(NEXT.codec.FieldError, match=r"SetEntries\.why"):
        NEXT.codec.encode(NEXT.messages.SetEntries(3, 1, [1], why="\0"), NEXT.values.Header(request_id=1))
    with pytest.raises(NEXT.codec.FieldError, match="SetEntries"):
        NEXT.codec.encode(NEXT.messages.SetEntries(3, 1, [1], reason=1 << 16), NEXT.values.Header(request_id=1))


@pytest.mark.parametrize(
    "fields",
    [[("new", 2, 0), ("old", 0, 0)], [("new", 2, MISSING)]],
    ids=["in the middle", "without a default"],
)
def test_a_field_that_may_not_be_appended(fields: list[tuple[str, int, Any]]) -> None:
    kind = NOW.fields.Scalar("Q")
    made = [(name, Annotated[int, kind, NOW.fields.Since(v)], field(default=at)) for name, v, at in fields]
    wrong = make_dataclass("Wrong", made, bases=(NOW.messages.Message,))
    with pytest.raises(AssertionError, match="appended"):
        NOW.codec.Codec(wrong)


def test_a_request_that_the_peer_does_not_know_is_refused_by_our_own_end() -> None:
    controller, agent = link(NEXT, NOW)
    assert not controller.knows(NEXT.values.MessageType.PROBE)
    controller.send(NEXT.messages.Probe(5), NEXT.values.Header(1, 2, 3), "context")
    assert not controller.data_to_send() and not controller.outstanding()
    (refused,) = controller.events()
    assert refused.context == "context" and refused.message.status == NEXT.messages.Status.BAD_VERSION
    assert refused.message.detail == ("PROBE needs version 2 of the channel, with the agent it is 1: upgrade the agent")
    controller.send(NEXT.messages.GetParked(), NEXT.values.Header())
    assert len(carry(controller, agent)) == 1, "the session goes on"


def test_a_request_that_is_passed_on_is_refused_where_it_ends() -> None:
    """Controller and daemon are of the next version, the data plane is not: the controller gets an answer."""
    controller, agent = link(NEXT, NEXT)
    daemon, plane = socket(NEXT, NOW)
    controller.send(NEXT.messages.Probe(5), NEXT.values.Header(1, 2, 3), "context")
    (request,) = carry(controller, agent)
    daemon.relay(request)
    assert not daemon.data_to_send()
    (refused,) = daemon.events()
    agent.relay(refused)
    (answer,) = carry(agent, controller)
    assert (answer.context, answer.message.status) == ("context", NEXT.messages.Status.BAD_VERSION)
    assert "upgrade the data plane" in answer.message.detail
    assert not plane.ended


def test_a_notice_that_the_peer_does_not_know_is_not_sent() -> None:
    controller, agent = link(NOW, NEXT)
    daemon, plane = socket(NEXT, NEXT)
    daemon.send(NEXT.messages.TableStatus())  # the first frame says which version was chosen
    carry(daemon, plane)
    plane.send(NEXT.messages.Hint(1))
    (hint,) = carry(plane, daemon)
    for send in (lambda: agent.send(NEXT.messages.Hint(1)), lambda: agent.relay(hint)):
        with pytest.raises(NEXT.session.PeerTooOld, match="upgrade the controller"):
            send()
    assert not agent.data_to_send() and not controller.ended


@pytest.mark.parametrize(("theirs", "older"), [((3, 4), "controller"), ((1, 1), "agent")])
def test_two_versions_apart_both_ends_know_whom_to_upgrade(theirs: tuple[int, int], older: str) -> None:
    ours = (1, 2) if theirs[0] > 2 else (2, 3)
    controller = NOW.session.Session(NOW.handshake.Role.CONTROLLER, versions=ours)
    agent = NOW.session.Session(NOW.handshake.Role.AGENT, versions=theirs)
    agent.send(NOW.messages.Hello(*theirs, 1, INSTANCE, "a", "segmap 7"))
    (here,), (there,) = carry(agent, controller), carry(controller, agent)
    assert here.status == there.status == NOW.messages.Status.BAD_VERSION
    assert here.detail == there.detail
    spoken = "versions 3 to 4" if theirs[0] == 3 else "version 1"
    assert f"the agent (segmap 7) speaks {spoken} of the channel, the controller versions " in here.detail
    assert f"upgrade the {older} first" in here.detail


def test_a_data_plane_two_versions_apart_is_told_too() -> None:
    plane = NOW.session.Session(NOW.handshake.Role.DATA_PLANE, versions=(3, 4))
    daemon = NOW.session.Session(NOW.handshake.Role.DAEMON)
    plane.send(NOW.messages.DataPlaneHello(3, 4, INSTANCE, "segmap_tgt"))
    (here,), (there,) = carry(plane, daemon), carry(daemon, plane)
    assert here.status == there.status == NOW.messages.Status.BAD_VERSION
    assert "upgrade the agent's daemon first" in there.detail


def test_the_reference_tells_what_was_appended() -> None:
    page = NEXT.generate.text("wire-reference")
    assert "This is version 2; 1 is spoken, too." in page
    assert "Appended by version 2 (offsets from the end of what is above):" in page
    assert "Since version 2. Probe of version 2." in page
    assert "This is version 1, the first." in NOW.generate.text("wire-reference")


@pytest.mark.skipif(COMPILER is None, reason="no C compiler is installed")
def test_the_c_header_has_what_was_appended(tmp_path: Path) -> None:
    text = NEXT.generate.text("c-header")
    assert "struct segmap_wire_set_entries_since_2 {" in text and "#define SEGMAP_WIRE_VERSION_MIN 1u" in text
    (tmp_path / "next.c").write_text(text)
    command = [str(COMPILER), "-std=c11", "-Wall", "-Wextra", "-Wpadded", "-Werror", "-fsyntax-only", "next.c"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
