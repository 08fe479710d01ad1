"""What users' type checkers see of the facades over psycopg. Checked by mypy strict (`tests/typing/test_api.py`), never run."""

from __future__ import annotations

from typing import Any, assert_type

import psycopg
from psycopg.rows import dict_row

import dbguard  # noqa: TC001  as users write it
from dbguard.pg.connection import AsyncConnection, AsyncTransaction
from dbguard.pg.cursor import AsyncCopy, AsyncCursor, AsyncServerCursor
from dbguard.pg.result import Result
from dbguard.pg.sync_connection import Connection, Transaction
from dbguard.pg.sync_cursor import Copy, Cursor, ServerCursor


def takes_psycopgs(con: psycopg.Connection[Any], cursor: psycopg.Cursor[Any]) -> None:
    """What is written for psycopg takes what a guard lends."""


async def tasks(guard: dbguard.PsycopgGuard) -> None:
    assert_type(await guard.execute("SELECT 1"), Result[Any])
    async with guard.connection() as con:
        assert_type(con, AsyncConnection[Any])
        async with con.cursor(row_factory=dict_row) as cursor:
            assert_type(cursor, AsyncCursor[dict[str, Any]])
            await cursor.execute("SELECT %s", (1,), prepare=True)
            assert_type(await cursor.fetchone(), dict[str, Any] | None)
            async for row in cursor:
                assert_type(row, dict[str, Any])
            async with cursor.copy("COPY t FROM STDIN") as copy:
                assert_type(copy, AsyncCopy)
        assert_type(con.cursor("name", row_factory=dict_row), AsyncServerCursor[dict[str, Any]])
        async with con.transaction(force_rollback=True) as block:
            assert_type(block, AsyncTransaction)
        async for notify in con.notifies(timeout=1):
            assert_type(notify, psycopg.Notify)

    async def move(con: AsyncConnection[Any]) -> int:
        return con.attempt

    assert_type(await guard.run_in_transaction(move), int)


def threads(guard: dbguard.SyncGuard) -> None:
    assert_type(guard.execute("SELECT 1"), Result[Any])
    with guard.connection() as con:
        assert_type(con, Connection[Any])
        con.autocommit = True
        with con.cursor(row_factory=dict_row) as cursor:
            takes_psycopgs(con, cursor)
            assert_type(cursor, Cursor[dict[str, Any]])
            assert_type(cursor.execute("SELECT 1").fetchall(), list[dict[str, Any]])
            with cursor.copy("COPY t FROM STDIN") as copy:
                assert_type(copy, Copy)
        assert_type(con.cursor("name", row_factory=dict_row), ServerCursor[dict[str, Any]])
        with con.transaction() as block:
            assert_type(block, Transaction)

    def move(con: Connection[Any]) -> int:
        return con.attempt

    assert_type(guard.run_in_transaction(move), int)
