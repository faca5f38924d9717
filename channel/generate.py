"""`python -m channel.generate c-header | wire-reference`: what is made from the table of messages, on stdout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Final

from channel import c_header, wire_reference

MADE: Final[dict[str, Callable[[], Iterator[str]]]] = {
    "c-header": c_header.lines,
    "wire-reference": wire_reference.lines,
}


def text(name: str) -> str:
    """One of them, whole."""
    return "\n".join(MADE[name]()).rstrip("\n") + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m channel.generate", description=__doc__)
    parser.add_argument("name", choices=sorted(MADE), help="what to make")
    sys.stdout.write(text(parser.parse_args(arguments).name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
