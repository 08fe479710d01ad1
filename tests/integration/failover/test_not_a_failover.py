"""What looks like a failover and is none: the true primary is not dropped for what it, or a function on it, says."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from dbguard.events import BreakerChanged, Drained, GateChanged, PrimaryChanged

act = asyncio.to_thread

SQLSTATES = ["57P01", "57P02", "57P03", "08006", "08003", "53300", "25006"]


def node(guard, name):
    return next(node for node in guard.status().nodes if node.name == name)


def epochs(guard):
    return {n.name: n.epoch for n in guard.status().nodes}


def dropped(events):
    return [e for e in events if isinstance(e, Drained | BreakerChanged | GateChanged | PrimaryChanged)]


@pytest.fixture
def read_only(home):
    """Turn the primary read-only, and back; at the end it is not, whatever the test did."""

    def turn(on):
        setting = "SET default_transaction_read_only = on" if on else "RESET default_transaction_read_only"
        home.sql(home.primary, f"ALTER SYSTEM {setting}")
        home.sql(home.primary, "SELECT pg_reload_conf()")

    yield turn
    turn(on=False)


async def test_a_read_only_true_primary_keeps_its_office_and_its_callers_are_told(home, work, read_only, until, events):
    """Its 25006 reaches the caller as it is, and drains nothing."""
    guard, primary = work.guard, home.primary.name
    before = epochs(guard)
    events.clear()
    await act(read_only, True)
    await until(lambda: node(guard, primary).read_only)
    told = len(work.refused())
    await until(lambda: len(work.refused()) > told + 20)
    await work.reads_go_on()
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with guard.transaction() as tx:
            await tx.execute("INSERT INTO written VALUES (0, 'in a block')")

    await act(read_only, False)

    await work.flows()
    await work.judge(unknown=0, refused="ReadOnlySQLTransactionError")
    assert (guard.status().primary, epochs(guard)) == (primary, before)
    assert dropped(events) == []


async def test_an_sqlstate_raised_by_a_function_says_nothing_about_the_node(work, events):
    """57P01, 25006 and their like, with the connection open all the time."""
    guard = work.guard
    before = epochs(guard)
    events.clear()

    for sqlstate in SQLSTATES:
        raising = f"DO $$ BEGIN RAISE SQLSTATE '{sqlstate}'; END $$"
        for role in ("primary", "replica"):
            for _ in range(6):
                with pytest.raises(asyncpg.PostgresError) as caught:
                    await guard.using(role=role).execute(raising)
                assert caught.value.sqlstate == sqlstate
        async with guard.acquire() as con:
            with pytest.raises(asyncpg.PostgresError):
                await con.execute(raising)
            assert await con.fetchval("SELECT 1") == 1

    await work.flows()
    await work.reads_go_on()
    await work.judge(unknown=0)
    assert epochs(guard) == before
    assert guard.status().counts["unknown"] == 0
    assert dropped(events) == []
