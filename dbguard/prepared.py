"""Prepared statements and cursors on a leased connection, in asyncpg's words.

They are the driver's, but everything that waits for the server goes through the session: a lost write is told as such, a
cancellation ends the connection first, and what was given back cannot be used any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from dbguard.core.retry import Stake

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence

    from asyncpg import Attribute, Type

    from dbguard.session import Session

__all__ = ["Cursor", "CursorFactory", "CursorIterator", "PreparedStatement"]

R = TypeVar("R")

PREFETCH = 50
"""Rows that asyncpg's cursor iterator fetches at a time, unless it is told otherwise."""


class _Bound:
    """Something of the driver's that runs *query* on the session's connection."""

    def __init__(self, session: Session, query: str, inner: Any) -> None:
        self._session = session
        self._query = query
        self._held = inner

    @property
    def _inner(self) -> Any:
        """The driver's object. Raises `asyncpg.InterfaceError` once the connection was given back."""
        _ = self._session.con
        return self._held

    async def _do(self, act: Callable[[], Awaitable[Any]], limit: float | None, *, cancels: bool = False) -> Any:
        stake, whole = self._session.note(self._query)
        return await self._session.do(act, stake, limit, whole=whole, cancels=cancels)


class PreparedStatement(_Bound, Generic[R]):
    """A prepared statement; with the methods of asyncpg's `PreparedStatement`. Made by `Connection.prepare`."""

    def get_name(self) -> str:
        """Return its name on the server."""
        return self._inner.get_name()  # type: ignore[no-any-return]  # what asyncpg's own returns

    def get_query(self) -> str:
        """Return its text."""
        return self._inner.get_query()  # type: ignore[no-any-return]  # what asyncpg's own returns

    def get_statusmsg(self) -> str | None:
        """Return the command tag of its last run; None before the first."""
        return self._inner.get_statusmsg()  # type: ignore[no-any-return]  # what asyncpg's own returns

    def get_parameters(self) -> tuple[Type, ...]:
        """Return the types of its parameters."""
        return self._inner.get_parameters()  # type: ignore[no-any-return]  # what asyncpg's own returns

    def get_attributes(self) -> tuple[Attribute, ...]:
        """Return the columns of its rows."""
        return self._inner.get_attributes()  # type: ignore[no-any-return]  # what asyncpg's own returns

    def cursor(self, *args: Any, prefetch: int | None = None, timeout: float | None = None) -> CursorFactory[R]:
        """Return a cursor factory. Needs a transaction."""
        return CursorFactory(
            self._session, self._query, self._inner.cursor(*args, prefetch=prefetch), timeout, prefetch
        )

    async def explain(self, *args: Any, analyze: bool = False) -> Any:
        """Return its plan; with *analyze* it is run, and rolled back."""
        return await self._session.do(lambda: self._inner.explain(*args, analyze=analyze), Stake.READ)

    async def fetch(self, *args: Any, timeout: float | None = None) -> list[R]:
        """Run it and return its rows."""
        return await self._do(lambda: self._inner.fetch(*args), timeout)  # type: ignore[no-any-return]  # what asyncpg's own returns

    async def fetchval(self, *args: Any, column: int | str = 0, timeout: float | None = None) -> Any:
        """Run it and return one value of its first row."""
        return await self._do(lambda: self._inner.fetchval(*args, column=column), timeout)

    async def fetchrow(self, *args: Any, timeout: float | None = None) -> R | None:
        """Run it and return its first row or None."""
        return await self._do(lambda: self._inner.fetchrow(*args), timeout)  # type: ignore[no-any-return]  # what asyncpg's own returns

    async def fetchmany(self, args: Iterable[Sequence[Any]], *, timeout: float | None = None) -> list[R]:
        """Run it for each sequence of arguments and return all rows."""
        return await self._do(lambda: self._inner.fetchmany(args), timeout, cancels=True)  # type: ignore[no-any-return]  # what asyncpg's own returns

    async def executemany(self, args: Iterable[Sequence[Any]], *, timeout: float | None = None) -> None:
        """Run it for each sequence of arguments."""
        await self._do(lambda: self._inner.executemany(args), timeout, cancels=True)


class CursorFactory(_Bound, Generic[R]):
    """What `Connection.cursor` returns: for ``async for``, or ``await`` to get a `Cursor`."""

    def __init__(self, session: Session, query: str, inner: Any, limit: float | None, prefetch: int | None) -> None:
        super().__init__(session, query, inner)
        self._limit = limit
        self._prefetch = prefetch

    def __aiter__(self) -> CursorIterator[R]:
        return CursorIterator(self._session, self._query, aiter(self._inner), self._limit, self._prefetch or PREFETCH)

    def __await__(self) -> Generator[Any, None, Cursor[R]]:
        return self._open().__await__()

    async def _open(self) -> Cursor[R]:
        return Cursor(self._session, self._query, await self._do(lambda: self._inner, self._limit))


class CursorIterator(_Bound, Generic[R]):
    """The rows of a cursor, fetched *prefetch* at a time."""

    def __init__(self, session: Session, query: str, inner: Any, limit: float | None, prefetch: int) -> None:
        super().__init__(session, query, inner)
        self._limit = limit
        self._prefetch = prefetch
        self._count = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        at_hand = self._count % self._prefetch
        self._count += 1
        if at_hand:  # nothing is awaited; the way through the session would cost more than the row
            return await anext(self._held)
        row: Any = await self._do(lambda: anext(self._inner, self), self._limit)
        if row is self:
            raise StopAsyncIteration
        return row  # type: ignore[no-any-return]  # a row, where it is not the mark of the end


class Cursor(_Bound, Generic[R]):
    """An open cursor; with the methods of asyncpg's `Cursor`. It lives until its transaction ends."""

    async def fetch(self, n: int, *, timeout: float | None = None) -> list[R]:
        """Return the next *n* rows, or as many as there are."""
        return await self._do(lambda: self._inner.fetch(n), timeout)  # type: ignore[no-any-return]  # what asyncpg's own returns

    async def fetchrow(self, *, timeout: float | None = None) -> R | None:
        """Return the next row; None after the last."""
        return await self._do(self._inner.fetchrow, timeout)  # type: ignore[no-any-return]  # what asyncpg's own returns

    async def forward(self, n: int, *, timeout: float | None = None) -> int:
        """Skip the next *n* rows; return how many there were."""
        return await self._do(lambda: self._inner.forward(n), timeout)  # type: ignore[no-any-return]  # what asyncpg's own returns
