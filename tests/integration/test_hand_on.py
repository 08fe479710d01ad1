"""What one caller leaves on a session is never seen by the next: handed on, reset, or closed (RULES 6)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import asyncpg
import pytest

import dbguard

PID = "SELECT pg_backend_pid()"


@pytest.fixture
async def guard(calm_cluster, open_guard, all_given_back):
    """A guard with one connection to the primary alone."""
    guard = await open_guard(calm_cluster, "a", min_size=1, max_size=1)
    await all_given_back(guard)
    return guard


@pytest.mark.every_postgres
async def test_a_connection_is_handed_on_after_statements_that_leave_nothing(calm_cluster, open_guard, table, until):
    resets = []
    guard = await open_guard(calm_cluster, "a", min_size=1, max_size=1)

    async def quiet() -> bool:
        """Whether the catalogue was read, so that the table is known to be plain."""
        before = calm_cluster.sql("a", LAST_QUERY)
        await guard.fetchval(f"SELECT n FROM {table}")
        after = calm_cluster.sql("a", LAST_QUERY)
        resets.append((before, after))
        return "FROM " in after[0][0] and table in after[0][0]

    await until(quiet)
    pid = await guard.fetchval(PID)
    await guard.execute(f"INSERT INTO {table} VALUES (1, 1)")
    assert table in calm_cluster.sql("a", LAST_QUERY)[0][0]  # no reset came after it
    async with guard.transaction() as tx:
        await tx.execute(f"UPDATE {table} SET n = 2")
    await guard.fetch(f"SELECT * FROM {table} WHERE id = $1", 1)

    assert await guard.fetchval(PID) == pid


LAST_QUERY = (
    "SELECT query FROM pg_stat_activity WHERE application_name = '' AND backend_type = 'client backend'"
    " AND query NOT LIKE '%pg_postmaster_start_time%' ORDER BY state_change DESC LIMIT 1"
)


@pytest.mark.parametrize(
    ("left", "seen", "clean"),
    [
        pytest.param("SET search_path = nowhere", "SHOW search_path", '"$user", public', id="set"),
        pytest.param("SET application_name = 'theirs'", "SHOW application_name", "", id="set-application-name"),
        pytest.param("SELECT set_config('my.tenant', '7', false)", "SELECT current_setting('my.tenant', true)", "", id="set-config"),
        pytest.param("SET ROLE pg_monitor", "SELECT current_user::text", "postgres", id="role"),
        pytest.param("SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user::text", "postgres", id="authorization"),
        pytest.param("CREATE TEMP TABLE mine (id int)", "SELECT to_regclass('pg_temp.mine')::text", None, id="temp-table"),
        pytest.param("SELECT 1 AS id INTO TEMP mine", "SELECT to_regclass('pg_temp.mine')::text", None, id="select-into"),
        pytest.param("PREPARE mine AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements WHERE from_sql", 0, id="prepare"),
        pytest.param("LISTEN mine", "SELECT count(*) FROM pg_listening_channels()", 0, id="listen"),
        pytest.param("SELECT pg_advisory_lock(77)", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", 0, id="advisory-lock"),
        pytest.param("BEGIN", "VACUUM pg_am", None, id="begin"),  # refused within a transaction
        pytest.param("LOAD 'plpgsql'", "SELECT 1", 1, id="load"),
        pytest.param("DO $$ BEGIN PERFORM set_config('my.tenant', '7', false); END $$", "SELECT current_setting('my.tenant', true)", "", id="do"),
        pytest.param("DECLARE mine CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) FROM pg_cursors WHERE name = 'mine'", 0, id="cursor"),
        pytest.param("DISCARD ALL", "SELECT 1", 1, id="discard"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by", ["call", "acquire", "raw"])
async def test_nothing_of_a_session_is_seen_by_the_next_caller(guard, left, seen, clean, by):
    if by == "call" and left == "BEGIN":
        with pytest.raises(asyncpg.InterfaceError, match="left a transaction open"):
            await guard.execute(left)
    elif by == "call":
        await guard.execute(left)
    else:
        async with guard.acquire() as con:
            await (con.raw if by == "raw" else con).execute(left)

    value = await guard.fetchval(seen)

    assert (value or clean) == clean


async def test_sequence_state_is_not_seen_by_the_next_caller(guard, calm_cluster, table):
    calm_cluster.sql("a", f"CREATE SEQUENCE {table}_s OWNED BY {table}.id")

    await guard.fetchval(f"SELECT nextval('{table}_s')")

    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="not yet defined"):
        await guard.fetchval("SELECT lastval()")
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="not yet defined"):
        await guard.fetchval(f"SELECT currval('{table}_s')")


async def test_a_seed_is_not_seen_by_the_next_caller(guard):
    await guard.execute("SELECT setseed(0.5)")
    first = await guard.fetchval("SELECT random()")
    await guard.execute("SELECT setseed(0.5)")
    second = await guard.fetchval("SELECT random()")

    assert first != second


async def test_a_setting_that_a_policys_stable_function_makes_is_not_seen_by_the_next_caller(
    calm_cluster, open_guard, table, until, all_given_back
):
    calm_cluster.sql(
        "a",
        f"CREATE FUNCTION {table}_tenant() RETURNS bool LANGUAGE plpgsql STABLE AS $$ BEGIN"
        " PERFORM set_config('my.tenant', current_setting('application_name'), false); RETURN true; END $$",
    )
    calm_cluster.sql("a", f"INSERT INTO {table} VALUES (1, 1)")
    calm_cluster.sql("a", f"CREATE POLICY p ON {table} USING ({table}_tenant())")
    calm_cluster.sql("a", f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    calm_cluster.sql("a", "DROP ROLE IF EXISTS tenant")
    calm_cluster.sql("a", "CREATE ROLE tenant LOGIN")
    calm_cluster.sql("a", f"GRANT SELECT ON {table} TO tenant")
    guard = await open_guard(
        calm_cluster,
        "a",
        config={"connection": {"user": "tenant", "server_settings": {"application_name": "first"}}},
        min_size=1,
        max_size=1,
    )
    pid = await guard.fetchval(PID)

    for _ in range(3):  # before and after the catalogue was read
        assert await guard.fetchval(f"SELECT n FROM {table}") == 1
        assert await guard.fetchval("SELECT current_setting('my.tenant', true)") in (None, "")
        await all_given_back(guard)

    assert await guard.fetchval(PID) == pid
    await guard.close()
    calm_cluster.sql("a", f"REVOKE ALL ON {table} FROM tenant")
    calm_cluster.sql("a", "DROP ROLE tenant")
    calm_cluster.sql("a", f"DROP TABLE {table}")
    calm_cluster.sql("a", f"DROP FUNCTION {table}_tenant()")


async def test_a_trigger_made_by_others_is_reset_for_once_the_catalogue_was_read_after_ddl_of_ours(
    calm_cluster, open_guard, table
):
    guard = await open_guard(calm_cluster, "a", min_size=1, max_size=1)
    await guard.execute(
        f"CREATE FUNCTION {table}_leak() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM set_config('my.tenant', '7', false); RETURN NEW; END $$;"
        f"CREATE TRIGGER leak BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_leak()"
    )

    for n in range(5):
        await guard.execute(f"INSERT INTO {table} VALUES ($1, 1)", n)
        assert await guard.fetchval("SELECT current_setting('my.tenant', true)") in (None, "")

    await guard.execute(f"DROP TRIGGER leak ON {table}; DROP FUNCTION {table}_leak()")


async def test_a_transaction_left_open_on_an_acquired_connection_is_rolled_back(guard, table):
    async with guard.acquire() as con:
        await con.execute("BEGIN")
        await con.execute(f"INSERT INTO {table} VALUES (1, 1)")

    assert await guard.fetchval(f"SELECT count(*) FROM {table}") == 0


SLOW = "SELECT pg_sleep(3)"


async def at_once(con, by):
    """Do two things at once on one connection, which fails while the first still runs."""
    slow = con.fetch(SLOW)
    if by == "prepared":
        slow.close()
        slow = (await con.prepare(SLOW)).fetch()
    elif by == "cursor":
        slow.close()
        slow = (await con.cursor(SLOW)).fetch(1)
    await asyncio.gather(slow, con.fetch("SELECT 1"))


@pytest.mark.parametrize("by", ["acquire", "prepared", "transaction", "cursor", "function"])
async def test_a_connection_that_a_task_still_uses_is_not_handed_on(guard, table, by):
    pid = await guard.fetchval(PID)
    attempts = []

    async def function(con):
        attempts.append(con.attempt)
        await at_once(con, by)

    async def use():
        if by == "function":
            await guard.run_in_transaction(function)
        else:
            async with guard.transaction() if by in ("transaction", "cursor") else guard.acquire() as con:
                await function(con)

    with pytest.raises(asyncpg.InterfaceError, match="another operation is in progress"):
        await use()

    await guard.execute(f"INSERT INTO {table} VALUES (1, 1)")
    assert await guard.fetchval(PID) != pid
    assert len(attempts) == 1
    assert all(node.breaker == "closed" for node in guard.status().nodes)


@pytest.mark.parametrize("by", ["transaction", "inner", "function"])
async def test_a_transaction_that_ends_while_a_task_uses_it_says_that_it_was_rolled_back(guard, table, by):
    left = []

    async def leave(con):
        await con.execute(f"INSERT INTO {table} VALUES (1, 1)")
        left.append(asyncio.create_task(con.fetch(SLOW)))
        await asyncio.sleep(0)  # it begins

    async def use():
        if by == "function":
            await guard.run_in_transaction(leave)
        elif by == "inner":
            async with guard.acquire() as con, con.transaction():
                await leave(con)
        else:
            async with guard.transaction() as con:
                await leave(con)

    with pytest.raises(asyncpg.InterfaceError, match="as it ended, another task still ran an operation"):
        await use()

    assert await guard.fetchval(f"SELECT count(*) FROM {table}") == 0
    assert len(left) == 1
    with pytest.raises(asyncpg.PostgresConnectionError):
        await left[0]


async def test_listeners_of_a_caller_are_gone_with_it(guard):
    heard = []
    async with guard.acquire() as con:
        await con.add_listener("mine", lambda *said: heard.append(said))

    await guard.execute("NOTIFY mine")

    assert heard == []
    assert await guard.fetchval("SELECT count(*) FROM pg_listening_channels()") == 0


async def test_a_codec_of_a_caller_is_gone_with_it(guard):
    async with guard.acquire() as con:
        await con.set_type_codec("int4", encoder=str, decoder=lambda _: "mine", schema="pg_catalog", format="text")
        assert await con.fetchval("SELECT 1::int4") == "mine"

    assert await guard.fetchval("SELECT 1::int4") == 1


async def test_a_connection_over_its_lifetime_or_uses_is_replaced(calm_cluster, open_guard):
    by_uses = await open_guard(calm_cluster, "a", min_size=1, max_size=1, max_queries=5)

    pids = {await by_uses.fetchval(PID) for _ in range(20)}

    assert 2 <= len(pids) <= 10


async def test_what_a_trigger_leaves_on_the_session_is_taken_back(calm_cluster, guard, table):
    """A trigger can set a role and make a temporary table as well as a setting; no text shows it."""
    for statement in (
        f"""CREATE FUNCTION {table}_leaves() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
        PERFORM set_config('role', 'pg_monitor', false); CREATE TEMP TABLE left_behind (id int); RETURN NEW; END$$""",
        f"CREATE TRIGGER leaves BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_leaves()",
    ):
        calm_cluster.sql("a", statement)
    calm_cluster.sql("a", f"GRANT ALL ON {table} TO pg_monitor")
    pid = await guard.fetchval(PID)

    await guard.execute(f"INSERT INTO {table} VALUES (1, 1)")

    assert await guard.fetchval("SELECT current_user::text") == "postgres"
    assert await guard.fetchval("SELECT to_regclass('pg_temp.left_behind')::text") is None
    assert await guard.fetchval(PID) == pid


@pytest.mark.parametrize("how", ["add", "block"])
async def test_what_one_caller_logs_hears_nothing_of_the_next(guard, how):
    heard = []
    async with contextlib.AsyncExitStack() as later:
        async with guard.acquire() as con:
            if how == "add":
                con.add_query_logger(heard.append)
            else:
                later.enter_context(con.query_logger(heard.append))
            await con.fetchval("SELECT 1")
        del con

        await guard.fetchval("SELECT $1::text", "a secret")
        await asyncio.sleep(0)

    assert [record.query for record in heard if "secret" in record.args] == []
    assert [record.query for record in heard] == ["SELECT 1"]


# ---------------------------------------------------------------------- hooks of the application's


@pytest.fixture
def leaving(calm_cluster, table):
    """Let each INSERT into the table leave a role, a temporary table and a setting on its session."""
    for statement in (
        f"""CREATE FUNCTION {table}_leaves() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
        PERFORM set_config('role', 'pg_monitor', false), set_config('my.tenant', '7', false);
        CREATE TEMP TABLE IF NOT EXISTS left_behind (id int); RETURN NEW; END$$""",
        f"CREATE TRIGGER leaves BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_leaves()",
        f"GRANT ALL ON {table} TO pg_monitor, pg_read_all_data",
    ):
        calm_cluster.sql("a", statement)
    return f"INSERT INTO {table} VALUES ($1, 1)"


async def codec(con):
    await con.set_type_codec("json", encoder=str, decoder=str, schema="pg_catalog")


async def become_reader(con):
    await con.execute("SET ROLE pg_read_all_data")


async def make_scratch(con):
    await con.execute("CREATE TEMP TABLE IF NOT EXISTS scratch (id int)")


async def do_nothing(con):
    """As many a hook, leave the session alone."""


async def reset_settings(con):
    await con.execute(con.get_reset_query())


WHO = """SELECT current_user::text, to_regclass('pg_temp.left_behind')::text, to_regclass('pg_temp.scratch')::text,
    coalesce(current_setting('my.tenant', true), '')"""
HOOKS = {
    "codec": ({"init": codec}, "postgres", None, True),
    "role-at-birth": ({"init": become_reader}, "pg_read_all_data", None, False),
    "table-at-birth": ({"init": make_scratch}, "postgres", "scratch", False),
    "setup": ({"setup": do_nothing}, "postgres", None, True),
    "role-at-setup": ({"setup": become_reader}, "pg_read_all_data", None, True),
    "reset": ({"reset": reset_settings, "init": codec}, "postgres", None, True),
    "all": (
        {"init": make_scratch, "setup": become_reader, "reset": reset_settings}, "pg_read_all_data", "scratch", False
    ),
}  # fmt: skip
"""Hooks; who the session is after them, its temporary table, and whether that can be had back by a reset."""


@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("whose", ["own", "wrapped"])
async def test_what_a_trigger_leaves_is_not_seen_whatever_hooks_a_pool_has(
    calm_cluster, open_guard, settled, leaving, hooks, whose
):
    given, role, scratch, reset = HOOKS[hooks]
    async with contextlib.AsyncExitStack() as stack:
        if whose == "own":
            guard = await open_guard(calm_cluster, "a", min_size=1, max_size=1, **given)
        else:
            dsn = calm_cluster.dsn("a")
            pool = await stack.enter_async_context(asyncpg.create_pool(dsn, min_size=1, max_size=1, **given))
            guard = await stack.enter_async_context(dbguard.Guard.wrap(pool))
            await settled(guard)
        pid = await guard.fetchval(PID)
        clean = (role, None, scratch, "")

        for n in range(3):
            await guard.execute(leaving, n)
            assert tuple(await guard.fetchrow(WHO)) == clean

        if whose == "own" or "setup" not in given:
            assert (await guard.fetchval(PID) == pid) is reset


async def test_a_role_that_a_wrapped_pools_setup_changes_at_each_checkout_costs_no_connections(
    calm_cluster, settled, table
):
    roles = itertools.cycle(["pg_monitor", "pg_read_all_data"])
    calm_cluster.sql("a", f"CREATE FUNCTION {table}_says() RETURNS text LANGUAGE sql RETURN current_user")

    async def setup(con):
        await con.execute(f"SET ROLE {next(roles)}")

    async with (
        asyncpg.create_pool(calm_cluster.dsn("a"), min_size=1, max_size=1, setup=setup) as pool,
        dbguard.Guard.wrap(pool) as guard,
    ):
        await settled(guard)
        seen = [await guard.fetchrow(f"SELECT pg_backend_pid(), {table}_says()") for _ in range(8)]

    calm_cluster.sql("a", f"DROP FUNCTION {table}_says()")
    assert {role for _, role in seen} == {"pg_monitor", "pg_read_all_data"}
    assert len({pid for pid, _ in seen}) <= 2


@pytest.mark.parametrize("kind", ["call", "acquire", "transaction"])
async def test_a_number_drawn_by_a_default_is_not_seen_by_the_next_caller(calm_cluster, guard, table, until, kind):
    serial = f"{table}_serial"
    await guard.execute(f"CREATE TABLE {serial} (id serial, n int)")
    insert = f"INSERT INTO {serial} (n) VALUES (1)"

    async def handed_on():
        """Whether the catalogue was read, so that nothing is reset after the INSERT."""
        await guard.execute(insert)
        async with guard.acquire() as con:
            with contextlib.suppress(asyncpg.ObjectNotInPrerequisiteStateError):
                return await con.raw.fetchval("SELECT lastval()")

    await until(handed_on)
    await guard.execute(insert)
    pid = await guard.fetchval(PID)
    if kind == "call":
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await guard.fetchval("SELECT lastval()")
    async with guard.transaction() if kind == "transaction" else guard.acquire() as con:
        if kind != "call":
            with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
                await con.fetchval(f"SELECT currval('{serial}_id_seq')")
        if kind == "transaction":
            await con.execute("ROLLBACK")
        drawn = await con.fetchval(f"{insert} RETURNING id")
        assert await con.fetchval("SELECT lastval()") == drawn  # its own it may see

    assert await guard.fetchval(PID) == pid
    calm_cluster.sql("a", f"DROP TABLE {serial}")
