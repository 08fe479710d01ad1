"""The third runner of plans: as a process of the simulation, beside asyncio and threads (`dbguard.runtime.drive`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.core.plan import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from dbguard.core.failure import Failure
    from dbguard.core.plan import Done, Pause, Reply, Step, Stopped

__all__ = ["drive_simulated"]


def drive_simulated(
    plan: Generator[Step, Reply, Any],
    attempt: Callable[[Attempt], Generator[Any, Any, Done | Failure]],
    pause: Callable[[Pause], Generator[Any, Any, Stopped | None]],
) -> Generator[Any, Any, Any]:
    """Run *plan* as a process: what an attempt or a pause waits for is passed on to whoever runs the process."""
    reply: Reply = None
    try:
        while True:
            step = plan.send(reply)
            reply = yield from (attempt(step) if isinstance(step, Attempt) else pause(step))
    except StopIteration as end:
        return end.value
    finally:
        plan.close()
