"""Overload is not death: a node that takes no more connections, or answers slowly, loses weight and no life.

No failover, no open breaker, nobody told that a node is down, and no error: calls wait for connections at hand, or go
elsewhere; and the server is not dialled more for being full.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from dbguard.events import BreakerChanged, GateChanged, NodeDown, PrimaryChanged
from dbguard.testing.cluster import Cluster
from dbguard.testing.proxied import APPLICATION, ProxiedCluster
from dbguard.testing.wire import Wire
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    import dbguard
    from dbguard.events import Event
    from dbguard.testing.binaries import Binaries

ALARMS = (BreakerChanged, GateChanged, NodeDown, PrimaryChanged)
SLOTS = 20
PATIENT = {"probe": {"interval": "200ms", "timeout": "10s"}}
"""Wide limits, since the machine that runs this may be short of time itself."""

WRITE = "INSERT INTO crowd VALUES (1)"
WHERE = "SELECT current_setting('cluster_name') FROM (SELECT count(*) FROM crowd) AS counted"


@pytest.fixture(scope="module")
def small(binaries: Binaries) -> Iterator[Cluster]:
    """A primary and two replicas that take 20 connections each, 3 of them for superusers alone."""
    with Cluster(binaries=binaries) as cluster:
        for node in cluster.nodes:  # the primary first: no standby may be smaller than it knows its primary to be
            cluster.sql(node, f"ALTER SYSTEM SET max_connections = {SLOTS}")
            cluster.stop_node(node)
            cluster.start_node(node)
            cluster.wait_streaming()
        cluster.sql("a", "CREATE ROLE app LOGIN IN ROLE pg_monitor")
        cluster.sql("a", "CREATE TABLE crowd (n int)")
        cluster.sql("a", "GRANT ALL ON crowd TO app")
        for replica in cluster.replicas:
            cluster.wait_for(replica, "SELECT to_regclass('crowd') IS NOT NULL")
            cluster.wait_for(replica, "SELECT has_table_privilege('app', 'crowd', 'SELECT')")
        yield cluster


@pytest.fixture
async def wires(small: Cluster) -> AsyncIterator[dict[str, Wire]]:
    """A wire before each node, which counts attempts to connect."""
    async with contextlib.AsyncExitStack() as stack:
        yield {node.name: await stack.enter_async_context(Wire("127.0.0.1", node.port)) for node in small.nodes}


@pytest.fixture
def through(wires: dict[str, Wire]) -> dict[str, Any]:
    """The configuration of a guard of role app through the wires."""
    nodes = [{"name": name, "host": "127.0.0.1", "port": wire.port} for name, wire in wires.items()]
    return {"nodes": nodes, "connection": {"user": "app", "database": "postgres"}, **PATIENT}


@contextlib.asynccontextmanager
async def filled(cluster: Cluster, name: str) -> AsyncIterator[None]:
    """Let others take all the connections that *name* has left."""
    others: list[Any] = []
    try:
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                others.append(await asyncpg.connect(cluster.dsn(name, user="app")))
        yield
    finally:
        for other in others:
            other.terminate()
        left = f"SELECT count(*) < {SLOTS // 2} FROM pg_stat_activity WHERE backend_type = 'client backend'"
        await asyncio.to_thread(cluster.wait_for, name, left)


async def busy(call: Callable[[], Awaitable[Any]], callers: int, seconds: float) -> Counter[Any]:
    """Let *callers* make *call* again and again; returns how often each answer came."""
    answers: Counter[Any] = Counter()
    end = time.monotonic() + seconds

    async def caller() -> None:
        while time.monotonic() < end:
            answers[await call()] += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return answers


def alarms(events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, ALARMS)]


@pytest.mark.parametrize("full", ["a", "b"], ids=["primary", "replica"])
async def test_a_node_that_others_have_filled_serves_by_the_connections_at_hand(
    small: Cluster, open_guard: Any, through: dict[str, Any], wires: dict[str, Wire], events: list[Event], full: str
) -> None:
    guard: dbguard.Guard = await open_guard(small, config=through, min_size=2, max_size=12)
    async with filled(small, full):
        events.clear()
        before = wires[full].opened

        if full == "a":
            answers = await busy(lambda: guard.execute(WRITE), 30, 2.0)
            assert set(answers) == {"INSERT 0 1"}
        else:
            answers = await busy(lambda: guard.using(consistency="eventual").fetchval(WHERE), 30, 2.0)
            assert set(answers) <= {"b", "c"}
            assert answers["c"] > answers["b"], "it weighs half"

        assert alarms(events) == []
        # 30 callers for 2 s, at a pace that grows to one dial in half a second: 10, where no pace makes 170. A place that
        # a time-out has freed may be taken, and the pace begins anew: where the machine is slow that makes 20.
        assert wires[full].opened - before <= 60
        if full == "b":
            quiet = Counter([await guard.using(consistency="eventual").fetchval(WHERE) for _ in range(50)])
            assert quiet == {"c": 50}, "where nobody waits, the node with its whole weight is asked"


async def test_a_server_that_we_have_filled_ourselves_is_not_dialled_without_end(
    small: Cluster, open_guard: Any, through: dict[str, Any], wires: dict[str, Wire], events: list[Event]
) -> None:
    guard: dbguard.Guard = await open_guard(small, config=through, min_size=0, max_size=3 * SLOTS)
    events.clear()
    before = wires["a"].opened

    answers = await busy(lambda: guard.using(role="primary").fetchval("SELECT pg_sleep(0.05)::text"), 100, 2.0)

    assert sum(answers.values()) >= 100, (
        "each caller was answered; in two seconds several times, if the machine is not slow"
    )
    assert alarms(events) == []
    assert wires["a"].opened - before <= 4 * SLOTS  # 27; where no pace holds them back, callers are told of it


async def test_a_full_node_without_a_connection_at_hand_is_waited_for(
    small: Cluster, open_guard: Any, through: dict[str, Any], wires: dict[str, Wire], events: list[Event]
) -> None:
    guard: dbguard.Guard = await open_guard(small, config=through, min_size=0, max_size=5)
    await guard.expire_connections()
    ours = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'"
    await until(lambda: asyncio.to_thread(lambda: small.sql("a", ours)[0][0] <= 1))  # the monitor's own
    async with filled(small, "a"):
        events.clear()
        waiting = [asyncio.ensure_future(guard.execute(WRITE, timeout=20)) for _ in range(20)]
        before = wires["a"].opened
        await asyncio.sleep(0.5)
        assert wires["a"].opened - before <= 20  # 7, and 6 more in three seconds in which the machine stands still

    answers = await asyncio.gather(*waiting, return_exceptions=True)
    # Who dialled thrice in vain is told so, as by the driver: one, or two. Where no pace holds them back, 27 dials: nine.
    assert answers.count("INSERT 0 1") >= 14, answers
    assert {type(answer) for answer in answers} <= {str, asyncpg.TooManyConnectionsError}
    assert alarms(events) == []


@pytest.fixture(scope="module")
def proxied(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(binaries=binaries, replicas=1) as cluster:
        cluster.sql("a", "CREATE TABLE crowd (n int)")
        cluster.wait_for("b", "SELECT to_regclass('crowd') IS NOT NULL")
        yield cluster


@pytest.fixture
def linked(proxied: ProxiedCluster) -> dict[str, Any]:
    links = {node.name: proxied.link(APPLICATION, node) for node in proxied.nodes}
    return {"nodes": [{"name": name, "host": link.host, "port": link.port} for name, link in links.items()], **PATIENT}


@pytest.mark.parametrize("slow", ["a", "b"], ids=["primary", "replica"])
async def test_a_node_three_hundred_milliseconds_away_is_alive(
    proxied: ProxiedCluster, open_guard: Any, linked: dict[str, Any], events: list[Event], slow: str
) -> None:
    guard: dbguard.Guard = await open_guard(proxied, config=linked, min_size=4, max_size=8)
    events.clear()
    with proxied.link(APPLICATION, slow).toxic("latency", latency=300):
        writes, reads = await asyncio.gather(
            busy(lambda: guard.execute(WRITE), 4, 4.0),
            busy(lambda: guard.using(consistency="eventual").fetchval(WHERE), 4, 4.0),
        )

    assert set(writes) == {"INSERT 0 1"}
    assert reads["b"]
    assert alarms(events) == []


async def test_a_node_that_is_short_of_time_is_alive(
    proxied: ProxiedCluster, open_guard: Any, linked: dict[str, Any], events: list[Event]
) -> None:
    guard: dbguard.Guard = await open_guard(proxied, config=linked, min_size=4, max_size=8)
    events.clear()
    over = threading.Event()

    def starve() -> None:
        while not over.is_set():
            proxied.freeze("a")
            over.wait(0.2)
            proxied.thaw("a")
            over.wait(0.05)

    starving = asyncio.create_task(asyncio.to_thread(starve))
    try:
        writes = await busy(lambda: guard.execute(WRITE), 8, 4.0)
    finally:
        over.set()
        await starving

    assert set(writes) == {"INSERT 0 1"}
    assert alarms(events) == []
