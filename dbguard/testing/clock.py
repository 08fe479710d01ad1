"""Time that moves only when it is told to, for tests that never sleep.

`ManualClock` is a clock to hand in. `ClockLoop` is an asyncio event loop whose time is such a clock: where a real loop
would sleep until its next timer, this one moves the clock there, so that code full of time-outs runs in no time, and
always in the same order.
"""

from __future__ import annotations

import asyncio
import selectors

__all__ = ["ClockLoop", "ManualClock"]


class ManualClock:
    """A clock that stands still until `advance`; call it for the time.

    now: seconds; begins at *now*, default 1,000: a real monotonic clock does not begin at 0 either.
    """

    __slots__ = ("now",)

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def advance(self, seconds: float) -> float:
        """Let *seconds* pass, >= 0; return the time then."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds!r} seconds")
        self.now += seconds
        return self.now


class ClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is *clock*: it never sleeps, and two runs of the same code are the same.

    Raises RuntimeError where a real loop would wait for ever: no timer is set and nothing is ready. Not for code that
    waits for sockets or other threads.
    """

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(_NoWait(clock))
        self._moves = clock

    def time(self) -> float:
        """Return the clock's time."""
        return self._moves.now


class _NoWait(selectors.DefaultSelector):
    """Moves the clock instead of waiting."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("nothing will ever happen on this loop: it waits without a timer")
        if not ready and timeout:
            self._clock.advance(timeout)
        return ready
