"""What a call does with a lease, in asyncpg's words. Each is one `Job` of the runtime."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from dbguard.connection import ROLLBACK_WITHIN, Connection, Transaction
from dbguard.core.retry import Stake, Work
from dbguard.core.statement import Touch
from dbguard.drivers.asyncpg.failures import is_drivers
from dbguard.drivers.asyncpg.transaction import commit, heard, rollback
from dbguard.runtime.attempt import Application

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.core.plan import Call
    from dbguard.runtime.engine import Engine
    from dbguard.texts import Texts

__all__ = ["Checkout", "Function", "Run", "again"]

MOST_KEPT = 10_000
"""Rows of an input that can be read once which are kept so that the call can be repeated; above that it is final."""


def again(source: Any) -> tuple[Any, bool]:
    """Return the input in a form that can be read again, and whether that succeeded.

    Readable again are exactly list, tuple, bytes and str. Anything else is made a list, up to `MOST_KEPT` items:
    ``iter(x) is x`` does not find a progress bar's wrapper, and a repeat over a used-up one reports success with 0 rows.
    """
    if type(source) in (list, tuple, bytes, str):
        return source, True
    if hasattr(source, "__aiter__"):
        return source, False
    items = iter(source)
    kept = list(islice(items, MOST_KEPT + 1))
    if len(kept) <= MOST_KEPT:
        return kept, True
    return chain(kept, items), False


class Run:
    """Run one statement by the driver's own method.

    method, args, extra: the driver's. touched: what it may leave on the session. writes: a commit hangs on it.
    """

    __slots__ = ("args", "extra", "method", "touched", "writes")
    keeps = False
    cancels = False

    def __init__(
        self, method: str, args: tuple[Any, ...], extra: dict[str, Any], touched: Touch, *, writes: bool
    ) -> None:
        self.method = method
        self.args = args
        self.extra = extra
        self.touched = touched
        self.writes = writes

    async def run(self, lease: Any) -> Any:
        """Run it; an autocommit write hears whether its standby was waited for."""
        con = lease.con
        work = getattr(con, self.method)(*self.args, **self.extra)
        if self.writes and lease.tag.synchronous:
            return await heard(con, lease, work)
        return await work


class Checkout:
    """Take a connection out for the application; with *begin*, in a transaction."""

    __slots__ = ("begin", "call", "engine", "texts", "touched")
    keeps = True
    cancels = False

    def __init__(self, engine: Engine, texts: Texts, call: Call, begin: dict[str, Any] | None = None) -> None:
        self.engine = engine
        self.texts = texts
        self.call = call
        self.begin = begin
        self.touched = Touch.NOTHING

    async def run(self, lease: Any) -> Any:
        """Return the connection and, with *begin*, its started transaction."""
        node = self.engine.state.nodes[lease.pool.node.name]
        con = Connection(self.engine, self.texts, self.call, node, lease)
        if self.begin is None:
            return con, None
        inner = lease.con.transaction(**self.begin)
        await inner.start()
        return con, Transaction(con, inner)


class Function:
    """Run a whole transaction: BEGIN, the application's function, COMMIT."""

    __slots__ = ("begin", "call", "engine", "made", "number", "texts", "touched")
    keeps = False
    cancels = True

    def __init__(
        self,
        engine: Engine,
        texts: Texts,
        call: Call,
        made: Callable[[Connection], Awaitable[Any]],
        begin: dict[str, Any],
    ) -> None:
        self.engine = engine
        self.texts = texts
        self.call = call
        self.made = made
        self.begin = begin
        self.number = 0
        self.touched = Touch.NOTHING

    async def run(self, lease: Any) -> Any:
        """Run it once. An exception of the function's own ends it, rolled back, without another attempt."""
        call = self.call
        stake = Stake.READ if self.begin["readonly"] else Stake.TRANSACTION
        call.work = Work(stake=stake)
        self.number += 1
        node = self.engine.state.nodes[lease.pool.node.name]
        con = Connection(self.engine, self.texts, call, node, lease)
        con.attempt = self.number
        con.until = call.deadline
        con.within_function = True
        inner = lease.con.transaction(**self.begin)
        await inner.start()
        try:
            value = await self.made(con)
            con.check_whole()
        except Exception as error:
            call.work = replace(call.work, one_transaction=con.whole)
            self.touched = lease.touched
            if not lease.con.is_closed():
                await rollback(lease.con, inner, ROLLBACK_WITHIN)
            if is_drivers(error) or (isinstance(error, TimeoutError) and lease.con.is_closed()):
                raise
            raise Application(error) from error
        finally:
            con.released = True
            con.note_ddl()
        self.touched = lease.touched
        if stake is Stake.TRANSACTION:
            call.work = Work(stake=Stake.COMMIT, one_transaction=con.whole)
        await commit(lease.con, inner, lease, con.seconds_left())
        return value
