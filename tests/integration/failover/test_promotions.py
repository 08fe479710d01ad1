"""The primary goes, and another takes its place: a pause for writes, nothing for reads, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio

import pytest

from dbguard.events import GateChanged, NodeDown, NodeFenced, PrimaryChanged, RoleChanged
from tests.integration.facades import every_facade
from tests.integration.failover.conftest import prepare
from tests.integration.failover.workload import WRITERS, acknowledge_alone, promote

act = asyncio.to_thread

WHERE = "SELECT current_setting('cluster_name')"


def told(events, kind):
    return [event for event in events if isinstance(event, kind)]


def role(guard, name):
    return next(node.role for node in guard.status().nodes if node.name == name)


def in_order(events, *wanted):
    """Whether events like these were told, one after the other."""
    left = iter(events)
    return all(any(fits(event) for event in left) for fits in wanted)


@pytest.mark.every_postgres
async def test_killed_and_another_promoted(cluster_factory, open_guard, at_work, events):
    cluster = await act(cluster_factory, synchronous=True)
    await act(prepare, cluster)
    guard = await open_guard(cluster)
    work = await at_work(guard, cluster)
    reign = guard.status().reign

    await act(cluster.kill, "a")
    await work.stands_still()
    await work.reads_go_on()
    new = await act(promote, cluster)

    since = await work.flows()
    await work.judge()
    assert work.writers_at(since=since) == {new}
    assert guard.status().reign != reign
    assert [event.node for event in told(events, PrimaryChanged)] == ["a", new]
    assert in_order(
        events,
        lambda e: isinstance(e, GateChanged) and e.now == "suspect",
        lambda e: isinstance(e, NodeDown) and e.node == "a",
        lambda e: isinstance(e, GateChanged) and e.now == "failover",
        lambda e: isinstance(e, RoleChanged) and (e.node, e.now) == (new, "primary"),
        lambda e: isinstance(e, PrimaryChanged) and e.node == new,
        lambda e: isinstance(e, GateChanged) and e.now == "open",
    )


@every_facade
async def test_stopped_cleanly_and_another_promoted(home, work):
    await act(home.stop_node, home.primary, "fast")
    new = await act(promote, home)

    since = await work.flows()
    await work.judge()
    assert work.writers_at(since=since) == {new}


@every_facade
async def test_frozen_while_another_is_promoted_then_thawed(home, work, until, events):
    """Its connections stay open and nothing answers; when it wakes up it is a primary as before, and may not be used."""
    old = home.primary.name
    await act(home.freeze, old)
    await work.reads_go_on()
    new = await act(promote, home)
    await work.flows()

    await act(home.thaw, old)
    await act(acknowledge_alone, home, old)
    await until(lambda: role(work.guard, old) == "fenced")

    since = await work.flows()
    await act(home.sql, old, "INSERT INTO written VALUES (0, 'it would have taken it')")
    await work.judge()
    assert work.writers_at(since=since) == {new}
    assert await work.acknowledged_by(old, since=since) == set()
    assert [event.node for event in told(events, NodeFenced)] == [old]


@every_facade
async def test_the_old_primary_comes_back_as_a_replica_and_serves_reads(home, work, until, settled):
    old = home.primary.name
    await act(home.kill, old)
    new = await act(promote, home)
    await act(home.rejoin, old)

    await settled(work.guard)
    await work.flows()
    seen = set()

    async def all_serve():
        async with work.words.causal():
            seen.add(await work.value(WHERE))
        return seen == {"a", "b", "c"} - {new}

    await until(all_serve)
    await work.judge()


async def test_two_failovers_in_a_row(home, work, settled):
    for _ in range(2):
        old = home.primary
        await act(home.kill, old)
        await act(promote, home)
        await act(home.rejoin, old)
        await work.flows()
        await act(home.wait_streaming)

    await settled(work.guard)
    assert work.guard.status().primary == home.primary.name
    await work.judge(unknown=2 * WRITERS)


async def test_a_promotion_that_fails_and_another_that_succeeds(cluster_factory, open_guard, at_work, events):
    """The first one chosen takes the order, and dies before it has become the primary."""
    cluster = await act(cluster_factory, synchronous=True)
    await act(prepare, cluster)
    guard = await open_guard(cluster)
    work = await at_work(guard, cluster)
    await act(cluster.sql, "b", "ALTER SYSTEM SET recovery_end_command = 'sleep 60'")
    await act(cluster.sql, "b", "SELECT pg_reload_conf()")
    await act(cluster.stop_node, "a", "fast")  # b and c have all of it then
    await act(cluster.sql, "b", "SELECT pg_promote(false)")
    await act(cluster.wait_for, "b", "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)")
    await work.stands_still()
    await work.reads_go_on()
    assert role(guard, "b") == "replica"

    await act(cluster.kill, "b")
    await act(cluster.promote, "c")
    await act(cluster.rejoin, "a")

    since = await work.flows()
    await work.judge()
    assert work.writers_at(since=since) == {"c"}
    assert [event.node for event in told(events, PrimaryChanged)] == ["a", "c"]


async def test_a_killed_replica_is_nothing_for_anybody(home, work, until):
    name = home.replicas[0].name
    await act(home.kill, name)
    await work.reads_go_on()
    await work.flows()

    await act(home.start_node, name)
    await until(lambda: all(node.reachable and node.breaker == "closed" for node in work.guard.status().nodes))
    await work.reads_go_on()
    await work.judge(unknown=0)
