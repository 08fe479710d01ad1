"""What logical replication makes of the schema: publications of all tables carry it, and what keeps it out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from dbguard.drivers import outcome_sql
from tests.integration.outcome.conftest import claim, install, new_token
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.testing.cluster import Cluster

STORE = f"WITH {outcome_sql.cte_item('$1')} INSERT INTO item VALUES ($2, 0)"
UNKNOWN = 'target relation "dbguard.horizon" does not exist'
SYNCED = "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel"


@pytest.fixture
def publisher(cluster_factory: Callable[..., Cluster]) -> Cluster:
    """A server that publishes all its tables."""
    cluster = cluster_factory(replicas=0, settings={"wal_level": "logical"})
    for statement in (
        "CREATE ROLE app LOGIN",
        "CREATE TABLE item (id int PRIMARY KEY, n int)",
        "GRANT ALL ON item TO app",
        "CREATE PUBLICATION everything FOR ALL TABLES",
    ):
        cluster.sql("a", statement)
    return cluster


@pytest.fixture
def subscriber(publisher: Cluster, cluster_factory: Callable[..., Cluster]) -> Cluster:
    """One that subscribes to them, and does not have the schema."""
    cluster = cluster_factory(replicas=0)
    node = publisher.primary
    cluster.sql("a", "CREATE TABLE item (id int PRIMARY KEY, n int)")
    cluster.sql(
        "a",
        f"CREATE SUBSCRIPTION sub CONNECTION 'host={node.host} port={node.port} user=postgres dbname=postgres' "
        "PUBLICATION everything",
    )
    cluster.wait_for("a", SYNCED)
    return cluster


@pytest.mark.every_postgres
async def test_a_subscriber_without_the_schema_stops_at_the_installation_and_goes_on_once_it_has_it(
    publisher: Cluster, subscriber: Cluster, connect: Any
) -> None:
    """The first row is that of the horizon. So `dbguard outcome install` refuses where all tables are published."""
    await asyncio.to_thread(install, publisher)
    writer = await connect(publisher)
    await writer.execute("INSERT INTO item VALUES (1, 0)")

    await until(lambda: subscriber.primary.log.read_text().count(UNKNOWN) >= 2)
    assert subscriber.sql("a", "SELECT count(*) FROM item") == [(0,)]

    await asyncio.to_thread(install_with_role, subscriber)
    token = new_token()
    await writer.execute(STORE, token, 2)
    await asyncio.to_thread(subscriber.wait_for, "a", "SELECT count(*) = 2 FROM item", 60.0)
    assert subscriber.sql("a", "SELECT count(*) FROM dbguard.token") == [(0,)]  # not subscribed to: passed over
    # So such a copy must not be asked what became of a write to its publisher, not even once it has taken its place.
    assert await claim(await connect(subscriber), token) == "x"


def install_with_role(cluster: Cluster) -> None:
    cluster.sql("a", "CREATE ROLE app LOGIN")
    install(cluster)


@pytest.mark.every_postgres
async def test_a_subscriber_with_the_schema_has_the_tokens_and_their_deletion(
    publisher: Cluster, subscriber: Cluster, connect: Any
) -> None:
    await asyncio.to_thread(install_with_role, subscriber)
    await asyncio.to_thread(install, publisher)
    await asyncio.to_thread(subscriber.sql, "a", "ALTER SUBSCRIPTION sub REFRESH PUBLICATION WITH (copy_data = false)")
    writer = await connect(publisher)
    old, young, refused = new_token(age=7200.0), new_token(), new_token()

    await writer.execute(STORE, old, 1)
    await writer.execute(STORE, young, 2)
    assert await claim(writer, refused) == "x"
    assert await claim(writer, refused) == "x"
    await asyncio.to_thread(subscriber.wait_for, "a", "SELECT sum(n) = 1 AND count(*) = 3 FROM dbguard.token", 60.0)
    assert await claim(await connect(subscriber), young) == "w"
    await writer.fetchval(outcome_sql.PRUNE, 3600.0, 100)
    await asyncio.to_thread(subscriber.wait_for, "a", "SELECT count(*) = 2 FROM dbguard.token", 60.0)

    assert subscriber.sql("a", "SELECT token FROM dbguard.horizon") == publisher.sql(
        "a", "SELECT token FROM dbguard.horizon"
    )


@pytest.mark.every_postgres
async def test_a_publication_of_named_tables_carries_no_token_and_takes_over_without_a_gap(
    publisher: Cluster, subscriber: Cluster, connect: Any
) -> None:
    writer = await connect(publisher)
    await writer.execute("INSERT INTO item VALUES (1, 0)")
    version = publisher.sql("a", "SELECT current_setting('server_version_num')::int")[0][0]
    named = "TABLES IN SCHEMA public" if version >= 150000 else "TABLE public.item"

    await asyncio.to_thread(publisher.sql, "a", f"CREATE PUBLICATION named FOR {named}")
    await asyncio.to_thread(
        subscriber.sql, "a", "ALTER SUBSCRIPTION sub SET PUBLICATION named WITH (copy_data = false)"
    )
    await writer.execute("INSERT INTO item VALUES (2, 0)")
    await asyncio.to_thread(subscriber.wait_for, "a", "SELECT count(*) = 2 FROM item", 60.0)
    await asyncio.to_thread(publisher.sql, "a", "DROP PUBLICATION everything")
    await asyncio.to_thread(install, publisher)
    await writer.execute(STORE, new_token(), 3)
    await writer.execute("INSERT INTO item VALUES (4, 0)")

    await asyncio.to_thread(subscriber.wait_for, "a", "SELECT count(*) = 4 FROM item", 60.0)
    assert "does not exist" not in subscriber.primary.log.read_text()
