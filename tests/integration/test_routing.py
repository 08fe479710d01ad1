"""Where each statement goes, asked of the servers themselves."""

from __future__ import annotations

import pytest

import dbguard
from dbguard.events import ClassifierMissed

WHERE = "SELECT current_setting('cluster_name')"


@pytest.mark.every_postgres
async def test_a_read_goes_to_a_replica_and_a_write_to_the_primary(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    read_on = {await guard.fetchval(WHERE) for _ in range(50)}
    wrote_on = await guard.fetchval(f"INSERT INTO {table} VALUES (1, 1) RETURNING current_setting('cluster_name')")

    assert read_on == {"b", "c"}
    assert wrote_on == "a"


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("SELECT pg_is_in_recovery(), id FROM {table} FOR UPDATE", id="for-update"),
        pytest.param("SELECT pg_is_in_recovery(), nextval('{table}_s')", id="nextval"),
        pytest.param(
            "WITH new AS (INSERT INTO {table} VALUES (9, 9) RETURNING id) SELECT pg_is_in_recovery() FROM new",
            id="writing-cte",
        ),
        pytest.param("SELECT pg_is_in_recovery(), pg_advisory_xact_lock(1)", id="advisory-lock"),
        pytest.param("EXPLAIN ANALYZE INSERT INTO {table} VALUES (8, 8)", id="explain-analyze"),
        pytest.param("SELECT pg_is_in_recovery() INTO TEMP {table}_copy", id="select-into"),
    ],
)
async def test_what_writes_or_locks_goes_to_the_primary(calm_cluster, open_guard, table, query):
    calm_cluster.sql("a", f"CREATE SEQUENCE IF NOT EXISTS {table}_s OWNED BY {table}.id")
    calm_cluster.sql("a", f"INSERT INTO {table} VALUES (1, 1)")
    guard = await open_guard(calm_cluster)
    query = query.format(table=table)

    rows = await guard.fetch(query)

    assert guard.route(query).node == "a"
    assert guard.status().counts["repeats"] == 0  # no replica was asked first
    assert all(row[0] is False for row in rows if "pg_is_in_recovery" in row)


async def test_sql_that_is_not_understood_goes_to_the_primary(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster)

    assert guard.route("FROBNICATE ALL").node == "a"
    assert guard.route("SELECT no_such_function(1)").node == "a"


async def test_a_definite_write_is_not_lifted_to_a_replica(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    await guard.using(role="replica").execute(f"INSERT INTO {table} VALUES (1, 1)")

    assert calm_cluster.sql("a", f"SELECT count(*) FROM {table}") == [(1,)]


async def test_role_says_where_a_read_goes(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster)

    assert await guard.using(role="primary").fetchval(WHERE) == "a"
    assert await guard.using(role="replica").fetchval(WHERE) in {"b", "c"}
    assert await guard.using(consistency="primary").fetchval(WHERE) == "a"


async def test_acquire_goes_to_the_primary_and_with_role_to_a_replica(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster)

    async with guard.acquire() as con:
        assert con.node == "a"
        assert await con.fetchval(WHERE) == "a"
    async with guard.using(role="replica").acquire() as con:
        assert con.node in {"b", "c"}
        assert await con.fetchval("SELECT pg_is_in_recovery()") is True


async def test_reads_from_primary_keeps_them_there_unless_a_replica_is_asked_for(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster, config={"reads": {"from": "primary"}})

    assert {await guard.fetchval(WHERE) for _ in range(5)} == {"a"}
    assert await guard.using(role="replica").fetchval(WHERE) in {"b", "c"}


async def test_observe_sends_all_to_the_primary_and_counts_what_would_not_go_there(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster, config={"mode": "observe"})

    assert {await guard.fetchval(WHERE) for _ in range(5)} == {"a"}
    assert await guard.using(role="replica").fetchval(WHERE) == "a"
    assert guard.status().counts["would_go_to_replica"] == 6


async def test_no_fit_replica_is_the_primary_or_an_error_by_policy(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster, "a")

    assert await guard.fetchval(WHERE) == "a"
    with pytest.raises(dbguard.NoReplica, match="no replica is fit"):
        await guard.using(fallback="error").fetchval(WHERE)
    assert await guard.using(role="replica").fetchval(WHERE) == "a"
    with pytest.raises(dbguard.NoReplica):
        await guard.using(role="replica", fallback="error").fetchval(WHERE)


async def test_a_read_that_a_replica_refuses_runs_once_on_the_primary_and_is_remembered(
    calm_cluster, open_guard, table, events
):
    calm_cluster.sql(
        "a",
        f"CREATE FUNCTION {table}_really() RETURNS int LANGUAGE plpgsql VOLATILE"
        f" AS 'BEGIN INSERT INTO {table} SELECT coalesce(max(id), 0) + 1 FROM {table}; RETURN 1; END'",
    )
    calm_cluster.sql(
        "a",
        f"CREATE FUNCTION {table}_sneaky() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN {table}_really(); END'",
    )
    for replica in calm_cluster.replicas:
        calm_cluster.wait_for(replica, f"SELECT to_regproc('{table}_sneaky') IS NOT NULL")
    guard = await open_guard(calm_cluster, config={"routing": {"functions": {"read": [f"{table}_sneaky"]}}})
    query = f"SELECT {table}_sneaky()"
    assert guard.route(query).role == "replica"

    first = await guard.fetchval(query)

    assert first == 1
    assert calm_cluster.sql("a", f"SELECT count(*) FROM {table}") == [(1,)]
    missed = [event for event in events if isinstance(event, ClassifierMissed)]
    assert [(event.sqlstate, event.node in {"b", "c"}) for event in missed] == [("25006", True)]
    assert guard.route(query).node == "a"
    await guard.fetchval(query)
    assert calm_cluster.sql("a", f"SELECT count(*) FROM {table}") == [(2,)]
    assert guard.status().counts["misread"] == 1
    assert guard.status().writes == "open"  # it said nothing about the primary
    assert all(node.breaker == "closed" for node in guard.status().nodes)
    calm_cluster.sql("a", f"DROP FUNCTION {table}_sneaky(), {table}_really()")
