"""What docs/rpc.md says of segmap's methods is what both targets do: names, parameters, members, refusals, examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from spdk_rpc import reference
from spdk_rpc.methods import bdev_segmap
from spdk_rpc.methods.bdev_segmap import SegmapBdev
from spdk_rpc.reference import METHODS, Method, Parameter
from tests.contract.conftest import DISK_PLANES, Plane

pytestmark = pytest.mark.parametrize("plane", DISK_PLANES, indirect=True, scope="session")
WRONG = {"string": 5, "number": "five", "boolean": "yes", "array": 1}
DECODE = {-32602, reference.DECODE}


def names_in(value: Any, prefix: str = "") -> Iterator[str]:
    """Members of objects by their path; elements of arrays have their array's."""
    if isinstance(value, list):
        for element in value:
            yield from names_in(element, prefix)
    elif isinstance(value, dict):
        for name, member in value.items():
            yield prefix + name
            yield from names_in(member, f"{prefix}{name}.")


def shape_of(value: Any) -> Any:
    """The value with types instead of what is in it."""
    if isinstance(value, dict):
        return {name: shape_of(member) for name, member in value.items()}
    return [shape_of(element) for element in value] if isinstance(value, list) else type(value)


def test_these_are_all_methods(plane: Plane) -> None:
    offered = {name for name in plane.client.call("rpc_get_methods") if name.startswith("bdev_segmap_")}
    assert offered == {method.name for method in METHODS}


def test_the_examples(plane: Plane) -> None:
    for method in METHODS:
        result = plane.client.call(method.name, method.params)
        assert shape_of(result) == shape_of(method.example), method.name
        assert set(names_in(result)) == {member.name for member in method.members}, method.name
        if method.name != "bdev_segmap_get_stats":
            assert result == method.example, method.name
        else:
            assert result["bdevs"] == method.example["bdevs"]


def bad_params(method: Method) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parameters that must not decode, and why."""
    yield "unknown", method.params | {"bogus": 1}
    for parameter in method.parameters:
        yield f"{parameter.name} of another type", method.params | {parameter.name: WRONG[parameter.kind]}
        if parameter.required:
            yield (
                f"without {parameter.name}",
                {name: value for name, value in method.params.items() if name != parameter.name},
            )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_parameters(code_of: Callable[..., int], method: Method) -> None:
    for why, params in bad_params(method):
        assert code_of(method.name, params) in DECODE, why


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_optional_parameters_are_optional(plane: Plane, code_of: Callable[..., int], method: Method) -> None:
    """Without them, and with them, what comes is no error of decoding."""
    if any(parameter.name == "name" and parameter.required for parameter in method.parameters[:1]):
        needed = {entry.name: method.params[entry.name] for entry in method.parameters if entry.required}
        if method.name == "bdev_segmap_create":
            needed["segment_count"] = 0
        assert code_of(method.name, needed) in {code for code, _ in method.errors}
    else:
        plane.client.call(method.name)


def test_the_client_speaks_of_nothing_else(plane: Plane) -> None:
    disk = SegmapBdev("d", reference.UUID, 1, 2, 4096, 512, read_only=True, reclaim=True, slots=(1,))
    calls = (
        bdev_segmap.create(disk),
        bdev_segmap.delete("d"),
        bdev_segmap.get("d"),
        bdev_segmap.get_entries("d", 0, 1),
        bdev_segmap.get_stats("d"),
        bdev_segmap.resize("d", 4),
    )
    table: dict[str, tuple[Parameter, ...]] = {method.name: method.parameters for method in METHODS}
    assert {call.method for call in calls} == table.keys()
    for call in calls:
        assert set(call.params or {}) == {parameter.name for parameter in table[call.method]}, call.method
