"""The calls: statements in psycopg's words, routed, and dbguard's own words around them; written once for both colours.

`PsycopgGuard` and what its `using` returns are `AsyncCalls`. `SyncGuard` makes the very same calls, through `now`.
"""

from __future__ import annotations

from dataclasses import replace
from inspect import isasyncgenfunction, isawaitable, isgeneratorfunction
from typing import TYPE_CHECKING, Any, Self

from dbguard.calling import Calling, Lent
from dbguard.core.outcome import is_plain
from dbguard.core.retry import Stake
from dbguard.core.statement import Token
from dbguard.drivers.psycopg.connection import RAW_CURSORS, IsolationLevel, Rollback, text_of
from dbguard.drivers.psycopg.failures import dress
from dbguard.drivers.psycopg.transaction import Block
from dbguard.pg.connection import AsyncConnection
from dbguard.pg.held import Held
from dbguard.pg.jobs import InBlock, Statement
from dbguard.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType
    from typing import TypeVar

    from psycopg.abc import Params, Query

    from dbguard.calling import Options
    from dbguard.core.reasons import Route
    from dbguard.pg.result import Result
    from dbguard.runtime.attempt import Job

    T = TypeVar("T")

__all__ = ["AsyncCalls", "AsyncDialect", "Borrowing", "PsycopgCalling", "not_a_function"]


class AsyncDialect:
    """What psycopg's facade for tasks calls things; see `dbguard.blocks.Dialect`.

    autocommit: what the application's own connections are set to. native: its cursors read ``$1``, not ``%s``.
    """

    session = Session
    dress = staticmethod(dress)

    def __init__(self, *, autocommit: bool = False, native: bool = False) -> None:
        self.autocommit = autocommit
        self.native = native

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Return what fits the arguments of a guard's own pools."""
        given = arguments.get("kwargs") or {}
        native = isinstance(given.get("cursor_factory"), type) and issubclass(given["cursor_factory"], RAW_CURSORS)
        return cls(autocommit=bool(given.get("autocommit", False)), native=native)

    @staticmethod
    def block(lease: Any, *, isolation: str | None, readonly: bool, deferrable: bool) -> Block:
        """See `Dialect.block`."""
        return Block(lease.con, isolation=isolation, readonly=readonly or None, deferrable=deferrable or None)

    def held(self, session: Session, begin: dict[str, Any] | None) -> Held:
        """Return what psycopg's words do on *session*; *begin*: how its transaction has begun, None: it has not."""
        replica = session.call.role == "replica"
        if begin is None:
            return Held(session, autocommit=self.autocommit, read_only=True if replica else None)
        held = Held(session, read_only=begin["readonly"] or None, depth=1)
        if begin["isolation"] is not None:
            held.isolation_level = IsolationLevel[begin["isolation"].upper().replace(" ", "_")]
        return held

    async def apply(self, fn: Callable[[Any], Any], session: Session, attempt: int) -> Any:
        """See `Dialect.apply`."""
        made = fn(AsyncConnection(Held(session, depth=1), attempt))
        if not isawaitable(made):
            raise not_a_function(fn)
        return await made


class Borrowing(Lent):
    """One connection in the application's hands, in psycopg's meaning."""

    __slots__ = ("held",)

    held: Held

    async def enter(self) -> Held:
        """Take it."""
        session = await self.take()
        dialect: Any = self._calls._core.dialect  # noqa: SLF001  two halves of one thing
        self.held = dialect.held(session, self._begin)
        return self.held

    async def exit(self, error: BaseException | None) -> bool:
        """Commit, or roll back because of *error*, and give it back; return whether the error ends here."""
        session, held = self.session, self.held
        if session is None:
            return False
        if self.transaction is None:
            self.session = None
            try:
                await held.leave(error)
            finally:
                session.give_back()
            return False
        try:
            if error is None:
                await held.out_of_pipelines()
        except BaseException as late:
            await self.leave(late)
            raise
        await self.leave(error)
        return isinstance(error, Rollback) and error.transaction is None


class PsycopgCalling(Calling["AsyncCalls"]):
    """Statements and blocks, whichever colour they are for."""

    async def _statement(
        self, query: Query, params: Params | None, timeout: float | None, extra: dict[str, Any]
    ) -> Result[Any]:
        engine, core = self._engine(), self._core
        dialect: Any = core.dialect
        words = text_of(query, None, places=params is not None and not dialect.native)
        text = core.texts.get(words) or core.texts.learn(words)
        work = text.work
        if self._options.idempotent:
            work = replace(work, idempotent=True)
        call = self._call(engine, reads=self._reads(text), work=work, timeout=timeout, text=text)
        writes = work.stake is not Stake.READ
        statement = Statement(
            query,
            params,
            extra,
            text.touched,
            writes=writes or text.doubtful,
            controls=text.controls,
            recalls=text.recalls,
        )
        job: Job = statement
        tokens = core.tokens
        if tokens is not None and writes and text.token is not Token.NONE and tokens.on:
            call.reserve = tokens.reserve
            plain = is_plain(text.statement, words, text.touched)
            job = InBlock(statement, call, tokens, words, plain=plain)
        if not text.ddl:
            return await engine.call(call, job)  # type: ignore[no-any-return]  # both jobs make a `Result` of it
        core.texts.changed()
        try:
            return await engine.call(call, job)  # type: ignore[no-any-return]  # both jobs make a `Result` of it
        finally:
            core.texts.changed()

    def route(self, query: Query) -> Route:
        """Say where *query* would go now, or why it would wait or fail, and what speaks against the other nodes.

        Sends nothing.
        """
        return super().route(text_of(query, None, places=True))

    async def _take(self, timeout: float | None) -> Held:
        return await self._borrow(timeout, None, None).enter()

    async def _put(self, connection: Any) -> None:
        """Take back what was taken with `getconn`; what was not committed is rolled back."""
        held: Held | None = getattr(connection, "_held", None)
        if held is None or held.session.texts is not self._core.texts:
            raise ValueError(f"can't return {connection!r}: it is no connection of this guard")
        if not getattr(connection, "_loose", False):
            raise ValueError(f"can't return {connection!r}: it is given back when its block ends")
        session = held.session
        if session.over:
            raise ValueError(f"can't return {connection!r}: that was done already")
        try:
            await held.leave(Rollback())
        finally:
            session.give_back()

    def _borrow(self, timeout: float | None, role: str | None, begin: dict[str, Any] | None) -> Borrowing:
        calls = self if role is None else self.using(role=role)
        return Borrowing(calls, timeout, begin)


class AsyncCalls(PsycopgCalling):
    """Statements, transactions and connections, over the guard's nodes. *timeout*: seconds for the whole call."""

    def _with(self, options: Options) -> AsyncCalls:
        view = AsyncCalls.__new__(AsyncCalls)
        view._core, view._options = self._core, options  # noqa: SLF001  another view of this very object
        return view

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
        timeout: float | None = None,
    ) -> Result[Any]:
        """Execute a statement by itself, committed; routed, and repeated where that is safe. Its rows are already there.

        query, params, prepare, binary: as of `psycopg.AsyncConnection.execute`. timeout: seconds for the whole call,
        waiting and repeats included; default: the guard's.
        """
        return await self._statement(query, params, timeout, {"prepare": prepare, "binary": binary})

    async def fetchone(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Execute a statement as `execute` does; return its first row, or None."""
        result = await self._statement(query, params, timeout, {"prepare": prepare, "binary": binary})
        return result.fetchone()

    async def fetchall(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
        timeout: float | None = None,
    ) -> list[Any]:
        """Execute a statement as `execute` does; return its rows."""
        result = await self._statement(query, params, timeout, {"prepare": prepare, "binary": binary})
        return result.fetchall()

    def connection(self, timeout: float | None = None, *, role: str | None = None) -> AsyncBorrowing:
        """Take a connection, as of `psycopg_pool.AsyncConnectionPool`: a transaction, committed when the block ends.

        timeout: seconds for taking it. role: ``replica``: a read-only one, to a replica. Default: to the primary.
        Nothing that is done on it is repeated. Raises `OutcomeUnknown` if the COMMIT was sent and its answer lost.
        """
        return AsyncBorrowing(self, timeout, role, None)

    async def getconn(self, timeout: float | None = None) -> AsyncConnection[Any]:
        """Take a connection, as of `psycopg_pool.AsyncConnectionPool`; give it back with `putconn`, whatever happens.

        timeout: seconds for taking it. One that is dropped instead is ended when Python collects it, and an event tells
        (`ConnectionDropped`). Better use `connection`, or `transaction`.
        """
        return AsyncConnection._out_of_blocks(await self._take(timeout))  # noqa: SLF001  two halves of one thing

    async def putconn(self, conn: AsyncConnection[Any]) -> None:
        """Give back a connection taken with `getconn`; what was not committed is rolled back, and nothing is raised for that.

        Raises `ValueError` for one that was not taken so, or was given back already.
        """
        await self._put(conn)

    def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
    ) -> AsyncBorrowing:
        """Open a block on one connection, committed at its end, rolled back on an exception; never repeated.

        isolation: ``read_committed``, ``repeatable_read``, ``serializable``; None: the server's default.
        readonly: a block that only reads may go to a replica, unless it is serializable.
        timeout: seconds for taking the connection and BEGIN.

        Raises `OutcomeUnknown` if the COMMIT was sent and its answer lost; with any other error nothing was committed.
        """
        begin = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}
        return AsyncBorrowing(self, timeout, None, begin)

    async def run_in_transaction(
        self,
        fn: Callable[[AsyncConnection[Any]], Awaitable[T]],
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
    ) -> T:
        """Run *fn*, which must have no effect outside the transaction, in one; repeat it whole where that is safe.

        fn: gets the connection; its `attempt` counts from 1. What a failed attempt returned is never seen.
        isolation, readonly, deferrable: as in `transaction`. timeout: seconds for all attempts together.

        Repeated on serialization failures, deadlocks, a connection lost before COMMIT, and a change of roles. Raises
        what *fn* raises; `OutcomeUnknown` if a COMMIT was sent and its answer lost; `TypeError` if *fn* is no function
        that returns an awaitable.
        """
        if not callable(fn) or isasyncgenfunction(fn) or isgeneratorfunction(fn):
            raise not_a_function(fn)
        begin = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}
        return await self._run_function(fn, begin, timeout)  # type: ignore[no-any-return]  # what *fn* returns


class AsyncBorrowing:
    """What `connection` and `transaction` return, for ``async with``."""

    def __init__(
        self, calls: PsycopgCalling, timeout: float | None, role: str | None, begin: dict[str, Any] | None
    ) -> None:
        self._borrowing = calls._borrow(timeout, role, begin)  # noqa: SLF001  two halves of one thing

    async def __aenter__(self) -> AsyncConnection[Any]:
        return AsyncConnection(await self._borrowing.enter())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return await self._borrowing.exit(error)


def not_a_function(fn: object) -> TypeError:
    """Return the error for what `run_in_transaction` was given in the place of an async function."""
    called = ": it was called already, pass the function itself" if isawaitable(fn) else ""
    return TypeError(f"run_in_transaction needs an async function that takes the connection, not {fn!r}{called}")
