"""Parameters of RPC methods: their types, and one decoder driven by each method's table.

As SPDK decodes: a name that the table lacks is refused (ignored where the method is declared relaxed), as is one that
comes twice; null is no value of any type; numbers must be whole and in range, and may be written 1.0e3.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from dataplane.embedded.json_stream import Members, Number

Decode = Callable[[Any], Any]


class BadParameter(ValueError):
    """A value is not what the table says."""


def _whole(value: Any) -> int:
    if isinstance(value, Number):
        return _whole_of_text(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadParameter(f"{value!r} is no number")
    return value


def _whole_of_text(text: str) -> int:
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise BadParameter(f"{text} is no number that fits") from None
    if number.is_signed() and number == 0:
        raise BadParameter("-0")
    if number.adjusted() > 20 or number != number.to_integral_value():
        raise BadParameter(f"{text} is not whole, or too large")
    return int(number)


def _integer(lowest: int, highest: int) -> Decode:
    def decode(value: Any) -> int:
        number = _whole(value)
        if not lowest <= number <= highest:
            raise BadParameter(f"{number} is not in {lowest}..{highest}")
        return number

    return decode


def string(value: Any) -> str:
    """Text without NUL."""
    if not isinstance(value, str) or isinstance(value, Number) or "\0" in value:
        raise BadParameter(f"{value!r} is no text")
    return value


def boolean(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise BadParameter(f"{value!r} is neither true nor false")
    return value


def identity(value: Any) -> uuid.UUID:
    """A UUID in its canonical form of 36 characters, either case."""
    text = string(value)
    if len(text) != 36 or any(text[at] != "-" for at in (8, 13, 18, 23)):
        raise BadParameter(f"{text!r} is no UUID")
    try:
        return uuid.UUID(text)
    except ValueError:
        raise BadParameter(f"{text!r} is no UUID") from None


uint8: Final = _integer(0, 0xFF)
uint16: Final = _integer(0, 0xFFFF)
uint32: Final = _integer(0, 0xFFFF_FFFF)
uint64: Final = _integer(0, 0xFFFF_FFFF_FFFF_FFFF)
int32: Final = _integer(-0x8000_0000, 0x7FFF_FFFF)


def one_of(*names: str) -> Decode:
    """One of these words."""

    def decode(value: Any) -> str:
        if string(value) not in names:
            raise BadParameter(f"{value!r} is none of {', '.join(names)}")
        return str(value)

    return decode


def list_of(item: Decode, count_max: int) -> Decode:
    """An array of at most `count_max` items."""

    def decode(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > count_max:
            raise BadParameter(f"an array of at most {count_max} items is wanted")
        return [item(element) for element in value]

    return decode


@dataclass(frozen=True, slots=True)
class Parameter:
    """One named value. `default` is what an absent one decodes to."""

    name: str
    decode: Decode
    required: bool = False
    default: Any = None


def required(name: str, decode: Decode) -> Parameter:
    """A parameter that must be there."""
    return Parameter(name, decode, True)


def optional(name: str, decode: Decode, default: Any = None) -> Parameter:
    """A parameter that may be absent."""
    return Parameter(name, decode, False, default)


def object_of(*table: Parameter, relaxed: bool = False) -> Decode:
    """A nested object with a table of its own."""

    def decode(value: Any) -> dict[str, Any]:
        return decode_object(value, table, relaxed)

    return decode


def decode_object(value: Any, table: Sequence[Parameter], relaxed: bool = False) -> dict[str, Any]:
    """Every parameter of `table` with its decoded or default value. Raises BadParameter."""
    if not isinstance(value, Members):
        raise BadParameter("an object is wanted")
    if value.repeated:
        raise BadParameter("a name comes twice")
    left = set(value)
    decoded: dict[str, Any] = {}
    for parameter in table:
        if parameter.name in left:
            left.discard(parameter.name)
            decoded[parameter.name] = parameter.decode(value[parameter.name])
        elif parameter.required:
            raise BadParameter(f"{parameter.name} is missing")
        else:
            decoded[parameter.name] = parameter.default
    if left and not relaxed:
        raise BadParameter(f"there is no parameter {min(left)}")
    return decoded
