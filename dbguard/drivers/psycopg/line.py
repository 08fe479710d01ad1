"""Lines: a leased connection of psycopg's, as dbguard runs things on it; what `Lease.con` is.

The driver's own methods run through `run`: awaited on asyncio, blocking on threads, so that what is above is written once.
A line is ended by cutting its socket (`Cord`), which wakes whoever waits on it, a thread or a task; it is closed only when
nothing runs on it any more.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from dbguard.drivers.interrupt import met
from dbguard.drivers.psycopg.cord import Cord
from dbguard.drivers.psycopg.failures import is_stale_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["AsyncLine", "Line", "Row", "SyncLine"]

_OPEN = frozenset({TransactionStatus.ACTIVE, TransactionStatus.INTRANS, TransactionStatus.INERROR})
_READERS: dict[int, Callable[[bytes], Any]] = {16: lambda said: said == b"t", 20: int, 21: int, 23: int, 701: float}
"""How values are read that statements of ours return: boolean, int8, int2, int4, float8; all others as text."""


class Row(tuple[Any, ...]):  # noqa: SLOT001  a tuple's subclass can have none but empty ones
    """A row of a statement of ours: its values in order, and each by the name of its column."""

    _places: dict[str, int]

    @classmethod
    def of(cls, values: Sequence[Any], names: Sequence[str]) -> Row:
        """Make one."""
        row = cls(values)
        row._places = {name: place for place, name in enumerate(names)}
        return row

    def __getitem__(self, key: Any) -> Any:
        """Return the value at a place, or under a name. Raises `IndexError`, or `KeyError`."""
        return super().__getitem__(self._places[key] if isinstance(key, str) else key)


class Line:
    """One connection, from its birth or its checkout until it is left.

    raw: psycopg's connection. hear: told the server's function that each notice came from.
    blocks: who runs something on it, blocks. cursor: the class of the cursors of ours.
    stale_plans: a statement prepared on it was refused because its result type has changed, as it will be again.
    """

    cursor: Any
    blocks = False

    def __init__(self, raw: Any, hear: Callable[[str | None], None]) -> None:
        self.raw = raw
        self.stale_plans = False
        self._hear = hear
        self._cord = Cord(raw.pgconn.socket)
        self._lock = threading.Lock()
        self._running = 0
        self._ended = False
        self._left = False
        self._then: Callable[[], object] | None = None
        raw.add_notice_handler(self._notice)

    # ------------------------------------------------------------------ statements

    async def run(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of psycopg's that uses this connection, and wait for it. Raises what it raises."""
        raise NotImplementedError

    async def execute(self, query: str) -> str:
        """Run a statement of ours, or several, without parameters; return the tag of the last."""
        return (await self._ask(query)).statusmessage or ""

    async def fetchrow(self, query: str, *, timeout: None = None) -> Row | None:  # noqa: ARG002  a `Speaker` is told one
        """Run a statement of ours and return its first row, read without the application's adapters; None: there is none.

        timeout: none, the caller bounds it.
        """
        cursor = await self._ask(query)
        result = cursor.pgresult
        if result is None or not result.ntuples:
            return None
        encoding, columns = self.raw.info.encoding, range(result.nfields)
        values = [_read(result.get_value(0, column), result.ftype(column), encoding) for column in columns]
        return Row.of(values, [result.fname(column).decode(encoding) for column in columns])

    async def fetchval(self, query: str) -> Any:
        """Run a statement of ours and return the first value of its first row; None: there is none."""
        row = await self.fetchrow(query)
        return None if row is None else row[0]

    async def _ask(self, query: str) -> Any:
        """Run it on a cursor that knows nothing of the application's factories; return that, at its last result."""
        cursor = self.cursor(self.raw, row_factory=tuple_row)
        # Without parameters psycopg sends a simple query, which may be several statements.
        await self.run(cursor.execute, query.encode(), prepare=False)
        while cursor.nextset():
            pass
        return cursor

    def _begun(self) -> None:
        """Note that something runs. Raises psycopg's error on a line that was left: it may be closed by now."""
        with self._lock:
            if self._left:
                raise psycopg.OperationalError("the connection is closed")
            self._running += 1

    def _done(self) -> None:
        """Something that ran is over; if it was the last, what waits for that is done now."""
        with self._lock:
            self._running -= 1
            then = None if self._running else self._then
            if then is not None:
                self._then = None
        if then is not None:
            then()

    def _judge(self, error: psycopg.Error) -> None:
        if is_stale_plan(error):
            self.stale_plans = True

    # ------------------------------------------------------------------ what it is like

    def is_closed(self) -> bool:
        """Whether it was ended or left, or is known to be lost."""
        return self._ended or self._left or bool(self.raw.closed)

    def is_dead(self) -> bool:
        """Whether the server has ended it while nothing ran on it, as far as this machine knows; asks nobody."""
        return self._cord.hangs_loose()

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open, or a statement runs."""
        return self.raw.pgconn.transaction_status in _OPEN

    @property
    def failed(self) -> bool:
        """Whether a transaction is open that has failed."""
        return bool(self.raw.pgconn.transaction_status == TransactionStatus.INERROR)

    def in_standby(self) -> bool | None:
        """Whether its server says that it is a standby; None where it does not say (before version 14, or closed)."""
        if self.is_closed():
            return None
        said = self.raw.pgconn.parameter_status(b"in_hot_standby")
        return None if said is None else bool(said == b"on")

    def _notice(self, said: psycopg.errors.Diagnostic) -> None:
        self._hear(said.source_function)

    # ------------------------------------------------------------------ its end

    def terminate(self) -> None:
        """Cut it, from any thread; whoever waits on it is woken with psycopg's `OperationalError`."""
        self._ended = True
        self._cord.cut()  # of one that was left nothing is cut: it may be somebody else's by now

    def leave(self, then: Callable[[], object]) -> bool:
        """Give it up; returns whether nothing runs on it. What still runs is cut, and *then* is called once that is over.

        psycopg's connection is left open, for its pool to have back. False of one that was left before.
        """
        with self._lock:
            if self._left:
                return False
            self._left = True
            busy = self._running > 0
            if busy:
                self._then = then
                self._ended = True
                self._cord.cut()
        self._cord.close()
        self.raw.remove_notice_handler(self._notice)
        return not busy

    def close(self) -> None:
        """Give it up and close the connection, with a last word to the server if it hears one; waits for nobody."""
        if self.leave(self.finish):
            self.finish()

    def finish(self) -> None:
        """Close psycopg's connection. Nothing runs on it."""
        self.raw.pgconn.finish()

    @property
    def left(self) -> bool:
        """Whether it was given up."""
        return self._left

    @property
    def ended(self) -> bool:
        """Whether it was cut, so that it cannot be used by anybody any more."""
        return self._ended


class SyncLine(Line):
    """A `psycopg.Connection`: what runs blocks the calling thread.

    A Ctrl-C there cuts the connection. psycopg would send a request to cancel, which must never reach a commit; should it
    come to do so by another method than the one that is put off here, it would do so again.
    """

    cursor = psycopg.Cursor
    blocks = True

    def __init__(self, raw: Any, hear: Callable[[str | None], None]) -> None:
        super().__init__(raw, hear)
        raw._try_cancel = self._try_cancel  # noqa: SLF001  psycopg has no other word for it

    def _try_cancel(self, *, timeout: float | None = None) -> None:
        """Do what psycopg wants to be cancelled: *timeout* says that it was interrupted where it waits.

        Without one it tidies up behind a stream or a COPY that was left early, or has failed: that commits nothing.
        """
        if timeout is None:
            type(self.raw)._try_cancel(self.raw)  # noqa: SLF001  as above
        else:
            self.terminate()

    def leave(self, then: Callable[[], object]) -> bool:
        """See `Line.leave`."""
        self.raw.__dict__.pop("_try_cancel", None)
        return super().leave(then)

    async def run(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `Line.run`."""
        self._begun()
        try:
            return fn(*args, **kwargs)
        except psycopg.Error as error:
            self._judge(error)
            raise
        finally:
            self._done()


class AsyncLine(Line):
    """A `psycopg.AsyncConnection`: what runs is awaited, and a cancellation ends the connection before psycopg hears of it.

    psycopg would send a request to cancel, which must never reach a commit, and wait for what comes of it.
    """

    cursor = psycopg.AsyncCursor

    def __init__(self, raw: Any, hear: Callable[[str | None], None]) -> None:
        super().__init__(raw, hear)
        self._works: dict[Any, None] = {}

    async def run(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `Line.run`."""
        self._begun()
        work = None
        try:
            work = fn(*args, **kwargs)
            if not hasattr(work, "send"):
                return work
            self._works[work] = None
            return await met(lambda: self._cancelled(work), work)
        except psycopg.Error as error:
            self._judge(error)
            raise
        finally:
            self._works.pop(work, None)
            self._done()

    def _cancelled(self, work: Any) -> None:
        """End it because *work* was cancelled.

        What waits on the socket is the first, since psycopg lets one in after the other: with its socket closed it asks
        nobody to cancel. All others wait for their turn, and a socket that somebody waits on is not closed under him.
        """
        self.terminate()
        if next(iter(self._works)) is work:
            self._cord.close()  # first: a duplicate would keep the socket alive in the event loop's selector
            self.finish()


def _read(value: bytes | None, kind: int, encoding: str) -> Any:
    if value is None:
        return None
    reader = _READERS.get(kind)
    return value.decode(encoding) if reader is None else reader(value)
