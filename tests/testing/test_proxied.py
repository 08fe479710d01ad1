"""A cluster behind Toxiproxy: each link, application to node and node to node, can be cut by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from dbguard.testing.cluster import ClusterError
from dbguard.testing.proxied import ProxiedCluster
from dbguard.testing.toxiproxy import ToxiproxyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbguard.testing.binaries import Binaries

pytestmark = pytest.mark.chaos

SILENT = 0.3  # seconds after which one who says nothing is called silent; an answer takes 0.005


@pytest.fixture(scope="module")
def shared(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(binaries=binaries) as cluster:
        cluster.sql("a", "CREATE TABLE row (n int)")
        yield cluster


@pytest.fixture
def proxied(shared: ProxiedCluster) -> Iterator[ProxiedCluster]:
    yield shared
    assert shared.toxiproxy.broken() == []


async def says(dsn: str, query: str = "SHOW cluster_name") -> Any:
    """Return the answer of whoever is behind *dsn*; None if he keeps silent."""
    try:
        async with asyncio.timeout(SILENT):
            connection = await asyncpg.connect(dsn, ssl=False)
            try:
                return await connection.fetchval(query)
            finally:
                connection.terminate()
    except TimeoutError:
        return None


def write(cluster: ProxiedCluster, n: int) -> None:
    cluster.sql("a", "INSERT INTO row VALUES ($1)", n)


def has(cluster: ProxiedCluster, node: str, n: int) -> bool:
    return bool(cluster.sql(node, "SELECT count(*) FROM row WHERE n = $1", n)[0][0])


@pytest.mark.parametrize("node", ["a", "b", "c"])
async def test_application_reaches_each_node_through_its_proxy(node: str, proxied: ProxiedCluster) -> None:
    link = proxied.link("app", node)

    assert proxied.dsn(node) == f"postgresql://postgres@{link.host}:{link.port}/postgres"
    assert link.port != proxied.node(node).port
    assert await says(proxied.dsn(node)) == node


def test_dsn_of_all_nodes_names_no_node_itself(proxied: ProxiedCluster) -> None:
    dsn = proxied.dsn()

    assert all(f":{proxied.link('app', node).port}" in dsn for node in proxied.nodes)
    assert not any(f":{node.port}" in dsn for node in proxied.nodes)


@pytest.mark.parametrize("stream", ["downstream", "upstream"])
@pytest.mark.parametrize("node", ["a", "b", "c"])
async def test_applications_link_is_cut_alone(node: str, stream: Any, proxied: ProxiedCluster) -> None:
    with proxied.link("app", node).toxic("timeout", stream=stream, timeout=0):
        said = await asyncio.gather(*(says(proxied.dsn(name)) for name in "abc"))
        # the node itself is well, and still receives
        await asyncio.to_thread(write, proxied, 1)
        for replica in "bc":
            await asyncio.to_thread(proxied.wait_for, replica, "SELECT count(*) > 0 FROM row WHERE n = 1")

    assert said == [None if name == node else name for name in "abc"]
    assert await says(proxied.dsn(node)) == node
    proxied.sql("a", "TRUNCATE row")


def test_replicas_stream_through_their_links(proxied: ProxiedCluster) -> None:
    for replica in "bc":
        (port,) = proxied.sql(replica, "SELECT sender_port FROM pg_stat_wal_receiver")[0]
        assert port == proxied.link(replica, "a").port


async def test_link_between_nodes_is_cut_alone(proxied: ProxiedCluster) -> None:
    with proxied.link("b", "a").down():
        await asyncio.to_thread(write, proxied, 2)
        await asyncio.to_thread(proxied.wait_for, "c", "SELECT count(*) > 0 FROM row WHERE n = 2")

        assert not await asyncio.to_thread(has, proxied, "b", 2)
        assert await says(proxied.dsn("b")) == "b"

    await asyncio.to_thread(proxied.wait_for, "b", "SELECT count(*) > 0 FROM row WHERE n = 2")


def test_link_is_made_once(proxied: ProxiedCluster) -> None:
    assert proxied.link("c", "b") is proxied.link(proxied.node("c"), proxied.node("b"))
    assert proxied.link("c", "b").upstream == f"127.0.0.1:{proxied.node('b').port}"


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [("app", "z", "no node z"), ("z", "a", "no node z"), ("a", "app", "no node app"), ("a", "a", "to itself")],
)
def test_link_that_leads_nowhere_is_refused(source: str, target: str, said: str, proxied: ProxiedCluster) -> None:
    with pytest.raises(ClusterError, match=said):
        proxied.link(source, target)


def test_after_a_failover_replicas_stream_through_the_links_to_the_new_primary(proxied: ProxiedCluster) -> None:
    for old, new in [("a", "b"), ("b", "a")]:  # there and back, so that the next test finds what it expects
        proxied.kill(old)
        proxied.promote(new)
        proxied.follow("c", new)
        proxied.rejoin(old)

        proxied.wait_linked("c", new)
        proxied.wait_linked(old, new)


def test_second_one_in_a_process_is_refused_and_the_first_lives_on(shared: ProxiedCluster, binaries: Binaries) -> None:
    with pytest.raises(ToxiproxyError, match="runs a Toxiproxy server already"):
        ProxiedCluster(binaries=binaries).start()

    assert shared.toxiproxy.version()
