"""`guard.connector(role)` over psycopg: a pool of psycopg_pool follows the primary, in both colours."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
import pytest

import dbguard
from tests.waiting import until

act = asyncio.to_thread

if TYPE_CHECKING:
    from dbguard.testing.cluster import Cluster

WHERE = "SELECT pg_is_in_recovery(), current_setting('cluster_name')"


def pool_of(connector: Any, **options: Any) -> psycopg_pool.ConnectionPool[Any]:
    """Return a pool of the application's own over *connector*."""
    return psycopg_pool.ConnectionPool(
        connection_class=connector.connection_class,
        check=connector.check,
        **{"min_size": 2, "max_size": 4, "open": True, "timeout": 20.0, **options},
    )


def ask(pool: psycopg_pool.ConnectionPool[Any]) -> tuple[Any, ...]:
    with pool.connection() as con:
        row: tuple[Any, ...] = con.execute(WHERE).fetchone()
        return row


async def test_pools_of_both_roles_follow_a_failover_in_threads(cluster: Cluster, configured: Any) -> None:
    def scene() -> None:
        with dbguard.SyncGuard(configured(cluster)) as guard:
            guard.ready(role="replica")
            with pool_of(guard.connector()) as writer, pool_of(guard.connector("replica")) as reader:
                assert ask(writer) == (False, "a")
                standby, _ = ask(reader)
                assert standby
                with writer.connection() as con:
                    con.execute("CREATE TABLE written (id int)")

                cluster.kill("a")
                cluster.promote("b")

                guard.ready()
                assert ask(writer) == (False, "b"), "no connection that the failover ended is handed out"
                with writer.connection() as con:
                    con.execute("INSERT INTO written VALUES (1)")
                    assert isinstance(con, psycopg.Connection)

    await act(scene)


async def test_a_pool_follows_a_failover_on_asyncio(cluster: Cluster, configured: Any) -> None:
    async with dbguard.PsycopgGuard(configured(cluster)) as guard:
        connector = guard.connector()
        async with psycopg_pool.AsyncConnectionPool(
            connection_class=connector.connection_class, check=connector.check, min_size=1, timeout=20.0, open=False
        ) as pool:

            async def asked() -> Any:
                async with pool.connection() as con:
                    return await (await con.execute(WHERE)).fetchone()

            assert await asked() == (False, "a")

            await act(cluster.kill, "a")
            await act(cluster.promote, "b")

            await guard.ready()
            await until(lambda: guard.status().primary == "b")
            assert await asked() == (False, "b")


async def test_what_a_pool_gives_wins_and_an_address_is_refused(calm_cluster: Cluster, configured: Any) -> None:
    def scene() -> None:
        with dbguard.SyncGuard(configured(calm_cluster), kwargs={"application_name": "mine"}) as guard:
            connect = guard.connector()
            name = "SELECT current_setting('application_name')"
            with connect() as con:
                assert con.execute(name).fetchone() == ("mine",)
            with connect(autocommit=True, application_name="theirs") as con:
                assert con.execute(name).fetchone() == ("theirs",)
                assert con.autocommit
            with pytest.raises(dbguard.ConfigError, match="the guard chooses the address"):
                connect("host=elsewhere")
            with pytest.raises(dbguard.ConfigError, match="port"):
                connect(port=5432)
            with pytest.raises(ValueError, match="role must be"):
                guard.connector("leader")

    await act(scene)


async def test_connections_end_with_what_they_were_made_for(calm_cluster: Cluster, configured: Any) -> None:
    """A connection that was closed by its owner is not held open on the server."""

    def scene() -> None:
        with dbguard.SyncGuard(configured(calm_cluster)) as guard:
            con = guard.connector()(application_name="let go")
            count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'let go'"
            assert guard.using(role="primary").fetchone(count) == (1,)
            con.close()
            calm_cluster.wait_for(calm_cluster.primary, count.replace("count(*)", "count(*) = 0"))

    await act(scene)
