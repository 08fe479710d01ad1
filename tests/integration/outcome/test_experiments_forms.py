"""RULES 3.4, tried: how a write carries its token, under which roles and modes, and what each form would miss."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from dbguard.drivers import outcome_sql
from tests.integration.outcome.conftest import claim, new_token

if TYPE_CHECKING:
    from uuid import UUID

    from dbguard.testing.cluster import Cluster

pytestmark = pytest.mark.every_postgres

XID = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"


def stored(cluster: Cluster, token: UUID) -> bool:
    return bool(cluster.sql("a", "SELECT FROM dbguard.token WHERE token = $1", token))


def value(cluster: Cluster, row: int) -> int:
    n: int = cluster.sql("a", "SELECT n FROM item WHERE id = $1", row)[0][0]
    return n


def with_token(statement: str, parameter: str = "$1") -> str:
    return f"WITH {outcome_sql.cte_item(parameter)} {statement}"


# --- the block


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "mark"])
@pytest.mark.parametrize("always", [True, False], ids=["always", "if it wrote"])
async def test_a_block_stores_its_token_with_its_rows_and_the_tag_is_commit(
    *, direct: bool, always: bool, home: Cluster, connect: Any, item: Any
) -> None:
    con = await connect(home)
    token, row = new_token(), await item(home)
    await con.execute("BEGIN")
    await con.execute("UPDATE item SET n = 1 WHERE id = $1", row)

    assert await con.execute(outcome_sql.joined(token, direct=direct, always=always)) == "COMMIT"

    assert (stored(home, token), value(home, row)) == (True, 1)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "mark"])
async def test_a_block_that_only_read_stores_nothing_and_gets_no_transaction_id(
    *, direct: bool, home: Cluster, connect: Any
) -> None:
    con = await connect(home)
    token = new_token()
    before = home.sql("a", "SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
    await con.execute("BEGIN")
    await con.execute("SELECT * FROM item")

    assert await con.execute(outcome_sql.joined(token, direct=direct, always=False)) == "COMMIT"

    assert not stored(home, token)
    assert home.sql("a", "SELECT pg_snapshot_xmax(pg_current_snapshot())::text") == before


async def test_a_read_only_block_ends_well_by_mark_and_fails_by_a_direct_insert(home: Cluster, connect: Any) -> None:
    con = await connect(home)
    for begin in ("BEGIN READ ONLY", "BEGIN; SET LOCAL transaction_read_only = on"):
        token = new_token()
        await con.execute(begin)
        assert await con.execute(outcome_sql.joined(token, direct=False, always=False)) == "COMMIT"
        assert not stored(home, token)

        for wrong in (
            outcome_sql.joined(token, direct=True, always=False),
            outcome_sql.joined(token, direct=False, always=True),
        ):
            await con.execute(begin)
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await con.execute(wrong)
            assert con.is_in_transaction()
            await con.execute("ROLLBACK")


async def test_a_block_that_wrote_and_then_turned_read_only_commits_its_rows_without_the_token(
    home: Cluster, connect: Any, item: Any
) -> None:
    """So such a block carries no token: the claim would say x for rows that are there."""
    con = await connect(home)
    token, row = new_token(), await item(home)
    await con.execute("BEGIN")
    await con.execute("UPDATE item SET n = 1 WHERE id = $1", row)
    await con.execute("SET TRANSACTION READ ONLY")

    assert await con.execute(outcome_sql.joined(token, direct=False, always=False)) == "COMMIT"

    assert (value(home, row), await claim(con, token)) == (1, "x")


async def test_under_another_role_mark_works_and_a_direct_insert_is_refused(
    home: Cluster, connect: Any, item: Any
) -> None:
    con = await connect(home)
    token, row = new_token(), await item(home)
    await con.execute("BEGIN; SET LOCAL ROLE stranger")
    await con.execute("UPDATE item SET n = 1 WHERE id = $1", row)
    with pytest.raises(asyncpg.InsufficientPrivilegeError) as raised:
        await con.execute(outcome_sql.joined(token, direct=True, always=False))
    assert "dbguard" not in (raised.value.schema_name or "")  # only the message names the table: not a field to lean on
    await con.execute("ROLLBACK")
    assert (stored(home, token), value(home, row)) == (False, 0)

    await con.execute("BEGIN; SET LOCAL ROLE stranger; SET LOCAL search_path = ''")
    await con.execute("UPDATE public.item SET n = 1 WHERE id = $1", row)
    assert await con.execute(outcome_sql.joined(token, direct=False, always=False)) == "COMMIT"

    assert (stored(home, token), value(home, row)) == (True, 1)


async def test_mark_and_nothing_else_is_open_to_a_role_without_rights(home: Cluster, connect: Any) -> None:
    con = await connect(home)
    await con.execute("SET ROLE stranger")

    await con.execute("SELECT dbguard.mark($1)", new_token())
    for refused in (
        "SELECT FROM dbguard.token",
        "SELECT FROM dbguard.horizon",
        "SELECT FROM dbguard.reign",
        "SELECT dbguard.prune()",
        "CREATE TABLE dbguard.t (n int)",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await con.execute(refused)


async def test_the_guards_role_can_neither_delete_tokens_nor_move_the_horizon_nor_forge_a_row(
    home: Cluster, connect: Any
) -> None:
    con = await connect(home)
    for refused in (
        "DELETE FROM dbguard.token",
        "TRUNCATE dbguard.token",
        "UPDATE dbguard.token SET kind = 'w'",
        "INSERT INTO dbguard.token (token, at) VALUES (gen_random_uuid(), now())",
        "UPDATE dbguard.horizon SET token = 'ffffffff-ffff-ffff-ffff-ffffffffffff'",
        "UPDATE dbguard.horizon SET at = now()",
        "DELETE FROM dbguard.horizon",
        "UPDATE dbguard.reign SET mark = gen_random_uuid()",
        "ALTER TABLE dbguard.token DISABLE TRIGGER ALL",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await con.execute(refused)
    with pytest.raises(asyncpg.CheckViolationError):
        await con.execute("UPDATE dbguard.horizon SET one = false")


async def test_mark_cannot_be_led_astray_by_the_callers_objects(home: Cluster, connect: Any) -> None:
    """The function runs with its owner's rights: what the caller puts before it must not be found."""
    con = await connect(home)
    token = new_token()
    await con.execute("CREATE TEMP TABLE token (token uuid, kind text, at timestamptz, n int)")
    await con.execute("SET search_path = pg_temp, public")

    await con.execute("SELECT dbguard.mark($1)", token)

    assert await con.fetchval("SELECT count(*) FROM pg_temp.token") == 0
    assert stored(home, token)


async def test_a_rolled_back_savepoint_takes_its_rows_and_not_the_token(home: Cluster, connect: Any, item: Any) -> None:
    con = await connect(home)
    token, kept, undone = new_token(), await item(home), await item(home)
    await con.execute("BEGIN")
    await con.execute("SAVEPOINT one")
    await con.execute("UPDATE item SET n = 1 WHERE id = $1", kept)
    await con.execute("RELEASE one")
    await con.execute("SAVEPOINT two")
    await con.execute("UPDATE item SET n = 1 WHERE id = $1", undone)
    await con.execute("ROLLBACK TO two")

    assert await con.execute(outcome_sql.joined(token, direct=False, always=False)) == "COMMIT"

    assert (stored(home, token), value(home, kept), value(home, undone)) == (True, 1, 0)


async def test_a_token_refused_means_that_commit_is_not_reached(home: Cluster, connect: Any, item: Any) -> None:
    con = await connect(home)
    token, row = new_token(), await item(home)
    home.sql("a", "REVOKE EXECUTE ON FUNCTION dbguard.mark(uuid) FROM PUBLIC")
    try:
        await con.execute("BEGIN")
        await con.execute("UPDATE item SET n = 1 WHERE id = $1", row)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await con.execute(outcome_sql.joined(token, direct=False, always=False))
    finally:
        home.sql("a", "GRANT EXECUTE ON FUNCTION dbguard.mark(uuid) TO PUBLIC")

    assert con.is_in_transaction()
    await con.execute("ROLLBACK")
    assert value(home, row) == 0


async def test_an_error_of_commit_itself_takes_the_token_along(home: Cluster, connect: Any) -> None:
    con = await connect(home)
    token = new_token()
    await con.execute("CREATE TEMP TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    await con.execute("BEGIN")
    await con.execute("INSERT INTO late VALUES (1), (1)")

    with pytest.raises(asyncpg.UniqueViolationError) as raised:
        await con.execute(outcome_sql.joined(token, direct=False, always=False))

    assert (raised.value.schema_name, raised.value.table_name) != outcome_sql.CONSTRAINT[:2]
    assert not con.is_in_transaction()  # after an error of the joined form there may or may not be a block
    assert await claim(con, token) == "x"


async def test_a_block_in_error_stores_no_token_and_does_not_commit(home: Cluster, connect: Any, item: Any) -> None:
    con = await connect(home)
    token, row = new_token(), await item(home)
    await con.execute("BEGIN")
    await con.execute("UPDATE item SET n = 1 WHERE id = $1", row)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await con.execute("SELECT 1/0")

    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await con.execute(outcome_sql.joined(token, direct=False, always=True))

    await con.execute("ROLLBACK")
    assert (stored(home, token), value(home, row)) == (False, 0)


@pytest.mark.parametrize("notify", ["NOTIFY shop, 'sold'", "SELECT pg_notify('shop', 'sold')"])
@pytest.mark.parametrize("mode", ["READ WRITE", "READ ONLY"])
async def test_a_notification_is_delivered_by_a_block_without_a_transaction_id(
    notify: str, mode: str, home: Cluster, connect: Any
) -> None:
    """So the condition skips the token, and a repeat after x would notify twice; READ ONLY blocks can do it as well."""
    con, listener = await connect(home), await connect(home)
    heard: asyncio.Queue[str] = asyncio.Queue()
    await listener.add_listener("shop", lambda *said: heard.put_nowait(said[3]))
    token = new_token()
    await con.execute(f"BEGIN {mode}")
    await con.execute(notify)
    assert await con.fetchval(XID) is False

    await con.execute(outcome_sql.joined(token, direct=False, always=False))

    assert await asyncio.wait_for(heard.get(), 60) == "sold"
    assert await claim(con, token) == "x"


async def test_a_notification_with_an_unconditional_token_is_known(home: Cluster, connect: Any) -> None:
    con = await connect(home)
    token = new_token()
    await con.execute("BEGIN")
    await con.execute("NOTIFY shop")

    await con.execute(outcome_sql.joined(token, direct=False, always=True))

    assert await claim(con, token) == "w"


@pytest.mark.parametrize(
    ("statement", "assigned"),
    [
        ("SELECT * FROM item FOR SHARE", True),
        ("LOCK TABLE item IN ACCESS EXCLUSIVE MODE", True),
        ("UPDATE item SET n = 1 WHERE false", False),
        ("CREATE TEMP TABLE passing (n int) ON COMMIT DROP", True),
        ("SELECT pg_logical_emit_message(true, 'a', 'b')", True),
        ("SELECT pg_logical_emit_message(false, 'a', 'b')", False),
        ("SELECT nextval('counted')", True),
        ("SELECT setval('counted', 7)", True),
        ("SELECT lo_create(0)", True),
        ("SELECT pg_advisory_xact_lock(1)", False),
        ("SET application_name = 'other'", False),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", False),
        ("COPY (SELECT 1) TO PROGRAM 'cat > /dev/null'", False),
    ],
)
async def test_what_counts_as_having_written(statement: str, assigned: bool, home: Cluster, connect: Any) -> None:  # noqa: FBT001
    """Only what has a transaction id brings the conditional token. The others reach outside the transaction."""
    con = await connect(home, user="postgres")
    await con.execute("CREATE SEQUENCE IF NOT EXISTS counted")
    await con.execute("SELECT setval('counted', 7)")
    home.sql("a", "CHECKPOINT")
    await con.execute("BEGIN")
    await con.execute(statement)

    assert await con.fetchval(XID) is assigned
    await con.execute("ROLLBACK")


@pytest.mark.parametrize("statement", ["VACUUM item", "CREATE INDEX CONCURRENTLY ON item (n)", "CREATE DATABASE other"])
async def test_what_cannot_run_in_a_block_says_25001_and_has_done_nothing(
    statement: str, home: Cluster, connect: Any
) -> None:
    con = await connect(home, user="postgres")
    await con.execute("BEGIN")

    with pytest.raises(asyncpg.ActiveSQLTransactionError):
        await con.execute(statement)

    await con.execute("ROLLBACK")


async def test_the_autocommit_block_form_is_one_query_and_stops_at_the_first_error(
    home: Cluster, connect: Any, item: Any
) -> None:
    con = await connect(home)
    token, row = new_token(), await item(home)
    tail = outcome_sql.joined(token, direct=False, always=False)

    assert await con.execute(f"BEGIN; UPDATE item SET n = 1 WHERE id = {row}; {tail}") == "COMMIT"
    with pytest.raises(asyncpg.UniqueViolationError):
        await con.execute(f"BEGIN; UPDATE item SET n = 2 WHERE id = {row}; {tail}")

    assert con.is_in_transaction()
    await con.execute("ROLLBACK")
    assert value(home, row) == 1


# --- the cte


@pytest.mark.parametrize(
    ("statement", "tag"),
    [
        ("INSERT INTO item SELECT id + 100000, 1 FROM item WHERE id = $2", "INSERT 0 1"),
        ("UPDATE item SET n = 1 WHERE id = $2", "UPDATE 1"),
        ("UPDATE item SET n = 1 WHERE id = $2 AND false", "UPDATE 0"),
        ("DELETE FROM item WHERE id = $2", "DELETE 1"),
        ("MERGE INTO item USING (SELECT $2::int AS id) s USING_ON WHEN MATCHED THEN UPDATE SET n = 1", "MERGE 1"),
    ],
    ids=lambda given: given.split()[0],
)
async def test_the_cte_changes_neither_tag_nor_effect(
    statement: str, tag: str, home: Cluster, connect: Any, item: Any
) -> None:
    con = await connect(home)
    token, row = new_token(), await item(home)

    assert await con.execute(with_token(statement.replace("USING_ON", "ON item.id = s.id")), token, row) == tag

    assert stored(home, token)  # also where no row was hit: then a token is all that the statement writes


async def test_the_cte_changes_neither_rows_nor_columns(home: Cluster, connect: Any, item: Any) -> None:
    con = await connect(home)
    row = await item(home)
    update = "UPDATE item SET n = n + 1 WHERE id = {} RETURNING *, n AS again"

    (plain,) = await con.fetch(update.format("$1"), row)
    (carried,) = await con.fetch(with_token(update.format("$2")), new_token(), row)

    assert list(plain.keys()) == list(carried.keys()) == ["id", "n", "again"]
    assert (tuple(plain), tuple(carried)) == ((row, 1, 1), (row, 2, 2))


async def test_the_item_of_the_token_hides_no_table_of_the_statement(home: Cluster, connect: Any, item: Any) -> None:
    con = await connect(home)
    row = await item(home)
    await con.execute("CREATE TEMP TABLE t (id int); CREATE TEMP TABLE token (id int)")
    await con.execute(f"INSERT INTO t VALUES ({row}); INSERT INTO token VALUES ({row})")
    for table in ("t", "token"):
        hit = f"UPDATE item SET n = 1 WHERE id IN (SELECT id FROM {table})"
        assert await con.execute(with_token(hit), new_token()) == "UPDATE 1"

    hidden = (
        "WITH t AS (INSERT INTO dbguard.token (token) VALUES ($1)) UPDATE item SET n = 1 WHERE id IN (SELECT id FROM t)"
    )
    with pytest.raises(asyncpg.FeatureNotSupportedError):  # "t" means the item now
        await con.execute(hidden, new_token())


@pytest.mark.parametrize("own", ["WITH", "WITH RECURSIVE"])
async def test_the_item_goes_before_those_of_the_statement(own: str, home: Cluster, connect: Any, item: Any) -> None:
    con = await connect(home)
    token, row = new_token(), await item(home)

    tag = await con.execute(
        f"{own} {outcome_sql.cte_item('$2')}, hit AS (SELECT $1::int AS id) "
        "UPDATE item SET n = 1 FROM hit WHERE item.id = hit.id",
        row,
        token,
    )

    assert (tag, stored(home, token)) == ("UPDATE 1", True)


async def ruled(con: Any, rule: str) -> None:
    await con.execute("CREATE TEMP TABLE ruled (n int); CREATE TEMP TABLE ruled_log (n int)")
    await con.execute(f"INSERT INTO ruled VALUES (1); CREATE RULE r AS ON UPDATE TO ruled {rule}")


@pytest.mark.parametrize(
    "rule",
    [
        "DO ALSO INSERT INTO ruled_log VALUES (new.n)",
        "WHERE new.n > 5 DO INSTEAD INSERT INTO ruled_log VALUES (new.n)",
    ],
    ids=["also", "conditional"],
)
async def test_a_rule_that_makes_several_statements_of_one_refuses_the_cte(
    rule: str, home: Cluster, connect: Any
) -> None:
    con = await connect(home)
    await ruled(con, rule)
    token = new_token()

    with pytest.raises(asyncpg.FeatureNotSupportedError):
        await con.execute(with_token("UPDATE ruled SET n = n + 1"), token)

    assert not stored(home, token)
    assert await con.fetch("SELECT n FROM ruled UNION ALL SELECT n FROM ruled_log") == [(1,)]


@pytest.mark.parametrize(
    ("rule", "rows"),
    [
        ("DO INSTEAD INSERT INTO ruled_log VALUES (new.n)", [1, 2]),
        ("WHERE new.n > 5 DO INSTEAD NOTHING", [2]),
        ("DO ALSO NOTHING", [2]),
    ],
    ids=["instead", "conditional nothing", "also nothing"],
)
async def test_a_rule_that_leaves_one_statement_keeps_the_token(
    rule: str, rows: list[int], home: Cluster, connect: Any
) -> None:
    con = await connect(home)
    await ruled(con, rule)
    token = new_token()

    await con.execute(with_token("UPDATE ruled SET n = n + 1"), token)

    assert stored(home, token)
    assert [n for (n,) in await con.fetch("SELECT n FROM ruled UNION ALL SELECT n FROM ruled_log ORDER BY 1")] == rows


async def test_a_rule_that_leaves_no_statement_leaves_no_token_either(home: Cluster, connect: Any) -> None:
    con = await connect(home)
    await ruled(con, "DO INSTEAD NOTHING")
    token = new_token()

    assert await con.execute(with_token("UPDATE ruled SET n = n + 1"), token) == "UPDATE 0"

    assert not stored(home, token)  # x, and a repeat does nothing again
    assert await con.fetchval("SELECT n FROM ruled") == 1


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
async def test_the_cte_of_a_role_without_rights_is_refused_as_a_whole(
    level: str, home: Cluster, connect: Any, item: Any
) -> None:
    con = await connect(home)
    token, row = new_token(), await item(home)
    await con.execute("SET ROLE stranger")
    await con.execute(f"SET default_transaction_isolation = '{level}'")

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await con.execute(with_token("UPDATE item SET n = 1 WHERE id = $2"), token, row)

    assert (stored(home, token), value(home, row)) == (False, 0)


async def test_an_error_of_the_statement_reaches_the_caller_as_without_the_token(
    home: Cluster, connect: Any, item: Any
) -> None:
    con = await connect(home)
    token, row = new_token(), await item(home)

    with pytest.raises(asyncpg.UniqueViolationError) as raised:
        await con.execute(with_token("INSERT INTO item VALUES ($2, 1)"), token, row)

    assert raised.value.constraint_name == "item_pkey"
    assert not stored(home, token)
