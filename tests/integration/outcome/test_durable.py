"""What a token proves is as durable as the cluster promises: with synchronous replication, a standby has it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

import dbguard
from dbguard.drivers import outcome_sql

ADD = "UPDATE item SET n = n + 1 WHERE id = 1"


@pytest.fixture
async def pair(cluster_factory):
    """A primary whose commits wait for its only standby; ended by the test."""
    cluster = await asyncio.to_thread(cluster_factory, replicas=1, synchronous=True)
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE item AS SELECT 1 AS id, 0 AS n")
    con = await asyncpg.connect(cluster.dsn("a"))
    await con.execute(outcome_sql.schema())
    await con.close()
    return cluster


@pytest.fixture
async def guard(pair, open_guard):
    return await open_guard(
        pair,
        config={"outcome": {"resolve": "token-table"}, "timeout": "30s"},
        server_settings={"application_name": "doomed"},
    )


def waiting(pair, what="pid"):
    query = f"SELECT {what} FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    return asyncio.to_thread(pair.sql, "a", query)


async def block(guard):
    async with guard.transaction() as tx:
        await tx.execute(ADD)


WRITES = {
    "autocommit": lambda guard: guard.execute(ADD),
    "block": block,
    "function": lambda guard: guard.run_in_transaction(lambda tx: tx.execute(ADD)),
}


@pytest.mark.parametrize("way", WRITES)
async def test_a_commit_whose_standby_never_comes_is_unknown_and_never_a_success(pair, guard, way):
    await asyncio.to_thread(pair.stop_node, "b")

    with pytest.raises(dbguard.OutcomeUnknown) as caught:
        await WRITES[way](guard.using(timeout=4))

    assert caught.value.token is not None
    with pytest.raises(dbguard.OutcomeUnknown):
        await guard.resolve(caught.value.token, timeout=0.8)
    assert len(await waiting(pair)) >= 1, "who waits for a standby was left alone"

    await asyncio.to_thread(pair.start_node, "b")
    assert await guard.resolve(caught.value.token) is True
    assert await asyncio.to_thread(pair.sql, "a", "SELECT n FROM item") == [(1,)]


@pytest.mark.parametrize("way", WRITES)
async def test_a_commit_whose_wait_was_cut_short_is_applied_once_a_standby_has_it(pair, guard, until, way):
    await asyncio.to_thread(pair.stop_node, "b")
    writing = asyncio.create_task(WRITES[way](guard))
    await until(lambda: waiting(pair))

    assert await waiting(pair, "pg_cancel_backend(pid)") == [(True,)]
    await until(lambda: waiting(pair))  # the claim waits now
    await asyncio.sleep(0)
    assert not writing.done()
    await asyncio.to_thread(pair.start_node, "b")

    await writing
    assert guard.status().counts["proved_applied"] == 1
    assert guard.status().counts["unknown"] == 0
    assert await asyncio.to_thread(pair.sql, "a", "SELECT n FROM item") == [(1,)]


async def test_a_claim_whose_wait_was_cut_short_has_answered_nothing(pair, guard, until):
    await asyncio.to_thread(pair.stop_node, "b")
    writing = asyncio.create_task(guard.execute(ADD))
    for _ in range(4):  # the write, and then its claims
        await until(lambda: waiting(pair))
        await waiting(pair, "pg_cancel_backend(pid)")
    await until(lambda: waiting(pair))
    assert not writing.done()

    await asyncio.to_thread(pair.start_node, "b")
    await writing
    assert guard.status().counts["proved_applied"] == 1
