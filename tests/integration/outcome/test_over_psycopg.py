"""What became of a commit whose connection broke, over psycopg, for tasks and for threads; see `test_faults` for asyncpg.

With tokens it is proved, and nothing is lost, doubled or unknown; without, it is told as unknown, once, and not repeated.
Each write adds one to the ``n`` of a row of its own.
"""

from __future__ import annotations

import asyncio

import pytest

import dbguard
from dbguard.testing.wire import Break, Wire
from tests.integration.facades import kind_of, over_psycopg, waited, words_of
from tests.integration.failover.workload import promote
from tests.integration.outcome.conftest import install
from tests.waiting import until

act = asyncio.to_thread

WAYS = ["statement", "block", "function"]
ADD = "UPDATE item SET n = n + 1 WHERE id = $1"
TOKENS = {"outcome": {"resolve": "token-table"}}


@pytest.fixture
async def wire(home):
    async with Wire("127.0.0.1", home.node("a").port) as wire:
        yield wire
        wire.heal()


@pytest.fixture
async def opened(facade):
    """Open a guard of role app, whose connections bear a name."""
    guards = []

    async def make(nodes, **sections):
        connection = {"user": "app", "database": "postgres", "server_settings": {"application_name": "writer"}}
        guard = kind_of(facade)(
            {"nodes": nodes, "connection": connection, "timeout": "30s", "probe": {"timeout": "3s"}, **sections}
        )
        await waited(guard.open)
        guards.append(guard)
        return guard

    yield make
    for guard in guards:
        await waited(guard.close, timeout=0.5)


def at(port, name="a"):
    return [{"host": "127.0.0.1", "port": port, "name": name}]


def begun(guard, way, number, attempts=None):
    """Begin a write of one way."""
    words = words_of(guard)
    match way:
        case "statement":
            writing = words.execute(ADD, number)
        case "block":
            writing = words.block((ADD, number))
        case "function":
            told = [] if attempts is None else attempts
            writing = words.function((ADD, number), told=lambda tx: told.append(tx.attempt))
    (task,) = words.work([writing])
    return task


async def applied(cluster, number, node="a"):
    return (await act(cluster.sql, node, "SELECT n FROM item WHERE id = $1", number))[0][0]


async def ended(task):
    """Return what a write has raised; None: it returned."""
    (raised,) = await asyncio.gather(task, return_exceptions=True)
    return raised if isinstance(raised, BaseException) else None


def judge_refused(raised, guard):
    """A block is not repeated: that nothing was committed is told by the driver's error."""
    assert isinstance(raised, words_of(guard).gone)
    assert not isinstance(raised, dbguard.DbGuardError)
    assert "it was not applied" in "".join(raised.__notes__)


@over_psycopg
@pytest.mark.parametrize("how", [Break.REQUEST_CUT, Break.ACK_CUT, Break.ACK_HOLE], ids=lambda how: how.value)
@pytest.mark.parametrize("way", WAYS)
async def test_a_broken_commit_is_proved_by_its_token(home, wire, opened, item, way, how):
    guard = await opened(at(wire.port), **TOKENS)
    number, attempts = await item(home), []
    wire.arm(b"; COMMIT", how)

    raised = await ended(begun(guard.using(timeout=6) if how is Break.ACK_HOLE else guard, way, number, attempts))

    assert wire.struck == 1
    reached = how is not Break.REQUEST_CUT
    counts = guard.status().counts
    assert (counts["proved_applied"], counts["proved_not_applied"], counts["unknown"]) == (reached, not reached, 0)
    if way == "block" and not reached:
        judge_refused(raised, guard)
        assert await applied(home, number) == 0
        return
    assert raised is None
    assert await applied(home, number) == 1
    assert attempts == ([] if way != "function" else [1] if reached else [1, 2])


@over_psycopg
@pytest.mark.parametrize("how", [Break.REQUEST_CUT, Break.ACK_CUT], ids=lambda how: how.value)
@pytest.mark.parametrize("way", WAYS)
async def test_without_a_token_it_is_unknown_and_nothing_is_repeated(home, wire, opened, item, way, how):
    guard = await opened(at(wire.port))
    number, attempts = await item(home), []
    wire.arm(b"n = n + 1" if way == "statement" else b"COMMIT", how)

    raised = await ended(begun(guard, way, number, attempts))

    assert wire.struck == 1
    assert isinstance(raised, dbguard.OutcomeUnknown)
    assert isinstance(raised, words_of(guard).gone)
    assert (raised.token, raised.phase) == (None, "sent")
    assert guard.status().counts["unknown"] == 1
    assert guard.status().counts["repeats"] == 0
    assert attempts == ([1] if way == "function" else [])
    await until(lambda: act(home.sql, "a", "SELECT count(*) = 0 FROM pg_locks WHERE relation = 'item'::regclass"))
    assert await applied(home, number) == (how is Break.ACK_CUT)


@pytest.fixture(scope="module")
def slow_commits(home):
    """The first commit of a write to ``item`` that is asked for it takes its time."""
    home.sql("a", "CREATE SEQUENCE commits")
    home.sql("a", "GRANT ALL ON commits TO app")
    home.sql(
        "a",
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF OLD.n >= 0 AND nextval('commits') = 1 THEN PERFORM pg_sleep(60); END IF; RETURN NEW; END $$",
    )
    home.sql(
        "a",
        "CREATE CONSTRAINT TRIGGER slowly AFTER UPDATE ON item DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION slowly()",
    )
    yield lambda: home.sql("a", "ALTER SEQUENCE commits RESTART")
    home.sql("a", "DROP TRIGGER slowly ON item")
    home.sql("a", "DROP FUNCTION slowly")
    home.sql("a", "DROP SEQUENCE commits")


@over_psycopg
@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "no tokens"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_backend_terminated_at_its_commit(home, opened, item, slow_commits, way, tokens):
    guard = await opened(at(home.node("a").port), **(TOKENS if tokens else {}))
    number, attempts = await item(home), []
    await act(slow_commits)
    task = begun(guard, way, number, attempts)
    where = "application_name = 'writer' AND wait_event = 'PgSleep'"
    await until(lambda: act(home.terminate_backends, "a", where=where))

    raised = await ended(task)

    counts = guard.status().counts
    assert (counts["proved_applied"], counts["proved_not_applied"]) == (0, int(tokens))
    assert counts["unknown"] == int(not tokens)
    if not tokens:
        assert isinstance(raised, dbguard.OutcomeUnknown)
        assert counts["repeats"] == 0
        assert attempts in ([], [1])
        assert await applied(home, number) == 0
    elif way == "block":
        judge_refused(raised, guard)
        assert await applied(home, number) == 0
    else:
        assert raised is None
        assert attempts == ([1, 2] if way == "function" else [])
        assert await applied(home, number) == 1


@over_psycopg
@pytest.mark.parametrize("how", [Break.REQUEST_HOLE, Break.ACK_HOLE], ids=lambda how: how.value)
async def test_a_primary_killed_at_the_commit(cluster_factory, opened, how):
    """Its successor is asked: what a replica had is applied, and what none had is not, and is done again there."""
    cluster = await act(cluster_factory, synchronous=True)
    for statement in (
        "CREATE ROLE app LOGIN",
        "CREATE TABLE item (id int PRIMARY KEY, n int)",
        "GRANT ALL ON item TO app",
        "INSERT INTO item VALUES (1, 0), (2, 0), (3, 0)",
    ):
        await act(cluster.sql, "a", statement)
    await act(install, cluster)
    async with Wire("127.0.0.1", cluster.node("a").port) as wire:
        nodes = at(wire.port) + [node for name in "bc" for node in at(cluster.node(name).port, name)]
        guard = await opened(nodes, **TOKENS)
        tasks = {}
        for number, way in enumerate(WAYS, 1):
            wire.arm(b"; COMMIT", how)
            tasks[way] = begun(guard, way, number)
            await until(lambda number=number: wire.struck == number)
        reached = how is Break.ACK_HOLE
        if reached:
            for name in "bc":
                await act(cluster.wait_for, name, "SELECT sum(n) = 3 FROM item")

        await act(cluster.kill, "a")
        new = await act(promote, cluster)
        raised = {way: await ended(task) for way, task in tasks.items()}

    counts = guard.status().counts
    assert (counts["proved_applied"], counts["proved_not_applied"]) == ((3, 0) if reached else (0, 3))
    assert counts["unknown"] == 0
    assert [raised["statement"], raised["function"]] == [None, None]
    rows = [await applied(cluster, number, new) for number in (1, 2, 3)]
    if reached:
        assert raised["block"] is None
        assert rows == [1, 1, 1]
    else:
        judge_refused(raised["block"], guard)
        assert rows == [1, 0, 1]
