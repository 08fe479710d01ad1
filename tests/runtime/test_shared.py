"""What threads share of a guard, where the collector of garbage comes in between."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

from dbguard.runtime.colour import Threads
from dbguard.runtime.flights import Flight
from dbguard.runtime.shared import SharedFlights
from tests.waiting import until


class Dropped:
    """Something in a circle of its own whose end ends an attempt: a generator that holds a connection."""

    def __init__(self, flights: SharedFlights) -> None:
        self.itself = self
        self.flights = flights
        self.flight = Flight(1e9, None, cancels=False)
        flights.add(self.flight)

    def __del__(self) -> None:
        self.flights.remove(self.flight)


class Collecting:
    """A lease, as which is ended garbage is collected."""

    def end(self) -> None:
        gc.collect()


def test_an_attempt_that_the_collector_ends_as_another_one_is_ended_waits_for_nobody() -> None:
    async def scene() -> None:
        flights = SharedFlights(lambda: 1.0, Threads(asyncio.get_running_loop(), threading.get_ident()))
        flights.start()
        late = Flight(0.0, None, cancels=False, lease=Collecting())
        flights.add(late)
        Dropped(flights)
        await until(lambda: late.over)
        assert flights._under_way() == [late]
        flights.stop()

    failed: list[Any] = []

    def run() -> None:
        try:
            asyncio.run(scene())
        except BaseException as error:  # noqa: BLE001  told by the test
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for itself"
    assert not failed
