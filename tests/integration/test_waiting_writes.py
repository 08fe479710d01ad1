"""Writes while there is no primary: they wait, or fail, as told; reads go on."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest

import dbguard

WHERE = "SELECT current_setting('cluster_name')"


async def test_start_up_without_a_primary_reads_and_lets_writes_wait_for_one(cluster, open_guard, until):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    for node in "bc":
        await asyncio.to_thread(cluster.wait_for, node, "SELECT to_regclass('written') IS NOT NULL")
    await asyncio.to_thread(cluster.kill, "a")
    guard = await open_guard(cluster, settle=False)

    assert await guard.using(consistency="eventual").fetchval(WHERE) in {"b", "c"}
    write = asyncio.create_task(guard.execute("INSERT INTO written VALUES (1)"))
    await until(lambda: guard.status().waiting == 1)
    assert not write.done()
    with pytest.raises(dbguard.NoPrimary):
        await guard.using(writes="fail").execute("INSERT INTO written VALUES (2)")
    await asyncio.to_thread(cluster.promote, "b")

    assert await write == "INSERT 0 1"
    assert await guard.using(role="primary").fetch("SELECT * FROM written") == [(1,)]


async def test_writes_fail_at_once_or_after_their_time_as_told(cluster, open_guard, until):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    guard = await open_guard(cluster)
    await asyncio.to_thread(cluster.kill, "a")
    await until(lambda: guard.status().writes == "failover")

    began = time.monotonic()
    with pytest.raises(dbguard.NoPrimary) as at_once:
        await guard.using(writes="fail").execute("INSERT INTO written VALUES (1)")
    assert time.monotonic() - began < 20.0
    assert not isinstance(at_once.value, TimeoutError)
    began = time.monotonic()
    with pytest.raises(dbguard.NoPrimary) as in_time:
        await guard.execute("INSERT INTO written VALUES (1)", timeout=0.3)
    assert 0.29 < time.monotonic() - began < 20.0
    assert isinstance(in_time.value, TimeoutError)
    assert isinstance(in_time.value, asyncpg.PostgresConnectionError)

    with pytest.raises(dbguard.NoPrimary):
        async with guard.using(timeout=0.1).transaction():
            pytest.fail("there is no primary")
    with pytest.raises(dbguard.NoPrimary):
        await guard.using(timeout=0.1).run_in_transaction(lambda tx: tx.execute("INSERT INTO written VALUES (1)"))


async def test_no_call_waits_longer_than_max_wait(cluster, open_guard, until):
    guard = await open_guard(cluster, config={"failover": {"max_wait": 1}})
    await asyncio.to_thread(cluster.kill, "a")
    await until(lambda: guard.status().writes == "failover")

    began = time.monotonic()
    with pytest.raises(dbguard.NoPrimary, match="no primary within 1 s"):
        await guard.execute("CREATE TABLE never (id int)", timeout=60)
    assert time.monotonic() - began < 20.0
    assert guard.status().writes == "down"


async def test_more_calls_than_may_wait_are_declined(cluster, open_guard, until):
    guard = await open_guard(cluster, config={"failover": {"max_waiting": 3}})
    await asyncio.to_thread(cluster.kill, "a")
    await until(lambda: guard.status().writes == "failover")
    waiting = [asyncio.create_task(guard.execute("CREATE TABLE never ()", timeout=20)) for _ in range(3)]
    await until(lambda: guard.status().waiting == 3)

    with pytest.raises(dbguard.Overloaded) as caught:
        await guard.execute("CREATE TABLE never ()")

    assert isinstance(caught.value, asyncpg.PostgresConnectionError)
    for task in waiting:
        task.cancel()
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*waiting, return_exceptions=True))
    assert guard.status().waiting == 0


async def test_waiting_calls_end_when_the_guard_is_closed(cluster, open_guard, until):
    guard = await open_guard(cluster)
    await asyncio.to_thread(cluster.kill, "a")
    await until(lambda: guard.status().writes == "failover")
    write = asyncio.create_task(guard.execute("CREATE TABLE never ()"))
    await until(lambda: guard.status().waiting == 1)

    await guard.close(timeout=0.5)

    with pytest.raises(dbguard.GuardClosed):
        await write
