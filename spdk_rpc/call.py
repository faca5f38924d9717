"""A typed call as a value, and the reader that turns its JSON result into types.

A :class:`Call` names the method, its parameters and how its result is read; either client runs it. So every method is
described once, without I/O, for synchronous and asynchronous use. A result of another shape than the method's
documentation says is an RpcProtocolError that names the place: ``bdev_get_bdevs: result[0].num_blocks: …``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from spdk_rpc.errors import RpcProtocolError

T = TypeVar("T")
U = TypeVar("U")
_REQUIRED: Any = object()


class ShapeError(ValueError):
    """A result does not have the documented shape; the text names the place."""


@dataclass(frozen=True, slots=True)
class Node:
    """One place in a JSON result: its value and how one gets there."""

    value: Any
    path: str = "result"

    def wrong(self, expected: str) -> ShapeError:
        return ShapeError(f"{self.path}: expected {expected}, got {self.value!r:.80}")

    def items(self) -> Iterator[Node]:
        """The elements of an array."""
        if not isinstance(self.value, list):
            raise self.wrong("an array")
        return (Node(item, f"{self.path}[{index}]") for index, item in enumerate(self.value))

    def member(self, name: str, default: Any = _REQUIRED) -> Node:
        """A member of an object."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        value = self.value.get(name, default)
        if value is _REQUIRED:
            raise ShapeError(f"{self.path}: member {name!r} is missing")
        return Node(value, f"{self.path}.{name}")

    def list(self, read: Callable[[Node], U]) -> tuple[U, ...]:
        return tuple(read(item) for item in self.items())

    def text(self, name: str, default: str | None = None) -> str:
        node = self.member(name, _REQUIRED if default is None else default)
        if not isinstance(node.value, str):
            raise node.wrong("a string")
        return node.value

    def number(self, name: str, default: int | None = None) -> int:
        node = self.member(name, _REQUIRED if default is None else default)
        if not isinstance(node.value, int) or isinstance(node.value, bool):
            raise node.wrong("an integer")
        return node.value

    def truth(self, name: str, default: bool | None = None) -> bool:
        node = self.member(name, _REQUIRED if default is None else default)
        if not isinstance(node.value, bool):
            raise node.wrong("true or false")
        return node.value


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """``method`` with ``params``; ``read`` makes a ``T`` of its result."""

    method: str
    params: dict[str, Any]
    read: Callable[[Node], T]

    def parse(self, result: Any) -> T:
        try:
            return self.read(Node(result))
        except ShapeError as error:
            raise RpcProtocolError(self.method, str(error)) from error


def without_none(**params: Any) -> dict[str, Any]:
    """The parameters that were given."""
    return {name: value for name, value in params.items() if value is not None}


def read_true(node: Node) -> bool:
    """For methods that answer ``true``."""
    if node.value is not True:
        raise node.wrong("true")
    return True


def read_texts(node: Node) -> tuple[str, ...]:
    return node.list(read_text)


def read_text(node: Node) -> str:
    if not isinstance(node.value, str):
        raise node.wrong("a string")
    return node.value


def read_number(node: Node) -> int:
    if not isinstance(node.value, int) or isinstance(node.value, bool):
        raise node.wrong("an integer")
    return node.value


def read_object(node: Node) -> dict[str, Any]:
    if not isinstance(node.value, dict):
        raise node.wrong("an object")
    return node.value
