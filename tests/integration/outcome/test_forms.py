"""A write with a token is seen by the application as it is without one: rows, tags, notices, exceptions, sessions."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

import dbguard
from dbguard.events import WriteWithoutToken

PLAIN, TOKENS = "none", "token-table"


@pytest.fixture(params=["own", "wrapped"])
async def opened(request):
    """Open a guard on a cluster's primary, with a pool of its own or over one of the application's."""
    guards, pools = [], []

    async def make(cluster, resolve=TOKENS, on_event=None, user="app", **arguments):
        node = cluster.node(cluster.primary)
        connection = {"user": user, "database": "postgres"}
        outcome = {"resolve": resolve}
        if request.param == "own":
            nodes = [{"host": node.host, "port": node.port, "name": "a"}]
            config = {"nodes": nodes, "connection": connection, "outcome": outcome}
            guard = dbguard.Guard(config, on_event=on_event, **arguments)
        else:
            pool = await asyncpg.create_pool(
                host=node.host, port=node.port, min_size=1, max_size=4, **connection, **arguments
            )
            pools.append(pool)
            guard = dbguard.Guard.wrap(pool, config={"outcome": outcome}, on_event=on_event)
        await guard.open()
        guards.append(guard)
        return guard

    yield make
    for guard in guards:
        await guard.close(timeout=0.5)
    for pool in pools:
        await asyncio.wait_for(pool.close(), 30)


@pytest.fixture
async def guard(home, opened):
    return await opened(home)


def looked(home, query, *args):
    return asyncio.to_thread(home.sql, "a", query, *args)


async def stored(home):
    """How many writes have stored their tokens so far."""
    return (await looked(home, "SELECT count(*) FROM dbguard.token WHERE kind = 'w'"))[0][0]


async def adds(home, work):
    """How many tokens *work* has stored."""
    before = await stored(home)
    await work
    return await stored(home) - before


@pytest.fixture
async def twins(home, opened):
    """Two guards that differ in their tokens alone."""
    return await opened(home, PLAIN), await opened(home, TOKENS)


CALLS = {
    "insert": ("execute", "INSERT INTO item VALUES ($1, 0)", (901,)),
    "insert of several": ("execute", "INSERT INTO item SELECT i, 0 FROM generate_series(902, 904) i", ()),
    "update of none": ("execute", "UPDATE item SET n = 1 WHERE id = -1", ()),
    "delete": ("execute", "DELETE FROM item WHERE id = ANY($1)", ([-1, -2],)),
    "returning": ("fetch", "INSERT INTO item VALUES ($1, $2) RETURNING id, n AS m", (905, 7)),
    "returning a value": ("fetchval", "INSERT INTO item VALUES (906, 5) RETURNING n", ()),
    "fetch without rows": ("fetch", "UPDATE item SET n = 1 WHERE id = -1", ()),
    "fetchval without rows": ("fetchval", "UPDATE item SET n = 1 WHERE id = -1", ()),
    "a with of its own": (
        "fetchrow",
        "WITH x AS (SELECT 907 AS id) INSERT INTO item SELECT id, 1 FROM x RETURNING *",
        (),
    ),
    "recursive": (
        "execute",
        "/* a */ WITH RECURSIVE r(i) AS (VALUES (908) UNION SELECT i + 1 FROM r WHERE i < 910) INSERT INTO item SELECT i, 0 FROM r",
        (),
    ),
    "a comment first": ("execute", "-- here\nINSERT INTO item VALUES (911, 0) -- there", ()),
    "on conflict": ("execute", "INSERT INTO item VALUES (911, 0) ON CONFLICT DO NOTHING", ()),
    "a duplicate": ("execute", "INSERT INTO item VALUES (912, 0), (912, 0)", ()),
    "a missing column": ("execute", "UPDATE item SET missing = 1 WHERE id = $1", (1,)),
    "a missing table": ("execute", "DELETE FROM missing", ()),
    "a syntax error": ("execute", "UPDATE item SET n = = 1", ()),
    "too few arguments": ("execute", "UPDATE item SET n = $1 WHERE id = $2", (1,)),
    "too many arguments": ("execute", "UPDATE item SET n = $1", (1, 2)),
    "an argument that does not fit": ("execute", "UPDATE item SET n = $1", ("x",)),
    "a check of the type": ("execute", "UPDATE item SET n = 'x'", ()),
    "several": ("execute", "INSERT INTO item VALUES (913, 0); UPDATE item SET n = 2 WHERE id = 913", ()),
    "ddl": ("execute", "CREATE TABLE made (id int)", ()),
    "many": ("executemany", "INSERT INTO item VALUES ($1, $2)", ([(914, 1), (915, 2)],)),
    "many, one of them twice": ("executemany", "INSERT INTO item VALUES ($1, $2)", ([(916, 1), (916, 2)],)),
    "a select that writes": ("fetchval", "SELECT setval('counter', 7)", ()),
}


async def said(guard, home, name):
    method, query, args = CALLS[name]
    try:
        value = await getattr(guard, method)(query, *args)
        said = ("value", value if not isinstance(value, list) else [tuple(row) for row in value])
    except Exception as error:  # noqa: BLE001  compared with the other guard's
        place = getattr(error, "position", None)
        said = (type(error).__name__, str(error), place, getattr(error, "query", None))
    await looked(home, "DELETE FROM item WHERE id > 900 AND id < 1000")
    await looked(home, "DROP TABLE IF EXISTS made")
    return said


@pytest.fixture(scope="module", autouse=True)
def counter(home):
    home.sql("a", "CREATE SEQUENCE counter")
    home.sql("a", "GRANT ALL ON SEQUENCE counter TO app")
    home.sql("a", "GRANT CREATE ON SCHEMA public TO app")
    yield
    home.sql("a", "REVOKE CREATE ON SCHEMA public FROM app")
    home.sql("a", "DROP SEQUENCE counter")


@pytest.mark.parametrize("name", CALLS)
async def test_a_write_with_a_token_is_seen_as_without(home, twins, name):
    plain, tokens = twins

    assert await said(tokens, home, name) == await said(plain, home, name)


@pytest.mark.parametrize(
    "name",
    [
        "insert",
        "insert of several",
        "returning",
        "a with of its own",
        "recursive",
        "several",
        "ddl",
        "many",
        "a select that writes",
    ],
)
async def test_each_write_stores_one_token(home, guard, name):
    assert await adds(home, said(guard, home, name)) == 1


async def test_the_text_of_a_write_stays_the_same_so_that_its_plan_is_kept(home, guard, item):
    number = await item(home)
    for _ in range(5):
        await guard.execute("UPDATE item SET n = n + 1 WHERE id = $1", number)

    async with guard.acquire() as con:
        prepared = await con.fetchval(
            "SELECT max(generic_plans + custom_plans) FROM pg_prepared_statements WHERE statement LIKE 'WITH \"dbguard token\"%'"
        )
    assert prepared >= 4


async def test_a_block_stores_its_token_if_it_wrote(home, guard, item):
    number = await item(home)

    async def writes(query="UPDATE item SET n = n + 1 WHERE id = $1"):
        async with guard.transaction() as tx:
            await tx.fetchval("SELECT 1")
            await tx.execute(query, number)

    async def nested():
        async with guard.transaction() as tx:
            async with tx.transaction():
                await tx.execute("UPDATE item SET n = n + 1 WHERE id = $1", number)
            inner = tx.transaction()
            await inner.start()
            await tx.execute("UPDATE item SET n = 100 WHERE id = $1", number)
            await inner.rollback()

    async def reads():
        async with guard.transaction() as tx:
            await tx.fetch("SELECT * FROM item WHERE id = $1", number)

    async def ends_in_an_error():
        async with guard.transaction() as tx:
            await tx.execute("UPDATE item SET n = n + 1 WHERE id = $1", number)
            raise ZeroDivisionError

    async def fails():
        with pytest.raises(ZeroDivisionError):
            await ends_in_an_error()

    async def refused():
        async with guard.transaction() as tx:
            await tx.execute("UPDATE item SET n = n + 1 WHERE id = $1", number)
            with pytest.raises(asyncpg.UndefinedTableError):
                await tx.execute("SELECT * FROM missing")

    async def not_committed():
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await refused()

    assert await adds(home, writes()) == 1
    assert await adds(home, nested()) == 1
    assert await adds(home, reads()) == 0
    assert await adds(home, fails()) == 0
    assert await adds(home, not_committed()) == 0
    assert await looked(home, "SELECT n FROM item WHERE id = $1", number) == [(2,)]


async def test_a_block_that_only_read_is_assigned_no_transaction_id(home, guard):
    async with guard.transaction() as tx:
        await tx.fetch("SELECT * FROM item")
    before = (await looked(home, "SELECT pg_current_xact_id()::text::bigint"))[0][0]
    for _ in range(5):
        async with guard.transaction() as tx:
            await tx.fetch("SELECT * FROM item")
    after = (await looked(home, "SELECT pg_current_xact_id()::text::bigint"))[0][0]

    assert after == before + 1


async def test_a_block_under_another_role_stores_its_token(home, guard, item):
    number = await item(home)

    async def block():
        async with guard.transaction() as tx:
            await tx.execute("SET LOCAL ROLE stranger")
            await tx.execute("UPDATE item SET n = n + 1 WHERE id = $1", number)

    assert await adds(home, block()) == 1


@pytest.mark.parametrize("how", ["SET TRANSACTION READ ONLY", "SELECT set_config('transaction_read_only', 'on', true)"])
async def test_a_block_that_turned_read_only_after_it_wrote_commits_without_a_token(home, guard, item, how):
    """With one, its commit would fail; with a condition, a lost answer would be taken for not applied."""
    number = await item(home)

    async def block():
        async with guard.transaction() as tx:
            await tx.execute("UPDATE item SET n = n + 1 WHERE id = $1", number)
            await tx.execute(how)

    assert await adds(home, block()) == 0
    assert await looked(home, "SELECT n FROM item WHERE id = $1", number) == [(1,)]


async def test_what_could_be_told_twice_stores_its_token_without_having_written_a_row(home, guard):
    """An UPDATE of no row in a table whose trigger notifies: no transaction id, and yet something was sent."""
    for statement in (
        "CREATE TABLE loud (id int)",
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NOTIFY news; RETURN NULL; END $$",
        "CREATE TRIGGER tells AFTER UPDATE ON loud EXECUTE FUNCTION tell()",
        "GRANT ALL ON loud TO app",
    ):
        await looked(home, statement)

    async def block():
        async with guard.transaction() as tx:
            await tx.execute("UPDATE loud SET id = 1")

    assert await adds(home, block()) == 1
    await looked(home, "DROP TABLE loud")
    await looked(home, "DROP FUNCTION tell")


async def test_a_block_that_only_notified_stores_its_token(home, guard):
    """It has no transaction id of its own, and would be told of twice."""

    async def block():
        async with guard.transaction() as tx:
            await tx.execute("NOTIFY news, 'one'")

    assert await adds(home, block()) == 1
    assert await adds(home, guard.execute("NOTIFY news, 'two'")) == 1
    assert await adds(home, guard.execute("SELECT pg_notify('news', 'three')")) == 1


async def test_a_read_only_block_stores_none_and_commits(home, guard):
    async def block():
        async with guard.transaction(readonly=True) as tx:
            await tx.execute("NOTIFY news, 'one'")

    assert await adds(home, block()) == 0


async def test_a_table_whose_rule_makes_several_statements_of_one_is_written_as_a_block(home, guard):
    for statement in (
        "CREATE TABLE ruled (id int)",
        "CREATE TABLE rule_log (id int)",
        "CREATE RULE also AS ON INSERT TO ruled DO ALSO INSERT INTO rule_log VALUES (new.id)",
        "GRANT ALL ON ruled, rule_log TO app",
    ):
        await looked(home, statement)

    for number in range(3):
        assert await adds(home, guard.execute("INSERT INTO ruled VALUES ($1)", number)) == 1

    assert await looked(home, "SELECT (SELECT count(*) FROM ruled), (SELECT count(*) FROM rule_log)") == [(3, 3)]
    await looked(home, "DROP TABLE ruled, rule_log")


async def test_a_role_without_rights_on_the_table_stores_by_the_function(home, opened, item):
    number = await item(home)
    await looked(home, "CREATE ROLE poor LOGIN")
    await looked(home, "GRANT ALL ON item TO poor")
    guard = await opened(home, user="poor")

    async def block():
        async with guard.transaction() as tx:
            await tx.execute("UPDATE item SET n = n + 1 WHERE id = $1", number)

    async def function():
        await guard.run_in_transaction(lambda tx: tx.execute("UPDATE item SET n = n + 1 WHERE id = $1", number))

    assert await adds(home, guard.execute("UPDATE item SET n = n + 1 WHERE id = $1", number)) == 1
    assert await adds(home, function()) == 1
    assert await adds(home, block()) == 1
    assert await looked(home, "SELECT n FROM item WHERE id = $1", number) == [(3,)]
    await guard.close()
    await looked(home, "REVOKE ALL ON item FROM poor")
    await looked(home, "DROP ROLE poor")


async def test_without_the_schema_writes_go_on_and_it_is_told(calm_cluster, opened, table, events):
    guard = await opened(calm_cluster, user="postgres", on_event=events.append)

    assert await guard.execute(f"INSERT INTO {table} VALUES ($1, 1)", 1) == "INSERT 0 1"
    assert await guard.execute(f"INSERT INTO {table} VALUES (2, 1)") == "INSERT 0 1"
    async with guard.transaction() as tx:
        await tx.execute(f"INSERT INTO {table} VALUES (3, 1)")
    await guard.run_in_transaction(lambda tx: tx.execute(f"INSERT INTO {table} VALUES (4, 1)"))

    assert await asyncio.to_thread(calm_cluster.sql, "a", f"SELECT count(*) FROM {table}") == [(4,)]
    assert [event.why for event in events if isinstance(event, WriteWithoutToken)] == [
        "there is no table for tokens (42P01): run `dbguard outcome install`"
    ]


async def test_notices_and_cursors_are_as_without(home, guard):
    heard = []
    async with guard.transaction() as tx:
        tx.add_log_listener(lambda _, notice: heard.append(notice.message))
        await tx.execute("DO $$ BEGIN RAISE NOTICE 'here'; END $$")
        seen = [row[0] async for row in tx.cursor("SELECT generate_series(1, 3)")]
    await asyncio.sleep(0)

    assert heard == ["here"]
    assert seen == [1, 2, 3]
