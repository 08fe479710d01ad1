"""The application's exceptions reach it unchanged, and dbguard's own match what asyncpg's users catch already."""

from __future__ import annotations

import asyncio
import pickle
import re
import traceback

import asyncpg
import pytest

import dbguard


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    ("query", "args", "kind"),
    [
        pytest.param("INSERT INTO {table} VALUES (1, 1)", (), asyncpg.UniqueViolationError, id="unique"),
        pytest.param("INSERT INTO {table} VALUES (NULL, 1)", (), asyncpg.NotNullViolationError, id="not-null"),
        pytest.param("SELECT * FROM no_such_table", (), asyncpg.UndefinedTableError, id="no-table-read"),
        pytest.param("UPDATE no_such_table SET n = 1", (), asyncpg.UndefinedTableError, id="no-table-write"),
        pytest.param("SELEC 1", (), asyncpg.PostgresSyntaxError, id="syntax"),
        pytest.param("SELECT 1 / (id - 1) FROM {table}", (), asyncpg.DivisionByZeroError, id="division"),
        pytest.param("SELECT $1::int", ("one",), asyncpg.DataError, id="argument-read"),
        pytest.param("UPDATE {table} SET n = $1", ("one",), asyncpg.DataError, id="argument-write"),
        pytest.param("SELECT $1::int", (), asyncpg.InterfaceError, id="argument-missing"),
    ],
)
async def test_asyncpgs_errors_reach_the_caller_unchanged(calm_cluster, open_guard, all_given_back, query, args, kind):
    await asyncio.to_thread(calm_cluster.sql, "a", "DROP TABLE IF EXISTS seen")
    guard = await open_guard(calm_cluster)
    await guard.execute("CREATE TABLE seen (id int PRIMARY KEY, n int)")
    await guard.execute("INSERT INTO seen VALUES (1, 1)")
    plain = await asyncpg.connect(calm_cluster.dsn("a"))
    query = query.format(table="seen")
    with pytest.raises(kind) as expected:
        await plain.fetch(query, *args)
    await plain.close()

    with pytest.raises(kind) as caught:
        await guard.fetch(query, *args)

    assert type(caught.value) is type(expected.value)
    assert str(caught.value) == str(expected.value)
    assert not isinstance(caught.value, dbguard.DbGuardError)
    understood = not isinstance(caught.value, asyncpg.PostgresSyntaxError)
    assert not (understood and getattr(caught.value, "__notes__", []))
    status = guard.status()
    assert status.writes == "open"
    assert status.counts["repeats"] == status.counts["unknown"] == 0
    assert all(node.breaker == "closed" for node in status.nodes)
    await all_given_back(guard)
    await guard.execute("DROP TABLE seen")


async def test_a_statement_error_leaves_the_connection_in_the_pool(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster, min_size=1, max_size=1)
    on_primary = guard.using(role="primary")
    pid = await on_primary.fetchval("SELECT pg_backend_pid()")

    for _ in range(5):
        with pytest.raises(asyncpg.UndefinedTableError):
            await on_primary.fetchval("SELECT * FROM no_such_table")
        with pytest.raises(asyncpg.DataError):
            await on_primary.fetchval("SELECT $1::int", "one")

    assert await on_primary.fetchval("SELECT pg_backend_pid()") == pid


async def test_calls_before_open_and_after_close_raise_guard_closed(calm_cluster, configured):
    guard = dbguard.Guard(configured(calm_cluster))

    async def each_raises():
        for call in (
            lambda: guard.fetchval("SELECT 1"),
            lambda: guard.execute("SELECT 1"),
            lambda: guard.acquire().__aenter__(),
            lambda: guard.transaction().__aenter__(),
            lambda: guard.run_in_transaction(lambda tx: tx.fetchval("SELECT 1")),
            lambda: guard.using(timeout=1).fetchval("SELECT 1"),
            lambda: guard.copy_records_to_table("t", records=[]),
        ):
            with pytest.raises(dbguard.GuardClosed) as caught:
                await call()
            assert isinstance(caught.value, asyncpg.PostgresConnectionError)
            assert isinstance(caught.value, dbguard.NotAttempted)
        with pytest.raises(dbguard.GuardClosed):
            guard.status()

    await each_raises()
    await guard.open()
    assert await guard.fetchval("SELECT 1") == 1
    await guard.close()
    await each_raises()
    await guard.close()  # twice is once


async def test_a_guard_may_be_opened_again(calm_cluster, configured):
    guard = dbguard.Guard(configured(calm_cluster))

    for _ in range(2):
        async with guard:
            assert await guard.fetchval("SELECT 1") == 1


async def test_a_connection_used_after_its_block_says_so(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster)
    async with guard.acquire() as con:
        pass

    with pytest.raises(asyncpg.InterfaceError, match="given back"):
        await con.fetchval("SELECT 1")


async def test_what_dbguard_raises_matches_asyncpgs_connection_error_and_can_be_pickled(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster, "b", settle=False, config={"startup": {"need": "any"}})
    raised = []
    for call in (
        guard.using(timeout=0.1).execute("CREATE TABLE never (id int)"),
        guard.using(writes="fail").execute("CREATE TABLE never (id int)"),
        guard.using(fallback="error", consistency="bounded").fetchval("SELECT 1"),
    ):
        with pytest.raises(asyncpg.PostgresConnectionError) as caught:
            await call
        raised.append(caught.value)

    assert isinstance(raised[0], dbguard.NoPrimary)
    assert isinstance(raised[0], TimeoutError)
    assert isinstance(raised[1], dbguard.NoPrimary)
    assert not isinstance(raised[1], TimeoutError)
    assert isinstance(raised[2], dbguard.NoReplica)  # the only node follows a primary that this guard cannot see
    for error in raised:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        (shown,) = traceback.format_exception_only(error)
        assert re.match(r"dbguard\.No(Primary|Replica): ", shown)


async def test_an_exception_of_a_decoder_is_raised_as_it_is_and_the_write_not_repeated(
    calm_cluster, open_guard, table, all_given_back
):
    class NoDecode(Exception):
        pass

    def refuse(_):
        raise NoDecode

    async def init(con):
        await con.set_type_codec("numeric", encoder=str, decoder=refuse, schema="pg_catalog", format="text")

    guard = await open_guard(calm_cluster, init=init)

    with pytest.raises(NoDecode):
        await guard.fetchval(f"INSERT INTO {table} VALUES (1, 1) RETURNING 1::numeric")

    assert await guard.using(role="primary").fetchval(f"SELECT count(*) FROM {table}") == 1
    await all_given_back(guard)
