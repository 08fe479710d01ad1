# ruff: noqa: T201  a command prints
"""``python -m dbguard.testing.simulation``: run seeds, replay one, shrink what fails.

Exit code 0: no promise was broken. 1: one was, and the seed is printed. 2: the arguments are wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from dbguard.testing.simulation.defects import DEFECTS
from dbguard.testing.simulation.many import run_many
from dbguard.testing.simulation.run import simulate
from dbguard.testing.simulation.shrink import shrink

__all__ = ["main"]

COMMAND = "python -m dbguard.testing.simulation"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Run dbguard's core over a simulated PostgreSQL cluster. Each seed is a cluster of three nodes, "
        "some fifty calls or more, at least one promotion and three faults; no promise may be broken, whatever the seed.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--seed", type=int, help="run this one seed, and say what it holds")
    what.add_argument("--seeds", type=int, default=1_000, help="run so many seeds (default: 1000)")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="with --seeds: begin with this one (default: 0)"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="with --seeds: on so many processes (default: 1)"
    )
    parser.add_argument("--trace", action="store_true", help="with --seed: print every step")
    parser.add_argument(
        "--engine", action="store_true", help="run dbguard's own runtime on an event loop, and cancel calls (slower)"
    )
    parser.add_argument("--slow", action="store_true", help="send every call through a plan, without the fast path")
    parser.add_argument(
        "--defect", choices=sorted(DEFECTS), help="switch one rule of no harm off: the simulation has to notice"
    )
    given = parser.parse_args(arguments)
    if given.seeds < 1:
        parser.error("--seeds must be at least 1")
    if given.jobs < 1:
        parser.error("--jobs must be at least 1")
    return _one(given) if given.seed is not None else _many(given)


def _one(given: argparse.Namespace) -> int:
    run = simulate(given.seed, defect=given.defect, fast=not given.slow, engine=given.engine, trace=True)
    print(run.schedule)
    if given.trace:
        print(*run.history, sep="\n")
    print(
        f"{run.calls} calls, {run.failed} failed, {run.unknown} of them with an unknown outcome; {run.repeats} repeats,"
        f" {run.promotions} promotions, {run.faults} other faults in {run.seconds:.1f} virtual seconds; history {run.digest}"
    )
    for violation in run.violations:
        print(f"BROKEN  {violation}")
    return 1 if run.violations else 0


def _many(given: argparse.Namespace) -> int:
    totals: Counter[str] = Counter()
    began, done, told = time.monotonic(), 0, 0.0
    live = sys.stderr.isatty()
    seeds = range(given.first, given.first + given.seeds)
    for batch in run_many(seeds, jobs=given.jobs, defect=given.defect, fast=not given.slow, engine=given.engine):
        totals += batch.totals
        done += batch.done
        if batch.broken is not None:
            if live:
                print(file=sys.stderr)
            return _report(batch.broken[0], done, given)
        if live and time.monotonic() - told > 0.2:
            told = time.monotonic()
            rate = done / (told - began) * 60
            print(f"\r{done} of {given.seeds} seeds, {rate:,.0f} a minute ", end="", file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    if live:
        print("\r\x1b[K", end="", file=sys.stderr)
    print(
        f"{given.seeds:,} seeds ({seeds[0]} to {seeds[-1]}) in {seconds:.0f} s,"
        f" {given.seeds / seconds * 60:,.0f} a minute: {totals['calls']:,} calls, {totals['promotions']:,} promotions,"
        f" {totals['faults']:,} other faults, {totals['repeats']:,} repeats, {totals['failed']:,} calls failed,"
        f" {totals['unknown']:,} of them with an unknown outcome; 0 promises broken"
    )
    return 0


def _report(seed: int, done: int, given: argparse.Namespace) -> int:
    """Print a failing seed, and the smallest schedule that fails like it."""
    run = simulate(seed, defect=given.defect, fast=not given.slow, engine=given.engine)
    print(f"seed {seed} broke a promise (after {done} seeds):")
    for violation in run.violations[:5]:
        print(f"  {violation}")
    more = f" --defect {given.defect}" if given.defect else ""
    more += " --engine" if given.engine else ""
    print(f"replay: {COMMAND} --seed {seed} --trace{more}")
    print("shrinking ...", flush=True)
    small = shrink(run.schedule, run.violations[0].promise, defect=given.defect, engine=given.engine)
    print(small)
    for violation in simulate(small, defect=given.defect, engine=given.engine).violations[:3]:
        print(f"  {violation}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
