"""What users' type checkers see. Checked by mypy strict (`tests/typing/test_api.py`), never run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, assert_type

import asyncpg
from asyncpg.types import ServerVersion

import dbguard
from dbguard.prepared import Cursor, CursorFactory, PreparedStatement


class Row(asyncpg.Record):
    pass


async def statements(db: dbguard.Guard | dbguard.Connection) -> None:
    assert_type(await db.execute("UPDATE t SET n = $1", 1, timeout=2.5), str)
    await db.executemany("INSERT INTO t VALUES ($1)", [(1,), (2,)])
    assert_type(await db.fetch("SELECT 1"), list[asyncpg.Record])
    assert_type(await db.fetch("SELECT $1::int", 1, record_class=Row), list[Row])
    assert_type(await db.fetchmany("SELECT $1::int", [(1,)]), list[asyncpg.Record])
    assert_type(await db.fetchmany("SELECT $1::int", [(1,)], record_class=Row), list[Row])
    assert_type(await db.fetchrow("SELECT 1"), asyncpg.Record | None)
    assert_type(await db.fetchrow("SELECT 1", record_class=Row), Row | None)
    assert_type(await db.fetchval("SELECT 1", column=0), Any)
    assert_type(await db.copy_from_query("SELECT 1", output=Path("out"), format="csv", header=True), str)
    assert_type(await db.copy_to_table("t", source=Path("in"), columns=["id"]), str)
    assert_type(await db.copy_records_to_table("t", records=[(1, "x")], timeout=5), str)


async def guard(guard: dbguard.Guard) -> None:
    async with guard.acquire(timeout=1) as con:
        assert_type(con, dbguard.Connection)
    assert_type(await guard.acquire(), dbguard.Connection)
    async with guard.transaction(isolation="serializable", readonly=True) as tx:
        assert_type(tx, dbguard.Connection)
    assert_type(guard.route("SELECT 1"), dbguard.Route)
    assert_type(guard.status(), dbguard.Status)
    assert_type(await guard.using(role="replica", timeout=5).fetch("SELECT 1"), list[asyncpg.Record])
    assert_type(guard.get_size(), int)
    assert_type(guard.is_closing(), bool)

    async def move(con: dbguard.Connection) -> int:
        return con.attempt

    assert_type(await guard.run_in_transaction(move), int)


async def connection(con: dbguard.Connection) -> None:
    assert_type(con.node, str)
    assert_type(con.get_server_version(), ServerVersion)
    async with con.transaction() as block:
        assert_type(block, dbguard.Transaction)
        async for row in con.cursor("SELECT 1", prefetch=10):
            assert_type(row, asyncpg.Record)
        assert_type(con.cursor("SELECT 1", record_class=Row), CursorFactory[Row])
        cursor = await con.cursor("SELECT 1")
        assert_type(cursor, Cursor[asyncpg.Record])
        assert_type(await cursor.fetch(5), list[asyncpg.Record])
    statement = await con.prepare("SELECT 1")
    assert_type(statement, PreparedStatement[asyncpg.Record])
    assert_type(await statement.fetch(), list[asyncpg.Record])
    assert_type(await statement.fetchrow(), asyncpg.Record | None)
    assert_type(await con.prepare("SELECT 1", record_class=Row), PreparedStatement[Row])


async def mistakes(guard: dbguard.Guard, con: dbguard.Connection) -> None:
    await guard.fetch(1)  # type: ignore[call-overload]
    await guard.execute("SELECT 1", timeout="1")  # type: ignore[arg-type]
    await guard.copy_to_table("t", source=Path("in"), format="xml")  # type: ignore[arg-type]
    await guard.fetch("SELECT 1", record_class=int)  # type: ignore[type-var]
    await guard.fetchh("SELECT 1")  # type: ignore[attr-defined]
    await con.fetchh("SELECT 1")  # type: ignore[attr-defined]


async def main() -> None:
    async with dbguard.connect("postgresql://db1,db2/shop", max_size=5) as opened:
        assert_type(opened, dbguard.Guard)
    assert_type(await dbguard.connect({"nodes": []}), dbguard.Guard)
    pool = await asyncpg.create_pool()
    assert_type(dbguard.Guard.wrap(pool, [pool]), dbguard.Guard)
    try:
        await opened.execute("SELECT 1")
    except dbguard.OutcomeUnknown as error:
        assert_type(error.node, str)
        assert_type(error.token, str | None)
    except dbguard.NotAttempted as error:
        assert_type(error.retry_after, float | None)


asyncio.run(main())
