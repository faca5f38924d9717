"""segmap's methods for SPDK's command line: ``spdk-rpc --plugin spdk_rpc.plugin bdev_segmap_get``.

SPDK's client imports this module and calls :func:`spdk_rpc_plugin_initialize`; each command calls its method through
``args.client`` and prints the result as SPDK's own commands do: names bare, the rest as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from typing import Any

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def spdk_rpc_plugin_initialize(subparsers: Any) -> None:
    """Adds the bdev_segmap_* commands."""
    _add_create(subparsers)
    _add(subparsers, "bdev_segmap_delete", "Delete a virtual disk", delete).add_argument("name", help="bdev name")
    get_parser = _add(subparsers, "bdev_segmap_get", "Show virtual disks with their tables' counts and lease", get)
    get_parser.add_argument("-b", "--name", help="only this one")
    entries = _add(subparsers, "bdev_segmap_get_entries", "Show entries of a virtual disk's table", get_entries)
    entries.add_argument("name", help="bdev name")
    entries.add_argument("start", help="first segment", type=integer)
    entries.add_argument("count", help="how many, at most 65536", type=integer)
    stats = _add(subparsers, "bdev_segmap_get_stats", "Show what virtual disks have done", get_stats)
    stats.add_argument("-b", "--name", help="only this one")
    longer = _add(subparsers, "bdev_segmap_resize", "Change a virtual disk's length", resize)
    longer.add_argument("name", help="bdev name")
    longer.add_argument("segment_count", help="new length in segments", type=integer)


def _add_create(subparsers: Any) -> None:
    parser = _add(subparsers, "bdev_segmap_create", "Create a virtual disk, every entry of its table INVALID", create)
    parser.add_argument("name", help="bdev name")
    parser.add_argument("segment_count", help="length in segments", type=integer)
    parser.add_argument("-u", "--uuid", help="UUID of the disk", required=True)
    parser.add_argument("-t", "--table", help="table id", type=integer, required=True)
    parser.add_argument(
        "-s", "--segment-size", help="bytes of a segment, K, M or G after it (1M)", type=size, default=1 << 20
    )
    parser.add_argument("-l", "--block-size", help="bytes of a block (512)", type=size, default=512)
    parser.add_argument("-r", "--read-only", help="refuse writes", action="store_true", default=None)
    parser.add_argument(
        "--reclaim", help="unmapping a whole segment raises a fault", action=argparse.BooleanOptionalAction
    )
    parser.add_argument(
        "-c",
        "--slot",
        help="a bound container of the table; as often as needed",
        type=integer,
        action="append",
        dest="slots",
    )


def _add(subparsers: Any, name: str, help_text: str, handler: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=help_text)
    parser.set_defaults(func=handler)
    return parser


def create(args: Any) -> None:
    names = ("name", "segment_count", "uuid", "table", "segment_size", "block_size", "read_only", "reclaim")
    print_result(_call(args, "bdev_segmap_create", *names, "slots"))


def delete(args: Any) -> None:
    _call(args, "bdev_segmap_delete", "name")


def get(args: Any) -> None:
    print_result(_call(args, "bdev_segmap_get", "name"))


def get_entries(args: Any) -> None:
    print_result(_call(args, "bdev_segmap_get_entries", "name", "start", "count"))


def get_stats(args: Any) -> None:
    print_result(_call(args, "bdev_segmap_get_stats", "name"))


def resize(args: Any) -> None:
    _call(args, "bdev_segmap_resize", "name", "segment_count")


def print_result(result: Any) -> None:
    """A reader that has gone (a pipe to ``head``) is no error."""
    if result is None:  # a dry run
        return
    try:
        print(result if isinstance(result, str) else json.dumps(result, indent=2), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def integer(text: str) -> int:
    """A decimal or 0x… number."""
    return int(text, 0)


def size(text: str) -> int:
    """``1M`` → 1048576"""
    match = re.fullmatch(r"(\d+)([KMGT]?)(i?B)?", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: digits, then K, M, G or T")
    return int(match[1]) * UNITS[match[2].upper()]


def _call(args: Any, method: str, *names: str) -> Any:
    params = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return args.client.call(method, params)
