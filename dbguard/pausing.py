"""`Guard.pause` and what belongs to it: a planned switchover begins with nothing under way."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dbguard.calling import Calling, View
from dbguard.deadlines import check_seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Pausing"]


class Pausing(Calling[View]):
    """Calls that can be held back for a while."""

    async def pause(self, *, timeout: float = 10.0, at_most: float = 60.0) -> int:
        """Let nothing more go to the primary until `resume`, and let what is under way there end: for a switchover.

        timeout: seconds, >= 0, to wait for calls, blocks and acquired connections under way. Default 10.
        at_most: seconds, > 0, after which the pause ends by itself, so that a forgotten one is not for ever. Default 60.

        Returns how many connections that the guard has lent there are still in use: 0 if none is. What the application
        does beside it, on wrapped pools of its own or on those of a `connector`, is neither held nor counted. Meanwhile all that needs the
        primary waits within its deadline, reads included (with ``writes="fail"`` it raises `NoPrimary`); reads that a
        replica can serve go on; a new primary is followed as ever. A second pause replaces the first. If it is
        cancelled, there is no pause.
        """
        from dbguard.runtime.pausing import pause  # noqa: PLC0415  `import dbguard` is quick

        check_seconds(timeout)
        check_seconds(at_most)
        if not 0 < at_most < math.inf:
            raise ValueError(f"at_most must be above 0 seconds and finite, not {at_most!r}")
        return await pause(self._engine(), timeout, at_most)

    def resume(self) -> None:
        """End the pause, if there is one: who waited goes on, as many at a time as the primary bears."""
        engine = self._engine()
        engine.state.resume()
        engine.flush()

    @asynccontextmanager
    async def paused(self, *, timeout: float = 10.0, at_most: float = 60.0) -> AsyncIterator[int]:
        """Pause for a block, such as one that promotes a replica; gives what `pause` returns."""
        left = await self.pause(timeout=timeout, at_most=at_most)
        try:
            yield left
        finally:
            if self._core.engine is not None:
                self.resume()
