"""What texts alone cannot tell: a replica's refusal, and the live catalogue, which follows DDL."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest

import dbguard
from dbguard.events import ClassifierMissed
from dbguard.testing.wire import Break, Wire

REFUSED = {
    "25006": "PERFORM nextval('{name}_s')",
    "XX000": "PERFORM pg_logical_emit_message(false, 'dbguard', 'x')",
    "55000": "PERFORM pg_current_wal_lsn()",
}


@pytest.fixture
def name(calm_cluster, table):
    """The name of a function, dropped at the end."""
    yield f"{table}_f"
    for (signature,) in calm_cluster.sql(
        "a", f"SELECT oid::regprocedure::text FROM pg_proc WHERE proname IN ('{table}_f', '{table}_f_really')"
    ):
        calm_cluster.sql("a", f"DROP FUNCTION {signature} CASCADE")


def create(cluster, name, body, volatility, returns="int"):
    cluster.sql(
        "a",
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS {returns} LANGUAGE plpgsql {volatility}"
        f" AS $$ BEGIN {body}; RETURN 1; END $$",
    )
    for replica in cluster.replicas:
        cluster.wait_for(replica, f"SELECT to_regproc('{name}') IS NOT NULL")


@pytest.mark.parametrize("sqlstate", REFUSED)
async def test_whatever_a_replica_refuses_runs_once_on_the_primary_and_is_remembered(
    calm_cluster, open_guard, events, table, name, sqlstate
):
    calm_cluster.sql("a", f"CREATE SEQUENCE {table}_calls OWNED BY {table}.id")
    calm_cluster.sql("a", f"CREATE SEQUENCE {name}_s OWNED BY {table}.id")
    # Not volatile, so that the catalogue trusts it; it counts its runs on the primary by a sequence.
    body = f"{REFUSED[sqlstate].format(name=name)}; PERFORM nextval('{table}_calls')"
    create(calm_cluster, name, body, "STABLE")
    guard = await open_guard(calm_cluster)
    query = f"SELECT {name}()"
    assert guard.route(query).role == "replica"

    assert await guard.fetchval(query) == 1

    assert calm_cluster.sql("a", f"SELECT last_value, is_called FROM {table}_calls") == [(1, True)]
    missed = [event for event in events if isinstance(event, ClassifierMissed)]
    assert [(event.sqlstate, event.node in {"b", "c"}) for event in missed] == [(sqlstate, True)]
    route = guard.route(query)
    assert route.node == "a"
    assert set(route.others.values()) == {"a replica has refused this text as a write"}

    assert await guard.fetchval(query) == 1

    assert calm_cluster.sql("a", f"SELECT last_value FROM {table}_calls") == [(2,)]
    assert guard.status().counts["misread"] == 1
    assert len([event for event in events if isinstance(event, ClassifierMissed)]) == 1
    assert guard.status().writes == "open"
    assert all(node.breaker == "closed" for node in guard.status().nodes)


async def test_an_unlogged_table_is_read_on_the_primary(calm_cluster, open_guard, events, table):
    calm_cluster.sql("a", f"ALTER TABLE {table} SET UNLOGGED")
    calm_cluster.sql("a", f"INSERT INTO {table} VALUES (1, 7)")
    for replica in calm_cluster.replicas:
        calm_cluster.wait_for(replica, f"SELECT relpersistence = 'u' FROM pg_class WHERE relname = '{table}'")
    guard = await open_guard(calm_cluster)

    first = await guard.fetchval(f"SELECT n FROM {table}")
    second = await guard.fetchval(f"SELECT n FROM {table}")

    assert (first, second) == (7, 7)
    assert [event.sqlstate for event in events if isinstance(event, ClassifierMissed)] == ["0A000"]
    assert guard.status().counts["misread"] == 1
    assert guard.route(f"SELECT n FROM {table}").node == "a"


async def test_planning_runs_what_lies_about_its_volatility_and_no_replica_or_session_keeps_anything_of_it(
    calm_cluster, open_guard, events, name
):
    lies = "PERFORM set_config('app.planned', 'yes', false); PERFORM pg_advisory_lock(4711)"
    create(calm_cluster, name, lies, "IMMUTABLE")
    guard = await open_guard(calm_cluster)
    left = (
        "SELECT coalesce(current_setting('app.planned', true), ''),"
        " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711)"
    )

    for _ in range(8):
        await guard.execute(f"EXPLAIN SELECT {name}()")

    assert guard.route(f"EXPLAIN SELECT {name}()").role == "replica"
    async with asyncio.timeout(60):  # sessions are reset after the calls, in the background
        while {tuple(await guard.fetchrow(left)) for _ in range(16)} != {("", 0)}:
            pass
    assert not [event for event in events if isinstance(event, ClassifierMissed)]


async def test_planning_that_writes_is_refused_by_a_replica_and_remembered(calm_cluster, open_guard, table, name):
    create(calm_cluster, f"{name}_really", f"INSERT INTO {table} SELECT count(*) FROM {table}", "VOLATILE")
    create(calm_cluster, name, f"PERFORM {name}_really()", "IMMUTABLE")
    guard = await open_guard(calm_cluster)

    await guard.execute(f"EXPLAIN SELECT {name}()")

    assert guard.status().counts["misread"] == 1
    assert guard.route(f"EXPLAIN SELECT {name}()").node == "a"


@pytest.mark.parametrize(
    "ddl",
    [
        pytest.param(
            "CREATE OR REPLACE FUNCTION {name}() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 2'", id="replaced"
        ),
        pytest.param("ALTER FUNCTION {name}() VOLATILE", id="altered"),
        pytest.param("CREATE FUNCTION {name}(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 2'", id="an-overload"),
    ],
)
async def test_a_function_is_trusted_until_ddl_makes_it_volatile(calm_cluster, open_guard, until, name, ddl):
    create(calm_cluster, name, "NULL", "STABLE")
    guard = await open_guard(calm_cluster)
    query = f"SELECT {name}(), current_setting('cluster_name') AS node"
    assert (await guard.fetchrow(query))["node"] in {"b", "c"}

    await guard.execute(ddl.format(name=name))

    await until(lambda: guard.route(query).kind.value == "write")
    assert (await guard.fetchrow(query))["node"] == "a"


async def test_a_new_function_is_trusted_as_soon_as_the_catalogue_has_been_read(calm_cluster, open_guard, until, name):
    guard = await open_guard(calm_cluster)
    assert guard.route(f"SELECT {name}()").kind.value == "unknown"

    await guard.execute(f"CREATE FUNCTION {name}() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'")

    await until(lambda: guard.route(f"SELECT {name}()").kind.value == "read")


async def test_a_view_over_a_volatile_function_is_no_read_after_its_ddl(calm_cluster, open_guard, until, table, name):
    create(calm_cluster, name, "NULL", "VOLATILE")
    guard = await open_guard(calm_cluster)

    await guard.execute(f"CREATE VIEW {table}_v AS SELECT {name}() AS n")

    tainted = f"reading {table}_v may run a volatile function"
    await until(lambda: guard.route(f"SELECT n FROM {table}_v").because == tainted)
    assert guard.route(f"SELECT n FROM {table}_v").node == "a"


async def test_a_function_in_postgresqls_own_name_fools_nobody(calm_cluster, open_guard, until):
    calm_cluster.sql("a", "CREATE SCHEMA learning_early")
    path = {"connection": {"server_settings": {"search_path": "learning_early, pg_catalog, public"}}}
    guard = await open_guard(calm_cluster, config=path)
    assert guard.route("SELECT upper('a')").kind.value == "read"

    await guard.execute("CREATE FUNCTION learning_early.upper(text) RETURNS text LANGUAGE sql VOLATILE AS 'SELECT $1'")

    await until(lambda: guard.route("SELECT upper('a')").kind.value == "write")
    assert guard.route("SELECT pg_catalog.upper('a')").kind.value == "read"
    await guard.execute("DROP SCHEMA learning_early CASCADE")
    await until(lambda: guard.route("SELECT upper('a')").kind.value == "read")


@contextlib.asynccontextmanager
async def unreadable(cluster):
    """Let the catalogue not be read meanwhile: a relation that nothing else needs is locked."""
    con = await asyncpg.connect(cluster.dsn("a"))
    try:
        async with con.transaction():
            await con.execute("LOCK TABLE pg_policy IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await con.close()


@pytest.fixture
def writing_view(calm_cluster, table, name):
    """A view whose reading writes into *table*."""
    create(calm_cluster, name, f"INSERT INTO {table} SELECT 1 + count(*) FROM {table}", "VOLATILE")
    calm_cluster.sql("a", f"CREATE VIEW {table}_v AS SELECT {name}() AS n")
    for replica in calm_cluster.replicas:
        calm_cluster.wait_for(replica, f"SELECT to_regclass('{table}_v') IS NOT NULL")
    return f"{table}_v"


async def in_a_call(guard, query):
    return await guard.execute(query)


async def on_a_connection(guard, query):
    async with guard.acquire() as con:
        return await con.execute(query)


@pytest.mark.parametrize("run", [in_a_call, on_a_connection])
async def test_until_the_catalogue_was_read_no_read_of_a_relation_is_sent_twice_to_the_primary(
    calm_cluster, until, table, writing_view, run
):
    def rows():
        return calm_cluster.sql("a", f"SELECT count(*) FROM {table}")[0][0]

    async with Wire("127.0.0.1", calm_cluster.primary.port) as wire:
        config = {
            "nodes": [{"name": "a", "host": "127.0.0.1", "port": wire.port}],
            "connection": {"user": "postgres", "database": "postgres"},
        }
        async with unreadable(calm_cluster), dbguard.connect(config) as guard:
            await guard.fetchval("SELECT 1")
            wire.arm(f"FROM {writing_view}".encode(), Break.ACK_CUT)

            with pytest.raises(dbguard.OutcomeUnknown):
                await run(guard, f"SELECT n FROM {writing_view}")

            await until(lambda: rows() == 1)
            wire.arm(b"SELECT 2 AS nothing", Break.ACK_CUT)
            assert await guard.execute("SELECT 2 AS nothing") == "SELECT 1", "what reads no relation is sent again"
            assert wire.struck == 2


async def test_until_the_catalogue_was_read_replicas_serve_reads_and_reads_go_on_when_one_is_lost(
    calm_cluster, open_guard, writing_view, table, monkeypatch
):
    monkeypatch.setattr("dbguard.refresh.FIRST_WITHIN", 0.5)  # it is not read before this test is over
    async with unreadable(calm_cluster), Wire("127.0.0.1", calm_cluster.node("b").port) as wire:
        guard = await open_guard(
            calm_cluster,
            config={
                "nodes": [
                    {"name": "a", "host": "127.0.0.1", "port": calm_cluster.node("a").port},
                    {"name": "b", "host": "127.0.0.1", "port": wire.port},
                ]
            },
        )
        query = f"SELECT count(*) FROM {table}"
        assert guard.route(query).node == "b"
        wire.arm(query.encode(), Break.ACK_CUT)

        assert await guard.execute(query) == "SELECT 1"

        assert wire.struck == 1
        assert await guard.fetchrow(f"SELECT n FROM {writing_view}"), (
            "a replica refuses what writes, the primary runs it"
        )
