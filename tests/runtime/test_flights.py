"""Deadlines of attempts under way: one sweep for all, and none where there is nothing under way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dbguard.runtime.flights import SWEEP, Flight, Flights

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.testing.clock import ManualClock

    Run = Callable[[object], object]


def test_at_rest_nothing_is_swept_and_what_comes_then_is_ended_in_time(clock: ManualClock, run: Run) -> None:
    looked = 0

    def watched() -> float:
        nonlocal looked
        looked += 1
        return clock.now

    async def rest_and_work() -> None:
        nonlocal looked
        flights = Flights(watched)
        flights.start()
        await asyncio.sleep(600.0)
        assert looked < 100, "a minute of rest costs no more than its beginning"
        for _ in range(3):
            began = clock.now
            flight = Flight(began + 0.5, None, cancels=False)
            flights.add(flight)
            await asyncio.sleep(0.49)
            assert not flight.over
            await asyncio.sleep(0.01 + SWEEP)
            assert flight.over
            flights.remove(flight)
            await asyncio.sleep(5.0)
        flights.stop()
        flights.start()
        flight = Flight(clock.now + 0.5, None, cancels=False)
        flights.add(flight)
        await asyncio.sleep(0.5 + SWEEP)
        assert flight.over, "begun anew, as when a guard is opened again"
        flights.stop()

    run(rest_and_work())
