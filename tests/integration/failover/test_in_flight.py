"""Work under way on a node that freezes, or is fenced, is ended and not waited for; what became of it is told by the rules."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

import dbguard
from dbguard.drivers import outcome_sql
from tests.integration.facades import every_facade, words_of

act = asyncio.to_thread

LONG = 600  # seconds that the work takes on a, that a call may take, and a planned drain: nobody waits for it
SOON = 30.0  # seconds in which it ends: some tenths after the promotion, on a machine that does nothing else

SLOW = f"pg_sleep(CASE WHEN current_setting('cluster_name') = 'a' THEN {LONG} ELSE 0 END)"
SCHEMA = f"""
CREATE TABLE written (what text);
CREATE TABLE slow (what text);
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM {SLOW}; RETURN NEW; END $$;
CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slowly();
"""
SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
GONE = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError)


async def prepare(cluster):
    con = await asyncpg.connect(cluster.dsn("a"))
    try:
        await con.execute(SCHEMA + outcome_sql.schema())
    finally:
        await con.close()
    for name in "bc":
        await act(cluster.wait_for, name, "SELECT to_regclass('dbguard.token') IS NOT NULL")


class Works:
    """What one guard has under way: three pieces that wait for a, and a block that waits for the application."""

    WAYS = ("statement", "block", "function", "open")

    def __init__(self, guard, name):
        self.guard = guard
        self.words = words = words_of(guard)
        self.attempts = []
        self.goes_on = words.event()
        slow = "INSERT INTO slow VALUES ($1)"
        opened = ("INSERT INTO written VALUES ($1)", f"{name} open")
        self.tasks = words.work(
            [
                words.execute(f"INSERT INTO written SELECT $1 FROM {SLOW}", f"{name} statement"),
                words.block((slow, f"{name} block")),
                words.function(
                    (f"{slow} RETURNING 'done'", f"{name} function"), told=lambda tx: self.attempts.append(tx.node)
                ),
                words.block(opened, (self.goes_on.wait,), opened),
            ]
        )

    async def ended(self):
        """Return what each was told, by its name."""
        self.goes_on.set()
        async with asyncio.timeout(SOON):
            told = await asyncio.gather(*self.tasks, return_exceptions=True)
        return dict(zip(self.WAYS, told, strict=True))


@every_facade
@pytest.mark.parametrize("fault", ["frozen", "fenced"])
async def test_work_in_flight_is_ended_and_its_outcome_told(
    cluster_factory, open_guard, until, all_given_back, fault, facade
):
    cluster = await act(cluster_factory)
    await prepare(cluster)
    patient = {"timeout": f"{LONG}s", "failover": {"drain_timeout": f"{LONG}s"}}
    plain = Works(await open_guard(cluster, config=patient), "plain")
    proved = Works(await open_guard(cluster, config=patient | {"outcome": {"resolve": "token-table"}}), "proved")
    await until(lambda: act(cluster.sql, "a", f"{SLEEPING} HAVING count(*) = 6"))
    reign = plain.guard.status().reign

    if fault == "frozen":
        await act(cluster.freeze, "a")
    await act(cluster.promote, "b")
    for works in (plain, proved):
        await until(lambda works=works: works.guard.status().primary == "b", SOON)

    told = await plain.ended()
    for way in ("statement", "block", "function"):
        assert isinstance(told[way], dbguard.OutcomeUnknown), told
        assert (told[way].reign, told[way].token) == (reign, None)
    assert isinstance(told["open"], plain.words.gone)
    assert not isinstance(told["open"], dbguard.DbGuardError)
    assert plain.attempts == ["a"]
    assert plain.guard.status().counts["unknown"] == 3

    told = await proved.ended()
    assert (told["statement"], told["function"]) == ("INSERT 0 1", "done")
    assert proved.attempts == ["a", "b"]
    for way in ("block", "open"):
        assert isinstance(told[way], proved.words.gone), told
        assert not isinstance(told[way], dbguard.DbGuardError)
    assert "it was not applied" in "".join(told["block"].__notes__)
    counts = proved.guard.status().counts
    # Over psycopg the statement goes before its COMMIT, so that there was no need to ask.
    asked = 3 if facade == "asyncpg" else 2
    assert (counts["proved_not_applied"], counts["proved_applied"], counts["unknown"]) == (asked, 0, 0)

    rows = await act(cluster.sql, "b", "SELECT what FROM written UNION ALL SELECT what FROM slow ORDER BY 1")
    assert rows == [("proved function",), ("proved statement",)]
    for works in (plain, proved):
        await all_given_back(works.guard)


class Ended(asyncpg.Connection):
    """Is ended just as the answer to a statement that says so has come: what a fence can do between the two."""

    async def execute(self, query, *args, **kwargs):
        status = await super().execute(query, *args, **kwargs)
        if "'ends'" in query:
            self.terminate()
        return status


@pytest.mark.parametrize("tokens", [False, True])
async def test_an_answer_that_came_as_its_connection_was_ended_counts(home_of_tokens, open_guard, tokens):
    config = {"outcome": {"resolve": "token-table"}} if tokens else {}
    guard = await open_guard(home_of_tokens, config=config, connection_class=Ended)
    ends = "INSERT INTO written VALUES ('ends')"

    assert await guard.execute(ends) == "INSERT 0 1"
    async with guard.acquire() as con:
        assert await con.execute(ends) == "INSERT 0 1"
        with pytest.raises(asyncpg.InterfaceError):
            await con.execute(ends)
    with pytest.raises(GONE) as caught:
        async with guard.transaction() as tx:
            assert await tx.execute(ends) == "INSERT 0 1"
    assert not isinstance(caught.value, dbguard.DbGuardError)
    with pytest.raises(dbguard.OutcomeUnknown) as caught:
        await guard.execute(f"BEGIN; {ends}")  # whether it left a transaction open is not known
    assert isinstance(caught.value.__cause__, asyncpg.PostgresConnectionError)

    rows = await act(home_of_tokens.sql, "a", "SELECT count(*) FROM written")
    assert rows == [(2,)]


@pytest.fixture
async def home_of_tokens(cluster_factory):
    cluster = await act(cluster_factory)
    await prepare(cluster)
    return cluster
