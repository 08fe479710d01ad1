"""`Guard.wrap`: the application's own pools, by their public API; they stay its own."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest

import dbguard
from dbguard.drivers.asyncpg.wrapped import WrappedPool
from tests.integration.conftest import PATIENT

WHERE = "SELECT current_setting('cluster_name')"


@pytest.fixture
async def pools():
    """Make pools of the application's, each over one node."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(cluster, *names, **arguments):
            made = []
            for name in names or [node.name for node in cluster.nodes]:
                pool = await asyncpg.create_pool(cluster.dsn(name), **({"min_size": 1, "max_size": 4} | arguments))
                stack.push_async_callback(close, pool)
                made.append(pool)
            return made

        yield make


async def close(pool):
    try:
        await asyncio.wait_for(pool.close(), 20)
    except TimeoutError:
        pool.terminate()
        raise


@pytest.fixture
async def wrap(events, settled):
    async with contextlib.AsyncExitStack() as stack:

        async def make(primary, *replicas, settle=True, **config):
            guard = dbguard.Guard.wrap(primary, replicas, config=PATIENT | config, on_event=events.append)
            await guard.open()
            stack.push_async_callback(guard.close, timeout=1.0)
            if settle:
                await settled(guard)
            return guard

        yield make


@pytest.mark.every_postgres
async def test_wrapped_pools_are_routed_to(calm_cluster, pools, wrap, table):
    guard = await wrap(*await pools(calm_cluster))

    assert {await guard.fetchval(WHERE) for _ in range(20)} == {"b", "c"}
    async with guard.causal():
        await guard.execute(f"INSERT INTO {table} VALUES (1, 1)")
        assert await guard.fetchval(f"SELECT n FROM {table}") == 1
    async with guard.transaction() as tx:
        assert tx.node == "primary"
        await tx.execute(f"INSERT INTO {table} VALUES (2, 2)")
        async with tx.transaction():
            await tx.execute(f"INSERT INTO {table} VALUES (3, 3)")
    assert await guard.run_in_transaction(lambda tx: tx.fetchval(f"SELECT count(*) FROM {table}")) == 3


async def test_roles_are_found_out_whatever_the_pools_are_called(calm_cluster, pools, wrap):
    a, b, c = await pools(calm_cluster)

    guard = await wrap(b, a, c)

    assert guard.status().primary == "replica1"
    assert await guard.using(role="primary").fetchval(WHERE) == "a"


async def test_leaving_a_block_after_a_swallowed_error_raises_on_wrapped_pools_too(calm_cluster, pools, wrap, table):
    guard = await wrap(*await pools(calm_cluster))

    async def swallow(tx):
        await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")
        with pytest.raises(asyncpg.UniqueViolationError):
            await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")

    async def block():
        async with guard.transaction() as tx:
            await swallow(tx)

    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await block()
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await guard.run_in_transaction(swallow)
    assert await guard.using(role="primary").fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_hooks_run_per_checkout_and_nothing_is_held(calm_cluster, pools, wrap, all_given_back):
    ran = []

    async def setup(con):
        ran.append("setup")
        await con.execute(f"SET my.checkout = '{len(ran)}'")

    async def reset(con):
        ran.append("reset")
        await con.execute("RESET ALL")

    (pool,) = await pools(calm_cluster, "a", setup=setup, reset=reset, max_size=1)
    guard = await wrap(pool)

    seen = [int(await guard.fetchval("SELECT current_setting('my.checkout')")) for _ in range(10)]

    assert seen == sorted(set(seen))
    assert ran[:2] == ["setup", "reset"]
    assert len(ran) >= 20
    await all_given_back(guard)
    async with asyncio.timeout(20):
        assert await pool.fetchval("SELECT 1") == 1  # the guard holds none


@pytest.mark.parametrize("left", ["SET ROLE pg_monitor", "CREATE TEMP TABLE mine ()", "PREPARE mine AS SELECT 1"])
async def test_what_the_pools_own_reset_leaves_behind_is_not_seen_by_the_application(calm_cluster, pools, wrap, left):
    (pool,) = await pools(calm_cluster, "a", max_size=1)
    guard = await wrap(pool)

    await guard.execute(left)

    row = await pool.fetchrow(
        "SELECT current_user::text, to_regclass('pg_temp.mine')::text,"
        " (SELECT count(*) FROM pg_prepared_statements WHERE from_sql AND name = 'mine')"
    )
    assert tuple(row) == ("postgres", None, 0)


async def test_the_application_may_go_on_using_its_pools(calm_cluster, pools, wrap, table):
    a, b, c = await pools(calm_cluster)
    guard = await wrap(a, b, c)

    await asyncio.gather(
        *(guard.fetchval(WHERE) for _ in range(50)),
        *(pool.fetchval("SELECT 1") for pool in (a, b, c) for _ in range(50)),
        *(guard.execute(f"INSERT INTO {table} VALUES ($1, 1)", n) for n in range(20)),
    )

    assert await a.fetchval(f"SELECT count(*) FROM {table}") == 20


async def test_a_connection_that_a_task_still_uses_is_not_handed_on(calm_cluster, pools, wrap):
    primary = await pools(calm_cluster, "a", max_size=1)
    guard = await wrap(*primary)

    with pytest.raises(asyncpg.InterfaceError, match="another operation is in progress"):
        async with guard.acquire() as con:
            await asyncio.gather(con.fetch("SELECT pg_sleep(60)"), con.fetch("SELECT 1"))

    assert await guard.fetchval("SELECT 1", timeout=20) == 1


async def test_closing_the_guard_leaves_the_pools_open(calm_cluster, pools, wrap):
    a, b, c = await pools(calm_cluster)
    guard = await wrap(a, b, c)

    await guard.close()

    with pytest.raises(dbguard.GuardClosed):
        await guard.fetchval("SELECT 1")
    for pool in (a, b, c):
        assert await pool.fetchval("SELECT 1") == 1
        assert not pool.is_closing()


async def test_the_application_may_close_its_pools_at_any_time(calm_cluster, pools, wrap):
    a, b, c = await pools(calm_cluster)
    guard = await wrap(a, b, c, timeout=1.0)
    calls = [asyncio.create_task(guard.fetchval("SELECT 1 FROM pg_sleep(0.05)")) for _ in range(8)]
    await asyncio.sleep(0)

    for pool in (b, c, a):
        await asyncio.wait_for(pool.close(), 20)

    for result in await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20):
        assert result == 1 or isinstance(result, asyncpg.PostgresError | asyncpg.InterfaceError)
    with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresConnectionError)):
        await guard.execute("CREATE TABLE never ()", timeout=0.5)
    await asyncio.wait_for(guard.close(timeout=1), 20)


@pytest.mark.parametrize("known", [False, True], ids=["first call", "probed"])
async def test_calls_say_at_once_that_the_primarys_pool_was_closed(calm_cluster, pools, wrap, until, known):
    (a,) = await pools(calm_cluster, "a")
    guard = await wrap(a)
    await guard.fetchval("SELECT 1")

    await asyncio.wait_for(a.close(), 20)
    if known:
        await until(lambda: guard.status().nodes[0].problem)

    for call in (
        lambda: guard.execute("CREATE TABLE never ()"),
        lambda: guard.fetchval("SELECT 1"),
        lambda: guard.run_in_transaction(lambda tx: tx.execute("CREATE TABLE never ()")),
        lambda: guard.copy_records_to_table("never", records=[(1,)]),
    ):
        with pytest.raises(
            (asyncpg.InterfaceError, dbguard.NoPrimary), match="the application has closed its pool of primary"
        ):
            await asyncio.wait_for(call(), 15)  # below the 30 s of a call


async def test_reads_go_on_when_the_primarys_pool_was_closed(calm_cluster, pools, wrap):
    a, b, c = await pools(calm_cluster)
    guard = await wrap(a, b, c)

    await asyncio.wait_for(a.close(), 20)

    assert {await guard.fetchval(WHERE) for _ in range(20)} <= {"b", "c"}
    with pytest.raises((asyncpg.InterfaceError, dbguard.NoPrimary), match="has closed its pool of primary"):
        await asyncio.wait_for(guard.execute("CREATE TABLE never ()"), 15)


async def test_a_replicas_closed_pool_is_no_error_for_reads(calm_cluster, pools, wrap):
    a, b, c = await pools(calm_cluster)
    guard = await wrap(a, b, c)

    await asyncio.wait_for(b.close(), 20)

    assert {await guard.fetchval(WHERE) for _ in range(20)} <= {"a", "c"}


async def test_a_full_pool_is_waited_for_and_says_nothing_about_its_node(calm_cluster, pools, wrap):
    (pool,) = await pools(calm_cluster, "a", max_size=2)
    guard = await wrap(pool, probe={"interval": 0.05, "timeout": 0.3})
    held = [await pool.acquire() for _ in range(2)]

    for _ in range(5):  # meanwhile probes find no connection to ask over
        with pytest.raises((dbguard.NotAttempted, dbguard.DeadlineExceeded)):
            await guard.fetchval("SELECT 1", timeout=0.2)

    assert guard.status().primary == "primary"
    assert guard.status().writes == "open"
    assert guard.status().nodes[0].breaker == "closed"
    for con in held:
        await pool.release(con)
    assert await guard.fetchval("SELECT 1") == 1


@pytest.mark.every_postgres
async def test_writes_go_to_the_pool_whose_node_is_promoted(cluster, pools, wrap, until, events):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    guard = await wrap(*await pools(cluster))
    await guard.execute("INSERT INTO written VALUES (1)")
    await asyncio.to_thread(cluster.wait_for, "b", "SELECT count(*) = 1 FROM written")

    await asyncio.to_thread(cluster.kill, "a")
    write = asyncio.create_task(guard.execute("INSERT INTO written VALUES (2)"))
    async with guard.causal():
        assert await guard.fetchval(WHERE, timeout=20) in {"b", "c"}
    await asyncio.to_thread(cluster.promote, "b")
    await asyncio.to_thread(cluster.follow, "c", "b")

    assert await asyncio.wait_for(write, 60) == "INSERT 0 1"
    assert guard.status().primary == "replica1"
    assert await asyncio.to_thread(cluster.sql, "b", "SELECT id FROM written") == [(1,), (2,)]


async def test_an_old_primarys_pool_is_fenced(cluster, pools, wrap, until):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    await asyncio.to_thread(cluster.wait_for, "b", "SELECT to_regclass('written') IS NOT NULL")
    guard = await wrap(*await pools(cluster))

    await asyncio.to_thread(cluster.promote, "b")

    await until(lambda: guard.status().primary == "replica1")
    for n in range(10):
        await guard.execute("INSERT INTO written VALUES ($1)", n)
    assert await asyncio.to_thread(cluster.sql, "a", "SELECT count(*) FROM written") == [(0,)]


async def test_a_call_to_a_frozen_node_ends_by_its_deadline_and_leaves_the_pool_usable(cluster, pools, wrap, until):
    a, b, c = await pools(cluster)
    guard = await wrap(a, b, c)
    await asyncio.to_thread(cluster.freeze, "a")
    loop = asyncio.get_running_loop()

    for call in (
        lambda: guard.using(role="primary").fetchval("SELECT 1", timeout=0.5),
        lambda: guard.execute("CREATE TABLE never ()", timeout=0.5),
    ):
        began = loop.time()
        with pytest.raises((TimeoutError, asyncpg.PostgresConnectionError)):
            await call()
        assert loop.time() - began < 15.0
    await asyncio.to_thread(cluster.thaw, "a")

    await until(lambda: guard.status().writes == "open")
    assert await guard.using(role="primary").fetchval(WHERE) == "a"
    assert await a.fetchval(WHERE) == "a"


async def test_a_result_that_is_there_is_not_held_up_by_the_reset_of_a_silent_replica(
    cluster, pools, wrap, until, monkeypatch
):
    monkeypatch.setattr(WrappedPool, "return_within", 60.0)  # so that the silence alone ends it

    def decode(text):
        decoded.set()
        return text

    async def prepare(con):
        await con.set_type_codec("json", encoder=str, decoder=decode, schema="pg_catalog")

    async def reset(con):  # also after probes
        if decoded.is_set():
            await asyncio.to_thread(cluster.freeze, "b")
            await con.fetchval("SELECT 1")

    decoded = asyncio.Event()
    (a,) = await pools(cluster, "a", init=prepare)
    (b,) = await pools(cluster, "b", init=prepare, reset=reset)
    guard = await wrap(a, b, probe={"interval": 0.1, "timeout": 2.0})
    await until(lambda: guard.route(WHERE).node == "replica1")

    async with asyncio.timeout(60):
        assert await guard.using(timeout=120).fetchval(f"SELECT to_json(({WHERE}))") == '"b"'
    assert guard.status().counts["repeats"] == 0

    await asyncio.to_thread(cluster.thaw, "b")


def test_what_has_no_meaning_for_wrapped_pools_is_refused():
    for key in ("nodes", "dsn", "connection"):
        with pytest.raises(dbguard.ConfigError, match=key):
            dbguard.Guard.wrap(object(), config={key: {}})


def test_what_is_no_pool_is_named():
    with pytest.raises(TypeError, match=r"primary should be an asyncpg.Pool, not str; `dbguard.connect` takes a DSN"):
        dbguard.Guard.wrap("postgresql://db1/shop")


async def test_wrong_arguments_beside_pools_are_named(calm_cluster, pools):
    (one,) = await pools(calm_cluster, "a")

    with pytest.raises(TypeError, match=r"replica1 should be an asyncpg\.Pool"):
        dbguard.Guard.wrap(one, [None])
    with pytest.raises(TypeError, match="replicas= is a list"):
        dbguard.Guard.wrap(one, one)
    with pytest.raises(dbguard.ConfigError, match="replica1 is the same pool as primary"):
        dbguard.Guard.wrap(one, [one])
    with pytest.raises(dbguard.ConfigError, match="mapping of sections"):
        dbguard.Guard.wrap(one, config="guard.yaml")
