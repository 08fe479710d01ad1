"""The calls: asyncpg's methods, routed, and dbguard's own words around them.

`Guard` and what `using` returns are both `Calls`: the same engine, other options.
"""

from __future__ import annotations

import os
from dataclasses import replace
from inspect import isasyncgenfunction, isawaitable, isgeneratorfunction
from typing import TYPE_CHECKING, Any, TypeVar

from dbguard.asyncpg_session import AsyncpgSession
from dbguard.calling import Calling, Lent
from dbguard.connection import Connection
from dbguard.core.outcome import is_plain
from dbguard.core.retry import READ, Stake, Work
from dbguard.core.statement import Token, Touch
from dbguard.deadlines import check_wait
from dbguard.dialect import Statements
from dbguard.drivers.asyncpg.connection import not_ours
from dbguard.drivers.asyncpg.failures import dress
from dbguard.drivers.asyncpg.sending import Sender
from dbguard.jobs import Copy, Feed, Run, Written, again

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType

    from dbguard.calling import Options
    from dbguard.core.plan import Call
    from dbguard.drivers.asyncpg.outcome import CarriedTokens
    from dbguard.runtime.attempt import Job
    from dbguard.session import Session

__all__ = ["Acquiring", "AsyncpgDialect", "Calls"]

T = TypeVar("T")


class AsyncpgDialect:
    """What asyncpg's facade calls things; see `dbguard.blocks.Dialect`."""

    session = AsyncpgSession
    dress = staticmethod(dress)

    @staticmethod
    def block(lease: Any, *, isolation: str | None, readonly: bool, deferrable: bool) -> Any:
        """See `Dialect.block`."""
        return lease.con.transaction(isolation=isolation, readonly=readonly, deferrable=deferrable)

    @staticmethod
    async def apply(fn: Callable[[Any], Any], session: Session, attempt: int) -> Any:
        """See `Dialect.apply`."""
        made = fn(Connection(session, attempt))  # type: ignore[arg-type]  # made by this dialect
        if not isawaitable(made):
            raise not_a_function(fn)
        return await made


class Calls(Calling["Calls"], Statements):
    """Statements, transactions and connections, over the guard's nodes.

    The methods that `asyncpg.Pool` has keep its signatures; *timeout* bounds the whole call here, waiting and repeats
    included.
    """

    def _with(self, options: Options) -> Calls:
        view = Calls.__new__(Calls)
        view._core, view._options = self._core, options  # noqa: SLF001  another view of this very object
        return view

    # ------------------------------------------------------------------ connections and transactions

    def acquire(self, *, timeout: float | None = None) -> Acquiring:
        """Take a connection to the primary, or with ``using(role="replica")`` to a replica; as `asyncpg.Pool.acquire`.

        Use it with ``async with`` or ``await``. Nothing that is done on it is repeated.
        """
        return Acquiring(self, timeout, None)

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Give back a connection taken with ``await acquire()``; what must be awaited happens in the background.

        timeout: as asyncpg's, and without effect, since nothing is waited for.

        One that was given back already is let be. Raises `asyncpg.InterfaceError` if it is not of this guard.
        """
        if timeout is not None:
            check_wait(timeout)
        session = getattr(connection, "_session", None)
        if session is None or session.texts is not self._core.texts:
            raise not_ours(connection)
        session.give_back()

    def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
    ) -> Acquiring:
        """Open a block on one connection, committed at its end, rolled back on an exception; never repeated.

        isolation: ``read_committed``, ``repeatable_read``, ``serializable``; None: the server's default.
        readonly: a block that only reads may go to a replica, unless it is serializable.
        timeout: seconds for taking the connection and BEGIN.

        Raises `OutcomeUnknown` if the COMMIT was sent and its answer lost; with any other error nothing was committed.
        """
        begin = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}
        return Acquiring(self, timeout, begin)

    async def run_in_transaction(
        self,
        fn: Callable[[Connection], Awaitable[T]],
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
    ) -> T:
        """Run *fn*, which must have no effect outside the transaction, in one; repeat it whole where that is safe.

        fn: gets the connection; its `attempt` counts from 1. What a failed attempt returned is never seen.
        isolation, readonly, deferrable: as in `transaction`.
        timeout: seconds for all attempts together. Default: the guard's.

        Repeated on serialization failures, deadlocks, a connection lost before COMMIT, and a change of roles. Raises
        what *fn* raises; `OutcomeUnknown` if a COMMIT was sent and its answer lost; `TypeError` if *fn* is no function
        that returns an awaitable.
        """
        if not callable(fn) or isasyncgenfunction(fn) or isgeneratorfunction(fn):
            raise not_a_function(fn)
        begin = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}
        return await self._run_function(fn, begin, timeout)  # type: ignore[no-any-return]  # what *fn* returns

    # ------------------------------------------------------------------ within

    def _run(
        self,
        method: str,
        query: str,
        args: tuple[Any, ...],
        limit: float | None,
        *,
        final: bool = False,
        kind: type[Run] = Run,
        **extra: Any,
    ) -> Awaitable[Any]:
        core = self._core
        engine = core.engine or self._engine()
        text = core.texts.get(query) or core.texts.learn(query)
        work = replace(text.work, final=True) if final else text.work
        if self._options.idempotent:
            work = replace(work, idempotent=True)
        call = self._call(engine, work, limit, text, reads=self._reads(text))
        writes = work.stake is not READ
        may_write = writes or text.doubtful
        run = kind(method, args, extra, text.touched, may_write, text.controls, text.recalls, call.deadline)
        job: Job = run
        tokens = core.tokens
        if tokens is not None and writes:
            form = text.token
            if form is Token.CTE and kind is not Run:
                form = Token.BLOCK
            plain = is_plain(text.statement, query, text.touched)
            job = _carrying(tokens, call, run, query, form, rows=text.statement.returns_rows, plain=plain)
        making = engine.call(call, job)
        return self._changing(making) if text.ddl else making

    async def _changing(self, making: Awaitable[Any]) -> Any:
        """Make a call that may change the catalogue."""
        texts = self._core.texts
        texts.changed()
        try:
            return await making
        finally:
            texts.changed()

    async def _many(self, method: str, query: str, args: Any, limit: float | None, **extra: Any) -> Any:
        rows, readable = again(args)
        return await self._run(method, query, (query, rows), limit, final=not readable, kind=Feed, **extra)

    async def _copy_query(
        self, method: str, query: str, args: tuple[Any, ...], limit: float | None, **extra: Any
    ) -> Any:
        return await self._run(method, query, args, limit, final=True, kind=Copy, **extra)

    async def _copy(self, method: str, table: str, limit: float | None, **extra: Any) -> Any:
        reads = method == "copy_from_table"
        # What is read from a path or a buffer can be read again; what was written cannot be taken back.
        final = reads or not isinstance(extra.get("source"), str | bytes | os.PathLike | bytearray | memoryview)
        if "records" in extra:
            extra["records"], readable = again(extra["records"])
            final = not readable
        work = Work(stake=Stake.READ if reads else Stake.WRITE, final=final)
        engine = self._engine()
        call = self._call(engine, reads=reads, work=work, timeout=limit)
        run = Copy(method, (table,), extra, Touch.SETTINGS, writes=not reads, until=call.deadline)
        job: Job = run
        tokens = self._core.tokens
        if tokens is not None and not reads:
            job = _carrying(tokens, call, run, f"COPY {table}", Token.BLOCK, rows=False, plain=False)
        return await engine.call(call, job)


class Acquiring(Lent):
    """What `acquire` and `transaction` return: for ``async with``, or ``await``."""

    __slots__ = ()

    async def _take(self) -> Connection:
        return Connection(await self.take())  # type: ignore[arg-type]  # made by asyncpg's dialect

    def __await__(self) -> Generator[Any, None, Connection]:
        return self._take().__await__()

    async def __aenter__(self) -> Connection:
        return await self._take()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave(error)


def not_a_function(fn: object) -> TypeError:
    """Return the error for what `run_in_transaction` was given in the place of an async function."""
    called = ": it was called already, pass the function itself" if isawaitable(fn) else ""
    return TypeError(f"run_in_transaction needs an async function that takes the connection, not {fn!r}{called}")


def _carrying(tokens: CarriedTokens, call: Call, run: Run, query: str, form: Token, *, rows: bool, plain: bool) -> Job:
    """Return *run* so that it carries a token, if its text allows one."""
    if form is Token.NONE or not tokens.on:
        return run
    call.reserve = tokens.reserve
    method, args, extra = run.method, run.args[1:], run.extra
    return Written(
        run, Sender(tokens, call, query, form, rows=rows, plain=plain, method=method, args=args, extra=extra)
    )
