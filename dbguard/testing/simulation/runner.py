"""The third runner of plans: as a process of the simulation, beside asyncio and threads (`dbguard.runtime.drive`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.core.plan import Attempt, Pause

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from dbguard.core.failure import Failure
    from dbguard.core.plan import Bury, Done, Reply, Resolve, Step, Stopped

__all__ = ["drive_simulated"]


def drive_simulated(
    plan: Generator[Step, Reply, Any],
    attempt: Callable[[Attempt], Generator[Any, Any, Done | Failure]],
    pause: Callable[[Pause], Generator[Any, Any, Stopped | None]],
    resolve: Callable[[Resolve | Bury], Generator[Any, Any, Reply]],
) -> Generator[Any, Any, Any]:
    """Run *plan* as a process: what an attempt, a pause or a question waits for is passed on to whoever runs the process."""
    reply: Reply = None
    try:
        while True:
            step = plan.send(reply)
            if isinstance(step, Attempt):
                reply = yield from attempt(step)
            elif isinstance(step, Pause):
                reply = yield from pause(step)
            else:
                reply = yield from resolve(step)
    except StopIteration as end:
        return end.value
    finally:
        plan.close()
