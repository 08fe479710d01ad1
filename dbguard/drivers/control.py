"""The monitor's own connection to a node: outside the pool, or borrowed from a wrapped one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from dbguard.core.topology import Role
from dbguard.drivers.asyncpg.borrow import borrow
from dbguard.drivers.asyncpg.failures import PoolExhausted
from dbguard.drivers.asyncpg.probe import ask, sighting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

    from dbguard.core.topology import Instance, Sighting
    from dbguard.drivers.asyncpg.marks import Marks

__all__ = ["BURY", "END_BACKEND", "BorrowedControl", "OwnControl"]

# Never one that waits in SyncRep: ending that wait would acknowledge a commit no standby has.
END_BACKEND = """
SELECT CASE WHEN $3 AND wait_event IS DISTINCT FROM 'SyncRep' THEN pg_terminate_backend(pid) ELSE false END
FROM pg_stat_activity
WHERE pid = $1 AND ($2::float8 IS NULL OR abs(extract(epoch from backend_start)::float8 - $2::float8) < 0.001)
"""
"""End the backend $1 that began at $2 (seconds since the epoch) if $3 says so; no row: it is gone."""

BURY = """
SELECT backend.pid IS NULL AS gone,
    CASE WHEN $3 AND wait_event IS DISTINCT FROM 'SyncRep' THEN pg_terminate_backend(backend.pid) END
FROM (SELECT extract(epoch from pg_postmaster_start_time())::text AS started) AS server
LEFT JOIN pg_stat_activity AS backend
    ON pid = $1 AND ($2::float8 IS NULL OR abs(extract(epoch from backend_start)::float8 - $2::float8) < 0.001)
WHERE $4::text IS NULL OR $4 = server.started
"""
"""The same, on the server that was started at $4 alone; no row: this is another one. gone: there is no such backend."""


async def _bury(
    con: Any, pid: int, started: float | None, instance: Instance, *, doomed: bool, timeout: float
) -> bool | None:
    row = await con.fetchrow(BURY, pid, started, doomed, instance.started, timeout=timeout)
    return None if row is None else bool(row["gone"])


REPLACE = 0.5
"""Seconds between two replacements of the connections of a pool that follows the primary: its owner's name server or proxy
takes its time, and dials are not free."""


class OwnControl:
    """A connection of its own to one node.

    dial: opens a connection, given ``timeout`` (seconds). clock: monotonic. marks: of reigns there; None: there are none.
    has_strayed: says of a connection whether its name leads elsewhere by now.
    """

    def __init__(
        self,
        node: str,
        dial: Callable[..., Awaitable[Any]],
        *,
        clock: Callable[[], float],
        marks: Marks | None = None,
        has_strayed: Callable[[Any], Awaitable[bool]] | None = None,
    ) -> None:
        self._marks = marks
        self._node = node
        self._dial = dial
        self._has_strayed = has_strayed
        self._clock = clock
        self._con: Any = None

    @property
    def alive(self) -> bool:
        """Whether there is a connection that looks usable."""
        return self._con is not None and not self._con.is_closed()

    async def ask(self, timeout: float) -> Sighting:
        """Ask over the present connection; one that does not answer is given up."""
        return await self._ask(self._con, timeout, fresh=False)

    async def dial(self, timeout: float) -> Sighting:
        """Connect anew, and ask; the new connection takes the place of the old one."""
        con = await self._dial(timeout=timeout)
        seen = await self._ask(con, timeout, fresh=True)
        self.drop()
        self._con = con
        return seen

    async def strayed(self) -> bool:
        """Whether the node's name leads to other addresses by now than the one that was dialled."""
        con = self._con
        return con is not None and self._has_strayed is not None and await self._has_strayed(con)

    async def _ask(self, con: Any, timeout: float, *, fresh: bool) -> Sighting:
        at = self._clock()
        try:
            seen = sighting(await ask(con, timeout=timeout), self._node, at, fresh=fresh)
            return seen if self._marks is None else await self._marks.tell(con, seen, timeout)
        except BaseException:
            con.terminate()
            raise

    async def mark(self, timeline: int, mark: str, timeout: float) -> str | None:
        """Mark the reign on *timeline*, unless somebody has done so; return why that is not possible, None if it was done."""
        if self._marks is None:
            return "no marks are kept here"
        try:
            return await self._marks.add(self._con, timeline, mark, timeout)
        except BaseException:
            self.drop()
            raise

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
        try:
            return await _bury(self._con, pid, started, instance, doomed=doomed, timeout=timeout)
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Close the connection at once."""
        con, self._con = self._con, None
        if con is not None and not con.is_closed():
            con.terminate()


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
            con = await borrow(pool, self._node, timeout)
        except TimeoutError:
            if full and self._seen is not None:
                return self._seen
            if full:
                raise PoolExhausted(f"the pool of {self._node} has no free connection to probe with") from None
            raise
        try:
            at = self._clock()
            seen = sighting(await ask(con, timeout=timeout), self._node, at, fresh=fresh)
            self._seen = seen if self._marks is None else await self._marks.tell(con, seen, timeout)
        except BaseException:
            con.terminate()
            raise
        finally:
            await asyncio.shield(_give_back(pool, con, timeout))
        return self._seen

    async def mark(self, timeline: int, mark: str, timeout: float) -> str | None:
        """Mark the reign on *timeline*, unless somebody has done so; return why that is not possible, None if it was done."""
        if self._marks is None:
            return "no marks are kept here"
        con = await borrow(self._pool, self._node, timeout)
        try:
            return await self._marks.add(con, timeline, mark, timeout)
        except BaseException:
            con.terminate()
            raise
        finally:
            await asyncio.shield(_give_back(self._pool, con, timeout))

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
        con = await borrow(self._pool, self._node, timeout)
        try:
            return await _bury(con, pid, started, instance, doomed=doomed, timeout=timeout)
        except BaseException:
            con.terminate()
            raise
        finally:
            await asyncio.shield(_give_back(self._pool, con, timeout))

    def drop(self) -> None:
        """Nothing is held."""
        self._seen = None


async def _give_back(pool: asyncpg.Pool[Any], con: Any, timeout: float) -> None:
    try:
        await pool.release(con, timeout=timeout)
    except Exception:  # noqa: BLE001  asyncpg has terminated the connection; the next question gets another
        return
