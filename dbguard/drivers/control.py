"""The monitor's own connection to a node, outside the pool."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dbguard.drivers.probe import ask, sighting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from dbguard.core.topology import Instance, Sighting
    from dbguard.drivers.marks import Marks
    from dbguard.drivers.speaker import Speaker

__all__ = ["BURY", "END_BACKEND", "OwnControl", "say_whether_gone"]

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


async def say_whether_gone(
    con: Speaker, pid: int, started: float | None, instance: Instance, *, doomed: bool, timeout: float
) -> bool | None:
    """Ask over *con* whether a backend is gone, as `Control.end_backend` does. Raises what the driver raises."""
    row = await con.fetchrow(BURY, pid, started, doomed, instance.started, timeout=timeout)
    return None if row is None else bool(row["gone"])


class OwnControl:
    """A connection of its own to one node.

    dial: opens a connection, given ``timeout`` (seconds). clock: monotonic. marks: of reigns there; None: there are none.
    has_strayed: says of a connection whether its name leads elsewhere by now.
    """

    def __init__(
        self,
        node: str,
        dial: Callable[..., Awaitable[Speaker]],
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
        self._asked: list[Any] = []

    @property
    def alive(self) -> bool:
        """Whether there is a connection that looks usable."""
        return self._con is not None and not self._con.is_closed()

    async def ask(self, timeout: float) -> Sighting:
        """Ask over the present connection; one that does not answer is given up."""
        with self._present() as con:
            return await self._ask(con, timeout, fresh=False)

    async def dial(self, timeout: float) -> Sighting:
        """Connect anew, and ask; the new connection takes the place of the old one, whose last question is still answered."""
        con = await self._dial(timeout=timeout)
        seen = await self._ask(con, timeout, fresh=True)
        if not any(asked is self._con for asked in self._asked):
            self.drop()
        self._con = con
        return seen

    @contextmanager
    def _present(self) -> Iterator[Any]:
        """Give the present connection, for one question. It is given up if that fails, or another has taken its place."""
        con = self._con
        self._asked.append(con)
        try:
            yield con
        except BaseException:
            if con is self._con:
                self.drop()
            raise
        finally:
            self._asked.remove(con)
            if con is not None and con is not self._con and not con.is_closed():
                con.terminate()

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
        with self._present() as con:
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
        with self._present() as con:
            return await say_whether_gone(con, pid, started, instance, doomed=doomed, timeout=timeout)

    def drop(self) -> None:
        """Close the connection at once."""
        con, self._con = self._con, None
        if con is not None and not con.is_closed():
            con.terminate()
