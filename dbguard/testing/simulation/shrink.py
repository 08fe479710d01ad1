"""Make a failing schedule small: leave out what it does not need in order to fail."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dbguard.testing.simulation.run import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbguard.testing.simulation.schedule import Schedule

__all__ = ["shrink"]

MOST_TRIES = 200


def shrink(schedule: Schedule, promise: str, *, defect: str | None = None, engine: bool = False) -> Schedule:
    """Return a schedule, as small as was found, that still breaks *promise*.

    Faults are left out one by one, then clients and calls, until nothing more can go. Fewer calls or clients change the
    small chances of the run, so a smaller schedule fails in its own way, not always in the same.
    """
    tries = 0
    smaller = True
    while smaller and tries < MOST_TRIES:
        smaller = False
        for candidate in _smaller(schedule):
            tries += 1
            if any(
                violation.promise == promise
                for violation in simulate(candidate, defect=defect, engine=engine).violations
            ):
                schedule, smaller = candidate, True
                break
            if tries >= MOST_TRIES:
                break
    return schedule


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    """Yield schedules with one thing less."""
    faults = schedule.faults
    for place in range(len(faults)):
        yield replace(schedule, faults=faults[:place] + faults[place + 1 :])
    if schedule.clients > 1:
        yield replace(schedule, clients=schedule.clients // 2, shared=min(schedule.shared, schedule.clients // 2))
        yield replace(schedule, clients=schedule.clients - 1, shared=min(schedule.shared, schedule.clients - 1))
    if schedule.calls > 1:
        yield replace(schedule, calls=schedule.calls // 2)
        yield replace(schedule, calls=schedule.calls - 1)
