"""Many calls, cancelled or out of time at any moment: no lease is lost, and the pool stays whole."""

from __future__ import annotations

import asyncio
import contextlib
import random

import asyncpg
import pytest

import dbguard
from dbguard.events import BreakerChanged, GateChanged, NodeDown

SIZE = 3


def ways(guard, table, release):
    async def block():
        async with guard.transaction() as tx:
            await tx.fetchval("SELECT pg_sleep(0.002)")
            async with tx.transaction():
                await tx.execute(f"INSERT INTO {table} VALUES (-1, 1)")
            raise LookupError

    async def acquired():
        async with guard.acquire() as con:
            await con.execute("SET work_mem = '5MB'")
            await con.fetchval("SELECT pg_sleep(0.002)")

    async def kept():
        con = await guard.acquire()
        try:
            await con.fetchval("SELECT pg_sleep(0.002)")
        finally:
            await release(con)

    async def function():
        async def fn(tx):
            await tx.fetchval("SELECT pg_sleep(0.002)")
            await tx.execute(f"INSERT INTO {table} VALUES (-1, 1)")
            raise LookupError

        await guard.run_in_transaction(fn)

    return [
        lambda: guard.fetchval("SELECT pg_sleep(0.002)"),
        lambda: guard.execute(f"UPDATE {table} SET n = n + 1"),
        lambda: guard.copy_records_to_table(table, records=[(1, 1), (1, 1)]),  # a unique violation
        lambda: guard.fetch("SELECT * FROM no_such_table"),
        lambda: guard.fetchval("SELECT setseed(0.5)"),
        block,
        acquired,
        kept,
        function,
    ]


async def is_whole(guard, until):
    """Whether every place in the pool can be used again."""
    await until(lambda: all(node.in_use == 0 for node in guard.status().nodes))
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(60):
        taken = [await stack.enter_async_context(guard.acquire()) for _ in range(SIZE)]
        assert [await con.fetchval("SELECT 1") for con in taken] == [1] * SIZE


async def storm(guard, table, how, seed):
    view = guard.using(timeout=0.02 if how == "deadline" else 5.0)
    rng = random.Random(seed)
    choice = ways(view, table, guard.release)

    async def one():
        await asyncio.sleep(rng.random() * 0.2)
        task = asyncio.create_task(rng.choice(choice)())
        if how == "cancel":
            await asyncio.sleep(rng.random() * 0.02)
            task.cancel()
        try:
            await task
        except (asyncio.CancelledError, LookupError, asyncpg.PostgresError, dbguard.DbGuardError):
            assert task.cancelling() == (how == "cancel" and task.cancelled())
        except asyncpg.InterfaceError as error:
            # A block goes on as the deadline of its last statement, which was answered just then, ends its connection.
            if how != "deadline" or "connection is closed" not in str(error):
                raise

    await asyncio.gather(*(one() for _ in range(150)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_a_storm_leaves_the_pool_whole(calm_cluster, open_guard, table, until, events, how, seed):
    guard = await open_guard(calm_cluster, "a", min_size=1, max_size=SIZE)

    await storm(guard, table, how, seed)

    await is_whole(guard, until)
    assert guard.status().writes == "open"
    assert await guard.fetchval(f"SELECT count(*) FROM {table}") == 0
    # That callers had no time, or no patience, is no word about the node.
    assert [event for event in events if isinstance(event, BreakerChanged | GateChanged | NodeDown)][1:] == []


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_a_storm_leaves_a_wrapped_pool_whole(calm_cluster, table, until, how):
    async with asyncpg.create_pool(calm_cluster.dsn("a"), min_size=1, max_size=SIZE) as pool:
        guard = dbguard.Guard.wrap(pool)
        async with guard:
            await storm(guard, table, how, seed=1)
            await is_whole(guard, until)
            assert await guard.fetchval(f"SELECT count(*) FROM {table}") == 0
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(60):
            for _ in range(SIZE):
                await stack.enter_async_context(pool.acquire())
