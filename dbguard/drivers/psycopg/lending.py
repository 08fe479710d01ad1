"""Who gets which lease: what is at hand, and who waits.

A lease that comes back goes to who waits longest, or waits itself, the one used last on top. What brings others runs beside
the calls, so that who waits can be called off, and gets what comes first.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

from dbguard.drivers.psycopg.failures import dress
from dbguard.drivers.psycopg.lease import Books, Lease
from dbguard.errors import GuardClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.route import Node
    from dbguard.drivers.base import Colour, Waiter
    from dbguard.errors import DbGuardError

__all__ = ["Lending"]


class Lending(Books):
    """The part of a pool that lends what is there."""

    def __init__(self, node: Node, *, colour: Colour, clock: Callable[[], float], size: int) -> None:
        super().__init__(node, colour=colour, clock=clock, size=size)
        self._free: deque[Lease] = deque()
        self._waiters: deque[Waiter] = deque()

    def _wake(self) -> None:
        """Bring what those who wait need, as far as that may be done."""
        raise NotImplementedError

    def _pass(self, lease: Lease) -> None:
        """Hand a clean lease on, or keep it at hand, or give it up."""
        raise NotImplementedError

    def _discard(self, lease: Lease) -> None:
        """End a connection that is not out."""
        raise NotImplementedError

    def _take_free(self) -> Lease | None:
        """Return a lease that is at hand, the one used last first."""
        while True:
            try:
                lease = self._free.pop()
            except IndexError:
                return None
            # psycopg does not notice that an idle connection was lost, and nothing was sent on it yet.
            if not (lease.con.is_closed() or lease.con.is_dead()) and self._lend(lease):
                return lease
            self._discard(lease)

    async def _wait(self) -> Lease:
        """Wait for a lease to be given back or brought; raises what kept that from being done."""
        while True:
            waiter = self._colour.waiter()
            try:
                lease = await self._lined_up(waiter)
            except BaseException:
                lost = waiter.taken()
                if lost is not None:
                    self._pass(lost)
                with self._lock, contextlib.suppress(ValueError):  # who brings something takes it off the list
                    self._waiters.remove(waiter)
                raise
            if lease is None:
                lease = self._take_free()
                if lease is not None:
                    return lease
            elif not lease.con.is_closed() and self._lend(lease):
                return lease
            else:
                self._discard(lease)

    async def _lined_up(self, waiter: Waiter) -> Lease | None:
        """Wait behind the others; None: there is no need to, something is at hand."""
        with self._lock:
            if self._closing:
                raise _closed()
            if self._free:
                return None
            self._waiters.append(waiter)
        self._wake()
        lease: Lease = await waiter.wait()
        return lease

    def _hand(self, lease: Lease) -> bool:
        """Hand a clean lease to who waits longest; say whether anybody waits. Under the lock."""
        while self._waiters:
            given = self._waiters[0].give(lease)
            self._waiters.popleft()  # not before: nobody would give anything to who was taken off the list and got nothing
            if given:
                return True
        return False

    def _refuse(self, error: Exception) -> bool:
        """Tell who waits longest that nothing comes; say whether anybody waits."""
        with self._lock:
            while self._waiters:
                if self._waiters.popleft().fail(error):
                    return True
        return False

    def _sift(self, stays: Callable[[Lease], bool]) -> int:
        """End what is at hand and shall not stay there; returns how many."""
        return self._part(lambda lease: not stays(lease), self._discard)

    def _part(self, goes: Callable[[Lease], bool], end: Callable[[Lease], object]) -> int:
        """Do *end* with what is at hand and shall go; returns how many."""
        gone = 0
        for _ in range(len(self._free)):
            try:
                lease = self._free.popleft()
            except IndexError:  # another thread takes them
                break
            if goes(lease):
                end(lease)
                gone += 1
            else:
                self._free.append(lease)
        return gone

    def _shut(self) -> None:
        """Lend nothing any more, and send those home who wait."""
        with self._lock:
            self._closing = True
        while self._refuse(_closed()):
            continue


def _closed() -> DbGuardError:
    return dress(GuardClosed("the guard was closed while this call waited for a connection"))
