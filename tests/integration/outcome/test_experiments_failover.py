"""RULES 3.1, tried through promotions: a token goes with its rows, wherever they went."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from dbguard.drivers import outcome_sql
from tests.integration.outcome.conftest import claim, install, new_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.testing.cluster import Cluster

STORE = f"WITH {outcome_sql.cte_item('$1')} INSERT INTO item VALUES ($2, 0)"


@pytest.fixture
def two(cluster_factory: Callable[..., Cluster]) -> Cluster:
    """A primary and an asynchronous replica."""
    cluster = cluster_factory(replicas=1)
    for statement in (
        "CREATE ROLE app LOGIN",
        "CREATE TABLE item (id int PRIMARY KEY, n int)",
        "GRANT ALL ON item TO app",
    ):
        cluster.sql("a", statement)
    install(cluster)
    cluster.wait_for("b", "SELECT to_regclass('dbguard.reign') IS NOT NULL")
    return cluster


@pytest.mark.every_postgres
async def test_after_an_asynchronous_promotion_the_answer_is_that_of_the_new_primary(
    two: Cluster, connect: Any
) -> None:
    """What arrived had committed; what did not arrive is lost with its token, and a repeat applies it once."""
    con = await connect(two)
    arrived, lost = new_token(), new_token()
    await con.execute(STORE, arrived, 1)
    await asyncio.to_thread(two.wait_for, "b", "SELECT count(*) = 1 FROM item")
    await asyncio.to_thread(two.kill, "b")
    await con.execute(STORE, lost, 2)  # acknowledged: no client can prevent that it is lost
    await asyncio.to_thread(two.kill, "a")
    await asyncio.to_thread(two.start_node, "b")
    await asyncio.to_thread(two.promote, "b")

    con = await connect(two, "b")
    assert [await claim(con, arrived), await claim(con, lost)] == ["w", "x"]
    await con.execute(STORE, new_token(), 2)

    assert two.sql("b", "SELECT id FROM item ORDER BY id") == [(1,), (2,)]


@pytest.mark.every_postgres
async def test_an_old_primary_that_still_answers_calls_the_new_ones_writes_not_applied(
    two: Cluster, connect: Any
) -> None:
    """So a claim is made on the fenced primary alone: the repeat would apply this write twice."""
    await asyncio.to_thread(two.promote, "b")
    old, new = await connect(two, "a"), await connect(two, "b")
    token = new_token()
    await new.execute(STORE, token, 1)

    assert [await claim(old, token), await claim(new, token)] == ["x", "w"]


@pytest.mark.every_postgres
async def test_a_claim_under_an_older_reign_closes_no_door_under_the_next(two: Cluster, connect: Any) -> None:
    """RULES 3.2: it is made again, or an original that a pooler kept in its queue is let in by the new primary."""
    old, late, known = await connect(two, "a"), new_token(), new_token()
    await asyncio.to_thread(two.kill, "b")
    assert [await claim(old, late), await claim(old, known)] == ["x", "x"]
    await asyncio.to_thread(two.kill, "a")
    await asyncio.to_thread(two.start_node, "b")
    await asyncio.to_thread(two.promote, "b")

    new = await connect(two, "b")
    assert await claim(new, known) == "x"
    assert await new.execute(STORE, late, 1) == "INSERT 0 1"
    with pytest.raises(asyncpg.UniqueViolationError):
        await new.execute(STORE, known, 2)


async def test_two_promotions_to_one_timeline_have_two_marks(
    cluster_factory: Callable[..., Cluster], connect: Any
) -> None:
    """RULES 4.3: the number is the same, and what was marked under the first is not there under the second."""
    cluster = cluster_factory(replicas=2)
    await asyncio.to_thread(cluster.sql, "a", "CREATE ROLE app LOGIN")
    await asyncio.to_thread(install, cluster)
    for name in "bc":
        await asyncio.to_thread(cluster.wait_for, name, "SELECT to_regclass('dbguard.reign') IS NOT NULL")
    await asyncio.to_thread(cluster.kill, "a")
    marks = []
    for name in "bc":
        await asyncio.to_thread(cluster.promote, name)
        con = await connect(cluster, name)
        mine, late = new_token(), new_token()
        await con.execute(outcome_sql.reign_add(2, mine))
        await con.execute(outcome_sql.reign_add(2, late))  # another process, a moment later
        await con.execute(outcome_sql.reign_add(3, late))  # one that takes it for the primary of another timeline
        marks.append(tuple(await con.fetchrow(outcome_sql.REIGN_READ)))
        assert marks[-1] == (2, mine)
        assert await con.fetchval("SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)") == "00000002"
        await asyncio.to_thread(cluster.kill, name)

    assert marks[0] != marks[1]
