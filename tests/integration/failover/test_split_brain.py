"""Two primaries on one timeline: nobody writes until one of them is gone, or trusted; replicas go on serving."""

from __future__ import annotations

import asyncio

import pytest

import dbguard
from dbguard.events import NodeFenced, SplitBrainSeen
from tests.integration.facades import every_facade
from tests.integration.failover.conftest import prepare
from tests.integration.failover.workload import WRITERS

act = asyncio.to_thread

INSERT = "INSERT INTO written VALUES (0, 'asked')"


@pytest.fixture
def home(cluster_factory):
    """One node more than elsewhere: with two primaries, and an old one that is gone, a replica is left.

    For one test alone: pg_rewind takes two histories with one number for the same.
    """
    cluster = cluster_factory(synchronous=True, replicas=3)
    prepare(cluster)
    return cluster


@pytest.fixture
async def opened(home, open_guard, at_work):
    """Open a guard, and let work begin whose readers ask replicas, whatever they may miss."""

    async def make(**failover):
        guard = await open_guard(home, config={"failover": failover})
        return guard, await at_work(guard, home, consistency="eventual")

    return make


async def replace_the_primary(home):
    """Stop the primary so that all replicas have all it had; return their names."""
    replicas = [node.name for node in home.replicas]
    await act(home.stop_node, home.primary, "fast")
    return replicas


async def promote_by_mistake(home, name):
    """Promote a replica behind everybody's back."""
    assert await act(home.sql, name, "SELECT pg_promote()") == [(True,)]


def split_brains(events):
    return [event for event in events if isinstance(event, SplitBrainSeen)]


async def refused(work):
    """Writes are refused, and say why; what a replica may serve is served."""
    with pytest.raises(dbguard.SplitBrain, match="split brain") as caught:
        await work.words.asked(work.words.execute(INSERT))
    assert isinstance(caught.value, work.words.gone[0])
    await work.reads_go_on()


async def test_two_promoted_at_once_nobody_writes_until_one_is_gone(home, opened, until, events):
    guard, work = await opened()
    first, second, third = await replace_the_primary(home)
    await asyncio.gather(act(home.promote, first), promote_by_mistake(home, second))
    await until(lambda: "split brain" in guard.status().why)
    await refused(work)

    await act(home.kill, second)
    await act(home.follow, third, first)

    await work.flows()
    await work.judge(refused="SplitBrain", unknown=2 * WRITERS)
    assert guard.status().primary == first
    assert {frozenset(event.nodes) for event in split_brains(events)} == {frozenset({first, second})}


@every_facade
async def test_one_promoted_beside_the_primary_nobody_writes_until_one_is_trusted(home, opened, until, events):
    guard, work = await opened()
    first, second, third = await replace_the_primary(home)
    await act(home.promote, first)
    await act(home.follow, third, first)
    await work.flows()
    await promote_by_mistake(home, second)
    await until(lambda: "split brain" in guard.status().why)
    await refused(work)

    guard.trust(first)

    since = await work.flows()
    await work.judge(refused="SplitBrain", unknown=2 * WRITERS)
    assert work.writers_at(since=since) == {first}
    assert [event.nodes for event in split_brains(events)] == [(first, second)]
    assert [event.node for event in events if isinstance(event, NodeFenced)] == [second]


async def test_the_incumbent_goes_on_if_the_configuration_says_so(home, opened, until, events):
    _, work = await opened(split_brain="incumbent")
    first, second, third = await replace_the_primary(home)
    await act(home.promote, first)
    await act(home.follow, third, first)
    await work.flows()
    await promote_by_mistake(home, second)
    await until(lambda: split_brains(events))

    since = await work.flows()
    await work.judge()
    assert work.writers_at(since=since) == {first}
