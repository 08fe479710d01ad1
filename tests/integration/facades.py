"""The three facades in one set of words, so that what is promised of a guard is shown over each of them.

    @every_facade
    async def test_...(facade, ...):          # asyncpg: `Guard`; psycopg: `PsycopgGuard`; threads: `SyncGuard`
        words = words_of(guard)
        await words.asked(words.value("SELECT $1::int", 1))

A verb (`execute`, `value`, `row`, `function`, `block`, `copy`) is a coroutine. Over `SyncGuard` it never suspends, but blocks
its thread: whoever works (`Words.work`) does so on a thread of his own, and who asks one thing (`Words.asked`) hands it to one.
Statements have places ``$1``, ``$2``, which are rewritten for psycopg.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from inspect import iscoroutinefunction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest

import dbguard
from dbguard.runtime.colour import now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping

__all__ = ["FACADES", "Words", "every_facade", "kind_of", "over_psycopg", "waited", "words_for", "words_of"]

FACADES = ("asyncpg", "psycopg", "threads")

every_facade = pytest.mark.parametrize("facade", FACADES, indirect=True)
over_psycopg = pytest.mark.parametrize("facade", FACADES[1:], indirect=True)

Statement = tuple[Any, ...]
"""A statement and its arguments; or, but for the last, the `wait` of an event that goes before the next one."""


def kind_of(facade: str) -> Any:
    """Return the class of guard."""
    return {"asyncpg": dbguard.Guard, "psycopg": dbguard.PsycopgGuard, "threads": dbguard.SyncGuard}[facade]


def words_for(facade: str) -> type[Words]:
    """Return the class of words."""
    return {"asyncpg": OverAsyncpg, "psycopg": OverPsycopg, "threads": InThreads}[facade]


def words_of(guard: Any) -> Words:
    """Return the words for a guard, or for what `using` returned."""
    if isinstance(guard, dbguard.SyncGuard) or type(guard).__name__ == "SyncCalls":
        return InThreads(guard)
    if isinstance(guard, dbguard.PsycopgGuard) or type(guard).__name__ == "AsyncCalls":
        return OverPsycopg(guard)
    return OverAsyncpg(guard)


async def waited(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a method of a guard that waits (`open`, `close`, `ready`, `pause`, `resolve`), of any facade."""
    if iscoroutinefunction(method):
        return await method(*args, **options)
    return await asyncio.to_thread(method, *args, **options)


class Words:
    """A guard's calls in the words of these tests.

    gone: what the driver raises when a connection is lost; dbguard's own errors are the first of these as well.
    event: what one piece of work waits for, and another sets. read_only: what it raises for 25006. unprepared: arguments of a guard that prepares no statements by name.
    """

    gone: tuple[type[Exception], ...]
    read_only: type[Exception]
    event: Callable[[], Any] = asyncio.Event
    unprepared: Mapping[str, Any]

    def __init__(self, guard: Any) -> None:
        self.guard = guard

    async def execute(self, query: str, *args: Any) -> str:
        """Execute a statement by itself; return its tag."""
        raise NotImplementedError

    async def value(self, query: str, *args: Any) -> Any:
        """Return the first value of the first row; None: there is no row."""
        row = await self.row(query, *args)
        return None if row is None else row[0]

    async def row(self, query: str, *args: Any) -> Any:
        """Return the first row; None: there is none."""
        raise NotImplementedError

    async def function(self, *statements: Statement, told: Callable[[Any], object] = lambda _: None) -> Any:
        """Run a transaction function of these; return the value of the last. told: of the connection of each attempt."""
        raise NotImplementedError

    async def block(self, *statements: Statement) -> Any:
        """Execute these in a block; return the value of the last."""
        raise NotImplementedError

    async def copy(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Copy rows into a table."""
        raise NotImplementedError

    def causal(self) -> Any:
        """Open a context of its own, for ``async with``."""
        return self.guard.causal()

    async def rest(self, seconds: float) -> None:
        """Do nothing for a while."""
        await asyncio.sleep(seconds)

    def work(self, works: list[Coroutine[Any, Any, None]]) -> list[asyncio.Future[None]]:
        """Let all of these work, beside each other."""
        return [asyncio.ensure_future(work) for work in works]

    async def asked(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Wait for one of these verbs, from the test's own task."""
        return await work


class OverAsyncpg(Words):
    """`Guard`."""

    gone = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    read_only = asyncpg.ReadOnlySQLTransactionError
    unprepared = MappingProxyType({"statement_cache_size": 0})

    async def execute(self, query: str, *args: Any) -> str:
        tag: str = await self.guard.execute(query, *args)
        return tag

    async def row(self, query: str, *args: Any) -> Any:
        return await self.guard.fetchrow(query, *args)

    async def function(self, *statements: Statement, told: Callable[[Any], object] = lambda _: None) -> Any:
        async def fn(tx: Any) -> Any:
            told(tx)
            return await self._each(tx, statements)

        return await self.guard.run_in_transaction(fn)

    async def block(self, *statements: Statement) -> Any:
        async with self.guard.transaction() as tx:
            return await self._each(tx, statements)

    async def _each(self, tx: Any, statements: tuple[Statement, ...]) -> Any:
        for statement in statements[:-1]:
            await (statement[0]() if callable(statement[0]) else tx.execute(*statement))
        return await tx.fetchval(*statements[-1])

    async def copy(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        await self.guard.copy_records_to_table(table, records=list(rows))


def spelt(query: str, args: tuple[Any, ...]) -> tuple[str, list[Any] | None]:
    """Return a statement with places ``$1`` as psycopg reads it."""
    if not args:
        return query, None
    order: list[Any] = []

    def place(found: re.Match[str]) -> str:
        order.append(args[int(found[1]) - 1])
        return "%s"

    return re.sub(r"\$(\d)", place, query), order


def first(cursor: Any, row: Any) -> Any:
    return None if cursor.description is None or row is None else row[0]


class OverPsycopg(Words):
    """`PsycopgGuard`."""

    gone = (psycopg.OperationalError, psycopg.InterfaceError)
    read_only = psycopg.errors.ReadOnlySqlTransaction
    unprepared = MappingProxyType({"kwargs": {"prepare_threshold": None}})

    async def execute(self, query: str, *args: Any) -> str:
        result = await self.guard.execute(*spelt(query, args))
        return str(result.statusmessage)

    async def row(self, query: str, *args: Any) -> Any:
        return (await self.guard.execute(*spelt(query, args))).fetchone()

    async def function(self, *statements: Statement, told: Callable[[Any], object] = lambda _: None) -> Any:
        async def fn(tx: Any) -> Any:
            told(tx)
            return await self._each(tx, statements)

        return await self.guard.run_in_transaction(fn)

    async def block(self, *statements: Statement) -> Any:
        async with self.guard.transaction() as tx:
            return await self._each(tx, statements)

    async def _each(self, tx: Any, statements: tuple[Statement, ...]) -> Any:
        for query, *args in statements:
            if callable(query):
                await query()
            else:
                cursor = await tx.execute(*spelt(query, tuple(args)))
        return first(cursor, await cursor.fetchone() if cursor.description else None)

    async def copy(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        async with (
            self.guard.connection() as con,
            con.cursor() as cursor,
            cursor.copy(f"COPY {table} FROM STDIN") as copy,
        ):
            for row in rows:
                await copy.write_row(row)


class InThreads(Words):
    """`SyncGuard`: each verb blocks the thread it runs on, and never suspends."""

    event = threading.Event
    gone, read_only, unprepared = OverPsycopg.gone, OverPsycopg.read_only, OverPsycopg.unprepared

    async def execute(self, query: str, *args: Any) -> str:
        return str(self.guard.execute(*spelt(query, args)).statusmessage)

    async def row(self, query: str, *args: Any) -> Any:
        return self.guard.fetchone(*spelt(query, args))

    async def function(self, *statements: Statement, told: Callable[[Any], object] = lambda _: None) -> Any:
        def fn(tx: Any) -> Any:
            told(tx)
            return self._each(tx, statements)

        return self.guard.run_in_transaction(fn)

    async def block(self, *statements: Statement) -> Any:
        with self.guard.transaction() as tx:
            return self._each(tx, statements)

    def _each(self, tx: Any, statements: tuple[Statement, ...]) -> Any:
        for query, *args in statements:
            if callable(query):
                query()
            else:
                cursor = tx.execute(*spelt(query, tuple(args)))
        return first(cursor, cursor.fetchone() if cursor.description else None)

    async def copy(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        with (
            self.guard.connection() as con,
            con.cursor() as cursor,
            cursor.copy(f"COPY {table} FROM STDIN") as copy,
        ):
            for row in rows:
                copy.write_row(row)

    @asynccontextmanager
    async def causal(self) -> AsyncIterator[None]:
        with self.guard.causal():
            yield

    async def rest(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  on a thread of its own

    def work(self, works: list[Coroutine[Any, Any, None]]) -> list[asyncio.Future[None]]:
        threads = ThreadPoolExecutor(len(works), thread_name_prefix="work")
        loop = asyncio.get_running_loop()
        begun = [loop.run_in_executor(threads, partial(now, work)) for work in works]
        threads.shutdown(wait=False)
        return begun

    async def asked(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.to_thread(now, work)
