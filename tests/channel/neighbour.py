"""A pretend next version of the channel: it appends fields to messages, and brings a request and a notice of its own.

`become_next` changes the tables of this process before anything is made from them; `load_next` does it to a second copy
of the modules, beside our own, which the two share nothing with but bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import field, make_dataclass
from enum import IntEnum
from importlib import import_module
from types import SimpleNamespace
from typing import Annotated, Any

APPENDED = {
    "Hello": {"cores": ("U32", 8), "zone": ("Name", "somewhere"), "rack": ("U64", 5)},
    "DataPlaneHello": {"zone": ("Name", "somewhere")},
    "Welcome": {"advice": ("U64", 1)},
    "LeaseGrant": {"drift_ppm": ("U32", 100)},
    "MapFault": {"urgencies": ("Entries", (1, 2, 3))},
    "FaultAnswer": {"hint": ("U64", 4)},
    "SetEntries": {"reason": ("U16", 6), "why": ("Name", "moved")},
    "Done": {"took_ns": ("U64", 9)},
    "TablesRead": {"count": ("U64", 0)},
}
PROBE, HINT = 90, 91


def become_next() -> None:
    """From here on this process speaks version 2, and 1."""
    assert "channel.codec" not in sys.modules, "the codec has been made from the tables already"
    values, fields = import_module("channel.values"), import_module("channel.fields")
    values.VERSION, values.VERSION_MIN = 2, 1  # type: ignore[attr-defined]
    for name, number in (("PROBE", PROBE), ("HINT", HINT)):
        _add_member(values.MessageType, name, number)
    messages: Any = import_module("channel.messages")
    replaced = {}
    for name, more in APPENDED.items():
        old = getattr(messages, name)
        new = _subclass(old, {key: (getattr(values, kind), fields.Since(2), at) for key, (kind, at) in more.items()})
        replaced[old] = new
        setattr(messages, name, new)
    rows = [
        messages.Row(
            row.kind,
            replaced.get(row.message, row.message),
            row.directions,
            replaced.get(row.response, row.response),
            row.blocking,
        )
        for row in messages.TABLE
    ]
    _add_messages(messages, values, rows)
    messages.TABLE = tuple(rows)
    messages.ROWS = {row.kind: row for row in rows}
    messages.ROW_OF = {row.message: row for row in rows}


def load_next() -> SimpleNamespace:
    """Modules of the next version."""

    def ours() -> dict[str, Any]:
        return {name: sys.modules[name] for name in list(sys.modules) if name.split(".")[0] in ("mapping", "channel")}

    kept = ours()
    for name in kept:
        del sys.modules[name]
    try:
        become_next()
        names = ("messages", "values", "codec", "session", "events", "handshake", "generate")
        return SimpleNamespace(**{name: import_module(f"channel.{name}") for name in names})
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(kept)


def _subclass(old: type, more: dict[str, tuple[Any, Any, Any]]) -> type:
    added = [(name, Annotated[kind, since], field(default=at)) for name, (kind, since, at) in more.items()]
    namespace = {"__doc__": old.__doc__}
    return make_dataclass(old.__name__, added, bases=(old,), namespace=namespace, frozen=True, slots=True)


def _add_messages(messages: Any, values: Any, rows: list[Any]) -> None:
    """PROBE: controller to data plane, answered by DONE. HINT: data plane to controller."""
    options: dict[str, Any] = {"bases": (messages.Message,), "frozen": True, "slots": True}
    for name, what in (("Probe", "depth"), ("Hint", "heat")):
        made = make_dataclass(name, [(what, values.U64)], namespace={"__doc__": f"{name} of version 2."}, **options)
        setattr(messages, name, made)
    down, up = values.Direction.C_TO_A | values.Direction.A_TO_D, values.Direction.A_TO_C | values.Direction.D_TO_A
    rows.append(messages.Row(values.MessageType.PROBE, messages.Probe, down, messages.Done, since=2))
    rows.append(messages.Row(values.MessageType.HINT, messages.Hint, up, since=2))


def _add_member(enum: type[IntEnum], name: str, number: int) -> None:
    member = int.__new__(enum, number)
    member._name_, member._value_ = name, number
    enum._member_map_[name] = member
    enum._value2member_map_[number] = member
    enum._member_names_.append(name)
    type.__setattr__(enum, name, member)


__all__: Sequence[str] = ("APPENDED", "HINT", "PROBE", "become_next", "load_next")
