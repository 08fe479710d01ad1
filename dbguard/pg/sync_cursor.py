"""`Cursor`, `ServerCursor` and `Copy`: psycopg's, on a leased connection, for threads."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from dbguard.drivers.psycopg.connection import (
    DriverCopy,
    DriverCursor,
    DriverServerCursor,
)
from dbguard.pg.cursor_names import CopyNames, CursorNames, ServerCursorNames
from dbguard.pg.reading import END, HeldCopy
from dbguard.runtime.colour import now

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

    from psycopg.abc import Buffer, Params, Query
    from psycopg.copy import Writer

    from dbguard.pg.sync_connection import Connection

__all__ = ["Copy", "Cursor", "ServerCursor"]

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105  psycopg's own name for it


class Cursor(CursorNames, DriverCursor[Row]):
    """A cursor; with the methods of `psycopg.Cursor`. Made by `Connection.cursor`."""

    @property
    def connection(self) -> Connection[Any]:
        """The connection it was made by."""
        return self._made_by  # type: ignore[no-any-return]  # connections make cursors of their own colour

    def execute(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """Execute a query or commands; as `psycopg.Cursor.execute`."""
        now(self._inner.execute(query, params, prepare=prepare, binary=binary))
        return self

    def executemany(self, query: Query, params_seq: Iterable[Params], *, returning: bool = False) -> None:
        """Execute a command for each set of parameters; as `psycopg.Cursor.executemany`."""
        now(self._inner.executemany(query, params_seq, returning=returning))

    def stream(
        self, query: Query, params: Params | None = None, *, binary: bool | None = None, size: int = 1
    ) -> Iterator[Row]:
        """Go through the rows as they come; as `psycopg.Cursor.stream`. Each step has the guard's time."""
        steps = self._inner.stream(query, params, binary=binary, size=size)
        try:
            while (row := now(steps.next())) is not END:
                yield row
        finally:
            now(steps.close())

    def fetchone(self) -> Row | None:
        """Return the next row; None after the last."""
        return now(self._inner.fetch(self._inner.raw.fetchone))  # type: ignore[no-any-return]  # what psycopg's own returns

    def fetchmany(self, size: int = 0) -> list[Row]:
        """Return the next *size* rows, or as many as there are; 0: `arraysize`."""
        return now(self._inner.fetch(self._inner.raw.fetchmany, size))

    def fetchall(self) -> list[Row]:
        """Return all rows that are left."""
        return now(self._inner.fetch(self._inner.raw.fetchall))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Row:
        row = now(self._inner.next())
        if row is END:
            raise StopIteration("no more records to return")
        return row  # type: ignore[no-any-return]  # a row, where it is not the mark of the end

    def scroll(self, value: int, mode: str = "relative") -> None:
        """Move to another row; *mode* is ``relative`` or ``absolute``."""
        now(self._inner.fetch(self._inner.raw.scroll, value, mode))

    def results(self) -> Iterator[Self]:
        """Go through the results of all statements: each turn shows the next one."""
        if self.pgresult is not None:
            yield self
            while self.nextset():
                yield self

    def set_result(self, index: int) -> Self:
        """Go to the result of this index, counted from the end where negative; with psycopg 3.3 and later."""
        self._inner.raw.set_result(index)
        return self

    @contextmanager
    def copy(self, statement: Query, params: Params | None = None, *, writer: Writer | None = None) -> Iterator[Copy]:
        """Begin a COPY; as `psycopg.Cursor.copy`. Each step of it has the guard's time."""
        inner = HeldCopy(self._inner, statement, params, writer)
        now(inner.enter())
        try:
            yield Copy(self, inner)
        except BaseException as error:
            now(inner.leave(error))
            raise
        now(inner.leave(None))

    def close(self) -> None:
        """Close it."""
        now(self._inner.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ServerCursor(ServerCursorNames, Cursor[Row], DriverServerCursor[Row]):
    """A cursor on the server; with the methods of `psycopg.ServerCursor`. Made by `Connection.cursor`."""

    def execute(self, query: Query, params: Params | None = None, *, binary: bool | None = None, **kwargs: Any) -> Self:
        """Declare it for a query; as `psycopg.ServerCursor.execute`."""
        now(self._inner.execute(query, params, binary=binary, **kwargs))
        return self

    def executemany(self, query: Query, params_seq: Iterable[Params], *, returning: bool = True) -> None:
        """Not supported: raises `psycopg.NotSupportedError`, as psycopg's."""
        self._inner.raw.executemany(query, params_seq, returning=returning)


class Copy(CopyNames, DriverCopy):  # type: ignore[override]  # what psycopg's own lets be set is the driver's here
    """A COPY; with the methods of `psycopg.Copy`. Made by `Cursor.copy`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(error)

    def __iter__(self) -> Iterator[Buffer]:
        while data := self.read():
            yield data

    def read(self) -> Buffer:
        """Return the next piece of data; empty after the last."""
        return now(self._inner.read())  # type: ignore[no-any-return]  # what psycopg's own returns

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Go through the rows."""
        while (row := self.read_row()) is not None:
            yield row

    def read_row(self) -> tuple[Any, ...] | None:
        """Return the next row; None after the last."""
        return now(self._inner.read_row())

    def write(self, buffer: Buffer | str) -> None:
        """Write a piece of data."""
        now(self._inner.write(self.formatter.write(buffer)))

    def write_row(self, row: Sequence[Any]) -> None:
        """Write a row."""
        data = self.formatter.write_row(row)
        if data:  # most rows only fill the buffer
            now(self._inner.write(data))

    def finish(self, exc: BaseException | None) -> None:
        """End it; as `psycopg.Copy.finish`. The block does so, too."""
        now(self._inner.step(self._inner.raw.finish, exc))
