"""Who of a pool's callers may dial, at the pace of `dbguard.drivers.pacing`, and who waits for what is handed on.

Where there is nothing to hand on who waits is told at once why, so that he can go elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import asyncpg

from dbguard.drivers.pacing import Pacing

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.route import Node, Rng
    from dbguard.drivers.asyncpg.lease import Lease

__all__ = ["Turns"]


class Turns:
    """The connections of one pool that are out, held or being dialled, and who waits for one.

    size: how many there may be. idle: says how many lie in the pool and need no dial. back: takes
    a lease that nobody waits for any more. clock: monotonic. rng: for jitter.

    taken: how many there are.
    """

    def __init__(
        self,
        node: Node,
        size: int,
        idle: Callable[[], int],
        back: Callable[[Lease], None],
        *,
        clock: Callable[[], float],
        rng: Rng,
    ) -> None:
        self._size = size
        self._idle = idle
        self._back = back
        self._pacing = Pacing(node, clock=clock, rng=rng)
        self._waiters: deque[asyncio.Future[Lease | None]] = deque()
        self._busy = 0
        self._timer: asyncio.TimerHandle | None = None
        self.taken = 0

    @property
    def full(self) -> bool:
        """Whether who waits, waits for another caller: there may be no more connections, or none may be dialled now."""
        return self.taken >= self._size or self._pacing.pauses

    async def get(self) -> Lease | None:
        """Return a lease that was handed over; None: check one out, and say how that ended.

        Raises `NotDialled` where neither will come.
        """
        if self._has_room():
            self._begin()
            return None
        if not self.taken:
            raise self._pacing.refusal()
        turn: asyncio.Future[Lease | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        self._look_again()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                handed = turn.result()
                if handed is not None:
                    self._back(handed)
                else:
                    self.failed()
            raise

    def hand(self, lease: Lease) -> bool:
        """Hand a clean lease to who waits longest; whether anybody waits."""
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(lease)
                return True
        return False

    def dialled(self) -> None:
        """Take in that the server has let somebody in."""
        self._pacing.dialled()

    def refused(self, error: Exception, began: float) -> None:
        """Take in that a dial that *began* then has failed."""
        self._pacing.refused(error, began, full=isinstance(error, asyncpg.TooManyConnectionsError))

    def succeeded(self) -> None:
        """Take in that a connection was checked out."""
        self._busy -= 1
        self.wake()

    def failed(self) -> None:
        """Take in that none was."""
        self._busy -= 1
        self.gone()

    def gone(self) -> None:
        """Take in that a connection is gone: others may take its place."""
        self.taken -= 1
        self.wake()

    def wake(self) -> None:
        """Let as many of those who wait check a connection out as may; send them away where nothing will come."""
        while self._waiters and (self._has_room() or not self.taken):
            turn = self._waiters.popleft()
            if turn.done():
                continue
            if self._has_room():
                self._begin()
                turn.set_result(None)
            else:
                turn.set_exception(self._pacing.refusal())
        self._look_again()

    def shut(self, why: Callable[[], Exception]) -> None:
        """Send those away who wait."""
        if self._timer is not None:
            self._timer.cancel()
        for turn in self._waiters:
            if not turn.done():
                turn.set_exception(why())

    def _begin(self) -> None:
        self.taken += 1
        self._busy += 1

    def _has_room(self) -> bool:
        """Whether one more connection may be checked out, and dialled if the pool has none."""
        if self.taken >= self._size:
            return False
        return self._pacing.admits(self._busy) or self._idle() > 0

    def _look_again(self) -> None:
        """Come back when the pause is over, if anybody waits for that."""
        if self._waiters and self._timer is None and self._pacing.pauses:
            self._timer = asyncio.get_running_loop().call_later(self._pacing.left, self._pause_over)

    def _pause_over(self) -> None:
        self._timer = None
        self.wake()
