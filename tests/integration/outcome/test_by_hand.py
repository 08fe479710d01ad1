"""Transactions that the application ends by its own text, and what only the catalogue tells: no outcome is made up."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

import dbguard
from dbguard.testing.cluster import Cluster
from dbguard.testing.wire import Break, Wire

BIND = b"B\x00\x00"
"""How the message begins that runs a prepared statement through asyncpg's unnamed portal."""

LOST = [Break.ACK_CUT, Break.REQUEST_CUT]


@pytest.fixture(scope="module")
def home(binaries):
    """One server for this file, with room for prepared transactions."""
    with Cluster(binaries=binaries, replicas=0, settings={"max_prepared_transactions": "4"}) as cluster:
        yield cluster


@pytest.fixture(scope="module", autouse=True)
def objects(home):
    from dbguard.drivers import outcome_sql  # noqa: PLC0415

    async def install():
        con = await asyncpg.connect(home.dsn("a"))
        await con.execute(outcome_sql.schema())
        for statement in (
            "CREATE TABLE done (op text)",
            "CREATE TABLE quiet (id int)",
            "CREATE RULE tells AS ON INSERT TO quiet DO INSTEAD NOTIFY news",
            "CREATE VIEW over AS SELECT id FROM quiet",
            "CREATE FUNCTION note() RETURNS int LANGUAGE plpgsql AS $$BEGIN INSERT INTO done VALUES ('noted'); RETURN 1; END$$",
            "CREATE VIEW noting AS SELECT note() AS x",
            "CREATE PROCEDURE add(text) LANGUAGE sql AS $$INSERT INTO done VALUES ($1)$$",
        ):
            await con.execute(statement)
        await con.close()

    asyncio.run(install())


@pytest.fixture
async def wire(home):
    async with Wire("127.0.0.1", home.node("a").port) as wire:
        yield wire
        wire.heal()


@pytest.fixture
async def guard(home, wire, until):
    await looked(home, "DELETE FROM done")
    config = {
        "nodes": [{"host": "127.0.0.1", "port": wire.port, "name": "a"}],
        "connection": {"user": "postgres", "database": "postgres"},
        "outcome": {"resolve": "token-table"},
        "timeout": "20s",
        "probe": {"timeout": "3s"},
    }
    async with dbguard.connect(config) as guard:
        await until(lambda: not guard._core.texts.knowledge.unsure)
        yield guard


def looked(home, query, *args):
    return asyncio.to_thread(home.sql, "a", query, *args)


async def done(home):
    return [row[0] for row in await looked(home, "SELECT op FROM done ORDER BY op")]


async def stored(home):
    return (await looked(home, "SELECT count(*) FROM dbguard.token WHERE kind = 'w'"))[0][0]


def put(con, op):
    return con.execute(f"INSERT INTO done VALUES ('{op}')")


async def in_block(guard, steps):
    async with guard.transaction() as tx:
        return await steps(tx)


async def in_function(guard, steps):
    return await guard.run_in_transaction(steps)


async def on_connection(guard, steps):
    async with guard.acquire() as con:
        await con.execute("BEGIN")
        await steps(con)
        await con.execute("COMMIT")


WITHIN = {"block": in_block, "function": in_function, "by hand": on_connection}


def parts_of(error):
    return "parts may have been applied" in str(error) + "".join(getattr(error, "__notes__", ()))


@pytest.mark.parametrize("how", LOST, ids=lambda how: how.value)
@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("ends", ["COMMIT", "END", "COMMIT AND CHAIN", "INSERT INTO done VALUES ('b'); COMMIT; BEGIN"])
async def test_a_commit_by_the_applications_text_that_is_lost_is_unknown_and_not_repeated(
    home, guard, wire, within, how, ends
):
    attempts = []

    async def steps(tx):
        attempts.append(1)
        await put(tx, "a")
        wire.arm(ends.encode(), how)
        await tx.execute(ends)

    with pytest.raises(dbguard.OutcomeUnknown) as caught:
        await WITHIN[within](guard, steps)

    assert wire.struck == 1
    assert caught.value.token is None
    assert attempts == [1]
    assert await done(home) == ([] if how is Break.REQUEST_CUT else ["a", "b"][: 2 if "'b'" in ends else 1])


CHANGES = {
    "commit": ["COMMIT"],
    "chain": ["COMMIT AND CHAIN"],
    "begin again": ["COMMIT", "BEGIN"],
    "at once": ["COMMIT; BEGIN"],
    "rolled back": ["ROLLBACK", "BEGIN"],
}


@pytest.mark.parametrize("how", LOST, ids=lambda how: how.value)
@pytest.mark.parametrize("within", ["block", "function"])
@pytest.mark.parametrize("change", CHANGES)
async def test_what_follows_a_commit_by_text_is_told_by_no_token_of_another_transaction(
    home, guard, wire, within, how, change
):
    """The end of the block is lost: what its token proved would be the last part alone."""
    attempts = []

    async def steps(tx):
        attempts.append(1)
        await put(tx, "a")
        for text in CHANGES[change]:
            await tx.execute(text)
        await put(tx, "b")
        wire.arm(b"COMMIT;", how)

    with pytest.raises(dbguard.OutcomeUnknown) as caught:
        await WITHIN[within](guard, steps)

    assert wire.struck == 1
    assert caught.value.token is None
    assert attempts == [1]
    there = await done(home)
    assert ("a" in there) == (change != "rolled back")
    assert ("b" in there) == (how is Break.ACK_CUT or change == "commit")


async def test_a_transaction_begun_anew_by_rollback_and_chain_is_proved_as_what_it_is(home, guard, wire):
    async def steps(tx):
        await put(tx, f"a{tx.attempt}")
        await tx.execute("ROLLBACK AND CHAIN")
        await put(tx, f"b{tx.attempt}")

    for how, there in ((Break.ACK_CUT, ["b1"]), (Break.REQUEST_CUT, ["b1", "b2"])):
        wire.arm(b"; COMMIT", how)
        await guard.run_in_transaction(steps)
        assert await done(home) == there

    assert guard.status().counts["unknown"] == 0


@pytest.mark.parametrize("statement", ["CALL add('called')", "DO $$BEGIN INSERT INTO done VALUES ('called'); END$$"])
async def test_a_procedure_in_a_block_cannot_commit_and_is_proved_with_it(home, guard, wire, statement):
    wire.arm(b"; COMMIT", Break.ACK_CUT)
    await guard.run_in_transaction(lambda tx: tx.execute(statement))
    wire.arm(b"; COMMIT", Break.REQUEST_CUT)
    await guard.run_in_transaction(lambda tx: tx.execute(statement))

    assert wire.struck == 2
    assert await done(home) == ["called", "called"]
    assert guard.status().counts["unknown"] == 0


# ---------------------------------------------------------------------- two-phase commit


@pytest.mark.parametrize("how", LOST, ids=lambda how: how.value)
async def test_a_prepare_that_is_lost_is_unknown_and_not_repeated(home, guard, wire, how):
    attempts = []

    async def steps(tx):
        attempts.append(1)
        await put(tx, "a")
        wire.arm(b"PREPARE TRANSACTION", how)
        await tx.execute("PREPARE TRANSACTION 'lost'")

    with pytest.raises(dbguard.OutcomeUnknown) as caught:
        await guard.run_in_transaction(steps)

    assert caught.value.token is None
    assert attempts == [1]
    prepared = await looked(home, "SELECT gid FROM pg_prepared_xacts")
    assert prepared == ([("lost",)] if how is Break.ACK_CUT else [])
    for (gid,) in prepared:
        await looked(home, f"ROLLBACK PREPARED '{gid}'")


@pytest.mark.parametrize("ends", ["COMMIT PREPARED 'two'", "ROLLBACK PREPARED 'two'"])
@pytest.mark.parametrize("by", ["call", "acquired"])
@pytest.mark.parametrize("how", LOST, ids=lambda how: how.value)
async def test_the_end_of_a_prepared_transaction_that_is_lost_is_unknown(home, guard, wire, by, ends, how):
    before = await stored(home)
    async with guard.transaction() as tx:
        await put(tx, "a")
        await tx.execute("PREPARE TRANSACTION 'two'")
    assert await stored(home) == before, "a prepared transaction is not committed: nothing may say so"
    wire.arm(ends.encode(), how)

    async with guard.acquire() as con:
        with pytest.raises(dbguard.OutcomeUnknown):
            await (con if by == "acquired" else guard).execute(ends)

    assert wire.struck == 1
    left = await looked(home, "SELECT gid FROM pg_prepared_xacts")
    assert left == ([("two",)] if how is Break.REQUEST_CUT else [])
    assert guard.status().counts["repeats"] == 0
    for (gid,) in left:
        await looked(home, f"ROLLBACK PREPARED '{gid}'")


# ---------------------------------------------------------------------- what only the catalogue tells


@pytest.mark.parametrize("table", ["quiet", "over"])
async def test_a_statement_of_which_a_rule_makes_a_notification_is_not_repeated_once_it_was_told(
    home, guard, wire, table
):
    heard = []
    listener = await asyncpg.connect(home.dsn("a"))
    await listener.add_listener("news", lambda *said: heard.append(said[3]))
    wire.arm(b"; COMMIT", Break.ACK_CUT)

    await guard.execute(f"INSERT INTO {table} VALUES (1)")

    assert wire.struck == 1
    assert guard.status().counts["proved_applied"] == 1
    await listener.fetchval("SELECT 1")
    assert len(heard) == 1
    await listener.close()


@pytest.mark.parametrize("how", LOST, ids=lambda how: how.value)
async def test_a_read_of_a_view_that_writes_is_proved(home, guard, wire, how):
    wire.arm(b"; COMMIT", how)

    assert await guard.fetchval("SELECT x FROM noting") == 1

    assert wire.struck == 1
    assert await done(home) == ["noted"]
    assert guard.status().counts["unknown"] == 0
