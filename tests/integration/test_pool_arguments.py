"""Every argument of `asyncpg.create_pool` does for a guard's own pools what it does for a pool."""

from __future__ import annotations

import asyncio
import inspect
import json
import time

import asyncpg
import pytest

import dbguard

PID = "SELECT pg_backend_pid()"


async def test_init_runs_once_per_connection(calm_cluster, open_guard):
    seen = []

    async def init(con):
        seen.append(await con.fetchval(PID))
        await con.set_type_codec("json", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    guard = await open_guard(calm_cluster, "a", init=init, min_size=1, max_size=1)

    for _ in range(5):
        assert await guard.fetchval("SELECT $1::json", {"a": [1, 2]}) == {"a": [1, 2]}
    assert seen == [await guard.fetchval(PID)]


async def test_what_init_did_outlives_a_reset(calm_cluster, open_guard):
    async def init(con):
        await con.set_type_codec("json", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        await con.execute("SET ROLE pg_monitor")

    guard = await open_guard(calm_cluster, "a", init=init, min_size=1, max_size=1)

    for statement in ("SET work_mem = '5MB'", "SET ROLE postgres", "RESET ROLE", "CREATE TEMP TABLE gone ()"):
        await guard.execute(statement)
        assert await guard.fetchval("SELECT current_user::text") == "pg_monitor", statement
        assert await guard.fetchval("SELECT '[1]'::json") == [1]


async def test_setup_and_reset_run_at_every_checkout_and_return(calm_cluster, open_guard, until):
    ran = []

    async def setup(con):
        ran.append("setup")
        await con.execute(f"SET my.checkout = '{len(ran)}'")

    async def reset(con):
        ran.append("reset")
        await con.execute("RESET ALL")

    guard = await open_guard(calm_cluster, "a", setup=setup, reset=reset, min_size=1, max_size=1)
    seen = [int(await guard.fetchval("SELECT current_setting('my.checkout')")) for _ in range(3)]
    async with guard.transaction() as tx:
        seen.append(int(await tx.fetchval("SELECT current_setting('my.checkout')")))
    await until(lambda: ran[-1] == "reset")

    assert seen == list(range(seen[0], seen[0] + 8, 2))  # a setup and a reset lie between two checkouts
    assert ran == ["setup", "reset"] * (len(ran) // 2)


async def test_what_a_hook_raises_reaches_the_caller_and_leaves_no_lease_out(calm_cluster, open_guard, all_given_back):
    class Refused(Exception):
        pass

    refusing = False

    async def setup(con):
        if refusing:
            raise Refused

    guard = await open_guard(calm_cluster, "a", setup=setup, min_size=1, max_size=1)

    for refusing in (True, False, True, False):
        if refusing:
            with pytest.raises(Refused):
                await guard.fetchval("SELECT 1")
        else:
            assert await guard.fetchval("SELECT 1") == 1
    await all_given_back(guard)
    assert guard.status().nodes[0].breaker == "closed"


async def test_server_settings_reach_every_session(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster, server_settings={"application_name": "shop", "work_mem": "7MB"})

    for role in ("primary", "replica"):
        row = await guard.using(role=role).fetchrow(
            "SELECT current_setting('application_name'), current_setting('work_mem')"
        )
        assert tuple(row) == ("shop", "7MB")


async def test_record_class_and_connection_class_are_the_applications(calm_cluster, open_guard):
    class Row(asyncpg.Record):
        def __getattr__(self, name):
            return self[name]

    class Shop(asyncpg.Connection):
        async def twice(self, n):
            return await self.fetchval("SELECT 2 * $1::int", n)

    guard = await open_guard(calm_cluster, record_class=Row, connection_class=Shop)

    assert (await guard.fetchrow("SELECT 7 AS seven")).seven == 7
    async with guard.acquire() as con:
        assert (await con.fetchrow("SELECT 7 AS seven")).seven == 7
        assert isinstance(con.raw, Shop | asyncpg.pool.PoolConnectionProxy)
        assert await con.raw.twice(21) == 42
    with_own = await guard.fetch("SELECT 7 AS seven", record_class=Row)
    assert type(with_own[0]) is Row


@pytest.mark.parametrize("kind", ["function", "coroutine"])
async def test_a_password_may_be_a_function_that_is_asked_at_each_connect(cluster_factory, open_guard, kind):
    cluster = await asyncio.to_thread(cluster_factory, replicas=0, password="p@ss/w:rd#1%")
    asked = []

    def plain():
        asked.append(1)
        return "p@ss/w:rd#1%"

    async def slow():
        return plain()

    guard = await open_guard(cluster, password=plain if kind == "function" else slow, min_size=0)
    before = len(asked)
    for _ in range(2):
        await guard.expire_connections()
        assert await guard.fetchval("SELECT 1") == 1

    assert len(asked) >= before + 2


async def test_command_timeout_ends_a_statement(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster, "a", command_timeout=2.0, config={"retry": {"attempts": 1}})
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        await guard.using(timeout=50.0, role="primary").fetchval("SELECT pg_sleep(60)")

    assert time.monotonic() - began < 30.0, "it was ended by the call's deadline"

    assert await guard.fetchval("SELECT 1") == 1


async def test_statement_cache_size_zero_keeps_no_statement(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster, "a", statement_cache_size=0, min_size=1, max_size=1)
    for n in range(3):
        await guard.fetchval("SELECT $1::int", n)

    assert await guard.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") <= 1


async def test_connect_is_the_applications(calm_cluster, open_guard):
    dialled = []

    async def connect(*args, **kwargs):
        dialled.append(kwargs["port"])
        return await asyncpg.connect(*args, **kwargs)

    guard = await open_guard(calm_cluster, connect=connect)

    assert await guard.fetchval("SELECT 1") == 1
    assert set(dialled) == {node.port for node in calm_cluster.nodes}


async def test_max_size_bounds_connections_and_waiting_callers_get_their_turn(calm_cluster, open_guard, all_given_back):
    guard = await open_guard(calm_cluster, "a", min_size=0, max_size=2)
    await all_given_back(guard)

    pids = await asyncio.gather(*(guard.fetchval("SELECT pg_backend_pid() FROM pg_sleep(0.01)") for _ in range(20)))

    assert len(set(pids)) <= 2


async def test_min_size_connections_are_there_once_opened(calm_cluster, open_guard):
    await open_guard(calm_cluster, "a", min_size=4, max_size=8, server_settings={"application_name": "warm"})

    ((n,),) = calm_cluster.sql("a", "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'warm'")
    assert 5 <= n <= 6  # the monitor's own comes on top, and perhaps one that reads the catalogue


@pytest.mark.parametrize("name", sorted(set(inspect.signature(asyncpg.connect).parameters) - {"host", "port"}))
async def test_every_argument_of_connect_is_passed_on(calm_cluster, name):
    class Seen(Exception):
        pass

    given = {}

    async def connect(*args, **kwargs):
        given.update(kwargs)
        raise Seen

    value = {"server_settings": {"work_mem": "7MB"}}.get(name, object())
    config = {"nodes": [{"host": "127.0.0.1", "port": calm_cluster.node("a").port}], "startup": {"wait": "0s"}}
    guard = dbguard.Guard(config, connect=connect, **{name: value})
    if name in ("loop", "connection_class", "record_class"):
        return  # the pool's own
    with pytest.raises(dbguard.NoPrimary):
        await guard.open()

    if name == "server_settings":
        assert given[name]["work_mem"] == "7MB"
    elif name not in ("timeout", "command_timeout"):  # the monitor has its own
        assert given[name] is value


def test_setting_given_as_an_argument_is_told_where_it_belongs():
    with pytest.raises(
        dbguard.ConfigError, match=r"failover is no argument .*: it is a setting, such as .*'failover': "
    ):
        dbguard.connect("postgresql://db1/shop", failover={"max_wait": 1})
