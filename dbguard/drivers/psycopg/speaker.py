"""A connection of psycopg's that speaks as the monitor, the claims and the readings of the catalogue ask.

Those are written once, as coroutines in the words of asyncpg's connections; guards for threads run them on their own event
loop, so that this is an asynchronous connection for both. Nothing is prepared on it, so that it works behind a pooler too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from dbguard.drivers.interrupt import met
from dbguard.drivers.psycopg.cord import Cord
from dbguard.drivers.psycopg.line import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Notice", "Speaker", "records"]


def records(cursor: psycopg.AsyncCursor[Any]) -> Callable[[Sequence[Any]], Row]:
    """Let the rows of *cursor*'s results be read by name and by place; a row factory of psycopg's."""
    names = [column.name for column in cursor.description or ()]
    return lambda values: Row.of(values, names)


class Notice(NamedTuple):
    """What the server said beside its answer. server_source_function: its own function that said it."""

    server_source_function: str | None


class Speaker:
    """One connection, for one statement at a time; see `dbguard.drivers.speaker.Speaker`.

    con: in autocommit, made with `psycopg.AsyncRawCursor` and `records`. timeout: seconds for each statement that brings no
    limit of its own; None: none. reached: the name that was dialled, and which of its addresses answered; None: no name was.

    A statement that takes too long ends the connection: what becomes of it on the server is not asked.
    """

    def __init__(
        self,
        con: psycopg.AsyncConnection[Row],
        *,
        timeout: float | None = None,
        reached: tuple[str, str] | None = None,
    ) -> None:
        self.reached = reached
        self._con = con
        self._timeout = timeout
        self._cord = Cord(con.pgconn.socket)
        self._pid = con.info.backend_pid
        self._listeners: dict[Callable[[Any, Any], None], Callable[[psycopg.errors.Diagnostic], None]] = {}
        self._in_use = False
        self._cut = False

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run a statement, or several where no parameters are given; return the tag of the last."""
        cursor = await self._run(query, args, timeout)
        while cursor.nextset():
            pass
        return cursor.statusmessage or ""

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Any]:
        """Run a statement, and return its rows."""
        return await (await self._run(query, args, timeout)).fetchall()

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """Run a statement, and return its first row; None: there is none."""
        return await (await self._run(query, args, timeout)).fetchone()

    async def fetchval(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """Run a statement, and return the first column of its first row; None: there is none."""
        row = await self.fetchrow(query, *args, timeout=timeout)
        return None if row is None else row[0]

    def is_closed(self) -> bool:
        """Whether it cannot be used any more. One that the server has ended while nobody used it is closed by that."""
        if self._in_use or self._con.closed:
            return self._cut or self._con.closed
        if self._cord.hangs_loose():
            self._finish()
        return self._con.closed

    def terminate(self) -> None:
        """End it at once; whoever waits on it is woken with psycopg's error."""
        self._cut = True
        self._cord.cut()
        if not self._in_use:
            self._finish()

    def get_server_pid(self) -> int:
        """Return the number of the server's process behind it."""
        return self._pid

    def add_log_listener(self, callback: Callable[[Any, Any], None]) -> None:
        """Let *callback* hear the server's notices from now on: it is given this object, and a `Notice`."""

        def hear(said: psycopg.errors.Diagnostic) -> None:
            callback(self, Notice(said.source_function))

        self._listeners[callback] = hear
        self._con.add_notice_handler(hear)

    def remove_log_listener(self, callback: Callable[[Any, Any], None]) -> None:
        """Let it hear no more."""
        self._con.remove_notice_handler(self._listeners.pop(callback))

    async def _run(self, query: str, args: tuple[Any, ...], timeout: float | None) -> psycopg.AsyncCursor[Row]:
        """Run a statement. Raises TimeoutError after *timeout* seconds, or what psycopg raises."""
        limit = self._timeout if timeout is None else timeout
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            self.terminate()

        timer = None if limit is None else asyncio.get_running_loop().call_later(limit, give_up)
        self._in_use = True
        try:
            cursor = self._con.cursor()
            # Without parameters psycopg sends a simple query, which may be several statements.
            await met(self._finish, cursor.execute(query.encode(), args or None))
        except psycopg.Error:
            if not late:
                raise
        else:
            return cursor
        finally:
            self._in_use = False
            if timer is not None:
                timer.cancel()
            if self._cut or self._con.closed:
                self._finish()
        raise TimeoutError

    def _finish(self) -> None:
        """Close it, without a wait: psycopg then asks nobody to cancel what runs, whatever interrupts it."""
        self._cord.close()  # first: a duplicate would keep the socket alive in the event loop's selector
        self._con.pgconn.finish()
