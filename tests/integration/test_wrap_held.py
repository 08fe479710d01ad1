"""Wrapped pools: leases held by their owner's word, pools whose address follows the primary, and pools that do not fit."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import asyncpg
import pytest

import dbguard
from dbguard.testing.cluster import Cluster

PID = "SELECT pg_backend_pid()"
WHERE = "SELECT current_setting('cluster_name')"


@pytest.fixture
async def pool(calm_cluster):
    """Make a pool of the application's over the primary; `checkouts` counts them."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(**arguments):
            checkouts = []

            async def setup(_):
                checkouts.append(True)

            opened = await asyncpg.create_pool(calm_cluster.dsn("a"), setup=setup, **({"min_size": 1} | arguments))
            stack.callback(opened.terminate)
            return opened, checkouts

        yield make


@pytest.fixture
async def wrap(settled):
    async with contextlib.AsyncExitStack() as stack:

        async def make(*pools, **options):
            guard = await stack.enter_async_context(dbguard.Guard.wrap(pools[0], pools[1:], **options))
            await settled(guard)
            return guard

        yield make


QUIET = {"probe": {"interval": 5}}
"""Probes check connections out as well."""


async def test_held_leases_are_handed_on_without_a_checkout_or_a_reset(pool, wrap, calm_cluster, table, until):
    opened, checkouts = await pool(max_size=3)
    guard = await wrap(opened, hold=2, config=QUIET)

    async def handed_on():
        """Whether the catalogue was read, so that the table is known to be plain."""
        before = len(checkouts)
        for _ in range(10):
            await guard.fetchval(f"SELECT n FROM {table}")
        return len(checkouts) <= before + 1

    await until(handed_on)
    pids = {await guard.fetchval(PID) for _ in range(20)}
    async with guard.transaction() as tx:
        await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")

    assert len(pids) == 1
    await guard.execute("SET search_path = nowhere")
    assert await guard.fetchval("SHOW search_path") == '"$user", public'


async def test_a_pool_closes_at_once_though_leases_of_it_are_held(pool, wrap):
    opened, _ = await pool(max_size=4)
    guard = await wrap(opened, hold=3, config=QUIET)
    await asyncio.gather(*(guard.fetchval("SELECT pg_sleep(0.05)") for _ in range(4)))
    assert await guard.fetchval("SELECT 1") == 1

    async with asyncio.timeout(20):
        await opened.close()

    with pytest.raises((asyncpg.InterfaceError, dbguard.NoPrimary), match="closed its pool"):
        await guard.fetchval("SELECT 1")


async def test_closing_the_guard_gives_held_leases_back(pool, wrap):
    opened, _ = await pool(max_size=3)
    guard = await wrap(opened, hold=2)
    await guard.fetchval("SELECT 1")

    await guard.close()

    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(60):
        for _ in range(3):
            con = await stack.enter_async_context(opened.acquire())
            assert await con.fetchval("SELECT 1") == 1


async def test_held_leases_keep_nobody_waiting(pool, wrap):
    opened, _ = await pool(max_size=2)
    guard = await wrap(opened, hold=1, config=QUIET)

    async with opened.acquire(), asyncio.timeout(60):
        values = await asyncio.gather(*(guard.fetchval("SELECT $1::int", n) for n in range(40)))

    assert values == [*range(40)]


async def test_held_leases_are_expired_and_lost_ones_are_replaced(pool, wrap, calm_cluster, until):
    opened, _ = await pool(max_size=3)
    guard = await wrap(opened, hold=2)
    pid = await guard.fetchval(PID)

    calm_cluster.sql("a", "SELECT pg_terminate_backend($1)", pid)
    assert await guard.fetchval(PID) != pid
    pid = await guard.fetchval(PID)
    await guard.expire_connections()

    await until(lambda: not calm_cluster.sql("a", "SELECT FROM pg_stat_activity WHERE pid = $1", pid))
    assert await guard.fetchval("SELECT 1") == 1


async def test_a_pool_closes_soon_though_the_monitor_has_borrowed_of_a_node_that_does_not_answer(binaries, wrap, until):
    with Cluster(replicas=0, binaries=binaries) as cluster:
        async with contextlib.AsyncExitStack() as stack:
            opened = await asyncpg.create_pool(cluster.dsn("a"), min_size=1, max_size=2)
            stack.callback(opened.terminate)
            guard = await wrap(opened, config={"probe": {"interval": 0.05, "timeout": 0.5}})
            await asyncio.to_thread(cluster.freeze, "a")
            stack.callback(cluster.thaw, "a")
            await until(lambda: guard.status().writes != "open")

            async with asyncio.timeout(30):
                await opened.close()


# ---------------------------------------------------------------------- an address that follows the primary


@pytest.mark.parametrize("declared", [True, False], ids=["follows", "fixed"])
async def test_the_connections_of_a_pool_that_follows_the_primary_are_replaced_when_they_lead_to_a_standby(
    calm_cluster, table, declared
):
    leads_to = "b"

    async def connect(*_, **given):
        return await asyncpg.connect(calm_cluster.dsn(leads_to), **given)

    async with contextlib.AsyncExitStack() as stack:
        opened = await asyncpg.create_pool(connect=connect, min_size=2, max_size=4)
        stack.callback(opened.terminate)
        wrapped = dbguard.follows(opened) if declared else opened
        guard = await stack.enter_async_context(dbguard.Guard.wrap(wrapped))
        write = asyncio.ensure_future(
            guard.execute(f"INSERT INTO {table} VALUES (1, 1)", timeout=60 if declared else 2)
        )
        assert await guard.using(role="replica", consistency="eventual").fetchval(WHERE) == "b"

        leads_to = "a"

        if declared:
            assert await write == "INSERT 0 1"
            assert guard.status().primary == "primary"
        else:
            with pytest.raises(dbguard.NoPrimary):
                await write


# ---------------------------------------------------------------------- pools that do not fit


class OfAnotherDriver:
    """As a psycopg_pool: no pool of asyncpg's."""

    def connection(self):
        """Not what is used here."""


async def test_pools_that_cannot_be_wrapped_are_named_with_the_way_out(pool, calm_cluster):
    closed, _ = await pool()
    await closed.close()
    small, _ = await pool(max_size=2)
    unopened = asyncpg.create_pool(calm_cluster.dsn("a"), min_size=1, max_size=2)

    with pytest.raises(TypeError, match=r"primary should be an asyncpg\.Pool, not OfAnotherDriver .*another driver's"):
        dbguard.Guard.wrap(OfAnotherDriver())
    with pytest.raises(dbguard.ConfigError, match="the pool of primary is closed: wrap open pools"):
        dbguard.Guard.wrap(closed)
    for hold, why in ((2, "would leave none .* at most 1"), (-1, "0 or more"), ("x", "0 or more"), (True, "0 or more")):
        with pytest.raises(dbguard.ConfigError, match=why):
            dbguard.Guard.wrap(small, hold=hold)
    with pytest.raises(dbguard.ConfigError, match=r"the pool of primary is not open: await asyncpg\.create_pool"):
        await dbguard.Guard.wrap(unopened).open()


async def test_pools_of_two_clusters_are_refused_by_name(pool, binaries):
    one, _ = await pool(max_size=2)
    with Cluster(replicas=0, binaries=binaries) as other:
        async with asyncpg.create_pool(other.dsn("a"), min_size=1, max_size=2) as two:
            for pools in itertools.permutations((one, two)):
                with pytest.raises(
                    dbguard.ConfigError, match=r"of 2 clusters .*primary: .*replica1: .*a guard for each"
                ):
                    await dbguard.Guard.wrap(pools[0], pools[1:]).open()
