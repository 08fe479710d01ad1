"""A cluster behind Toxiproxy: each link, application to node and node to node, can be cut by itself."""

from __future__ import annotations

import asyncio
from itertools import count
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
SOON = 20.0  # seconds for an answer, on a busy machine
LINKS = [("app", "a"), ("app", "b"), ("app", "c"), ("b", "a"), ("c", "a")]
numbers = count(1)


@pytest.fixture(scope="module")
def shared(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(binaries=binaries) as cluster:
        cluster.sql("a", "CREATE TABLE row (n int)")
        yield cluster


@pytest.fixture
def proxied(shared: ProxiedCluster) -> Iterator[ProxiedCluster]:
    yield shared
    assert shared.toxiproxy.broken() == []


async def says(dsn: str, query: str = "SHOW cluster_name", within: float = SOON) -> Any:
    """Return the answer of whoever is behind *dsn*; None if he keeps silent or cannot be reached."""
    try:
        async with asyncio.timeout(within):
            connection = await asyncpg.connect(dsn, ssl=False)
            try:
                return await connection.fetchval(query)
            finally:
                connection.terminate()
    except OSError:  # TimeoutError is one
        return None


def write(cluster: ProxiedCluster) -> int:
    """Write a new row on the primary, past all links."""
    n = next(numbers)
    cluster.sql(cluster.primary, "INSERT INTO row VALUES ($1)", n)
    return n


def has(cluster: ProxiedCluster, node: str, n: int) -> bool:
    return bool(cluster.sql(node, "SELECT count(*) FROM row WHERE n = $1", n)[0][0])


def wait_has(cluster: ProxiedCluster, node: str, n: int) -> None:
    cluster.wait_for(node, f"SELECT count(*) > 0 FROM row WHERE n = {n}")


async def passes(cluster: ProxiedCluster, link: tuple[str, str], n: int, within: float = SOON) -> bool:
    """Say whether a link carries: the application's an answer, a replica's the row *n*, which is on the primary."""
    dials, listens = link
    if dials == "app":
        return await says(cluster.dsn(listens), within=within) == listens
    try:
        await asyncio.to_thread(cluster.wait_for, dials, f"SELECT count(*) > 0 FROM row WHERE n = {n}", within)
    except TimeoutError:
        return False
    return True


def move(cluster: ProxiedCluster, new: str) -> None:
    """Kill the primary, promote *new*, and let all others follow it."""
    old = cluster.primary.name
    cluster.kill(old)
    cluster.promote(new)
    for other in {"a", "b", "c"} - {old, new}:
        cluster.follow(other, new)
    cluster.rejoin(old)
    for other in {"a", "b", "c"} - {new}:
        cluster.wait_linked(other, new)


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


@pytest.mark.parametrize("how", ["down", "hole"])
@pytest.mark.parametrize("cut", LINKS, ids="->".join)
async def test_link_is_cut_alone_and_heals(cut: tuple[str, str], how: str, proxied: ProxiedCluster) -> None:
    link = proxied.link(*cut)
    with link.down() if how == "down" else link.hole():
        n = await asyncio.to_thread(write, proxied)

        others = await asyncio.gather(*(passes(proxied, other, n) for other in LINKS if other != cut))
        assert all(others), dict(zip([other for other in LINKS if other != cut], others, strict=True))
        assert not await passes(proxied, cut, n, within=SILENT)

    assert await passes(proxied, cut, n)


async def test_partition_can_be_of_one_direction(proxied: ProxiedCluster) -> None:
    """What is asked arrives while answers are swallowed, and the other way round nothing is asked at all."""
    for stream, arrives in [("downstream", True), ("upstream", False)]:
        n, link = next(numbers), proxied.link("app", "a")
        connection = await asyncpg.connect(proxied.dsn("a"), ssl=False)
        try:
            insert = await connection.prepare("INSERT INTO row VALUES ($1)")
            with link.toxic("timeout", stream=stream, timeout=0):  # type: ignore[arg-type]
                asking = asyncio.create_task(insert.fetch(n))
                if arrives:
                    await asyncio.to_thread(wait_has, proxied, "a", n)
                done, _ = await asyncio.wait([asking], timeout=SILENT)
                assert not done
                assert await asyncio.to_thread(has, proxied, "a", n) is arrives
            with pytest.raises(asyncpg.PostgresConnectionError):
                await asking  # healing ends the connection
            assert await asyncio.to_thread(has, proxied, "a", n) is arrives
        finally:
            connection.terminate()


def test_replicas_stream_through_their_links(proxied: ProxiedCluster) -> None:
    for replica in "bc":
        (port,) = proxied.sql(replica, "SELECT sender_port FROM pg_stat_wal_receiver")[0]
        assert port == proxied.link(replica, "a").port


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


async def test_after_a_promotion_the_links_lead_to_the_new_primary_and_each_is_cut_alone(
    proxied: ProxiedCluster,
) -> None:
    await asyncio.to_thread(move, proxied, "b")
    try:
        for cut, other in [("a", "c"), ("c", "a")]:
            with proxied.link(cut, "b").hole():
                n = await asyncio.to_thread(write, proxied)
                assert await passes(proxied, (other, "b"), n)
                assert not await passes(proxied, (cut, "b"), n, within=SILENT)
                assert await says(proxied.dsn(cut)) == cut
            assert await passes(proxied, (cut, "b"), n)
        with proxied.link("c", "a").down(), proxied.link("b", "a").down():  # the old direction matters to nobody
            n = await asyncio.to_thread(write, proxied)
            assert await passes(proxied, ("a", "b"), n)
            assert await passes(proxied, ("c", "b"), n)
    finally:
        await asyncio.to_thread(move, proxied, "a")


async def test_replica_diverges_while_the_application_reaches_it(proxied: ProxiedCluster) -> None:
    """c is behind when it is promoted: b then shows rows that the new primary never had."""
    b = proxied.node("b")
    begin = b.log.stat().st_size
    with proxied.link("c", "a").hole():
        lost = await asyncio.to_thread(write, proxied)
        await asyncio.to_thread(wait_has, proxied, "b", lost)
        await asyncio.to_thread(proxied.kill, "a")
        await asyncio.to_thread(proxied.promote, "c")
    try:
        await asyncio.to_thread(proxied.follow, "b", "c")
        kept = await asyncio.to_thread(write, proxied)
        async with asyncio.timeout(SOON):
            while "forked off current database system timeline" not in b.log_tail(begin):  # noqa: ASYNC110  a server's event
                await asyncio.sleep(0.05)  # b tries again and again to follow, and cannot

        rows = f"SELECT array_agg(n ORDER BY n) FROM row WHERE n IN ({lost}, {kept})"
        assert await says(proxied.dsn("b"), rows) == [lost]
        assert await says(proxied.dsn("c"), rows) == [kept]
    finally:
        for node in "ab":
            await asyncio.to_thread(proxied.rejoin, node)
        await asyncio.to_thread(move, proxied, "a")
    assert await says(proxied.dsn("b"), rows) == [kept]


def test_second_one_in_a_process_is_refused_and_the_first_lives_on(shared: ProxiedCluster, binaries: Binaries) -> None:
    with pytest.raises(ToxiproxyError, match="runs a Toxiproxy server already"):
        ProxiedCluster(binaries=binaries).start()

    assert shared.toxiproxy.version()
