"""Run a plan: on asyncio, and its twin on threads. The third runner stands in the simulation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

from dbguard.core.plan import Attempt, Bury, Done, Pause, Reply, Resolve, Step, Stopped

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from dbguard.core.failure import Failure

__all__ = ["drive", "drive_sync"]

Plan = Generator[Step, Reply, Any]


async def drive(
    plan: Plan,
    attempt: Callable[[Attempt], Awaitable[Done | Failure]],
    pause: Callable[[Pause], Awaitable[Stopped | None]],
    resolve: Callable[[Resolve | Bury], Awaitable[Reply]],
) -> Any:
    """Run *plan* on asyncio. A cancellation passes through; the plan is simply dropped."""
    reply: Reply = None
    try:
        while True:
            step = plan.send(reply)
            if isinstance(step, Attempt):
                reply = await attempt(step)
            elif isinstance(step, Pause):
                reply = await pause(step)
            else:
                reply = await resolve(step)
    except StopIteration as end:
        return end.value
    finally:
        plan.close()


def drive_sync(
    plan: Plan,
    attempt: Callable[[Attempt], Done | Failure],
    pause: Callable[[Pause], Stopped | None],
    resolve: Callable[[Resolve | Bury], Reply],
    lock: AbstractContextManager[object],
) -> Any:
    """Run *plan* on the calling thread.

    lock: the guard's; held while the plan decides, because it reads and writes the state, and not while an attempt, a
        pause or a question runs. Not taken twice by one thread.
    """
    reply: Reply = None
    try:
        while True:
            with lock:
                step = plan.send(reply)
            if isinstance(step, Attempt):
                reply = attempt(step)
            elif isinstance(step, Pause):
                reply = pause(step)
            else:
                reply = resolve(step)
    except StopIteration as end:
        return end.value
    finally:
        plan.close()
