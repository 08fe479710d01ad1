"""The time of a run's timeline, which stands still while something is broken or healed.

To bring back a server takes half a second, or several on a machine that does much else. Faults that are due meanwhile
would meet a cluster that is not whole yet, in another order than the scenario says: a second primary would be killed
before a replica is there to be promoted. So what is due waits, and all of it keeps its distance.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Clock"]


class Clock:
    """The timeline's time, for the tasks of one event loop.

    real: the time that does not stand still, in seconds.
    """

    def __init__(self, real: Callable[[], float]) -> None:
        self._real = real
        self._stood = 0.0
        self._standing = 0
        self._since = 0.0
        self._goes = asyncio.Event()
        self._goes.set()

    def now(self) -> float:
        """Return the timeline's time."""
        return (self._since if self._standing else self._real()) - self._stood

    async def until(self, moment: float) -> None:
        """Wait for a moment of the timeline."""
        while self.now() < moment:
            await self._goes.wait()
            await asyncio.sleep(moment - self.now())

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """Let it stand still meanwhile; several may at once."""
        if not self._standing:
            self._since = self._real()
            self._goes.clear()
        self._standing += 1
        try:
            yield
        finally:
            self._standing -= 1
            if not self._standing:
                self._stood += self._real() - self._since
                self._goes.set()
