"""What became of a write whose connection was lost: raised as unknown, once, and never written twice."""

from __future__ import annotations

import asyncio
import io

import asyncpg
import pytest

import dbguard
from dbguard.events import OutcomeLeftOpen

KINDS = ["execute", "fetchval", "executemany", "copy", "acquire", "commit", "by-hand", "function", "function-by-hand"]
AT_COMMIT = {"commit", "by-hand", "function", "function-by-hand"}
SLOW = "INSERT INTO {table} SELECT $1, 1 FROM pg_sleep(60)"
"""Each is ended as it sleeps."""


@pytest.fixture
async def guard(calm_cluster, open_guard):
    return await open_guard(calm_cluster, server_settings={"application_name": "doomed"})


@pytest.fixture
def kill(calm_cluster, until):
    """Wait for a backend that runs a statement like this, and terminate it."""

    async def kill(like: str, node: str = "a", wait_event: str = "PgSleep") -> None:
        where = f"application_name = 'doomed' AND wait_event = '{wait_event}' AND query LIKE '%{like}%'"
        await until(lambda: asyncio.to_thread(calm_cluster.terminate_backends, node, where=where))

    return kill


def rows(calm_cluster, table):
    return asyncio.to_thread(calm_cluster.sql, "a", f"SELECT id FROM {table} ORDER BY id")


def judge_unknown(error, guard, events):
    assert isinstance(error, dbguard.OutcomeUnknown)
    assert isinstance(error, asyncpg.PostgresConnectionError)
    assert error.phase == "sent"
    assert error.node.startswith("a (127.0.0.1:")
    assert error.reign == guard.status().reign
    assert error.sent_at is not None
    assert error.token is None
    assert isinstance(error.__cause__, asyncpg.PostgresError | asyncpg.InternalClientError)
    assert guard.status().counts["unknown"] == 1
    assert len([event for event in events if isinstance(event, OutcomeLeftOpen)]) == 1


@pytest.mark.every_postgres
@pytest.mark.parametrize("by", KINDS)
async def test_a_write_in_flight_whose_connection_dies_is_unknown_and_not_repeated(
    calm_cluster, open_guard, until, events, by
):
    table = f"unknown_{by.replace('-', '_')}"
    slow = f"{table}_slow"
    calm_cluster.sql("a", f"CREATE TABLE {table} (id int, n int)")
    if by != "execute":
        calm_cluster.sql(
            "a",
            f"CREATE FUNCTION {slow}() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$",
        )
        calm_cluster.sql(
            "a",
            f"CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON {table} {'DEFERRABLE INITIALLY DEFERRED' if by in AT_COMMIT else ''}"
            f" FOR EACH ROW EXECUTE FUNCTION {slow}()",
        )
    guard = await open_guard(calm_cluster, server_settings={"application_name": "doomed"})
    attempts = []
    insert = f"INSERT INTO {table} VALUES (1, 1)"

    async def write():
        match by:
            case "execute":
                await guard.execute(SLOW.format(table=table), 1)
            case "fetchval":
                await guard.fetchval(insert + " RETURNING id")
            case "executemany":
                await guard.executemany(f"INSERT INTO {table} VALUES ($1, 1)", [(1,)])
            case "copy":
                await guard.copy_to_table(table, source=io.BytesIO(b"1\t1\n"))
            case "acquire":
                async with guard.acquire() as con:
                    await con.execute(insert)
            case "commit":
                async with guard.transaction() as tx:
                    await tx.execute(insert)
            case "function":

                async def fn(tx):
                    attempts.append(tx.attempt)
                    await tx.execute(insert)

                await guard.run_in_transaction(fn)
            case "by-hand":
                async with guard.acquire() as con:
                    await con.execute("BEGIN")
                    await con.execute(insert)
                    await con.execute("COMMIT")
            case "function-by-hand":

                async def ends_it(tx):
                    attempts.append(tx.attempt)
                    await tx.execute(insert)
                    await tx.execute("COMMIT")

                await guard.run_in_transaction(ends_it)

    writing = asyncio.create_task(write())
    where = "application_name = 'doomed' AND wait_event = 'PgSleep'"
    assert await until(lambda: asyncio.to_thread(calm_cluster.terminate_backends, "a", where=where)) == 1
    with pytest.raises(dbguard.OutcomeUnknown) as caught:
        await writing

    judge_unknown(caught.value, guard, events)
    assert attempts in ([], [1])
    assert await rows(calm_cluster, table) in ([], [(1,)])
    await guard.fetchval("SELECT 1")
    assert guard.status().counts["repeats"] == 0
    await guard.close()
    calm_cluster.sql("a", f"DROP TABLE {table}")
    calm_cluster.sql("a", f"DROP FUNCTION IF EXISTS {slow}()")


async def test_a_transaction_function_whose_connection_dies_before_commit_is_repeated(
    calm_cluster, guard, table, kill, events
):
    attempts = []

    async def fn(tx):
        attempts.append(tx.attempt)
        await tx.execute(f"INSERT INTO {table} VALUES ($1, 1)", tx.attempt)
        if tx.attempt == 1:
            await tx.execute("SELECT pg_sleep(60)")
        return tx.attempt

    running = asyncio.create_task(guard.run_in_transaction(fn))
    await kill("pg_sleep(60)")

    assert await running == 2
    assert attempts == [1, 2]
    assert await rows(calm_cluster, table) == [(2,)]
    assert guard.status().counts["unknown"] == 0


async def test_a_block_whose_connection_dies_before_commit_raises_the_drivers_error(calm_cluster, guard, table, kill):
    async def block():
        async with guard.transaction() as tx:
            await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")
            await tx.execute("SELECT pg_sleep(60)")

    running = asyncio.create_task(block())
    await kill("pg_sleep(60)")

    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InternalClientError)) as caught:
        await running
    assert not isinstance(caught.value, dbguard.DbGuardError)
    assert "nothing of this transaction was committed" in "".join(caught.value.__notes__)
    assert await rows(calm_cluster, table) == []
    assert guard.status().counts["unknown"] == 0


async def test_a_block_whose_idle_connection_dies_raises_and_commits_nothing(calm_cluster, guard, table, until):
    async def block():
        async with guard.transaction() as tx:
            await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")
            where = "application_name = 'doomed' AND state = 'idle in transaction'"
            await until(lambda: asyncio.to_thread(calm_cluster.terminate_backends, "a", where=where))
            await until(tx.is_closed)

    with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresConnectionError)) as caught:
        await block()
    assert not isinstance(caught.value, dbguard.OutcomeUnknown)  # its COMMIT was never sent
    assert await rows(calm_cluster, table) == []


async def test_a_read_whose_connection_dies_is_repeated_elsewhere(calm_cluster, open_guard, until):
    guard = await open_guard(calm_cluster, server_settings={"application_name": "doomed"})
    reading = asyncio.create_task(guard.fetchval("SELECT current_setting('cluster_name') FROM pg_sleep(3)"))

    async def kill_it() -> bool:
        where = "application_name = 'doomed' AND wait_event = 'PgSleep'"
        return await asyncio.to_thread(calm_cluster.terminate_backends, "b", where=where) or await asyncio.to_thread(
            calm_cluster.terminate_backends, "c", where=where
        )

    await until(kill_it)

    assert await reading in {"a", "b", "c"}
    assert guard.status().counts["repeats"] == 1
    assert guard.status().counts["unknown"] == 0


async def test_reads_of_a_context_with_an_unknown_write_stay_on_the_primary_until_its_backend_is_gone(
    calm_cluster, guard, table, kill, until
):
    async with guard.causal():
        writing = asyncio.create_task(guard.execute(SLOW.format(table=table), 1))
        await kill("pg_sleep")
        with pytest.raises(dbguard.OutcomeUnknown):
            await writing

        assert await guard.fetchval("SELECT current_setting('cluster_name')") == "a"

        async def on_a_replica() -> bool:
            return await guard.fetchval("SELECT pg_is_in_recovery()")

        await until(on_a_replica)


async def test_a_write_out_of_time_is_unknown_and_its_error_a_time_out(calm_cluster, guard, table, events, until):
    began = asyncio.get_running_loop().time()
    with pytest.raises(dbguard.OutcomeUnknown) as caught:
        await guard.execute(f"INSERT INTO {table} SELECT 1, 1 FROM pg_sleep(4)", timeout=1.0)

    assert asyncio.get_running_loop().time() - began > 0.99
    assert isinstance(caught.value, TimeoutError)
    assert guard.status().counts["unknown"] == 1
    # No cancel request was sent: the backend lives on and commits.
    await until(lambda: asyncio.to_thread(calm_cluster.sql, "a", f"SELECT id FROM {table}"))


async def test_a_commit_whose_wait_for_a_standby_is_cut_short_is_unknown(cluster_factory, open_guard, until):
    cluster = await asyncio.to_thread(cluster_factory, replicas=1, synchronous=True)
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    guard = await open_guard(cluster, server_settings={"application_name": "doomed"})
    await asyncio.to_thread(cluster.stop_node, "b")

    async def cancel() -> bool:
        rows = await asyncio.to_thread(
            cluster.sql,
            "a",
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event = 'SyncRep' AND application_name = 'doomed'",
        )
        return bool(rows)

    async def by_call():
        await guard.execute("INSERT INTO written VALUES (1)")

    async def by_block():
        async with guard.transaction() as tx:
            await tx.execute("INSERT INTO written VALUES (2)")

    async def by_function():
        await guard.run_in_transaction(lambda tx: tx.execute("INSERT INTO written VALUES (3)"))

    async def by_connection():
        async with guard.acquire() as con:
            await con.execute("INSERT INTO written VALUES (4)")

    async def by_hand():
        async with guard.acquire() as con:
            await con.execute("BEGIN; INSERT INTO written VALUES (5)")
            await con.execute("COMMIT")

    async def by_hand_in_a_function():
        async def ends_it(tx):
            await tx.execute("INSERT INTO written VALUES (6)")
            await tx.execute("COMMIT")

        await guard.run_in_transaction(ends_it)

    async def by_copy():
        await guard.copy_records_to_table("written", records=[(7,)])

    for write in (by_call, by_block, by_function, by_connection, by_hand, by_hand_in_a_function, by_copy):
        task = asyncio.create_task(write())
        await until(cancel)
        with pytest.raises(dbguard.OutcomeUnknown):
            await task

    assert guard.status().counts["unknown"] == 7
    assert await asyncio.to_thread(cluster.sql, "a", "SELECT id FROM written") == [(n,) for n in range(1, 8)]


@pytest.mark.parametrize(
    "statement", ["SELECT pg_sleep(60)", "SELECT set_config('work_mem', '5MB', false) FROM pg_sleep(60)", "BEGIN"]
)
async def test_what_lives_and_dies_with_its_session_is_never_of_unknown_fate(calm_cluster, guard, until, statement):
    async def run():
        async with guard.acquire() as con:
            await con.execute(statement)
            await con.execute("SELECT pg_sleep(60)")

    running = asyncio.create_task(run())
    where = "application_name = 'doomed' AND wait_event = 'PgSleep'"
    await until(lambda: asyncio.to_thread(calm_cluster.terminate_backends, "a", where=where))

    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InternalClientError)) as caught:
        await running
    assert not isinstance(caught.value, dbguard.OutcomeUnknown)


@pytest.mark.parametrize("by", ["call", "acquire"])
@pytest.mark.parametrize("query", ["SELEC 1", "INSERT INTO nothing VALUES (1); COMMIT; SELEC 1", "CALL nope()"])
async def test_a_text_that_the_server_refuses_before_it_runs_it_has_applied_no_parts(guard, query, by):
    async with guard.acquire() as con:
        with pytest.raises((asyncpg.PostgresSyntaxError, asyncpg.UndefinedFunctionError)) as caught:
            await (con if by == "acquire" else guard).execute(query)

    assert not getattr(caught.value, "__notes__", ())


@pytest.mark.parametrize("refused", ["SELECT nope()", "INSERT INTO {table} VALUES (1, 1, 1)"])
async def test_what_was_committed_before_a_statement_was_refused_is_applied(calm_cluster, guard, table, refused):
    query = f"INSERT INTO {table} VALUES (1, 1); COMMIT; {refused.format(table=table)}"
    with pytest.raises((asyncpg.PostgresSyntaxError, asyncpg.UndefinedFunctionError)) as caught:
        await guard.execute(query)

    assert "parts may have been applied" in "".join(caught.value.__notes__)
    assert await rows(calm_cluster, table) == [(1,)]


@pytest.mark.parametrize("by", ["call", "acquire"])
@pytest.mark.parametrize("many", [[(1,)], [(1, 1, 1)], [(n, 1) for n in range(20_000)] + [(1,)]])
async def test_arguments_that_the_driver_refuses_are_applied_nowhere(calm_cluster, guard, table, by, many):
    query = f"INSERT INTO {table} VALUES ($1, $2)"
    async with guard.acquire() as con:
        with pytest.raises(asyncpg.InterfaceError, match="the server expects 2 arguments") as caught:
            await (con if by == "acquire" else guard).executemany(query, many)

    assert not getattr(caught.value, "__notes__", ())
    assert await rows(calm_cluster, table) == []


async def test_a_procedure_that_runs_a_text_which_cannot_be_read_may_have_applied_parts(calm_cluster, guard, table):
    await asyncio.to_thread(
        calm_cluster.sql,
        "a",
        f"CREATE PROCEDURE parts_{table}() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO {table} VALUES (1, 1); COMMIT;"
        " EXECUTE 'SELEC 1'; END $$",
    )

    with pytest.raises(asyncpg.PostgresSyntaxError) as caught:
        await guard.execute(f"CALL parts_{table}()")

    assert "parts may have been applied" in "".join(caught.value.__notes__)
    assert await rows(calm_cluster, table) == [(1,)]
    await asyncio.to_thread(calm_cluster.sql, "a", f"DROP PROCEDURE parts_{table}")
