"""The client of SQLAlchemy's: sessions of an engine over a guard, used as docs/sqlalchemy.md tells users to."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
import weakref
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy
from sqlalchemy import event, exc, insert, text

import dbguard
from chaos.clients.base import driven
from chaos.clients.guards import CLOSE, AsyncioGuardClient
from chaos.history import Kind
from dbguard.integrations.sqlalchemy import AsyncSession, create_async_engine, replica_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from types import TracebackType

    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncEngine

    from chaos.clients.base import Place, Work

    T = TypeVar("T")

__all__ = ["SqlalchemyGuarded"]

_STATEMENT = 0.7  # seconds for a statement; one that is swallowed takes as long again to be rolled back
_CONNECT = 2.0  # seconds for a connection, unless the scenario says otherwise
_PAUSE, _LONGEST = 0.02, 0.1  # seconds before something is run again: at most the first, doubling up to the second
_AGAIN = ("40001", "40P01", "0A000")  # a serialization failure, a deadlock, a cached plan that DDL has overtaken
_PARAMETER = re.compile(r"\$(\d+)")


@dataclass
class _Context:
    """One caller's calls. wrote: whether one of them may have written."""

    wrote: bool = False


_context: ContextVar[_Context] = ContextVar("context")


class SqlalchemyGuarded(AsyncioGuardClient):
    """`dbguard.integrations.sqlalchemy`: each call is a session of its own, of an engine over a guard.

    It does what its page tells users to do themselves. Who has not written yet reads from replicas, in read-only sessions;
    who has, from the primary, since replicas are read as they are. What was not applied, says the error, is run again while
    there is time, since nothing is repeated there. A COMMIT of unknown outcome is raised, and nobody looks for it. Writes
    carry no tokens. Large writes are an INSERT for many rows: SQLAlchemy has no COPY.
    """

    takes_tokens = False
    guard: dbguard.Guard

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.guard = dbguard.Guard(self.settings(), on_event=self.heard)
        self._engine = create_async_engine(
            self.guard,
            pool_size=place.size,
            max_overflow=0,
            connect_args={"command_timeout": _STATEMENT},
        )
        self._dialled: weakref.WeakSet[Any] = weakref.WeakSet()
        for engine in self._engines():
            event.listen(engine.sync_engine, "connect", self._note)

    def settings(self) -> dict[str, Any]:
        """Return the configuration: the guard's time is only for connections here, and no single call can shorten it."""
        return {"timeout": _CONNECT, **super().settings()}

    def _engines(self) -> tuple[AsyncEngine, AsyncEngine]:
        return self._engine, replica_engine(self._engine)

    def _note(self, connection: Any, _record: object) -> None:
        self._dialled.add(connection.driver_connection)

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            async with asyncio.timeout(CLOSE):
                await self._engine.dispose()
        except TimeoutError:
            for connection in list(self._dialled):
                connection.terminate()
        finally:
            await super().__aexit__(kind, e, at)

    @contextlib.asynccontextmanager
    async def context(self) -> AsyncIterator[None]:
        """Open what remembers whether it has written."""
        token = _context.set(_Context())
        try:
            yield
        finally:
            _context.reset(token)

    async def call(self, kind: Kind, query: str, args: Sequence[object], timeout: float) -> Any:
        """Run one statement in a session of its own."""

        async def use(session: AsyncSession) -> Any:
            return (await session.execute(*_sqlalchemys(query, args))).mappings().one()

        return await self._do(kind, use, timeout)

    async def fetch(self, query: str, args: Sequence[object], timeout: float) -> Sequence[Any]:
        """Run a read in a session of its own."""

        async def use(session: AsyncSession) -> Sequence[Any]:
            return (await session.execute(*_sqlalchemys(query, args))).mappings().all()

        return await self._do(Kind.READ, use, timeout)

    async def transaction(self, work: Work[T], *, isolation: str | None, timeout: float) -> T:
        """Run *work* in a session."""

        async def use(session: AsyncSession) -> T:
            if isolation is not None:
                level = isolation.replace("_", " ").upper()
                await session.connection(execution_options={"isolation_level": level})

            async def run(query: str, args: Sequence[object]) -> Any:
                result: Any = await session.execute(*_sqlalchemys(query, args))
                return result.mappings().first() if result.returns_rows else None

            return await driven(work, run)

        return await self._do(Kind.APPEND, use, timeout)

    async def copy(
        self, table: str, columns: Sequence[str], records: Sequence[Sequence[object]], timeout: float
    ) -> int:
        """Write by an INSERT for many rows."""
        into = sqlalchemy.table(table, *map(sqlalchemy.column, columns))

        async def use(session: AsyncSession) -> int:
            await session.execute(insert(into), [dict(zip(columns, record, strict=True)) for record in records])
            return len(records)

        return await self._do(Kind.APPEND, use, timeout)

    async def _do(self, kind: Kind, use: Callable[[AsyncSession], Awaitable[T]], timeout: float) -> T:
        """Do something in a transaction; again, as long as there is time, where it says that nothing was applied."""
        until, attempt, context = time.monotonic() + timeout, 0, _context.get(_Context())
        context.wrote = context.wrote or kind is Kind.APPEND
        while True:
            attempt += 1
            try:
                async with AsyncSession(self._engine, readonly=not context.wrote) as session, session.begin():
                    return await use(session)
            except Exception as e:
                pause = random.uniform(0, min(_LONGEST, _PAUSE * 2 ** (attempt - 1)))  # noqa: S311  no secret
                if not _may_run_again(e) or time.monotonic() + pause >= until:
                    raise
                why = f"{type(e).__name__}: {e}"
            self.place.tell({"event": "CallRepeated", "at": time.monotonic(), "attempt": attempt, "why": why})
            await asyncio.sleep(pause)

    def leases(self) -> int:
        """Return the connections that are out, of the engines and of the guard itself."""
        pools: list[Any] = [engine.sync_engine.pool for engine in self._engines()]
        return super().leases() + sum(int(pool.checkedout()) for pool in pools)


def _may_run_again(error: Exception) -> bool:
    """Whether an error says that nothing was applied, and another attempt may fare better, as the page has it."""
    match error:
        case dbguard.OutcomeUnknown():
            return False
        case dbguard.NotAttempted() | TimeoutError():
            return True
        case exc.DBAPIError():
            # SQLAlchemy keeps no SQLSTATE of a cached plan that DDL has overtaken; asyncpg's own error has it.
            said = {getattr(e, "sqlstate", None) for e in (error.orig, error.orig and error.orig.__cause__)}
            return error.connection_invalidated or not said.isdisjoint(_AGAIN)
        case _:
            return False


def _sqlalchemys(query: str, args: Sequence[object]) -> tuple[TextClause, dict[str, object]]:
    """Return *query* as SQLAlchemy's text, and its parameters; each in parentheses, since a cast after it would hide it."""
    named = {f"p{number}": value for number, value in enumerate(args, 1)}
    return text(_PARAMETER.sub(r"(:p\1)", query)), named
