"""The monitor's questions over a wrapped pool of asyncpg's, which does not tell how it connects."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from dbguard.core.topology import Role
from dbguard.drivers.asyncpg.borrow import Borrowed, borrow
from dbguard.drivers.control import say_whether_gone
from dbguard.drivers.named import PoolExhausted
from dbguard.drivers.probe import ask, sighting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import asyncpg

    from dbguard.core.topology import Instance, Sighting
    from dbguard.drivers.marks import Marks

__all__ = ["BorrowedControl"]

REPLACE = 0.5
"""Seconds between two replacements of the connections of a pool that follows the primary: its owner's name server or proxy
takes its time, and dials are not free."""


class BorrowedControl:
    """Asks over a connection borrowed from the application's pool, one checkout per question.

    A pool without a free connection says nothing about its node: the last answer stands for a while.
    follows: its address leads to whoever is the primary; where its connections do not, they are replaced.
    """

    def __init__(
        self,
        node: str,
        pool: asyncpg.Pool[Any],
        *,
        clock: Callable[[], float],
        marks: Marks | None = None,
        follows: bool = False,
    ) -> None:
        self._follows = follows
        self._replace_at = 0.0
        self._marks = marks
        self._node = node
        self._pool = pool
        self._clock = clock
        self._seen: Sighting | None = None

    @property
    def alive(self) -> bool:
        """A pool can always be asked."""
        return self._seen is not None

    async def ask(self, timeout: float) -> Sighting:
        """Borrow a connection and ask."""
        seen = await self._borrow(timeout, fresh=False)
        if self._follows and seen.role is Role.REPLICA and await self._replace():
            return await self._borrow(timeout, fresh=True)
        return seen

    async def dial(self, timeout: float) -> Sighting:
        """Borrow a connection and ask; the pool dials if it has none, or if it follows the primary."""
        if self._follows:
            await self._replace()
        return await self._borrow(timeout, fresh=True)

    async def strayed(self) -> bool:
        """Not known: the application's pool dials as it likes."""
        return False

    async def _replace(self) -> bool:
        """Let the pool dial anew, unless that was done a moment ago."""
        now = self._clock()
        if now < self._replace_at:
            return False
        self._replace_at = now + REPLACE
        await self._pool.expire_connections()
        return True

    async def _borrow(self, timeout: float, *, fresh: bool) -> Sighting:
        pool = self._pool
        full = pool.get_idle_size() == 0 and pool.get_size() >= pool.get_max_size()
        try:
            con = Borrowed(await borrow(pool, self._node, timeout))
        except TimeoutError:
            if full and self._seen is not None:
                return self._seen
            if full:
                raise PoolExhausted(f"the pool of {self._node} has no free connection to probe with") from None
            raise
        async with self._given_back(con, timeout):
            at = self._clock()
            seen = sighting(await ask(con, timeout=timeout), self._node, at, fresh=fresh)
            self._seen = seen if self._marks is None else await self._marks.tell(con, seen, timeout)
        return self._seen

    async def mark(self, timeline: int, mark: str, timeout: float) -> str | None:
        """Mark the reign on *timeline*, unless somebody has done so; return why that is not possible, None if it was done."""
        if self._marks is None:
            return "no marks are kept here"
        con = Borrowed(await borrow(self._pool, self._node, timeout))
        async with self._given_back(con, timeout):
            return await self._marks.add(con, timeline, mark, timeout)

    async def end_backend(
        self,
        pid: int,
        started: float | None,
        *,
        instance: Instance,
        doomed: bool,
        timeout: float,
    ) -> bool | None:
        """Say whether the backend is gone; None: this is another server. *doomed*: end it, unless it waits in SyncRep."""
        con = Borrowed(await borrow(self._pool, self._node, timeout))
        async with self._given_back(con, timeout):
            return await say_whether_gone(con, pid, started, instance, doomed=doomed, timeout=timeout)

    def drop(self) -> None:
        """Nothing is held."""
        self._seen = None

    @contextlib.asynccontextmanager
    async def _given_back(self, con: Borrowed, timeout: float) -> AsyncIterator[None]:
        """Give back what was borrowed. One that was not asked to the end is ended: an answer may still be on its way."""
        try:
            yield
        except BaseException:
            con.terminate()
            raise
        finally:
            await asyncio.shield(_give_back(self._pool, con, timeout))


async def _give_back(pool: asyncpg.Pool[Any], con: Borrowed, timeout: float) -> None:
    try:
        await pool.release(con.lent, timeout=timeout)
    except Exception:  # noqa: BLE001  asyncpg has terminated the connection; the next question gets another
        return
