"""`Result`: the rows of a call outside a block, already there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from dbguard.drivers.psycopg.connection import DriverAsyncCursor, ProgrammingError
from dbguard.runtime.colour import now

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from psycopg import Column

__all__ = ["Result"]

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105  psycopg's own name for it


class Result(Generic[Row]):
    """What a guard's `execute` returns: rows, and what the server said of them, without a connection.

    It has the methods of psycopg's `Cursor` that read results, which never wait, in both colours. The connection was given
    back before the caller got it: nothing here reaches it.
    """

    __slots__ = ("_async", "_cursor", "arraysize")

    def __init__(self, cursor: Any) -> None:
        # The driver's cursor, whose results are complete: it would ask its connection only if it had none.
        self._cursor = cursor
        self._async = isinstance(cursor, DriverAsyncCursor)
        self.arraysize: int = cursor.arraysize

    def __repr__(self) -> str:
        return f"<dbguard.Result [{self.statusmessage or 'no result'}]>"

    def _at_hand(self) -> Any:
        cursor = self._cursor
        if cursor.pgresult is None and not cursor.closed:
            raise ProgrammingError("no result available")
        return cursor

    @property
    def description(self) -> list[Column] | None:
        """The columns of the current result; None if it has no rows by its nature."""
        return self._cursor.description  # type: ignore[no-any-return]  # as psycopg's own cursor has it

    @property
    def rowcount(self) -> int:
        """How many rows the statement returned or affected; -1: not known."""
        return self._cursor.rowcount  # type: ignore[no-any-return]  # as psycopg's own cursor has it

    @property
    def rownumber(self) -> int | None:
        """The index of the next row to fetch; None: there are no rows by nature."""
        return self._cursor.rownumber  # type: ignore[no-any-return]  # as psycopg's own cursor has it

    @property
    def statusmessage(self) -> str | None:
        """The command tag of the current result."""
        return self._cursor.statusmessage  # type: ignore[no-any-return]  # as psycopg's own cursor has it

    @property
    def pgresult(self) -> Any:
        """The driver's own result; None: there is none."""
        return self._cursor.pgresult

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._cursor.closed  # type: ignore[no-any-return]  # as psycopg's own cursor has it

    def fetchone(self) -> Row | None:
        """Return the next row; None after the last."""
        row = self._at_hand().fetchone()
        return now(row) if self._async else row  # type: ignore[no-any-return]  # as psycopg's own cursor has it

    def fetchmany(self, size: int = 0) -> list[Row]:
        """Return the next *size* rows, or as many as there are; 0: `arraysize`."""
        found = self._at_hand().fetchmany(size or self.arraysize)
        return now(found) if self._async else found

    def fetchall(self) -> list[Row]:
        """Return all rows that are left."""
        found = self._at_hand().fetchall()
        return now(found) if self._async else found

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        cursor = self._at_hand()
        if not self._async:
            return next(cursor)  # type: ignore[no-any-return]  # as psycopg's own cursor has it
        try:
            return now(cursor.__anext__())  # type: ignore[no-any-return]  # as psycopg's own cursor has it
        except StopAsyncIteration:
            raise StopIteration from None

    def scroll(self, value: int, mode: str = "relative") -> None:
        """Move to another row; *mode* is ``relative`` or ``absolute``. Raises `IndexError` outside the result."""
        moved = self._at_hand().scroll(value, mode)
        if self._async:
            now(moved)

    def nextset(self) -> bool | None:
        """Go to the result of the next statement; True if there is one, else None."""
        return self._cursor.nextset()  # type: ignore[no-any-return]  # as psycopg's own cursor has it

    def set_result(self, index: int) -> Self:
        """Go to the result of this index, counted from the end where negative; with psycopg 3.3 and later."""
        chosen = self._cursor.set_result(index)
        if self._async:
            now(chosen)
        return self

    def results(self) -> Iterator[Self]:
        """Go through the results of all statements: each turn shows the next one."""
        if self._cursor.pgresult is not None:
            yield self
            while self.nextset():
                yield self

    def close(self) -> None:
        """Let the rows go."""
        closed = self._cursor.close()
        if self._async:
            now(closed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
