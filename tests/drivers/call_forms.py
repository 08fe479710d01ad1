"""Every form of a call, each as a function of a guard, a table and a folder with files."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import dbguard

ROWS = [(number, str(number)) for number in range(10, 400)]
BIG = b"".join(b"%d\t%s\n" % (number, b"x" * 1000) for number in range(10, 1500))


class Mine(Exception):
    """The application's own."""


# ---------------------------------------------------------------------- one statement


async def execute(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.execute(f"UPDATE {t} SET name = 'x'")


async def execute_with_arguments(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.execute(f"UPDATE {t} SET name = $1 WHERE id = $2", "x", 1)


async def fetch(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.fetch(f"SELECT * FROM {t} WHERE id > $1", 0)


async def executemany(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.executemany(f"INSERT INTO {t} VALUES ($1, $2) ON CONFLICT DO NOTHING", ROWS)


async def fetchmany(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.fetchmany(f"UPDATE {t} SET name = $2 WHERE id = $1 RETURNING id", ROWS)


async def copy_to_a_path(guard: dbguard.Guard, t: str, path: Path) -> None:
    await guard.copy_from_table(t, output=path / "out")


async def copy_to_a_file(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.copy_from_query(f"SELECT * FROM {t}", output=io.BytesIO())


async def copy_to_a_function(guard: dbguard.Guard, t: str, _: Path) -> None:
    async def slow(chunk: bytes) -> None:
        await asyncio.sleep(0)

    await guard.copy_from_query(f"SELECT * FROM {t} WHERE id > $1", 0, output=slow)


async def copy_from_a_path(guard: dbguard.Guard, t: str, path: Path) -> None:
    await guard.copy_to_table(f"{t}_copy", source=path / "in")


async def copy_from_a_text_path(guard: dbguard.Guard, t: str, path: Path) -> None:
    await guard.copy_to_table(f"{t}_copy", source=os.fspath(path / "in"))


async def copy_from_a_file(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.copy_to_table(f"{t}_copy", source=io.BytesIO(BIG))


async def copy_from_an_iterator(guard: dbguard.Guard, t: str, _: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(BIG), 400_000):
            await asyncio.sleep(0)
            yield BIG[start : start + 400_000]

    await guard.copy_to_table(f"{t}_copy", source=chunks())


async def copy_from_a_buffer(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.copy_to_table(f"{t}_copy", source=bytearray(BIG))


async def copy_records(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.copy_records_to_table(f"{t}_copy", records=[(number, "x" * 3000) for number in range(400)])


async def copy_records_of_an_iterator(guard: dbguard.Guard, t: str, _: Path) -> None:
    async def records() -> AsyncIterator[tuple[int, str]]:
        for number in range(3):
            await asyncio.sleep(0)
            yield number, "x"

    await guard.copy_records_to_table(f"{t}_copy", records=records())


async def block(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.transaction() as con:
        await con.execute(f"UPDATE {t} SET name = 'x'")


async def block_within_a_block(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.acquire() as con, con.transaction():
        await con.execute(f"UPDATE {t} SET name = 'x'")
        async with con.transaction():
            await con.execute(f"UPDATE {t} SET name = 'y'")


async def function(guard: dbguard.Guard, t: str, _: Path) -> None:
    async def rename(con: dbguard.Connection) -> None:
        await con.execute(f"UPDATE {t} SET name = $1", "x")

    await guard.run_in_transaction(rename)


async def copy_in_a_block(guard: dbguard.Guard, t: str, path: Path) -> None:
    async with guard.transaction() as con:
        await con.copy_to_table(f"{t}_copy", source=path / "in")
        await con.copy_from_table(t, output=path / "out")


async def cursor_in_a_block(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.transaction() as con:
        async for _row in con.cursor("SELECT generate_series(1, $1)", 120):
            pass
        cursor = await con.cursor(f"UPDATE {t} SET name = 'x' RETURNING id")
        await cursor.fetch(1)
        await cursor.forward(1)


async def prepared_statement(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.acquire() as con:
        statement = await con.prepare(f"UPDATE {t} SET name = $1 RETURNING id")
        await statement.fetch("x")
        await statement.executemany([("x",), ("y",)])


async def fetch_one(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.fetchrow(f"SELECT * FROM {t}")
    await guard.fetchval(f"SELECT count(*) FROM {t} WHERE id > $1", 0)


async def script(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.execute(f"UPDATE {t} SET name = 'x'; DELETE FROM {t} WHERE id < 0; SELECT 1")


async def call_to_be_reset(guard: dbguard.Guard, t: str, _: Path) -> None:
    """What it leaves on the session is taken back, and is waited for where the pool is the application's."""
    await guard.execute("SET work_mem = '1MB'")
    await guard.fetchval("SELECT pg_advisory_lock(7)")
    await guard.execute("SET ROLE pg_monitor")


# ---------------------------------------------------------------------- connections and blocks


async def acquired(guard: dbguard.Guard, t: str, _: Path) -> None:
    con = await guard.acquire()
    try:
        await con.execute(f"UPDATE {t} SET name = 'x'")
        await con.fetch("SELECT pg_advisory_lock(7)")
    finally:
        await guard.release(con)


async def acquired_and_dropped(guard: dbguard.Guard, t: str, _: Path) -> None:
    con = await guard.acquire()
    await con.fetch(f"SELECT * FROM {t} FOR UPDATE")


async def session_calls(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.acquire() as con:
        await con.add_listener("channel", print)
        await con.remove_listener("channel", print)
        await con.set_builtin_type_codec("text", schema="pg_catalog", codec_name="text")
        await con.reload_schema_state()
        await con.reset()
        await con.close()


async def block_rolled_back(guard: dbguard.Guard, t: str, _: Path) -> None:
    with contextlib.suppress(Mine):
        async with guard.transaction() as con:
            await con.execute(f"UPDATE {t} SET name = 'x'")
            raise Mine


async def savepoint_rolled_back(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.transaction() as con:
        await con.execute(f"UPDATE {t} SET name = 'x'")
        with contextlib.suppress(Mine):
            async with con.transaction():
                await con.execute(f"UPDATE {t} SET name = 'y'")
                raise Mine


async def transaction_by_hand(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.acquire() as con:
        outer = con.transaction(isolation="serializable")
        await outer.start()
        await con.execute(f"UPDATE {t} SET name = 'x'")
        await outer.rollback()
        again = con.transaction()
        await again.start()
        await con.execute(f"UPDATE {t} SET name = 'x'")
        await again.commit()


async def read_only_block(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.transaction(readonly=True) as con:
        await con.fetch(f"SELECT * FROM {t}")


async def function_that_is_repeated(guard: dbguard.Guard, t: str, _: Path) -> None:
    """It meets another transaction, backs off, and is run again."""

    async def rename(con: dbguard.Connection) -> None:
        await con.execute(f"UPDATE {t} SET name = $1", "x")
        if con.attempt == 1:
            raise asyncpg.SerializationError("as the server would say it")

    await guard.run_in_transaction(rename)


async def function_with_a_savepoint(guard: dbguard.Guard, t: str, _: Path) -> None:
    async def rename(con: dbguard.Connection) -> None:
        await con.execute(f"UPDATE {t} SET name = $1", "x")
        with contextlib.suppress(Mine):
            async with con.transaction():
                await con.execute(f"UPDATE {t} SET name = $1", "y")
                raise Mine

    await guard.run_in_transaction(rename)


async def function_that_fails(guard: dbguard.Guard, t: str, _: Path) -> None:
    async def rename(con: dbguard.Connection) -> None:
        await con.execute(f"UPDATE {t} SET name = $1", "x")
        raise Mine

    with contextlib.suppress(Mine):
        await guard.run_in_transaction(rename)


async def blocks_within_each_other(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.transaction() as one, guard.acquire() as other:
        await one.execute(f"UPDATE {t} SET name = 'x'")
        await other.fetch(f"SELECT * FROM {t}")


FORMS: list[Any] = [
    execute,
    execute_with_arguments,
    script,
    call_to_be_reset,
    fetch,
    fetch_one,
    executemany,
    fetchmany,
    copy_to_a_path,
    copy_to_a_file,
    copy_to_a_function,
    copy_from_a_path,
    copy_from_a_text_path,
    copy_from_a_file,
    copy_from_an_iterator,
    copy_from_a_buffer,
    copy_records,
    copy_records_of_an_iterator,
    acquired,
    session_calls,
    block,
    block_rolled_back,
    block_within_a_block,
    blocks_within_each_other,
    savepoint_rolled_back,
    transaction_by_hand,
    read_only_block,
    function,
    function_that_is_repeated,
    function_with_a_savepoint,
    function_that_fails,
    copy_in_a_block,
    cursor_in_a_block,
    prepared_statement,
]
"""Every form in which a call can be made."""
