"""What looks like a failover and is none: the true primary is not dropped for what it, or a function on it, says."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from dbguard.events import BreakerChanged, Drained, GateChanged, PrimaryChanged

INSERT = "INSERT INTO written VALUES ($1) RETURNING current_setting('cluster_name')"


@pytest.fixture
async def guard(cluster, open_guard):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    return await open_guard(cluster)


def node(guard, name):
    return next(node for node in guard.status().nodes if node.name == name)


async def test_25006_of_a_read_only_true_primary_reaches_the_caller_and_drains_nothing(cluster, guard, events, until):
    await asyncio.to_thread(cluster.sql, "a", "ALTER SYSTEM SET default_transaction_read_only = on")
    await asyncio.to_thread(cluster.sql, "a", "SELECT pg_reload_conf()")
    await until(lambda: node(guard, "a").read_only)
    epochs = {n.name: n.epoch for n in guard.status().nodes}
    events.clear()

    for _ in range(3):
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await guard.fetchval(INSERT, 1)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with guard.transaction() as tx:
                await tx.execute("INSERT INTO written VALUES (1)")

    assert guard.status().primary == "a"
    assert guard.status().writes == "open"
    assert {n.name: n.epoch for n in guard.status().nodes} == epochs
    assert [e for e in events if isinstance(e, Drained | BreakerChanged | GateChanged | PrimaryChanged)] == []


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "57P03", "08006", "08003", "53300", "25006"])
async def test_an_sqlstate_raised_by_a_function_says_nothing_about_the_node(calm_cluster, open_guard, events, sqlstate):
    guard = await open_guard(calm_cluster)
    epochs = {n.name: n.epoch for n in guard.status().nodes}
    events.clear()

    for role in ("primary", "replica"):
        for _ in range(6):
            with pytest.raises(asyncpg.PostgresError) as caught:
                await guard.using(role=role).execute(f"DO $$ BEGIN RAISE SQLSTATE '{sqlstate}'; END $$")
            assert caught.value.sqlstate == sqlstate
    async with guard.acquire() as con:
        with pytest.raises(asyncpg.PostgresError):
            await con.execute(f"DO $$ BEGIN RAISE SQLSTATE '{sqlstate}'; END $$")
        assert await con.fetchval("SELECT 1") == 1

    assert {n.name: n.epoch for n in guard.status().nodes} == epochs
    assert {n.breaker for n in guard.status().nodes} == {"closed"}
    assert guard.status().primary == "a"
    assert guard.status().counts["unknown"] == 0
    assert [e for e in events if isinstance(e, Drained | BreakerChanged | PrimaryChanged)] == []
