"""The statements of asyncpg's dialect: what `asyncpg.Pool` and `asyncpg.Connection` have in common, signature by signature.

`Guard` and `Connection` are both made of it; they differ in how a statement is run, and in what a repeat would need.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
    from typing import IO, Literal, TypeAlias, TypeVar

    from asyncpg import Record

    R = TypeVar("R", bound=Record)
    CopyFormat: TypeAlias = Literal["text", "csv", "binary"]
    Output: TypeAlias = os.PathLike[Any] | str | bytes | IO[bytes] | Callable[[bytes], Awaitable[None]]
    Source: TypeAlias = os.PathLike[Any] | str | bytes | IO[bytes] | AsyncIterable[bytes]

__all__ = ["Statements"]


class Statements:
    """The methods that run a statement. *timeout*: seconds for it; over a guard, waiting and repeats included."""

    __slots__ = ()

    @abstractmethod
    def _run(self, method: str, query: str, args: tuple[Any, ...], limit: float | None, **extra: Any) -> Awaitable[Any]:
        """Run *query* by the driver's *method*."""

    @abstractmethod
    def _many(self, method: str, query: str, args: Any, limit: float | None, **extra: Any) -> Awaitable[Any]:
        """Run *query* for each item of *args*."""

    @abstractmethod
    def _copy_query(
        self, method: str, query: str, args: tuple[Any, ...], limit: float | None, **extra: Any
    ) -> Awaitable[Any]:
        """Copy what *query* returns."""

    @abstractmethod
    def _copy(self, method: str, table: str, limit: float | None, **extra: Any) -> Awaitable[Any]:
        """Copy to or from a whole table."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Execute an SQL command or commands; as asyncpg's `execute`."""
        return await self._run("execute", query, (query, *args), timeout)  # type: ignore[no-any-return]  # what asyncpg's own returns

    async def executemany(self, command: str, args: Iterable[Sequence[Any]], *, timeout: float | None = None) -> None:
        """Execute a command for each sequence of arguments, in one transaction; as asyncpg's `executemany`."""
        await self._many("executemany", command, args, timeout)

    @overload
    async def fetch(
        self, query: str, *args: Any, timeout: float | None = None, record_class: None = None
    ) -> list[Record]: ...
    @overload
    async def fetch(self, query: str, *args: Any, timeout: float | None = None, record_class: type[R]) -> list[R]: ...
    async def fetch(
        self, query: str, *args: Any, timeout: float | None = None, record_class: type[Record] | None = None
    ) -> Any:
        """Run a query and return its rows; as asyncpg's `fetch`."""
        return await self._run("fetch", query, (query, *args), timeout, record_class=record_class)

    @overload
    async def fetchmany(
        self, query: str, args: Iterable[Sequence[Any]], *, timeout: float | None = None, record_class: None = None
    ) -> list[Record]: ...
    @overload
    async def fetchmany(
        self, query: str, args: Iterable[Sequence[Any]], *, timeout: float | None = None, record_class: type[R]
    ) -> list[R]: ...
    async def fetchmany(
        self,
        query: str,
        args: Iterable[Sequence[Any]],
        *,
        timeout: float | None = None,
        record_class: type[Record] | None = None,
    ) -> Any:
        """Run a query for each sequence of arguments and return all rows; as asyncpg's `fetchmany`."""
        return await self._many("fetchmany", query, args, timeout, record_class=record_class)

    @overload
    async def fetchrow(
        self, query: str, *args: Any, timeout: float | None = None, record_class: None = None
    ) -> Record | None: ...
    @overload
    async def fetchrow(
        self, query: str, *args: Any, timeout: float | None = None, record_class: type[R]
    ) -> R | None: ...
    async def fetchrow(
        self, query: str, *args: Any, timeout: float | None = None, record_class: type[Record] | None = None
    ) -> Any:
        """Run a query and return its first row or None; as asyncpg's `fetchrow`."""
        return await self._run("fetchrow", query, (query, *args), timeout, record_class=record_class)

    async def fetchval(self, query: str, *args: Any, column: int | str = 0, timeout: float | None = None) -> Any:
        """Run a query and return one value of its first row; as asyncpg's `fetchval`."""
        return await self._run("fetchval", query, (query, *args), timeout, column=column)

    async def copy_from_query(
        self,
        query: str,
        *args: Any,
        output: Output,
        timeout: float | None = None,
        format: CopyFormat | None = None,  # noqa: A002  asyncpg's word
        oids: int | None = None,
        delimiter: str | None = None,
        null: str | None = None,
        header: bool | None = None,
        quote: str | None = None,
        escape: str | None = None,
        force_quote: bool | Iterable[str] | None = None,
        encoding: str | None = None,
    ) -> str:
        """Copy the results of a query to a file; as asyncpg's `copy_from_query`. Not repeated once it is under way."""
        return await self._copy_query(  # type: ignore[no-any-return]  # what asyncpg's own returns
            "copy_from_query",
            query,
            (query, *args),
            timeout,
            output=output,
            format=format,
            oids=oids,
            delimiter=delimiter,
            null=null,
            header=header,
            quote=quote,
            escape=escape,
            force_quote=force_quote,
            encoding=encoding,
        )

    async def copy_from_table(
        self,
        table_name: str,
        *,
        output: Output,
        columns: Iterable[str] | None = None,
        schema_name: str | None = None,
        timeout: float | None = None,
        format: CopyFormat | None = None,  # noqa: A002  asyncpg's word
        oids: int | None = None,
        delimiter: str | None = None,
        null: str | None = None,
        header: bool | None = None,
        quote: str | None = None,
        escape: str | None = None,
        force_quote: bool | Iterable[str] | None = None,
        encoding: str | None = None,
    ) -> str:
        """Copy a table to a file; as asyncpg's `copy_from_table`. Not repeated once it is under way."""
        return await self._copy(  # type: ignore[no-any-return]  # what asyncpg's own returns
            "copy_from_table",
            table_name,
            timeout,
            output=output,
            columns=columns,
            schema_name=schema_name,
            format=format,
            oids=oids,
            delimiter=delimiter,
            null=null,
            header=header,
            quote=quote,
            escape=escape,
            force_quote=force_quote,
            encoding=encoding,
        )

    async def copy_to_table(
        self,
        table_name: str,
        *,
        source: Source,
        columns: Iterable[str] | None = None,
        schema_name: str | None = None,
        timeout: float | None = None,
        format: CopyFormat | None = None,  # noqa: A002  asyncpg's word
        oids: int | None = None,
        freeze: bool | None = None,
        delimiter: str | None = None,
        null: str | None = None,
        header: bool | None = None,
        quote: str | None = None,
        escape: str | None = None,
        force_quote: bool | Iterable[str] | None = None,
        force_not_null: bool | Iterable[str] | None = None,
        force_null: bool | Iterable[str] | None = None,
        encoding: str | None = None,
        where: str | None = None,
    ) -> str:
        """Copy a file to a table; as asyncpg's `copy_to_table`. Not repeated once *source* is being read."""
        return await self._copy(  # type: ignore[no-any-return]  # what asyncpg's own returns
            "copy_to_table",
            table_name,
            timeout,
            source=source,
            columns=columns,
            schema_name=schema_name,
            format=format,
            oids=oids,
            freeze=freeze,
            delimiter=delimiter,
            null=null,
            header=header,
            quote=quote,
            escape=escape,
            force_quote=force_quote,
            force_not_null=force_not_null,
            force_null=force_null,
            encoding=encoding,
            where=where,
        )

    async def copy_records_to_table(
        self,
        table_name: str,
        *,
        records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
        columns: Iterable[str] | None = None,
        schema_name: str | None = None,
        timeout: float | None = None,
        where: str | None = None,
    ) -> str:
        """Copy records to a table; as asyncpg's `copy_records_to_table`."""
        return await self._copy(  # type: ignore[no-any-return]  # what asyncpg's own returns
            "copy_records_to_table",
            table_name,
            timeout,
            records=records,
            columns=columns,
            schema_name=schema_name,
            where=where,
        )
