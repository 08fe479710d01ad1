"""Nothing is written to an old primary, whatever it says of itself."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from dbguard.events import GateChanged, NodeFenced

WHERE = "SELECT current_setting('cluster_name')"
INSERT = "INSERT INTO written VALUES ($1) RETURNING current_setting('cluster_name')"


@pytest.fixture
async def guard(cluster, open_guard):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    return await open_guard(cluster)


def node(guard, name):
    return next(node for node in guard.status().nodes if node.name == name)


@pytest.mark.every_postgres
async def test_an_old_primary_that_comes_back_alone_is_fenced(cluster, guard, until, events, settled):
    await asyncio.to_thread(cluster.kill, "a")
    await asyncio.to_thread(cluster.promote, "b")
    await asyncio.to_thread(cluster.follow, "c", "b")
    assert await guard.fetchval(INSERT, 1) == "b"

    await asyncio.to_thread(cluster.start_node, "a")  # a primary again, alive and read-write

    await until(lambda: node(guard, "a").role == "fenced")
    for n in range(2, 12):
        assert await guard.fetchval(INSERT, n) == "b"
        assert await guard.using(consistency="eventual").fetchval(WHERE) != "a"
    assert await asyncio.to_thread(cluster.sql, "a", "SELECT count(*) FROM written") == [(0,)]
    assert [event.node for event in events if isinstance(event, NodeFenced)] == ["a"]
    assert guard.status().primary == "b"

    await asyncio.to_thread(cluster.rejoin, "a")
    await settled(guard)
    assert node(guard, "a").role == "replica"


async def test_an_isolated_old_primary_loses_its_leases_when_another_is_promoted(cluster, guard, until, events):
    """The old primary never went away: it is read-write, reachable, and its connections are open."""
    async with guard.acquire() as con:
        assert con.node == "a"
        await asyncio.to_thread(cluster.promote, "b")
        await until(lambda: guard.status().primary == "b")

        with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresConnectionError)):
            await con.execute("INSERT INTO written VALUES (1)")
    for n in range(10):
        assert await guard.fetchval(INSERT, n) == "b"

    assert await asyncio.to_thread(cluster.sql, "a", "SELECT count(*) FROM written") == [(0,)]
    assert [event.node for event in events if isinstance(event, NodeFenced)] == ["a"]


async def test_a_guard_that_starts_beside_an_old_primary_takes_the_newer_one(cluster, open_guard, until):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    await asyncio.to_thread(cluster.wait_for, "b", "SELECT to_regclass('written') IS NOT NULL")
    await asyncio.to_thread(cluster.promote, "b")

    guard = await open_guard(cluster, settle=False)

    await until(lambda: guard.status().writes == "open")
    assert guard.status().primary == "b"
    assert node(guard, "a").role == "fenced"
    assert await guard.fetchval(INSERT, 1) == "b"


async def test_a_primary_that_was_demoted_heals_at_the_first_occurrence(cluster, open_guard, until, events):
    """The trap: the node answers, connections to it can be opened, and every write on it is refused with 25006."""
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    # Probes so rare that only the calls themselves can notice.
    guard = await open_guard(cluster, config={"probe": {"interval": "60s"}})
    assert await guard.fetchval(INSERT, 0) == "a"
    for name in "bc":
        await asyncio.to_thread(cluster.wait_for, name, "SELECT count(*) = 1 FROM written")
    await asyncio.to_thread(cluster.stop_node, "a")
    await asyncio.to_thread(cluster.promote, "b")
    await asyncio.to_thread(cluster.follow, "a", "b")  # set up as a standby while it is down
    await asyncio.to_thread(cluster.follow, "c", "b")
    await asyncio.to_thread(cluster.start_node, "a")

    for n in range(1, 6):
        assert await guard.fetchval(INSERT, n) == "b"

    refused = [e for e in events if isinstance(e, GateChanged) and "25006" in e.why]
    assert len(refused) <= 1
    assert sorted(row[0] for row in await asyncio.to_thread(cluster.sql, "b", "SELECT id FROM written")) == [*range(6)]
