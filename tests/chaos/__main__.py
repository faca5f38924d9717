"""`python -m tests.chaos`: real processes under faults (`make chaos SEED=… MINUTES=…`).

Exit status 0 if nothing was violated, 1 if something was (its evidence stays, and where is printed). Where this machine
does not let us make namespaces, partitions are fault proxies', and disks are not broken; the report says so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import traceback
import uuid
from pathlib import Path

import uvloop

from tests.chaos import report as reports
from tests.chaos.machines import NotPossible, enclose
from tests.chaos.scene import MAPPERS, Scene


def main(arguments: list[str]) -> int:
    """One run."""
    parser = argparse.ArgumentParser(prog="chaos")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--loopback", action="store_true", help="fault proxies, no namespaces: as without root")
    parser.add_argument("--spdk", nargs="*", choices=MAPPERS, default=(), help="mapping agents with segmap_tgt")
    parser.add_argument("--json", type=Path, help="also write the report there")
    parser.add_argument("--quiet", action="store_true", help="do not tell each fault")
    parser.add_argument("--keep", action="store_true", help="keep logs, store and story also of a good run")
    args = parser.parse_args(arguments)
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    if args.loopback:
        return play(args, seed, False)
    try:
        status = enclose(["-m", "tests.chaos", *arguments, *(["--seed", str(seed)] if args.seed is None else [])])
    except NotPossible as reason:
        print(f"{reason}: fault proxies instead")
        return play(args, seed, False)
    return status if status is not None else play(args, seed, True)


def play(args: argparse.Namespace, seed: int, enclosed: bool) -> int:
    """Inside of our own namespaces, if `enclosed`."""
    print(f"chaos, seed {seed}, {args.seconds:.0f} s", flush=True)
    directory = Path("/tmp") / f"segmap-{uuid.uuid4().hex[:12]}"
    directory.mkdir(mode=0o700)
    scene = Scene(directory, seed, args.seconds, enclosed, (lambda _: None) if args.quiet else _say, tuple(args.spdk))
    try:
        uvloop.run(scene.play())
    except Exception:
        traceback.print_exc()
        scene.violated("the run itself failed", traceback.format_exc().splitlines())
    document = scene.report()
    keep = args.keep or bool(scene.violations)
    document["kept"] = str(directory) if keep else ""
    (directory / "report.json").write_text(json.dumps(document, indent=1))
    print(reports.text(document), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(directory / "report.json", args.json)
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if scene.violations else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main(sys.argv[1:]))
