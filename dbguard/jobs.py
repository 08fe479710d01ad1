"""What a call does with a lease, in asyncpg's words. Each is one `Job` of the runtime."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from inspect import isawaitable
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from dbguard.connection import Connection, Transaction
from dbguard.core.outcome import commit_until
from dbguard.core.plan import Done
from dbguard.core.retry import Stake, Work
from dbguard.core.statement import Touch
from dbguard.drivers.asyncpg.copying import opened
from dbguard.drivers.asyncpg.failures import is_conflict, is_drivers
from dbguard.drivers.asyncpg.interrupt import interruptible
from dbguard.drivers.asyncpg.transaction import commit, cut_off, ended, heard, left_open, rolled_back
from dbguard.drivers.identity import forget_sequences
from dbguard.runtime.attempt import Application
from dbguard.runtime.flights import Flight
from dbguard.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.core.plan import Call
    from dbguard.drivers.asyncpg.outcome import Tokens
    from dbguard.drivers.asyncpg.sending import Sender
    from dbguard.runtime.engine import Engine
    from dbguard.texts import Texts

__all__ = ["Checkout", "Copy", "Feed", "Function", "Run", "Written", "again", "not_a_function"]

MOST_KEPT = 10_000
"""Rows of an input that can be read once which are kept so that the call can be repeated; above that it is final."""

OPEN_EARLY = 0.1
"""Seconds before the call's end at which a file must be open: above a sweep's pace, so that it is known that nothing of the
COPY was sent."""


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


def not_a_function(fn: object) -> TypeError:
    """Return the error for what `run_in_transaction` was given in the place of an async function."""
    called = ": it was called already, pass the function itself" if isawaitable(fn) else ""
    return TypeError(f"run_in_transaction needs an async function that takes the connection, not {fn!r}{called}")


class Run:
    """Run one statement by the driver's own method.

    method, args, extra: the driver's. touched: what it may leave on the session. writes: a commit hangs on it.
    controls: it holds transaction control, so that it can leave a transaction open.
    recalls: it may ask what was last drawn from sequences. until: when the call's time is up, on the guard's clock.
    """

    __slots__ = ("args", "controls", "extra", "method", "recalls", "touched", "until", "writes")
    keeps = False
    cancels = False
    commits = False

    def __init__(
        self,
        method: str,
        args: tuple[Any, ...],
        extra: dict[str, Any],
        touched: Touch,
        *,
        writes: bool,
        controls: bool = False,
        recalls: bool = False,
        until: float = math.inf,
    ) -> None:
        self.until = until
        self.controls = controls
        self.recalls = recalls
        self.method = method
        self.args = args
        self.extra = extra
        self.touched = touched
        self.writes = writes

    async def run(self, lease: Any) -> Any:
        """Run it; an autocommit write hears whether its standby was waited for."""
        con = lease.con
        if self.recalls:
            await forget_sequences(lease)
        lease.drew = self.writes
        work = getattr(con, self.method)(*self.args, **self.extra)
        value = await heard(con, lease, work) if self.writes else await work
        if self.controls and con.is_closed():
            raise ended()  # whether it had left a transaction open cannot be asked any more
        if self.controls and con.is_in_transaction():
            # The connection is closed by the pool, and the transaction with it: that must not pass for success.
            raise Application(left_open())
        return value


class Feed(Run):
    """Run what feeds the server with many rows, which takes more to interrupt."""

    __slots__ = ()
    cancels = True

    async def run(self, lease: Any) -> Any:
        """Run it."""
        return await self._run(lease, self.extra)

    async def _run(self, lease: Any, extra: dict[str, Any]) -> Any:
        if self.recalls:
            await forget_sequences(lease)
        lease.drew = self.writes
        work = interruptible(lease.con, getattr(lease.con, self.method)(*self.args, **extra))
        return await heard(lease.con, lease, work) if self.writes else await work


class Copy(Feed):
    """Run one COPY; a path is opened anew by each attempt, which says nothing about the node if that fails."""

    __slots__ = ()

    async def run(self, lease: Any) -> Any:
        """Run it."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                left = self.until - lease.pool.clock()
                files = await stack.enter_async_context(opened(self.extra, left - min(OPEN_EARLY, left / 2)))
            except OSError as error:
                raise Application(error) from error
            return await self._run(lease, files)


class Written:
    """Run a write that carries a token; *job* runs it without."""

    __slots__ = ("cancels", "job", "sender", "touched")
    keeps = False
    commits = True

    def __init__(self, job: Run, sender: Sender) -> None:
        self.job = job
        self.sender = sender
        self.touched = job.touched
        self.cancels = job.cancels

    async def run(self, lease: Any) -> Any:
        """Run it."""
        if self.job.recalls:
            self.sender.prepares()
            await forget_sequences(lease)
        lease.drew = True
        return await self.sender.send(lease, lambda: self.job.run(lease))


class Checkout:
    """Take a connection out for the application; with *begin*, in a transaction.

    limit: seconds that each thing done on it may take, and whose limit that is.
    tokens: of the guard's writes; None: they carry none.
    """

    __slots__ = ("begin", "call", "engine", "limit", "texts", "tokens", "touched")
    keeps = True
    cancels = False
    commits = False

    def __init__(
        self,
        engine: Engine,
        texts: Texts,
        call: Call,
        limit: tuple[float, str],
        begin: dict[str, Any] | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        self.limit = limit
        self.tokens = tokens
        self.engine = engine
        self.texts = texts
        self.call = call
        self.begin = begin
        self.touched = Touch.NOTHING

    async def run(self, lease: Any) -> Any:
        """Return the connection and, with *begin*, its started transaction."""
        node = self.engine.state.nodes[lease.pool.node.name]
        session = Session(self.engine, self.texts, self.call, node, lease, limit=self.limit, tokens=self.tokens)
        if self.begin is None:
            return session, None
        session.begins(read_only=self.begin["readonly"])
        inner = lease.con.transaction(**self.begin)
        await inner.start()
        return session, Transaction(session, inner)


class Function:
    """Run a whole transaction: BEGIN, the application's function, COMMIT."""

    __slots__ = ("begin", "call", "engine", "made", "number", "texts", "tokens", "touched")
    keeps = False
    cancels = True
    commits = False

    def __init__(
        self,
        engine: Engine,
        texts: Texts,
        call: Call,
        made: Callable[[Connection], Awaitable[Any]],
        begin: dict[str, Any],
        tokens: Tokens | None = None,
    ) -> None:
        self.tokens = tokens
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
        call.work = Work(stake=stake, idempotent=call.work.idempotent)
        self.number += 1
        node = self.engine.state.nodes[lease.pool.node.name]
        left = max(0.001, call.deadline - self.engine.state.clock())
        session = Session(
            self.engine, self.texts, call, node, lease, limit=(left, call.limit), within=True, tokens=self.tokens
        )
        session.begins(read_only=self.begin["readonly"])
        inner = lease.con.transaction(**self.begin)
        await inner.start()
        transaction = Transaction(session, inner)
        try:
            made: Any = self.made(Connection(session, self.number))
            if not isawaitable(made):
                raise not_a_function(self.made)  # noqa: TRY301  rolled back as anything that it raises
            value = await made
        except BaseException as error:
            call.work = replace(call.work, one_transaction=session.whole)
            if not isinstance(error, Exception):
                raise
            # What the function raised was raised on a connection that lived: it is not to be taken for a lost one.
            alive = session.cut_off() and not is_conflict(error)
            await transaction.abandon(error)
            if alive:
                raise Application(error) from error
            if is_drivers(error) or (isinstance(error, TimeoutError) and session.closed):
                raise
            raise Application(error) from error
        finally:
            self.touched = lease.touched
            busy = session.cut_off()
            session.finish()
        if busy:
            raise Application(cut_off())
        if session.failed:
            await inner.rollback()
            raise Application(rolled_back())
        ending = ""
        if session.writes and not lease.con.is_closed():  # on a closed one, COMMIT cannot be sent any more
            call.work = Work(stake=Stake.COMMIT, one_transaction=session.whole, idempotent=call.work.idempotent)
            ending = session.ending()
            call.result = Done(value)
            call.sent = self.engine.state.clock()
        if not ending:
            await commit(lease.con, inner, lease)
            return value
        # What the commit leaves of the call's time is for asking what became of it.
        flights, now = self.engine.flights, self.engine.state.clock()
        flight = Flight(commit_until(call.deadline, now, call.reserve), None, cancels=False)
        flight.lease = lease
        flights.add(flight)
        try:
            await session.end(inner, ending)
        except Exception as error:
            if flight.over:
                raise TimeoutError("no answer in time") from error
            raise
        finally:
            flights.remove(flight)
        return value
