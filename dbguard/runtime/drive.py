"""Run a plan: on asyncio, and its twin on threads. The third runner stands in the simulation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

from dbguard.core.plan import Attempt, Done, Pause, Reply, Step, Stopped

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from dbguard.core.failure import Failure

__all__ = ["drive", "drive_sync"]

Plan = Generator[Step, Reply, Any]


async def drive(
    plan: Plan,
    attempt: Callable[[Attempt], Awaitable[Done | Failure]],
    pause: Callable[[Pause], Awaitable[Stopped | None]],
) -> Any:
    """Run *plan* on asyncio. A cancellation passes through; the plan is simply dropped."""
    reply: Reply = None
    try:
        while True:
            step = plan.send(reply)
            reply = await attempt(step) if isinstance(step, Attempt) else await pause(step)
    except StopIteration as end:
        return end.value
    finally:
        plan.close()


def drive_sync(
    plan: Plan,
    attempt: Callable[[Attempt], Done | Failure],
    pause: Callable[[Pause], Stopped | None],
    lock: AbstractContextManager[object],
) -> Any:
    """Run *plan* on the calling thread.

    lock: the guard's; held while the plan decides, because it reads and writes the state, and not while an attempt or a
        pause runs. Not taken twice by one thread.
    """
    reply: Reply = None
    try:
        while True:
            with lock:
                step = plan.send(reply)
            reply = attempt(step) if isinstance(step, Attempt) else pause(step)
    except StopIteration as end:
        return end.value
    finally:
        plan.close()
