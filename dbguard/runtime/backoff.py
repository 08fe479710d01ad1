"""How long to pause: tenacity computes it.

dbguard decides *whether* to repeat, tenacity *when*. `RetryPolicy.wait` is any tenacity strategy, or several joined;
the defaults are `wait_random_exponential`, which is full jitter, with a floor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, wait_random_exponential

from dbguard.core.failure import Family

if TYPE_CHECKING:
    from dbguard.core.plan import Pause
    from dbguard.core.retry import RetryPolicy

__all__ = ["DEFAULT_WAITS", "Backoff"]

DEFAULT_WAITS: dict[Family, Any] = {
    Family.CONTENTION: wait_random_exponential(multiplier=0.010, min=0.002, max=0.5),
    Family.SOFT: wait_random_exponential(multiplier=0.100, min=0.020, max=2.0),
}
"""Seconds; measured needs: a hot row clears in milliseconds, a full server in tenths of a second."""

HARD_WAIT: Any = wait_random_exponential(multiplier=0.050, min=0.010, max=2.0)


class Backoff:
    """Asks the retry policy how long one call pauses, and whether it goes on at all.

    One object per call: tenacity's own state is never shared between calls.
    """

    def __init__(self, policy: RetryPolicy, began: float) -> None:
        self._policy = policy
        self._state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]  # there is no loop of tenacity's here
        self._state.start_time = began

    def seconds(self, pause: Pause, now: float) -> float | None:
        """Return how long to sleep, within what the pause allows; None: the policy's ``stop`` says enough."""
        state = self._state
        state.attempt_number = pause.number
        if pause.failure is not None:
            cause = pause.failure.cause
            state.set_exception((type(cause), cause, cause.__traceback__))
        state.outcome_timestamp = now
        stop: Any = self._policy.stop
        if stop is not None and stop(state):
            return None
        wait: Any = self._policy.wait
        if wait is None:
            wait = DEFAULT_WAITS.get(pause.family, HARD_WAIT)
        return min(max(float(wait(state)), pause.at_least), pause.at_most)
