"""What became of a write: a claim of its token on the fenced primary, or the end of its backend.

A claim is made on a control connection outside the pool, so that it needs nothing of what the writes may have used up.
It is made again when its own end is unknown, when its wait for a standby was cut short, and when another reign has
begun meanwhile. All of it within the call's deadline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbguard.core.outcome import StillOpen
from dbguard.core.plan import Gone, Resolve

if TYPE_CHECKING:
    from dbguard.core.plan import Bury, Reply
    from dbguard.runtime.engine import Engine

__all__ = ["answer"]

BURY_PACE = 0.05
"""Seconds between two looks at whether a backend is gone; the monitor asks at its urgent pace meanwhile."""


async def answer(engine: Engine, step: Resolve | Bury) -> Reply:
    """Answer a plan's question about a write of unknown fate."""
    if isinstance(step, Resolve):
        return StillOpen("tokens are not asked for")
    return await _bury(engine, step)


async def _bury(engine: Engine, step: Bury) -> Gone | StillOpen:
    """Let the monitor end the backend that the write was sent to, and wait until it is gone."""
    orphan = step.orphan
    orphan.doomed = True
    state = engine.state
    while not orphan.gone and orphan.reign == state.view.reign:
        left = step.until - state.clock()
        if left <= 0:
            return StillOpen("its backend could not be ended")
        engine.hurry()
        await engine.room.pause(min(BURY_PACE, left))
    return Gone()
