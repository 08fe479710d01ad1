"""RULES 2.2: a commit whose wait for a synchronous standby was cut short is no acknowledgement.

The server answers COMMIT all the same, with a notice; asyncpg reports success. The row is there, on the primary alone: the
next failover loses it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import dbguard
from dbguard.testing.cluster import Cluster
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from dbguard.testing.binaries import Binaries

WAITS = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def frozen(binaries: Binaries) -> Iterator[Cluster]:
    """A primary whose only, synchronous, standby does not answer."""
    with Cluster(binaries=binaries, replicas=1, synchronous=True) as cluster:
        cluster.sql("a", "CREATE TABLE t (id int)")
        cluster.sql("a", "CREATE ROLE silent SUPERUSER LOGIN")
        cluster.sql("a", "ALTER ROLE silent SET client_min_messages = error")
        cluster.freeze("b")
        yield cluster
        cluster.thaw("b")


@pytest.fixture(params=["own", "wrapped"])
async def guard(request: pytest.FixtureRequest, frozen: Cluster, open_guard: Any) -> AsyncIterator[dbguard.Guard]:
    if request.param == "own":
        yield await open_guard(frozen.primary.port, min_size=1, max_size=2)
        return
    pool = await asyncpg.create_pool(frozen.dsn("a"), min_size=1, max_size=3)
    async with dbguard.Guard.wrap(pool) as wrapped:
        yield wrapped
    pool.terminate()


async def cut_short(frozen: Cluster, call: Awaitable[Any]) -> Any:
    """Make *call*, and cancel the backend that waits for the standby, as an administrator does."""
    under_way = asyncio.ensure_future(call)
    (pid,) = (await until(lambda: asyncio.to_thread(frozen.sql, "a", WAITS)))[0]
    await asyncio.to_thread(frozen.sql, "a", "SELECT pg_cancel_backend($1)", pid)
    return await under_way


async def autocommit(guard: Any) -> None:
    await guard.execute("INSERT INTO t VALUES (1)")


async def returning(guard: Any) -> None:
    await guard.fetchval("INSERT INTO t VALUES ($1) RETURNING id", 1)


async def many(guard: Any) -> None:
    await guard.executemany("INSERT INTO t VALUES ($1)", [(1,)])


async def copy(guard: Any) -> None:
    await guard.copy_records_to_table("t", records=[(1,)])


async def on_a_connection(guard: Any) -> None:
    async with guard.acquire() as con:
        await con.execute("INSERT INTO t VALUES (1)")


async def prepared(guard: Any) -> None:
    async with guard.acquire() as con:
        await (await con.prepare("INSERT INTO t VALUES ($1)")).fetch(1)


async def block(guard: Any) -> None:
    async with guard.acquire() as con, con.transaction():
        await con.execute("INSERT INTO t VALUES (1)")


async def block_of_a_prepared_statement(guard: Any) -> None:
    async with guard.acquire() as con, con.transaction():
        await (await con.prepare("INSERT INTO t VALUES ($1)")).fetch(1)


async def commit_as_text(guard: Any) -> None:
    async with guard.acquire() as con:
        await con.execute("BEGIN; INSERT INTO t VALUES (1)")
        await con.execute("COMMIT")


async def raw(guard: Any) -> None:
    async with guard.acquire() as con, con.transaction():
        await getattr(con, "raw", con).execute("INSERT INTO t VALUES (1)")


COMMON = [
    autocommit,
    returning,
    many,
    copy,
    on_a_connection,
    prepared,
    block,
    block_of_a_prepared_statement,
    commit_as_text,
    raw,
]


@pytest.mark.parametrize("call", COMMON, ids=lambda call: call.__name__)
async def test_the_driver_takes_it_for_success(call: Callable[[Any], Awaitable[None]], frozen: Cluster) -> None:
    """The control: what this file is about."""
    pool = await asyncpg.create_pool(frozen.dsn("a"), min_size=1, max_size=2)
    try:
        assert await cut_short(frozen, call(pool)) is None
    finally:
        pool.terminate()


async def transaction(guard: dbguard.Guard) -> None:
    async with guard.transaction() as con:
        await con.execute("INSERT INTO t VALUES (1)")


async def function(guard: dbguard.Guard) -> None:
    async def insert(con: dbguard.Connection) -> None:
        await con.execute("INSERT INTO t VALUES (1)")

    await guard.run_in_transaction(insert)


async def function_with_a_prepared_statement(guard: dbguard.Guard) -> None:
    async def insert(con: dbguard.Connection) -> None:
        await (await con.prepare("INSERT INTO t VALUES ($1)")).fetch(1)

    await guard.run_in_transaction(insert)


async def function_with_a_cursor(guard: dbguard.Guard) -> None:
    async def insert(con: dbguard.Connection) -> None:
        await (await con.cursor("INSERT INTO t VALUES ($1) RETURNING id", 1)).fetch(1)

    await guard.run_in_transaction(insert)


CALLS = [*COMMON, transaction, function, function_with_a_prepared_statement, function_with_a_cursor]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_a_commit_whose_wait_for_the_standby_was_cut_short_is_unknown(
    call: Callable[[dbguard.Guard], Awaitable[None]], guard: dbguard.Guard, frozen: Cluster
) -> None:
    before = frozen.sql("a", "SELECT count(*) FROM t")[0][0]

    with pytest.raises(dbguard.OutcomeUnknown) as raised:
        await cut_short(frozen, call(guard))

    assert isinstance(raised.value, asyncpg.PostgresConnectionError)
    assert frozen.sql("a", "SELECT count(*) FROM t")[0][0] == before + 1  # once, and not repeated


async def test_a_terminated_wait_for_the_standby_is_unknown(guard: dbguard.Guard, frozen: Cluster) -> None:
    under_way = asyncio.ensure_future(autocommit(guard))
    (pid,) = (await until(lambda: asyncio.to_thread(frozen.sql, "a", WAITS)))[0]
    await asyncio.to_thread(frozen.sql, "a", "SELECT pg_terminate_backend($1)", pid)

    with pytest.raises(dbguard.OutcomeUnknown):
        await under_way


async def test_a_transaction_that_only_read_waits_for_nobody(guard: dbguard.Guard) -> None:
    async with guard.transaction() as con:
        assert await con.fetchval("SELECT 1") == 1


async def test_a_session_told_to_be_silent_does_not_hide_it(guard: dbguard.Guard, frozen: Cluster) -> None:
    async def silent() -> None:
        async with guard.acquire() as con:
            await con.execute("SET client_min_messages = error")
            await con.execute("INSERT INTO t VALUES (1)")

    with pytest.raises(dbguard.OutcomeUnknown):
        await cut_short(frozen, silent())


async def test_a_role_told_to_be_silent_does_not_hide_it(open_guard: Any, frozen: Cluster) -> None:
    guard = await open_guard(frozen.primary.port, user="silent")

    with pytest.raises(dbguard.OutcomeUnknown) as raised:
        await cut_short(frozen, autocommit(guard))

    assert "cut short" in str(raised.value.__cause__)  # heard: the connection was told to tell


async def test_an_application_that_wants_silence_is_told_that_nothing_is_known(
    open_guard: Any, frozen: Cluster
) -> None:
    guard = await open_guard(frozen.primary.port, server_settings={"client_min_messages": "error"})

    with pytest.raises(dbguard.OutcomeUnknown) as raised:
        await cut_short(frozen, autocommit(guard))

    assert "client_min_messages" in str(raised.value.__cause__)


@pytest.fixture(scope="module")
def alone(binaries: Binaries) -> Iterator[Cluster]:
    """A primary without a standby, which waits for none."""
    with Cluster(binaries=binaries, replicas=0) as cluster:
        cluster.sql("a", "CREATE TABLE t (id int)")
        yield cluster


def wait_for(standbys: str, cluster: Cluster) -> None:
    cluster.sql("a", f"ALTER SYSTEM SET synchronous_standby_names = '{standbys}'")
    cluster.sql("a", "SELECT pg_reload_conf()")
    cluster.wait_for("a", f"SELECT current_setting('synchronous_standby_names') = '{standbys}'")


@pytest.fixture
def switched(alone: Cluster) -> Iterator[Cluster]:
    yield alone
    wait_for("", alone)


@pytest.mark.parametrize("held", [True, False], ids=["held", "with-hooks"])
@pytest.mark.parametrize("call", [autocommit, block, copy, transaction, raw], ids=lambda call: call.__name__)
async def test_a_wait_that_is_cut_short_is_heard_at_once_when_the_server_begins_to_wait(
    call: Callable[[dbguard.Guard], Awaitable[None]], switched: Cluster, open_guard: Any, *, held: bool
) -> None:
    hooks: dict[str, Any] = {} if held else {"setup": no_hook}
    slow = {"probe": {"interval": "1h"}}  # so that no probe tells that commits wait from now on
    guard = await open_guard(switched.primary.port, min_size=1, max_size=1, config=slow, **hooks)
    await call(guard)
    async with guard.acquire() as con:
        await con.execute("SET work_mem = '8MB'")  # the session is reset, and its listeners with it
    async with guard.acquire() as con:
        await con.reset()
    await asyncio.to_thread(wait_for, "nobody", switched)

    with pytest.raises(dbguard.OutcomeUnknown):
        await cut_short(switched, call(guard))


async def no_hook(con: Any) -> None:
    """The application's own: between two uses the connection goes back to asyncpg's pool."""
