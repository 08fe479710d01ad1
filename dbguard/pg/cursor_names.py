"""What needs no waiting of a cursor's names in psycopg, and so is the same for tasks and for threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Column
    from psycopg.adapt import AdaptersMap

    from dbguard.pg.reading import HeldCopy, HeldCursor, HeldServerCursor

__all__ = ["CopyNames", "CursorNames", "ServerCursorNames"]


class CursorNames:
    """Of `psycopg.Cursor` and `psycopg.AsyncCursor`."""

    _inner: HeldCursor
    _made_by: Any

    def __init__(self, connection: Any, inner: HeldCursor) -> None:
        self._made_by = connection
        self._inner = inner

    def __repr__(self) -> str:
        state = "closed" if self.closed else (self.statusmessage or "no result")
        return f"<dbguard.{type(self).__name__} [{state}] on {self._made_by!r}>"

    @property
    def connection(self) -> Any:
        """The connection it was made by."""
        return self._made_by

    @property
    def adapters(self) -> AdaptersMap:
        """How values are adapted: the cursor's own, to be changed at will."""
        return self._inner.raw.adapters  # type: ignore[no-any-return]  # psycopg's own value

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._inner.raw.closed  # type: ignore[no-any-return]  # psycopg's own value

    @property
    def description(self) -> list[Column] | None:
        """The columns of the current result; None if it has no rows by its nature."""
        return self._inner.raw.description  # type: ignore[no-any-return]  # psycopg's own value

    @property
    def rowcount(self) -> int:
        """How many rows the statement returned or affected; -1: not known."""
        return self._inner.raw.rowcount  # type: ignore[no-any-return]  # psycopg's own value

    @property
    def rownumber(self) -> int | None:
        """The index of the next row to fetch; None: there are no rows by nature."""
        return self._inner.raw.rownumber  # type: ignore[no-any-return]  # psycopg's own value

    @property
    def statusmessage(self) -> str | None:
        """The command tag of the current result."""
        return self._inner.raw.statusmessage  # type: ignore[no-any-return]  # psycopg's own value

    @property
    def pgresult(self) -> Any:
        """The driver's own result; None: there is none."""
        return self._inner.raw.pgresult

    @pgresult.setter
    def pgresult(self, value: Any) -> None:
        self._inner.raw.pgresult = value

    @property
    def format(self) -> Any:
        """Whether values come as text or binary."""
        return self._inner.raw.format

    @format.setter  # noqa: A003  psycopg's word
    def format(self, value: Any) -> None:
        self._inner.raw.format = value

    @property
    def arraysize(self) -> int:
        """How many rows `fetchmany` returns, unless it is told."""
        return self._inner.raw.arraysize  # type: ignore[no-any-return]  # psycopg's own value

    @arraysize.setter
    def arraysize(self, value: int) -> None:
        self._inner.raw.arraysize = value

    @property
    def row_factory(self) -> Any:
        """What makes its rows."""
        return self._inner.raw.row_factory

    @row_factory.setter
    def row_factory(self, value: Any) -> None:
        self._inner.raw.row_factory = value

    @property
    def mogrify(self) -> Any:
        """As `psycopg.ClientCursor.mogrify`, where `cursor_factory` makes such cursors."""
        return self._inner.raw.mogrify

    def setinputsizes(self, sizes: Sequence[Any]) -> None:
        """Do nothing; as psycopg's."""

    def setoutputsize(self, size: Any, column: int | None = None) -> None:
        """Do nothing; as psycopg's."""

    def nextset(self) -> bool | None:
        """Go to the result of the next statement; True if there is one, else None."""
        return self._inner.raw.nextset()  # type: ignore[no-any-return]  # psycopg's own value


class ServerCursorNames(CursorNames):
    """Of `psycopg.ServerCursor` and `psycopg.AsyncServerCursor`."""

    _inner: HeldServerCursor

    def __del__(self, warn: Any = None, /) -> None:
        """Do nothing: the driver's own cursor warns of being left open."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._inner.given_up or self._inner.raw.closed

    @property
    def name(self) -> str:
        """Its name on the server."""
        return self._inner.raw.name  # type: ignore[no-any-return]  # psycopg's own value

    @property
    def scrollable(self) -> bool | None:
        """Whether it can be moved backwards; None: the server decides."""
        return self._inner.raw.scrollable  # type: ignore[no-any-return]  # psycopg's own value

    @property
    def withhold(self) -> bool:
        """Whether it outlives its transaction."""
        return self._inner.raw.withhold  # type: ignore[no-any-return]  # psycopg's own value

    @property
    def itersize(self) -> int:
        """How many rows iteration asks for at a time."""
        return self._inner.raw.itersize  # type: ignore[no-any-return]  # psycopg's own value

    @itersize.setter
    def itersize(self, value: int) -> None:
        self._inner.raw.itersize = value


class CopyNames:
    """Of `psycopg.Copy` and `psycopg.AsyncCopy`."""

    _inner: HeldCopy
    _made_by: Any

    def __init__(self, cursor: Any, inner: HeldCopy) -> None:
        self._made_by = cursor
        self._inner = inner

    def __repr__(self) -> str:
        return f"<dbguard.{type(self).__name__} of {self._made_by!r}>"

    @property
    def cursor(self) -> Any:
        """The cursor it was begun on."""
        return self._made_by

    @property
    def connection(self) -> Any:
        """The connection it was begun on."""
        return self._made_by.connection

    @property
    def formatter(self) -> Any:
        """What makes the data of rows, and rows of the data."""
        return self._inner.raw.formatter

    @property
    def writer(self) -> Any:
        """Where the data goes."""
        return self._inner.raw.writer

    def set_types(self, types: Sequence[int | str]) -> None:
        """Say of which types the columns are; as `psycopg.Copy.set_types`."""
        self._inner.raw.set_types(types)
