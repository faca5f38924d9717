"""What is refused when: by whom, which messages, because of which stamp or state, and what that does to the session.

The rules of design 6 (in order; the lease stops new I/O; terms only rise) as they show on the channel. docs/refusals.md
is made from this table, and a test drives every row through the real cores: a row that is not so fails there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from channel.values import MessageType as T
from mapping.status import Status


class Who(StrEnum):
    """Who refuses."""

    DATA_PLANE = "data plane"
    AGENT = "agent daemon"
    CONTROLLER = "controller"


class Effect(StrEnum):
    """What becomes of the session. A refused request is answered with the status; a refused notice by REFUSED."""

    GOES_ON = "goes on"
    ENDS = "ends, with GOODBYE"
    TURNED_AWAY = "ends: WELCOME says the status"
    WAITS = "waits: no WELCOME yet"
    IGNORED = "goes on; nothing is said"
    RESTARTS = "ends, and the agent starts a new data plane"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One row. `field`: of the header or the message, or the state that decides. `status` None: nothing is refused."""

    key: str
    who: Who
    messages: tuple[T, ...]
    field: str
    condition: str
    status: Status | None
    effect: Effect


_SEQUENCED: Final = (T.SET_ENTRIES, T.SET_STATE, T.FAULT_ANSWER)
_OF_TABLES: Final = (*_SEQUENCED, T.TABLE_SLOTS, T.SUSPEND, T.RESUME)
_JOBS: Final = (T.ZERO_SEGMENTS, T.COPY_SEGMENTS)
_STAMPED: Final = (T.LEASE_GRANT, *_OF_TABLES, *_JOBS)
_NOTICES: Final = (T.LEASE_RENEW, T.MAP_FAULT, T.EPOCH, T.REFUSED)
_COMMANDS: Final = (T.SET_ENTRIES, T.TABLE_SLOTS)
_FOR_MAPPERS: Final = (T.SET_ENTRIES, T.SET_STATE, T.CREATE_TABLE, T.ATTACH_CONTAINER)
_OUT_OF_STEP: Final = "SEQUENCE_OLD, SEQUENCE_GAP, NOT_ADMITTED, STALE_INCARNATION: settled by the next session"


def _plane(key: str, messages: tuple[T, ...], field: str, condition: str, status: Status) -> Refusal:
    return Refusal(key, Who.DATA_PLANE, messages, field, condition, status, Effect.GOES_ON)


def _agent(key: str, messages: tuple[T, ...], field: str, condition: str, status: Status) -> Refusal:
    return Refusal(key, Who.AGENT, messages, field, condition, status, Effect.GOES_ON)


def _hello(key: str, field: str, condition: str, status: Status) -> Refusal:
    return Refusal(key, Who.CONTROLLER, (T.HELLO,), field, condition, status, Effect.TURNED_AWAY)


def _session(key: str, messages: tuple[T, ...], field: str, condition: str, status: Status | None = None) -> Refusal:
    effect = Effect.IGNORED if status is None else Effect.ENDS
    return Refusal(key, Who.CONTROLLER, messages, field, condition, status, effect)


REFUSALS: Final = (
    _plane("plane-admit-term", (T.ADMIT,), "term", "lower than it has served", Status.STALE_TERM),
    _plane("plane-admit-incarnation", (T.ADMIT,), "incarnation", "another than its own", Status.STALE_INCARNATION),
    _plane("plane-admit-cluster", (T.ADMIT,), "cluster", "another than its own", Status.BAD_MESSAGE),
    _plane("plane-admit-session", (T.ADMIT,), "sequence", "not the session's number", Status.STALE_EPOCH),
    _plane("plane-new", _STAMPED, "state", "it has not been admitted", Status.NOT_ADMITTED),
    _plane("plane-term-old", _STAMPED, "term", "lower than the one it serves", Status.STALE_TERM),
    _plane("plane-term-new", _STAMPED, "term", "higher: it was not admitted by that one", Status.NOT_ADMITTED),
    _plane("plane-incarnation", _STAMPED, "incarnation", "another than its own", Status.STALE_INCARNATION),
    _plane("plane-epoch", _STAMPED, "epoch", "another than the present one", Status.STALE_EPOCH),
    _plane("plane-session", _STAMPED, "epoch", "numbered for an earlier session", Status.STALE_EPOCH),
    _plane("plane-sequence-old", _SEQUENCED, "sequence", "applied already", Status.SEQUENCE_OLD),
    _plane("plane-sequence-gap", _SEQUENCED, "sequence", "one before it is missing", Status.SEQUENCE_GAP),
    _plane("plane-no-table", _OF_TABLES, "table", "not there, or being deleted", Status.NO_TABLE),
    _plane(
        "plane-container", (T.SET_ENTRIES,), "entries", "of a container not in the table's list", Status.NO_CONTAINER
    ),
    _plane("plane-slots", (T.TABLE_SLOTS, *_JOBS), "slots", "of a container not attached", Status.NO_CONTAINER),
    _plane("plane-slots-used", (T.TABLE_SLOTS,), "slots", "without one that an entry names", Status.BUSY),
    _plane("plane-grant-late", (T.LEASE_GRANT,), "lease", "over, counted from the renewal", Status.LEASE_EXPIRED),
    _plane("plane-grant-early", (T.LEASE_GRANT,), "sent_ns", "of the future", Status.BAD_MESSAGE),
    _plane("plane-job-lease", _JOBS, "lease", "not valid", Status.LEASE_EXPIRED),
    _agent("agent-exporter-only", _FOR_MAPPERS, "role", "not mapper", Status.UNSUPPORTED),
    _agent("agent-mapper-only", (T.ALLOW_HOST, T.DENY_HOST), "role", "not exporter", Status.UNSUPPORTED),
    _agent("agent-too-many", (T.CREATE_TABLE,), "state", "busy with 4096 commands", Status.LIMIT),
    Refusal(
        "agent-fenced",
        Who.AGENT,
        (T.HELLO,),
        "incarnation",
        "over, says the controller's WELCOME",
        Status.STALE_INCARNATION,
        Effect.RESTARTS,
    ),
    _hello("hello-name", "name", "another than the certificate's", Status.UNAUTHORIZED),
    _hello("hello-roles", "role", "neither mapper nor exporter", Status.BAD_MESSAGE),
    _hello("hello-session", "sequence", "no number of a session", Status.BAD_MESSAGE),
    _hello("hello-term", "term", "higher than ours (an alarm, too)", Status.STALE_TERM),
    _hello("hello-double", "state", "connected, from another machine (an alarm, too)", Status.BUSY),
    _hello("hello-limit", "state", "the 256th agent", Status.LIMIT),
    _hello("hello-fenced", "incarnation", "being fenced, or fenced: never again", Status.STALE_INCARNATION),
    _hello("hello-other-incarnation", "incarnation", "not what this instance was given", Status.STALE_INCARNATION),
    _hello("hello-unknown-incarnation", "incarnation", "of a store that is lost: fenced", Status.STALE_INCARNATION),
    Refusal(
        "hello-waits",
        Who.CONTROLLER,
        (T.HELLO,),
        "instance",
        "new, and the incarnation before it is not fenced yet",
        None,
        Effect.WAITS,
    ),
    _session("notice-term-new", _NOTICES, "term", "higher than ours (an alarm, too)", Status.STALE_TERM),
    _session("notice-term-old", _NOTICES, "term", "lower than ours"),
    _session("notice-incarnation", _NOTICES, "incarnation", "another than the agent's"),
    _session("notice-epoch-old", _NOTICES[:2], "epoch", "older than the agent's"),
    _session("notice-not-admitted", _NOTICES, "state", "not welcomed yet"),
    _session("notice-deposed", (*_NOTICES, T.HELLO), "state", "for a controller that reigns no more"),
    _session("fault-table", (T.MAP_FAULT,), "table", "none of this agent's"),
    _session("renew-overdue", (T.LEASE_RENEW,), "state", "silent about a command for 60 s", Status.TIMEOUT),
    _session("answer-out-of-step", _COMMANDS, "status of the answer", _OUT_OF_STEP, Status.SEQUENCE_GAP),
    _session("answer-old-epoch", _COMMANDS, "status of the answer", "STALE_EPOCH: sent again after EPOCH"),
    _session("answer-of-nothing", _COMMANDS, "request id of the answer", "of a command that was given up"),
    _session("refused-answer", (T.REFUSED,), "status", "not STALE_EPOCH or LEASE_EXPIRED", Status.SEQUENCE_GAP),
)


def page() -> list[str]:
    """docs/refusals.md, without its first lines."""
    lines = []
    for who in Who:
        lines += ["", f"## By the {who.value}", "", "| message | because of | if it is | status | the session |"]
        lines.append("|---|---|---|---|---|")
        for row in REFUSALS:
            if row.who is who:
                names = ", ".join(message.name for message in row.messages)
                status = row.status.name if row.status is not None else "–"
                lines.append(f"| {names} | {row.field} | {row.condition} | {status} | {row.effect.value} |")
    return lines
