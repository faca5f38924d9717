"""The shape of a JSON answer: the members that must be there, and their types. More members may come with a release."""

from __future__ import annotations

from typing import Any


def check_shape(value: Any, shape: Any, where: str = "result") -> None:
    """``shape``: a type, a list with the elements' shape, or a dict of members."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), f"{where} is {value!r}"
        missing = shape.keys() - value.keys()
        assert not missing, f"{where} lacks {sorted(missing)}"
        for name, inner in shape.items():
            check_shape(value[name], inner, f"{where}.{name}")
    elif isinstance(shape, list):
        assert isinstance(value, list), f"{where} is {value!r}"
        for index, item in enumerate(value):
            check_shape(item, shape[0], f"{where}[{index}]")
    else:
        assert type(value) is shape, f"{where} is {value!r}, not of {shape.__name__}"
