"""What a statement's text does not show: writes of views and functions, transactions that failed or ended unseen.

None of it may be sent twice, be called applied when it was not or the other way round, or be missed by the next read.
"""

from __future__ import annotations

import asyncio
import itertools

import asyncpg
import pytest

import dbguard
from dbguard.drivers import outcome_sql
from dbguard.testing.wire import Break, Wire

BIND = b"B\x00\x00"
"""How the message begins that runs a prepared statement through asyncpg's unnamed portal."""

OBJECTS = (
    "CREATE TABLE heard (what text)",
    """CREATE FUNCTION hear(what text) RETURNS int LANGUAGE plpgsql VOLATILE AS
    $$BEGIN INSERT INTO heard VALUES (what); RETURN 1; END$$""",
    "CREATE VIEW loud AS SELECT id, hear('loud') AS x FROM item",
    "CREATE FUNCTION sly(what text) RETURNS int LANGUAGE plpgsql STABLE AS $$BEGIN RETURN hear(what); END$$",
    "CREATE TABLE grown (id int)",
)

_numbers = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def objects(home):
    for statement in (*OBJECTS, "GRANT ALL ON heard, loud, grown TO app"):
        home.sql("a", statement)
    yield
    home.sql("a", "DROP TABLE heard, grown CASCADE")
    home.sql("a", "DROP VIEW loud")
    home.sql("a", "DROP FUNCTION hear, sly")


@pytest.fixture
async def wire(home):
    async with Wire("127.0.0.1", home.node("a").port) as wire:
        yield wire
        wire.heal()


@pytest.fixture
async def opened(wire, until):
    """A guard through the wire that knows the catalogue; with what is said of `outcome`, its writes carry tokens."""
    guards = []

    async def make(**outcome):
        sections = {"outcome": {"resolve": "token-table", **outcome}} if outcome else {}
        config = {
            "nodes": [{"host": "127.0.0.1", "port": wire.port, "name": "a"}],
            "connection": {"user": "app", "database": "postgres"},
            "timeout": "20s",
            "probe": {"timeout": "3s"},
            **sections,
        }
        guard = dbguard.Guard(config)
        await guard.open()
        guards.append(guard)
        await until(lambda: knows_the_catalogue(guard))
        return guard

    yield make
    for guard in guards:
        await guard.close(timeout=0.5)


def knows_the_catalogue(guard):
    return not guard._core.texts.knowledge.unsure


def looked(cluster, query, *args, node="a"):
    return asyncio.to_thread(cluster.sql, node, query, *args)


async def heard(cluster, what):
    return (await looked(cluster, "SELECT count(*) FROM heard WHERE what = $1", what))[0][0]


async def test_rows_locked_through_a_view_that_writes_are_not_locked_twice(home, opened, wire, item):
    guard = await opened()
    number = await item(home)
    query = "SELECT id, x FROM loud WHERE id = $1 FOR UPDATE"
    await guard.fetch(query, number)
    before = await heard(home, "loud")
    wire.arm(BIND, Break.ACK_CUT)

    with pytest.raises(dbguard.OutcomeUnknown):
        await guard.fetch(query, number)

    assert wire.struck == 1
    assert await heard(home, "loud") == before + 1


@pytest.mark.parametrize("tokens", [False, True], ids=["plain", "tokens"])
async def test_a_function_that_reads_a_view_that_writes_is_not_run_twice(home, opened, wire, item, tokens):
    guard = await (opened(reserve="2s") if tokens else opened())
    number = await item(home)

    async def fn(tx):
        return await tx.fetch("SELECT id, x FROM loud WHERE id = $1", number)

    await guard.run_in_transaction(fn)
    before = await heard(home, "loud")
    wire.arm(b"COMMIT", Break.ACK_CUT)

    if tokens:
        assert len(await guard.run_in_transaction(fn)) == 1
    else:
        with pytest.raises(dbguard.OutcomeUnknown):
            await guard.run_in_transaction(fn)

    assert wire.struck == 1
    assert await heard(home, "loud") == before + 1


async def test_a_function_whose_connection_was_lost_before_commit_is_repeated(home, opened, until):
    guard = await opened()
    what = f"lost {next(_numbers)}"

    async def fn(tx):
        await tx.execute("INSERT INTO heard VALUES ($1)", what)
        if tx.attempt == 1:
            await looked(home, "SELECT pg_terminate_backend($1)", tx.get_server_pid())
            await until(tx.is_closed)
        return tx.attempt

    assert await guard.run_in_transaction(fn) == 2
    assert await heard(home, what) == 1


async def test_what_a_block_commits_after_its_own_rollback_is_not_called_undone(home, opened, wire, item):
    guard = await opened(reserve="2s")
    number = await item(home)
    wire.arm(b"COMMIT", Break.REQUEST_CUT)

    async def block():
        async with guard.transaction() as tx:
            await tx.execute("ROLLBACK")
            await tx.execute("UPDATE item SET n = n + 1 WHERE id = $1", number)

    with pytest.raises(dbguard.OutcomeUnknown):
        await block()

    assert wire.struck == 1
    assert (await looked(home, "SELECT n FROM item WHERE id = $1", number))[0][0] == 1


async def test_what_a_function_commits_by_itself_is_not_called_undone_when_its_time_ends(home, opened):
    guard = await opened()
    what = f"own commit {next(_numbers)}"

    async def fn(tx):
        await tx.execute("INSERT INTO heard VALUES ($1)", what)
        await tx.execute("COMMIT")
        await asyncio.Event().wait()

    with pytest.raises(dbguard.OutcomeUnknown):
        await guard.run_in_transaction(fn, timeout=3.0)

    assert await heard(home, what) == 1


async def test_a_statement_in_a_block_of_ours_is_planned_anew_as_without(home, opened):
    guard = await opened(keep_result=True)
    query = "INSERT INTO grown VALUES ($1) RETURNING *"
    await guard.fetch(query, 1)
    await looked(home, "ALTER TABLE grown ADD COLUMN more int")

    assert [tuple(row) for row in await guard.fetch(query, 2)] == [(2, None)]
    assert (await looked(home, "SELECT count(*) FROM grown WHERE id = 2"))[0][0] == 1


# ---------------------------------------------------------------------- over a pool of the application's


async def torn():
    yield b"1\t1\n"
    raise ValueError("the application's own")


@pytest.mark.parametrize("way", ["block", "function"])
async def test_a_transaction_that_a_torn_copy_has_failed_is_not_called_committed(home, way):
    what = f"torn {next(_numbers)}"

    async def fn(tx):
        await tx.execute("INSERT INTO heard VALUES ($1)", what)
        with pytest.raises(ValueError, match="own"):
            await tx.copy_to_table("item", source=torn())

    async def block(guard):
        async with guard.transaction() as tx:
            await fn(tx)

    async with (
        asyncpg.create_pool(home.dsn("a"), min_size=1, max_size=3) as pool,
        dbguard.Guard.wrap(primary=pool) as guard,
    ):
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await (guard.run_in_transaction(fn) if way == "function" else block(guard))

    assert await heard(home, what) == 0


# ---------------------------------------------------------------------- with a replica


@pytest.fixture
async def behind(cluster):
    """A cluster whose replica stands still, with the objects of this page."""
    await looked(cluster, "CREATE TABLE item (id int PRIMARY KEY, n int)")
    for statement in OBJECTS:
        await looked(cluster, statement)
    await asyncio.to_thread(cluster.wait_for, "b", "SELECT to_regclass('grown') IS NOT NULL")
    return cluster


async def test_what_a_replica_has_refused_is_a_write_from_then_on(behind, open_guard, until):
    async with Wire("127.0.0.1", behind.node("a").port) as wire:
        guard = await open_guard(
            behind,
            config={
                "nodes": [
                    {"name": "a", "host": "127.0.0.1", "port": wire.port},
                    {"name": "b", "host": "127.0.0.1", "port": behind.node("b").port},
                ]
            },
        )
        await until(lambda: knows_the_catalogue(guard))
        query, count = "SELECT sly('refused')", "SELECT count(*) FROM heard WHERE what = 'refused'"
        await guard.fetchval(query)
        assert guard.status().counts["misread"] == 1
        wire.arm(BIND, Break.ACK_CUT)

        with pytest.raises(dbguard.OutcomeUnknown):
            await guard.fetchval(query)

        assert wire.struck == 1
        assert (await looked(behind, count))[0][0] == 2

        await until(lambda: guard.route(count).node == "b")
        await looked(behind, "SELECT pg_wal_replay_pause()", node="b")
        await guard.fetchval(query)
        assert await guard.fetchval(count) == 3


async def test_what_was_written_on_the_drivers_own_connection_is_seen(behind, open_guard, until):
    guard = await open_guard(behind, "a", "b")
    count = "SELECT count(*) FROM heard WHERE what = 'raw'"

    async with guard.acquire() as con:
        raw = con.raw
        await until(lambda: guard.route(count).node == "b")
        await looked(behind, "SELECT pg_wal_replay_pause()", node="b")
        await raw.execute("INSERT INTO heard VALUES ('raw')")

    assert await guard.fetchval(count) == 1


async def test_a_standby_that_is_asked_for_later_is_waited_for_by_old_connections(behind, open_guard, until):
    guard = await open_guard(behind, "a", "b")
    await guard.execute("INSERT INTO heard VALUES ('before')")
    await looked(behind, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    await looked(behind, "SELECT pg_reload_conf()")
    await until(lambda: guard._core.engine.state.primary.view.synchronous)

    writing = asyncio.create_task(guard.execute("INSERT INTO heard VALUES ('after')"))
    waits = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    rows = await until(lambda: looked(behind, waits))
    await looked(behind, "SELECT pg_cancel_backend($1)", rows[0][0])

    with pytest.raises(dbguard.OutcomeUnknown):
        await writing


@pytest.mark.parametrize("tokens", [False, True], ids=["plain", "tokens"])
async def test_a_read_after_an_unknown_outcome_sees_what_the_primary_has(behind, open_guard, until, tokens):
    """The replica stands still: a check there would miss the write, and its author would send it again."""
    if tokens:
        con = await asyncpg.connect(behind.dsn("a"))
        await con.execute(outcome_sql.schema())
        await con.close()
    count = "SELECT count(*) FROM heard WHERE what = 'doubted'"
    async with Wire("127.0.0.1", behind.node("a").port) as wire:
        nodes = [
            {"name": "a", "host": "127.0.0.1", "port": wire.port},
            {"name": "b", "host": "127.0.0.1", "port": behind.node("b").port},
        ]
        resolve = "token-table" if tokens else "none"
        guard = await open_guard(behind, config={"nodes": nodes, "outcome": {"resolve": resolve}})
        await until(lambda: guard.route(count).node == "b")
        await looked(behind, "SELECT pg_wal_replay_pause()", node="b")
        pruner = await asyncpg.connect(behind.dsn("a"))
        if tokens:  # it holds every claim up, so that there is no answer in time
            await pruner.execute("BEGIN; SELECT token FROM dbguard.horizon FOR UPDATE")
        wire.arm(b"'doubted'", Break.ACK_CUT)

        async with guard.causal():
            with pytest.raises(dbguard.OutcomeUnknown) as caught:
                await guard.using(timeout=4).execute("INSERT INTO heard VALUES ('doubted')")
            assert (caught.value.token is not None) == tokens
            for _ in range(5):
                assert await guard.fetchval(count) == 1
            await until(lambda: not guard._core.engine.orphans)  # its backend is gone
            assert await guard.fetchval(count) == 1
        assert wire.struck == 1
        assert guard.status().counts["repeats"] == 0
        await pruner.close()


async def test_a_context_sees_what_it_wrote_on_a_connection_taken_before_it(behind, open_guard):
    guard = await open_guard(behind, "a", "b")
    await looked(behind, "SELECT pg_wal_replay_pause()", node="b")
    count = "SELECT count(*) FROM heard WHERE what = 'inside'"

    async with guard.acquire() as con, guard.causal():
        await con.execute("INSERT INTO heard VALUES ('inside')")
        assert await guard.fetchval(count) == 1

    assert await guard.fetchval(count) == 1
