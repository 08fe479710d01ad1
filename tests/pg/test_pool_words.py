"""The words of psycopg_pool's pools, on guards of both colours over a real cluster."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
import pytest

import dbguard
from dbguard.events import ConnectionDropped
from tests.pg.colours import got
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dbguard.events import Event
    from dbguard.testing.cluster import Cluster

pytestmark = pytest.mark.filterwarnings("ignore:a SyncGuard is used in the thread of a running event loop")


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture(params=[dbguard.PsycopgGuard, dbguard.SyncGuard], ids=lambda kind: kind.__name__)
async def guard(request: pytest.FixtureRequest, calm_cluster: Cluster, events: list[Event]) -> AsyncIterator[Any]:
    made = request.param(calm_cluster.dsn(), min_size=1, max_size=3, on_event=events.append)
    await got(made.open())
    yield made
    await got(made.close(1))


async def rows(guard: Any) -> int:
    (count,) = await got(guard.using(role="primary").fetchone("SELECT count(*) FROM kept"))
    return int(count)


async def backend(guard: Any) -> int:
    (pid,) = await got(guard.using(role="primary").fetchone("SELECT pg_backend_pid()"))
    return int(pid)


async def test_a_connection_is_taken_and_given_back_and_what_was_not_committed_is_rolled_back(
    guard: Any, kept: Any
) -> None:
    con = await got(guard.getconn(timeout=5))
    await got(con.execute("INSERT INTO kept VALUES (1)"))
    await got(con.commit())
    await got(con.execute("INSERT INTO kept VALUES (2)"))
    await got(guard.putconn(con))

    assert await rows(guard) == 1
    with pytest.raises(psycopg.InterfaceError, match="given back"):
        await got(con.execute("SELECT 1"))
    assert all(node.in_use == 0 for node in guard.status().nodes)


async def test_a_transaction_that_failed_is_given_back_without_an_error(guard: Any) -> None:
    con = await got(guard.getconn())
    pid = con.info.backend_pid
    with pytest.raises(psycopg.errors.DivisionByZero):
        await got(con.execute("SELECT 1/0"))

    await got(guard.putconn(con))

    assert await backend(guard) == pid


async def test_a_replicas_connection_is_taken_over_a_view(guard: Any) -> None:
    view = guard.using(role="replica")
    con = await got(view.getconn())

    assert await got((await got(con.execute("SELECT pg_is_in_recovery()"))).fetchone()) == (True,)
    await got(view.putconn(con))


async def test_what_was_not_taken_with_getconn_is_not_given_back(guard: Any, calm_cluster: Cluster) -> None:
    con = await got(guard.getconn())
    await got(guard.putconn(con))
    with pytest.raises(ValueError, match="that was done already"):
        await got(guard.putconn(con))
    with psycopg.connect(calm_cluster.dsn("a")) as foreign, pytest.raises(ValueError, match="no connection of this"):
        await got(guard.putconn(foreign))

    async def inside(block: Any) -> None:
        with pytest.raises(ValueError, match="given back when its block ends"):
            await got(guard.putconn(block))

    if isinstance(guard, dbguard.PsycopgGuard):
        async with guard.connection() as theirs:
            await inside(theirs)
    else:
        with guard.connection() as theirs:
            await inside(theirs)


async def test_one_that_is_dropped_frees_its_place_and_an_event_tells(guard: Any, events: list[Event]) -> None:
    con = await got(guard.getconn())
    pid = con.info.backend_pid
    del con
    gc.collect()

    await until(lambda: any(isinstance(event, ConnectionDropped) for event in events))
    await until(lambda: all(node.in_use == 0 for node in guard.status().nodes))
    assert await backend(guard) != pid


async def test_a_connection_that_does_not_come_in_time_is_an_error(guard: Any) -> None:
    taken = [await got(guard.getconn()) for _ in range(3)]

    with pytest.raises(dbguard.DeadlineExceeded):
        await got(guard.getconn(timeout=0.1))
    for con in taken:
        await got(guard.putconn(con))


async def test_drain_replaces_all_connections(guard: Any) -> None:
    busy = await got(guard.getconn())
    pids = {busy.info.backend_pid}

    await got(guard.drain())

    assert await got((await got(busy.execute("SELECT 1"))).fetchone()) == (1,)
    await got(guard.putconn(busy))
    assert await backend(guard) not in pids


async def test_check_closes_what_was_lost_at_hand(guard: Any, calm_cluster: Cluster) -> None:
    pid = await backend(guard)
    before = guard.get_stats()["pool_available"]
    calm_cluster.sql("a", f"SELECT pg_terminate_backend({pid}, 5000)")

    await got(guard.check())

    assert guard.get_stats()["pool_available"] == before - 1


async def test_stats_count_what_there_is(guard: Any) -> None:
    assert (guard.min_size, guard.max_size, guard.closed) == (1, 3, False)
    before = guard.get_stats()
    assert (before["pool_min"], before["pool_max"]) == (3, 9)
    con = await got(guard.getconn())
    stats = guard.pop_stats()
    await got(guard.putconn(con))

    assert stats["pool_size"] >= 1
    assert stats["pool_available"] == stats["pool_size"] - 1


async def test_wait_ends_when_there_is_a_primary_and_resize_says_what_to_do_instead(guard: Any) -> None:
    await got(guard.wait(timeout=5))
    with pytest.raises(NotImplementedError, match=r"close it, and open another one with pool\.min_size"):
        guard.resize(1, 2)


async def test_words_on_a_guard_that_is_not_open_are_refused(calm_cluster: Cluster) -> None:
    for kind in (dbguard.PsycopgGuard, dbguard.SyncGuard):
        made: Any = kind(calm_cluster.dsn())
        assert made.closed
        for word in (made.getconn, made.drain, made.check, made.get_stats, made.wait):
            with pytest.raises(dbguard.GuardClosed):
                await got(word())
    await asyncio.sleep(0)


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("kind", [dbguard.PsycopgGuard, dbguard.SyncGuard])
async def test_a_wrapped_pools_connections_are_in_autocommit_if_the_pool_says_so(
    calm_cluster: Cluster, kept: Any, kind: Any, *, autocommit: bool
) -> None:
    tasks = kind is dbguard.PsycopgGuard
    pools: Any = psycopg_pool.AsyncConnectionPool if tasks else psycopg_pool.ConnectionPool
    options = {"autocommit": autocommit, "cursor_factory": psycopg.AsyncRawCursor if tasks else psycopg.RawCursor}
    pool = pools(calm_cluster.dsn("a"), kwargs=options, min_size=1, open=False)
    await got(pool.open(wait=True))
    guard = kind.wrap(pool)
    await got(guard.open())
    con = await got(guard.getconn())
    await got(con.execute("INSERT INTO kept VALUES ($1)", [1]))
    await got(guard.putconn(con))

    assert kept() == [(int(autocommit),)]
    assert await got(guard.fetchone("SELECT $1 || '%s'", ["a"])) == ("a%s",)
    await got(guard.close(1))
    await got(pool.close())
