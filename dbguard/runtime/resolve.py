"""What became of a write: a claim of its token on the fenced primary, or the end of its backend.

A claim is made on a control connection outside the pool, so that it needs nothing of what the writes may have used up.
It is made again when its own end is unknown, when its wait for a standby was cut short, and when another reign has
begun meanwhile. All of it within the call's deadline.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NoReturn
from uuid import UUID

from dbguard.core.outcome import Answer, Applied, NotApplied, StillOpen
from dbguard.core.plan import Done, Gone, Resolve, settle
from dbguard.drivers.base import TooOld
from dbguard.errors import DbGuardError, GuardClosed
from dbguard.runtime.drive import drive
from dbguard.runtime.flights import Flight

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from dbguard.core.failure import Failure
    from dbguard.core.plan import Attempt, Bury, Call, Pause, Reply
    from dbguard.core.retry import Verdict
    from dbguard.drivers.base import Registry
    from dbguard.runtime.engine import Engine

__all__ = ["answer", "resolve", "settled"]

log = logging.getLogger("dbguard")

LOOK_AGAIN = 0.25
"""Seconds between two looks for a primary; a change of the topology wakes at once."""

CLAIM_FIRST, CLAIM_MOST = 1.0, 4.0
"""Seconds that one claim may take from its turn on: at first, doubling up to the second. A black hole costs the first once;
whoever holds up a claim is not met by one more connection each second; and a server under load, which needs half a second
to fork, authenticate and answer, is not asked to begin anew each time."""

BURY_PACE = 0.05
"""Seconds between two looks at whether a backend is gone; the monitor asks at its urgent pace meanwhile."""


async def answer(engine: Engine, step: Resolve | Bury) -> Reply:
    """Answer a plan's question about a write of unknown fate."""
    if isinstance(step, Resolve):
        orphan = step.orphan
        own = (orphan.node, orphan.pid, orphan.started) if orphan is not None else None
        return await resolve(engine, UUID(step.token), step.until, own)
    return await _bury(engine, step)


async def settled(engine: Engine, call: Call, failure: Failure) -> Done | Verdict:
    """Find out what became of a commit that cannot be repeated: a block's. Raises `OutcomeUnknown`, dressed."""

    async def never(step: Attempt | Pause) -> NoReturn:
        raise AssertionError(f"settling asks, and asks alone: {step}")

    try:
        plan = settle(call, engine.state, failure, {})
        found: Done | Verdict = await drive(plan, never, never, engine.ask, engine.state.lock)
    except DbGuardError as error:
        raise engine.driver.dress(error) from error.__cause__
    finally:
        engine.flush()
    return found


async def resolve(engine: Engine, token: UUID, until: float, own: tuple[str, int, float | None] | None) -> Answer:
    """Claim *token* until it is answered, or *until* has come.

    own: the node and the backend that the write was sent to; None: not known, as in another process.
    """
    state = engine.state
    why = "there was no primary to ask"
    limit = CLAIM_FIRST
    while (now := state.clock()) < until:
        primary = state.primary
        if primary is None or state.view.refused:
            if not await _prepared(engine, until):
                await engine.room.pause(min(LOOK_AGAIN, until - now))
            continue
        reign, epoch = state.view.reign, primary.epoch
        backend = own[1:] if own is not None and own[0] == primary.name else (0, None)
        registry = engine.registries[primary.name]
        try:
            committed = await _claim(engine, registry, token, backend, limit, until)
        except (TooOld, GuardClosed) as error:
            return StillOpen(str(error))
        except TimeoutError:
            why = "its claim was not answered in time"
            limit = min(CLAIM_MOST, 2 * limit)
            continue
        except Exception as error:  # noqa: BLE001  whatever it was: the claim has not answered, and is made again
            why = f"its claim failed: {engine.driver.describe(error)}"
            engine.hurry()
            await engine.room.pause(min(LOOK_AGAIN / 5, until - now))
            continue
        finally:
            engine.flush()
        if state.still_asked(primary, epoch, reign):
            return Applied() if committed else NotApplied(reign)
        why = "the primary changed while it was asked"
    return StillOpen(why)


async def _prepared(engine: Engine, until: float) -> bool:
    """Let a node that may become the primary be dialled for the claim that will come; return whether one was."""
    state = engine.state
    for name, registry in engine.registries.items():
        now = state.clock()
        if not state.nodes[name].serves(now):
            continue
        within = min(CLAIM_FIRST, until - now)
        flight = Flight(now + within, asyncio.current_task(), cancels=False)
        try:
            if await _flown(engine, flight, registry.prepare(within)):
                return True
        except Exception as error:  # noqa: BLE001  whatever it was: the claim will dial for itself
            log.debug("%s: not dialled for a claim to come: %s", name, engine.driver.describe(error))
            return True
    return False


async def _claim(
    engine: Engine, registry: Registry, token: UUID, own: tuple[int, float | None], within: float, until: float
) -> bool:
    """Make one claim, in *within* seconds from its turn on, and not beyond *until*.

    Raises TimeoutError, or what the claim raises.
    """
    clock = engine.state.clock
    flight = Flight(until, asyncio.current_task(), cancels=False)

    async def in_turn() -> bool:
        async with registry.turn:
            # A failover leaves many to ask at once: who waits for a turn has not been refused an answer.
            flight.deadline = min(until, clock() + within)
            return await registry.claim(token, own, flight.deadline - clock())

    return await _flown(engine, flight, in_turn())


async def _flown(engine: Engine, flight: Flight, work: Awaitable[bool]) -> bool:
    """Wait for *work*, until the flight's time is over. Raises TimeoutError, or what it raises."""
    engine.flights.add(flight)
    try:
        return await work
    except asyncio.CancelledError:
        if flight.over and flight.absorb():
            raise TimeoutError from None
        raise
    finally:
        engine.flights.remove(flight)
        flight.absorb()


async def _bury(engine: Engine, step: Bury) -> Gone | StillOpen:
    """Let the monitor end the backend that the write was sent to, and wait until it is gone."""
    orphan = step.orphan
    orphan.doomed = True
    state = engine.state
    while not (orphan.gone or orphan.is_past(state.view)):
        left = step.until - state.clock()
        if left <= 0:
            return StillOpen("its backend could not be ended")
        engine.hurry()
        await engine.room.pause(min(BURY_PACE, left))
    return Gone()
