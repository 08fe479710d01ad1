"""`AsyncCursor`, `AsyncServerCursor` and `AsyncCopy`: psycopg's, on a leased connection, for tasks."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from dbguard.drivers.psycopg.connection import (
    DriverAsyncCopy,
    DriverAsyncCursor,
    DriverAsyncServerCursor,
)
from dbguard.pg.cursor_names import CopyNames, CursorNames, ServerCursorNames
from dbguard.pg.reading import END, HeldCopy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from types import TracebackType

    from psycopg.abc import Buffer, Params, Query
    from psycopg.copy import AsyncWriter

    from dbguard.pg.connection import AsyncConnection

__all__ = ["AsyncCopy", "AsyncCursor", "AsyncServerCursor"]

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105  psycopg's own name for it


class AsyncCursor(CursorNames, DriverAsyncCursor[Row]):
    """A cursor; with the methods of `psycopg.AsyncCursor`. Made by `AsyncConnection.cursor`."""

    @property
    def connection(self) -> AsyncConnection[Any]:
        """The connection it was made by."""
        return self._made_by  # type: ignore[no-any-return]  # connections make cursors of their own colour

    async def execute(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """Execute a query or commands; as `psycopg.AsyncCursor.execute`."""
        await self._inner.execute(query, params, prepare=prepare, binary=binary)
        return self

    async def executemany(self, query: Query, params_seq: Iterable[Params], *, returning: bool = False) -> None:
        """Execute a command for each set of parameters; as `psycopg.AsyncCursor.executemany`."""
        await self._inner.executemany(query, params_seq, returning=returning)

    async def stream(
        self, query: Query, params: Params | None = None, *, binary: bool | None = None, size: int = 1
    ) -> AsyncIterator[Row]:
        """Go through the rows as they come; as `psycopg.AsyncCursor.stream`. Each step has the guard's time."""
        steps = self._inner.stream(query, params, binary=binary, size=size)
        try:
            while (row := await steps.next()) is not END:
                yield row
        finally:
            await steps.close()

    async def fetchone(self) -> Row | None:
        """Return the next row; None after the last."""
        return await self._inner.fetch(self._inner.raw.fetchone)  # type: ignore[no-any-return]  # what psycopg's own returns

    async def fetchmany(self, size: int = 0) -> list[Row]:
        """Return the next *size* rows, or as many as there are; 0: `arraysize`."""
        return await self._inner.fetch(self._inner.raw.fetchmany, size)  # type: ignore[no-any-return]  # what psycopg's own returns

    async def fetchall(self) -> list[Row]:
        """Return all rows that are left."""
        return await self._inner.fetch(self._inner.raw.fetchall)  # type: ignore[no-any-return]  # what psycopg's own returns

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Row:
        row = await self._inner.next()
        if row is END:
            raise StopAsyncIteration("no more records to return")
        return row  # type: ignore[no-any-return]  # a row, where it is not the mark of the end

    async def scroll(self, value: int, mode: str = "relative") -> None:
        """Move to another row; *mode* is ``relative`` or ``absolute``."""
        await self._inner.fetch(self._inner.raw.scroll, value, mode)

    async def results(self) -> AsyncIterator[Self]:
        """Go through the results of all statements: each turn shows the next one."""
        if self.pgresult is not None:
            yield self
            while self.nextset():
                yield self

    async def set_result(self, index: int) -> Self:
        """Go to the result of this index, counted from the end where negative; with psycopg 3.3 and later."""
        await self._inner.raw.set_result(index)
        return self

    @asynccontextmanager
    async def copy(
        self, statement: Query, params: Params | None = None, *, writer: AsyncWriter | None = None
    ) -> AsyncIterator[AsyncCopy]:
        """Begin a COPY; as `psycopg.AsyncCursor.copy`. Each step of it has the guard's time."""
        inner = HeldCopy(self._inner, statement, params, writer)
        await inner.enter()
        try:
            yield AsyncCopy(self, inner)
        except BaseException as error:
            await inner.leave(error)
            raise
        await inner.leave(None)

    async def close(self) -> None:
        """Close it."""
        await self._inner.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncServerCursor(ServerCursorNames, AsyncCursor[Row], DriverAsyncServerCursor[Row]):
    """A cursor on the server; with the methods of `psycopg.AsyncServerCursor`. Made by `AsyncConnection.cursor`."""

    async def execute(
        self, query: Query, params: Params | None = None, *, binary: bool | None = None, **kwargs: Any
    ) -> Self:
        """Declare it for a query; as `psycopg.AsyncServerCursor.execute`."""
        await self._inner.execute(query, params, binary=binary, **kwargs)
        return self

    async def executemany(self, query: Query, params_seq: Iterable[Params], *, returning: bool = True) -> None:
        """Not supported: raises `psycopg.NotSupportedError`, as psycopg's."""
        await self._inner.raw.executemany(query, params_seq, returning=returning)


class AsyncCopy(CopyNames, DriverAsyncCopy):  # type: ignore[override]  # what psycopg's own lets be set is the driver's here
    """A COPY; with the methods of `psycopg.AsyncCopy`. Made by `AsyncCursor.copy`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.finish(error)

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        while data := await self.read():
            yield data

    async def read(self) -> Buffer:
        """Return the next piece of data; empty after the last."""
        return await self._inner.read()  # type: ignore[no-any-return]  # what psycopg's own returns

    async def rows(self) -> AsyncIterator[tuple[Any, ...]]:
        """Go through the rows."""
        while (row := await self.read_row()) is not None:
            yield row

    async def read_row(self) -> tuple[Any, ...] | None:
        """Return the next row; None after the last."""
        return await self._inner.read_row()

    async def write(self, buffer: Buffer | str) -> None:
        """Write a piece of data."""
        await self._inner.write(self.formatter.write(buffer))

    async def write_row(self, row: Sequence[Any]) -> None:
        """Write a row."""
        data = self.formatter.write_row(row)
        if data:  # most rows only fill the buffer
            await self._inner.write(data)

    async def finish(self, exc: BaseException | None) -> None:
        """End it; as `psycopg.AsyncCopy.finish`. The block does so, too."""
        await self._inner.step(self._inner.raw.finish, exc)
