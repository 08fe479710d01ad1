"""The gate on a real cluster: who waits is let go without an error, told when writes are refused, held by a pause."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest

import dbguard
from dbguard.events import Flapping, GateChanged, WritesPaused, WritesResumed
from tests.integration.facades import every_facade, waited
from tests.integration.failover.workload import promote

act = asyncio.to_thread

WHERE = "SELECT current_setting('cluster_name')"
INSERT = "INSERT INTO written VALUES ($1)"
CALLERS = 200


async def with_table(cluster) -> None:
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    for node in cluster.replicas:
        await asyncio.to_thread(cluster.wait_for, node, "SELECT to_regclass('written') IS NOT NULL")


async def written(cluster) -> list[int]:
    rows = await asyncio.to_thread(cluster.sql, cluster.primary, "SELECT id FROM written ORDER BY id")
    return [row[0] for row in rows]


async def test_who_waited_goes_on_without_an_error_also_where_the_primary_flaps(
    cluster_factory, open_guard, until, events
):
    cluster = await asyncio.to_thread(cluster_factory)
    await with_table(cluster)
    guard = await open_guard(cluster, config={"failover": {"flap_changes": 1, "flap_stay": ["5s", "10s"]}})
    await asyncio.to_thread(cluster.kill, "a")
    await until(lambda: guard.status().writes == "failover")
    writes = [asyncio.ensure_future(guard.execute(INSERT, number)) for number in range(CALLERS)]
    await until(lambda: guard.status().waiting == CALLERS)

    with pytest.raises(dbguard.NoPrimary) as at_once:
        await guard.using(writes="fail").execute(INSERT, -1)
    assert at_once.value.retry_after == 1.0
    assert not isinstance(at_once.value, TimeoutError)
    assert await guard.using(consistency="eventual").fetchval(WHERE) in {"b", "c"}
    route = guard.route("DELETE FROM written")
    assert (route.node, route.role) == (None, None)
    assert route.why.startswith("waits: no primary to go to: ")
    assert guard.using(writes="fail").route("DELETE FROM written").why.startswith("raises NoPrimary: ")
    assert guard.using(consistency="eventual").route(WHERE).role == "replica"

    await asyncio.to_thread(cluster.promote, "b")
    assert await asyncio.gather(*writes) == ["INSERT 0 1"] * CALLERS
    assert await written(cluster) == list(range(CALLERS))
    assert guard.status().waiting == 0
    assert not any(isinstance(event, Flapping) for event in events)

    await asyncio.to_thread(cluster.follow, "c", "b")
    await asyncio.to_thread(cluster.wait_for, "c", f"SELECT count(*) = {CALLERS} FROM written")
    await asyncio.to_thread(cluster.kill, "b")
    await until(lambda: guard.status().writes == "failover")
    write = asyncio.ensure_future(guard.execute(INSERT, CALLERS))
    await asyncio.to_thread(cluster.promote, "c")
    await until(lambda: any(isinstance(event, Flapping) for event in events))
    assert "changed 2 times" in guard.status().why
    with pytest.raises(dbguard.NoPrimary, match="writes wait until this one has stayed") as caught:
        await guard.using(writes="fail").execute(INSERT, -1)
    assert 0 <= caught.value.retry_after <= 5.0
    assert not write.done()

    assert await write == "INSERT 0 1"
    flapping = next(event for event in events if isinstance(event, Flapping))
    opened = [event for event in events if isinstance(event, GateChanged) and event.now == "open"][-1]
    assert (flapping.node, flapping.changes) == ("c", 2)
    assert opened.at - flapping.at >= 5.0
    assert await written(cluster) == list(range(CALLERS + 1))


async def test_a_switchover_in_a_pause_costs_nobody_an_error(cluster_factory, open_guard, until, events):
    cluster = await asyncio.to_thread(cluster_factory)
    await with_table(cluster)
    guard = await open_guard(cluster)

    # Whoever is under way may end; how many are left is told; a pause that is cancelled is none.
    other = await asyncpg.connect(cluster.dsn("a"))
    await other.execute("SELECT pg_advisory_lock(1)")
    async with guard.transaction() as tx:
        await tx.execute(INSERT, 1)
        slow = asyncio.ensure_future(guard.execute("INSERT INTO written SELECT 2 FROM pg_advisory_xact_lock(1)"))
        await until(lambda: sum(node.in_use for node in guard.status().nodes) == 2)
        assert await guard.pause(timeout=0.0) == 2
        pausing = asyncio.ensure_future(guard.pause(timeout=60))
        await other.close()
        assert await slow == "INSERT 0 1"
        pausing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pausing
        assert guard.status().writes == "open"
        assert await guard.pause(timeout=0.1) == 1
        await tx.execute(INSERT, 3)
    assert await guard.pause(timeout=30) == 0
    guard.resume()

    began = len(events)
    async with guard.paused(at_most=120) as left:
        assert left == 0
        status = guard.status()
        assert (status.writes, status.why) == ("paused", "guard.pause()")
        assert 100 < status.paused <= 120
        writes = [asyncio.ensure_future(guard.execute(INSERT, 10 + number)) for number in range(50)]
        read = asyncio.ensure_future(guard.using(role="primary").fetchval(WHERE))
        await until(lambda: guard.status().waiting == 51)
        with pytest.raises(dbguard.NoPrimary, match=r"guard\.pause") as caught:
            await guard.using(writes="fail").execute(INSERT, -1)
        assert caught.value.retry_after > 100
        with pytest.raises(dbguard.NoPrimary, match=r"guard\.pause") as late:
            await guard.execute(INSERT, -2, timeout=0.1)
        assert isinstance(late.value, TimeoutError)
        assert await guard.using(consistency="eventual").fetchval(WHERE) in {"b", "c"}
        assert guard.route("DELETE FROM written").why == "waits: guard.pause() holds what needs the primary"
        assert await written(cluster) == [1, 2, 3]

        await asyncio.to_thread(cluster.wait_for, "b", "SELECT count(*) = 3 FROM written")
        await asyncio.to_thread(cluster.stop_node, "a", "fast")
        await asyncio.to_thread(cluster.promote, "b")
        await asyncio.to_thread(cluster.follow, "c", "b")
        await until(lambda: guard.status().primary == "b" and guard.status().writes == "paused")
        assert not any(write.done() for write in writes)

    assert await asyncio.gather(*writes) == ["INSERT 0 1"] * 50
    assert await read == "b"
    assert await written(cluster) == [1, 2, 3, *range(10, 60)]
    assert guard.status().counts["unknown"] == 0
    said = [event for event in events[began:] if isinstance(event, WritesPaused | WritesResumed)]
    assert [type(event) for event in said] == [WritesPaused, WritesResumed]
    assert not said[1].forgotten

    # A pause that nobody ends, ends by itself, and that is told.
    assert await guard.pause() == 0
    write = asyncio.ensure_future(guard.execute(INSERT, 99))
    await until(lambda: guard.status().waiting == 1)
    assert await guard.pause(at_most=0.3) == 0
    assert await write == "INSERT 0 1"
    last = [event for event in events if isinstance(event, WritesResumed)][-1]
    assert (last.forgotten, last.waiting) == (True, 1)
    assert guard.status().paused is None
    for wrong in (0, -1, float("inf")):
        with pytest.raises(ValueError, match="at_most"):
            await guard.pause(at_most=wrong)


@every_facade
async def test_a_switchover_in_a_pause_under_work_is_told_to_nobody(home, work, until):
    """Nothing is under way on the old primary when it goes, so that nothing is of unknown fate."""
    old = home.primary.name
    assert await waited(work.guard.pause, timeout=10, at_most=120) == 0
    await work.stands_still()
    await act(home.stop_node, old, "fast")
    new = await act(promote, home)
    await until(lambda: work.guard.status().primary == new)
    await work.reads_go_on()
    assert work.guard.status().writes == "paused"

    work.guard.resume()

    since = await work.flows()
    await work.judge(unknown=0)
    assert work.writers_at(since=since) == {new}


async def test_who_waits_is_told_at_once_that_writes_are_refused_and_that_no_node_answers(
    cluster_factory, open_guard, until
):
    cluster = await asyncio.to_thread(cluster_factory)
    await with_table(cluster)
    guard = await open_guard(cluster)
    await asyncio.to_thread(cluster.kill, "a")
    await until(lambda: guard.status().writes == "failover")
    assert await guard.pause(at_most=600) == 0  # or else one of the two could take the writes while it is seen alone
    began = time.monotonic()
    writes = [asyncio.ensure_future(guard.execute(INSERT, number, timeout=600)) for number in range(5)]
    await until(lambda: guard.status().waiting == 5)

    await asyncio.gather(*(asyncio.to_thread(cluster.promote, node) for node in "bc"))
    said = await asyncio.gather(*writes, return_exceptions=True)

    assert [type(error).__mro__[1] for error in said] == [dbguard.SplitBrain] * 5
    assert time.monotonic() - began < 60
    with pytest.raises(dbguard.SplitBrain):
        await guard.execute(INSERT, 6)

    guard.resume()
    for node in "bc":
        await asyncio.to_thread(cluster.kill, node)
    await until(lambda: not any(node.reachable for node in guard.status().nodes))
    with pytest.raises(dbguard.NoPrimary, match=r"no node answers \(a: .*; b: .*; c: .*\)"):
        await guard.fetchval("SELECT 1", timeout=0.2)
