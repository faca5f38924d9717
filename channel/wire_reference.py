"""The wire format for people: docs/wire.md, made from the table of messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum, IntFlag
from typing import Any

from channel import c_header, values
from channel.codec import HEADER_BYTES, REQUESTS, Codec
from channel.fields import Blob, RecordArray, Scalar, Text
from channel.handshake import TRANSITIONS, Role, SessionState
from channel.messages import TABLE, Row
from channel.values import Direction

INTRODUCTION = """\
# Wire reference

Generated from the tables in `channel/` by `make docs`; change the tables, not this page.

One format is spoken on both links: controller (C) and agent daemon (A), daemon and data plane (D). All numbers are
little-endian. A frame is a header, the fixed part of the body, then the variable fields in order. Fields of the fixed
part have natural alignment; it ends at a multiple of 8. A variable field has a u32 in the fixed part, its length in
bytes (text, bytes) or its number of elements (arrays), and is padded to 8 behind it. All padding is zero. A receiver
refuses, by GOODBYE and the end of the connection, whatever is not exactly as written here. Behind the last field of a
message more may follow, which a newer version has appended: it is ignored.

A response has its request's type and request id, and begins with a status and a detail. Request ids are not 0, are the
sender's own, and are not used again while the request waits; notices have 0. The daemon passes on, under an id of its
own, what goes from C to D and back; all else in those frames stays as it is."""

HANDSHAKE = """\
An agent begins with HELLO, a data plane with DP_HELLO. The response to HELLO, and the first frame to the data plane,
say in the version of their headers which version was chosen: the highest common one. HELLO, its response, DP_HELLO and
GOODBYE have the same layout in all versions, but for what is appended. GOODBYE is possible at any time. Nothing follows
it."""

VERSIONS = """\
What speaks version N speaks N - 1, too: neighbours work together, and controller, daemons and data planes can be
upgraded in any order, version by version: all have to be at N before the first gets N + 2. Where no version is common,
HELLO is answered, and DP_HELLO followed by GOODBYE, with BAD_VERSION and a text that names both sides' versions and the
one to upgrade first; both log it. From one version to the next

* a field is never changed, moved or taken away. New ones are appended to the frame: behind all that older versions know
  of the message comes another fixed part, its padding to 8, and its variable fields. A receiver ignores what lies
  behind the last field that it knows. Where an older peer's frame ends, the rest have their default values, which mean
  what was so before the field existed;
* new messages, and new values of enumerations and flags, are sent only if the chosen version knows them. A request that
  it does not know is not sent: its sender, or the daemon that was to pass it on, answers it with BAD_VERSION."""


def lines() -> Iterator[str]:
    """The page, line by line."""
    yield INTRODUCTION
    yield ""
    yield from _header()
    yield from _overview()
    yield from _handshake()
    yield "## Messages"
    yield ""
    for row in TABLE:
        yield from _message(row)
    yield "## Responses"
    yield ""
    for name, codec, comment in c_header.bodies():
        if comment.startswith("Response"):
            yield f"### {codec.message.__name__}"
            yield ""
            yield f"{comment}. {' '.join(str(codec.message.__doc__).split())} C: `struct {name}`."
            yield ""
            yield from _fields(codec)
    yield from _records()
    yield from _numbers()


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def _header() -> Iterator[str]:
    yield f"## Header ({HEADER_BYTES} bytes)"
    yield ""
    rows = [(offset, f"u{8 * size}", name, note) for name, offset, size, note in c_header.HEADER_FIELDS]
    yield from _table(("offset", "type", "field", ""), rows)
    yield "Flags: 1 response, 2 blocking (answer once all I/O begun before has ended)."
    yield ""


def _overview() -> Iterator[str]:
    yield "## All messages"
    yield ""
    rows = [
        (
            row.kind.value,
            f"[{row.kind.name}](#{row.kind.name.lower()})",
            _ways(row.directions),
            f"[{row.response.__name__}](#{row.response.__name__.lower()})" if row.response else "",
            "yes" if row.blocking else "",
        )
        for row in TABLE
    ]
    yield from _table(("type", "name", "from → to", "response", "may block"), rows)


def _ways(directions: Direction) -> str:
    return ", ".join(str(way.name).replace("_TO_", "→") for way in Direction if way in directions)


def _handshake() -> Iterator[str]:
    yield "## Sessions"
    yield ""
    yield HANDSHAKE
    yield ""
    yield "### Versions"
    yield ""
    low, high = values.VERSION_MIN, values.VERSION
    yield f"This is version {high}" + (f"; {low} is spoken, too." if low < high else ", the first.") + "\n\n" + VERSIONS
    yield ""
    rows = [
        (role.value, state.value, way.value, target.value)
        for (role, state, way), target in TRANSITIONS.items()
        if target is not SessionState.ENDED or way.name.endswith("REJECTION")
    ]
    yield from _table(("end", "state", "input", "next"), rows)
    ends = [end.value for end in _ending_inputs()]
    yield f"In every state of every end: {', '.join(ends)} → ended. Anything else is refused."
    yield ""


def _ending_inputs() -> list[Any]:
    return [way for (role, state, way) in TRANSITIONS if (role, state) == (Role.AGENT, SessionState.GREETING)][1:]


def _message(row: Row) -> Iterator[str]:
    codec = REQUESTS[row.kind]
    yield f"### {row.kind.name}"
    yield ""
    says = " ".join(str(row.message.__doc__).split())
    since = f" Since version {row.since}." if row.since > 1 else ""
    name = f"segmap_wire_{row.kind.name.lower()}"
    yield f"Type {row.kind.value}, {_ways(row.directions)}.{since} {says} C: `struct {name}`."
    yield ""
    yield from _fields(codec)


def _fields(codec: Codec) -> Iterator[str]:
    if not codec.places:
        yield "No body."
        yield ""
    for block in (codec.first, *codec.appended):
        if block.version:
            yield f"Appended by version {block.version} (offsets from the end of what is above):"
            yield ""
        rows = [(place.offset, _type(place.kind), place.name, _rule(place.kind)) for place in block.places]
        if rows:
            yield from _table(("offset", "type", "field", "valid"), rows)
            yield f"Fixed part: {block.fixed_bytes} bytes."
            yield ""


def _type(kind: Any) -> str:
    if isinstance(kind, Scalar):
        return "uuid, 16 bytes" if kind.code == "16s" else f"u{8 * kind.size}"
    if isinstance(kind, RecordArray):
        return f"[{kind.record.__name__}](#{kind.record.__name__.lower()}) array"
    return "text" if isinstance(kind, Text) else "bytes" if isinstance(kind, Blob) else "u64 array"


def _rule(kind: Any) -> str:
    if isinstance(kind, Scalar):
        return kind.rule()
    return f"at most {kind.limit}{' bytes' if isinstance(kind, Text | Blob) else ''}"


def _records() -> Iterator[str]:
    yield "## Records"
    yield ""
    for kind in c_header.records():
        yield f"### {kind.record.__name__}"
        yield ""
        yield f"{' '.join(str(kind.record.__doc__).split())} {kind.element_size} bytes. C: `{kind.c_type}`."
        yield ""
        yield from _table(
            ("offset", "type", "field", "valid"),
            [(item.offset, f"u{8 * item.kind.size}", item.name, item.kind.rule()) for item in kind.fields],
        )


def _numbers() -> Iterator[str]:
    yield "## Numbers"
    yield ""
    enums: list[type[IntEnum] | type[IntFlag]] = [enum for _, _, enum in c_header.ENUMS[1:]]
    enums += [flags for _, flags in c_header.FLAGS[1:]]
    for enum in enums:
        yield f"### {enum.__name__}"
        yield ""
        yield c_header.first_line(enum)
        yield ""
        yield ", ".join(f"{member.value} {member.name}" for member in enum)
        yield ""
    yield "### Limits"
    yield ""
    yield from _table(("name", "value"), [*c_header.limits(), ("VERSION", values.VERSION)])
