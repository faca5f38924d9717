"""`python -m tests.sim run|long|mutants`: the simulation by hand.

run: one seed (`--seed`, else a new one, which is printed), `--hours` of a workload. long: new seeds for `--minutes`,
after those that failed once. mutants: every broken variant, until it is caught; exits 1 if one survives.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache

from tests.sim import scenario
from tests.sim.invariants import INVARIANTS, invariant_of
from tests.sim.mutants import MUTANTS, Mutant, applied
from tests.sim.scenario import AIMED, SPARSE, STORM, WORKLOADS, Workload
from tests.sim.seeds import ONCE_FAILED

MUTANT_SEEDS = 24


def run_one(seed: int, seconds: float, workload: Workload) -> bool:
    """One history; False if an invariant broke, which is printed."""
    began = time.monotonic()
    try:
        done = scenario.run(seed, seconds, workload)
    except AssertionError as violation:
        print(f"FAILED, {workload.name} workload, {seconds:g} s: {violation}")
        print(f"again with: make sim SEED={seed} HOURS={seconds / 3600:g} WORKLOAD={workload.name}")
        return False
    took = time.monotonic() - began
    simulated = (done.timeline.now_ns - 1000 * 10**9) / 1e9
    speed = f"{simulated / 3600:.2f} simulated hours in {took:.1f} s, {simulated / took:.0f} x"
    print(f"seed {seed}, {workload.name}: {speed}")
    print(f"  {done.summary()}")
    print(f"  trace {done.timeline.digest()}", flush=True)
    return True


def run_long(minutes: float, first_seed: int) -> bool:
    """What failed once, then new seeds of all workloads in turn."""
    good = True
    for seed, seconds, name in ONCE_FAILED:
        good = run_one(seed, seconds, WORKLOADS[name]) and good
    until = time.monotonic() + minutes * 60
    seed = first_seed
    while time.monotonic() < until:
        good = run_one(seed, 120, scenario.DENSE) and good
        good = run_one(seed, 180, STORM) and good
        good = run_one(seed, 120, AIMED) and good
        good = run_one(seed, 6 * 3600, SPARSE) and good
        seed += 1
    return good


@cache
def is_sound(seed: int, seconds: float, workload: str) -> bool:
    """True if the right code holds this history: else a mutant's failure there would prove nothing."""
    try:
        scenario.run(seed, seconds, WORKLOADS[workload])
    except AssertionError:
        return False
    return True


def catch(mutant: Mutant, seeds: int = MUTANT_SEEDS) -> tuple[int, int, str]:
    """(seeds tried, the seed that caught it or -1, by which words).

    Only a broken invariant counts, or an assertion of the code itself. Any other exception means that the mutant does
    not fit the code any more, and is raised; so is a history that fails without the mutant.
    """
    for tried in range(1, seeds + 1):
        seed = mutant.seed + tried - 1
        try:
            with applied(mutant):
                scenario.run(seed, mutant.seconds, WORKLOADS[mutant.workload])
        except AssertionError as violation:
            if not is_sound(seed, mutant.seconds, mutant.workload):
                raise RuntimeError(f"seed {seed} fails without any mutant") from violation
            text = str(violation).split("\n")[0] or "an assertion of the code itself"
            return tried, seed, text.split(": ", 1)[-1]
    return seeds, -1, "SURVIVED"


def run_mutants(names: list[str], processes: int) -> bool:
    """A table of all of them."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    survivors = 0
    print(f"{len(chosen)} broken variants, at most {MUTANT_SEEDS} seeds each; in brackets: which invariant goes\n")
    for row in INVARIANTS:
        print(f"({row.number}) {row.what}\n{'':5}{row.check}")
    print()
    with ProcessPoolExecutor(processes) as pool:
        for mutant, (tried, seed, words) in zip(chosen, pool.map(catch_named, [m.name for m in chosen]), strict=True):
            survivors += seed < 0
            print(f"{mutant.name:24} ({invariant_of(mutant.name)}) {mutant.what}")
            print(f"{'':24} -> {f'seed {seed}, {tried} tried: ' if seed >= 0 else ''}{words[:150]}", flush=True)
    print(f"\n{len(chosen) - survivors} of {len(chosen)} caught")
    return not survivors


def catch_named(name: str) -> tuple[int, int, str]:
    """For a process of the pool; a mutant that does not fit has not been caught."""
    try:
        return catch(next(mutant for mutant in MUTANTS if mutant.name == name))
    except Exception as error:
        return 0, -1, f"DOES NOT FIT: {type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--seed", type=int, default=None)
    one.add_argument("--hours", type=float, default=1.0)
    one.add_argument("--workload", choices=sorted(WORKLOADS), default=SPARSE.name)
    many = commands.add_parser("long")
    many.add_argument("--minutes", type=float, default=60.0)
    many.add_argument("--seed", type=int, default=None)
    broken = commands.add_parser("mutants")
    broken.add_argument("names", nargs="*")
    broken.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    if args.command == "mutants":
        return 0 if run_mutants(args.names, args.processes) else 1
    seed = random.SystemRandom().randrange(10**9) if args.seed is None else args.seed
    if args.command == "long":
        return 0 if run_long(args.minutes, seed) else 1
    return 0 if run_one(seed, args.hours * 3600, WORKLOADS[args.workload]) else 1


if __name__ == "__main__":
    sys.exit(main())
