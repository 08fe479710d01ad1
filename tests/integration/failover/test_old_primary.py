"""Nothing is written to an old primary, whatever it says of itself."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest

import dbguard
from dbguard.events import Drained, GateChanged, NodeFenced, PrimaryChanged
from tests.integration.facades import every_facade, words_for, words_of
from tests.integration.failover.conftest import prepare
from tests.integration.failover.pooler import Pooler
from tests.integration.failover.workload import acknowledge_alone, promote

act = asyncio.to_thread

WHERE = "SELECT current_setting('cluster_name')"
INSERT = "INSERT INTO written VALUES ($1) RETURNING current_setting('cluster_name')"
RARELY = {"probe": {"interval": "60s", "timeout": "5s"}}
"""Probes so rare that only the calls themselves can notice."""


def node(guard, name):
    return next(node for node in guard.status().nodes if node.name == name)


def fenced(events):
    return [event.node for event in events if isinstance(event, NodeFenced)]


def accepted_at(events, name):
    return next(event.at for event in events if isinstance(event, PrimaryChanged) and event.node == name)


async def replace_as_a_manager_does(cluster, old, new):
    """Stop the primary, promote a replica, and let the old one follow it: it is back before anybody asks."""
    await act(cluster.stop_node, old)
    await act(cluster.promote, new)
    for name in {node.name for node in cluster.nodes} - {new}:
        await act(cluster.follow, name, new)
    await act(cluster.start_node, old)


@pytest.mark.every_postgres
async def test_one_that_comes_back_alone_is_fenced(cluster_factory, open_guard, at_work, until, events, settled):
    cluster = await act(cluster_factory, synchronous=True)
    await act(prepare, cluster)
    guard = await open_guard(cluster)
    work = await at_work(guard, cluster)
    await act(cluster.kill, "a")
    new = await act(promote, cluster)
    await work.flows()

    await act(cluster.start_node, "a")  # a primary again, alive and read-write
    await act(acknowledge_alone, cluster, "a")
    await until(lambda: node(guard, "a").role == "fenced")

    since = await work.flows()
    for _ in range(10):
        assert await guard.using(consistency="eventual").fetchval(WHERE) != "a"
    assert await work.acknowledged_by("a", since=since) == set()
    assert fenced(events) == ["a"]
    assert guard.status().primary == new
    await act(cluster.rejoin, "a")
    await settled(guard)
    assert node(guard, "a").role == "replica"
    await work.judge()


async def test_an_isolated_one_loses_its_leases_when_another_is_promoted(home, work, until, events):
    """It never went away: it is read-write, reachable, acknowledges everything, and its connections are open."""
    old, new = home.primary.name, home.replicas[0].name
    await act(acknowledge_alone, home, old)
    async with work.guard.acquire() as con:
        assert con.node == old
        await act(home.promote, new)
        await act(acknowledge_alone, home, new)  # the other replica has more than it, and cannot follow
        await until(lambda: work.guard.status().primary == new)
        for call in (lambda: con.execute(INSERT, 0), lambda: con.copy_records_to_table("written", records=[(0, "")])):
            with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresConnectionError)):
                await call()

    accepted = accepted_at(events, new)
    assert await work.flows() > accepted
    await work.judge(exposed=accepted)
    assert work.writers_at(since=accepted) == {new}
    assert await work.acknowledged_by(old, since=accepted) == set()
    assert fenced(events) == [old]


async def test_a_guard_that_starts_beside_one_takes_the_newer(home, open_guard, at_work, until):
    old, new = home.primary.name, home.replicas[0].name
    await act(home.promote, new)
    await act(acknowledge_alone, home, new)

    guard = await open_guard(home, settle=False)

    await until(lambda: guard.status().writes == "open")
    work = await at_work(guard, home)
    assert (guard.status().primary, node(guard, old).role) == (new, "fenced")
    await work.judge(unknown=0)
    assert work.writers_at(since=0.0) == {new}


@every_facade
async def test_demoted_and_reachable(home, work, settled):
    """The trap: the node answers, connections to it can be opened, and every write on it is refused with 25006."""
    old, new = home.primary.name, home.replicas[0].name

    await replace_as_a_manager_does(home, old, new)

    since = await work.flows()
    await settled(work.guard)
    await work.judge()
    assert work.writers_at(since=since) == {new}


async def test_demoted_and_reachable_is_noticed_by_the_first_call(home, open_guard, at_work, events):
    old, new = home.primary.name, home.replicas[0].name
    guard = await open_guard(home, config=RARELY)
    await guard.execute(INSERT, 0)
    await act(home.wait_for, new, "SELECT count(*) = 1 FROM written")

    await replace_as_a_manager_does(home, old, new)

    work = await at_work(guard, home)
    await work.judge(unknown=0)
    assert work.writers_at(since=0.0) == {new}
    assert len([e for e in events if isinstance(e, GateChanged) and "25006" in e.why]) <= 1


@every_facade
async def test_demoted_behind_connections_that_were_open_all_the_time(home, open_guard, at_work, until, events, facade):
    """A pooler keeps its clients' connections: they were told of a primary, and 25006 is all that says otherwise."""
    old, new = home.primary.name, home.replicas[0].name
    async with Pooler("127.0.0.1", home.primary.port) as pooler:
        nodes = [{"name": node.name, "host": node.host, "port": node.port} for node in home.nodes]
        next(node for node in nodes if node["name"] == old)["port"] = pooler.port
        guard = await open_guard(home, config=RARELY | {"nodes": nodes}, **words_for(facade).unprepared)
        words = words_of(guard)
        assert await words.asked(words.value(INSERT, 0)) == old
        await act(home.wait_for, new, "SELECT count(*) = 1 FROM written")
        events.clear()

        await replace_as_a_manager_does(home, old, new)
        began = time.monotonic()

        async def is_followed():
            try:
                return await words.asked(words.value(INSERT, 0)) == new
            except (words.read_only, dbguard.OutcomeUnknown):
                return False  # until a probe has asked why; what is under way just then is ended

        await until(is_followed)
        assert time.monotonic() - began < 30.0  # not by the next steady probe
        assert pooler.replaced
        assert [event.node for event in events if isinstance(event, PrimaryChanged)] == [new]
        assert old in [event.node for event in events if isinstance(event, Drained)]
        work = await at_work(guard, home)
        await work.judge(unknown=0)
        assert work.writers_at(since=0.0) == {new}
