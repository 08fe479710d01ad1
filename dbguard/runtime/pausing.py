"""A pause before a planned switchover: nothing more goes to the primary, and what is under way there may end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbguard.runtime.engine import Engine

__all__ = ["pause"]

LOOK_AGAIN = 0.01
"""Seconds between two looks at what is still under way."""


async def pause(engine: Engine, timeout: float, at_most: float) -> int:
    """Pause, and wait until nothing is under way on the primary, for *timeout* seconds; return how much still is.

    If it is cancelled, there is no pause.
    """
    state = engine.state
    state.pause(at_most)
    if state.primary is not None:
        engine.flights.dismiss(state.primary.name)  # they passed the gate, and have no connection yet: they wait at it
    engine.flush()
    until = state.clock() + timeout
    try:
        while (left := state.under_way()) and (now := state.clock()) < until:
            await engine.room.pause(min(LOOK_AGAIN, until - now))
    except BaseException:
        state.resume()
        engine.flush()
        raise
    return left
