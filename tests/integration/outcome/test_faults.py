"""What became of a commit whose connection broke, proved by its token: nothing lost, nothing doubled, nothing unknown.

Each write is a row of its own with an ``n`` that counts how often it was applied.
"""

from __future__ import annotations

import asyncio
import secrets
import time

import asyncpg
import pytest

import dbguard
from dbguard.core.outcome import new_token
from dbguard.events import OutcomeLeftOpen, OutcomeResolved
from dbguard.testing.wire import Break, Wire

BROKEN = list(Break)
UNSEEN = {Break.REQUEST_CUT, Break.REQUEST_HOLE, Break.LATE}
"""The server has not got the commit when the guard asks."""


def dbguard_token(age=0.0):
    """Return a token as a guard makes them, of *age* seconds ago."""
    return new_token(time.time() - age, secrets.randbits(74))


WAYS = ["cte", "literal", "ddl", "many", "copy", "block", "function"]


@pytest.fixture
async def wire(home):
    node = home.node("a")
    async with Wire("127.0.0.1", node.port) as wire:
        yield wire
        wire.heal()


@pytest.fixture
def told():
    """What the guards have said of outcomes: events of these two kinds."""
    return []


@pytest.fixture
async def opened(wire, told):
    """A guard of role app, through the wire, whose connections to the pool bear a name."""
    guards = []

    def hear(event):
        if isinstance(event, OutcomeResolved | OutcomeLeftOpen):
            told.append(event)

    async def make(port=None, **outcome):
        guard = dbguard.Guard(
            {
                "nodes": [{"host": "127.0.0.1", "port": port or wire.port, "name": "a"}],
                "connection": {"user": "app", "database": "postgres"},
                "outcome": {"resolve": "token-table", **outcome},
                "timeout": "20s",
                "probe": {"timeout": "3s"},
            },
            on_event=hear,
            server_settings={"application_name": "writer"},
        )
        await guard.open()
        guards.append(guard)
        return guard

    yield make
    for guard in guards:
        await guard.close(timeout=0.5)


@pytest.fixture
async def guard(opened):
    return await opened()


def looked(home, query, *args):
    return asyncio.to_thread(home.sql, "a", query, *args)


async def applied(home, number):
    """How often the write on this row was applied."""
    return (await looked(home, "SELECT n FROM item WHERE id = $1", number))[0][0]


ADD = "UPDATE item SET n = n + 1 WHERE id = $1"


async def write(guard, way, number, attempts=None):
    match way:
        case "cte":
            return await guard.execute(ADD, number)
        case "literal":
            return await guard.execute(f"UPDATE item SET n = n + 1 WHERE id = {number}")
        case "many":
            return await guard.executemany(ADD, [(number,)])
        case "ddl":
            return await guard.execute(
                f"UPDATE item SET n = n + 1 WHERE id = {number}; UPDATE item SET n = n WHERE id = {number}"
            )
        case "copy":
            return await guard.copy_records_to_table("copied", records=[(number,)])
        case "block":
            async with guard.transaction() as tx:
                await tx.execute(ADD, number)
        case "function":

            async def fn(tx):
                if attempts is not None:
                    attempts.append(tx.attempt)
                await tx.execute(ADD, number)
                return tx.attempt

            return await guard.run_in_transaction(fn)
    return None


COMMITS = {
    "cte": ADD,
    "literal": "dbguard token",
    "ddl": "; COMMIT",
    "many": "; COMMIT",
    "copy": "; COMMIT",
    "block": "; COMMIT",
    "function": "; COMMIT",
}


async def warmed(guard, way, item, home):
    """Let the way have been gone once, so that its statements are prepared; return the bytes by which its commit is known."""
    number = await item(home)
    await write(guard, way, number)
    number = await item(home)
    # A prepared statement's Bind names it and holds its arguments: here the number alone, four bytes long.
    known = b"\x00\x00\x00\x04" + number.to_bytes(4, "big") if way == "cte" else COMMITS[way].encode()
    return number, known


@pytest.fixture(scope="module", autouse=True)
def copied(home):
    home.sql("a", "CREATE TABLE copied (id int)")
    home.sql("a", "GRANT ALL ON copied TO app")
    yield
    home.sql("a", "DROP TABLE copied")


async def counted(home, way, number):
    if way == "copy":
        return (await looked(home, "SELECT count(*) FROM copied WHERE id = $1", number))[0][0]
    return await applied(home, number)


@pytest.mark.parametrize("how", BROKEN, ids=lambda how: how.value)
@pytest.mark.parametrize("way", WAYS)
async def test_a_broken_commit_is_applied_once(home, guard, wire, item, way, how):
    number, known = await warmed(guard, way, item, home)
    wire.arm(known, how)

    hurried = guard.using(timeout=6) if how in (Break.REQUEST_HOLE, Break.ACK_HOLE) else guard

    raised = None
    try:
        await write(hurried, way, number)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, dbguard.DbGuardError) as error:
        raised = error

    assert wire.struck == 1
    wire.deliver()
    times = await counted(home, way, number)
    if way == "block" and raised is not None:
        assert not isinstance(raised, dbguard.OutcomeUnknown)
        assert times == 0
        assert "it was not applied" in "".join(getattr(raised, "__notes__", ())) or "nothing was" in str(raised)
    else:
        assert raised is None
        assert times == 1
    assert guard.status().counts["unknown"] == 0
    counts = guard.status().counts
    assert counts["proved_applied"] + counts["proved_not_applied"] == 1
    if how in UNSEEN:
        assert counts["proved_not_applied"] == 1
    elif how is not Break.RESET:
        assert counts["proved_applied"] == 1


BODIES = {
    "many": b"\x00\x00\x00\x04",
    "copy": b"FROM STDIN",
    "ddl": b"UPDATE item SET n = n WHERE",
    "function": b"\x00\x00\x00\x04",
}


@pytest.mark.parametrize("how", [Break.REQUEST_CUT, Break.ACK_CUT], ids=lambda how: how.value)
@pytest.mark.parametrize("way", BODIES)
async def test_what_was_lost_before_its_commit_was_sent_is_repeated_without_a_question(
    home, guard, wire, item, way, how
):
    number, _ = await warmed(guard, way, item, home)
    known = BODIES[way] + number.to_bytes(4, "big") if BODIES[way][0] == 0 else BODIES[way]
    wire.arm(known, how)

    await write(guard, way, number)

    assert wire.struck == 1
    assert await counted(home, way, number) == 1
    counts = guard.status().counts
    assert (counts["repeats"], counts["proved_applied"], counts["proved_not_applied"], counts["unknown"]) == (
        1,
        0,
        0,
        0,
    )


@pytest.mark.parametrize("how", [Break.ACK_CUT, Break.REQUEST_CUT], ids=lambda how: how.value)
@pytest.mark.parametrize("way", ["many", "copy", "ddl", "function"])
async def test_the_commit_of_a_repeat_is_asked_about_as_the_first_is(home, guard, wire, item, way, how):
    """The first attempt was lost before its COMMIT; what was known of that one says nothing about the next."""
    number, _ = await warmed(guard, way, item, home)
    wire.arm(BODIES[way] + number.to_bytes(4, "big") if BODIES[way][0] == 0 else BODIES[way], Break.REQUEST_CUT)
    wire.arm(b"; COMMIT", how)

    await write(guard, way, number)

    assert wire.struck == 2
    assert await counted(home, way, number) == 1
    counts = guard.status().counts
    assert (counts["proved_applied"], counts["proved_not_applied"]) == ((1, 0) if how is Break.ACK_CUT else (0, 1))


async def test_what_was_lost_before_the_write_itself_was_sent_is_of_no_unknown_outcome(home, guard, wire, item, until):
    """A statement that may ask for lastval() is preceded by one that forgets what earlier uses drew."""
    number = await item(home)
    await until(lambda: not guard._core.texts.knowledge.unsure)
    await guard.execute(ADD, number)
    wire.arm(b"DISCARD SEQUENCES", Break.REQUEST_CUT)

    await guard.execute(f"UPDATE item SET n = n + 1 WHERE id = {number} /* a word like lastval is enough */")

    assert wire.struck == 1
    assert guard.status().counts["unknown"] == 0
    assert await applied(home, number) == 2


@pytest.mark.parametrize("how", [Break.ACK_CUT, Break.ACK_HOLE], ids=lambda how: how.value)
async def test_rows_that_went_with_the_connection_are_said_to_be_lost(home, guard, wire, item, told, how):
    number = await item(home)
    query = "UPDATE item SET n = n + 1 WHERE id = $1 RETURNING n"
    await guard.fetchval(query, number)
    wire.arm(b"\x00\x00\x00\x04" + number.to_bytes(4, "big"), how)

    with pytest.raises(dbguard.ResultLost) as caught:
        await guard.fetchval(query, number, timeout=6)

    assert await guard.resolve(caught.value.token) is True
    assert await applied(home, number) == 2
    assert guard.status().counts["result_lost"] == 1
    assert [(event.outcome, event.node, event.token) for event in told] == [
        ("result lost", "a", caught.value.token),
        ("applied", "a", caught.value.token),  # by `resolve`
    ]
    assert not isinstance(caught.value, asyncpg.PostgresConnectionError), "loops that repeat on it would apply it twice"


async def test_rows_are_kept_where_that_is_wished(home, opened, wire, item):
    guard = await opened(keep_result=True)
    number = await item(home)
    query = "UPDATE item SET n = n + 1 WHERE id = $1 RETURNING n"
    assert await guard.fetchval(query, number) == 1
    wire.arm(b"; COMMIT", Break.ACK_CUT)

    assert await guard.fetchval(query, number) == 2

    assert wire.struck == 1
    assert await applied(home, number) == 2


async def test_the_tag_of_a_write_proved_applied_is_told_without_its_count(home, guard, wire, item):
    number, known = await warmed(guard, "cte", item, home)
    wire.arm(known, Break.ACK_CUT)

    assert await guard.execute(ADD, number) == "UPDATE"


@pytest.mark.parametrize("how", BROKEN, ids=lambda how: how.value)
async def test_a_write_on_an_acquired_connection_is_proved_and_not_repeated(home, guard, wire, item, how):
    number, known = await warmed(guard, "cte", item, home)
    async with guard.using(timeout=6).acquire() as con:
        assert await con.fetchval("SELECT 1") == 1
        wire.arm(known, how)
        try:
            said = await con.execute(ADD, number)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            said = error

    wire.deliver()
    times = await applied(home, number)
    assert not isinstance(said, dbguard.OutcomeUnknown)
    assert times == (1 if said == "UPDATE" else 0)
    if how in UNSEEN:
        assert times == 0
        assert "it was not applied" in "".join(getattr(said, "__notes__", ())) or "nothing was" in str(said)
    assert wire.struck == 1


async def test_a_function_proved_applied_returns_what_it_returned(home, guard, wire, item):
    number, known = await warmed(guard, "function", item, home)
    attempts = []
    wire.arm(known, Break.ACK_CUT)

    assert await write(guard, "function", number, attempts) == 1
    assert attempts == [1]


async def test_a_function_proved_not_applied_is_repeated(home, guard, wire, item, told):
    number, known = await warmed(guard, "function", item, home)
    attempts = []
    wire.arm(known, Break.REQUEST_CUT)

    assert await write(guard, "function", number, attempts) == 2
    assert attempts == [1, 2]
    assert await applied(home, number) == 1
    assert [event.outcome for event in told] == ["not applied"]


@pytest.mark.parametrize("skip", range(3))
@pytest.mark.parametrize("how", [Break.REQUEST_CUT, Break.ACK_CUT, Break.ACK_HOLE], ids=lambda how: how.value)
async def test_a_claim_that_was_not_answered_is_made_again(home, guard, wire, item, how, skip):
    number, known = await warmed(guard, "cte", item, home)
    wire.arm(known, Break.ACK_CUT)
    for _ in range(skip + 1):
        wire.arm(b"COMMIT\x00", how)  # the claim's own: a joined one has a statement before it

    await guard.execute(ADD, number)

    assert wire.struck == skip + 2
    assert await applied(home, number) == 1
    claims = await looked(home, "SELECT kind::text, n FROM dbguard.token WHERE n > 0 ORDER BY at DESC LIMIT 1")
    assert claims[0][0] == "w", "its own earlier claims are not mistaken for the write"


async def test_a_late_original_is_refused_by_its_claim(home, guard, wire, item, connect, until):
    number, known = await warmed(guard, "cte", item, home)
    wire.arm(known, Break.LATE)

    await guard.execute(ADD, number)  # lost, claimed, repeated

    assert wire.deliver() == 1
    con = await connect(home)
    busy = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'writer' AND state = 'active'"
    await until(lambda: con.fetchval(busy))
    assert await applied(home, number) == 1


async def test_an_orphan_that_holds_its_own_locks_does_not_hold_up_the_repeat(home, guard, wire, item):
    """The write's backend lives on in its transaction, with the row locked: its COMMIT never arrived."""
    number, known = await warmed(guard, "function", item, home)
    wire.arm(known, Break.REQUEST_HOLE)

    assert await write(guard.using(timeout=6), "function", number) == 2

    assert await applied(home, number) == 1


async def test_a_write_that_waits_for_somebody_elses_lock_is_ended_and_repeated(
    home, guard, wire, item, connect, until
):
    number, _ = await warmed(guard, "function", item, home)
    other = await connect(home)
    async with other.transaction():
        await other.execute(ADD, number)
        wire.arm(b"UPDATE item", Break.ORPHAN)
        writing = asyncio.create_task(guard.execute(f"UPDATE item SET n = n + 1 WHERE id = {number}"))
        await wire.broken.wait()
        await until(lambda: guard.status().counts["proved_not_applied"])

    await writing
    assert await applied(home, number) == 2


async def test_a_writes_own_backend_that_holds_its_token_is_ended_and_repeated(home, guard, wire, connect, until):
    """Its commit waits for a lock, in a deferred trigger, and has stored the token already."""
    for statement in (
        "CREATE TABLE held (id int)",
        """CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql
           AS $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$""",
        """CREATE CONSTRAINT TRIGGER holds AFTER INSERT ON held DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION hold()""",
        "GRANT ALL ON held TO app",
    ):
        await looked(home, statement)
    holder = await connect(home)
    await holder.execute("SELECT pg_advisory_lock(4711)")
    wire.arm(b"INSERT INTO held", Break.ORPHAN)

    writing = asyncio.create_task(guard.execute("INSERT INTO held VALUES (1)"))
    await until(lambda: guard.status().counts["proved_not_applied"])
    await holder.execute("SELECT pg_advisory_unlock(4711)")

    await writing
    assert await looked(home, "SELECT count(*) FROM held") == [(1,)]
    await looked(home, "DROP TABLE held")
    await looked(home, "DROP FUNCTION hold")


async def test_what_stays_open_is_told_with_all_that_is_needed_to_ask_for_it(home, guard, wire, item, told, connect):
    number, _ = await warmed(guard, "cte", item, home)
    holder = await connect(home)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("SELECT token FROM dbguard.horizon FOR UPDATE")  # as the pruner does: no claim gets by
    wire.arm(b"dbguard token", Break.ACK_CUT)
    before = time.time()

    with pytest.raises(dbguard.OutcomeUnknown) as caught:
        await guard.using(timeout=4).execute(f"UPDATE item SET n = n + 1 WHERE id = {number}")
    given_up = time.time()
    await transaction.rollback()

    (event,) = told
    assert isinstance(event, OutcomeLeftOpen)
    error = caught.value
    assert (event.node, event.token, event.reign, event.sent_at) == ("a", error.token, error.reign, error.sent_at)
    assert event.reign == guard.status().reign
    assert event.sent_at > before - 0.1
    assert given_up - event.sent_at > 0.5, "when it was sent: asking took the rest of the call"
    assert f"dbguard outcome resolve CONFIG {error.token}" in event.text()
    assert await guard.resolve(event.token) is True


async def test_who_holds_a_token_and_is_not_its_write_is_waited_for(home, opened, wire, connect):
    """What stays open is said with its token, and can be asked later, from another process too."""
    guard, elsewhere = await opened(), await opened()
    holder = await connect(home)
    transaction = holder.transaction()
    await transaction.start()
    token = str(dbguard_token())
    await holder.execute("INSERT INTO dbguard.token (token) VALUES ($1::text::uuid)", token)

    with pytest.raises(dbguard.OutcomeUnknown) as caught:
        await guard.resolve(token, timeout=0.7)
    assert caught.value.token == token
    assert not holder.is_closed()
    await transaction.commit()

    assert await elsewhere.resolve(token) is True


async def test_a_token_that_nobody_stored_is_not_applied_and_stays_so(home, guard, connect):
    token = str(dbguard_token())

    assert await guard.resolve(token) is False
    assert await guard.resolve(token) is False

    con = await connect(home)
    with pytest.raises(asyncpg.UniqueViolationError):
        await con.execute("INSERT INTO dbguard.token (token) VALUES ($1::text::uuid)", token)


async def test_a_token_below_the_horizon_gets_no_answer(home, guard):
    before = (await looked(home, "SELECT token FROM dbguard.horizon"))[0][0]
    await looked(home, "UPDATE dbguard.horizon SET token = $1::text::uuid", str(dbguard_token(60.0)))
    try:
        with pytest.raises(dbguard.OutcomeUnknown, match="older than what the pruner has kept"):
            await guard.resolve(str(dbguard_token(120.0)))
        assert await guard.resolve(str(dbguard_token())) is False
    finally:
        await looked(home, "UPDATE dbguard.horizon SET token = $1", before)


async def test_what_is_no_token_is_refused(guard):
    with pytest.raises(dbguard.TokenInvalid):
        await guard.resolve("42")
