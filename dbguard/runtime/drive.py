"""Run a plan, on both colours (`dbguard.runtime.colour`). Another runner stands in the simulation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from dbguard.core.plan import Attempt, Bury, Done, Pause, Reply, Resolve, Step, Stopped

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from dbguard.core.failure import Failure

__all__ = ["drive"]

Plan = Generator[Step, Reply, Any]


async def drive(
    plan: Plan,
    attempt: Callable[[Attempt], Awaitable[Done | Failure]],
    pause: Callable[[Pause], Awaitable[Stopped | None]],
    resolve: Callable[[Resolve | Bury], Awaitable[Reply]],
    lock: AbstractContextManager[object] = nullcontext(),  # noqa: B008  nothing is kept in it
) -> Any:
    """Run *plan*. A cancellation passes through; the plan is simply dropped.

    lock: the state's; held while the plan decides, because it reads and writes the state, and not while an attempt, a
        pause or a question runs.
    """
    reply: Reply = None
    try:
        while True:
            with lock:
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
