"""Many seeds, on as many cores as there are."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

from dbguard.testing.simulation.run import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["COUNTED", "Batch", "run_batch", "run_many"]

COUNTED = ("calls", "failed", "unknown", "repeats", "promotions", "faults", "unprovable")

SIZE = 50
"""Seeds per batch: some seconds of work."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What came of some seeds.

    done: how many were run. broken: the first that broke a promise, and what it broke; None if none did: none is run
        after it. totals: sums of `COUNTED`.
    """

    done: int
    broken: tuple[int, str] | None
    totals: Counter[str] = field(default_factory=Counter)


def run_batch(seeds: range, *, defect: str | None = None, fast: bool = True, engine: bool = False) -> Batch:
    """Run *seeds* in order, up to the first that breaks a promise. The options are those of `simulate`."""
    totals: Counter[str] = Counter()
    for done, seed in enumerate(seeds, 1):
        run = simulate(seed, defect=defect, fast=fast, engine=engine)
        totals.update({name: getattr(run, name) for name in COUNTED})
        if run.violations:
            return Batch(done, (seed, str(run.violations[0])), totals)
    return Batch(len(seeds), None, totals)


def run_many(
    seeds: range, *, jobs: int = 1, defect: str | None = None, fast: bool = True, engine: bool = False
) -> Iterator[Batch]:
    """Run *seeds* in batches, *jobs* at a time, and yield what came of each, in order of the seeds."""
    batches = [seeds[at : at + SIZE] for at in range(0, len(seeds), SIZE)]
    work = partial(run_batch, defect=defect, fast=fast, engine=engine)
    if jobs == 1:
        yield from map(work, batches)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(work, batches)
        finally:
            pool.shutdown(cancel_futures=True)
