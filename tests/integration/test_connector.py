"""`guard.connector(role)`: the application's own pool, whose connections go where they belong."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest

import dbguard

WHERE = "SELECT current_setting('cluster_name')"


@pytest.fixture
async def pool():
    """Make pools of the application's, connected by a guard."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(guard, role, **arguments):
            sizes = {"min_size": 1, "max_size": 6} | arguments
            opened = await asyncpg.create_pool(connect=guard.connector(role), **sizes)
            stack.callback(opened.terminate)
            return opened

        yield make


async def all_of(pool, count=6):
    """Return where as many connections as there may be lead."""
    async with contextlib.AsyncExitStack() as stack:
        cons = [await stack.enter_async_context(pool.acquire()) for _ in range(count)]
        return [await con.fetchval(WHERE) for con in cons]


async def test_connections_go_to_the_primary_or_are_spread_over_the_replicas(calm_cluster, open_guard, pool):
    class Mine(asyncpg.Connection):
        """A class of the application's."""

    guard = await open_guard(calm_cluster)
    writer = await pool(guard, "primary", connection_class=Mine, server_settings={"application_name": "mine"})
    reader = await pool(guard, "replica")

    assert set(await all_of(writer)) == {"a"}
    assert sorted(await all_of(reader)) == ["b", "b", "b", "c", "c", "c"]
    async with writer.acquire() as con:
        assert isinstance(con, Mine)
        assert await con.fetchval("SHOW application_name") == "mine"


@pytest.mark.every_postgres
async def test_after_a_failover_the_applications_pools_lead_to_the_new_primary(cluster, open_guard, pool, until):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    await asyncio.to_thread(cluster.wait_for, "b", "SELECT to_regclass('written') IS NOT NULL")
    guard = await open_guard(cluster)
    writer = await pool(guard, "primary")
    reader = await pool(guard, "replica")
    assert set(await all_of(writer)) == {"a"}
    assert set(await all_of(reader)) == {"b", "c"}

    await asyncio.to_thread(cluster.kill, "a")
    waiting = asyncio.ensure_future(writer.execute("INSERT INTO written VALUES (1)"))
    await asyncio.to_thread(cluster.promote, "b")
    await asyncio.to_thread(cluster.follow, "c", "b")

    assert await asyncio.wait_for(waiting, 60) == "INSERT 0 1"
    assert set(await all_of(writer)) == {"b"}
    await until(lambda: any(node.name == "c" and node.proven and node.lag is not None for node in guard.status().nodes))
    await reader.expire_connections()
    assert set(await all_of(reader)) == {"c"}


async def test_connections_to_an_old_primary_that_goes_on_are_ended(cluster, open_guard, pool, until):
    """What a pool alone never notices: the old primary takes writes that nobody will have."""
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    await asyncio.to_thread(cluster.wait_for, "b", "SELECT to_regclass('written') IS NOT NULL")
    guard = await open_guard(cluster)
    writer = await pool(guard, "primary")
    assert set(await all_of(writer)) == {"a"}
    async with writer.acquire() as con:
        held = con.get_server_pid()

        await asyncio.to_thread(cluster.promote, "b")
        await until(lambda: guard.status().primary == "b")
        await until(lambda: not cluster.sql("a", "SELECT FROM pg_stat_activity WHERE pid = $1", held))

    for n in range(10):
        await writer.execute("INSERT INTO written VALUES ($1)", n)
    assert await asyncio.to_thread(cluster.sql, "a", "SELECT count(*) FROM written") == [(0,)]
    assert await asyncio.to_thread(cluster.sql, "b", "SELECT count(*) FROM written") == [(10,)]


async def test_what_cannot_be_connected_says_why(calm_cluster, open_guard, pool, configured):
    guard = await open_guard(calm_cluster)
    shut = dbguard.Guard(calm_cluster.dsn("a"))
    alone = await open_guard(calm_cluster, "a", config={"reads": {"fallback": "error"}}, settle=False)

    with pytest.raises(ValueError, match="role must be primary or replica, not 'writer'"):
        guard.connector("writer")
    for address in ({"dsn": calm_cluster.dsn("a")}, {"host": "127.0.0.1"}):
        with pytest.raises(dbguard.ConfigError, match="the guard chooses the address"):
            await asyncpg.create_pool(connect=guard.connector("primary"), min_size=1, max_size=1, **address)
    with pytest.raises(dbguard.GuardClosed):
        await shut.connector("primary")()
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await guard.connector("primary")(database="nowhere")
    with pytest.raises(dbguard.NoReplica, match="no replica within"):
        await alone.connector("replica")(timeout=0.3)
    async with asyncpg.create_pool(calm_cluster.dsn("a"), min_size=1, max_size=2) as own:
        with pytest.raises(dbguard.ConfigError, match="wrapped pools connect by themselves"):
            dbguard.Guard.wrap(own).connector("primary")


async def test_a_replicas_connection_goes_to_the_primary_where_no_replica_is_fit(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster, "a", settle=False)

    con = await guard.connector("replica")()

    assert await con.fetchval(WHERE) == "a"
    await con.close()
    await guard.close()
