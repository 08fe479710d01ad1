"""RULES 3.6, tried: what the pruner may delete, and in which order; and how long a claim's ``x`` has to stay."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from dbguard.drivers import outcome_sql
from tests.integration.outcome.conftest import Refused, ask_claim, begin_claim, claim, install, is_blocked, new_token
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from dbguard.testing.cluster import Cluster

pytestmark = pytest.mark.every_postgres

DAY = 86_400.0
CTE = f"WITH {outcome_sql.cte_item('$1')} UPDATE item SET n = n + 1 WHERE id = $2"
STORE = "INSERT INTO dbguard.token (token) VALUES ($1)"
COUNT = "SELECT count(*) FROM dbguard.token WHERE token = $1"


@pytest.fixture(autouse=True)
def from_the_beginning(home: Cluster) -> Iterator[None]:
    """Each test has the horizon where it was installed, and leaves it there for the other files' tests."""
    yield
    home.sql("a", "TRUNCATE dbguard.token")
    home.sql("a", "UPDATE dbguard.horizon SET token = '00000000-0000-0000-0000-000000000000'")


async def test_a_token_below_the_horizon_gets_no_answer(home: Cluster, connect: Any) -> None:
    con = await connect(home)
    old, young = new_token(age=7200.0), new_token(age=1800.0)
    for token in (old, young):
        await con.execute(STORE, token)

    assert await con.fetchval(outcome_sql.PRUNE, 3600.0, 10) == 1

    with pytest.raises(Refused):
        await claim(con, old)  # otherwise: x, for a write that committed
    assert await claim(con, young) == "w"


async def test_the_horizon_never_goes_back(home: Cluster, connect: Any) -> None:
    con = await connect(home)

    seen = []
    for retention in (3600.0, 60.0, 3600.0):
        await con.fetchval(outcome_sql.PRUNE, retention, 10)
        seen.append(await con.fetchval(outcome_sql.CLAIM_HORIZON))

    assert seen[0] < seen[1] == seen[2]
    assert seen[1] < new_token(age=59.0)
    assert seen[1] > new_token(age=90.0)


async def test_the_pruner_goes_in_batches_and_moves_the_horizon_with_the_first(home: Cluster, connect: Any) -> None:
    con = await connect(home)
    tokens = [new_token(age=7200.0) for _ in range(25)]
    await con.executemany(STORE, [(token,) for token in tokens])

    assert await con.fetchval(outcome_sql.PRUNE, 3600.0, 10) == 10
    for token in tokens:
        with pytest.raises(Refused):
            await claim(con, token)
    assert [await con.fetchval(outcome_sql.PRUNE, 3600.0, 10) for _ in range(3)] == [10, 5, 0]


@pytest.mark.parametrize(("retention", "batch"), [(-1.0, 10), (3600.0, 0)])
async def test_a_horizon_in_the_future_cannot_be_asked_for(
    retention: float, batch: int, home: Cluster, connect: Any
) -> None:
    con = await connect(home)

    with pytest.raises(asyncpg.InvalidParameterValueError):
        await con.fetchval(outcome_sql.PRUNE, retention, batch)


async def test_a_claim_that_waited_for_the_pruner_sees_the_new_horizon(home: Cluster, connect: Any) -> None:
    pruner, asker, looker = [await connect(home) for _ in range(3)]
    token = new_token(age=7200.0)
    await pruner.execute(STORE, token)
    await pruner.execute("BEGIN")
    assert await pruner.fetchval(outcome_sql.PRUNE, 3600.0, 10) == 1

    asked = asyncio.ensure_future(claim(asker, token))
    await until(lambda: is_blocked(looker, asker))
    await pruner.execute("COMMIT")

    with pytest.raises(Refused):
        await asked


async def test_a_claim_under_way_keeps_the_pruner_out(home: Cluster, connect: Any) -> None:
    pruner, asker, looker = [await connect(home) for _ in range(3)]
    token = new_token(age=7200.0)
    await asker.execute(STORE, token)
    await begin_claim(asker)
    before = await ask_claim(asker, new_token())

    pruned = asyncio.ensure_future(pruner.fetchval(outcome_sql.PRUNE, 3600.0, 10))
    await until(lambda: is_blocked(looker, pruner))
    answer = await asker.fetchval(outcome_sql.CLAIM, token)
    await asker.execute("COMMIT")

    assert (before, answer, await pruned) == ("x", "w", 1)


async def test_claims_do_not_wait_for_each_other_at_the_horizon(home: Cluster, connect: Any) -> None:
    one, other = await connect(home), await connect(home)
    await begin_claim(one)
    await ask_claim(one, new_token())

    assert await claim(other, new_token(), lock_timeout=0.5) == "x"


async def test_a_pruner_that_deletes_first_ends_in_a_deadlock_with_a_claim(home: Cluster, connect: Any) -> None:
    """The forbidden order."""
    pruner, asker = await connect(home, user="postgres"), await connect(home)
    token = new_token(age=7200.0)
    await asker.execute(STORE, token)
    await pruner.execute("BEGIN")
    await begin_claim(asker, lock_timeout=30.0)
    await asker.fetchval(outcome_sql.CLAIM_HORIZON)
    await pruner.execute("DELETE FROM dbguard.token WHERE token = $1", token)

    asked = asyncio.ensure_future(asker.fetchval(outcome_sql.CLAIM, token))
    await until(lambda: is_blocked(pruner, asker))
    moved = asyncio.ensure_future(pruner.execute("UPDATE dbguard.horizon SET token = $1", new_token(age=3600.0)))
    ends = await asyncio.gather(asked, moved, return_exceptions=True)

    assert [type(end) for end in ends].count(asyncpg.DeadlockDetectedError) == 1


async def test_the_pruner_and_claims_at_once_know_no_deadlock(home: Cluster, connect: Any) -> None:
    pruner, *askers = [await connect(home) for _ in range(5)]
    tokens = [new_token(age=3590.0 + n / 10) for n in range(200)]  # some on either side of the horizon
    await pruner.executemany(STORE, [(token,) for token in tokens])

    async def ask(con: Any, mine: list[UUID]) -> set[str]:
        answers = set()
        for token in mine:
            try:
                answers.add(await claim(con, token, lock_timeout=30.0))
            except Refused:
                answers.add("refused")
        return answers

    async def prune() -> int:
        return sum([await pruner.fetchval(outcome_sql.PRUNE, 3600.0 - n / 20, 3) for n in range(100)])

    gone, *answers = await asyncio.gather(prune(), *(ask(con, tokens[n::4]) for n, con in enumerate(askers)))

    assert gone > 0
    assert set().union(*answers) == {"w", "refused"}  # never x: all of them had committed


async def waiting_original(home: Cluster, connect: Any, item: Any, age: float) -> tuple[UUID, int, Any, Any]:
    """Make a write that waits for a lock, orphaned; it was sent *age* seconds ago. Returns its blocker and its end."""
    writer, blocker, looker = [await connect(home) for _ in range(3)]
    token, row = new_token(age=age), await item(home)
    await blocker.execute("BEGIN")
    await blocker.execute("UPDATE item SET n = n WHERE id = $1", row)
    original = asyncio.ensure_future(writer.execute(CTE, token, row))
    await until(lambda: is_blocked(looker, writer))
    return token, row, blocker, original


async def test_an_x_that_is_deleted_with_the_tokens_of_its_age_lets_a_late_original_in(
    home: Cluster, connect: Any, item: Any
) -> None:
    """``DELETE WHERE token < $h`` to the letter: "not applied and never will be" was said, and then it was applied."""
    token, row, blocker, original = await waiting_original(home, connect, item, age=3590.0)
    resolver, pruner = await connect(home), await connect(home, user="postgres")

    assert await claim(resolver, token) == "x"  # so the caller repeats it
    await pruner.execute("BEGIN")
    await pruner.execute("UPDATE dbguard.horizon SET token = $1", new_token(age=3580.0))
    await pruner.execute("DELETE FROM dbguard.token WHERE token < $1", new_token(age=3580.0))
    await pruner.execute("COMMIT")
    await blocker.execute("COMMIT")

    assert await original == "UPDATE 1"
    assert home.sql("a", "SELECT n FROM item WHERE id = $1", row) == [(1,)]


async def test_a_claims_x_outlives_the_horizon_so_a_late_original_stays_out(
    home: Cluster, connect: Any, item: Any
) -> None:
    token, row, blocker, original = await waiting_original(home, connect, item, age=3590.0)
    resolver = await connect(home)

    assert await claim(resolver, token) == "x"
    await resolver.fetchval(outcome_sql.PRUNE, 3580.0, 1000)
    await blocker.execute("COMMIT")

    with pytest.raises(asyncpg.UniqueViolationError) as raised:
        await original
    assert raised.value.constraint_name == "token_pkey"
    assert home.sql("a", "SELECT n FROM item WHERE id = $1", row) == [(0,)]


async def test_an_x_is_deleted_after_thirty_days_more(home: Cluster, connect: Any) -> None:
    con = await connect(home)
    old, older = new_token(age=29 * DAY), new_token(age=31 * DAY)
    assert [await claim(con, token) for token in (old, older)] == ["x", "x"]

    assert await con.fetchval(outcome_sql.PRUNE, 3600.0, 1000) == 1

    assert [await con.fetchval(COUNT, token) for token in (old, older)] == [1, 0]


async def test_an_unlogged_table_would_call_a_committed_write_not_applied(cluster_factory: Any, connect: Any) -> None:
    """After a crash an unlogged table is empty, and no logged one is."""
    cluster = cluster_factory(replicas=0)
    await asyncio.to_thread(cluster.sql, "a", "CREATE ROLE app LOGIN")
    await asyncio.to_thread(install, cluster)
    logged, unlogged = new_token(), new_token()
    con = await connect(cluster)
    await con.execute(STORE, logged)
    await asyncio.to_thread(cluster.kill, "a")
    await asyncio.to_thread(cluster.start_node, "a")
    assert await claim(await connect(cluster), logged) == "w"

    await asyncio.to_thread(cluster.sql, "a", "ALTER TABLE dbguard.token SET UNLOGGED")
    con = await connect(cluster)
    await con.execute(STORE, unlogged)
    await asyncio.to_thread(cluster.kill, "a")
    await asyncio.to_thread(cluster.start_node, "a")

    assert await claim(await connect(cluster), unlogged) == "x"


async def test_xact_status_says_committed_of_a_transaction_that_never_was_and_the_claim_does_not(
    cluster_factory: Any, connect: Any
) -> None:
    """RULES 3.7: after a crash the next transaction takes the open one's number, and its end is taken for the other's."""
    cluster = cluster_factory(replicas=0)
    await asyncio.to_thread(cluster.sql, "a", "CREATE ROLE app LOGIN")
    await asyncio.to_thread(install, cluster)
    await asyncio.to_thread(cluster.sql, "a", "CHECKPOINT")
    token = new_token()
    con = await connect(cluster)
    await con.execute("BEGIN")
    await con.execute(STORE, token)
    xid = await con.fetchval("SELECT pg_current_xact_id()::text")
    await asyncio.to_thread(cluster.kill, "a")
    await asyncio.to_thread(cluster.start_node, "a")

    after = await connect(cluster)
    status = None
    for _ in range(50):
        await after.execute(STORE, new_token())
        if await after.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot()) > $1::text::xid8", xid):
            status = await after.fetchval("SELECT pg_xact_status($1::text::xid8)", xid)
            break

    assert status == "committed"
    assert await claim(after, token) == "x"
