"""Limits of the server, and what the application says about repeats, listeners and connections."""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import pairwise

import asyncpg
import pytest
import tenacity

import dbguard
from dbguard.events import BreakerChanged, CallRepeated, NodeDown

PID = "SELECT pg_backend_pid()"


async def test_a_server_without_free_connections_is_overloaded_not_dead(calm_cluster, open_guard, events):
    calm_cluster.sql("a", "DROP ROLE IF EXISTS few")
    calm_cluster.sql("a", "CREATE ROLE few LOGIN CONNECTION LIMIT 4")
    calm_cluster.wait_for("b", "SELECT count(*) = 1 FROM pg_roles WHERE rolname = 'few'")
    config = {"connection": {"user": "few"}, "pool": {"min_size": 1, "max_size": 10}}
    guard = await open_guard(calm_cluster, "a", config=config)

    results = await asyncio.gather(
        *(guard.fetchval("SELECT 1 FROM pg_sleep(0.02)") for _ in range(20)), return_exceptions=True
    )

    assert results.count(1) >= 3
    assert {type(result) for result in results} <= {int, asyncpg.TooManyConnectionsError}
    assert guard.status().writes == "open"
    assert guard.status().nodes[0].breaker == "closed"
    assert [event for event in events if isinstance(event, BreakerChanged | NodeDown)] == []
    assert await guard.fetchval("SELECT 1") == 1
    await guard.close()
    calm_cluster.sql("a", "DROP ROLE few")


async def test_a_guard_may_live_at_module_level(calm_cluster, configured):
    guard = await asyncio.to_thread(dbguard.Guard, configured(calm_cluster))  # where no loop runs

    async with guard:
        assert await guard.fetchval("SELECT 1") == 1


async def test_expired_connections_are_replaced(calm_cluster, open_guard, all_given_back):
    guard = await open_guard(calm_cluster, "a", min_size=1, max_size=1)
    before = await guard.fetchval(PID)
    async with guard.acquire() as con:
        await guard.expire_connections()
        assert await con.fetchval(PID) == before  # in use: it goes when it is given back

    assert await guard.fetchval(PID) != before


async def test_the_application_says_how_long_to_wait_and_when_to_stop(calm_cluster, open_guard, events):
    waits = []

    def wait(state: tenacity.RetryCallState) -> float:
        waits.append((state.attempt_number, type(state.outcome.exception())))
        return 0.001

    guard = await open_guard(calm_cluster, retry_wait=wait, retry_stop=tenacity.stop_after_attempt(3))
    attempts = []

    async def conflict(tx):
        attempts.append(tx.attempt)
        await tx.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

    with pytest.raises(asyncpg.SerializationError) as caught:
        await guard.run_in_transaction(conflict)

    assert attempts == [1, 2, 3]
    assert waits == [(1, asyncpg.SerializationError), (2, asyncpg.SerializationError)]
    assert "3 attempts" in "".join(caught.value.__notes__)
    assert len([event for event in events if isinstance(event, CallRepeated)]) >= 2


async def test_the_budget_bounds_what_repeats_cost(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster, config={"retry": {"budget": 0, "floor": 0}})
    attempts = []

    async def lose(tx):
        attempts.append(tx.attempt)
        await tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(asyncpg.PostgresConnectionError) as caught:
        await guard.run_in_transaction(lose)

    assert attempts == [1]
    assert "budget" in "".join(caught.value.__notes__)


async def test_beyond_the_budget_contention_is_repeated_slowly(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster, config={"retry": {"budget": 0, "floor": 0}})
    at = []

    async def conflict(tx):
        at.append(time.monotonic())
        if tx.attempt < 3:
            await tx.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

    await guard.run_in_transaction(conflict)

    assert len(at) == 3
    assert all(later - earlier >= 0.25 for earlier, later in pairwise(at))


async def test_contention_attempts_can_be_limited(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster, config={"retry": {"contention_attempts": 3}})
    attempts = []

    async def conflict(tx):
        attempts.append(tx.attempt)
        await tx.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

    with pytest.raises(asyncpg.SerializationError) as caught:
        await guard.run_in_transaction(conflict)

    assert attempts == [1, 2, 3]
    assert "retry.contention_attempts" in "".join(caught.value.__notes__)


async def test_what_a_listener_raises_is_logged_and_felt_by_nobody(calm_cluster, configured, caplog):
    def broken(event):
        raise KeyError("the listener's own")

    heard = []
    with caplog.at_level(logging.ERROR, "dbguard"):
        async with dbguard.connect(configured(calm_cluster), on_event=broken) as guard:
            remove = guard.on_event(heard.append)
            await guard.expire_connections()
            remove()
            before = len(heard)
            await guard.expire_connections()
            assert await guard.fetchval("SELECT 1") == 1

    assert len(heard) == before
    assert "a listener for dbguard's events failed" in caplog.text


async def test_no_sql_and_no_argument_is_logged(calm_cluster, open_guard, table, caplog, events):
    with caplog.at_level(logging.DEBUG, "dbguard"):
        guard = await open_guard(calm_cluster, config={"retry": {"contention_attempts": 3}})
        with pytest.raises(asyncpg.UndefinedTableError):
            await guard.fetch("SELECT 's3cr3t' FROM no_such_table WHERE $1 = 's3cr3t'", "s3cr3t")
        with pytest.raises(asyncpg.SerializationError):
            await guard.run_in_transaction(
                lambda tx: tx.execute("DO $$ BEGIN RAISE SQLSTATE '40001' USING MESSAGE = 's3cr3t'; END $$")
            )
        await guard.close()

    assert "s3cr3t" not in caplog.text
    assert "s3cr3t" not in "".join(f"{event!r} {event.text()} {event.as_dict()}" for event in events)
