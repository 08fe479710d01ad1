"""Through a failover: a pause for writes, nothing for reads, and nothing lost that was acknowledged."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import asyncpg
import pytest

import dbguard
from dbguard.events import GateChanged, PrimaryChanged

WHERE = "SELECT current_setting('cluster_name')"
SOON = 5.0
"""Seconds from a promotion to the first acknowledged write: generous, for a machine that does much else."""


@dataclass
class Load:
    """Readers and writers over a guard, and what became of their calls."""

    guard: dbguard.Guard
    acknowledged: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    read_errors: list[BaseException] = field(default_factory=list)
    write_errors: list[BaseException] = field(default_factory=list)
    reads: int = 0
    acknowledged_at: float = 0.0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    over: bool = False

    async def write(self, writer: int, writers: int) -> None:
        number = writer
        while not self.over:
            async with self.guard.causal():
                try:
                    await self.guard.execute("INSERT INTO written VALUES ($1)", number)
                except dbguard.OutcomeUnknown:
                    self.unknown.add(number)
                except Exception as error:  # noqa: BLE001  judged by the test
                    self.write_errors.append(error)
                else:
                    self.acknowledged.add(number)
                    self.acknowledged_at = time.monotonic()
            number += writers
            await asyncio.sleep(0.002)

    async def read(self) -> None:
        while not self.over:
            async with self.guard.causal():
                try:
                    await self.guard.fetchval("SELECT count(*) FROM written")
                except Exception as error:  # noqa: BLE001  judged by the test
                    self.read_errors.append(error)
                else:
                    self.reads += 1
            await asyncio.sleep(0.002)

    def begin(self) -> None:
        self.tasks = [asyncio.create_task(self.write(n, 4)) for n in range(4)]
        self.tasks += [asyncio.create_task(self.read()) for _ in range(4)]

    async def end(self) -> None:
        self.over = True
        await asyncio.gather(*self.tasks)


@pytest.fixture
async def load(cluster, open_guard, settled, until):
    """A cluster under load."""
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    guard = await open_guard(cluster)
    load = Load(guard)
    load.begin()
    await until(lambda: len(load.acknowledged) > 20 and load.reads > 20)
    yield load
    await load.end()


async def judge(load: Load, cluster, failovers: int = 1) -> None:
    """Nobody saw an error but for writes of unknown fate; nothing acknowledged is lost, nothing is there twice."""
    await load.end()
    rows = [row[0] for row in await asyncio.to_thread(cluster.sql, cluster.primary, "SELECT id FROM written")]
    assert load.read_errors == []
    assert load.write_errors == []
    assert len(rows) == len(set(rows))
    assert load.acknowledged <= set(rows)
    assert set(rows) <= load.acknowledged | load.unknown
    assert len(load.unknown) <= 4 * failovers  # at most what was in flight


async def flows_again(load: Load, until, seconds: float = SOON) -> None:
    began, before = time.monotonic(), len(load.acknowledged)
    await until(lambda: len(load.acknowledged) > before + 20, seconds)
    assert load.acknowledged_at > began


@pytest.mark.every_postgres
async def test_a_killed_primary_is_a_pause_for_writes_and_nothing_for_reads(load, cluster, until, events):
    await asyncio.to_thread(cluster.kill, "a")
    reads = load.reads
    await until(lambda: load.guard.status().waiting == 4)
    await until(lambda: load.reads > reads + 50)  # no write flows, reads go on

    await asyncio.to_thread(cluster.promote, "b")
    await asyncio.to_thread(cluster.follow, "c", "b")

    await flows_again(load, until)
    await judge(load, cluster)
    assert [event.node for event in events if isinstance(event, PrimaryChanged)] == ["a", "b"]
    assert [event.now for event in events if isinstance(event, GateChanged)][-1] == "open"


async def test_a_stopped_primary_is_a_pause_for_writes_and_nothing_for_reads(load, cluster, until):
    await asyncio.to_thread(cluster.stop_node, "a", "fast")
    await asyncio.to_thread(cluster.promote, "b")
    await asyncio.to_thread(cluster.follow, "c", "b")

    await flows_again(load, until)
    await judge(load, cluster)


async def test_the_old_primary_comes_back_as_a_replica_and_serves_reads(load, cluster, until, settled):
    await asyncio.to_thread(cluster.kill, "a")
    await asyncio.to_thread(cluster.promote, "b")
    await asyncio.to_thread(cluster.follow, "c", "b")
    await asyncio.to_thread(cluster.rejoin, "a")

    await settled(load.guard)
    await flows_again(load, until)
    seen = set()

    async def all_serve() -> bool:
        async with load.guard.causal():
            seen.add(await load.guard.fetchval(WHERE))
        return seen == {"a", "c"}

    await until(all_serve)
    await judge(load, cluster)


async def test_two_failovers_in_a_row(load, cluster, until, settled):
    for old, new, other in (("a", "b", "c"), ("b", "c", "a")):
        await asyncio.to_thread(cluster.kill, old)
        await asyncio.to_thread(cluster.promote, new)
        if cluster.node(other).running:
            await asyncio.to_thread(cluster.follow, other, new)
        await asyncio.to_thread(cluster.rejoin, old)
        await flows_again(load, until)
        await asyncio.to_thread(cluster.wait_streaming)

    await settled(load.guard)
    assert load.guard.status().primary == "c"
    await judge(load, cluster, failovers=2)


async def test_a_primary_restarted_in_place_stays_in_office(load, cluster, until, events, settled):
    await settled(load.guard)
    reign = load.guard.status().reign

    await asyncio.to_thread(cluster.stop_node, "a", "fast")
    await asyncio.to_thread(cluster.start_node, "a")

    await flows_again(load, until)
    assert load.guard.status().reign == reign
    assert [event.node for event in events if isinstance(event, PrimaryChanged)] == ["a"]
    await judge(load, cluster)


async def test_terminating_all_backends_is_no_error_for_reads(load, cluster, until):
    for _ in range(3):
        reads = load.reads
        for node in cluster.nodes:
            await asyncio.to_thread(cluster.terminate_backends, node)
        await until(lambda reads=reads: load.reads > reads + 20)

    await load.end()
    assert load.read_errors == []
    assert load.write_errors == []
    assert load.guard.status().primary == "a"
    rows = [row[0] for row in await asyncio.to_thread(cluster.sql, "a", "SELECT id FROM written")]
    assert len(rows) == len(set(rows))
    assert load.acknowledged <= set(rows) <= load.acknowledged | load.unknown


async def test_a_killed_replica_is_no_error_for_reads(load, cluster, until):
    await asyncio.to_thread(cluster.kill, "b")
    reads = load.reads
    await until(lambda: load.reads > reads + 100)

    await asyncio.to_thread(cluster.start_node, "b")
    await until(lambda: all(node.reachable and node.breaker == "closed" for node in load.guard.status().nodes))
    assert load.unknown == set()
    await judge(load, cluster)


async def test_start_up_without_a_primary_reads_and_lets_writes_wait_for_one(cluster, open_guard, until):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    for node in "bc":
        await asyncio.to_thread(cluster.wait_for, node, "SELECT to_regclass('written') IS NOT NULL")
    await asyncio.to_thread(cluster.kill, "a")
    guard = await open_guard(cluster, settle=False)

    assert await guard.using(consistency="eventual").fetchval(WHERE) in {"b", "c"}
    write = asyncio.create_task(guard.execute("INSERT INTO written VALUES (1)"))
    await until(lambda: guard.status().waiting == 1)
    assert not write.done()
    with pytest.raises(dbguard.NoPrimary):
        await guard.using(writes="fail").execute("INSERT INTO written VALUES (2)")
    await asyncio.to_thread(cluster.promote, "b")

    assert await write == "INSERT 0 1"
    assert await guard.using(role="primary").fetch("SELECT * FROM written") == [(1,)]


async def test_writes_fail_at_once_or_after_their_time_as_told(cluster, open_guard, until):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    guard = await open_guard(cluster)
    await asyncio.to_thread(cluster.kill, "a")
    await until(lambda: guard.status().writes == "failover")

    began = time.monotonic()
    with pytest.raises(dbguard.NoPrimary) as at_once:
        await guard.using(writes="fail").execute("INSERT INTO written VALUES (1)")
    assert time.monotonic() - began < 0.1
    assert not isinstance(at_once.value, TimeoutError)
    began = time.monotonic()
    with pytest.raises(dbguard.NoPrimary) as in_time:
        await guard.execute("INSERT INTO written VALUES (1)", timeout=0.3)
    assert 0.29 < time.monotonic() - began < 0.4 + 0.1
    assert isinstance(in_time.value, TimeoutError)
    assert isinstance(in_time.value, asyncpg.PostgresConnectionError)

    with pytest.raises(dbguard.NoPrimary):
        async with guard.using(timeout=0.1).transaction():
            pytest.fail("there is no primary")
    with pytest.raises(dbguard.NoPrimary):
        await guard.using(timeout=0.1).run_in_transaction(lambda tx: tx.execute("INSERT INTO written VALUES (1)"))


async def test_more_calls_than_may_wait_are_declined(cluster, open_guard, until):
    guard = await open_guard(cluster, config={"failover": {"max_waiting": 3}})
    await asyncio.to_thread(cluster.kill, "a")
    await until(lambda: guard.status().writes == "failover")
    waiting = [asyncio.create_task(guard.execute("CREATE TABLE never ()", timeout=20)) for _ in range(3)]
    await until(lambda: guard.status().waiting == 3)

    with pytest.raises(dbguard.Overloaded) as caught:
        await guard.execute("CREATE TABLE never ()")

    assert isinstance(caught.value, asyncpg.PostgresConnectionError)
    for task in waiting:
        task.cancel()
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*waiting, return_exceptions=True))
    assert guard.status().waiting == 0


async def test_waiting_calls_end_when_the_guard_is_closed(cluster, open_guard, until):
    guard = await open_guard(cluster)
    await asyncio.to_thread(cluster.kill, "a")
    await until(lambda: guard.status().writes == "failover")
    write = asyncio.create_task(guard.execute("CREATE TABLE never ()"))
    await until(lambda: guard.status().waiting == 1)

    await guard.close(timeout=0.5)

    with pytest.raises(dbguard.GuardClosed):
        await write
