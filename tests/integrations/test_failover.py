"""A primary that is demoted and stays reachable, under SQLAlchemy: what its pooled connections and transactions meet."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter

import pytest
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncSession as PlainSession
from sqlalchemy.ext.asyncio import create_async_engine as plain_engine

from dbguard.events import PrimaryChanged
from dbguard.integrations.sqlalchemy import AsyncSession, replica_engine
from tests.integration.failover.pooler import Pooler
from tests.integrations.shop import WHERE
from tests.waiting import until

POOLED = 20
INSERT = text("INSERT INTO written VALUES (:id) RETURNING current_setting('cluster_name')")
POOLING = {"pool_size": POOLED, "max_overflow": 0}


class Clients:
    """As many clients as connections are pooled, each with one transaction after the other, and what they met.

    met: when each error's transaction began, whose it was, and the error. told: when each acknowledged one began, its
    row, and the node. Times are those of `time.monotonic`.
    """

    def __init__(self, engine) -> None:
        self._engine = engine
        self._over = False
        self._tasks = []
        self.met = []
        self.told = []

    async def __aenter__(self):
        async with contextlib.AsyncExitStack() as held:  # all connections that there may be
            for _ in range(POOLED):
                con = await held.enter_async_context(self._engine.connect())
                assert await con.scalar(WHERE) == "a"
        return self

    async def __aexit__(self, *_):
        self._over = True
        await asyncio.gather(*self._tasks)

    def begin(self):
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(POOLED)]

    async def _write(self, number):
        row = number
        while not self._over:
            began = time.monotonic()
            row += POOLED
            try:
                async with AsyncSession(self._engine) as session, session.begin():
                    node = await session.scalar(INSERT, {"id": row})
                    await session.execute(text("SELECT pg_sleep(0.02)"))
            except exc.DBAPIError as error:
                self.met.append((began, number, error))
            else:
                self.told.append((began, row, node))

    async def go_on(self, node):
        """Wait until every client has a transaction acknowledged by *node*."""
        await until(lambda: len({row % POOLED for _, row, at in self.told if at == node}) == POOLED, 60)

    def judge(self, before):
        """At most one error for each transaction that was open, and none for those that began after *before*."""
        assert sorted({number for _, number, _ in self.met}) == sorted(number for _, number, _ in self.met)
        assert [(began - before, error) for began, _, error in self.met if began > before] == []


@pytest.fixture
async def home(cluster):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int PRIMARY KEY)")
    for replica in cluster.replicas:
        await asyncio.to_thread(cluster.wait_for, replica, "SELECT to_regclass('written') IS NOT NULL")
    return cluster


async def rows(cluster, node):
    return {row for (row,) in await asyncio.to_thread(cluster.sql, node, "SELECT id FROM written")}


async def test_plain_engine_writes_to_the_demoted_primary_for_ever(home):
    """What this is about: a pre-ping is answered by a replica, too."""
    engine = plain_engine(home.dsn("a").replace("postgresql:", "postgresql+asyncpg:"), pool_pre_ping=True)
    async with engine.begin() as con:
        await con.execute(INSERT, {"id": 1})
    await switch_over(home)

    for _ in range(3):
        async with PlainSession(engine) as session:
            with pytest.raises(exc.DBAPIError) as refused:
                await session.execute(INSERT, {"id": 2})
            assert refused.value.orig.sqlstate == "25006"
    await engine.dispose()


async def switch_over(cluster):
    """Demote a, as a manager does: stop it, promote b, and bring a back where it was, as a replica."""
    await asyncio.to_thread(cluster.stop_node, "a")
    stopped = time.monotonic()
    await asyncio.to_thread(cluster.promote, "b")
    await asyncio.to_thread(cluster.rejoin, "a")
    return stopped


async def test_demoted_primary_that_came_back_as_a_replica_is_left_without_an_error_for_new_transactions(
    home, open_guard, engine_of
):
    guard = await open_guard(home)
    engine = engine_of(guard, **POOLING)
    async with Clients(engine) as clients:
        clients.begin()
        await clients.go_on("a")
        stopped = await switch_over(home)
        await clients.go_on("b")

        clients.judge(before=stopped)
        await until(lambda: any(node.name == "a" and node.proven for node in guard.status().nodes))
    assert clients.met
    assert {row for _, row, _ in clients.told} <= await rows(home, "b")


async def test_old_primary_that_lives_on_loses_its_connections(home, open_guard, engine_of):
    """Its writes would be lost: each transaction that is open there is cut off, and the next one is on the new primary."""
    guard = await open_guard(home)
    engine = engine_of(guard, **POOLING)
    accepted = []
    guard.on_event(lambda event: accepted.append(time.monotonic()) if isinstance(event, PrimaryChanged) else None)
    async with Clients(engine) as clients:
        clients.begin()
        await clients.go_on("a")
        await asyncio.to_thread(home.promote, "b")
        await clients.go_on("b")

        clients.judge(before=accepted[0])
    assert {row for began, row, _ in clients.told if began > accepted[0]} <= await rows(home, "b")


async def test_connections_that_a_pooler_kept_open_over_a_demotion_are_ended(home, open_guard, engine_of):
    """They were told of a primary, and 25006 is all that says otherwise: one for each, and then no transaction meets it."""
    async with Pooler("127.0.0.1", home.node("a").port) as pooler:
        # No steady probe will notice.
        guard = await open_guard(
            home, ports={"a": pooler.port}, probe={"interval": "60s", "timeout": "3s"}, statement_cache_size=0
        )
        accepted = []
        guard.on_event(lambda event: accepted.append(time.monotonic()) if isinstance(event, PrimaryChanged) else None)
        unnamed = {"prepared_statement_cache_size": 0, "statement_cache_size": 0, "prepared_statement_name_func": str}
        engine = engine_of(guard, connect_args=unnamed, **POOLING)
        async with Clients(engine) as clients:
            await switch_over(home)
            assert guard.status().primary == "a"
            clients.begin()
            await clients.go_on("b")

            clients.judge(before=accepted[0])
        await engine.dispose()
        assert pooler.replaced
        assert "25006" in {error.orig.sqlstate for _, _, error in clients.met}


async def test_replica_that_dies_under_a_session_takes_no_commit_with_it(home, open_guard, engine_of):
    """What was asked of a replica is no part of the session's transaction."""
    guard = await open_guard(home)
    engine = engine_of(guard)
    on_replica = WHERE.execution_options(dbguard_role="replica")
    async with AsyncSession(engine) as session:
        node = await session.scalar(on_replica)
        await session.execute(INSERT, {"id": 1})
        await asyncio.to_thread(home.kill, node)
        await session.commit()
        assert await rows(home, "a") == {1}

        assert await session.scalar(WHERE) == "a"
        assert await session.scalar(on_replica) in {"b", "c"} - {node}


async def test_session_goes_on_to_another_replica_when_one_was_lost_in_its_transaction(home, open_guard, engine_of):
    guard = await open_guard(home)
    engine = engine_of(guard)
    on_replica = WHERE.execution_options(dbguard_role="replica")
    async with AsyncSession(engine) as session:
        node = await session.scalar(on_replica)
        await asyncio.to_thread(home.kill, node)
        with pytest.raises(exc.DBAPIError) as lost:
            await session.scalar(on_replica)
        assert lost.value.connection_invalidated

        assert await session.scalar(on_replica) in {"b", "c"} - {node}
        await session.execute(INSERT, {"id": 1})
        await session.commit()
    assert await rows(home, "a") == {1}


async def test_replica_that_comes_back_gets_its_share_of_the_pool(home, open_guard, engine_of):
    guard = await open_guard(home)
    engine = replica_engine(engine_of(guard, pool_size=8, max_overflow=0))

    async def share():
        async with contextlib.AsyncExitStack() as held:
            cons = [await held.enter_async_context(engine.connect()) for _ in range(8)]
            return Counter([await con.scalar(WHERE) for con in cons])

    async def become(wanted):
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(exc.DBAPIError):  # nobody has noticed yet
                    if await share() == wanted:
                        return
                await asyncio.sleep(0.05)

    assert await share() == {"b": 4, "c": 4}
    await asyncio.to_thread(home.kill, "b")
    await become({"c": 8})
    await asyncio.to_thread(home.start_node, "b")
    await become({"b": 4, "c": 4})


async def test_transaction_that_notices_late_costs_nobody_a_good_connection(home, open_guard, engine_of):
    """SQLAlchemy would replace all connections that are older than the loss of one."""
    pid = text("SELECT pg_backend_pid()")
    guard = await open_guard(home)
    engine = engine_of(guard)
    async with engine.connect() as late:
        await late.execute(WHERE)
        await asyncio.to_thread(home.promote, "b")
        await until(lambda: guard.status().primary == "b")
        async with engine.connect() as con:
            assert await con.scalar(WHERE) == "b"
            good = await con.scalar(pid)

        with pytest.raises(exc.DBAPIError):
            await late.execute(WHERE)
        async with engine.connect() as con:
            assert await con.scalar(pid) == good
