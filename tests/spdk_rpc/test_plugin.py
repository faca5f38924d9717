"""The rpc.py plugin: what each command sends, and that SPDK's own parser takes it in."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest
from spdk.spdk_rpc import create_parser

from spdk_rpc import plugin

UUID = "11111111-2222-3333-4444-555555555555"


class Client:
    def __init__(self, result: Any) -> None:
        self.result = result
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def call(self, method: str, params: dict[str, Any]) -> Any:
        self.calls.append((method, params))
        return self.result


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    parser, subparsers = create_parser()
    plugin.spdk_rpc_plugin_initialize(subparsers)
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def run(parser: argparse.ArgumentParser, *words: str, result: Any = True) -> tuple[str, dict[str, Any]]:
    args = parser.parse_args(words)
    args.client = Client(result)
    args.func(args)
    (call,) = args.client.calls
    return tuple(call)  # type: ignore[return-value]


CREATED = {"name": "d", "segment_count": 16, "uuid": UUID, "table": 1, "segment_size": 1 << 20, "block_size": 512}


@pytest.mark.parametrize(
    ("words", "params"),
    [
        ("create d 16 -u U -t 1", CREATED),
        ("create d 0x10 -u U -t 0x1 -s 4M -l 4K", CREATED | {"segment_size": 4 << 20, "block_size": 4096}),
        (
            "create d 16 -u U -t 1 -r --reclaim -c 3 -c 7",
            CREATED | {"read_only": True, "reclaim": True, "slots": [3, 7]},
        ),
        ("create d 16 -u U -t 1 --no-reclaim", CREATED | {"reclaim": False}),
        ("delete d", {"name": "d"}),
        ("get", {}),
        ("get -b d", {"name": "d"}),
        ("get_entries d 5 10", {"name": "d", "start": 5, "count": 10}),
        ("get_stats", {}),
        ("get_stats -b d", {"name": "d"}),
        ("resize d 32", {"name": "d", "segment_count": 32}),
    ],
)
def test_what_is_sent(parser: argparse.ArgumentParser, words: str, params: dict[str, Any]) -> None:
    verb, *rest = words.replace("U", UUID).split()
    assert run(parser, f"bdev_segmap_{verb}", *rest) == (f"bdev_segmap_{verb}", params)


def test_what_is_printed(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    run(parser, "bdev_segmap_create", "d", "1", "-u", UUID, "-t", "1", result="d")
    assert capsys.readouterr().out == "d\n"
    run(parser, "bdev_segmap_get", result=[{"name": "d"}])
    assert json.loads(capsys.readouterr().out) == [{"name": "d"}]
    run(parser, "bdev_segmap_delete", "d")
    run(parser, "bdev_segmap_get", result=None)  # --dry-run
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "words",
    [
        "bdev_segmap_create d 16 -t 1",
        f"bdev_segmap_create d 16 -u {UUID} -t x",
        f"bdev_segmap_create d 16 -u {UUID} -t 1 -s 1X",
        "bdev_segmap_get_entries d 0",
    ],
)
def test_wrong_words(parser: argparse.ArgumentParser, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(words.split())
    assert capsys.readouterr().err
